"""A job of one's own, with nothing but Python: fits a line to points by gradient descent.

It keeps to docs/reference/job-programs.md: goes on from its checkpoint, saves and ends with 75 on SIGTERM, tells its
progress as JSON lines. Run it with:

    moc jobs submit script --command "python3 train.py" --set learning_rate=0.05 --memory 64MiB --wait
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

STEPS = 200
CHECKPOINT_STEPS = 50
STOPPED = 75

POINTS = [(x / 10, 3 * x / 10 - 1) for x in range(-10, 11)]

checkpoint = Path(os.environ["MOC_CHECKPOINT_FOLDER"]) / "state.json"
settings = {"learning_rate": 0.05, "pause_s": 0.02, **json.loads(os.environ["MOC_HYPERPARAMETERS"])}
stop_requests = []


def tell(**line):
    """One line in one write, so that nobody ever reads a half."""
    with open(os.environ["MOC_PROGRESS_FILE"], "ab", buffering=0) as file:
        file.write(json.dumps(line).encode() + b"\n")


def save(state):
    """Write it aside, have it on the disk, then put it in its place: a kill leaves the old state or the new one."""
    aside = checkpoint.with_suffix(".new")
    with aside.open("w") as file:
        json.dump(state, file)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(checkpoint)
    tell(type="checkpoint", name=checkpoint.name, step=state["step"])


def load():
    if checkpoint.exists():
        return json.loads(checkpoint.read_text())
    return {"step": 0, "slope": 0.0, "offset": 0.0}


def advance(state):
    """One step of gradient descent; the loss before it."""
    errors = [(state["slope"] * x + state["offset"] - y, x) for x, y in POINTS]
    state["slope"] -= settings["learning_rate"] * sum(2 * error * x for error, x in errors) / len(POINTS)
    state["offset"] -= settings["learning_rate"] * sum(2 * error for error, _ in errors) / len(POINTS)
    state["step"] += 1
    return sum(error**2 for error, _ in errors) / len(POINTS)


def main():
    signal.signal(signal.SIGTERM, lambda *_: stop_requests.append(True))
    state = load()
    print(f"beginning at step {state['step']}")
    loss = None
    while state["step"] < STEPS:
        loss = advance(state)
        tell(type="metrics", step=state["step"], total_steps=STEPS, metrics={"train_loss": loss, "valid_loss": loss})
        if stop_requests or state["step"] % CHECKPOINT_STEPS == 0:
            save(state)
        if stop_requests:
            sys.exit(STOPPED)
        time.sleep(settings["pause_s"])
    (Path(os.environ["MOC_OUTPUT_FOLDER"]) / "line.json").write_text(json.dumps(state))
    tell(type="result", metrics={"valid_loss": loss} if loss is not None else {}, data=state)


if __name__ == "__main__":
    main()
