"""Files and fine-tuning with the official OpenAI SDK, unchanged, against a coordinator with SmolLM2 as `smollm2`."""

# ruff: noqa: PT017 - these are programs, not tests

import json
import os
import time

import openai

client = openai.OpenAI(base_url=f"{os.environ['MOC_URL']}/v1", api_key=os.environ["MOC_KEY"], max_retries=0)
jobs = client.fine_tuning.jobs

rows = [
    {
        "messages": [
            {"role": "user", "content": f"How many legs have {n} dogs?"},
            {"role": "assistant", "content": str(4 * n)},
        ]
    }
    for n in range(1, 9)
]
data = "".join(json.dumps(row) + "\n" for row in rows).encode()
file = client.files.create(file=("legs.jsonl", data), purpose="fine-tune")
assert (file.object, file.filename, file.bytes, file.purpose) == ("file", "legs.jsonl", len(data), "fine-tune"), file
assert client.files.retrieve(file.id) == file
assert client.files.content(file.id).read() == data
assert file.id in [each.id for each in client.files.list()]


def until(job_id: str, *states: str) -> openai.types.fine_tuning.FineTuningJob:
    """The job once it is in one of these states."""
    for _ in range(600):
        job = jobs.retrieve(job_id)
        if job.status in states:
            return job
        time.sleep(0.1)
    raise AssertionError(f"{job} is not {states}")


method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 2}}}
asked = {"model": "smollm2", "training_file": file.id, "seed": 7, "metadata": {"what": "legs"}}
job = jobs.create(**asked, suffix="legs", method=method)
assert (job.object, job.training_file, job.seed, job.metadata) == ("fine_tuning.job", file.id, 7, {"what": "legs"}), job
assert job.model.partition("@")[0] == "smollm2", job
assert job.status in ("validating_files", "queued", "running"), job
assert (job.hyperparameters.n_epochs, job.hyperparameters.batch_size, job.method.type) == (2, 2, "supervised"), job
assert (job.fine_tuned_model, job.finished_at, job.result_files) == (None, None, []), job

jobs.pause(job.id)
assert until(job.id, "paused").error is None
assert jobs.resume(job.id).status in ("queued", "running")
try:
    client.files.delete(file.id)
except openai.ConflictError as error:
    assert job.id in error.body["message"], error.body
else:
    raise AssertionError("a file that a job reads should stay")
jobs.cancel(job.id)
assert until(job.id, "cancelled").finished_at >= job.created_at
events = list(jobs.list_events(job.id, limit=2))
assert len(events) > 2, events
assert {event.object for event in events} == {"fine_tuning.job.event"}, events
assert [event.created_at for event in events] == sorted((event.created_at for event in events), reverse=True), events
assert list(jobs.checkpoints.list(job.id)) == []

preferences = [
    {
        "input": {"messages": [{"role": "user", "content": f"Say {n}."}]},
        "preferred_output": [{"role": "assistant", "content": str(n)}],
        "non_preferred_output": [{"role": "assistant", "content": "No."}],
    }
    for n in range(8)
]
pairs = client.files.create(
    file=("pairs.jsonl", "".join(json.dumps(row) + "\n" for row in preferences).encode()), purpose="fine-tune"
)
dpo = jobs.create(
    model="smollm2",
    training_file=pairs.id,
    method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 1}}},
)
assert (dpo.method.type, dpo.method.dpo.hyperparameters.beta) == ("dpo", 0.2), dpo
jobs.cancel(dpo.id)
until(dpo.id, "cancelled")
assert [each.id for each in jobs.list(limit=1)][:2] == [dpo.id, job.id]
assert [each.id for each in jobs.list(extra_query={"metadata[what]": "legs"})] == [job.id]

broken = client.files.create(file=("broken.jsonl", b'{"messages": []}\n{"nonsense": 1}\n'), purpose="fine-tune")
failed = until(jobs.create(model="smollm2", training_file=broken.id).id, "failed")
assert (failed.error.code, "line" in failed.error.message) == ("Invalid", True), failed.error

for refused, kind, words in (
    (lambda: jobs.create(**asked, method={"type": "reinforcement"}), openai.BadRequestError, "dpo"),
    (
        lambda: jobs.create(**asked, integrations=[{"type": "wandb", "wandb": {"project": "x"}}]),
        openai.BadRequestError,
        "integrations",
    ),
    (lambda: jobs.create(**{**asked, "model": "nobody"}), openai.NotFoundError, "nobody"),
    (lambda: jobs.create(**{**asked, "training_file": "file-none"}), openai.NotFoundError, "file-none"),
    (lambda: jobs.retrieve("job-none"), openai.NotFoundError, "job-none"),
    (lambda: jobs.cancel(failed.id), openai.ConflictError, "failed"),
    (lambda: client.with_options(api_key="wrong").fine_tuning.jobs.list(), openai.AuthenticationError, "key"),
):
    try:
        refused()
    except kind as error:
        assert words in error.body["message"], error.body
    else:
        raise AssertionError(f"should have been refused with {words}")

for each in (file, pairs, broken):
    assert client.files.delete(each.id).deleted
print("ok")
