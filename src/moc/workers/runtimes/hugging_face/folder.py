"""What a model's folder says of itself, and what keeps it from being loaded."""

from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from moc.kernel.errors import LoadFailed

POOLINGS = ("mean", "cls", "last")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
_JSON_BYTES_MAX = 32 * 2**20


class Pooling(NamedTuple):
    """How an embedding is made of the tokens' vectors: `how` of POOLINGS, `normalised` to length 1 or not."""

    how: str
    normalised: bool


class Folder:
    """A folder with `config.json` and weights in safetensors; LoadFailed when it is not one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            raise LoadFailed(f"there is no file {path.name}; pull the model again", reason="load_failed")
        if not (path / "config.json").is_file():
            raise LoadFailed(
                f"{path.name} is not a folder with a config.json; name the model's folder in the source",
                reason="load_failed",
            )
        self._config = _mapping(path / "config.json")
        names = [file.name for file in path.iterdir()]
        if "adapter_config.json" in names:
            raise LoadFailed("the folder is an adapter and no model; merge it into its model", reason="invalid_spec")
        if not any(name.endswith(".safetensors") for name in names):
            pickles = sorted(name for name in names if name.endswith(PICKLES))
            raise LoadFailed(
                f"{pickles[0]} is a pickle, which can run anything, and is not loaded; save it as safetensors"
                if pickles
                else "the folder has no *.safetensors; name the folder that holds the weights",
                reason="invalid_spec",
            )

    @property
    def task(self) -> str:
        """What the architecture named in config.json is for."""
        architectures = self._config.get("architectures")
        named = [str(name) for name in architectures] if isinstance(architectures, list) else []
        if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in named):
            return "chat"
        return "classification" if any(name.endswith("ForSequenceClassification") for name in named) else "embeddings"

    def pooling(self, wanted: str | None) -> Pooling:
        """As `wanted`, or as a folder of Sentence Transformers says; else the mean, normalised."""
        listed = self.path / "modules.json"
        if not listed.is_file():
            return Pooling(wanted or "mean", True)
        modules = {_kind(module): str(module.get("path", "")) for module in _mappings(listed)}
        unknown = sorted(modules.keys() - {"Transformer", "Pooling", "Normalize"})
        if unknown:
            raise LoadFailed(
                f"modules.json lists {', '.join(unknown)}, without which the embeddings would be others",
                reason="invalid_spec",
            )
        return Pooling(wanted or self._mode(modules.get("Pooling")), "Normalize" in modules)

    def _mode(self, where: str | None) -> str:
        if where is None:
            return "mean"
        config = _mapping(self.path / Path(where).name / "config.json")
        modes = [name for name, on in config.items() if name.startswith("pooling_mode_") and on is True]
        named = [MODES.get(name, name) for name in modes] or [str(config.get("pooling_mode"))]
        if len(named) != 1 or named[0] not in POOLINGS:
            raise LoadFailed(
                f"the folder's pooling is {', '.join(named)}; there are {', '.join(POOLINGS)}: choose one as 'pooling'",
                reason="invalid_spec",
            )
        return named[0]


def _kind(module: dict[str, Any]) -> str:
    return str(module.get("type", "")).rpartition(".")[2]


def _mapping(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = _read(path, dict[str, Any])
    return found


def _mappings(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = _read(path, list[dict[str, Any]])
    return found


def _read(path: Path, kind: Any) -> Any:
    try:
        if path.stat().st_size > _JSON_BYTES_MAX:
            raise LoadFailed(f"{path.name} is too large to be true", reason="load_failed")
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise LoadFailed(f"{path.name} cannot be read: {error.strerror}", reason="load_failed") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LoadFailed(f"{path.name} is not what it should be: {error}", reason="load_failed") from None
