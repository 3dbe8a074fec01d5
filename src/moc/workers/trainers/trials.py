"""The trials of a search as jobs of the coordinator, asked for and followed through its public API."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from moc.client.async_client import AsyncClient
from moc.client.job_views import ENDED, JobEventView, JobView
from moc.kernel.errors import (
    Conflict,
    DeadlineExceeded,
    MocError,
    NotLeader,
    QueueFull,
    RateLimited,
    StoreUnavailable,
    Unauthenticated,
    Unavailable,
)
from moc.learning.tuning import TRIAL
from moc.workers.trainers.assignment import Away

R = TypeVar("R")

RETRY_S = 1.0
AWAY_MAX_S = 120.0
"""How long a coordinator may be away; then whoever starts this program again tells it where it is now."""

PASSING = (DeadlineExceeded, NotLeader, QueueFull, RateLimited, StoreUnavailable, Unauthenticated, Unavailable)


class Trials:
    """Those of the search `search`, each a job like `base` with hyperparameters of its own.

    What cannot be asked for `away_max_s` raises Away.
    """

    def __init__(
        self, client: AsyncClient, *, search: str, base: Mapping[str, Any], away_max_s: float = AWAY_MAX_S
    ) -> None:
        self._client = client
        self._search = search
        self._base = base
        self._away_max_s = away_max_s

    async def submit(self, number: int, hyperparameters: Mapping[str, Any]) -> str:
        """Have it done, unless that was asked before; the id of its job."""
        trial = {
            **self._base,
            "parent": self._search,
            "metadata": {**self._base["metadata"], TRIAL: str(number)},
            "hyperparameters": {**self._base["hyperparameters"], **hyperparameters},
        }
        key = f"{self._search}-{number}"
        job = await self._insist(partial(self._client.jobs.submit, idempotency_key=key, **trial))
        return job["id"]

    async def follow(self, job_id: str) -> AsyncGenerator[JobEventView, None]:
        """All events of a job, each once, until it has ended."""
        after = 0
        while True:
            stream = await self._insist(partial(self._client.jobs.follow, job_id, after=after))
            try:
                async with stream:
                    async for event in stream:
                        after = event["number"]
                        yield event
            except PASSING:
                pass  # it is followed again from there
            if (await self.show(job_id))["status"] in ENDED:
                return
            await asyncio.sleep(RETRY_S)

    async def show(self, job_id: str) -> JobView:
        """The job now."""
        return await self._insist(partial(self._client.jobs.show, job_id))

    async def prune(self, job_id: str) -> None:
        """End it, for it will not become the best; no error when it has ended."""
        try:
            await self._insist(partial(self._client.jobs.cancel, job_id, pruned=True))
        except Conflict:
            return

    async def _insist(self, ask: Callable[[], Awaitable[R]]) -> R:
        """The answer, asked for again while the coordinator is away."""
        began = time.monotonic()
        while True:
            try:
                return await ask()
            except PASSING as error:
                if time.monotonic() - began > self._away_max_s:
                    raise Away(error.message) from error
                await asyncio.sleep(_pause_s(error))


def _pause_s(error: MocError) -> float:
    return RETRY_S if error.retry_after_s is None else min(error.retry_after_s, AWAY_MAX_S)
