"""The commands of the tutorial, typed against a real coordinator."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.acceptance.conftest import EXAMPLES, served
from tests.coordinator import MOC, Coordinator, short_home


@pytest.fixture(scope="module")
def own() -> Iterator[Coordinator]:
    """A coordinator with no models, whose models folder has the examples."""
    with short_home() as data_dir:
        (data_dir / "models").mkdir(parents=True)
        for example in EXAMPLES.glob("*.py"):
            shutil.copy(example, data_dir / "models")
        yield from served(Coordinator(data_dir, config={"security": {"trusted_python_roots": ["{data_dir}/models"]}}))


def run(coordinator: Coordinator, *arguments: str) -> str:
    done = coordinator.cli(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def read(coordinator: Coordinator, *arguments: str) -> Any:
    return json.loads(run(coordinator, *arguments, "--json"))


def test_a_models_whole_life(own: Coordinator, tmp_path: Path) -> None:
    source = f"file:{own.data_dir / 'models' / 'add_sub.py'}"
    run(own, "models", "add", "calculator", "--runtime", "python", "--source", source, "--ttl", "10m")
    shown = read(own, "models", "show", "calculator")
    assert (shown["state"], shown["ttl_s"], shown["digest"]) == ("registered", 600.0, "")
    run(own, "models", "pull", "calculator")
    assert read(own, "models", "show", "calculator")["digest"].startswith("sha256:")
    run(own, "models", "load", "calculator")
    assert [model["state"] for model in read(own, "models", "list")["models"]] == ["ready"]
    assert [worker["model"] for worker in read(own, "workers", "list")["workers"]] == ["calculator@1"]
    status = read(own, "status")
    assert {seat["name"] for seat in status["seats"]} == {"cluster", f"host/{status['host']}"}

    np.save(tmp_path / "left.npy", np.arange(16, dtype=np.int32))
    (tmp_path / "right.json").write_text(json.dumps([1] * 16))
    answer = read(
        own, "infer", "calculator",
        "--input", f"INPUT0=@{tmp_path / 'left.npy'}", "--input", f"INPUT1=@{tmp_path / 'right.json'}",
    )  # fmt: skip
    assert [n + 1 for n in range(16)] == next(o["data"] for o in answer["outputs"] if o["name"] == "OUTPUT0")

    run(own, "models", "unload", "calculator")
    assert read(own, "workers", "list")["workers"] == []
    run(own, "models", "remove", "calculator", "--yes")
    assert read(own, "models", "list")["models"] == []
    kinds = [event["kind"] for event in read(own, "events")["events"]]
    order = ["model.registered", "model.pulled", "model.ready", "model.draining", "worker.gone", "model.unloaded"]
    order.append("model.removed")
    assert [kind for kind in kinds if kind in order] == order


def test_a_source_outside_the_allowed_folders_is_refused_and_says_what_to_do(own: Coordinator) -> None:
    done = own.cli("models", "add", "x", "--runtime", "python", "--source", f"file:{EXAMPLES / 'add_sub.py'}")
    assert done.returncode == 1
    assert "trusted_python_roots" in done.stderr


def test_a_model_that_cannot_load_says_why(own: Coordinator) -> None:
    broken = own.data_dir / "models" / "broken.py"
    broken.write_text("import nothing_of_this_name\n\nclass Model:\n    def infer(self, inputs): return inputs\n")
    run(own, "models", "add", "broken", "--runtime", "python", "--source", f"file:{broken}")
    done = own.cli("models", "load", "broken")
    assert done.returncode == 1
    assert "nothing_of_this_name" in done.stderr
    shown = read(own, "models", "show", "broken")
    assert shown["state"] == "failed"
    assert "nothing_of_this_name" in shown["message"]


def test_what_is_not_there_and_who_is_not_known(own: Coordinator) -> None:
    assert "there is no model 'nobody'" in own.cli("models", "show", "nobody").stderr
    wrong = {**own.environment(), "MOC_KEY": "moc_0_wrong"}
    done = subprocess.run([*MOC, "models", "list"], env=wrong, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "key" in done.stderr


def test_nobody_there_is_exit_three(tmp_path: Path) -> None:
    gone = {**os.environ, "MOC_URL": "http://127.0.0.1:9", "MOC_DATA_DIR": str(tmp_path), "MOC_KEY": "x"}
    done = subprocess.run([*MOC, "status"], env=gone, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert "moc serve" in done.stderr


def test_the_key_is_found_and_private(own: Coordinator) -> None:
    assert run(own, "keys", "show").strip() == own.key
    assert (own.data_dir / "admin.key").stat().st_mode & 0o777 == 0o600


def test_a_configuration_mistake_is_shown_where_it_stands(tmp_path: Path) -> None:
    config = tmp_path / "moc.yaml"
    config.write_text("server:\n  rest_port: 0\n  hots: 127.0.0.1\n")
    done = subprocess.run(
        [*MOC, "serve", "--data-dir", str(tmp_path / "data"), "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert f"{config}:3: server.hots: unknown key; did you mean 'host'?" in done.stderr
