"""Models on less memory than they need together: what is decided, and what is told of it."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.acceptance.conftest import EXAMPLES, model
from tests.coordinator import Coordinator, eventually, short_home
from tests.memory import MIB, TENSOR, ballast, charges

pytestmark = pytest.mark.alone

BUDGET = 520 * MIB
LIMIT_PCT = 90
BROKEN = """
class Model:
    def load(self):
        raise ValueError("its weights are torn")

    def infer(self, inputs):
        return inputs
"""


@pytest.fixture
def home() -> Iterator[Path]:
    with short_home() as data_dir:
        ballast(data_dir / "models")
        (data_dir / "models" / "broken.py").write_text(BROKEN)
        yield data_dir


@pytest.fixture
def crowded(home: Path) -> Iterator[Coordinator]:
    """Models of which two do not fit together, and one that breaks."""
    path = home / "models" / "ballast.py"
    models = {
        "big": model("python", path, options={"mib": 250}, memory="300MiB"),
        "bigger": model("python", path, options={"mib": 260}, memory="310MiB"),
        "small": model("python", EXAMPLES / "identity.py"),
        "broken": model("python", home / "models" / "broken.py", memory="400MiB"),
    }
    config = {
        "models": models,
        "devices": [{"id": "host", "kind": "host", "memory": f"{BUDGET // MIB}MiB"}],
        "resources": {"gpu_poll_interval_s": 1, "soft_limit_pct": LIMIT_PCT},
        "security": {"trusted_python_roots": ["{data_dir}/models"]},
    }
    coordinator = Coordinator(home, config=config)
    try:
        yield coordinator.start()
    finally:
        coordinator.close()


def ask(coordinator: Coordinator, name: str) -> httpx.Response:
    return coordinator.post(f"/v2/models/{name}/infer", {"inputs": [TENSOR]})


def test_what_explain_says_is_what_happens(crowded: Coordinator) -> None:
    ask(crowded, "big").raise_for_status()
    crowded.post("/api/v1/models/bigger/pull").raise_for_status()
    told = eventually(lambda: (e := crowded.get("/api/v1/models/bigger/explain"))["fits"] and e, timeout_s=30)
    assert [victim["reference"] for victim in told["victims"]] == ["big@1"]
    assert "big@1 would be unloaded" in crowded.cli("explain", "load", "bigger").stdout
    crowded.post("/api/v1/models/bigger/load").raise_for_status()
    assert crowded.get("/api/v1/models/big")["reason"] == "Evicted"
    assert list(charges(crowded)) == ["model:bigger@1"]


def test_a_model_that_does_not_fit_at_all_is_refused_with_the_numbers(crowded: Coordinator) -> None:
    body = {"name": "huge", "runtime": "python", "source": f"file:{crowded.data_dir / 'models' / 'ballast.py'}"}
    crowded.post("/api/v1/models", {**body, "memory": "2GiB", "options": {"mib": 1}}).raise_for_status()
    answer = crowded.post("/api/v1/models/huge/load")
    assert answer.status_code == 507
    assert answer.json()["error"]["code"] == "no_capacity"
    assert "2GiB" in answer.json()["error"]["message"]
    done = crowded.cli("explain", "load", "huge")
    assert done.returncode == 1


def test_who_made_room_for_a_model_that_cannot_load_comes_back(crowded: Coordinator) -> None:
    ask(crowded, "big").raise_for_status()
    answer = crowded.post("/api/v1/models/broken/load")
    assert answer.status_code == 503
    assert "its weights are torn" in answer.json()["error"]["message"]
    eventually(lambda: crowded.get("/api/v1/models/big")["state"] == "ready", what="the victim to be back")
    assert crowded.get("/api/v1/models/big")["reason"] == "Restored"


def test_after_a_crash_the_books_say_what_is_really_held(crowded: Coordinator) -> None:
    ask(crowded, "big").raise_for_status()
    ask(crowded, "small").raise_for_status()
    before = charges(crowded)
    crowded.kill()
    crowded.start()
    assert sorted(before) == ["model:big@1", "model:small@1"]
    assert charges(crowded) == before
