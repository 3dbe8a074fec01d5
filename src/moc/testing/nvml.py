# ruff: noqa: N802, N815 - the names are the library's
"""NVIDIA's driver library without a driver: cards are set by the test, and so is what goes wrong with them."""

import threading
from collections import deque
from dataclasses import dataclass, field

GIB = 2**30
_NAMES = {2: "Invalid Argument", 3: "Not Supported", 6: "Not Found", 9: "Driver Not Loaded", 10: "Timeout"}
_NAMES |= {12: "NVML Shared Library Not Found", 15: "GPU is lost", 16: "GPU requires restart", 999: "Unknown Error"}


class FakeNvmlError(Exception):
    """As pynvml's: `value` is NVML's code."""

    def __init__(self, value: int) -> None:
        super().__init__(_NAMES.get(value, f"Error {value}"))
        self.value = value


@dataclass
class FakeMemory:
    """Bytes of a device."""

    total: int
    used: int
    reserved: int = 0


@dataclass
class FakeProcess:
    """`usedGpuMemory` is None where the driver does not tell."""

    pid: int
    usedGpuMemory: int | None


@dataclass
class FakeUtilization:
    """Percent."""

    gpu: int
    memory: int = 0


@dataclass
class FakeEvent:
    """As the event set gives it; about the whole card unless it names an instance."""

    eventType: int
    eventData: int
    gpuInstanceId: int = 0xFFFFFFFF


@dataclass(eq=False)
class FakeCard:
    """One card or MIG instance. `fails` is the code that every call about it raises; None in a value: not supported.

    `events` are those of the card that nobody heard yet; `instance` is the number of a MIG instance.
    """

    name: str = "NVIDIA Fake"
    uuid: str = "GPU-fake"
    total: int = 80 * GIB
    used: int = 0
    reserved: int = 0
    compute: list[FakeProcess] = field(default_factory=list)
    graphics: list[FakeProcess] = field(default_factory=list)
    temperature: int | None = 40
    utilization: int | None = 0
    event_kinds: int | None = 0x8 | 0x2
    events: "deque[FakeEvent]" = field(default_factory=deque)
    mig: "list[FakeCard | None] | None" = None
    instance: int | None = None
    generation: int | None = 9
    fails: int | None = None


class FakeNvml:
    """The functions of `pynvml` that `hardware.nvml` calls.

    While `gate` is not set every call hangs. `missing` is the code that opening the library raises,
    `old` makes it one that does not know the second version of memory information.
    """

    NVMLError = FakeNvmlError

    def __init__(self, *cards: FakeCard, missing: int | None = None, old: bool = False) -> None:
        self.cards = list(cards)
        self.missing = missing
        self.old = old
        self.gate = threading.Event()
        self.gate.set()
        self.registered: list[FakeCard] = []
        self.opened = 0

    def nvmlInit(self) -> None:
        self._enter()
        if self.missing is not None:
            raise FakeNvmlError(self.missing)
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self._enter()
        if self.opened < 1:
            raise FakeNvmlError(1)
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:
        self._enter()
        if self.opened < 1:
            raise FakeNvmlError(1)
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeCard:
        return self._of(self.cards[index])

    def nvmlDeviceGetName(self, handle: FakeCard) -> str:
        return self._of(handle).name

    def nvmlDeviceGetUUID(self, handle: FakeCard) -> str:
        return self._of(handle).uuid

    def nvmlDeviceGetCudaComputeCapability(self, handle: FakeCard) -> tuple[int, int]:
        return _supported(self._of(handle).generation), 0

    def nvmlDeviceGetMemoryInfo(self, handle: FakeCard, version: int | None = None) -> FakeMemory:
        card = self._of(handle)
        if version is None:
            return FakeMemory(card.total, card.used + card.reserved)
        if self.old:
            raise FakeNvmlError(13)
        return FakeMemory(card.total, card.used, card.reserved)

    def nvmlDeviceGetUtilizationRates(self, handle: FakeCard) -> FakeUtilization:
        return FakeUtilization(_supported(self._of(handle).utilization))

    def nvmlDeviceGetTemperature(self, handle: FakeCard, sensor: int) -> int:
        return _supported(self._of(handle).temperature)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: FakeCard) -> list[FakeProcess]:
        return self._of(handle).compute

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: FakeCard) -> list[FakeProcess]:
        return self._of(handle).graphics

    def nvmlDeviceGetMigMode(self, handle: FakeCard) -> list[int]:
        return [1, 1] if self._of(handle).mig is not None else [0, 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: FakeCard) -> int:
        return len(self._of(handle).mig or [])

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: FakeCard, index: int) -> FakeCard:
        instance = (self._of(handle).mig or [])[index]
        if instance is None:
            raise FakeNvmlError(6)
        return instance

    def nvmlDeviceGetGpuInstanceId(self, handle: FakeCard) -> int:
        return _supported(self._of(handle).instance)

    def nvmlDeviceGetSupportedEventTypes(self, handle: FakeCard) -> int:
        return _supported(self._of(handle).event_kinds)

    def nvmlEventSetCreate(self) -> list[FakeCard]:
        self._enter()
        return []

    def nvmlEventSetFree(self, events: list[FakeCard]) -> None:
        self._enter()
        for card in events:
            self.registered.remove(card)

    def nvmlDeviceRegisterEvents(self, handle: FakeCard, kinds: int, events: list[FakeCard]) -> None:
        events.append(self._of(handle))
        self.registered.append(handle)

    def nvmlEventSetWait(self, events: list[FakeCard], timeout_ms: int) -> FakeEvent:
        self._enter()
        for card in events:
            if card.events:
                return card.events.popleft()
        raise FakeNvmlError(10)

    def _enter(self) -> None:
        self.gate.wait()

    def _of(self, card: FakeCard) -> FakeCard:
        self._enter()
        if card.fails is not None:
            raise FakeNvmlError(card.fails)
        return card


def _supported(value: int | None) -> int:
    if value is None:
        raise FakeNvmlError(3)
    return value
