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
from moc.learning.estimate import CUDA_CONTEXT_BYTES, DEFAULTS, Dimensions, Estimate, estimate
from moc.learning.hyperparameters import resolved
from moc.learning.job import TRAINING, Job

CUDA, OLD_CUDA = "cuda", "cuda without bfloat16"
"""The kinds of devices that are GPUs."""

MARGIN = 0.05
"""Added to what was learned: a peak can fall between two measurements."""

NEARLY_ONE = 0.999
"""Of an epoch: what is told of it is rounded."""

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

    def after(self, shape: str, peak_bytes: int, estimated: Estimate) -> "Seen":
        """This and one job more."""
        known = {name: size for name, size in self.shapes.items() if name != shape}
        for name in list(known)[: len(known) - SHAPES_KEPT + 1]:
            del known[name]
        known[shape] = (*self.shapes.get(shape, ()), peak_bytes)[-PEAKS_KEPT:]
        ratio = max(0, peak_bytes - estimated.base_bytes) / estimated.working_bytes
        return Seen(ratios=(*self.ratios, ratio)[-RATIOS_KEPT:], shapes=known)

    def expected(self, shape: str, estimated: Estimate, limit_bytes: int) -> int:
        """What the last jobs of this shape took; else the estimate, and more if it was too low for others.

        That it was too high for others says nothing: their rows may have been shorter. What was learned asks for no
        less than a job has before it works on anything, and for no more than a device has: it may run there yet.
        """
        known = max(self.shapes.get(shape, ()), default=0)
        ratio = max(self.ratios, default=0.0)
        if not known and ratio <= 1:
            return estimated.bytes
        learned = known or estimated.base_bytes + estimated.working_bytes * ratio
        asked = max(estimated.base_bytes, round(learned * (1 + MARGIN)))
        return min(asked, max(limit_bytes, estimated.bytes))


class JobNeeds:
    """What a job is expected to take, and what it took."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._table: Table[Seen] = Table(store, "job_needs/", Seen)

    async def expected(
        self, job: Job, model: Dimensions | None, digest: str, *, kind: str, limit_bytes: int, longest: int = 0
    ) -> int:
        """Bytes of a device of that kind, which has `limit_bytes`: the operator's word, or estimated and learned.

        `model` is what a training starts from, `digest` its name, and `longest` what a row of its data has at most, in
        tokens; all empty for other jobs.
        """
        if job.spec.memory_bytes is not None:
            return job.spec.memory_bytes
        found = await self._table.find(_key(job, digest, kind))
        seen = Seen() if found is None else found[0]
        return seen.expected(_shape(job, model, longest), estimated(job, model, kind, longest), limit_bytes)

    async def learn(
        self, job: Job, model: Dimensions | None, digest: str, *, kind: str, peak_bytes: int, longest: int = 0
    ) -> None:
        """A job took so much. One that did not see all its rows taught that only if it was more than it was given."""
        if kind in (CUDA, OLD_CUDA) and job.spec.type in TRAINING:
            peak_bytes += CUDA_CONTEXT_BYTES  # a program is told of what it takes beside that
        given = job.attempts[-1].bytes if job.attempts else 0
        if not _worked(job) and peak_bytes <= given:
            return
        key, shape = _key(job, digest, kind), _shape(job, model, longest)
        for attempt in range(TRIES):
            found = await self._table.find(key)
            seen, revision = (Seen(), ABSENT) if found is None else found
            more = seen.after(shape, peak_bytes, estimated(job, model, kind, longest))
            try:
                await self._store.commit([self._table.put(key, more, expect=revision)])
            except Conflict:  # another job that ended just now
                if attempt + 1 == TRIES:
                    raise
            else:
                return


def estimated(job: Job, model: Dimensions | None, kind: str, longest: int) -> Estimate:
    """What a job needs if nothing was learned of such jobs."""
    if job.spec.type not in TRAINING or model is None:
        return Estimate(0, DEFAULTS.get(job.spec.type, max(DEFAULTS.values())))
    given = _hyperparameters(job, model)
    on_gpu, half = kind in (CUDA, OLD_CUDA), kind == CUDA
    return estimate(job.spec.type, model, given, on_gpu=on_gpu, half=half, longest=longest)


def _worked(job: Job) -> bool:
    """Whether the last attempt did what its job may take most memory for: a step; a training, one with every row."""
    step = job.progress.step
    if job.spec.type not in TRAINING:
        return step >= 1
    first = job.attempts[-1].first_step if job.attempts else 0
    return step > first and job.progress.epoch * (step - first) / step >= NEARLY_ONE


def _hyperparameters(job: Job, model: Dimensions) -> Mapping[str, Any]:
    return resolved(job.spec.type, job.spec.hyperparameters, model.parameters)


def _key(job: Job, digest: str, kind: str) -> str:
    """Jobs that train nothing are alike only if they were given the same; of two GPUs, where nobody can know which."""
    kind = CUDA if kind == OLD_CUDA else kind
    alike = [digest, kind, None if job.spec.type in TRAINING else [job.spec.model, job.spec.options]]
    return f"{job.spec.type}/{_hash(alike)}"


def _shape(job: Job, model: Dimensions | None, longest: int) -> str:
    if job.spec.type not in TRAINING or model is None:
        return ""
    given = _hyperparameters(job, model)
    return _hash([*(given[name] for name in MEMORY_SHAPERS), longest])


def _hash(value: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()[:32]
