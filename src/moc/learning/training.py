"""Trainings: jobs that end in a version of a model."""

import asyncio
import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from moc.kernel.errors import InvalidRequest, Unimplemented
from moc.learning import dataset
from moc.learning.files import Files
from moc.learning.hyperparameters import check_effects, complete, resolved
from moc.learning.job import Job, JobSpec, JobType, Outcome
from moc.learning.ports import Base, Prepared, Registry, Trained
from moc.learning.rows import Format

RESULTS = ("adapter", "merged")
SEED_MAX = 2**32 - 1
FORMATS = {
    JobType.SUPERVISED: frozenset({Format.CHAT, Format.TEXT}),
    JobType.DPO: frozenset({Format.PREFERENCE}),
}


class Training:
    """One type of training. Bases are kept in `cache`, in the form they are trained in; `library` is what trains."""

    def __init__(
        self, *, type: JobType, files: Files, registry: Registry, cache: Path, kept: int, library: str = "trl"
    ) -> None:
        self._type = type
        self._files = files
        self._registry = registry
        self._cache = cache
        self._kept = kept
        self._library = library

    async def check(self, spec: JobSpec) -> JobSpec:
        """See `Kind`. The base is the version that its name means now, so that every attempt has the same."""
        if importlib.util.find_spec(self._library) is None:
            raise Unimplemented(
                "trainings need libraries that are not installed: pip install 'modelops-coordinator[learning]'"
            )
        if spec.name:
            self._registry.check_name(spec.name)
        if spec.result not in RESULTS:
            raise InvalidRequest(f"`result` is {spec.result[:40]!r}; there are {' and '.join(RESULTS)}")
        if not 0 <= spec.seed <= SEED_MAX:
            raise InvalidRequest(f"`seed` is {spec.seed}, not from 0 to {SEED_MAX}")
        if spec.options:
            raise InvalidRequest(f"trainings have no options such as {min(spec.options)!r}; there are hyperparameters")
        if not spec.model:
            raise InvalidRequest("a training needs a `model` to start from: a name, a version or an alias")
        if not spec.training_file:
            raise InvalidRequest("a training needs a `training_file`: the id of a file that was added before")
        for file_id in filter(None, (spec.training_file, spec.validation_file)):
            self._files.path(file_id)
        hyperparameters = complete(self._type, spec.hyperparameters)
        check_effects(hyperparameters, has_validation_file=bool(spec.validation_file))
        result = "merged" if hyperparameters["method"] == "full" else spec.result
        model = self._registry.pin(spec.model)
        return replace(spec, model=model, hyperparameters=hyperparameters, result=result)

    async def prepare(self, job: Job, folder: Path) -> Prepared:
        """See `Kind`."""
        spec = job.spec
        files = [file_id for file_id in (spec.training_file, spec.validation_file) if file_id]
        longest = max([await asyncio.to_thread(self._check_rows, file_id) for file_id in files])
        base = await self._registry.base(spec.model)
        options: Mapping[str, Any] = base.spec.get("options") or {}
        task = {
            "base": {
                "reference": base.reference,
                "runtime": base.runtime,
                "path": str(base.path),
                "sha256": base.sha256,
                "adapters": [dict(adapter) for adapter in base.adapters],
                "chat_template": options.get("chat_template") or "",
            },
            "cache": str(self._cache),
            "training_file": str(self._files.path(spec.training_file)),
            "validation_file": str(self._files.path(spec.validation_file)) if spec.validation_file else "",
            "hyperparameters": resolved(self._type, spec.hyperparameters, base.parameters),
            "result": spec.result,
            "kept": self._kept,
        }
        return Prepared(task=task, base=base, data_digest=self._digest(files), longest=longest)

    async def finish(self, job: Job, prepared: Prepared, told: Mapping[str, Any], folder: Path) -> Outcome:
        """See `Kind`. Without a name in its spec nothing is registered, and may be published later."""
        outcome = Outcome(
            metrics=told["metrics"],
            trained_tokens=told["trained_tokens"],
            data={
                **told["data"],
                "hyperparameters": prepared.task["hyperparameters"],
                "data_digest": prepared.data_digest,
            },
        )
        if not job.spec.name:
            return outcome
        assert prepared.base is not None  # noqa: S101 - a training was prepared with one
        return replace(outcome, model=await self._register(job, prepared.base, outcome, folder))

    async def publish(self, job: Job, folder: Path, name: str) -> str:
        """Make what a training ended in a version under a name, even if it had none; the version's reference.

        Idempotent. InvalidRequest when the job is no training, or has not come to an end with a result.
        """
        if job.outcome is None or job.spec.type is not self._type:
            raise InvalidRequest(f"{job.id} has not ended in anything that could be a model")
        self._registry.check_name(name)
        named = replace(job, spec=replace(job.spec, name=name))
        return await self._register(named, await self._registry.base(job.spec.model), job.outcome, folder)

    async def _register(self, job: Job, base: Base, outcome: Outcome, folder: Path) -> str:
        return await self._registry.register(
            Trained(
                job=job,
                base=base,
                kind=outcome.data["kind"],
                path=folder / "output",
                data_digest=outcome.data["data_digest"],
                metrics=outcome.metrics,
                trained_tokens=outcome.trained_tokens,
                hyperparameters=outcome.data["hyperparameters"],
            )
        )

    def _check_rows(self, file_id: str) -> int:
        """How many tokens a row has at most.

        InvalidRequest unless all of a file can be learned from by this type of training.
        """
        report = dataset.read(self._files.path(file_id))
        name = f"{self._files.show(file_id).filename} ({file_id})"
        report.check(name)
        if report.format not in FORMATS[self._type]:
            others = (str(type) for type, formats in FORMATS.items() if report.format in formats)
            raise InvalidRequest(
                f"{name} holds rows of the format {report.format}, which trainings of the type "
                f"{' or '.join(others)} learn from, not {self._type}"
            )
        return report.longest

    def _digest(self, files: list[str]) -> str:
        """`sha256:…` of all that is learned from and validated with."""
        hashes = "".join(self._files.show(file_id).sha256 for file_id in files)
        return f"sha256:{hashlib.sha256(hashes.encode()).hexdigest()}"
