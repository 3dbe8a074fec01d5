import json
from pathlib import Path
from typing import Any

import pytest

from moc.kernel.errors import LoadFailed
from moc.workers.runtimes.hugging_face.folder import Folder, Pooling


def folder(path: Path, config: Any = None, *names: str, **files: Any) -> Folder:
    """A folder with this configuration, empty files of these names, and JSON files."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config or {}))
    for name in names or ("model.safetensors",):
        (path / name).touch()
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return Folder(path)


@pytest.mark.parametrize(
    ("architectures", "task"),
    [
        (["LlamaForCausalLM"], "chat"),
        (["GPT2LMHeadModel"], "chat"),
        (["BertForSequenceClassification"], "classification"),
        (["BertModel"], "embeddings"),
        (None, "embeddings"),
        ("Llama", "embeddings"),
    ],
)
def test_the_architecture_says_what_it_is_for(tmp_path: Path, architectures: Any, task: str) -> None:
    assert folder(tmp_path, {"architectures": architectures}).task == task


def modules(*names: str) -> list[dict[str, str]]:
    return [{"type": f"sentence_transformers.models.{name}", "path": f"{at}_{name}"} for at, name in enumerate(names)]


def pooled(path: Path, pooling: Any, *names: str, wanted: str | None = None) -> Pooling:
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder(path, modules=modules("Transformer", "Pooling", *names)).pooling(wanted)


def test_pooling_is_the_mean_unless_the_folder_says(tmp_path: Path) -> None:
    assert folder(tmp_path).pooling(None) == Pooling("mean", True)
    assert folder(tmp_path).pooling("cls") == Pooling("cls", True)


@pytest.mark.parametrize(
    ("config", "how"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
)
def test_a_folder_of_sentence_transformers_says_how(tmp_path: Path, config: dict[str, Any], how: str) -> None:
    assert pooled(tmp_path, config) == Pooling(how, False)


def test_it_says_whether_they_are_normalised(tmp_path: Path) -> None:
    assert pooled(tmp_path, {"pooling_mode_mean_tokens": True}, "Normalize", wanted="last") == Pooling("last", True)


@pytest.mark.parametrize("config", [{}, {"pooling_mode_max_tokens": True}, {"pooling_mode": "max"}])
def test_a_pooling_there_is_not_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(LoadFailed, match="choose one as 'pooling'"):
        pooled(tmp_path, config)


def test_a_module_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="lists Dense"):
        pooled(tmp_path, {"pooling_mode_mean_tokens": True}, "Dense")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("pytorch_model.bin",), "pytorch_model.bin is a pickle"),
        (("README.md",), "no \\*.safetensors"),
        (("model.safetensors", "adapter_config.json"), "adapter"),
    ],
)
def test_what_is_not_loaded_is_named(tmp_path: Path, names: tuple[str, ...], said: str) -> None:
    with pytest.raises(LoadFailed, match=said) as caught:
        folder(tmp_path, {}, *names)
    assert caught.value.reason == "invalid_spec"


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_configuration_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(LoadFailed, match=r"config\.json is not what it should be"):
        Folder(tmp_path)
