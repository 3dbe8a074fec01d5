"""Evaluations over REST and in the client: run, shown, their items read, two of them compared."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from moc.client import AsyncClient
from moc.client.evaluation_views import EvaluationView
from moc.kernel.errors import Conflict, Forbidden, InvalidRequest, NotFound
from moc.learning.evaluation import ITEMS_FILE
from moc.learning.scoring import ACCURACY, PERPLEXITY, Record, summed_up
from moc.security.identity import Role
from moc.security.key import KeyTerms
from tests.rest_stack import RestStack

EVALUATIONS = "/api/v1/evaluations"
ITEMS = [{"prompt": f"{number}?", "expected": str(number)} for number in range(6)]
SUITE: dict[str, Any] = {"name": "numbers", "tasks": [{"name": "t", "type": "exact_match", "items": ITEMS}]}


@pytest.fixture
async def client(rest_stack: RestStack) -> AsyncIterator[AsyncClient]:
    await rest_stack.load("echo")
    async with AsyncClient(rest_stack.rest.url, rest_stack.key) as made:
        yield made


async def done(
    stack: RestStack,
    client: AsyncClient,
    scores: Sequence[float | None],
    suite: dict[str, Any] = SUITE,
    digests: Sequence[str] = ("d",),
    metric: str = ACCURACY,
) -> EvaluationView:
    """An evaluation whose items came to that."""
    made = await client.evaluations.run("echo", suite, metadata={"who": "me"})
    program = await stack.programs.started(len(stack.programs.programs) + 1)
    records = [
        Record(task="t", id=str(at), score=score, got="x", error="" if score is not None else "late")
        for at, score in enumerate(scores)
    ]
    path = stack.jobs.folder(made["id"]) / ITEMS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(msgspec.json.encode(record) + b"\n" for record in records) + b'{"task": "t", "id')
    result = replace(summed_up(ACCURACY, records, seed=0), metric=metric)
    data = {"tasks": {"t": asdict(result)}, "digests": digests}
    program.end(0, metrics={"t/accuracy": result.score, "score": result.score}, data=data)
    await stack.jobs.wait(made["id"])
    return await client.evaluations.show(made["id"])


async def test_an_evaluation_is_run_and_shown(rest_stack: RestStack, client: AsyncClient) -> None:
    found = await done(rest_stack, client, [1, 1, 0, 1, None, 1])
    assert (found["status"], found["suite"], found["model"], found["score"]) == ("succeeded", "numbers", "echo@1", 0.8)
    assert (found["tasks"]["t"]["n"], found["tasks"]["t"]["errors"]) == (5, 1)
    assert found["metadata"] == {"who": "me"}
    order = rest_stack.programs.programs[-1].order
    assert (order.task["model"], found["digests"], found["warnings"]) == ("echo@1", ["d"], [])
    assert order.task["digests"] == [rest_stack.catalogue.entry("echo").version.digest]
    assert order.task["suite"]["tasks"][0]["items"][0] == {"prompt": "0?", "id": "", "expected": "0"}
    assert [each["id"] for each in (await client.evaluations.list())["items"]] == [found["id"]]


async def test_items_are_paged_and_chosen(rest_stack: RestStack, client: AsyncClient) -> None:
    found = await done(rest_stack, client, [1, 0, None, 1, 0, 1])
    first = await client.evaluations.items(found["id"], limit=4)
    rest = await client.evaluations.items(found["id"], after=first["next"], limit=4)
    assert [item["id"] for item in (*first["items"], *rest["items"])] == list("012345")
    assert rest["next"] is None
    wrong = await client.evaluations.items(found["id"], failed=True)
    assert [(item["id"], item["error"]) for item in wrong["items"]] == [("1", ""), ("2", "late"), ("4", "")]
    with pytest.raises(NotFound, match="has no task 'other'; there are t"):
        await client.evaluations.items(found["id"], task="other")


async def test_two_runs_of_a_suite_are_compared(rest_stack: RestStack, client: AsyncClient) -> None:
    first = await done(rest_stack, client, [0, 0, 0, 0, 0, 1])
    second = await done(rest_stack, client, [1, 1, 1, 1, None, 0])
    comparison = await client.evaluations.compare(first["id"], second["id"])
    compared = comparison["tasks"]["t"]
    assert (compared["a"], compared["b"]) == (0.2, 0.8)  # of the five that both have a score of
    assert comparison["warnings"] == ["t is compared by the 5 of 6 items that have a score in both"]
    assert (compared["n"], compared["only_a"], compared["only_b"], compared["test"]) == (5, 1, 4, "mcnemar")
    assert compared["difference"] == pytest.approx(0.6)
    assert compared["p_value"] == pytest.approx(0.375)


async def test_a_task_that_cannot_be_compared_is_named(
    rest_stack: RestStack, client: AsyncClient, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    rows = await client.files.add(tmp_path / "rows.jsonl", purpose="evals")
    task = {"name": "t", "type": "harness", "data": {"file": rows["id"]}, "config": {}}
    suite = {"name": "s", "tasks": [task]}
    runs = [await done(rest_stack, client, [None] * 6, suite, metric="f1") for _ in range(2)]
    assert (runs[0]["tasks"]["t"]["stderr"], runs[0]["tasks"]["t"]["ci95"]) == (None, None)
    found = await client.evaluations.compare(runs[0]["id"], runs[1]["id"])
    assert found["tasks"] == {}
    assert found["warnings"] == ["t is not compared: no scores of single items make up its f1 in both"]
    runs = [await done(rest_stack, client, scores, suite, metric="acc") for scores in ([0, 1], [1, 1])]
    found = await client.evaluations.compare(runs[0]["id"], runs[1]["id"])
    assert (found["tasks"]["t"]["difference"], found["warnings"]) == (0.5, [])


async def test_an_interval_of_few_items_is_warned_of(rest_stack: RestStack, client: AsyncClient) -> None:
    few = await done(rest_stack, client, [20, 30], metric=PERPLEXITY)
    assert few["warnings"] == [f"t of {few['id']} has 2 items, which is too few for its interval to be relied on"]
    enough = await done(rest_stack, client, [20.0] * 10, metric=PERPLEXITY)
    assert enough["warnings"] == []


async def test_what_several_versions_answered_is_told_of(rest_stack: RestStack, client: AsyncClient) -> None:
    first = await done(rest_stack, client, [1] * 6)
    second = await done(rest_stack, client, [1] * 6, digests=("d", "e"))
    assert second["warnings"] == [f"2 versions answered {second['id']}, as echo@1"]
    assert (await client.evaluations.compare(first["id"], second["id"]))["warnings"] == second["warnings"]
    assert (await client.evaluations.compare(first["id"], first["id"]))["warnings"] == []


async def test_runs_that_cannot_be_compared_are_not(rest_stack: RestStack, client: AsyncClient) -> None:
    first = await done(rest_stack, client, [1] * 6)
    other = {**SUITE, "tasks": [{**SUITE["tasks"][0], "items": ITEMS[:2]}]}
    second = await done(rest_stack, client, [1] * 2, other)
    with pytest.raises(Conflict, match="different suites"):
        await client.evaluations.compare(first["id"], second["id"])
    running = await client.evaluations.run("echo", SUITE)
    with pytest.raises(Conflict, match="have succeeded"):
        await client.evaluations.compare(first["id"], running["id"])


async def test_what_makes_no_sense_is_refused(rest_stack: RestStack, client: AsyncClient) -> None:
    with pytest.raises(NotFound, match="nobody"):
        await client.evaluations.run("nobody", SUITE)
    with pytest.raises(InvalidRequest, match=r"tasks\[0\]"):
        await client.evaluations.run("echo", {"name": "s", "tasks": [{"name": "t", "type": "exact_match"}]})
    task = {"name": "t", "type": "exact_match", "data": {"file": "file-none"}}
    with pytest.raises(NotFound, match="file-none"):
        await client.evaluations.run("echo", {"name": "s", "tasks": [task]})
    job = await client.jobs.submit("script", options={"command": ["true"]})
    with pytest.raises(NotFound, match="measures nothing"):
        await client.evaluations.show(job["id"])
    with pytest.raises(InvalidRequest, match="`after` is no id of a job"):
        await client.evaluations.list(after="zzz")


async def test_a_key_for_some_models_sees_their_evaluations(
    rest_stack: RestStack, client: AsyncClient, rest_client: httpx.AsyncClient
) -> None:
    found = await done(rest_stack, client, [1] * 6)
    terms = KeyTerms(role=Role.OPERATOR, models=("other",))
    token, _ = await rest_stack.keys.create(terms, actor="test")
    async with AsyncClient(rest_stack.rest.url, token) as limited:
        assert (await limited.evaluations.list())["items"] == []
        with pytest.raises(Forbidden):
            await limited.evaluations.show(found["id"])
        with pytest.raises(Forbidden):
            await limited.evaluations.run("echo", SUITE)
    got = await rest_client.get(f"{EVALUATIONS}/{found['id']}/items", params={"limit": 0})
    assert got.status_code == 400
