"""What a caller may ask about leases of device memory."""

import asyncio
from collections.abc import AsyncGenerator

import msgspec

from moc.gpu.lease import HOLDING, LeaseTerms, Standing, Token
from moc.gpu.leases import Leases
from moc.kernel.errors import Conflict, Forbidden, InvalidRequest, NotFound
from moc.kernel.ids import new_id
from moc.kernel.units import Bytes
from moc.resilience.deadline import Deadline
from moc.security.identity import Identity
from moc.security.policy import Operation
from moc.service.guard import check, require
from moc.service.views import LeaseView, Page, lease_view

BYTES_MAX = 2**53
DAY_S = 86_400.0
_LOOK_S = 0.5


class LeaseWish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A lease that is wanted: `memory` such as `8GiB`, or `bytes`; the rest as in `gpu.lease.LeaseTerms`.

    It is waited for up to `wait_s`. `pid` is the process of the coordinator's host that uses it, if it is known.
    """

    memory: str | int | None = None
    bytes: int | None = None
    device: str = "auto"
    priority: int = 5
    ttl_s: float = 60.0
    wait_s: float = 0.0
    min_runtime_s: float = 0.0
    grace_s: float = 10.0
    pid: int | None = None


class LeasesService:
    """Leases of this host's devices."""

    def __init__(self, *, leases: Leases) -> None:
        self._leases = leases

    def count(self) -> dict[str, int]:
        """How many leases wait or have memory, by state."""
        return self._leases.count()

    async def list(self, identity: Identity, *, ended: bool, after: str | None, limit: int) -> Page[LeaseView]:
        """The leases, by id, oldest first; with `ended` also the last that are over."""
        require(identity, Operation.READ_LEASES)
        found = [each for each in self._leases.standings(ended=ended) if after is None or each.lease.id > after]
        views = [lease_view(each) for each in found[:limit]]
        return Page(views, views[-1].id if len(found) > limit else None)

    async def show(self, identity: Identity, lease_id: str) -> LeaseView:
        """One lease; NotFound when there is none."""
        require(identity, Operation.READ_LEASES)
        return lease_view(self._leases.show(lease_id))

    async def acquire(self, identity: Identity, wish: LeaseWish, deadline: Deadline) -> LeaseView:
        """A lease, granted; NoCapacity when it cannot be within `wait_s`. Cancelled it leaves nothing behind."""
        require(identity, Operation.CHANGE_LEASES)
        return lease_view(await self._acquire(identity, wish, deadline))

    async def follow(self, identity: Identity, wish: LeaseWish, deadline: Deadline) -> AsyncGenerator[LeaseView, None]:
        """Like `acquire`, but told of as it waits, whenever its place changes, and as it has it, until it is over.

        Closed before it told of the grant it leaves nothing behind.
        """
        require(identity, Operation.CHANGE_LEASES)
        lease_id = new_id("lse")
        asking = asyncio.create_task(self._acquire(identity, wish, deadline, lease_id))
        told = None
        try:
            while not (await asyncio.wait({asking}, timeout=_LOOK_S))[0]:
                pending = self._pending(lease_id)
                if pending is not None and (news := (pending.position, pending.estimated_wait_s is None)) != told:
                    told = news
                    yield lease_view(pending)
            standing = asking.result()
        except BaseException:
            await self._give_up(asking, identity)
            raise
        yield lease_view(standing)
        while standing.lease.state in HOLDING:
            await asyncio.sleep(_LOOK_S)
            check(identity, Operation.READ_LEASES)
            before, standing = standing.lease.state, self._leases.show(lease_id)
            if standing.lease.state != before:
                yield lease_view(standing)

    async def renew(self, identity: Identity, lease_id: str, token: str, pid: int | None) -> LeaseView:
        """Keep a lease for another `ttl_s`, and say which process uses it if that is new; Conflict when it is over."""
        require(identity, Operation.CHANGE_LEASES)
        proof = Token.parse(token)
        standing = self._leases.renew(lease_id, proof)
        if pid is not None:
            standing = await self._leases.occupy(lease_id, proof, pid, actor=identity.key_id)
        return lease_view(standing)

    async def release(self, identity: Identity, lease_id: str, token: str | None) -> LeaseView:
        """Give a lease back; idempotent. Without its token only the key that it was granted to may."""
        require(identity, Operation.CHANGE_LEASES)
        proof = self._own_token(identity, lease_id) if token is None else Token.parse(token)
        return lease_view(await self._leases.release(lease_id, proof, actor=identity.key_id))

    async def _acquire(
        self, identity: Identity, wish: LeaseWish, deadline: Deadline, lease_id: str | None = None
    ) -> Standing:
        _check(wish)
        terms = LeaseTerms(
            bytes=_size(wish),
            devices=wish.device,
            priority=wish.priority,
            ttl_s=wish.ttl_s,
            min_runtime_s=wish.min_runtime_s,
            grace_s=wish.grace_s,
        )
        return await self._leases.acquire(
            terms, identity=identity, pid=wish.pid, wait_s=wish.wait_s, deadline=deadline, lease_id=lease_id
        )

    async def _give_up(self, asking: asyncio.Task[Standing], identity: Identity) -> None:
        """Nobody waits for the lease any more."""
        asking.cancel()
        (outcome,) = await asyncio.gather(asking, return_exceptions=True)
        if isinstance(outcome, Standing) and outcome.lease.token is not None:
            await self._leases.release(outcome.lease.id, outcome.lease.token, actor=identity.key_id)

    def _pending(self, lease_id: str) -> Standing | None:
        """One who waits in line, None when it is not there yet or any more."""
        try:
            standing = self._leases.show(lease_id)
        except NotFound:
            return None
        return None if standing.position is None else standing

    def _own_token(self, identity: Identity, lease_id: str) -> Token:
        lease = self._leases.show(lease_id).lease
        if lease.holder != identity.key_id:
            raise Forbidden(f"lease {lease_id} was granted to another key; ask with its token")
        if lease.token is None:
            raise Conflict(f"lease {lease_id} is not granted yet; whoever waits for it gives it up by going away")
        return lease.token


def _size(wish: LeaseWish) -> int:
    if (wish.memory is None) == (wish.bytes is None):
        raise InvalidRequest("say how much memory with either `memory`, such as 8GiB, or `bytes`")
    size = Bytes.parse(wish.memory) if wish.memory is not None else wish.bytes or 0
    if not 0 < size <= BYTES_MAX:
        raise InvalidRequest(f"a lease is of 1 to {BYTES_MAX} bytes, not {int(size)}")
    return int(size)


def _check(wish: LeaseWish) -> None:
    limits: dict[str, tuple[float, float, float]] = {
        "priority": (wish.priority, 1, 10),
        "ttl_s": (wish.ttl_s, 1, DAY_S),
        "wait_s": (wish.wait_s, 0, DAY_S),
        "min_runtime_s": (wish.min_runtime_s, 0, 30 * DAY_S),
        "grace_s": (wish.grace_s, 0, DAY_S),
    }
    for name, (value, least, most) in limits.items():
        if not least <= value <= most:
            raise InvalidRequest(f"`{name}` is {least:g} to {most:g}, not {value:g}")
    if wish.pid is not None and not 0 < wish.pid < 2**31:
        raise InvalidRequest(f"`pid` is the number of a process, not {wish.pid}")
    if not 0 < len(wish.device) <= 200:
        raise InvalidRequest("`device` is `auto`, a kind such as `cuda` or an id such as `cuda:0`")
