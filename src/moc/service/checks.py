"""What has to be well for requests to be sent here, part by part."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from moc.gpu.device import DeviceState
from moc.gpu.monitor import DeviceMonitor
from moc.kernel.errors import NotFound
from moc.kernel.records import Store
from moc.models.aliases import AliasBook
from moc.models.catalogue import Catalogue, Entry
from moc.models.model import State
from moc.security.identity import Identity
from moc.security.policy import Operation
from moc.service.guard import seen
from moc.service.health import Health
from moc.service.replica import Replica
from moc.service.views import Readiness


class HeldSeat(Protocol):
    """A seat as this replica sees it."""

    @property
    def name(self) -> str: ...

    @property
    def term(self) -> int: ...

    @property
    def held(self) -> bool: ...


class Checks:
    """Looks at the parts of this replica.

    Devices are told of, but do not count: what is on one that is lost can be loaded elsewhere. So are the models that
    should be there, which are those that are preloaded, pinned or named by an alias; with `needs_models` they count. A
    model that was unloaded, for being idle or on request, is well: the next request loads it.
    """

    def __init__(
        self,
        *,
        replica: Replica,
        store: Store,
        seats: Sequence[HeldSeat],
        devices: DeviceMonitor,
        catalogue: Catalogue,
        aliases: AliasBook,
        health: Health,
        needs_models: bool = False,
    ) -> None:
        self._replica = replica
        self._store = store
        self._seats = seats
        self._devices = devices
        self._catalogue = catalogue
        self._aliases = aliases
        self._health = health
        self._needs_models = needs_models

    def readiness(self, identity: Identity | None = None) -> Readiness:
        """Whether requests should be sent here. Models are named to whom they may be, else they are one part."""
        problems = dict(self._own())
        models = dict(self._models())
        counted = models if self._needs_models else {}
        ready = not any((*problems.values(), *counted.values()))
        problems |= {
            f"device {device_id}": "it is lost" if state is DeviceState.LOST else ""
            for device_id, state in self._devices.states().items()
        }
        if identity is None:
            problems["models"] = _in_short(models)
        else:
            may_see = seen(identity, Operation.READ_MODELS)
            named = {name: problem for name, problem in models.items() if may_see(name.partition("@")[0])}
            problems |= {f"model {name}": problem for name, problem in named.items()}
        return Readiness(
            ready,
            {part: not problem for part, problem in problems.items()},
            {part: problem for part, problem in problems.items() if problem},
        )

    def _own(self) -> Iterator[tuple[str, str]]:
        state = self._replica.state
        yield "replica", "" if state == "ready" else f"it is {state}"
        for seat in self._seats:
            yield f"seat {seat.name}", "" if seat.held else "it is not held here"
        yield "store", "" if self._store.well else "its last commit failed"
        for name, listening in self._replica.listeners.items():
            yield name, "" if listening() else "it does not listen"

    def _models(self) -> Iterator[tuple[str, str]]:
        for entry in self._wanted():
            yield entry.version.reference, self._problem(entry)

    def _wanted(self) -> list[Entry]:
        newest = [self._catalogue.entry(name) for name in self._catalogue.names()]
        wanted = [entry for entry in newest if entry.version.spec.preload or entry.version.spec.pin]
        for name in self._aliases.names():
            for reference in self._aliases.get(name).versions:
                try:
                    wanted.append(self._catalogue.entry(reference))
                except NotFound:
                    continue
        return list({entry.version.reference: entry for entry in wanted}.values())

    def _problem(self, entry: Entry) -> str:
        status = entry.status
        if status.state is State.READY:
            return self._health.problem(status.worker_id)
        if status.state is State.REGISTERED:
            return ""
        return f"it is {status.state}" + (f": {status.message}" if status.message else "")


def _in_short(models: dict[str, str]) -> str:
    count = sum(1 for problem in models.values() if problem)
    return f"{count} of the {len(models)} that should be there do not answer; /health names them" if count else ""
