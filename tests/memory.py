"""What processes really hold and what the books say of it, for tests on a small budget of main memory."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.coordinator import Coordinator

MIB = 2**20
TENSOR = {"name": "INPUT0", "shape": [1, 8], "datatype": "FP32", "data": [0.5] * 8}
PAUSE_S = 0.1
BALLAST = """
import os
import time

import numpy as np

class Model:
    inputs = [("INPUT0", "FP32", [-1, 8])]
    outputs = [("OUTPUT0", "FP32", [-1, 8])]

    def load(self, mib, gate=""):
        self.ballast = np.ones((mib, 2**20), np.uint8)
        while gate and not os.path.exists(gate):
            time.sleep(0.02)

    def infer(self, inputs):
        return {"OUTPUT0": inputs["INPUT0"]}
"""


def ballast(folder: Path) -> Path:
    """A model that holds `mib`, and is loaded once the file `gate` is there if one is named."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "ballast.py"
    path.write_text(BALLAST)
    return path


def ask_tensors(coordinator: Coordinator, name: str) -> int:
    """The status of a request with tensors."""
    return coordinator.post(f"/v2/models/{name}/infer", {"inputs": [TENSOR]}).status_code


def held_bytes(pids: Iterable[int]) -> int:
    """What processes hold right now, shared pages divided among those that share them."""
    total = 0
    for pid in pids:
        try:
            total += psutil.Process(pid).memory_full_info().pss
        except psutil.Error:
            continue
    return total


def runs(pid: int) -> bool:
    """Whether a process runs: one that is dead and not yet buried does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Gauge:
    """The most that was ever read."""

    def __init__(self) -> None:
        self.most = 0

    def __str__(self) -> str:
        return f"{self.most / MIB:.0f} MiB"


@contextmanager
def watched(read: Callable[[], int]) -> Iterator[Gauge]:
    """Read again and again beside the block; the gauge is right behind it."""
    gauge, over = Gauge(), threading.Event()

    def watch() -> None:
        while not over.wait(PAUSE_S):
            gauge.most = max(gauge.most, read())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield gauge
    finally:
        over.set()
        thread.join()


def host_device(coordinator: Coordinator) -> dict[str, Any]:
    """Main memory as the coordinator sees it."""
    found: dict[str, Any] = coordinator.get("/api/v1/devices/host")
    return found


def charges(coordinator: Coordinator) -> dict[str, int]:
    """What is charged on main memory, by holder."""
    return {charge["holder"]: charge["bytes"] for charge in host_device(coordinator)["charges"]}


def events(coordinator: Coordinator) -> list[dict[str, Any]]:
    """All that ever happened, in order."""
    found: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None:
        page = coordinator.get(f"/api/v1/events?follow=false&after={after}&limit=1000")
        found += page["events"]
        after = page["next"]
    return found


def most_charged_to_models(told: Iterable[dict[str, Any]]) -> int:
    """The most bytes that models were ever charged together, as events tell it.

    A model's bytes are its own from `device.charged` on until its worker is dead.
    """
    held: dict[str, int] = {}
    most = 0
    for event in told:
        data = event["data"]
        if event["kind"] == "device.charged":
            held[data["holder"]] = data["bytes"]
        elif event["kind"] in ("worker.gone", "worker.lost"):
            held.pop(f"model:{data['model']}", None)
        most = max(most, sum(held.values()))
    return most
