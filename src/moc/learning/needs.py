"""What jobs took when they ran before, kept in the store, so that the next estimate is better.

Records: `job_needs/<type>/<hash>`, the hash being over the digest of the base and the kind of device.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from moc.kernel.errors import Conflict
from moc.kernel.records import ABSENT, Store, Table
from moc.learning.estimate import DEFAULTS, Dimensions, estimate
from moc.learning.hyperparameters import resolved
from moc.learning.job import TRAINING, Job

MARGIN = 0.05
"""Added to what was learned: a peak can fall between two measurements."""

RATIOS_KEPT = 5
PEAKS_KEPT = 5
SHAPES_KEPT = 64
TRIES = 5
MEMORY_SHAPERS = ("method", "batch_size", "max_length", "lora_rank", "gradient_checkpointing")
"""The hyperparameters that decide how much a training takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What jobs of one type on one base took last: by shape, and as ratios to what was estimated.

    Nothing is known for ever: a job that was misjudged once is forgotten when others came after it.
    """

    ratios: tuple[float, ...] = ()
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def after(self, shape: str, peak_bytes: int, estimated_bytes: int) -> "Seen":
        """This and one job more."""
        known = {name: size for name, size in self.shapes.items() if name != shape}
        for name in list(known)[: len(known) - SHAPES_KEPT + 1]:
            del known[name]
        known[shape] = (*self.shapes.get(shape, ()), peak_bytes)[-PEAKS_KEPT:]
        return Seen(ratios=(*self.ratios, peak_bytes / estimated_bytes)[-RATIOS_KEPT:], shapes=known)

    def expected(self, shape: str, estimated_bytes: int, limit_bytes: int) -> int:
        """The estimate, corrected; never less than the last jobs of this shape took.

        What was learned asks for no more than a device has: the job may run there yet.
        """
        corrected = estimated_bytes * max(self.ratios) if self.ratios else 0.0
        known = max(*self.shapes.get(shape, ()), 0, corrected)
        return min(round(known * (1 + MARGIN)), max(limit_bytes, estimated_bytes)) if known else estimated_bytes


class JobNeeds:
    """What a job is expected to take, and what it took."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._table: Table[Seen] = Table(store, "job_needs/", Seen)

    async def expected(self, job: Job, model: Dimensions | None, digest: str, *, kind: str, limit_bytes: int) -> int:
        """Bytes of a device of that kind, which has `limit_bytes`: the operator's word, or estimated and learned.

        `model` is what a training starts from, and `digest` its name; both empty for other jobs.
        """
        if job.spec.memory_bytes is not None:
            return job.spec.memory_bytes
        found = await self._table.find(_key(job, digest, kind))
        seen = Seen() if found is None else found[0]
        return seen.expected(_shape(job, model), _estimated(job, model, kind), limit_bytes)

    async def learn(self, job: Job, model: Dimensions | None, digest: str, *, kind: str, peak_bytes: int) -> None:
        """A job took so much. One that came no step far taught that only if it was more than it was given."""
        given = job.attempts[-1].bytes if job.attempts else 0
        if job.progress.step < 1 and peak_bytes <= given:
            return
        key, shape, estimated = _key(job, digest, kind), _shape(job, model), _estimated(job, model, kind)
        for attempt in range(TRIES):
            found = await self._table.find(key)
            seen, revision = (Seen(), ABSENT) if found is None else found
            more = seen.after(shape, peak_bytes, estimated)
            try:
                await self._store.commit([self._table.put(key, more, expect=revision)])
            except Conflict:  # another job that ended just now
                if attempt + 1 == TRIES:
                    raise
            else:
                return


def _estimated(job: Job, model: Dimensions | None, kind: str) -> int:
    if job.spec.type not in TRAINING or model is None:
        return DEFAULTS.get(job.spec.type, max(DEFAULTS.values()))
    return estimate(job.spec.type, model, _hyperparameters(job, model), on_gpu=kind == "cuda")


def _hyperparameters(job: Job, model: Dimensions) -> Mapping[str, Any]:
    return resolved(job.spec.type, job.spec.hyperparameters, model.parameters)


def _key(job: Job, digest: str, kind: str) -> str:
    """Jobs that train nothing are alike only if they were given the same."""
    alike = [digest, kind, None if job.spec.type in TRAINING else [job.spec.model, job.spec.options]]
    return f"{job.spec.type}/{_hash(alike)}"


def _shape(job: Job, model: Dimensions | None) -> str:
    if job.spec.type not in TRAINING or model is None:
        return ""
    given = _hyperparameters(job, model)
    return _hash([given[name] for name in MEMORY_SHAPERS])


def _hash(value: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()[:32]
