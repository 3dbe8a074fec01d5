"""The devices as they are now: read again and again, never waited for by anybody else."""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import structlog

from moc.gpu.device import HOST, Device, DeviceReading, DeviceState, DeviceStatus, Fault, in_order
from moc.gpu.ports import DeviceSource, HostSeat
from moc.gpu.reader import Reader
from moc.kernel.clock import Clock
from moc.kernel.errors import MocError, NotFound
from moc.kernel.events import Event
from moc.kernel.interval import Interval
from moc.kernel.records import ABSENT, Op, Store, Table

log = structlog.get_logger(__name__)

READ_TIMEOUT_S = 5.0
GIVEN_UP_S = 30.0
"""A device that is lost for so long is given up, and all on it ends. One that hangs for a moment costs nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRecord:
    """What is kept of a device: what it is, its state as last recorded, and whether it was cordoned.

    `fault` says which fault did that, and what to do; it is empty when an operator did.
    """

    device: Device
    state: DeviceState
    cordoned: bool = False
    fault: str = ""
    reason: str = ""
    changed_at: float = 0.0


@dataclass(slots=True)
class _Watched:
    """A device that was seen, or that is on record and cannot be read."""

    record: DeviceRecord
    revision: int | None
    reading: DeviceReading | None = None
    problem: str = ""
    reason: str = ""
    told: str = ""
    lost_at: float | None = None
    faults: tuple[Fault, ...] = ()
    heeded: int = 0

    @property
    def state(self) -> DeviceState:
        if self.reading is None:
            return DeviceState.LOST
        unfit = self.record.cordoned or any(fault.critical for fault in self.unheeded)
        return DeviceState.CORDONED if unfit else DeviceState.ONLINE

    @property
    def unheeded(self) -> list[Fault]:
        """The faults that nothing followed from yet."""
        return [fault for fault in self.faults if fault.number > self.heeded]


class DeviceMonitor:
    """Watches the devices of this host. Records: `devices/<id>`; events: `device.<state>`, `.problem` and `.xid`.

    Each source is read every `poll_interval_s` in a thread of its own. One that does not answer within
    `read_timeout_s`, or fails, loses its devices until it answers again; nothing else waits for it. What
    is seen counts at once; it is recorded as soon as the store takes it. A critical fault cordons its device
    until an operator lets it go on. `seat`, when given, fences what is recorded.
    """

    def __init__(
        self,
        sources: Sequence[DeviceSource],
        *,
        store: Store,
        clock: Clock,
        poll_interval_s: float,
        read_timeout_s: float = READ_TIMEOUT_S,
        seat: HostSeat | None = None,
    ) -> None:
        self._readers = [Reader(source, timeout_s=read_timeout_s) for source in sources]
        self._store = store
        self._clock = clock
        self._interval = Interval(poll_interval_s)
        self._seat = seat
        self._table: Table[DeviceRecord] = Table(store, "devices/", DeviceRecord)
        self._recorded: dict[str, tuple[DeviceRecord, int | None]] = {}
        self._watched: dict[str, _Watched] = {}
        self._failing: dict[str, str] = {}
        self._doubted_at: dict[str, float] = {}
        self._writing = asyncio.Lock()
        self._polls: list[asyncio.Task[None]] = []

    # life

    async def start(self) -> None:
        """Read every source once, no longer than the timeout, and go on reading."""
        if self._polls:
            return
        self._recorded = {key: (record, revision) for key, record, revision in await self._table.list()}
        await self.refresh()
        self._polls = [asyncio.create_task(self._poll(reader)) for reader in self._readers]

    async def drain(self) -> None:
        return

    async def stop(self) -> None:
        """Stop reading; a thread whose driver call hangs is left behind."""
        polls, self._polls = self._polls, []
        for poll in polls:
            poll.cancel()
        await asyncio.gather(*polls, return_exceptions=True)
        await asyncio.gather(*(reader.close() for reader in self._readers))
        self._watched.clear()

    def adjust(self, *, poll_interval_s: float) -> None:
        """Read so often from now on."""
        self._interval.change(poll_interval_s)

    # what is known

    def statuses(self) -> list[DeviceStatus]:
        """Every device there is or was since the start, by id."""
        return [self._status(self._watched[key]) for key in sorted(self._watched, key=in_order)]

    def status(self, device_id: str) -> DeviceStatus:
        """One device; NotFound when there is none of that id."""
        return self._status(self._find(device_id))

    def readings(self) -> dict[str, DeviceReading]:
        """The latest reading of every device that answers, by id."""
        return {key: each.reading for key, each in self._watched.items() if each.reading is not None}

    def states(self) -> dict[str, DeviceState]:
        """The state of every device, by id."""
        return {key: each.state for key, each in self._watched.items()}

    def given_up(self) -> dict[str, str]:
        """The devices that have been lost for `GIVEN_UP_S`, by id, with what is wrong with them.

        Main memory is never among them: it works for as long as anybody can ask.
        """
        before, watched = self._clock.monotonic() - GIVEN_UP_S, self._watched.items()
        lost = {key: each for key, each in watched if each.lost_at is not None and each.lost_at <= before}
        return {key: each.problem for key, each in lost.items() if each.record.device.kind != HOST}

    async def refresh(self, device_id: str | None = None) -> dict[str, DeviceReading]:
        """Read the source of one device, or all, after this call; returns `readings()` when that is done.

        NotFound when there is no device of that id. It ends within the timeout, whatever hangs.
        """
        kind = None if device_id is None else self._find(device_id).record.device.kind
        await asyncio.gather(*(self._read(reader) for reader in self._readers if kind in (None, reader.kind)))
        return self.readings()

    def doubt(self, device_id: str) -> None:
        """Something was given back on a device: only a reading that begins from now on tells what is free."""
        watched = self._watched.get(device_id)
        if watched is not None:
            self._doubted_at[watched.record.device.kind] = time.monotonic()

    async def settle(self, max_age_s: float) -> None:
        """Read again the devices that were doubted since they were read, and those read over `max_age_s` ago.

        Those that cannot be read now are left to the next poll: nothing is put on them until then.
        """
        oldest = time.monotonic() - max_age_s
        due = [
            reader
            for reader in self._readers
            if reader.kind not in self._failing
            and reader.read_at <= max(oldest, self._doubted_at.get(reader.kind, -math.inf))
        ]
        if due:
            await asyncio.gather(*(self._read(reader) for reader in due))

    # what operators ask

    async def cordon(self, device_id: str, *, actor: str) -> DeviceStatus:
        """Let a device take no new holders, also after a restart; those it has stay. Idempotent; NotFound."""
        return await self._set_cordoned(device_id, True, reason="Cordoned", actor=actor)

    async def uncordon(self, device_id: str, *, actor: str) -> DeviceStatus:
        """Let a device take holders again, as soon as it answers. Idempotent; NotFound."""
        return await self._set_cordoned(device_id, False, reason="Uncordoned", actor=actor)

    async def _set_cordoned(self, device_id: str, cordoned: bool, *, reason: str, actor: str) -> DeviceStatus:
        watched = self._find(device_id)
        async with self._writing:
            if watched.record.cordoned != cordoned:
                state = watched.state
                if state is not DeviceState.LOST:
                    state = DeviceState.CORDONED if cordoned else DeviceState.ONLINE
                record = replace(watched.record, state=state, cordoned=cordoned, fault="", reason=reason)
                await self._record(watched, record, actor=actor)
        return self._status(watched)

    # reading

    async def _poll(self, reader: Reader) -> None:
        while True:
            await self._interval.wait()
            await self._read(reader)

    async def _read(self, reader: Reader) -> None:
        try:
            readings = await reader.read()
        except MocError as error:
            self._lose(reader.kind, "Unresponsive", error.message)
        except Exception as error:
            self._lose(reader.kind, "ReadFailed", f"{type(error).__name__}: {error}")
        else:
            self._take(reader.kind, readings)
        await self._settle(reader.kind)

    def _lose(self, kind: str, reason: str, problem: str) -> None:
        if self._failing.get(kind) != reason:
            log.warning("devices cannot be read", kind=kind, problem=problem)
        self._failing[kind] = reason
        for key, (record, revision) in self._recorded.items():
            if record.device.kind == kind:
                self._watched.setdefault(key, _Watched(record, revision))
        for watched in self._of(kind):
            watched.reading, watched.reason, watched.problem = None, reason, problem

    def _take(self, kind: str, readings: Sequence[DeviceReading]) -> None:
        self._failing.pop(kind, None)
        found = {reading.device.id: reading for reading in readings}
        for key, reading in found.items():
            watched = self._watched.get(key) or self._new(reading.device)
            self._watched[key] = watched
            lost = reading.lost
            watched.reading, watched.problem, watched.faults = (
                None if lost else reading,
                reading.problem,
                reading.faults,
            )
            watched.reason = "DriverLost" if lost else "Answered" if watched.record.changed_at else "Found"
            if not lost and watched.record.device != reading.device:
                watched.record = replace(watched.record, device=reading.device)
        for watched in self._of(kind):
            if watched.record.device.id not in found:
                watched.reading, watched.reason = None, "Missing"
                watched.problem = "the driver does not list it any more"

    def _new(self, device: Device) -> _Watched:
        recorded = self._recorded.get(device.id)
        if recorded is not None:
            return _Watched(*recorded)
        return _Watched(DeviceRecord(device=device, state=DeviceState.LOST), ABSENT)

    async def _settle(self, kind: str) -> None:
        """Record what changed; what the store does not take now is tried again after the next reading."""
        self._note_losses(kind)
        async with self._writing:
            for watched in self._of(kind):
                try:
                    await self._heed(watched)
                    if watched.state is not watched.record.state or not watched.record.changed_at:
                        await self._record(
                            watched, replace(watched.record, state=watched.state, reason=watched.reason), actor="system"
                        )
                    elif watched.reading is not None and watched.problem != watched.told:
                        await self._tell(watched)
                except MocError as error:
                    log.warning(
                        "a device's state is not recorded yet", device=watched.record.device.id, error=str(error)
                    )

    async def _heed(self, watched: _Watched) -> None:
        """Tell of every fault once; the first critical one cordons the device."""
        for fault in watched.unheeded:
            record = watched.record
            subject, data = record.device.id, {"problem": fault.problem}
            if fault.advice:
                data["advice"] = fault.advice
            if fault.critical and not record.fault:
                state = record.state if record.state is DeviceState.LOST else DeviceState.CORDONED
                told = f"{fault.problem}; {fault.advice}"
                record = replace(record, state=state, cordoned=True, fault=told, reason=fault.reason)
                event = Event(kind="device.cordoned", subject=subject, reason=fault.reason, data=data)
                await self._commit(watched, record, event)
                log.warning("a device is cordoned", device=subject, problem=told)
            else:
                event = Event(kind="device.xid", subject=subject, reason=fault.reason, data=data)
                await self._store.commit(self._fence(), [event])
            watched.heeded = fault.number

    def _note_losses(self, kind: str) -> None:
        for watched in self._of(kind):
            if watched.reading is not None:
                watched.lost_at = None
            elif watched.lost_at is None:
                watched.lost_at = self._clock.monotonic()

    async def _record(self, watched: _Watched, record: DeviceRecord, *, actor: str) -> None:
        event = Event(
            kind=f"device.{record.state}",
            subject=record.device.id,
            reason=record.reason,
            actor=actor,
            data={"problem": watched.problem} if watched.problem else {},
        )
        problem = watched.problem
        await self._commit(watched, record, event)
        watched.told = problem

    async def _commit(self, watched: _Watched, record: DeviceRecord, event: Event) -> None:
        record = replace(record, changed_at=self._clock.wall())
        key = record.device.id
        put = self._table.put(key, record, expect=watched.revision)
        watched.revision = None  # until it is known whether this one was made
        watched.revision = await self._store.commit([*self._fence(), put], [event])
        watched.record = record
        self._recorded[key] = (record, watched.revision)

    async def _tell(self, watched: _Watched) -> None:
        if watched.problem:
            event = Event(
                kind="device.problem",
                subject=watched.record.device.id,
                reason="DriverReport",
                data={"problem": watched.problem},
            )
            await self._store.commit(self._fence(), [event])
        watched.told = watched.problem

    def _fence(self) -> list[Op]:
        return [] if self._seat is None else [self._seat.fence()]

    def _of(self, kind: str) -> list[_Watched]:
        return [watched for watched in self._watched.values() if watched.record.device.kind == kind]

    def _find(self, device_id: str) -> _Watched:
        watched = self._watched.get(device_id)
        if watched is None:
            raise NotFound(f"there is no device {device_id[:100]!r}; `moc devices` shows those there are")
        return watched

    def _status(self, watched: _Watched) -> DeviceStatus:
        record = watched.record
        problem = "; ".join(each for each in (watched.problem, record.fault) if each)
        return DeviceStatus(device=record.device, state=watched.state, reading=watched.reading, problem=problem)
