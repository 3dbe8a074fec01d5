"""A coordinator of its own for each test, with small real models."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.coordinator import Coordinator, short_home
from tests.models import smollm2_path

EXAMPLES = Path(__file__).parents[2] / "examples" / "models"
Start = Callable[..., Coordinator]


@pytest.fixture
def models() -> dict[str, Any]:
    """A language model and a quick one; neither is unloaded for being idle."""
    return {
        "smollm2": {
            "runtime": "llama_cpp",
            "source": f"file:{smollm2_path()}",
            "options": {"context": 2048, "slots": 2},
            "ttl_s": 0,
        },
        "identity": {"runtime": "python", "source": f"file:{EXAMPLES / 'identity.py'}", "ttl_s": 0},
    }


@pytest.fixture
def home() -> Iterator[Path]:
    with short_home() as data_dir:
        yield data_dir


@pytest.fixture
def start(home: Path, models: dict[str, Any]) -> Iterator[Start]:
    """Start a coordinator with these models and more configuration."""
    made: list[Coordinator] = []

    def make(*arguments: str, **sections: Any) -> Coordinator:
        coordinator = Coordinator(home, config={"models": models, **sections}, arguments=arguments)
        made.append(coordinator)
        return coordinator.start()

    yield make
    for coordinator in made:
        coordinator.close()
        left = coordinator.worker_pids()
        assert not left, f"workers left behind: {left}"
