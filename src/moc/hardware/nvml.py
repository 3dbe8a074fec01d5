# ruff: noqa: N802 - the names are the library's
"""NVIDIA devices as their driver tells of them, through NVML."""

import contextlib
import ctypes
import importlib
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import structlog

from moc.gpu.device import Device, DeviceReading, Fault
from moc.hardware import xid
from moc.hardware.namespaces import pids_here

log = structlog.get_logger(__name__)

T = TypeVar("T")
Handle = Any

INVALID_ARGUMENT, NOT_SUPPORTED, NOT_FOUND, DRIVER_NOT_LOADED, TIMEOUT, LIBRARY_NOT_FOUND = 2, 3, 6, 9, 10, 12
FUNCTION_NOT_FOUND, GPU_IS_LOST, RESET_REQUIRED, VERSION_MISMATCH = 13, 15, 16, 25
BROKEN = frozenset({GPU_IS_LOST, RESET_REQUIRED})
NO_DRIVER = frozenset({LIBRARY_NOT_FOUND, DRIVER_NOT_LOADED})
UNKNOWN_CALL = frozenset({INVALID_ARGUMENT, NOT_SUPPORTED, FUNCTION_NOT_FOUND, VERSION_MISMATCH})

MEMORY_V2 = 0x02000028
TEMPERATURE_GPU = 0
EVENT_DOUBLE_BIT_ECC = 0x2
EVENT_XID = 0x8
EVENTS_MAX = 100
AMPERE = 8
"""The first generation that computes in bfloat16."""

WHOLE_CARD = 0xFFFFFFFF
"""Instead of the number of an instance: the event is about the card."""


class Memory(Protocol):
    """Bytes of a device; `reserved` (the driver's own) only in the second version of the call."""

    total: int
    used: int
    reserved: int


class Nvml(Protocol):
    """What is used of the module `pynvml`. Calls raise `NVMLError`, whose `value` is NVML's code."""

    @property
    def NVMLError(self) -> type[Exception]: ...
    def nvmlInit(self) -> None: ...
    def nvmlShutdown(self) -> None: ...
    def nvmlDeviceGetCount(self) -> int: ...
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Handle: ...
    def nvmlDeviceGetName(self, handle: Handle) -> str | bytes: ...
    def nvmlDeviceGetUUID(self, handle: Handle) -> str | bytes: ...
    def nvmlDeviceGetCudaComputeCapability(self, handle: Handle) -> Sequence[int]: ...
    def nvmlDeviceGetMemoryInfo(self, handle: Handle, version: int | None = None) -> Memory: ...
    def nvmlDeviceGetUtilizationRates(self, handle: Handle) -> Any: ...
    def nvmlDeviceGetTemperature(self, handle: Handle, sensor: int) -> int: ...
    def nvmlDeviceGetComputeRunningProcesses(self, handle: Handle) -> list[Any]: ...
    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: Handle) -> list[Any]: ...
    def nvmlDeviceGetMigMode(self, handle: Handle) -> list[int]: ...
    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Handle) -> int: ...
    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Handle, index: int) -> Handle: ...
    def nvmlDeviceGetGpuInstanceId(self, handle: Handle) -> int: ...
    def nvmlDeviceGetSupportedEventTypes(self, handle: Handle) -> int: ...
    def nvmlEventSetCreate(self) -> Any: ...
    def nvmlEventSetFree(self, events: Any) -> None: ...
    def nvmlDeviceRegisterEvents(self, handle: Handle, kinds: int, events: Any) -> None: ...
    def nvmlEventSetWait(self, events: Any, timeout_ms: int) -> Any: ...


class NvmlDevices:
    """Every NVIDIA device as `cuda:0`, `cuda:1`, …; of one that is divided, its MIG instances `cuda:0/mig:0`, ….

    A machine without the driver, or without its library, has none. Capacity is without what the driver
    keeps for itself. Errors the driver reports while it is open are a device's `faults`. `proc` is where
    processes are looked up when the driver's numbers are not this host's.
    """

    kind = "cuda"

    def __init__(self, library: Nvml | None = None, *, proc: Path = Path("/proc")) -> None:
        self._given = library
        self._proc = proc
        self._open: Nvml | None = None
        self._events: dict[int, Any] = {}
        self._seen: dict[int, list[Device]] = {}
        self._faults: dict[int, dict[tuple[int, int], Fault]] = defaultdict(dict)
        self._numbers = itertools.count(1)

    def read(self) -> list[DeviceReading]:
        """See `DeviceSource.read`; the driver is opened by the first read, and again after it failed."""
        nvml = self._open or self._begin()
        if nvml is None:
            return []
        try:
            count = nvml.nvmlDeviceGetCount()
            for index, events in self._events.items():
                self._hear(nvml, index, events)
            return [reading for index in range(count) for reading in self._card(nvml, index)]
        except nvml.NVMLError:
            self.close()
            raise

    def close(self) -> None:
        """Close the driver; errors of that are nobody's concern."""
        nvml, self._open = self._open, None
        events, self._events = self._events, {}
        if nvml is None:
            return
        for each in events.values():
            with contextlib.suppress(nvml.NVMLError):
                nvml.nvmlEventSetFree(each)
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()

    def _begin(self) -> Nvml | None:
        nvml = self._given or _library()
        if nvml is None:
            return None
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            if _code(error) in NO_DRIVER:
                return None
            raise
        self._open = nvml
        try:
            self._events = dict(self._subscribe(nvml))
        except nvml.NVMLError:
            self.close()
            raise
        return nvml

    # cards

    def _card(self, nvml: Nvml, index: int) -> Iterator[DeviceReading]:
        """The readings of one card; one that is lost is read as such and does not keep the others from being read."""
        try:
            card = nvml.nvmlDeviceGetHandleByIndex(index)
            if (_optional(nvml, lambda: nvml.nvmlDeviceGetMigMode(card)) or [0])[0]:
                readings = list(self._instances(nvml, index, card))
            else:
                device, used = self._memory(nvml, f"cuda:{index}", card)
                readings = [self._reading(nvml, card, card, device, used, self._faults_of(index))]
        except nvml.NVMLError as error:
            unknown = Device(id=f"cuda:{index}", kind=self.kind, name="unknown", capacity_bytes=0)
            problem, faults = f"the driver says: {error}", self._faults_of(index)
            for device in self._seen.get(index, [unknown]):
                yield DeviceReading(device=device, used_bytes=0, problem=problem, faults=faults, lost=True)
        else:
            self._seen[index] = [reading.device for reading in readings]
            yield from readings

    def _instances(self, nvml: Nvml, index: int, card: Handle) -> Iterator[DeviceReading]:
        for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(card)):
            try:
                instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, number)
            except nvml.NVMLError as error:
                if _code(error) in (NOT_FOUND, INVALID_ARGUMENT):  # no instance has this number
                    continue
                raise
            device, used = self._memory(nvml, f"cuda:{index}/mig:{number}", instance)
            own = _optional(nvml, lambda of=instance: nvml.nvmlDeviceGetGpuInstanceId(of))  # type: ignore[misc]
            faults = self._faults_of(index, WHOLE_CARD if own is None else own)
            yield self._reading(nvml, card, instance, device, used, faults)

    def _memory(self, nvml: Nvml, device_id: str, handle: Handle) -> tuple[Device, int]:
        """The device, and the bytes in use on it as the driver claims."""
        reserved = 0
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle, MEMORY_V2)
            reserved = memory.reserved
        except nvml.NVMLError as error:
            if _code(error) not in UNKNOWN_CALL:
                raise
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        capability = _optional(nvml, lambda: nvml.nvmlDeviceGetCudaComputeCapability(handle))
        device = Device(
            id=device_id,
            kind=self.kind,
            name=_text(nvml.nvmlDeviceGetName(handle)),
            capacity_bytes=max(0, memory.total - reserved),
            uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
            bfloat16=capability is None or capability[0] >= AMPERE,
        )
        return device, memory.used

    def _reading(
        self, nvml: Nvml, card: Handle, handle: Handle, device: Device, used: int, faults: tuple[Fault, ...]
    ) -> DeviceReading:
        utilization = _optional(nvml, lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        believed = max(0, min(used, device.capacity_bytes))
        lie = f"the driver claims that {used} of {device.capacity_bytes} bytes are in use"
        return DeviceReading(
            device=device,
            used_bytes=believed,
            processes=self._processes(nvml, handle),
            temperature_c=_optional(nvml, lambda: float(nvml.nvmlDeviceGetTemperature(card, TEMPERATURE_GPU))),
            utilization_ratio=None if utilization is None else min(1.0, utilization / 100),
            problem="" if believed == used else lie,
            faults=faults,
        )

    def _processes(self, nvml: Nvml, handle: Handle) -> dict[int, int]:
        """Bytes by process. A program that computes and draws is listed twice with the same bytes."""
        found: dict[int, int] = {}
        for call in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
            listed: dict[int, int] = {}
            for process in _optional(nvml, lambda call=call: call(handle)) or []:  # type: ignore[misc]
                listed[process.pid] = listed.get(process.pid, 0) + (process.usedGpuMemory or 0)
            for pid, size in listed.items():
                found[pid] = max(size, found.get(pid, 0))
        here = pids_here(found, self._proc)
        processes: dict[int, int] = {}
        for pid, size in found.items():
            processes[here.get(pid, pid)] = processes.get(here.get(pid, pid), 0) + size
        return processes

    # errors the driver reports

    def _subscribe(self, nvml: Nvml) -> Iterator[tuple[int, Any]]:
        """For each card that tells of its errors, by index, what they are heard at.

        Each has its own, because one that is lost cannot be asked any more which one an error was about.
        """
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                card = nvml.nvmlDeviceGetHandleByIndex(index)
                wanted = nvml.nvmlDeviceGetSupportedEventTypes(card) & (EVENT_XID | EVENT_DOUBLE_BIT_ECC)
                if not wanted:
                    continue
                events = nvml.nvmlEventSetCreate()
                try:
                    nvml.nvmlDeviceRegisterEvents(card, wanted, events)
                except nvml.NVMLError:
                    nvml.nvmlEventSetFree(events)
                    raise
            except nvml.NVMLError as error:
                log.debug("a device does not tell of its errors", device=f"cuda:{index}", error=str(error))
            else:
                yield index, events

    def _hear(self, nvml: Nvml, index: int, events: Any) -> None:
        """Take what was reported of a card, without waiting; of each kind of error the latest is kept."""
        for _ in range(EVENTS_MAX):
            try:
                event = nvml.nvmlEventSetWait(events, 0)
            except nvml.NVMLError as error:
                if _code(error) != TIMEOUT:
                    log.debug("the errors of a device are not heard", device=f"cuda:{index}", error=str(error))
                return
            code = xid.DOUBLE_BIT if event.eventType == EVENT_DOUBLE_BIT_ECC else event.eventData
            faults, key = self._faults[index], (event.gpuInstanceId, code)
            faults.pop(key, None)  # one that is reported again is the latest
            faults[key] = self._fault(code)

    def _fault(self, code: int) -> Fault:
        problem, advice = xid.CRITICAL.get(code) or (xid.PROGRAMS.get(code, "see the driver's catalogue of XIDs"), "")
        return Fault(
            number=next(self._numbers),
            reason=f"Xid{code}",
            problem=f"XID {code}: {problem}",
            advice=advice,
            critical=code in xid.CRITICAL,
        )

    def _faults_of(self, index: int, instance: int = WHOLE_CARD) -> tuple[Fault, ...]:
        """Those of a card; of one of its instances those that are about it or the whole card."""
        faults, about = self._faults[index].items(), (instance, WHOLE_CARD)
        return tuple(fault for (place, _), fault in faults if instance == WHOLE_CARD or place in about)


def _library() -> Nvml | None:
    """The driver's library; a machine without it is spared its bindings, which take 15 MiB."""
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return cast(Nvml, importlib.import_module("pynvml"))


def _optional(nvml: Nvml, call: Callable[[], T]) -> T | None:
    """What a device need not have; None when it has not. A device that is lost is an error also here."""
    try:
        return call()
    except nvml.NVMLError as error:
        if _code(error) in BROKEN:
            raise
        return None


def _code(error: Exception) -> int:
    return int(getattr(error, "value", 0))


def _text(name: str | bytes) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name
