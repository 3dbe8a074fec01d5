"""Keeping a seat: taking it at the start, extending it, and knowing at once when it is lost."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from moc.cluster.holder import Holder
from moc.kernel.clock import Clock, SystemClock
from moc.kernel.errors import Conflict, NotLeader, StoreUnavailable
from moc.kernel.records import STORE_FULL, Fence, Seat, Store

_RETRY_S = 0.1


class SeatKeeper:
    """Holds the seat `name` from start to stop.

    `holder` is what `str(Holder.here())` gives, so that others can tell whether it still lives.
    `on_lost(reason)` is called once, on the event loop, when the seat is lost while it is wanted; the keeper
    does not take it again by itself: what was begun under the old term has to end first.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        *,
        holder: str,
        on_lost: Callable[[str], None],
        ttl_s: float = 10.0,
        patience_s: float = 2.0,
        clock: Clock | None = None,
    ) -> None:
        self._store = store
        self._name = name
        self._holder = holder
        self._on_lost = on_lost
        self._ttl_s = ttl_s
        self._patience_s = patience_s
        self._clock = clock or SystemClock()
        self._seat: Seat | None = None
        self._term = 0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take the seat.

        From a process of this host that is dead it is taken at once. A living one is given `patience_s` to
        end, one that cannot be seen from here the ttl to let it expire; then Conflict, saying who has it.
        """
        if self._task is not None:
            return
        self._seat = await self._take()
        self._term = self._seat.term
        self._task = asyncio.create_task(self._keep(self._seat), name=f"seat-{self._name}")

    async def drain(self) -> None:
        """Nothing to wait for: the seat is kept until `stop`, for what is still running under it."""

    async def stop(self) -> None:
        """Stop keeping the seat and give it back; a store that fails frees it when it expires."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        seat, self._seat = self._seat, None
        if seat is not None:
            try:
                await self._store.leave_seat(seat)
            except StoreUnavailable:
                return

    @property
    def name(self) -> str:
        """The seat's name."""
        return self._name

    @property
    def held(self) -> bool:
        """Whether the seat is held, as far as can be trusted right now."""
        return self._seat is not None and self._clock.monotonic() < self._seat.trusted_until

    @property
    def term(self) -> int:
        """The term of the seat as last taken, 0 before that."""
        return self._term

    def fence(self) -> Fence:
        """The operation that makes a commit fail once this term is over; NotLeader if it is known to be."""
        if not self.held:
            raise NotLeader(f"this coordinator does not hold seat {self._name} now; ask the one that does")
        return Fence(self._name, self._term)

    async def _take(self) -> Seat:
        began = asyncio.get_running_loop().time()
        dead_term: int | None = None
        while True:
            seat = await self._store.take_seat(self._name, self._holder, self._ttl_s, dead_term=dead_term)
            if seat is not None:
                return seat
            other = next((each for each in await self._store.seats() if each.name == self._name), None)
            if other is None:
                continue
            holder = Holder.parse(other.holder)
            if holder is not None and holder.is_dead():
                dead_term = other.term
                continue
            seen = holder is not None and holder.is_near()
            # A little over the ttl, so that a seat nobody keeps has surely expired by then.
            patience_s = self._patience_s if seen else other.ttl_s + _RETRY_S
            if asyncio.get_running_loop().time() - began > patience_s:
                raise Conflict(_who_has(self._name, other, holder), details={"holder": other.holder})
            await asyncio.sleep(_RETRY_S)

    async def _keep(self, seat: Seat) -> None:
        try:
            while True:
                await asyncio.sleep(self._ttl_s / 3)
                seat = self._seat = await self._extend(seat)
        except Exception as error:  # whatever ends the keeping loses the seat, and somebody has to know
            self._seat = None
            self._on_lost(str(error))

    async def _extend(self, seat: Seat) -> Seat:
        """The seat, extended before it is trusted no more; a store that fails is asked again until then.

        One that is full does not count: what cannot be written to keep the seat, nobody can write to take it.
        """
        failure = "the store did not answer"
        while (left_s := seat.trusted_until - (asked_at := self._clock.monotonic())) > 0:
            try:
                async with asyncio.timeout(left_s):
                    return await self._store.keep_seat(seat)
            except TimeoutError:
                break
            except StoreUnavailable as error:
                failure = error.message
                if error.details.get("reason") == STORE_FULL:
                    seat = self._seat = replace(seat, trusted_until=max(seat.trusted_until, asked_at + self._ttl_s / 2))
                await asyncio.sleep(min(_RETRY_S, self._ttl_s / 10))
        raise NotLeader(f"seat {self._name} could not be kept in time: {failure}")


def _who_has(name: str, seat: Seat, holder: Holder | None) -> str:
    who = seat.holder if holder is None else f"pid {holder.pid} on {holder.host}"
    return f"another coordinator ({who}) holds seat {name} on this data directory; stop it or use another --data-dir"
