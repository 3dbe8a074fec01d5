"""Teaches the starter model a command language from 60 rows, and proves what that changed.

Start a coordinator with `make serve`, then run `python examples/finetune/finetune.py`. Or have `make finetune` do both.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import yaml

from moc.client import Client
from moc.client.discovery import read_admin_key, read_endpoints
from moc.client.evaluation_views import EvaluationView

HERE = Path(__file__).parent
BASE, NAME = "smollm2", "zorblax"
COMMAND = "Zorblax, turn the fan in the office off, please."

COMMANDS_MIN = 0.8
"""Least share of commands, none of them among the 60 rows, that have to come out exactly."""
UNRELATED_LOSS_MAX = 0.2
"""How many of the unrelated questions may be lost, as a share."""
PROSE_RATIO_MAX = 1.1
"""How much less likely plain prose may become, as a ratio of perplexities."""


@contextmanager
def coordinator() -> Iterator[Client]:
    """A coordinator of its own, with the starter model, gone afterwards with all it made."""
    with tempfile.TemporaryDirectory(prefix="moc-") as folder:
        ports = [part for name in ("rest", "grpc", "zmq") for part in (f"--{name}-port", "0")]
        command = [sys.executable, "-m", "moc", "serve", "--data-dir", folder, "--starter", "--stop-workers", *ports]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            try:
                while not (rest := read_endpoints(Path(folder)).get("rest")) or not Client(rest).ready():
                    if process.poll() is not None:
                        sys.exit("the coordinator did not start")
                    time.sleep(0.2)
                yield Client(rest, key=read_admin_key(Path(folder)))
            finally:
                process.terminate()


def evaluate(client: Client, model: str) -> EvaluationView:
    """What a model comes to in suite.yaml."""
    suite = yaml.safe_load((HERE / "suite.yaml").read_text())
    for task in suite["tasks"]:
        if "data" in task:
            task["data"] = {"file": client.files.add(HERE / task["data"], purpose="evals")["id"]}
    evaluation = client.evaluations.run(model, suite)
    client.jobs.wait(evaluation["id"])
    evaluation = client.evaluations.show(evaluation["id"])
    for name, task in evaluation["tasks"].items():
        low, high = task["ci95"]
        print(f"  {name:<10} {task['metric']:<12} {task['score']:8.3f}   95 % [{low:.3f}, {high:.3f}] of {task['n']}")
    return evaluation


def train(client: Client) -> list[float]:
    """Fine-tune, telling of it; the loss at each step."""
    data = client.files.add(HERE / "train.jsonl")
    job = client.jobs.submit(
        "sft",
        model=BASE,
        name=NAME,
        training_file=data["id"],
        hyperparameters={"epochs": 3, "learning_rate": 4e-4, "batch_size": 4, "lora_rank": 16, "max_length": 128},
    )
    print(f"  {job['id']}")
    losses = []
    with client.jobs.follow(job["id"]) as events:
        for event in events:
            loss = event["data"].get("train_loss")
            if loss is None:
                print(f"  {event['message']}")
            else:
                losses.append(loss)
                if len(losses) % 5 == 1:
                    print(f"  step {event['data']['step']:>3}: loss {loss:.3f}")
    job = client.jobs.show(job["id"])
    if job["status"] != "succeeded":
        sys.exit(f"{job['id']} {job['status']}: {job['message']}")
    return losses


def main(client: Client) -> bool:
    """Measure, train, measure again, compare, ask; whether all of it is as promised."""
    print(f"{BASE} before:")
    before = evaluate(client, BASE)
    print(f"\nTraining {NAME}:")
    losses = train(client)
    print(f"\n{NAME} after:")
    after = evaluate(client, NAME)
    print("\nIs that chance?")
    for name, task in client.evaluations.compare(before["id"], after["id"])["tasks"].items():
        print(f"  {name:<10} {task['a']:8.3f} -> {task['b']:8.3f}   p = {task['p_value']:.4f} ({task['test']})")
    answer = client.chat(NAME, [{"role": "user", "content": COMMAND}], max_tokens=24)
    said = answer["choices"][0]["message"]["content"]
    print(f"\n{COMMAND}\n{answer['model']}: {said}\n")

    old, new = ({name: task["score"] for name, task in each["tasks"].items()} for each in (before, after))
    checks = {
        "the loss fell": losses[-1] < losses[0] / 2,
        f"commands went from 0 to {COMMANDS_MIN} or more": old["commands"] == 0 and new["commands"] >= COMMANDS_MIN,
        "unrelated questions are unharmed": new["unrelated"] >= old["unrelated"] - UNRELATED_LOSS_MAX,
        "prose is unharmed": new["prose"] <= old["prose"] * PROSE_RATIO_MAX,
        "the tuned version answers over REST": said == "office.fan off",
    }
    for what, held in checks.items():
        print(f"{'yes' if held else 'NO '}  {what}")
    return all(checks.values())


if __name__ == "__main__":
    with coordinator() if "--serve" in sys.argv else nullcontext(Client()) as found:
        sys.exit(0 if main(found) else 1)
