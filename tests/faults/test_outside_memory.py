"""Processes that take memory nobody gave them: seen by the next look, and models leave before all is taken."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from moc.hardware.host import HostMemory
from tests.coordinator import MOC, Coordinator, eventually
from tests.memory import MIB, ask_tensors, ballast, charges, events, host_device, watched

pytestmark = pytest.mark.alone

POLL_S = 1.0
HUNGRY = """
import sys
eaten = []
print(0, flush=True)
for line in sys.stdin:
    eaten.append(bytearray(b"x") * (int(line) * 2**20))
    print(line, end="", flush=True)
"""
NOISE = 1024 * MIB
"""How much the rest of the machine may come to use, or cease to, while this looks."""

STEP_MIB = 512


class Hungry:
    """A process that takes what it is told to, and keeps it."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.bytes = 0
        self.eat(0)

    def eat(self, mib: int) -> None:
        """Returns once it has that much more."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if mib:
            self._process.stdin.write(f"{mib}\n")
            self._process.stdin.flush()
        assert self._process.stdout.readline() == f"{mib}\n"
        self.bytes += mib * MIB

    def end(self) -> None:
        """It gives all back: it ends when nothing more is to be read."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


Start = Callable[..., Hungry]


@pytest.fixture
def hungry() -> Iterator[Start]:
    """Starts a hungry process, behind `command` if one is given."""
    with ExitStack() as started:

        def start(command: Sequence[str] = (), environment: dict[str, str] | None = None) -> Hungry:
            process = subprocess.Popen(
                [*command, sys.executable, "-c", HUNGRY],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            return Hungry(started.enter_context(process))

        yield start


@pytest.fixture
def begin(home: Path) -> Iterator[Callable[..., Coordinator]]:
    """Starts a coordinator with two models that hold 200 MiB each, and this to say of devices."""
    made: list[Coordinator] = []
    path = ballast(home / "models")
    spec = {"runtime": "python", "source": f"file:{path}", "options": {"mib": 200}, "memory": "260MiB", "ttl_s": 0}

    def start(**sections: Any) -> Coordinator:
        made.append(Coordinator(home, config={"models": {"one": spec, "two": spec}, **sections}))
        return made[-1].start()

    yield start
    for coordinator in made:
        coordinator.close()


def used_bytes() -> int:
    """What is in use of main memory, by anybody."""
    (reading,) = HostMemory(lambda: ()).read()
    return reading.used_bytes


def evictions(coordinator: Coordinator) -> list[dict[str, Any]]:
    return [event for event in events(coordinator) if event["kind"] == "model.evicted"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_nobody_declared_is_seen_within_two_looks_and_models_leave_before_all_is_taken(
    begin: Callable[..., Coordinator], hungry: Start
) -> None:
    (reading,) = HostMemory(lambda: ()).read()
    capacity = reading.device.capacity_bytes
    threshold = reading.used_bytes + NOISE + 600 * MIB
    limit = threshold + STEP_MIB * MIB + NOISE
    if limit > capacity - NOISE:
        pytest.skip("too little of this machine's memory is free to fill a part of it")
    pct = 100 * threshold / capacity
    coordinator = begin(
        resources={"gpu_poll_interval_s": POLL_S, "soft_limit_pct": pct, "eviction_threshold_pct": pct},
        devices=[{"id": "host", "kind": "host"}],
    )
    assert [ask_tensors(coordinator, name) for name in ("one", "two")] == [200, 200]
    assert set(charges(coordinator)) == {"model:one@1", "model:two@1"}
    process = hungry()
    before = host_device(coordinator)["unmanaged_bytes"]
    with watched(used_bytes) as gauge:
        while len(evictions(coordinator)) < 2:
            eat_and_be_seen(coordinator, process)
            eventually(lambda: is_relieved(coordinator), what="models to leave")
        assert process.bytes <= host_device(coordinator)["unmanaged_bytes"] - before + NOISE
    assert gauge.most <= limit, gauge
    assert {event["data"]["successor"] for event in evictions(coordinator)} == {"outside:host"}
    answer = coordinator.post("/api/v1/models/one/load")
    assert answer.status_code == 507
    assert "unmanaged" in answer.json()["error"]["message"]
    process.end()
    eventually(lambda: ask_tensors(coordinator, "one") == 200, timeout_s=60, what="a model to be loaded again")


def eat_and_be_seen(coordinator: Coordinator, process: Hungry) -> None:
    """Another step; two looks later it is known, and as long again is for a slow machine."""
    known = host_device(coordinator)["unmanaged_bytes"]
    process.eat(STEP_MIB)
    began = monotonic()
    eventually(lambda: host_device(coordinator)["unmanaged_bytes"] > known + STEP_MIB * MIB // 2)
    assert monotonic() - began < 4 * POLL_S


def is_relieved(coordinator: Coordinator) -> bool:
    """Whether no more is in use than should be, or nobody is left who could leave."""
    device = host_device(coordinator)
    used: int = device["unmanaged_bytes"] + device["charged_bytes"]
    return used <= device["limit_bytes"] or not device["charges"]


@pytest.mark.timeout(180)
def test_a_leased_process_that_takes_more_than_it_has_is_charged_and_models_leave(
    begin: Callable[..., Coordinator], hungry: Start
) -> None:
    coordinator = begin(
        resources={"gpu_poll_interval_s": 0.5, "soft_limit_pct": 90, "eviction_threshold_pct": 90},
        devices=[{"id": "host", "kind": "host", "memory": "640MiB"}],
    )
    assert ask_tensors(coordinator, "one") == 200
    process = hungry([*MOC, "lease", "run", "--memory", "50MiB", "--"], coordinator.environment())
    assert set(charges(coordinator)) == {"model:one@1", *leases(coordinator)}
    process.eat(400)
    eventually(lambda: set(charges(coordinator)) == leases(coordinator), what="the model to leave")
    eventually(lambda: sum(charges(coordinator).values()) >= 400 * MIB, what="all of it to be charged")
    (event,) = evictions(coordinator)
    assert event["data"]["because"], event
    process.end()
    eventually(lambda: ask_tensors(coordinator, "one") == 200, timeout_s=60, what="it to be loaded again")


def leases(coordinator: Coordinator) -> set[str]:
    return {f"lease:{lease['id']}" for lease in coordinator.get("/api/v1/leases")["leases"]}
