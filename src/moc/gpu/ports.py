"""What device memory needs from others: sources that read it, and the right to say how this host's devices are."""

from collections.abc import Sequence
from typing import Protocol

from moc.gpu.device import DeviceReading
from moc.gpu.eviction import Tenant
from moc.gpu.ledger import Demand
from moc.gpu.plan import JobLease, Refusal
from moc.kernel.records import Fence


class DeviceSource(Protocol):
    """Reads all devices of one kind. Calls may block, or never return: make them in a thread of their own."""

    @property
    def kind(self) -> str:
        """The kind of the devices it reads."""
        ...

    def read(self) -> list[DeviceReading]:
        """Every device there is now; none is no error. Raises whatever went wrong when that cannot be told."""
        ...

    def close(self) -> None:
        """Let go of what reading holds; a later `read` takes it again."""
        ...


class HostSeat(Protocol):
    """The right to change what is recorded of this host."""

    def fence(self) -> Fence:
        """The operation that makes a commit fail once this term is over; NotLeader if it is known to be."""
        ...


class Tenants(Protocol):
    """The models that are loaded, whom eviction may ask to leave."""

    def tenants(self) -> Sequence[Tenant]:
        """Every one that is loaded now."""
        ...

    async def evict(self, holder: str, *, reason: str, because: str) -> None:
        """Let its requests end, end its process, give its charge back; returns then. No error if it is gone."""
        ...

    def lose(self, holder: str, *, because: str) -> None:
        """Begin to end its process, whatever it does: its device is lost. Idempotent."""
        ...


class Yielding(Protocol):
    """The leases of jobs, which give way to models."""

    def foresee(self, demand: Demand, refusal: Refusal) -> Sequence[JobLease]:
        """Those that would end for the demand of a model that was refused so; changes nothing."""
        ...

    async def to_model(self, demand: Demand, refusal: Refusal, patience_s: float) -> None:
        """Have leases end for the demand of a model that was refused so, if that makes room for it in time.

        What they give back is charged to the demand's holder, and so is what is free there now: it is for whoever
        releases that holder to give back. Does nothing while leases end for it already.
        """
        ...

    def forget(self, holder: str) -> bool:
        """Nothing more is to be charged to it; whether it was waited for. Idempotent."""
        ...
