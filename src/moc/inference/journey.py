"""A request on its way along a route: from target to target until one of them answers."""

from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

import structlog

from moc.inference.answer import Answer, AnswerStream
from moc.inference.race import first_right
from moc.kernel.errors import Internal, MocError, retold
from moc.resilience.deadline import Deadline
from moc.resilience.retry import RetryBudget

log = structlog.get_logger(__name__)

A = TypeVar("A", Answer, AnswerStream)
Ask = Callable[[str], Coroutine[Any, Any, A]]
"""Sends a request to one target."""

PASSED_ON: Final = frozenset(
    {
        "circuit_open",
        "deadline_exceeded",
        "deadline_unreachable",
        "internal",
        "load_failed",
        "no_capacity",
        "queue_full",
        "rate_limited",
        "store_unavailable",
        "unavailable",
        "worker_lost",
    }
)
"""Codes after which the next target is tried while there is time: another may do better."""


class Hedge(NamedTuple):
    """A second target is asked too when the first has not answered after so long, and its budget allows."""

    after_s: float
    budget: RetryBudget


class Watcher(Protocol):
    """Who is told what was done for a request beside serving it."""

    def fell_back(self, alias: str, reference: str, code: str) -> None:
        """A target failed, and the next one is tried."""
        ...

    def hedged(self, alias: str, reference: str) -> None:
        """A target takes long, and the next one is asked too."""
        ...


class Journey(Generic[A]):
    """One request, and the targets it has ahead; `ask_last` asks the last of them, harder than `ask`.

    `hedge` says of the first one when to ask the second beside it.
    """

    def __init__(
        self,
        alias: str,
        references: Sequence[str],
        *,
        ask: Ask[A],
        ask_last: Ask[A],
        deadline: Deadline,
        hedge: Callable[[str], Hedge | None] | None,
        watcher: Watcher,
    ) -> None:
        self._alias = alias
        self._ahead = deque(references)
        self._ask: Ask[A] = ask
        self._ask_last: Ask[A] = ask_last
        self._deadline = deadline
        self._hedge = hedge
        self._watcher = watcher
        self._failures: list[tuple[str, MocError]] = []

    async def answer(self) -> A:
        """The first answer there is; else the most telling of the errors, which names all in `details.tried`."""
        while True:
            try:
                return await self._next()
            except MocError as error:
                if not self._passes_on(error):
                    raise self._with_story(error) from None
                if not self._ahead:
                    raise self._with_story(self._most_telling()) from None
                self._watcher.fell_back(self._alias, self._failures[-1][0], error.code)

    async def _next(self) -> A:
        reference = self._ahead.popleft()
        hedge, self._hedge = self._hedge(reference) if self._hedge and self._ahead else None, None
        if hedge is None:
            return await self._try(reference)
        return await first_right(
            self._try(reference),
            lambda: self._try_beside(reference, hedge.budget),
            after_s=hedge.after_s,
            is_wrong=self._passes_on,
        )

    def _try_beside(self, reference: str, budget: RetryBudget) -> Coroutine[Any, Any, A] | None:
        if not budget.take():
            return None
        self._watcher.hedged(self._alias, reference)
        return self._try(self._ahead.popleft())

    async def _try(self, reference: str) -> A:
        ask = self._ask if self._ahead else self._ask_last
        try:
            return await ask(reference)
        except MocError as error:
            self._failures.append((reference, error))
            raise
        except Exception as error:
            log.error("a target failed in a way nobody foresaw", alias=self._alias, model=reference, exc_info=error)
            failure = Internal(f"{reference} failed in a way nobody foresaw; the coordinator's log says how")
            self._failures.append((reference, failure))
            raise failure from error

    def _passes_on(self, error: MocError) -> bool:
        return error.code in PASSED_ON and self._deadline.remaining_s() != 0

    def _most_telling(self) -> MocError:
        """The first, or the first that is more than the echo of earlier ones."""
        errors = [error for _, error in self._failures]
        return next((error for error in errors if error.code != "circuit_open"), errors[0])

    def _with_story(self, error: MocError) -> MocError:
        """With what was tried, if that is more than this."""
        if len(self._failures) == 1 and not self._passes_on(error):
            return error
        tried = [{"reference": reference, "code": failure.code} for reference, failure in self._failures]
        return retold(error, tried=tried)
