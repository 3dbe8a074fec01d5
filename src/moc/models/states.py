"""What is recorded of how versions are doing; behind what is so, when the store could not be written to."""

from typing import Any

import structlog

from moc.kernel.errors import MocError
from moc.models.catalogue import Catalogue
from moc.models.model import State
from moc.models.slot import Slot

log = structlog.get_logger(__name__)


class States:
    """Records moves from state to state, and notes which slots are `behind`. Their locks are held meanwhile."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    async def move(self, slot: Slot, state: State, *, reason: str, **how: Any) -> None:
        """See `Catalogue.move`."""
        slot.behind = True
        await self._catalogue.move(slot.entry, state, reason=reason, **how)
        slot.behind = False

    async def pass_through(self, slot: Slot, state: State, *, reason: str, actor: str) -> None:
        """As `move`, for a step on the way to an end that is reached though it cannot be recorded."""
        try:
            await self.move(slot, state, reason=reason, actor=actor)
        except MocError as error:
            log.warning("a state was not recorded", model=slot.reference, state=state, error=error.message)

    async def catch_up(self, slot: Slot) -> None:
        """Record that it is not loaded if it is not, and that could not be recorded when it came to be so."""
        if slot.resident is not None or not slot.behind:
            return
        if slot.entry.status.state not in (State.REGISTERED, State.FAILED):
            await self.move(slot, State.REGISTERED, reason="Unrecorded", worker_id="")
        slot.behind = False
