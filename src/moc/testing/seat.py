"""A seat that is always held, until the test says otherwise."""

from moc.kernel.errors import NotLeader
from moc.kernel.records import Fence, Store


class FakeSeat:
    """Takes the seat in the store once and trusts it for ever; `lose` ends its term for its holder."""

    def __init__(self, store: Store, name: str = "host/fake") -> None:
        self.name = name
        self.term = 0
        self.held = False
        self._store = store

    async def start(self) -> None:
        """Take the seat."""
        seat = await self._store.take_seat(self.name, "fake", 3600.0)
        if seat is None:
            raise NotLeader(f"{self.name} is taken")
        self.term, self.held = seat.term, True

    async def drain(self) -> None:
        return

    async def stop(self) -> None:
        return

    def lose(self) -> None:
        """From now on it is known to be over."""
        self.held = False

    def fence(self) -> Fence:
        """See `models.ports.HostSeat`."""
        if not self.held:
            raise NotLeader(f"{self.name} is not held any more")
        return Fence(self.name, self.term)
