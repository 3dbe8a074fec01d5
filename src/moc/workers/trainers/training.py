"""The program of trainings: `python -m moc.workers.trainers.training`."""

import os

from moc.workers.trainers.assignment import Assignment, carry_out

SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # one that gives the same sums every time
    "TQDM_DELAY": "1e9",  # no progress bars: TQDM_DISABLE is overruled by a library
}
"""What the libraries are told before they are imported."""


def train(assignment: Assignment) -> bool:
    """Go on with the training that is assigned; the libraries are brought in here, when a stop can be heard."""
    os.environ |= SETTINGS
    from moc.workers.trainers.learner import Learner
    from moc.workers.trainers.mishap import understood

    try:
        return Learner(assignment).run()
    except Exception as error:
        raise understood(error) from error


if __name__ == "__main__":
    carry_out(train)
