"""The trials of a search, asked for through the API as its program does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from moc.client.async_client import AsyncClient
from moc.kernel.errors import NotFound
from moc.learning.job import JobState, Reason
from moc.workers.trainers.assignment import Away
from moc.workers.trainers.trials import Trials
from tests.coordinator import free_port
from tests.rest_stack import RestStack

BASE: dict[str, Any] = {
    "type": "script",
    "options": {"command": ["train"]},
    "hyperparameters": {"epochs": 2, "rate": 1},
    "metadata": {"by": "me"},
}


@pytest.fixture
async def client(rest_stack: RestStack) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(rest_stack.rest.url, rest_stack.key) as made:
        yield made


@pytest.fixture
async def search(client: AsyncClient, rest_stack: RestStack) -> str:
    """A job that runs, for trials to belong to."""
    job = await client.jobs.submit("tune")
    await rest_stack.programs.started()
    return job["id"]


async def test_a_trial_is_a_job_of_the_search_and_asked_for_once(client: AsyncClient, search: str) -> None:
    trials = Trials(client, search=search, base=BASE)
    first = await trials.submit(0, {"rate": 0.5})
    again = await Trials(client, search=search, base=BASE).submit(0, {"rate": 0.5})
    second = await trials.submit(1, {"rate": 0.5})
    assert first == again != second
    job = await trials.show(first)
    assert (job["parent"], job["metadata"]) == (search, {"by": "me", "trial": "0"})
    assert job["hyperparameters"] == {"epochs": 2, "rate": 0.5}
    with pytest.raises(NotFound):
        await trials.show("job-0")


async def test_a_trial_asked_for_with_another_key_is_the_same(
    client: AsyncClient, search: str, rest_stack: RestStack
) -> None:
    first = await Trials(client, search=search, base=BASE).submit(0, {})
    made = await client.keys.create("operator", name="other")
    async with AsyncClient(rest_stack.rest.url, made["token"]) as other:
        assert await Trials(other, search=search, base=BASE).submit(0, {}) == first


async def test_a_trial_is_followed_to_its_end(client: AsyncClient, search: str, rest_stack: RestStack) -> None:
    trials = Trials(client, search=search, base=BASE)
    job_id = await trials.submit(0, {})
    program = await rest_stack.programs.started(2)
    told = []
    async with aclosing(trials.follow(job_id)) as events:
        async for event in events:
            told.append(event)
            if event["message"] == "The job is running":
                program.tell(type="metrics", step=1, metrics={"valid_loss": 0.5})
            if event["type"] == "metrics":
                program.end(0, metrics={"valid_loss": 0.25})
    assert [event["number"] for event in told] == list(range(1, len(told) + 1))
    assert [event["data"]["valid_loss"] for event in told if event["type"] == "metrics"] == [0.5]
    assert (await trials.show(job_id))["status"] == JobState.SUCCEEDED


async def test_a_trial_is_pruned_and_no_error_when_it_has_ended(client: AsyncClient, search: str) -> None:
    trials = Trials(client, search=search, base=BASE)
    job_id = await trials.submit(0, {})
    await trials.prune(job_id)
    async with aclosing(trials.follow(job_id)) as events:
        assert [event async for event in events]
    job = await trials.show(job_id)
    assert (job["status"], job["reason"]) == (JobState.CANCELLED, Reason.PRUNED)
    await trials.prune(job_id)


async def test_pruning_one_that_succeeded_meanwhile_is_no_error(
    client: AsyncClient, search: str, rest_stack: RestStack
) -> None:
    trials = Trials(client, search=search, base=BASE)
    job_id = await trials.submit(0, {})
    (await rest_stack.programs.started(2)).end(0, metrics={})
    async with asyncio.timeout(30):
        await rest_stack.jobs.wait(job_id)
    await trials.prune(job_id)
    assert (await trials.show(job_id))["status"] == JobState.SUCCEEDED


async def test_a_coordinator_that_stays_away_ends_the_program() -> None:
    async with AsyncClient(f"http://127.0.0.1:{free_port()}", "key") as client:
        with pytest.raises(Away, match="no coordinator answers"):
            await Trials(client, search="job-0", base=BASE, away_max_s=0).submit(0, {})
