"""The program of evaluations: `python -m moc.workers.trainers.evaluate`."""

import asyncio
import hashlib
import shutil
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from moc.kernel.errors import MocError
from moc.learning.evaluation import ITEMS_FILE
from moc.learning.job import Reason
from moc.learning.scoring import (
    ACCURACY,
    LATENCY,
    PERPLEXITY,
    Record,
    TaskResult,
    likeliest,
    right,
    summed_up,
)
from moc.learning.suite import (
    Choice,
    Defaults,
    Harness,
    JsonSchema,
    Latency,
    MultipleChoice,
    Perplexity,
    Prompt,
    Question,
    Regex,
    Suite,
    Task,
    Text,
    items_of,
)
from moc.workers.trainers.assignment import Assignment, Failure, carry_out
from moc.workers.trainers.endpoint import Endpoint, Likelihood, Reply, is_hopeless
from moc.workers.trainers.records import Records
from moc.workers.trainers.report import Report

GOT_MAX = 4_000
"""How many characters of an answer are kept."""

ERRORS_SHARE_MAX = 0.2
"""What share of a task's items may fail."""

WARM_UP = Prompt(prompt="Hello", id="warm-up")
"""Asked before latencies are measured: whoever is first may wait for the model to be loaded."""

TELL_EVERY_S = 1.0
NEEDS: Mapping[type, str] = {JsonSchema: "jsonschema", Regex: "regex", Harness: "lm_eval"}
"""Libraries that only some tasks need."""

Measure = Callable[[Any], Awaitable[Record]]


def evaluate(assignment: Assignment) -> bool:
    """Go on with the evaluation that is assigned."""
    return asyncio.run(_evaluate(assignment))


async def _evaluate(assignment: Assignment) -> bool:
    task = assignment.task
    run = Run(
        Suite.parse(task["suite"]),
        {file_id: Path(path) for file_id, path in task["files"].items()},
        Endpoint.of_visitor(task["model"], lambda: assignment.stop.asked),
        assignment.report,
        folder=assignment.folder,
        seed=assignment.seed,
        digests=task["digests"],
    )
    working, stopping = asyncio.ensure_future(run.work()), asyncio.ensure_future(assignment.stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return False
        metrics, data = _told(await working)
        assignment.report.result(metrics, data={**data, "digests": run.answered_by()})
    finally:
        for one in (working, stopping):
            one.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)
        await run.aclose()
    return True


class Run:
    """A suite on its way, in the `folder` of its job. What an earlier attempt put there is not asked again.

    `digests` are of the versions that may answer, where that is known: what others answered is asked again.
    """

    def __init__(
        self,
        suite: Suite,
        paths: Mapping[str, Path],
        endpoint: Endpoint,
        report: Report,
        *,
        folder: Path,
        seed: int,
        digests: Collection[str] = (),
    ) -> None:
        self._suite = suite
        self._paths = paths
        self._endpoint = endpoint
        self._report = report
        self._folder = folder
        self._seed = seed
        self._digests = digests
        self._records = Records(folder / ITEMS_FILE, digests)
        self._answered_by: set[str] = set()
        self._total = self._done = 0
        self._told_at = 0.0

    async def work(self) -> dict[str, TaskResult]:
        """Measure all there is; what each task came to."""
        _check(self._suite)
        items = {task.name: self._items(task) for task in self._suite.tasks if not isinstance(task, Harness)}
        if len(items) == len(self._suite.tasks):  # how often the harness asks is not known before
            self._total = sum(map(len, items.values()))
        results = {}
        for task in self._suite.tasks:
            if isinstance(task, Harness):
                results[task.name] = await self._harness(task)
            else:
                results[task.name] = await self._task(task, items[task.name])
            self._report.message(f"{task.name}: {_line(results[task.name])}")
        self._tell({f"{name}/{result.metric}": result.score for name, result in results.items()})
        return results

    def answered_by(self) -> list[str]:
        """The digests of the versions that answered."""
        return sorted(self._answered_by | self._records.digests)

    async def aclose(self) -> None:
        """Close what is open."""
        await self._endpoint.aclose()
        self._records.close()

    def _items(self, task: Task) -> list[Any]:
        items = items_of(task, self._paths)
        if isinstance(task, Latency):
            again = msgspec.structs.replace
            return [again(item, id=f"{item.id}#{time}") for time in range(task.repeat) for item in items]
        return items

    async def _task(self, task: Task, items: Sequence[Any]) -> TaskResult:
        found = self._records.of(task.name)
        left = [item for item in items if item.id not in found]
        self._done += len(items) - len(left)
        measure, metric = self._measure(task)
        usual = 1 if isinstance(task, Latency) else self._suite.defaults.concurrency
        allowed = ERRORS_SHARE_MAX * len(items)
        failed: dict[str, Record] = {}

        async def ask(waiting: Iterator[Any]) -> None:
            for item in waiting:
                record = await _recorded(task.name, item, measure)
                await asyncio.to_thread(self._records.add, record)
                self._done += 1
                if record.error:
                    failed[item.id] = record
                    self._report.message(f"{task.name}, item {item.id}: {record.error}", level="warn")
                if len(failed) > allowed:
                    raise Failure(
                        Reason.PROGRAM_FAILED,
                        f"{len(failed)} of the {len(items)} items of {task.name} failed; the last: {record.error}",
                    )
                self._tell({})

        if isinstance(task, Latency) and left:
            await _recorded(task.name, WARM_UP, self._measure(msgspec.structs.replace(task, max_tokens=1))[0])
        waiting = iter(left)
        await _all_of([ask(waiting) for _ in range(min(len(left), task.concurrency or usual))])
        found = self._records.of(task.name)
        records = [found.get(item.id) or failed[item.id] for item in items]
        return await asyncio.to_thread(summed_up, metric, records, seed=self._seed)

    async def _harness(self, task: Harness) -> TaskResult:
        from moc.workers.trainers import harness

        answers = Records(self._folder / "output" / f"harness-{task.name}.jsonl", self._digests)
        way = harness.Way(
            endpoint=self._endpoint,
            loop=asyncio.get_running_loop(),
            answers=answers,
            concurrency=task.concurrency or self._suite.defaults.concurrency,
            errors_share=ERRORS_SHARE_MAX,
            told=self._went_on,
        )
        self._done += len(answers)
        rows = None if task.data is None else self._paths[task.data.file]
        scratch, seed = self._folder / "harness", self._seed
        try:
            return await asyncio.to_thread(harness.run, task, rows, way, self._records, scratch=scratch, seed=seed)
        finally:
            self._answered_by |= answers.digests
            answers.close()
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)

    def _went_on(self) -> None:
        self._done += 1
        self._tell({})

    def _measure(self, task: Task) -> tuple[Measure, str]:
        match task:
            case MultipleChoice():
                return lambda item: self._choose(task, item), ACCURACY
            case Perplexity():
                return self._read, PERPLEXITY
            case Latency():
                return lambda item: self._time(task, item), LATENCY
            case _:
                return lambda item: self._answer(task, item), ACCURACY

    async def _answer(self, task: Any, item: Question | Prompt) -> Record:
        reply = await self._endpoint.answer(
            _prompt(task, item, self._suite.defaults), _how(task, self._suite.defaults), chat=task.api == "chat"
        )
        expected = item.expected if isinstance(item, Question) else None
        score = float(await asyncio.to_thread(right, task, item, reply.text))
        return _of_reply(task.name, item, reply, score=score, expected=expected)

    async def _time(self, task: Latency, item: Prompt) -> Record:
        reply = await self._endpoint.timed(
            _prompt(task, item, self._suite.defaults), _how(task, self._suite.defaults), chat=task.api == "chat"
        )
        return _of_reply(task.name, item, reply, score=reply.latency_ms)

    async def _choose(self, task: MultipleChoice, item: Choice) -> Record:
        before = item.prompt + task.joiner
        # asked one after the other, the prompt is read once and kept by most engines
        found = [await self._endpoint.likelihood(before + choice, len(item.prompt)) for choice in item.choices]
        chosen = likeliest(task, item, [_sum(one) for one in found], [len(one.logprobs) for one in found])
        return Record(
            task=task.name,
            id=item.id,
            prompt_sha256=_digest(item.prompt),
            expected=item.choices[item.right],
            got=item.choices[chosen],
            score=float(chosen == item.right),
            logprobs=tuple(_sum(one) for one in found),
            latency_ms=sum(one.latency_ms for one in found),
            model=found[0].model,
            digest=found[0].digest,
        )

    async def _read(self, item: Text) -> Record:
        found = await self._endpoint.likelihood(item.text, 0)
        return Record(
            task="",
            id=item.id,
            prompt_sha256=_digest(item.text),
            score=-_sum(found),
            tokens=len(found.logprobs),
            latency_ms=found.latency_ms,
            model=found.model,
            digest=found.digest,
        )

    def _tell(self, metrics: Mapping[str, float]) -> None:
        now = time.monotonic()
        if metrics or now > self._told_at + TELL_EVERY_S:
            self._told_at = now
            self._report.metrics(self._done, metrics, total_steps=self._total)


def _check(suite: Suite) -> None:
    """Before any task is begun: ModuleNotFoundError when one needs what is not here."""
    for task in suite.tasks:
        library = NEEDS.get(type(task))
        if library is not None and find_spec(library) is None:
            raise ModuleNotFoundError(name=library)


async def _recorded(task: str, item: Any, measure: Measure) -> Record:
    """What came of an item, an error too unless others would meet the same."""
    try:
        return msgspec.structs.replace(await measure(item), task=task)
    except MocError as error:
        if is_hopeless(error):
            raise
        return Record(task=task, id=item.id, error=error.message[:GOT_MAX])


async def _all_of(works: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Do them together; the first error ends all."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


def _prompt(task: Any, item: Question | Prompt, defaults: Defaults) -> Any:
    system = defaults.system if task.system is None else task.system
    if task.api == "completion" or not system:
        return item.prompt
    asked = [{"role": "user", "content": item.prompt}] if isinstance(item.prompt, str) else item.prompt
    return [{"role": "system", "content": system}, *asked]


def _how(task: Any, defaults: Defaults) -> dict[str, Any]:
    how: dict[str, Any] = {
        "max_tokens": task.max_tokens or defaults.max_tokens,
        "temperature": defaults.temperature if task.temperature is None else task.temperature,
        "seed": defaults.seed if task.seed is None else task.seed,
    }
    if task.stop:
        how["stop"] = list(task.stop)
    if isinstance(task, JsonSchema) and task.constrain:
        how["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": task.schema}}
    return how


def _of_reply(task: str, item: Prompt | Question, reply: Reply, *, score: float, expected: Any = None) -> Record:
    return Record(
        task=task,
        id=item.id,
        prompt_sha256=_digest(item.prompt),
        expected=expected,
        got=reply.text[:GOT_MAX],
        score=score,
        tokens=reply.tokens,
        first_token_ms=reply.first_token_ms,
        latency_ms=reply.latency_ms,
        model=reply.model,
        digest=reply.digest,
    )


def _sum(found: Likelihood) -> float:
    return sum(found.logprobs)


def _digest(prompt: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(prompt)).hexdigest()


def _line(result: TaskResult) -> str:
    within = "" if result.ci95 is None else " ({:.4g} to {:.4g})".format(*result.ci95)
    return f"{result.metric} {result.score:.4g}{within} of {result.n}"


def _told(results: Mapping[str, TaskResult]) -> tuple[dict[str, float], dict[str, Any]]:
    metrics = {f"{name}/{result.metric}": result.score for name, result in results.items()}
    accuracies = [result.score for result in results.values() if result.metric == ACCURACY]
    if accuracies:
        metrics["score"] = sum(accuracies) / len(accuracies)
    return metrics, {"tasks": {name: asdict(result) for name, result in results.items()}}


if __name__ == "__main__":
    carry_out(evaluate)
