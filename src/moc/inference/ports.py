"""What inference needs from others: a model that is ready, and a line to its worker."""

from collections.abc import AsyncIterator
from typing import Protocol

from moc.inference.request import Info, Reply, Request
from moc.resilience.deadline import Deadline


class Link(Protocol):
    """The line to one worker."""

    @property
    def info(self) -> Info: ...

    @property
    def alive(self) -> bool:
        """False from the moment the connection is lost."""
        ...

    async def infer(self, request: Request) -> Reply:
        """One answer. Cancelling the caller cancels the work in the engine.

        Raises what the engine raised, or WorkerLost with `sent` telling whether it had been written.
        """
        ...

    def stream(self, request: Request) -> AsyncIterator[list[bytes]]:
        """The JSON chunks of one answer as the engine makes them, all that are there at once, at least one.

        Closing the iterator cancels the work.

        A reader that does not keep up holds the engine back (bounded credit).
        """
        ...


class Resident(Protocol):
    """A model version that is loaded."""

    @property
    def reference(self) -> str:
        """`name@version`."""
        ...

    @property
    def digest(self) -> str: ...

    @property
    def worker_id(self) -> str: ...

    @property
    def max_concurrent(self) -> int: ...

    @property
    def max_queue(self) -> int: ...

    def enter(self) -> None:
        """Count one more request that uses it: it will not be unloaded under it."""
        ...

    def leave(self) -> None:
        """The request is over."""
        ...


class Residents(Protocol):
    """Which models are loaded."""

    def find(self, reference: str) -> Resident | None:
        """The loaded version `name` or `name@version` stands for, without waiting; None when not loaded."""
        ...

    async def ensure_ready(self, reference: str, deadline: Deadline) -> Resident:
        """Load it if it is not: NotFound, LoadFailed, DeadlineExceeded. Many callers start one load."""
        ...


class Links(Protocol):
    """The lines that are open."""

    def link(self, worker_id: str) -> Link | None:
        """The line to a worker, None when it is gone."""
        ...
