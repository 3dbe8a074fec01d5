"""Starting, stopping, coming back: cold start, memory, time to the first token, warm restart. `make bench` runs it."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil

from tests.coordinator import Coordinator
from tests.models import smollm2_path

ROUNDS = 5
CHAT = {"model": "smollm2", "stream": True, "max_tokens": 4, "messages": [{"role": "user", "content": "Name a river."}]}

ENGINE = """
import json, os, sys, time
os.environ["OMP_WAIT_POLICY"] = "passive"
import xllamacpp as x
p = x.CommonParams()
p.model.path, p.n_ctx, p.n_parallel, p.warmup, p.verbosity = sys.argv[1], 4096, 4, False, -1
p.cpuparams.n_threads, p.cpuparams_batch.n_threads, p.cache_ram_mib, p.ui, p.port = 1, 2, 0, False, int(sys.argv[2])
server = x.Server(p)
request = json.loads(sys.argv[3])
for _ in range(int(sys.argv[4])):
    asked, first = time.perf_counter(), []
    server.handle_chat_completions(dict(request), lambda chunk: bool(first.append(time.perf_counter())))
    print(first[0] - asked, flush=True)
os._exit(0)
"""
"""The engine alone, in a process of its own: seconds to the first chunk, once per round."""


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def first_token(coordinator: Coordinator) -> float:
    """Seconds from asking to the first chunk that arrives."""
    started = time.perf_counter()
    with httpx.stream(
        "POST", f"{coordinator.url}/v1/chat/completions", json=CHAT, headers=coordinator.headers, timeout=120
    ) as answer:
        answer.raise_for_status()
        next(line for line in answer.iter_lines() if line.startswith("data:"))
        elapsed = time.perf_counter() - started
        for _ in answer.iter_lines():
            pass
    return elapsed


def engine_alone(port: int, rounds: int) -> list[float]:
    """The engine's own seconds to the first chunk; the first includes nothing of its start."""
    command = [sys.executable, "-c", ENGINE, str(smollm2_path()), str(port), json.dumps(CHAT), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(line) for line in done.stdout.split()]


def spawn_alone(port: int) -> float:
    """Seconds from starting the engine's process to its first chunk."""
    command = [sys.executable, "-c", ENGINE, str(smollm2_path()), str(port), json.dumps(CHAT), "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        started = time.perf_counter()
        assert process.stdout is not None
        process.stdout.readline()
        return time.perf_counter() - started


def show(name: str, values: list[float], unit: str) -> None:
    """One line: median and range."""
    print(f"{name:44} median {statistics.median(values):8.3f} {unit}   from {min(values):.3f} to {max(values):.3f}")


def main() -> None:
    models = {
        "smollm2": {
            "runtime": "llama_cpp",
            "source": f"file:{smollm2_path()}",
            "options": {"context": 4096, "slots": 4},
            "ttl_s": 0,
        }
    }
    with tempfile.TemporaryDirectory() as folder:
        coordinator = Coordinator(Path(folder) / "data", config={"models": models})
        try:
            cold = []
            for _ in range(ROUNDS):
                cold.append(seconds(coordinator.start))
                assert coordinator.process is not None
                resident = psutil.Process(coordinator.process.pid).memory_info().rss
                coordinator.stop()
            show("cold start to ready, no model", cold, "s")
            show("coordinator resident memory", [resident / 2**20], "MiB")
            coordinator.start()
            loaded, alone = [], []
            for _ in range(ROUNDS):
                loaded.append(first_token(coordinator))
                alone.append(spawn_alone(coordinator.port + 1))
                coordinator.post("/api/v1/models/smollm2/unload").raise_for_status()
            show("unloaded model to first token", loaded, "s")
            show("the engine's own process to first token", alone, "s")
            show("ratio, pair by pair", [a / b for a, b in zip(loaded, alone, strict=True)], "")
            first_token(coordinator)
            show("first token through the coordinator", [first_token(coordinator) for _ in range(20)], "s")
            show("first token from the engine alone", engine_alone(coordinator.port + 1, 21)[1:], "s")
            back = []
            for _ in range(ROUNDS):
                coordinator.kill()
                back.append(seconds(lambda: (coordinator.start(), first_token(coordinator))))
            show("SIGKILL to the warm worker's next token", back, "s")
        finally:
            coordinator.close()


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    main()
