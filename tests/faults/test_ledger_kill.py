"""kill -9 of the coordinator while memory changes hands: the books after it are what processes really hold."""

import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.coordinator import Coordinator, eventually
from tests.faults.leased import shown, stubborn
from tests.memory import MIB, ask_tensors, ballast, charges, events, held_bytes, runs
from tests.models import smollm2_path

SEED = int(os.environ.get("MOC_TEST_SEED", "20261123"))
ROUNDS = 2
GRACE_S = 6.0
LIMIT = 600 * MIB
STREAM = {"model": "smollm2", "prompt": "Once", "stream": True, "ignore_eos": True, "temperature": 0}
"""As long as `max_tokens` says, whatever the model would rather do."""


@pytest.fixture
def gate(home: Path) -> Path:
    """The model `gated` is loading until this file is there."""
    return home.parent / "gate"


@pytest.fixture
def coordinator(home: Path, gate: Path) -> Iterator[Coordinator]:
    """Room for `whole` alone, or for the language model with a smaller one."""
    path = ballast(home / "models")

    def holding(mib: int, memory_mib: int, **options: Any) -> dict[str, Any]:
        options = {"mib": mib, **options}
        source = f"file:{path}"
        return {"runtime": "python", "source": source, "options": options, "memory": f"{memory_mib}MiB", "ttl_s": 0}

    own = Path(shutil.copy(smollm2_path(), home.parent / "smollm2.gguf"))
    options = {"context": 2048, "slots": 2}
    models = {
        "smollm2": {"runtime": "llama_cpp", "source": f"file:{own}", "options": options, "ttl_s": 0},
        "big": {**holding(250, 400), "priority": 1},
        "gated": holding(150, 300, gate=str(gate)),
        "whole": {**holding(10, LIMIT // MIB), "priority": 1},
    }
    config = {
        "models": models,
        "devices": [{"id": "host", "kind": "host", "memory": f"{LIMIT // MIB}MiB"}],
        "resources": {"gpu_poll_interval_s": 0.5, "soft_limit_pct": 100, "eviction_threshold_pct": 100},
    }
    coordinator = Coordinator(home, config=config)
    try:
        yield coordinator.start()
    finally:
        coordinator.close()


@pytest.fixture
def dice() -> random.Random:
    print(f"MOC_TEST_SEED={SEED}")
    return random.Random(SEED)


def kill_within(coordinator: Coordinator, dice: random.Random, most_s: float) -> None:
    """SIGKILL at a random moment from now on, and start again: at once all who have memory are charged."""
    threading.Event().wait(dice.uniform(0, most_s))
    coordinator.kill()
    coordinator.start()
    before = charges(coordinator).keys()
    holders = {f"model:{worker['model']}" for worker in coordinator.get("/api/v1/workers")["workers"]}
    leases = coordinator.get("/api/v1/leases")["leases"]
    holders |= {f"lease:{lease['id']}" for lease in leases if lease["state"] != "pending"}
    assert holders <= before | charges(coordinator).keys()  # some may just begin, or end


@contextmanager
def beside(work: Callable[[], Any]) -> Iterator[threading.Thread]:
    """Do something that the death of the coordinator may cut short."""

    def attempt() -> None:
        with suppress(httpx.TransportError):
            work()

    thread = threading.Thread(target=attempt)
    thread.start()
    try:
        yield thread
    finally:
        thread.join()


def true_books(coordinator: Coordinator) -> bool:
    """Every charge has a living holder and covers what that holds; every worker there is has its charge."""
    workers = {f"model:{worker['model']}": worker["pid"] for worker in coordinator.get("/api/v1/workers")["workers"]}
    charged = charges(coordinator)
    for holder, size in charged.items():
        kind, _, name = holder.partition(":")
        pid = workers.get(holder) if kind == "model" else shown(coordinator, name)["pid"]
        assert pid, f"{holder} is charged {size} and has no process"
        assert runs(pid), f"{holder} is charged {size} and is dead"
        assert held_bytes([pid]) <= size, f"{holder} holds more than the {size} it is charged"
    assert sum(charged.values()) <= LIMIT
    assert charged.keys() >= workers.keys(), "a worker that is charged nothing"
    found = sorted(coordinator.worker_pids())
    assert found == sorted(workers.values()), "a worker that nobody knows"
    return True


def check(coordinator: Coordinator) -> None:
    """The books come true by themselves, and all the memory can be had again."""
    eventually(lambda: true_books(coordinator), what="every charge to be what a living process holds")
    answer = coordinator.post("/api/v1/models/whole/load")
    assert answer.status_code == 200, answer.text
    assert true_books(coordinator)
    assert charges(coordinator) == {"model:whole@1": LIMIT}
    for name in ("smollm2", "big", "gated", "whole"):  # what was loading when it was killed still wants to
        assert coordinator.post(f"/api/v1/models/{name}/unload").status_code == 200
    assert charges(coordinator) == {}


def has_happened(coordinator: Coordinator, kind: str, since: int) -> bool:
    return any(event["kind"] == kind for event in events(coordinator)[since:])


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_while_a_model_leaves_for_another(coordinator: Coordinator, dice: random.Random) -> None:
    for _ in range(ROUNDS):
        assert coordinator.post("/api/v1/models/smollm2/load").status_code == 200
        body = {**STREAM, "max_tokens": dice.randrange(1, 900)}
        since = len(events(coordinator))
        with (
            beside(partial(coordinator.post, "/v1/completions", body)),
            beside(partial(ask_tensors, coordinator, "big")),
        ):
            eventually(partial(has_happened, coordinator, "model.evicted", since), what="the more urgent one to get in")
            kill_within(coordinator, dice, 1.0)
        check(coordinator)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_while_a_model_is_loading(coordinator: Coordinator, gate: Path, dice: random.Random) -> None:
    for number in range(ROUNDS):
        gate.unlink(missing_ok=True)
        with beside(lambda: coordinator.post("/api/v1/models/gated/load")):
            kill_within(coordinator, dice, (1.5, 0.2)[number % 2])  # while it loads, or before it is even started
        with beside(lambda: coordinator.post("/api/v1/models/gated/load")):
            eventually(lambda: true_books(coordinator), what="nothing of the one that was loading to be left")
            gate.touch()
        assert coordinator.get("/api/v1/models/gated")["state"] == "ready"
        check(coordinator)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_while_a_lease_is_taken_back(coordinator: Coordinator, dice: random.Random) -> None:
    wish = {"memory": LIMIT, "priority": 1, "wait_s": 30}
    for _ in range(ROUNDS):
        with stubborn(coordinator, grace_s=GRACE_S) as victim:
            with beside(lambda: coordinator.post("/api/v1/leases", wish)):
                eventually(lambda: shown(coordinator, victim.lease_id)["state"] == "preempting", what="its notice")
                kill_within(coordinator, dice, GRACE_S / 3)  # it is up again before the grace is over
            victim.starter.wait(30)
            assert not runs(victim.pid)
            eventually(lambda: shown(coordinator, victim.lease_id)["state"] == "evicted", what="it to be over")
        for lease in coordinator.get("/api/v1/leases")["leases"]:  # the urgent one, if it was granted before the kill
            coordinator.cli("lease", "release", lease["id"])
        check(coordinator)
