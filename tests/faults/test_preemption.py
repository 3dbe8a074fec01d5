"""Leased processes that do not give up: nobody gets their memory before they are dead."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.coordinator import Coordinator, eventually
from tests.faults.leased import HELD, LEASED, Stubborn, shown, stubborn
from tests.memory import MIB, ballast, charges, events, held_bytes, runs

GRACE_S = 1.0
URGENT = {"memory": LEASED, "priority": 1, "wait_s": 60}


@pytest.fixture
def coordinator(home: Path) -> Iterator[Coordinator]:
    """Room for one stubborn process, or for one model."""
    source = f"file:{ballast(home / 'models')}"
    config = {
        "models": {"big": {"runtime": "python", "source": source, "options": {"mib": 350}, "memory": "450MiB"}},
        "devices": [{"id": "host", "kind": "host", "memory": "600MiB"}],
        "resources": {"gpu_poll_interval_s": 0.5, "soft_limit_pct": 100, "eviction_threshold_pct": 100},
    }
    coordinator = Coordinator(home, config=config)
    try:
        yield coordinator.start()
    finally:
        coordinator.close()


@pytest.fixture
def victim(coordinator: Coordinator) -> Iterator[Stubborn]:
    with stubborn(coordinator, grace_s=GRACE_S) as one:
        yield one


def place(told: list[dict[str, Any]], kind: str, subject: str) -> int:
    """Where in the log something happened for the first time."""
    return next(i for i, event in enumerate(told) if (event["kind"], event["subject"]) == (kind, subject))


def time_of(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["at"]).timestamp()


def test_one_that_ignores_its_notice_is_killed_before_its_memory_is_given_on(
    coordinator: Coordinator, victim: Stubborn
) -> None:
    assert held_bytes([victim.pid]) >= HELD * 0.99
    got = coordinator.post("/api/v1/leases", URGENT).json()
    assert not runs(victim.pid), "its memory was given on while it lived"
    told = events(coordinator)
    notice, end = place(told, "lease.preempting", victim.lease_id), place(told, "lease.evicted", victim.lease_id)
    assert notice < end < place(told, "lease.admitted", got["id"])
    assert time_of(told[end]) - time_of(told[notice]) > GRACE_S * 0.9
    assert told[notice]["data"]["successor"] == got["id"]
    assert charges(coordinator) == {f"lease:{got['id']}": LEASED}


def test_while_it_lives_nobody_gets_its_memory_even_when_nobody_is_there_to_kill_it(
    coordinator: Coordinator, victim: Stubborn
) -> None:
    with ThreadPoolExecutor(2) as pool:
        load = pool.submit(coordinator.post, "/api/v1/models/big/load")
        lease = pool.submit(coordinator.post, "/api/v1/leases", URGENT)
        try:
            eventually(lambda: shown(coordinator, victim.lease_id)["state"] == "preempting", what="its notice")
            victim.starter.kill()
            eventually(lambda: shown(coordinator, victim.lease_id)["state"] == "evicted", what="its grace to be over")
            assert runs(victim.pid)
            assert charges(coordinator) == {f"quarantine:{victim.lease_id}": LEASED}
            assert not lease.done()
            assert not load.done()
        finally:
            psutil.Process(victim.pid).kill()
        got = lease.result(60).json()
        assert not load.done(), "what was made free for the lease went to the model"
        coordinator.cli("lease", "release", got["id"])
        assert load.result(60).status_code == 200
    told = events(coordinator)
    freed, admitted = place(told, "lease.freed", victim.lease_id), place(told, "lease.admitted", got["id"])
    worker = coordinator.get("/api/v1/models/big")["worker"]["id"]
    assert freed < admitted < place(told, "lease.released", got["id"]) < place(told, "worker.starting", worker)
    assert list(charges(coordinator)) == ["model:big@1"]
    assert charges(coordinator)["model:big@1"] == 450 * MIB
