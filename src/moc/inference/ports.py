"""What inference needs from others: a model that is ready, and a line to its worker."""

from collections.abc import AsyncIterator
from typing import Protocol

from moc.inference.request import Info, Reply, Request
from moc.inference.routing import Route
from moc.resilience.deadline import Deadline


class Link(Protocol):
    """The line to one worker."""

    @property
    def info(self) -> Info: ...

    @property
    def alive(self) -> bool:
        """False from the moment the connection is lost."""
        ...

    @property
    def responsive(self) -> bool:
        """False while the worker gives no sign of life; what it was given is not lost by that."""
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


class Batching(Protocol):
    """How requests on tensors are gathered."""

    @property
    def max_batch(self) -> int:
        """Rows that go to the engine at once."""
        ...

    @property
    def max_delay_ms(self) -> float:
        """How long a request may wait for others."""
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
    def max_concurrent(self) -> int | None:
        """How many requests at once, None = as for all models."""
        ...

    @property
    def max_queue(self) -> int | None:
        """How many may wait, None = as for all models."""
        ...

    @property
    def batching(self) -> Batching | None:
        """None = its requests are not gathered."""
        ...

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

    def is_loading(self, reference: str) -> bool:
        """Whether somebody, or the coordinator itself, has begun to load it; NotFound."""
        ...

    def load_left_s(self, reference: str) -> float:
        """How long its load takes from now on at the soonest, going by its last; 0 when that is not known; NotFound."""
        ...

    async def ensure_ready(self, reference: str, deadline: Deadline) -> Resident:
        """Load it if it is not: NotFound, LoadFailed, DeadlineExceeded. Many callers start one load."""
        ...


class Links(Protocol):
    """The lines that are open."""

    def link(self, worker_id: str) -> Link | None:
        """The line to a worker, None when it is gone."""
        ...


class Routes(Protocol):
    """Which names are aliases."""

    def route(self, name: str) -> Route | None:
        """What an alias stands for now, None when it is none; a look into a table."""
        ...


class Facts(Protocol):
    """What is known of models that are named in routes, loaded or not."""

    def cost(self, reference: str) -> float:
        """What the operator said a request costs."""
        ...

    def is_remote(self, reference: str) -> bool:
        """Whether somebody else runs it, elsewhere."""
        ...

    def is_well(self, worker_id: str) -> bool:
        """Whether a worker gives signs of life and answers as it should."""
        ...


class Meter(Protocol):
    """Who is told about every request."""

    def finished(self, reference: str, kind: str, code: str, *, queue_s: float, engine_s: float) -> None:
        """A request is over: `code` is `ok` or an error's code; seconds waited and seconds in the engine."""
        ...
