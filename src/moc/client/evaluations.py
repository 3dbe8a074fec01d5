"""Evaluations: what models are measured by, what came out, and two of them side by side."""

from collections.abc import Mapping
from typing import Any

from moc.client.calls import Call, get, page, part, post, view
from moc.client.connection import AsyncConnection, Connection
from moc.client.evaluation_views import ComparisonView, EvaluationItemView, EvaluationView
from moc.client.views import Page


class AsyncEvaluations:
    """Evaluations; the id of one is that of its job, so that `jobs.wait` waits for it."""

    def __init__(self, line: AsyncConnection) -> None:
        self._line = line

    async def run(self, model: str, suite: Mapping[str, Any], **terms: Any) -> EvaluationView:
        """Begin to measure a model; `suite` is what the YAML of one says, with `data` as `{"file": ID}`.

        `terms` are `priority`, `seed` and `metadata`.
        """
        return await self._line.send(_run(model, suite, terms))

    async def list(self, *, after: str | None = None, limit: int = 100) -> Page[EvaluationView]:
        """The evaluations there are, oldest first."""
        return await self._line.send(_list(after, limit))

    async def show(self, evaluation: str) -> EvaluationView:
        """One evaluation; NotFound when there is none."""
        return await self._line.send(_show(evaluation))

    async def items(
        self,
        evaluation: str,
        *,
        task: str | None = None,
        failed: bool = False,
        after: str | None = None,
        limit: int = 100,
    ) -> Page[EvaluationItemView]:
        """What came of its items; with `failed` only of those that were not right."""
        return await self._line.send(_items(evaluation, task, failed, after, limit))

    async def compare(self, a: str, b: str) -> ComparisonView:
        """How `b` differs from `a`, by task; Conflict unless both are done and of the same suite."""
        return await self._line.send(_compare(a, b))


class Evaluations:
    """Evaluations; the id of one is that of its job, so that `jobs.wait` waits for it."""

    def __init__(self, line: Connection) -> None:
        self._line = line

    def run(self, model: str, suite: Mapping[str, Any], **terms: Any) -> EvaluationView:
        """Begin to measure a model; `suite` is what the YAML of one says, with `data` as `{"file": ID}`.

        `terms` are `priority`, `seed` and `metadata`.
        """
        return self._line.send(_run(model, suite, terms))

    def list(self, *, after: str | None = None, limit: int = 100) -> Page[EvaluationView]:
        """The evaluations there are, oldest first."""
        return self._line.send(_list(after, limit))

    def show(self, evaluation: str) -> EvaluationView:
        """One evaluation; NotFound when there is none."""
        return self._line.send(_show(evaluation))

    def items(
        self,
        evaluation: str,
        *,
        task: str | None = None,
        failed: bool = False,
        after: str | None = None,
        limit: int = 100,
    ) -> Page[EvaluationItemView]:
        """What came of its items; with `failed` only of those that were not right."""
        return self._line.send(_items(evaluation, task, failed, after, limit))

    def compare(self, a: str, b: str) -> ComparisonView:
        """How `b` differs from `a`, by task; Conflict unless both are done and of the same suite."""
        return self._line.send(_compare(a, b))


def _run(model: str, suite: Mapping[str, Any], terms: Mapping[str, Any]) -> Call[EvaluationView]:
    return Call(post("/api/v1/evaluations", {**terms, "model": model, "suite": suite}), view)


def _list(after: str | None, limit: int) -> Call[Page[EvaluationView]]:
    return Call(get("/api/v1/evaluations", after=after, limit=limit), page("evaluations"))


def _show(evaluation: str) -> Call[EvaluationView]:
    return Call(get(_path(evaluation)), view)


def _items(
    evaluation: str, task: str | None, failed: bool, after: str | None, limit: int
) -> Call[Page[EvaluationItemView]]:
    wanted = get(f"{_path(evaluation)}/items", task=task, failed="true" if failed else None, after=after, limit=limit)
    return Call(wanted, page("items"))


def _compare(a: str, b: str) -> Call[ComparisonView]:
    return Call(get(f"{_path(a)}/compare/{part(b)}"), view)


def _path(evaluation: str) -> str:
    return f"/api/v1/evaluations/{part(evaluation)}"
