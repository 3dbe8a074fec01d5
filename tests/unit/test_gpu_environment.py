"""What `make test-gpu` runs in."""

import ctypes
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools import gpu_environment, lock


def test_what_the_machine_brings_along_is_not_fetched() -> None:
    names = {Requirement(line).name for line in gpu_environment.wanted()}
    assert {"msgspec", "pytest", "nvidia-ml-py"} <= names
    assert not names & {"torch", "transformers", "numpy"}


def test_its_tools_are_those_of_the_project() -> None:
    document = tomllib.loads(lock.PROJECT.read_text())
    known = {Requirement(line).name for line in document["dependency-groups"]["dev"]}
    assert set(gpu_environment.TOOLS) <= known
    assert {canonicalize_name(name) for name in gpu_environment.BROUGHT} <= lock.pins_of(lock.CONSTRAINTS).keys()


def test_without_a_gpu_it_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        assert gpu_environment.make(tmp_path / "environment", tmp_path) == 1
        assert "no NVIDIA GPU here" in capsys.readouterr().err
        assert not (tmp_path / "environment").exists()
    else:
        pytest.skip("there is an NVIDIA driver")
