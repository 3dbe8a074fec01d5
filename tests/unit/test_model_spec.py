"""What a person may write of a model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moc.config import load
from moc.kernel.errors import InvalidRequest
from moc.models.model import Artifact, ModelSpec, digest_of
from moc.service.models import spec_from

LEAST: dict[str, Any] = {"runtime": "python", "source": "file:a.py"}


def spec(**fields: Any) -> ModelSpec:
    return spec_from({**LEAST, **fields}, where="here")


def test_sizes_and_durations_are_understood() -> None:
    written = spec(memory="2GiB", ttl_s="10m", min_residency_s="90s", shards=2, group="chat")
    assert written == ModelSpec(
        **LEAST, memory_bytes=2 * 2**30, ttl_s=600.0, min_residency_s=90.0, shards=2, group="chat"
    )


def test_where_a_model_goes_is_nobodys_business_but_its_own() -> None:
    assert (spec().shards, spec().group, spec().min_residency_s) == (1, "", None)
    assert (spec(min_residency_s=0).min_residency_s, spec(min_residency_s=None).min_residency_s) == (0, None)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"shards": 0}, "shards is 0; it must be from 1 to 64"),
        ({"shards": 65}, "shards is 65"),
        ({"shards": 1.5}, "shards"),
        ({"shards": 2, "runtime": "onnx"}, "onnx runs on one device"),
        ({"runtime": "remote", "batching": {"max_batch": 8}}, "batching is for models that run here"),
        ({"group": "a b"}, "group is 'a b'"),
        ({"group": None}, "group"),
        ({"min_residency_s": -1}, "min_residency_s is -1"),
        ({"min_residency_s": "soon"}, "not a duration"),
        ({"shard": 2}, "unknown key 'shard'; did you mean 'shards'"),
    ],
    ids=str,
)
def test_what_cannot_be_right_is_refused(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        spec(**fields)


def test_only_a_command_of_declared_size_does_without_a_source() -> None:
    command = {"runtime": "command", "options": {"command": ["vllm"]}}
    assert spec_from({**command, "memory": "8GiB"}, where="here").source == ""
    for fields in (command, {"runtime": "python", "memory": "8GiB"}):
        with pytest.raises(InvalidRequest, match="source is missing; only a model that is a command"):
            spec_from(fields, where="here")


def test_they_stand_in_the_configuration_too(tmp_path: Path) -> None:
    text = "models:\n  a: {runtime: python, source: 'file:a.py', shards: 2, group: chat, min_residency_s: 1m}\n"
    (tmp_path / "moc.yaml").write_text(text)
    assert load(data_dir=tmp_path, file=None, ports={}).models["a"] == spec(
        shards=2, group="chat", min_residency_s=60.0
    )


def test_where_it_goes_does_not_change_what_it_answers() -> None:
    artifact = Artifact(path="a.py", sha256="ab", size_bytes=1, modified_at=0.0)
    placed = replace(spec(), shards=3, group="chat", min_residency_s=9.0)
    assert digest_of(placed, artifact) == digest_of(spec(), artifact)
    assert digest_of(spec(options={"a": 1}), artifact) != digest_of(spec(), artifact)


def test_of_an_adapter_with_a_hash_the_content_counts_and_not_the_place() -> None:
    artifact = Artifact(path="a.gguf", sha256="ab", size_bytes=1, modified_at=0.0)

    def digest(**adapter: Any) -> str:
        return digest_of(spec(options={"lora": [{"scale": 1.0, **adapter}]}), artifact)

    assert digest(path="/one", sha256="cd") == digest(path="/two", sha256="cd")
    assert digest(path="/one", sha256="cd") != digest(path="/one", sha256="ef")
    assert digest(path="/one", sha256="cd") != digest(path="/one", sha256="cd", scale=0.5)
    assert digest(path="/one") != digest(path="/two")
