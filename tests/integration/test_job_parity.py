"""The protocols agree about jobs."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.askers import Asker
from tests.parity import House, asked, open_house, refusal, refused


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as opened:
        yield opened


async def job_in_stages(asker: Asker) -> list[Any]:
    """A job that is never prepared, from its submission to its end."""
    wish = {"type": "dpo", "model": "echo", "name": "new", "hyperparameters": {"epochs": 3, "beta": 0.5}, "seed": 3}
    job = await asker.submit({**wish, "memory": "1MiB", "priority": 2, "metadata": {"a": "b"}})
    return [
        job,
        await asker.job(job.id, "pause"),
        await asker.job(job.id, "resume"),
        await asker.job(job.id),
        await asker.job(job.id, "cancel"),
        await asker.job(job.id, "cancel"),
        await asker.job_events(job.id),
    ]


async def test_jobs_are_submitted_and_changed_alike(house: House) -> None:
    house.stack.kind.gate.clear()
    *stages, events = await asked(house.askers, job_in_stages)
    told = [(stage["status"], stage.get("wish", "")) for stage in stages]
    waiting = ("validating", "")
    assert told == [waiting, ("validating", "pause"), waiting, waiting, ("cancelled", ""), ("cancelled", "")]
    assert (stages[0]["hyperparameters"], stages[0]["metadata"]) == ({"epochs": 3, "beta": 0.5}, {"a": "b"})
    assert [event["number"] for event in events] == [str(n) for n in range(1, len(events) + 1)]
    jobs = await asked(house.askers, lambda asker: asker.jobs(status="cancelled", type="dpo"))
    assert len(jobs["jobs"]) == 3
    assert await asked(house.askers, lambda asker: asker.jobs(status="running")) == {}


async def test_a_job_asked_for_twice_is_one_alike(house: House) -> None:
    wish = {"type": "script", "options": {"command": ["true"]}}
    found = [(await asker.on(idempotency_key="k").submit(wish)).id for asker in (*house.askers, *house.askers)]
    assert len(set(found)) == 1


async def test_jobs_are_refused_alike(house: House) -> None:
    for ask in (
        lambda asker: asker.submit({"type": "reinforcement"}),
        lambda asker: asker.submit({"type": "script", "priority": 0}),
        lambda asker: asker.submit({"type": "script", "memory": "lots"}),
        lambda asker: asker.jobs(status="bored"),
    ):
        assert await refused(house, ask) == "invalid_request"
    for verb in ("", "pause", "resume", "cancel"):
        assert await refused(house, lambda asker: asker.job("job-none", verb)) == "not_found"  # noqa: B023
    assert await refused(house, lambda asker: asker.job_events("job-none")) == "not_found"


async def test_who_chose_what_there_is_not_is_told_what_there_is_everywhere(house: House) -> None:
    for asker in house.askers:
        code, words, _ = await refusal(asker.submit({"type": "sft", "name": "new", "result": "gguf"}))
        assert code == "invalid_request"
        assert words.endswith("`$.result`; there are adapter, merged")
