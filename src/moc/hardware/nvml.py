# ruff: noqa: N802 - the names are the library's
"""NVIDIA devices as their driver tells of them, through NVML."""

import contextlib
import ctypes
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import structlog

from moc.gpu.device import Device, DeviceReading
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
PROGRAM_XIDS = frozenset({13, 31, 43, 45, 68, 109})
"""XIDs that a faulty program causes; the device is none the worse."""


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
    def nvmlDeviceGetIndex(self, handle: Handle) -> int: ...
    def nvmlDeviceGetName(self, handle: Handle) -> str | bytes: ...
    def nvmlDeviceGetUUID(self, handle: Handle) -> str | bytes: ...
    def nvmlDeviceGetMemoryInfo(self, handle: Handle, version: int | None = None) -> Memory: ...
    def nvmlDeviceGetUtilizationRates(self, handle: Handle) -> Any: ...
    def nvmlDeviceGetTemperature(self, handle: Handle, sensor: int) -> int: ...
    def nvmlDeviceGetComputeRunningProcesses(self, handle: Handle) -> list[Any]: ...
    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: Handle) -> list[Any]: ...
    def nvmlDeviceGetMigMode(self, handle: Handle) -> list[int]: ...
    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Handle) -> int: ...
    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Handle, index: int) -> Handle: ...
    def nvmlDeviceGetSupportedEventTypes(self, handle: Handle) -> int: ...
    def nvmlEventSetCreate(self) -> Any: ...
    def nvmlEventSetFree(self, events: Any) -> None: ...
    def nvmlDeviceRegisterEvents(self, handle: Handle, kinds: int, events: Any) -> None: ...
    def nvmlEventSetWait(self, events: Any, timeout_ms: int) -> Any: ...


class NvmlDevices:
    """Every NVIDIA device as `cuda:0`, `cuda:1`, …; of one that is divided, its MIG instances `cuda:0/mig:0`, ….

    A machine without the driver, or without its library, has none. Capacity is without what the driver
    keeps for itself. A hardware error the driver reported stays the device's `problem` until this is
    closed. `proc` is where processes are looked up when the driver's numbers are not this host's.
    """

    kind = "cuda"

    def __init__(self, library: Nvml | None = None, *, proc: Path = Path("/proc")) -> None:
        self._given = library
        self._proc = proc
        self._open: Nvml | None = None
        self._events: Any = None
        self._seen: dict[int, Device] = {}
        self._problems: dict[int, str] = {}

    def read(self) -> list[DeviceReading]:
        """See `DeviceSource.read`; the driver is opened by the first read, and again after it failed."""
        nvml = self._open or self._begin()
        if nvml is None:
            return []
        try:
            count = nvml.nvmlDeviceGetCount()
            self._hear(nvml)
            return [reading for index in range(count) for reading in self._card(nvml, index)]
        except nvml.NVMLError:
            self.close()
            raise

    def close(self) -> None:
        """Close the driver; errors of that are nobody's concern."""
        nvml, self._open = self._open, None
        events, self._events = self._events, None
        self._problems.clear()
        if nvml is None:
            return
        if events is not None:
            with contextlib.suppress(nvml.NVMLError):
                nvml.nvmlEventSetFree(events)
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
        self._events = self._subscribe(nvml)
        return nvml

    # cards

    def _card(self, nvml: Nvml, index: int) -> Iterator[DeviceReading]:
        """The readings of one card; one that is lost is read as such and does not keep the others from being read."""
        try:
            card = nvml.nvmlDeviceGetHandleByIndex(index)
            if (_optional(nvml, lambda: nvml.nvmlDeviceGetMigMode(card)) or [0])[0]:
                yield from list(self._instances(nvml, index, card))
                return
            device, used = self._memory(nvml, f"cuda:{index}", card)
            self._seen[index] = device
            yield self._reading(nvml, index, card, card, device, used)
        except nvml.NVMLError as error:
            unknown = Device(id=f"cuda:{index}", kind=self.kind, name="unknown", capacity_bytes=0)
            problem = self._problems.get(index) or f"the driver says: {error}"
            yield DeviceReading(device=self._seen.get(index, unknown), used_bytes=0, problem=problem, lost=True)

    def _instances(self, nvml: Nvml, index: int, card: Handle) -> Iterator[DeviceReading]:
        for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(card)):
            try:
                instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, number)
            except nvml.NVMLError as error:
                if _code(error) in (NOT_FOUND, INVALID_ARGUMENT):  # no instance has this number
                    continue
                raise
            device, used = self._memory(nvml, f"cuda:{index}/mig:{number}", instance)
            yield self._reading(nvml, index, card, instance, device, used)

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
        device = Device(
            id=device_id,
            kind=self.kind,
            name=_text(nvml.nvmlDeviceGetName(handle)),
            capacity_bytes=max(0, memory.total - reserved),
            uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        )
        return device, memory.used

    def _reading(
        self, nvml: Nvml, index: int, card: Handle, handle: Handle, device: Device, used: int
    ) -> DeviceReading:
        utilization = _optional(nvml, lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        believed = max(0, min(used, device.capacity_bytes))
        problem = self._problems.get(index, "")
        if believed != used and not problem:
            problem = f"the driver claims that {used} of {device.capacity_bytes} bytes are in use"
        return DeviceReading(
            device=device,
            used_bytes=believed,
            processes=self._processes(nvml, handle),
            temperature_c=_optional(nvml, lambda: float(nvml.nvmlDeviceGetTemperature(card, TEMPERATURE_GPU))),
            utilization_ratio=None if utilization is None else min(1.0, utilization / 100),
            problem=problem,
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

    # errors the hardware reports

    def _subscribe(self, nvml: Nvml) -> Any:
        """A set of the error events of every card; None where the driver has no such thing."""
        try:
            count = nvml.nvmlDeviceGetCount()
            events = nvml.nvmlEventSetCreate()
        except nvml.NVMLError:
            return None
        for index in range(count):
            try:
                card = nvml.nvmlDeviceGetHandleByIndex(index)
                wanted = nvml.nvmlDeviceGetSupportedEventTypes(card) & (EVENT_XID | EVENT_DOUBLE_BIT_ECC)
                if wanted:
                    nvml.nvmlDeviceRegisterEvents(card, wanted, events)
            except nvml.NVMLError as error:
                log.debug("a device does not tell of its errors", device=f"cuda:{index}", error=str(error))
        return events

    def _hear(self, nvml: Nvml) -> None:
        """Take what the event set holds, without waiting."""
        if self._events is None:
            return
        for _ in range(EVENTS_MAX):
            try:
                event = nvml.nvmlEventSetWait(self._events, 0)
                index = nvml.nvmlDeviceGetIndex(event.device)
            except nvml.NVMLError as error:
                if _code(error) != TIMEOUT:
                    log.debug("the error events of the NVIDIA driver end", error=str(error))
                return
            if event.eventType == EVENT_DOUBLE_BIT_ECC:
                self._problems[index] = "double-bit ECC error; the device needs a reset"
            elif event.eventType == EVENT_XID and event.eventData not in PROGRAM_XIDS:
                self._problems[index] = f"XID {event.eventData} reported by the driver; see its catalogue of XID errors"


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
