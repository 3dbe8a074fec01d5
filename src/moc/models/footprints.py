"""What models took when they were loaded before, kept in the store: the second load is no estimate any more.

Records: `footprints/<key>`, the key being a hash over all that decides how much a model takes.
"""

import asyncio
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from moc.kernel.clock import Clock
from moc.kernel.errors import Conflict
from moc.kernel.records import ABSENT, Store, Table
from moc.models.footprint import Footprint, estimate
from moc.models.model import REMOTE, Artifact, ModelVersion
from moc.models.ports import Holding

K = TypeVar("K")
V = TypeVar("V")

MARGIN = 0.05
"""Added to what was measured: pages shared with other processes are divided among them, so the same worker
measures a few per cent less beside others than alone, and samples miss the moment of the peak."""

LOADS_KEPT = 5
"""The newest loads count, so that an old peak is forgotten when the engine has become more modest."""

NEWS = 0.01
"""A peak is written down again when it has grown by this share."""

ATTEMPTS = 5
ESTIMATES_KEPT = 1024
WORKERS_REMEMBERED = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The most one worker was measured to hold on a device. `used`: requests ran in it, so its buffers were filled."""

    worker_id: str
    peak_bytes: int
    used: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What is known of one model on one kind of device; `loads` oldest first, at most `LOADS_KEPT`."""

    loads: tuple[Load, ...] = ()
    updated_at: float = 0.0

    def with_load(self, load: Load, *, now: float) -> "Learned":
        """This and one more measurement; of the same worker the larger counts."""
        before = next((known for known in self.loads if known.worker_id == load.worker_id), load)
        peak = max(before.peak_bytes, load.peak_bytes)
        merged = Load(worker_id=load.worker_id, peak_bytes=peak, used=before.used or load.used)
        others = [known for known in self.loads if known.worker_id != load.worker_id]
        return Learned(loads=(*others, merged)[-LOADS_KEPT:], updated_at=now)


class Footprints:
    """What a version needs: the operator's word, else what was measured, else an estimate from its files.

    All is on one device, of several on each: the operator's word and an estimate are for the whole, and shared.
    """

    def __init__(self, *, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._table: Table[Learned] = Table(store, "footprints/", Learned)
        self._estimates: dict[tuple[str, str], Footprint] = {}
        self._told: dict[tuple[str, str], Load] = {}

    async def expected(self, version: ModelVersion, artifact: Artifact, *, device_kind: str) -> Footprint:
        """What to set aside for `version` on a device of that kind before it is loaded from `artifact`.

        A model that was loaded but never used has not filled its buffers: until it has, the estimate holds where
        it is higher. Files that are gone or are not what they should be are no error here.
        """
        declared = _declared(version)
        if declared is not None:
            return declared
        key = _key(version, device_kind)
        loads = await self._loads(key)
        measured = max((load.peak_bytes for load in loads), default=0)
        learned = Footprint(
            round(measured * (1 + MARGIN)), {"measured": measured, "margin": round(measured * MARGIN)}, "learned"
        )
        if any(load.used for load in loads):
            return learned
        estimated = await self._estimate(key, version, artifact, device_kind)
        return max(learned, estimated, key=lambda footprint: footprint.bytes)

    async def known(self, version: ModelVersion, *, device_kind: str) -> Footprint | None:
        """What `version` is expected to need, None as long as it was not pulled and nobody declared it."""
        if version.artifact is None:
            return _declared(version)
        return await self.expected(version, version.artifact, device_kind=device_kind)

    async def beside(self, version: ModelVersion, *, device_kind: str) -> int | None:
        """The most main memory `version` was measured to take beside its devices, None if it never was."""
        return max((load.peak_bytes for load in await self._loads(_key(version, _beside(device_kind)))), default=None)

    async def learn(self, version: ModelVersion, worker_id: str, holding: Holding, *, used: bool) -> None:
        """Remember what a worker holds now, durably if it is news; 0 means unknown. Call it as often as you like.

        A MocError of the store may be ignored: what was not written is news again the next time.
        """
        for kind, size in ((holding.kind, holding.bytes), (_beside(holding.kind), holding.beside_bytes)):
            told = self._told.get((worker_id, kind))
            known = told is not None and size <= told.peak_bytes * (1 + NEWS) and used <= told.used
            if size > 0 and not known:
                load = Load(worker_id=worker_id, peak_bytes=size, used=used)
                await self._add(_key(version, kind), load)
                self._told[worker_id, kind] = load
        _forget_oldest(self._told, WORKERS_REMEMBERED)

    async def _loads(self, key: str) -> tuple[Load, ...]:
        found = await self._table.find(key)
        return () if found is None else found[0].loads

    async def _add(self, key: str, load: Load) -> None:
        for attempt in range(ATTEMPTS):
            found = await self._table.find(key)
            learned, revision = (Learned(), ABSENT) if found is None else found
            more = learned.with_load(load, now=self._clock.wall())
            try:
                await self._store.commit([self._table.put(key, more, expect=revision)])
            except Conflict:  # another version of the same content, or another host, learned too
                if attempt + 1 == ATTEMPTS:
                    raise
            else:
                return

    async def _estimate(self, key: str, version: ModelVersion, artifact: Artifact, device_kind: str) -> Footprint:
        cached = self._estimates.get((key, artifact.path))
        if cached is None:
            spec, path = version.spec, Path(artifact.path)
            cached = await asyncio.to_thread(estimate, path, spec.runtime, spec.options, device_kind=device_kind)
            cached = cached.in_shards(spec.shards)
            self._estimates[key, artifact.path] = cached
            _forget_oldest(self._estimates, ESTIMATES_KEPT)
        return cached


def _declared(version: ModelVersion) -> Footprint | None:
    declared = 0 if version.spec.runtime == REMOTE else version.spec.memory_bytes
    if declared is None:
        return None
    return Footprint(declared, {"declared": declared}, "declared").in_shards(version.spec.shards)


def _key(version: ModelVersion, device_kind: str) -> str:
    identity = [version.digest, version.spec.runtime, version.spec.options, device_kind, version.spec.shards]
    return hashlib.sha256(msgspec.json.encode(identity, order="deterministic")).hexdigest()


def _beside(device_kind: str) -> str:
    return f"main memory beside {device_kind}"


def _forget_oldest(kept: dict[K, V], limit: int) -> None:
    while len(kept) > limit:
        del kept[next(iter(kept))]
