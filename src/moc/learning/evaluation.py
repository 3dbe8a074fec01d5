"""Jobs of the type `evaluate`: a suite put to a model through the public API."""

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from moc.kernel.errors import InvalidRequest, NotFound
from moc.learning.files import Files
from moc.learning.job import Job, JobSpec, Outcome
from moc.learning.ports import Prepared
from moc.learning.suite import Suite, check_items

OPTIONS = frozenset({"suite"})
ITEMS_FILE = Path("output/items.jsonl")
"""Where in a job's folder its items are, a `scoring.Record` a line; the last of an item is what counts."""


class Evaluation:
    """Implements `Kind`. Its option `suite` is what `Suite.parse` takes.

    `answerers` are the versions behind a reference, each with its digest, which is empty until it has been pulled; none
    when there is no such model.
    """

    def __init__(self, *, files: Files, answerers: Callable[[str], Mapping[str, str]]) -> None:
        self._files = files
        self._answerers = answerers

    async def check(self, spec: JobSpec) -> JobSpec:
        """See `Kind.check`. The model is the version that its name means now; an alias of several stays as it is."""
        if not spec.model:
            raise InvalidRequest("an evaluation has a `model`: a name, a version or an alias")
        answerers = self._answerers(spec.model)
        if not answerers:
            raise NotFound(f"there is no model {spec.model[:128]!r}; `moc models list` shows those there are")
        unknown = sorted(spec.options.keys() - OPTIONS)
        if unknown or "suite" not in spec.options:
            raise InvalidRequest(f"an evaluation has the option `suite`, not {unknown[0]!r}" if unknown else _NO_SUITE)
        suite = Suite.parse(spec.options["suite"])
        for file_id in suite.files:
            self._files.show(file_id)
        model = spec.model if len(answerers) > 1 else next(iter(answerers))
        return replace(spec, model=model, options={"suite": msgspec.to_builtins(suite)})

    async def prepare(self, job: Job, folder: Path) -> Prepared:
        """See `Kind.prepare`."""
        suite = Suite.parse(job.spec.options["suite"])
        paths = {file_id: self._files.path(file_id) for file_id in suite.files}
        names = {file_id: self._files.show(file_id).filename for file_id in suite.files}
        await asyncio.to_thread(check_items, suite, paths, names)
        digests = [*self._answerers(job.spec.model).values()]
        return Prepared(
            task={
                "model": job.spec.model,
                "suite": job.spec.options["suite"],
                "files": {file_id: str(path) for file_id, path in paths.items()},
                "digests": digests if all(digests) else [],
            },
            data_digest=self._digest(suite),
            visits=True,
        )

    async def finish(self, job: Job, prepared: Prepared, told: Mapping[str, Any], folder: Path) -> Outcome:
        """What each task came to in `data`, with the digests of what was measured by and of those that answered."""
        data = dict(told.get("data") or {})
        suite = prepared.task["suite"]["name"]
        return Outcome(
            metrics=dict(told.get("metrics") or {}),
            data={
                "tasks": data.get("tasks", {}),
                "suite": suite,
                "suite_digest": prepared.data_digest,
                "digests": data.get("digests", []),
            },
        )

    def _digest(self, suite: Suite) -> str:
        document = suite.with_contents({file_id: self._files.show(file_id).sha256 for file_id in suite.files})
        return f"sha256:{hashlib.sha256(msgspec.json.encode(document, order='sorted')).hexdigest()}"


_NO_SUITE = "an evaluation has the option `suite`; see docs/reference/suites.md"
