"""Copies of requests, sent to a model to see how it does beside the one that answers; their answers are dropped."""

import asyncio
import random
from typing import Final, Protocol

import structlog
from msgspec.structs import replace

from moc.inference.observed import Observed
from moc.inference.ports import Residents
from moc.inference.request import Caller, Request
from moc.inference.routing import Shadow
from moc.inference.station import Stations, Visit
from moc.kernel.errors import MocError
from moc.kernel.tasks import Tasks
from moc.resilience.deadline import Deadline
from moc.resilience.retry import RetryBudget

log = structlog.get_logger(__name__)

COPIES_MAX: Final = 16
"""So many may be under way at once."""

COPY_TIMEOUT_S: Final = 60.0

_CALLER: Final = Caller("shadow")
_NO_BUDGET: Final = RetryBudget(0)


class ShadowWatcher(Protocol):
    """Who is told of copies."""

    def shadowed(self, alias: str, reference: str, code: str) -> None:
        """A copy ended: `code` is `ok`, an error's code, or `dropped` if it was not sent at all."""
        ...


class Shadows:
    """What shadows get. A copy takes what is left over: it is dropped when its model is not loaded or has no free
    place, or when there are too many copies; nobody waits for it, and nobody is billed.
    """

    def __init__(self, *, residents: Residents, stations: Stations, observed: Observed, watcher: ShadowWatcher) -> None:
        self._residents = residents
        self._stations = stations
        self._observed = observed
        self._watcher = watcher
        self._running = 0
        self._tasks = Tasks(lambda error: log.error("a copy of a request failed", exc_info=error))

    def mirror(self, alias: str, shadow: Shadow, request: Request, *, streamed: bool) -> None:
        """Copy the request, if it is of the share that is; returns at once."""
        if random.random() * 100 >= shadow.share_pct:  # noqa: S311  no secret
            return
        visit = self._enter(shadow.reference, request) if self._running < COPIES_MAX else None
        if visit is None:
            self._watcher.shadowed(alias, shadow.reference, "dropped")
            return
        self._running += 1
        self._tasks.spawn(self._copy(alias, shadow.reference, visit, request, streamed=streamed))

    async def stop(self) -> None:
        """Drop those that are under way."""
        await self._tasks.cancel()

    def _enter(self, reference: str, request: Request) -> Visit | None:
        """A place for a copy, None if there is none to spare."""
        resident = self._residents.find(reference)
        if resident is None:
            return None
        try:
            station = self._stations.of(resident, request.kind)
            visit = Visit(resident, station, _NO_BUDGET, caller=_CALLER, kind=request.kind, meter=self._observed)
        except MocError:
            return None
        if visit.try_enter():
            return visit
        visit.end("cancelled")
        return None

    async def _copy(self, alias: str, reference: str, visit: Visit, request: Request, *, streamed: bool) -> None:
        request = replace(request, deadline=Deadline.after(COPY_TIMEOUT_S))
        code = "cancelled"
        try:
            async with asyncio.timeout(COPY_TIMEOUT_S):
                if streamed:
                    async for _ in visit.engine.stream(request):
                        pass
                else:
                    await visit.engine.infer(request)
            code = "ok"
        except TimeoutError:
            code = "deadline_exceeded"
        except MocError as error:
            code = error.code
        except Exception:
            code = "internal"
            raise
        finally:
            self._running -= 1
            visit.end(code)
            self._watcher.shadowed(alias, reference, code)
