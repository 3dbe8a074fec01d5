"""Keeping devices below their threshold when what nobody declared grows, and models off those that are lost."""

import structlog

from moc.gpu.broker import Broker
from moc.kernel.errors import MocError
from moc.kernel.interval import Interval
from moc.kernel.routine import Routine

log = structlog.get_logger(__name__)


class Pressure:
    """Looks every `interval_s`; has the broker unload models where a device is lost, or filled past `threshold_pct`."""

    def __init__(self, broker: Broker, *, interval_s: float, threshold_pct: float) -> None:
        self._broker = broker
        self._interval = Interval(interval_s)
        self._threshold_pct = threshold_pct
        self._routine = Routine("pressure", self._watch)

    def adjust(self, *, interval_s: float, threshold_pct: float) -> None:
        """Look so often, and have devices relieved past so much, from now on."""
        self._threshold_pct = threshold_pct
        self._interval.change(interval_s)

    async def start(self) -> None:
        """Begin to look."""
        self._routine.start()

    async def drain(self) -> None:
        return

    async def stop(self) -> None:
        """Look no more."""
        await self._routine.stop()

    async def _watch(self) -> None:
        while True:
            await self._interval.wait()
            try:
                self._broker.abandon()
                await self._broker.relieve(self._threshold_pct)
            except MocError as error:
                log.warning("a full device was not relieved", error=error.message)
