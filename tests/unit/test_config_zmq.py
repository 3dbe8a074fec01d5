"""Where ZeroMQ asks for CURVE, and what would expose it."""

from pathlib import Path

import pytest

from moc.config import Config, load
from moc.kernel.errors import InvalidRequest


def configured(folder: Path, *lines: str) -> Config:
    (folder / "moc.yaml").write_text("\n".join(["server:", *(f"  {line}" for line in lines)]))
    return load(data_dir=folder, file=None, ports={})


@pytest.mark.parametrize(
    ("lines", "curve"),
    [
        (["host: 127.0.0.1"], False),
        (["host: localhost", "zmq_curve: on"], True),
        (["host: 0.0.0.0"], True),
        (["host: 0.0.0.0", "zmq_curve: off"], False),
        (["host: 0.0.0.0", "zmq_curve: auto", "events_port: 7213"], True),
        (["events_port: 7213"], False),
    ],
)
def test_curve_is_asked_for_beyond_loopback(tmp_path: Path, lines: list[str], curve: bool) -> None:
    assert configured(tmp_path, *lines).curve_folder == (tmp_path / "zmq" if curve else None)


def test_events_are_not_published_to_just_anybody(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="needs CURVE"):
        configured(tmp_path, "host: 0.0.0.0", "zmq_curve: off", "events_port: 0")


def test_curve_is_one_of_three_words(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"moc\.yaml:2: server\.zmq_curve"):
        configured(tmp_path, "zmq_curve: perhaps")
