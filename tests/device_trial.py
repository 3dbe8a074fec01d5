"""What has to be true on every kind of device: `tests/acceptance` tries it on main memory, `tests/gpu` on a card."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.coordinator import MOC, Coordinator, eventually, short_home

MIB = 2**20
GIB = 2**30
CHAT = {"messages": [{"role": "user", "content": "Say something."}], "max_tokens": 16}
TAKE_MAIN_MEMORY = """
import os, sys
taken = bytearray(b"x") * int(sys.argv[1])
print(os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
sys.stdin.read()
"""
TAKE_A_CARD_S_MEMORY = """
import os, sys, torch
taken = torch.ones(int(sys.argv[1]), dtype=torch.uint8, device="cuda")
torch.cuda.synchronize()
print(os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
sys.stdin.read()
"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"


@dataclass(frozen=True, kw_only=True)
class Ground:
    """A device to try things on, what is put on it, and how others than the coordinator see it.

    One model and a program that takes `taken_bytes` fit into `budget_bytes` together, two models do not;
    `eaten_bytes` is much more than what is in use changes by itself. `take` is Python that takes as many bytes of the
    device as it is told, prints its CUDA_VISIBLE_DEVICES, and waits for the end of its input.
    `held` tells what processes hold; `used` all that is in use, to within `drift_bytes` of what others do meanwhile.
    `share_off` is how far a charge may be from what is held: pages that several processes share are divided
    among those there are.
    """

    device: str
    kind: str
    llama: Path
    budget_bytes: int
    taken_bytes: int
    eaten_bytes: int
    take: str
    visible: str
    total_bytes: int
    held: Callable[[Collection[int]], int]
    used: Callable[[], int]
    drift_bytes: int
    share_off: float


@dataclass
class Figures:
    """What was measured on the way, for whoever wants to write it down; in the folder `OUT`, if that is set."""

    title: str
    rows: dict[str, str] = field(default_factory=dict)

    def note(self, name: str, value: float, unit: str) -> None:
        """Keep one figure, and print it."""
        self.rows[name] = f"{value:.2f} {unit}".strip()
        print(f"{name}: {self.rows[name]}")

    def write(self) -> None:
        """As JSON and as a table."""
        if not (folder := os.environ.get("OUT")):
            return
        table = "".join(f"| {name} | {value} |\n" for name, value in self.rows.items())
        Path(folder, "figures.md").write_text(f"{self.title}\n\n| | |\n|---|---|\n{table}")
        Path(folder, "figures.json").write_text(json.dumps({"title": self.title, **self.rows}, indent=2) + "\n")


class Site(Coordinator):
    """A coordinator, and what the trial asks of it again and again."""

    ground: Ground

    def device(self) -> dict[str, Any]:
        """The device that is tried."""
        found: dict[str, Any] = self.get(f"/api/v1/devices/{self.ground.device}")
        return found

    def charges(self) -> dict[str, int]:
        """Bytes on that device by holder."""
        return {charge["holder"]: charge["bytes"] for charge in self.device()["charges"]}

    def model(self, name: str) -> dict[str, Any]:
        """A model as it is now."""
        found: dict[str, Any] = self.get(f"/api/v1/models/{name}")
        return found

    def explain(self, name: str) -> dict[str, Any]:
        """What loading it would do."""
        found: dict[str, Any] = self.get(f"/api/v1/models/{name}/explain")
        return found

    def room_for(self, name: str, size: int) -> dict[str, Any]:
        """Add a model that is said to need so many bytes of the device; what loading it would do."""
        path = self.data_dir / "models" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text("class Model: ...\n")
        entry = {"runtime": "python", "source": f"file:{path}", "devices": self.ground.kind, "memory": size}
        answer = self.post("/api/v1/models", {"name": name, **entry})
        assert answer.status_code < 300, answer.text
        return self.explain(name)

    def load(self, name: str) -> float:
        """Load a model; how long that took, in seconds."""
        began = time.monotonic()
        answer = self.post(f"/api/v1/models/{name}/load", timeout_s=300)
        assert answer.status_code == 200, answer.text
        return time.monotonic() - began

    def unload(self, name: str) -> float:
        """Unload a model; how long that took, in seconds."""
        began = time.monotonic()
        answer = self.post(f"/api/v1/models/{name}/unload")
        assert answer.status_code == 200, answer.text
        return time.monotonic() - began

    def chat(self, name: str) -> str:
        """Its answer to a question, which is never an error."""
        answer = self.post("/v1/chat/completions", {**CHAT, "model": name}, timeout_s=300)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"])

    def held(self) -> int:
        """What all workers hold of the device, as others than the coordinator see it."""
        return self.ground.held(trees(self.worker_pids()))


def runs(pid: int) -> bool:
    """Whether a process is there and not dead."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def trees(roots: Collection[int]) -> set[int]:
    """These processes and all below them."""
    found = set(roots)
    for root in roots:
        found.update(child.pid for child in psutil.Process(root).children(recursive=True))
    return found


def running(ground: Ground, *, limited: bool) -> Iterator[Site]:
    """A coordinator with two models that are put on the device; `limited` gives it `budget_bytes` of it alone."""
    entry = {"runtime": "transformers", "source": f"file:{ground.llama}", "devices": ground.kind}
    options = {"context": 512, "slots": 1, "threads": 1}
    models = {name: {**entry, "options": options} for name in ("first", "second")}
    resources = {"gpu_poll_interval_s": 0.5, "soft_limit_pct": 100, "eviction_threshold_pct": 100}
    security = {"trusted_python_roots": ["{data_dir}/models"]}
    config: dict[str, Any] = {"models": models, "resources": resources, "security": security}
    if limited:
        config["devices"] = [{"id": ground.device, "kind": ground.kind, "memory": ground.budget_bytes}]
    with short_home() as data_dir:
        site = Site(data_dir, config=config)
        site.ground = ground
        try:
            site.start()
            yield site
        finally:
            site.close()


class Taker:
    """A program that has taken memory of the device; `under` is what runs it, nothing for one nobody knows of."""

    def __init__(self, code: str, size: int, *, under: Sequence[str], environment: dict[str, str]) -> None:
        command = [*under, sys.executable, "-c", code, str(size)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        assert self.process.stdout is not None
        self.visible = self.process.stdout.readline().strip()

    def pids(self) -> set[int]:
        """It and what it runs."""
        return trees([self.process.pid])

    def end(self) -> int:
        """Let it end by itself; its exit status."""
        _, errors = self.process.communicate(timeout=60)
        assert self.visible, errors
        return self.process.returncode

    def kill(self) -> None:
        """End it with all that it runs, if it is still there."""
        if self.process.poll() is None:
            for pid in self.pids():
                psutil.Process(pid).kill()
        self.process.communicate()


Take = Callable[..., Taker]


class DeviceTrial:
    """Subclasses are tests; their modules have the fixtures `ground` and `figures`."""

    @pytest.fixture
    def limited(self, ground: Ground) -> Iterator[Site]:
        """With room for one model and a program."""
        yield from running(ground, limited=True)

    @pytest.fixture
    def whole(self, ground: Ground) -> Iterator[Site]:
        """With all of the device."""
        yield from running(ground, limited=False)

    @pytest.fixture
    def taken(self, ground: Ground) -> Iterator[Take]:
        """Starts programs; those that still run at the end are killed."""
        started: list[Taker] = []

        def take(size: int, *under: str, by: Coordinator | None = None, prelude: str = "") -> Taker:
            environment = dict(os.environ) if by is None else by.environment()
            started.append(Taker(prelude + ground.take, size, under=under, environment=environment))
            return started[-1]

        yield take
        for each in started:
            each.kill()

    def test_readings_are_what_others_read(self, ground: Ground, whole: Site) -> None:
        listed = json.loads(whole.cli("devices", "--json").stdout)["devices"]
        (told,) = (each for each in listed if each["id"] == ground.device)
        assert (told["state"], told["problem"], told["charges"]) == ("online", "", [])
        assert 0.9 * ground.total_bytes <= told["capacity_bytes"] <= ground.total_bytes
        eventually(lambda: abs(whole.device()["measured_bytes"] - ground.used()) < ground.drift_bytes)

    def test_what_outsiders_hold_is_not_given_away(self, ground: Ground, whole: Site, taken: Take) -> None:
        def free() -> int:
            size: int = whole.explain("tiny")["placements"][0]["free_before_bytes"]
            return size

        whole.room_for("tiny", MIB)
        before = free()
        assert whole.room_for("huge", before - ground.eaten_bytes // 4)["fits"]
        outsider = taken(ground.eaten_bytes)
        most = before - ground.eaten_bytes * 3 // 4
        eventually(lambda: free() < most, timeout_s=60, what="what it took to be left alone")
        assert not whole.explain("huge")["fits"]
        left = free()
        outsider.end()
        # a virtual machine may give freed memory back to its host first, and have it again only after a while
        some = left + ground.eaten_bytes // 8
        eventually(lambda: free() > some, timeout_s=120, what="what the outsider gave back to be free")

    def test_a_model_answers_is_charged_what_it_holds_and_gives_it_all_back(
        self, ground: Ground, limited: Site, figures: Figures
    ) -> None:
        before = ground.used()
        figures.note("first load", limited.load("first"), "s")
        estimated = limited.charges()["model:first@1"]
        assert limited.chat("first")
        eventually(lambda: limited.model("first")["expected_memory"]["how"] == "learned", what="it to be learned")
        figures.note("estimate over what is held", estimated / limited.held(), "")
        figures.note("unload", limited.unload("first"), "s")
        assert limited.charges() == {}
        assert limited.worker_pids() == []
        eventually(lambda: ground.used() < before + ground.drift_bytes, what="the memory to be free")

        figures.note("second load", limited.load("first"), "s")
        charged = limited.charges()["model:first@1"]
        assert limited.chat("first")
        held = limited.held()
        figures.note("held by the model", held / MIB, "MiB")
        figures.note("charge over what is held", charged / held, "")
        assert abs(charged - held) <= ground.share_off * held, (charged, held)
        assert limited.device()["unmanaged_bytes"] < held // 2, "the worker is not known as the model's"

    def test_a_lease_runs_beside_a_model(self, ground: Ground, limited: Site, taken: Take) -> None:
        limited.load("first")
        asked = str(ground.taken_bytes // 2)
        under = [*MOC, "lease", "run", "--memory", asked, "--device", ground.device, "--"]
        program = taken(ground.taken_bytes, *under, by=limited)
        assert program.visible == ground.visible
        held = ground.held(program.pids())
        assert held >= ground.taken_bytes

        def counted() -> bool:
            (charge,) = (size for holder, size in limited.charges().items() if holder.startswith("lease:"))
            return abs(charge - held) <= ground.share_off * held

        eventually(counted, what="what the program holds to be charged to its lease")
        assert limited.device()["unmanaged_bytes"] < ground.taken_bytes // 2
        assert limited.chat("first")
        assert program.end() == 0
        eventually(lambda: list(limited.charges()) == ["model:first@1"], what="the lease to be over")

    def test_a_model_too_many_has_another_leave(self, ground: Ground, limited: Site, figures: Figures) -> None:
        limited.load("first")
        limited.chat("first")
        figures.note("load that takes another's place", limited.load("second"), "s")
        assert list(limited.charges()) == ["model:second@1"]
        assert (limited.model("first")["state"], limited.model("first")["reason"]) == ("registered", "Evicted")
        assert limited.held() <= ground.budget_bytes
        began = time.monotonic()
        limited.chat("first")
        figures.note("answer of a model that takes another's place", time.monotonic() - began, "s")
        assert limited.model("second")["reason"] == "Evicted"
        assert sum(limited.charges().values()) <= ground.budget_bytes
        assert limited.held() <= ground.budget_bytes

    def test_who_ignores_a_preemption_is_killed_and_its_memory_is_free(
        self, ground: Ground, limited: Site, taken: Take
    ) -> None:
        before, most = ground.used(), str(ground.budget_bytes)
        under = [*MOC, "lease", "run", "--memory", most, "--device", ground.device, "--priority", "8", "--grace", "1s"]
        victim = taken(ground.taken_bytes, *under, "--", by=limited, prelude=STUBBORN)
        pids = victim.pids()
        eventually(lambda: limited.get("/api/v1/leases")["leases"][0]["pid"] in pids, what="its process to be named")
        command = ["lease", "acquire", "--memory", most, "--device", ground.device, "--priority", "1", "--wait", "60s"]
        got = limited.cli(*command, "--json")
        assert got.returncode == 0, got.stderr
        assert not [pid for pid in pids - {victim.process.pid} if runs(pid)]
        assert ground.used() < before + ground.drift_bytes, "it was given away before it was free"
        assert list(limited.charges()) == [f"lease:{json.loads(got.stdout)['id']}"]

    def test_after_a_crash_the_books_say_what_is_really_held(self, ground: Ground, limited: Site) -> None:
        limited.load("first")
        limited.chat("first")
        charges, workers = limited.charges(), limited.worker_pids()
        limited.kill()
        limited.start()
        assert limited.worker_pids() == workers
        assert limited.charges().keys() == charges.keys()
        assert all(limited.charges()[holder] >= size for holder, size in charges.items())
        assert limited.device()["unmanaged_bytes"] < limited.held() // 2
        assert limited.chat("first")
