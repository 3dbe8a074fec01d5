"""Which version answers for which reference, and which of them may not be unloaded."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from moc.models.catalogue import Catalogue, Entry
from moc.models.model import FailReason, State, parse_reference
from moc.models.resident import Resident
from moc.models.slot import Limits, Slot


class Roster:
    """A slot for each version, and what requests find.

    `on_successor(slot, predecessor)` is called when a version is to be loaded that its predecessor answers for.
    """

    def __init__(self, catalogue: Catalogue, limits: Limits, *, on_successor: Callable[[Slot, Slot], None]) -> None:
        self.limits = limits
        self._catalogue = catalogue
        self._on_successor = on_successor
        self._slots: dict[tuple[str, int], Slot] = {}
        self._found: dict[str, Resident] = {}
        self._holds: Counter[str] = Counter()

    def adjust(self, limits: Limits) -> None:
        """Let these limits count from now on."""
        self.limits = limits
        for slot in self._slots.values():
            slot.limits, slot.breaker.limits = limits, limits.breaker

    def slots(self) -> list[Slot]:
        """Those there are."""
        return list(self._slots.values())

    def slot(self, entry: Entry) -> Slot:
        """A version's own."""
        key = (entry.version.name, entry.version.version)
        slot = self._slots.get(key)
        if slot is None:
            slot = self._slots[key] = Slot(entry, self.limits)
        return slot

    def find(self, reference: str) -> Resident | None:
        """The loaded version a reference stands for now."""
        return self._found.get(reference)

    def serving(self, reference: str) -> Entry:
        """The version that answers requests for a reference; NotFound when there is none.

        A name means its newest version. But one that was never ready is no successor yet: while an older one is
        loaded, that goes on answering; and if the newest cannot be loaded, the last one that ever was ready does.
        """
        newest = self._catalogue.entry(reference)
        if parse_reference(reference)[1] is not None or newest.status.info:
            return newest
        broken = newest.status.state is State.FAILED and newest.status.reason != FailReason.OUT_OF_MEMORY
        for older in reversed(self._catalogue.versions(newest.version.name)[:-1]):
            if self.slot(older).resident is not None or (broken and older.status.info):
                return older
        return newest

    def publish(self, slot: Slot, resident: Resident) -> None:
        """Let requests find it."""
        slot.occupy(resident)
        self._found[resident.reference] = resident
        self.point(slot.entry.version.name)

    def withdraw(self, slot: Slot) -> None:
        """Let no request find it any more."""
        resident, slot.resident = slot.resident, None
        self._found = {key: value for key, value in self._found.items() if value is not resident}
        self.point(slot.entry.version.name)

    @contextmanager
    def leaving(self, entries: Iterable[Entry]) -> Iterator[None]:
        """Let nobody load these any more, unless it fails to remove them."""
        slots = [self.slot(entry) for entry in entries]
        for slot in slots:
            slot.leaving = True
        try:
            yield
        except BaseException:
            for slot in slots:
                slot.leaving = False
            raise

    def forget(self, entry: Entry) -> None:
        """A version is gone for good."""
        self._slots.pop((entry.version.name, entry.version.version), None)
        self.point(entry.version.name)

    def point(self, name: str) -> None:
        """Let a bare name find the version that answers for it, and have the one loaded that is to succeed that."""
        versions = self._catalogue.versions(name)
        slot = self.slot(self.serving(name)) if versions else None
        if slot is None or slot.resident is None:
            self._found.pop(name, None)
            return
        self._found[name] = slot.resident
        newest = versions[-1]
        if newest is not slot.entry and newest.status.state is State.REGISTERED:
            self._on_successor(self.slot(newest), slot)

    def clear(self) -> None:
        """Let no request find anything."""
        self._found.clear()
        for slot in self._slots.values():
            slot.resident = None

    def hold(self, reference: str) -> None:
        """Unload it neither for being idle nor for another, until `unhold` was called as often."""
        self._holds[reference] += 1

    def unhold(self, reference: str) -> None:
        """See `hold`."""
        self._holds[reference] -= 1
        self._holds += Counter()  # without those that nobody holds

    def is_held(self, reference: str) -> bool:
        """See `hold`."""
        return reference in self._holds
