"""One coordinator with real models for all acceptance tests; the judging clients live in their own environments."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.coordinator import Coordinator, short_home
from tests.models import silero_path, smollm2_path

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "models"


def model(runtime: str, path: Path, **more: Any) -> dict[str, Any]:
    """An entry of `models:` for a file."""
    return {"runtime": runtime, "source": f"file:{path}", **more}


@pytest.fixture(scope="session")
def models() -> dict[str, Any]:
    """Every kind of model there is."""
    return {
        "smollm2": model("llama_cpp", smollm2_path(), options={"context": 4096, "slots": 4}),
        "silero": model("onnx", silero_path()),
        "add_sub": model("python", EXAMPLES / "add_sub.py"),
        "identity": model("python", EXAMPLES / "identity.py", max_queue=512),
        "caller": model("python", Path(__file__).with_name("caller.py")),
    }


@pytest.fixture(scope="session")
def coordinator(models: dict[str, Any]) -> Iterator[Coordinator]:
    with short_home() as data_dir:
        security = {"failed_logins_per_min": 10_000}  # some clients try many wrong keys to see them refused
        yield from served(Coordinator(data_dir, config={"models": models, "security": security}))


def served(running: Coordinator) -> Iterator[Coordinator]:
    """Start it, and end it with everything it left running."""
    try:
        yield running.start()
    finally:
        running.close()


@pytest.fixture
def judge(coordinator: Coordinator) -> Callable[..., str]:
    """Run a client's script in the client's own environment; its output when it ends well."""

    def run(environment: str, *command: str) -> str:
        binaries = ROOT / ".venvs" / environment / "bin"
        if not binaries.is_dir():
            pytest.fail(f"{environment} is not installed: run `make clients`")
        place = {"MOC_URL": coordinator.url, "MOC_GRPC": f"127.0.0.1:{coordinator.grpc_port}"}
        variables = {**os.environ, **place, "MOC_KEY": coordinator.key}
        program, *arguments = command
        done = subprocess.run(
            [str(binaries / program), *arguments], env=variables, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    return run
