"""What a training costs those who ask the same machine: p95 of chats alone, and beside it, by turns.

One client asks SmolLM2 for 16 tokens over REST, one chat after the other, while another SmolLM2 is trained on the same
processors: first held back by nothing but its priority and its threads, then by the limit that is the default.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.coordinator import Coordinator, eventually
from tests.models import smollm2_path

ROUNDS = 2
WINDOW_S = 40.0
CHAT = {"model": "smollm2", "max_tokens": 16, "messages": [{"role": "user", "content": "Name three rivers."}]}
LIMITS = {"priority and threads only": 100.0, "limit of 1.5 (default)": 1.5}
HYPERPARAMETERS = ("epochs=1000", "batch_size=4", "max_length=128", "checkpoint_steps=1000000")


@contextmanager
def coordinator(max_ratio: float) -> Iterator[Coordinator]:
    """One with SmolLM2 loaded."""
    spec = {"runtime": "llama_cpp", "source": f"file:{smollm2_path()}", "options": {"context": 2048, "slots": 2}}
    config = {
        "models": {"smollm2": {**spec, "preload": True}},
        "learning": {"max_serving_p95_ratio": max_ratio, "min_runtime_s": 0},
    }
    with tempfile.TemporaryDirectory(prefix="moc-bench-") as folder:
        running = Coordinator(Path(folder) / "data", config=config)
        try:
            yield running.start()
        finally:
            running.close()


def submit(running: Coordinator) -> str:
    """A training that does not end by itself; its id, once it learns."""
    data = running.data_dir.parent / "train.jsonl"
    answer = "It is a river, as everybody knows who has been there. " * 12
    rows = (
        {"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": answer}]}
        for n in range(64)
    )
    data.write_text("\n".join(map(json.dumps, rows)))
    settings = [word for each in HYPERPARAMETERS for word in ("--set", each)]
    told = running.cli(
        "jobs", "submit", "sft", "--model", "smollm2", "--data", str(data), "--name", "bench", *settings, "--json"
    )
    assert told.returncode == 0, told.stderr
    job: str = json.loads(told.stdout)["id"]
    return job


def shown(running: Coordinator, job: str) -> dict[str, Any]:
    """The job as it is now."""
    found: dict[str, Any] = running.get(f"/api/v1/jobs/{job}")
    assert found["status"] not in ("failed", "cancelled", "succeeded"), found["message"]
    return found


def learns(running: Coordinator, job: str) -> None:
    """Return when it computes: two steps after it was started."""
    eventually(lambda: shown(running, job)["status"] == "running", timeout_s=120, what="it to run")
    before = shown(running, job)["progress"]["step"]
    eventually(lambda: shown(running, job)["progress"]["step"] > before + 1, timeout_s=240, what="it to learn")


def ask(running: Coordinator) -> list[float]:
    """What chats take, in milliseconds, for `WINDOW_S`."""
    took = []
    with httpx.Client(base_url=running.url, headers=running.headers, timeout=60) as client:
        end = time.perf_counter() + WINDOW_S
        while (began := time.perf_counter()) < end:
            client.post("/v1/chat/completions", json=CHAT).raise_for_status()
            took.append(1000 * (time.perf_counter() - began))
    return took


def p95(took: list[float]) -> float:
    """What 95 % took at most."""
    return statistics.quantiles(took, n=20)[-1]


def measure(running: Coordinator) -> tuple[list[float], list[float], float]:
    """What chats took alone and beside the job, by turns, and how many steps a minute it came on meanwhile."""
    ask(running)
    job = submit(running)
    alone, beside, steps = [], [], 0
    for _ in range(ROUNDS):
        learns(running, job)
        before = shown(running, job)["progress"]["step"]
        beside += ask(running)
        steps += shown(running, job)["progress"]["step"] - before
        running.post(f"/api/v1/jobs/{job}/pause").raise_for_status()
        eventually(lambda: shown(running, job)["status"] == "paused", timeout_s=120, what="it to pause")
        alone += ask(running)
        running.post(f"/api/v1/jobs/{job}/resume").raise_for_status()
    running.post(f"/api/v1/jobs/{job}/cancel").raise_for_status()
    return alone, beside, steps / (ROUNDS * WINDOW_S) * 60


def main() -> None:
    """Print a row for each way of holding a training back."""
    for name, limit in LIMITS.items():
        with coordinator(limit) as running:
            alone, beside, steps_per_min = measure(running)
        print(
            f"{name:28} p50 alone {statistics.median(alone):5.0f} ms  beside {statistics.median(beside):5.0f} ms"
            f"   p95 alone {p95(alone):5.0f} ms  beside {p95(beside):5.0f} ms  ratio {p95(beside) / p95(alone):.2f}"
            f"   {steps_per_min:4.1f} steps/min",
            flush=True,
        )


if __name__ == "__main__":
    main()
