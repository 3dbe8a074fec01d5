"""What the coordinator expects of real models, held against what their processes really take."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from moc.client import Client
from tests.acceptance.conftest import EXAMPLES, model
from tests.coordinator import Coordinator, eventually
from tests.models import silero_path, smollm2_path

pytestmark = pytest.mark.alone

MIB = 2**20
CONTEXTS = {"small": (512, 1), "middle": (4096, 4), "large": (8192, 8)}
NAMES = (*CONTEXTS, "silero", "add_sub", "identity")
LEARNED_TIMEOUT_S = 30
SHARED_BYTES = 3 * MIB


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    folder = tmp_path_factory.mktemp("footprints")
    models: dict[str, Any] = {
        "silero": model("onnx", silero_path()),
        "add_sub": model("python", EXAMPLES / "add_sub.py"),
        "identity": model("python", EXAMPLES / "identity.py"),
    }
    for name, (context, slots) in CONTEXTS.items():
        own = Path(shutil.copy(smollm2_path(), folder / f"{name}.gguf"))  # pages of one file are shared out
        models[name] = model("llama_cpp", own, options={"context": context, "slots": slots})
    running = Coordinator(folder / "data", config={"models": models})
    try:
        yield running.start()
    finally:
        running.close()


def use(coordinator: Coordinator, name: str) -> None:
    """Have a model do what fills its buffers."""
    with Client(url=coordinator.url, key=coordinator.key) as client:
        if name == "silero":
            frame, state = np.zeros((1, 576), np.float32), np.zeros((2, 1, 128), np.float32)
            client.infer(name, {"input": frame, "state": state, "sr": np.array(16000, np.int64)})
        elif name == "add_sub":
            client.infer(name, {"INPUT0": np.zeros(16, np.int32), "INPUT1": np.zeros(16, np.int32)})
        elif name == "identity":
            client.infer(name, {"INPUT0": np.zeros((1, 8), np.float32)})
        else:
            chat(coordinator, name)


def chat(coordinator: Coordinator, name: str) -> None:
    """A prompt longer than llama.cpp reads at once, then one in every slot."""
    context, slots = CONTEXTS[name]

    def ask(words: int) -> None:
        prompt = " the" * words
        answer = coordinator.post("/v1/completions", {"model": name, "prompt": prompt, "max_tokens": 2})
        assert answer.status_code == 200, answer.text

    ask(min(600, context // slots - 64))
    with ThreadPoolExecutor(slots) as pool:
        list(pool.map(ask, range(20, 20 + slots)))


def shown(coordinator: Coordinator, name: str) -> Any:
    return coordinator.get(f"/api/v1/models/{name}")


def change(coordinator: Coordinator, name: str, what: str) -> None:
    answer = coordinator.post(f"/api/v1/models/{name}/{what}")
    assert answer.status_code == 200, answer.text


def held_bytes(coordinator: Coordinator, name: str) -> int:
    """The proportional set size of the model's worker, now."""
    size: int = psutil.Process(shown(coordinator, name)["worker"]["pid"]).memory_full_info().pss
    return size


def learned(coordinator: Coordinator, name: str) -> Any:
    """What is expected of it, once that was learned."""
    expected = shown(coordinator, name)["expected_memory"]
    return expected if expected["how"] == "learned" else None


def error(expected: int, measured: int) -> float:
    """As a share of what was measured, beyond the share in common libraries, which depends on other processes."""
    return max(0, abs(expected - measured) - SHARED_BYTES) / measured


def table(found: dict[str, tuple[int, int]]) -> str:
    """Expected and measured, in MiB and as the share expected is above."""
    rows = [f"{'model':10}{'expected':>10}{'measured':>10}{'above':>8}"]
    for name, (expected, measured) in found.items():
        rows.append(f"{name:10}{expected / MIB:10.1f}{measured / MIB:10.1f}{expected / measured - 1:8.1%}")
    return "\n" + "\n".join(rows)


def load_and_use(coordinator: Coordinator, name: str) -> None:
    """One model at a time: beside others a process's share of what they have in common is less."""
    change(coordinator, name, "load")
    use(coordinator, name)


@pytest.mark.timeout(300)
def test_the_first_estimate_is_never_too_low_and_the_second_is_right(coordinator: Coordinator) -> None:
    first, second = {}, {}
    for name in NAMES:
        assert shown(coordinator, name)["expected_memory"] is None
        change(coordinator, name, "pull")
        expected = shown(coordinator, name)["expected_memory"]
        assert expected["how"] == "estimated"
        load_and_use(coordinator, name)
        first[name] = expected["bytes"], held_bytes(coordinator, name)
        expected = eventually(partial(learned, coordinator, name), timeout_s=LEARNED_TIMEOUT_S)
        change(coordinator, name, "unload")
        load_and_use(coordinator, name)
        second[name] = expected["bytes"], held_bytes(coordinator, name)
        change(coordinator, name, "unload")
    too_low = [name for name, (expected, measured) in first.items() if expected < 0.95 * measured]
    too_high = [name for name, (expected, measured) in first.items() if expected > 1.5 * measured]
    assert (too_low, too_high) == ([], []), table(first)
    errors = [error(*numbers) for numbers in second.values()]
    assert float(np.quantile(errors, 0.95)) <= 0.10, table(second)


def test_what_was_learned_outlives_the_coordinator(coordinator: Coordinator) -> None:
    before = shown(coordinator, "identity")["expected_memory"]
    coordinator.kill()
    coordinator.start()
    assert shown(coordinator, "identity")["expected_memory"] == before
    done = coordinator.cli("models", "show", "identity")
    assert ", learned" in done.stdout, done.stdout + done.stderr
    assert json.loads(coordinator.cli("models", "show", "identity", "--json").stdout)["expected_memory"] == before
