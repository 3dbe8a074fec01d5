"""`aliases:` in `moc.yaml`: what it may say, and where it is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from moc.config import load
from moc.kernel.errors import InvalidRequest
from moc.models.alias import Alias

MODELS = {"m": {"runtime": "python", "source": "file:m.py"}}


def aliases(data_dir: Path, **said: Any) -> dict[str, Alias]:
    (data_dir / "moc.yaml").write_text(yaml.safe_dump({"aliases": said, "models": MODELS}, sort_keys=False))
    return load(data_dir=data_dir, file=None, ports={}).aliases


def test_an_alias_has_defaults(tmp_path: Path) -> None:
    assert aliases(tmp_path, a={"versions": {"m@1": 3}}) == {"a": Alias(versions={"m@1": 3})}
    full = {"versions": {"m": 1}, "fallback": ["m"], "policy": "fastest", "sticky": "key", "shadow": {"m": 5}}
    assert aliases(tmp_path, a={**full, "hedge": True})["a"] == Alias(
        versions={"m": 1}, fallback=("m",), policy="fastest", sticky="key", shadow={"m": 5}, hedge=True
    )


@pytest.mark.parametrize(
    ("name", "said", "line", "message"),
    [
        ("a", {"versions": {"m": 1}, "fallbak": ["m"]}, 5, "unknown key 'fallbak'; did you mean 'fallback'?"),
        ("a", {"versions": {"m": "much"}}, 2, "Expected `float`"),
        ("a", {"versions": {"m": 0}}, 2, "every weight is 0"),
        ("a", {"versions": {"m": 1}, "policy": "fast"}, 2, "policy is 'fast'; it is one of"),
        ("a", {}, 2, "versions"),
        ("a", 3, 2, "dictionary"),
        ("a b", {"versions": {"m": 1}}, 2, "not a name"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, name: str, said: Any, line: int, message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        aliases(tmp_path, **{name: said})
    assert refused.value.message.startswith(f"{tmp_path / 'moc.yaml'}:{line}: aliases.{name}")
    assert message in refused.value.message
