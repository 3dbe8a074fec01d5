"""Jobs over REST: the native routes, and those of OpenAI's fine-tuning."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from moc.client import AsyncClient
from moc.learning.job import JobState
from moc.security.identity import Role
from moc.security.key import KeyTerms
from moc.testing.programs import FakeProgram
from tests.rest_stack import RestStack

JOBS = "/api/v1/jobs"
TUNING = "/v1/fine_tuning/jobs"
WISH: dict[str, Any] = {
    "type": "sft",
    "model": "smollm2",
    "name": "zorblax",
    "training_file": "file-1",
    "hyperparameters": {"epochs": 3},
    "seed": 7,
    "priority": 3,
    "memory": "1MiB",
    "metadata": {"who": "me"},
}
SCRIPT = {"type": "script", "options": {"command": ["true"]}}


@pytest.fixture
async def client(rest_stack: RestStack) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(rest_stack.rest.url, rest_stack.key) as made:
        yield made


async def in_state(stack: RestStack, job_id: str, state: JobState) -> None:
    """Wait until a job is so."""
    async with asyncio.timeout(10):
        async for _ in stack.jobs.follow(job_id):
            if stack.jobs.show(job_id).state is state:
                return


async def running(stack: RestStack, client: httpx.AsyncClient, wish: dict[str, Any] = WISH) -> tuple[str, FakeProgram]:
    """A job that runs, and its program."""
    count = len(stack.programs.programs)
    job = (await client.post(JOBS, json=wish)).json()
    program = await stack.programs.started(count + 1)
    await in_state(stack, job["id"], JobState.RUNNING)
    return job["id"], program


async def test_a_job_is_submitted_followed_and_done(rest_stack: RestStack, rest_client: httpx.AsyncClient) -> None:
    got = await rest_client.post(JOBS, json=WISH)
    assert got.status_code == 201
    job = got.json()
    told = (job["type"], job["name"], job["status"], job["priority"], job["memory_bytes"], job["seed"])
    assert told == ("supervised", "zorblax", "validating", 3, 2**20, 7)
    program = await rest_stack.programs.started()
    program.tell(type="metrics", step=1, total_steps=2, eta_s=3.0, metrics={"train_loss": 1.5})
    program.tell(type="message", message="half way")
    program.log = "one\ntwo\n"
    program.end(0, metrics={"train_loss": 1.0}, data={"rows": 4})
    events = []
    async with rest_client.stream("GET", f"{JOBS}/{job['id']}/events?follow=true") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            events.append(line.removeprefix("data: ")) if line.startswith("data: ") else None
    assert events.pop() == "[DONE]"
    views = [json.loads(event) for event in events]
    assert [view["number"] for view in views] == [*range(1, len(views) + 1)]
    assert [view["data"] for view in views if view["type"] == "metrics"] == [
        {"step": 1, "total_steps": 2, "train_loss": 1.5}
    ]
    done = (await rest_client.get(f"{JOBS}/{job['id']}")).json()
    assert (done["status"], done["outcome"]["model"], done["outcome"]["data"]) == (
        "succeeded",
        "zorblax@1",
        {"rows": 4},
    )
    assert (done["progress"]["step"], done["progress"]["total_steps"]) == (1, 2)
    assert [attempt["number"] for attempt in done["attempts"]] == [1]
    assert done["finished_at"] > done["started_at"] > done["created_at"]
    listed = (await rest_client.get(f"{JOBS}/{job['id']}/events?after=2&limit=1")).json()
    assert ([event["number"] for event in listed["events"]], listed["next"]) == ([3], 3)
    assert (await rest_client.get(f"{JOBS}/{job['id']}/logs?tail_bytes=4")).json() == {"log": "two\n"}
    assert (await rest_client.get(f"{JOBS}/{job['id']}/logs?attempt=2")).status_code == 404
    assert (await rest_client.delete(f"{JOBS}/{job['id']}")).status_code == 204
    assert (await rest_client.get(f"{JOBS}/{job['id']}")).status_code == 404
    assert (await rest_client.get(JOBS)).json() == {"jobs": [], "next": None}


async def test_a_job_is_paused_resumed_and_cancelled(rest_stack: RestStack, rest_client: httpx.AsyncClient) -> None:
    job_id, program = await running(rest_stack, rest_client)
    assert (await rest_client.post(f"{JOBS}/{job_id}/pause")).json()["wish"] == "pause"
    await in_state(rest_stack, job_id, JobState.PAUSED)
    assert program.interrupts == 1
    paused = (await rest_client.get(f"{JOBS}?status=paused&type=sft")).json()["jobs"]
    assert [(job["id"], job["reason"]) for job in paused] == [(job_id, "Requested")]
    assert (await rest_client.delete(f"{JOBS}/{job_id}")).status_code == 409
    assert (await rest_client.post(f"{JOBS}/{job_id}/resume")).json()["status"] == "queued"
    await rest_stack.programs.started(2)
    await rest_client.post(f"{JOBS}/{job_id}/cancel")
    await rest_stack.jobs.wait(job_id)
    again = await rest_client.post(f"{JOBS}/{job_id}/cancel")
    assert (again.status_code, again.json()["status"]) == (200, "cancelled")
    assert (await rest_client.post(f"{JOBS}/{job_id}/resume")).status_code == 409


async def test_a_job_that_is_asked_for_twice_is_one(rest_client: httpx.AsyncClient) -> None:
    headers = {"idempotency-key": "once"}
    first, second = [(await rest_client.post(JOBS, json=WISH, headers=headers)).json() for _ in range(2)]
    assert first["id"] == second["id"]
    other = await rest_client.post(JOBS, json={**WISH, "seed": 8}, headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "conflict")


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"type": "reinforcement"}, "known are supervised, dpo, evaluate, tune, script"),
        ({"type": "sft", "sead": 1}, "sead"),
        ({"type": "sft", "result": "gguf"}, "`$.result`; there are adapter, merged"),
        ({"type": "script", "priority": 11}, "1 (highest) to 10"),
        ({"type": "script", "memory": "1GiB", "memory_bytes": 1}, "either"),
        ({"type": "script", "memory": "lots"}, "lots"),
        ({"type": "sft", "name": "n" * 201}, "longer"),
        ({"type": "sft", "model": "smollm2"}, "needs a `name`"),
        ({"type": "dpo", "name": ""}, "needs a `name`"),
        ({"type": "script", "metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"type": "sft", "parent": "job-none"}, "job-none"),
    ],
)
async def test_what_cannot_be_right_is_refused(
    rest_client: httpx.AsyncClient, wish: dict[str, Any], words: str
) -> None:
    answer = await rest_client.post(JOBS, json=wish)
    assert answer.status_code in (400, 404)
    assert words in answer.json()["error"]["message"]


async def test_a_job_too_large_to_be_described_is_refused(rest_client: httpx.AsyncClient) -> None:
    answer = await rest_client.post(JOBS, json={**WISH, "options": {"suite": "x" * 2**20}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


async def test_only_a_search_prunes(rest_stack: RestStack, rest_client: httpx.AsyncClient) -> None:
    alone = (await rest_client.post(JOBS, json=SCRIPT)).json()["id"]
    assert (await rest_client.post(f"{JOBS}/{alone}/cancel?pruned=true")).status_code == 400
    parent, _ = await running(rest_stack, rest_client, {"type": "tune", "name": "best", "model": "smollm2"})
    trial, _ = await running(rest_stack, rest_client, {**SCRIPT, "parent": parent})
    await rest_client.post(f"{JOBS}/{trial}/cancel?pruned=true")
    await rest_stack.jobs.wait(trial)
    children = (await rest_client.get(f"{JOBS}?parent={parent}")).json()["jobs"]
    assert [(job["status"], job["reason"]) for job in children] == [("cancelled", "Pruned")]


async def test_a_key_for_some_models_sees_only_jobs_about_them(
    rest_stack: RestStack, rest_client: httpx.AsyncClient
) -> None:
    theirs = (await rest_client.post(JOBS, json=WISH)).json()["id"]
    other = (await rest_client.post(JOBS, json={**WISH, "name": "other"})).json()["id"]
    script = (await rest_client.post(JOBS, json=SCRIPT)).json()["id"]
    terms = KeyTerms(role=Role.OPERATOR, models=("smollm2", "zorblax"))
    token, _ = await rest_stack.keys.create(terms, actor="test")
    headers = {"authorization": f"Bearer {token}"}
    seen = (await rest_client.get(JOBS, headers=headers)).json()["jobs"]
    assert [job["id"] for job in seen] == [theirs]
    for job_id, status in ((theirs, 200), (other, 403), (script, 403)):
        for verb in ("", "/events", "/logs", "/checkpoints"):
            assert (await rest_client.get(f"{JOBS}/{job_id}{verb}", headers=headers)).status_code == status
        assert (await rest_client.post(f"{JOBS}/{job_id}/pause", headers=headers)).status_code == status
    for wish in (SCRIPT, {**SCRIPT, "model": "zorblax"}, {**WISH, "name": "other"}, {**WISH, "parent": other}):
        assert (await rest_client.post(JOBS, json=wish, headers=headers)).status_code == 403


async def test_changes_are_in_the_audit(rest_client: httpx.AsyncClient) -> None:
    job_id = (await rest_client.post(JOBS, json=WISH)).json()["id"]
    for verb in ("pause", "resume", "cancel"):
        await rest_client.post(f"{JOBS}/{job_id}/{verb}")
    written = (await rest_client.get("/api/v1/audit")).json()["audit"]
    found = [(deed["operation"], deed["subject"]) for deed in written if deed["operation"].startswith("jobs.")]
    assert found == [(f"jobs.{verb}", job_id) for verb in ("submit", "pause", "resume", "cancel")]


async def test_the_client_says_the_same(rest_stack: RestStack, client: AsyncClient) -> None:
    job = await client.jobs.submit("sft", model="smollm2", name="zorblax", training_file="file-1", memory=None)
    program = await rest_stack.programs.started()
    program.log = "said"
    program.end(0)
    async with await client.jobs.follow(job["id"]) as events:
        numbers = [event["number"] async for event in events]
    page = await client.jobs.events(job["id"], after=1, limit=2)
    assert [event["number"] for event in page["items"]] == numbers[1:3]
    assert (await client.jobs.wait(job["id"]))["status"] == "succeeded"
    assert (await client.jobs.list(status="succeeded"))["items"] == [await client.jobs.show(job["id"])]
    assert await client.jobs.logs(job["id"]) == "said"
    assert await client.jobs.checkpoints(job["id"]) == []
    await client.jobs.remove(job["id"])
    again = [await client.jobs.submit("script", idempotency_key="k", options={"command": ["x"]}) for _ in range(2)]
    assert again[0]["id"] == again[1]["id"]
    await client.jobs.pause(again[0]["id"])
    assert (await client.jobs.resume(again[0]["id"]))["wish"] == ""
    await client.jobs.cancel(again[0]["id"])
    assert (await client.jobs.wait(again[0]["id"]))["status"] == "cancelled"


FINE_TUNING = {
    "model": "smollm2",
    "training_file": "file-1",
    "suffix": "zorblax",
    "seed": 5,
    "metadata": {"who": "me"},
    "method": {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 2, "beta": 0.2}}},
}


async def test_a_training_as_openai_has_it(rest_stack: RestStack, rest_client: httpx.AsyncClient) -> None:
    job = (await rest_client.post(TUNING, json=FINE_TUNING)).json()
    assert (job["object"], job["status"], job["model"]) == ("fine_tuning.job", "validating_files", "smollm2")
    given = {"n_epochs": 2, "beta": 0.2, "batch_size": "auto", "learning_rate_multiplier": "auto"}
    assert job["method"] == {"type": "dpo", "dpo": {"hyperparameters": given}}
    assert (job["hyperparameters"]["n_epochs"], job["seed"], job["metadata"]) == (2, 5, {"who": "me"})
    nothing = ("error", "fine_tuned_model", "finished_at", "trained_tokens", "validation_file", "estimated_finish")
    assert [job[name] for name in nothing] == [None] * len(nothing)
    program = await rest_stack.programs.started()
    (rest_stack.data_dir / "jobs" / job["id"] / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    program.tell(type="metrics", step=4, total_steps=4, eta_s=60, metrics={"train_loss": 0.5})
    program.tell(type="checkpoint", name="checkpoint-4", step=4, metrics={"train_loss": 0.5})
    async with asyncio.timeout(10):
        async for event in rest_stack.jobs.follow(job["id"]):
            if "checkpoint-4" in event.message:
                break
    assert (await rest_client.get(f"{TUNING}/{job['id']}")).json()["estimated_finish"] > job["created_at"]
    (checkpoint,) = (await rest_client.get(f"{TUNING}/{job['id']}/checkpoints")).json()["data"]
    assert (checkpoint["step_number"], checkpoint["metrics"]) == (4, {"step": 4, "train_loss": 0.5})
    program.end(0, trained_tokens=11)
    await rest_stack.jobs.wait(job["id"])
    done = (await rest_client.get(f"{TUNING}/{job['id']}")).json()
    assert (done["status"], done["fine_tuned_model"]) == ("succeeded", "ft-smollm2-zorblax@1")
    assert done["finished_at"] >= done["created_at"]


async def test_what_a_training_is_done_with_is_shown_once_its_files_are_read(
    rest_stack: RestStack, rest_client: httpx.AsyncClient
) -> None:
    used = {"epochs": 3.0, "batch_size": 4, "learning_rate_multiplier": 1.0, "learning_rate": 2e-4}
    rest_stack.kind.task = {"hyperparameters": used}
    job = (await rest_client.post(TUNING, json={**FINE_TUNING, "method": None, "suffix": None})).json()
    assert job["hyperparameters"]["n_epochs"] == "auto"
    (await rest_stack.programs.started()).end(0)
    assert (await rest_stack.jobs.wait(job["id"])).state is JobState.SUCCEEDED
    done = (await rest_client.get(f"{TUNING}/{job['id']}")).json()
    openai = {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.0}
    assert (done["hyperparameters"], done["fine_tuned_model"]) == (openai, "ft-smollm2@1")
    assert done["method"]["supervised"]["hyperparameters"] == {**openai, "learning_rate": 2e-4}
    assert (await rest_client.get(f"{JOBS}/{job['id']}")).json()["hyperparameters"] == used


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"hyperparameters": {"n_epochs": 1}}, "method.dpo.hyperparameters.n_epochs"),
        ({"method": {"type": "dpo", "supervised": {}}}, "method.supervised"),
        ({"method": {"type": "dpo", "dpo": []}}, "method.dpo"),
        ({"method": {"type": "dpo", "dpo": {"beta": 1}}}, "method.dpo.beta"),
        ({"epochs": 3}, "epochs"),
        ({"suffix": "a b"}, "suffix"),
    ],
)
async def test_what_openai_would_refuse_is_refused(
    rest_client: httpx.AsyncClient, changes: dict[str, Any], param: str
) -> None:
    got = await rest_client.post(TUNING, json={**FINE_TUNING, **changes})
    assert (got.status_code, got.json()["error"]["param"]) == (400, param)


async def test_only_trainings_are_fine_tuning_jobs_and_pages_begin_at_what_is_there(
    rest_client: httpx.AsyncClient,
) -> None:
    other = (await rest_client.post("/api/v1/jobs", json={"type": "script"})).json()["id"]
    for verb in ("cancel", "pause", "resume"):
        assert (await rest_client.post(f"{TUNING}/{other}/{verb}")).status_code == 404
    assert (await rest_client.get(f"{TUNING}/{other}/events")).status_code == 404
    mine = (await rest_client.post(TUNING, json=FINE_TUNING)).json()["id"]
    for path in (TUNING, f"{TUNING}/{mine}/events", f"{TUNING}/{mine}/checkpoints", "/v1/files"):
        refused = await rest_client.get(path, params={"after": "gone.1"})
        assert (refused.status_code, "names none that is here" in refused.text) == (404, True)


async def test_who_removes_jobs_page_by_page_sees_each(rest_stack: RestStack, rest_client: httpx.AsyncClient) -> None:
    made = [(await rest_client.post(JOBS, json={"type": "script"})).json()["id"] for _ in range(3)]
    for job_id in made:
        await rest_client.post(f"{JOBS}/{job_id}/cancel")
        await rest_stack.jobs.wait(job_id)
    page = (await rest_client.get(JOBS, params={"limit": 2})).json()
    assert (await rest_client.delete(f"{JOBS}/{page['next']}")).status_code in {200, 204}
    rest = (await rest_client.get(JOBS, params={"limit": 2, "after": page["next"]})).json()
    assert [job["id"] for job in rest["jobs"]] == made[2:]
    for path in (JOBS, "/api/v1/evaluations"):
        refused = await rest_client.get(path, params={"after": "zzz"})
        assert (refused.status_code, refused.json()["error"]["details"]["param"]) == (400, "after")


async def test_events_come_newest_first_in_pages(rest_stack: RestStack, rest_client: httpx.AsyncClient) -> None:
    job_id = (await rest_client.post(TUNING, json=FINE_TUNING)).json()["id"]
    (await rest_stack.programs.started()).end(0)
    await rest_stack.jobs.wait(job_id)
    found: list[dict[str, Any]] = []
    page: dict[str, Any] = {"has_more": True}
    while page["has_more"]:
        after = f"&after={found[-1]['id']}" if found else ""
        page = (await rest_client.get(f"{TUNING}/{job_id}/events?limit=2{after}")).json()
        assert 0 < len(page["data"]) <= 2
        found += page["data"]
    count = rest_stack.jobs.show(job_id).event_count
    assert [event["id"] for event in found] == [f"{job_id}.{number}" for number in range(count, 0, -1)]
    assert {event["type"] for event in found} == {"message"}


async def test_trainings_are_listed_newest_first(rest_client: httpx.AsyncClient) -> None:
    made = [(await rest_client.post(TUNING, json={**FINE_TUNING, "suffix": n})).json()["id"] for n in "abc"]
    await rest_client.post(JOBS, json=SCRIPT)
    other = {key: value for key, value in FINE_TUNING.items() if key != "metadata"}
    made.append((await rest_client.post(TUNING, json=other)).json()["id"])
    page = (await rest_client.get(f"{TUNING}?limit=2")).json()
    assert ([job["id"] for job in page["data"]], page["has_more"]) == ([made[3], made[2]], True)
    rest = (await rest_client.get(f"{TUNING}?after={made[2]}")).json()
    assert ([job["id"] for job in rest["data"]], rest["has_more"]) == ([made[1], made[0]], False)
    mine = (await rest_client.get(TUNING, params={"metadata[who]": "me"})).json()["data"]
    assert [job["id"] for job in mine] == made[2::-1]


async def test_openais_words_move_a_job(rest_stack: RestStack, rest_client: httpx.AsyncClient) -> None:
    job_id = (await rest_client.post(TUNING, json={**FINE_TUNING, "method": None})).json()["id"]
    await rest_stack.programs.started()
    await rest_client.post(f"{TUNING}/{job_id}/pause")
    await in_state(rest_stack, job_id, JobState.PAUSED)
    assert (await rest_client.post(f"{TUNING}/{job_id}/resume")).json()["status"] == "queued"
    (await rest_stack.programs.started(2)).end(1)
    failed = await rest_stack.jobs.wait(job_id)
    error = (await rest_client.get(f"{TUNING}/{job_id}")).json()["error"]
    assert error == {"code": "ProgramFailed", "message": failed.message, "param": None}
    assert (await rest_client.post(f"{TUNING}/{job_id}/cancel")).status_code == 409


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": {"type": "reinforcement"}}, "supervised and dpo"),
        ({"integrations": [{"type": "wandb"}]}, "integrations"),
        ({"training_file": None}, "training_file"),
    ],
)
async def test_a_training_that_cannot_be_is_refused(
    rest_client: httpx.AsyncClient, change: dict[str, Any], words: str
) -> None:
    answer = await rest_client.post(TUNING, json={**FINE_TUNING, **change})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert words in error["message"]


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x"])
async def test_a_page_that_cannot_be_is_refused(rest_client: httpx.AsyncClient, query: str) -> None:
    assert (await rest_client.get(f"{TUNING}?{query}")).json()["error"]["param"] == "limit"


async def test_what_fine_tunes_nothing_is_no_training(rest_client: httpx.AsyncClient) -> None:
    job_id = (await rest_client.post(JOBS, json=SCRIPT)).json()["id"]
    assert (await rest_client.get(f"{TUNING}/{job_id}")).status_code == 404
