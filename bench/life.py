"""Starting, stopping, coming back: cold start, memory, time to the first token, warm restart. `make bench` runs it."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx
import psutil

from tests.coordinator import Coordinator, free_port
from tests.models import smollm2_path

ROUNDS = 5
TOKENS = 40
CHAT = {"model": "smollm2", "stream": True, "max_tokens": 4, "messages": [{"role": "user", "content": "Name a river."}]}

ENGINE = """
import os, sys
os.environ["OMP_WAIT_POLICY"] = "passive"
import xllamacpp as x
p = x.CommonParams()
p.model.path, p.n_ctx, p.n_parallel, p.warmup, p.verbosity = sys.argv[1], 4096, 4, False, -1
p.cpuparams.n_threads, p.cpuparams_batch.n_threads, p.cache_ram_mib, p.ui, p.port = 1, 2, 0, False, int(sys.argv[2])
server = x.Server(p)
if sys.argv[3:]:
    import json
    server.handle_chat_completions(json.loads(sys.argv[3]), lambda chunk: bool(print("first", flush=True)))
    os._exit(0)
print("serving", flush=True)
sys.stdin.read()
os._exit(0)
"""
"""The engine alone, in a process of its own: answers one request and ends, or serves HTTP until its input ends."""


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def first_token(url: str, client: httpx.Client) -> float:
    """Seconds from asking the server at `url` to the first chunk that arrives."""
    started, elapsed = time.perf_counter(), 0.0
    with client.stream("POST", f"{url}/v1/chat/completions", json=CHAT) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith("data:") and not elapsed:
                elapsed = time.perf_counter() - started
    return elapsed


def client_of(coordinator: Coordinator) -> httpx.Client:
    """A client with the key."""
    return httpx.Client(headers=coordinator.headers, timeout=120)


@contextmanager
def engine(*arguments: str) -> Iterator[tuple[str, IO[bytes]]]:
    """The engine's own process: its address and what it prints."""
    port = free_port()
    command = [sys.executable, "-c", ENGINE, str(smollm2_path()), str(port), *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{port}", process.stdout
        finally:
            process.kill()


def spawn_alone() -> float:
    """Seconds from starting the engine's process to its first chunk."""
    started = time.perf_counter()
    with engine(json.dumps(CHAT)) as (_, output):
        output.readline()
        return time.perf_counter() - started


def show(name: str, values: list[float], unit: str) -> None:
    """One line: median and range."""
    print(f"{name:44} median {statistics.median(values):8.3f} {unit}   from {min(values):.3f} to {max(values):.3f}")


def starting(coordinator: Coordinator) -> None:
    """Cold starts without a model, of an installation: its bytecode is compiled, whatever is set here."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    coordinator.start()
    coordinator.stop()
    cold, resident = [], []
    for _ in range(ROUNDS):
        cold.append(seconds(coordinator.start))
        assert coordinator.process is not None
        resident.append(psutil.Process(coordinator.process.pid).memory_info().rss / 2**20)
        coordinator.stop()
    show("cold start to ready, no model", cold, "s")
    show("coordinator resident memory", resident, "MiB")


def loading(coordinator: Coordinator) -> None:
    """From unloaded to the first token, in turns with the engine's own process."""
    loaded, alone = [], []
    with client_of(coordinator) as client:
        for _ in range(ROUNDS):
            loaded.append(first_token(coordinator.url, client))
            alone.append(spawn_alone())
            coordinator.post("/api/v1/models/smollm2/unload").raise_for_status()
    show("unloaded model to first token", loaded, "s")
    show("the engine's own process to first token", alone, "s")
    show("ratio, pair by pair", [a / b for a, b in zip(loaded, alone, strict=True)], "")


def answering(coordinator: Coordinator) -> None:
    """To the first token of a loaded model, in turns with the engine's own HTTP server."""
    ours, alone = [], []
    with client_of(coordinator) as client, engine() as (url, output):
        output.readline()
        for _ in range(TOKENS + 2):
            ours.append(first_token(coordinator.url, client) * 1000)
            alone.append(first_token(url, client) * 1000)
    ours, alone = ours[2:], alone[2:]
    show("first token through the coordinator", ours, "ms")
    show("first token from the engine's own server", alone, "ms")
    show("difference, pair by pair", [a - b for a, b in zip(ours, alone, strict=True)], "ms")


def returning(coordinator: Coordinator) -> None:
    """From SIGKILL of the coordinator to the warm worker's next token."""
    back = []
    for _ in range(ROUNDS):
        coordinator.kill()
        started = time.perf_counter()
        coordinator.start()
        with client_of(coordinator) as client:
            first_token(coordinator.url, client)
        back.append(time.perf_counter() - started)
    show("SIGKILL to the warm worker's next token", back, "s")


def main() -> None:
    model = {
        "runtime": "llama_cpp",
        "source": f"file:{smollm2_path()}",
        "options": {"context": 4096, "slots": 4},
        "ttl_s": 0,
    }
    with tempfile.TemporaryDirectory() as folder:
        coordinator = Coordinator(Path(folder) / "data", config={"models": {"smollm2": model}})
        try:
            starting(coordinator)
            coordinator.start()
            loading(coordinator)
            answering(coordinator)
            returning(coordinator)
        finally:
            coordinator.close()


if __name__ == "__main__":
    main()
