"""Where models go, on declared devices: over several at once, never beside others of their group."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.conftest import EXAMPLES, model, served
from tests.coordinator import Coordinator, short_home

GIB = 2**30


@pytest.fixture
def coordinator() -> Iterator[Coordinator]:
    """Three devices of 10 GiB that nobody uses, and models that say what they need of them."""
    identity = EXAMPLES / "identity.py"
    config = {
        "models": {
            "wide": model("python", identity, memory="12GiB", shards=2),
            "wider": model("python", identity, memory="12GiB", shards=4),
            "first": model("python", identity, memory="1GiB", group="only-one", min_residency_s=0),
            "second": model("python", identity, memory="1GiB", group="only-one", min_residency_s="1h"),
        },
        "devices": [{"id": f"declared:{n}", "kind": "declared", "memory": "10GiB"} for n in range(3)],
        "resources": {"soft_limit_pct": 100},
    }
    with short_home() as data_dir:
        yield from served(Coordinator(data_dir, config=config))


def charged(coordinator: Coordinator) -> dict[tuple[str, str], int]:
    devices = coordinator.get("/api/v1/devices")["devices"]
    return {(each["id"], charge["holder"]): charge["bytes"] // GIB for each in devices for charge in each["charges"]}


def load(coordinator: Coordinator, name: str) -> dict[str, Any]:
    answer = coordinator.post(f"/api/v1/models/{name}/load")
    assert answer.status_code == 200, answer.text
    loaded: dict[str, Any] = answer.json()
    return loaded


def test_a_model_is_spread_over_its_shards_and_still_is_after_a_crash(coordinator: Coordinator) -> None:
    told = json.loads(coordinator.cli("explain", "load", "wide", "--json").stdout)
    assert (told["fits"], told["needed_bytes"]) == (True, 6 * GIB)
    assert [place["device"] for place in told["placements"]] == ["declared:0", "declared:1"]
    loaded = load(coordinator, "wide")
    assert loaded["worker"]["devices"] == ["declared:0", "declared:1"]
    whole = {("declared:0", "model:wide@1"): 6, ("declared:1", "model:wide@1"): 6}
    assert charged(coordinator) == whole
    assert "6GiB on each of 2 devices, declared" in coordinator.cli("models", "show", "wide").stdout
    coordinator.kill()
    coordinator.start()
    assert coordinator.get("/api/v1/models/wide")["adopted"]
    assert charged(coordinator) == whole
    coordinator.post("/api/v1/models/wide/unload").raise_for_status()
    assert charged(coordinator) == {}


def test_more_shards_than_devices_are_refused_with_those_there_are(coordinator: Coordinator) -> None:
    done = coordinator.cli("explain", "load", "wider")
    assert done.returncode == 1
    assert "model:wider@1 needs 4 device(s)" in done.stdout
    assert "declared:2 (declared, online)" in done.stdout
    answer = coordinator.post("/api/v1/models/wider/load")
    assert answer.status_code == 507
    assert "model:wider@1 needs 4 device(s)" in answer.json()["error"]["message"]


def test_of_a_group_one_is_loaded_at_a_time_and_the_refusal_says_who_stays(coordinator: Coordinator) -> None:
    load(coordinator, "first")
    load(coordinator, "second")
    assert set(charged(coordinator)) == {("declared:0", "model:second@1")}
    assert coordinator.get("/api/v1/models/first")["reason"] == "Evicted"
    done = coordinator.cli("explain", "load", "first")
    assert done.returncode == 1
    assert "is never loaded beside model:second@1 of its group 'only-one'" in done.stdout
    assert "it will fit in" in done.stdout
