"""The devices as they are now: read again and again, never waited for by anybody else."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

import structlog

from moc.gpu.device import Device, DeviceReading, DeviceState, DeviceStatus, in_order
from moc.gpu.ports import DeviceSource, HostSeat
from moc.gpu.reader import Reader
from moc.kernel.clock import Clock
from moc.kernel.errors import MocError, NotFound
from moc.kernel.events import Event
from moc.kernel.records import ABSENT, Op, Store, Table

log = structlog.get_logger(__name__)

READ_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRecord:
    """What is kept of a device: what it is, its state as last recorded, and whether an operator cordoned it."""

    device: Device
    state: DeviceState
    cordoned: bool = False
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

    @property
    def state(self) -> DeviceState:
        if self.reading is None:
            return DeviceState.LOST
        return DeviceState.CORDONED if self.record.cordoned else DeviceState.ONLINE


class DeviceMonitor:
    """Watches the devices of this host. Records: `devices/<id>`; events: `device.<state>` and `device.problem`.

    Each source is read every `poll_interval_s` in a thread of its own. One that does not answer within
    `read_timeout_s`, or fails, loses its devices until it answers again; nothing else waits for it. What
    is seen counts at once; it is recorded as soon as the store takes it. `seat`, when given, fences what
    is recorded.
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
        self._poll_interval_s = poll_interval_s
        self._seat = seat
        self._table: Table[DeviceRecord] = Table(store, "devices/", DeviceRecord)
        self._recorded: dict[str, tuple[DeviceRecord, int | None]] = {}
        self._watched: dict[str, _Watched] = {}
        self._failing: dict[str, str] = {}
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

    async def refresh(self, device_id: str | None = None) -> dict[str, DeviceReading]:
        """Read the source of one device, or all, after this call; returns `readings()` when that is done.

        NotFound when there is no device of that id. It ends within the timeout, whatever hangs.
        """
        kind = None if device_id is None else self._find(device_id).record.device.kind
        await asyncio.gather(*(self._read(reader) for reader in self._readers if kind in (None, reader.kind)))
        return self.readings()

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
                await self._record(
                    watched, replace(watched.record, state=state, cordoned=cordoned, reason=reason), actor=actor
                )
        return self._status(watched)

    # reading

    async def _poll(self, reader: Reader) -> None:
        while True:
            await asyncio.sleep(self._poll_interval_s)
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
            watched.reading, watched.problem = None if lost else reading, reading.problem
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
        async with self._writing:
            for watched in self._of(kind):
                try:
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

    async def _record(self, watched: _Watched, record: DeviceRecord, *, actor: str) -> None:
        record = replace(record, changed_at=self._clock.wall())
        key = record.device.id
        event = Event(
            kind=f"device.{record.state}",
            subject=key,
            reason=record.reason,
            actor=actor,
            data={"problem": watched.problem} if watched.problem else {},
        )
        put = self._table.put(key, record, expect=watched.revision)
        watched.revision = None  # until it is known whether this one was made
        watched.revision = await self._store.commit([*self._fence(), put], [event])
        watched.record, watched.told = record, watched.problem
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
        return DeviceStatus(
            device=watched.record.device, state=watched.state, reading=watched.reading, problem=watched.problem
        )
