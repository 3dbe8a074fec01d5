"""Jobs: models are trained, measured and searched for, and programs run, beside those that serve."""

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from typing import Any

from moc.client import job_calls as calls
from moc.client.connection import AsyncConnection, Connection
from moc.client.following import LOOK_S, AsyncFollowing, Following, patiently, patiently_async
from moc.client.job_views import ENDED, CheckpointView, JobEventPage, JobEventView, JobView
from moc.client.views import Page

_TAIL_BYTES = 65_536


class AsyncJobs:
    """Jobs of the coordinator."""

    def __init__(self, line: AsyncConnection) -> None:
        self._line = line

    async def submit(self, type: str, *, idempotency_key: str | None = None, **wish: Any) -> JobView:
        """Have a job done; returns once it is accepted. With the same key again, the job made the first time.

        `type` is `supervised` (or `sft`), `dpo`, `evaluate`, `tune` or `script`. `wish` is `model`, `name`,
        `training_file` and `validation_file` (ids of files), `hyperparameters`, `options`, `seed`, `priority` (1 to
        10), `devices`, `memory` (such as `2GiB`), `result` (`adapter` or `merged`), `metadata`.
        """
        return await self._line.send(calls.submit({"type": type, **wish}, idempotency_key))

    async def list(
        self,
        *,
        status: str | None = None,
        type: str | None = None,
        parent: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page[JobView]:
        """The jobs there are, oldest first; only those that are said."""
        return await self._line.send(calls.list_jobs(after, limit, status=status, type=type, parent=parent))

    async def show(self, job_id: str) -> JobView:
        """One job; NotFound when there is none."""
        return await self._line.send(calls.show(job_id))

    async def pause(self, job_id: str) -> JobView:
        """Have it save a checkpoint and give its memory back, until it is resumed."""
        return await self._line.send(calls.change(job_id, "pause"))

    async def resume(self, job_id: str) -> JobView:
        """Have it go on."""
        return await self._line.send(calls.change(job_id, "resume"))

    async def cancel(self, job_id: str, *, pruned: bool = False) -> JobView:
        """End it; `pruned` when the search that it belongs to needs it no more. Conflict when it ended otherwise."""
        return await self._line.send(calls.cancel(job_id, pruned=pruned))

    async def remove(self, job_id: str) -> None:
        """Forget one that has ended, with all it left but the model it made."""
        await self._line.send(calls.remove(job_id))

    async def events(self, job_id: str, *, after: int = 0, limit: int = 100) -> JobEventPage:
        """What happened to it, oldest first, from behind the event with the number `after`."""
        return await self._line.send(calls.list_events(job_id, after, limit))

    async def follow(self, job_id: str, *, after: int = 0) -> AsyncFollowing[JobEventView]:
        """Its events behind `after`, then each as it comes, restarts of the coordinator included; ends with the job."""
        return await AsyncFollowing(self._line, partial(calls.follow, job_id), itemgetter("number"), after).open()

    async def logs(self, job_id: str, *, attempt: int | None = None, tail_bytes: int = _TAIL_BYTES) -> str:
        """The end of what its program wrote, in its last attempt or in another."""
        return await self._line.send(calls.logs(job_id, attempt, tail_bytes))

    async def checkpoints(self, job_id: str) -> Sequence[CheckpointView]:
        """The states it can go on from, oldest first."""
        return await self._line.send(calls.list_checkpoints(job_id))

    async def wait(self, job_id: str) -> JobView:
        """Return when it has ended, however; its `status` says how. The coordinator may be started again meanwhile."""
        job = await self.show(job_id)
        while job["status"] not in ENDED:
            await asyncio.sleep(LOOK_S)
            job = await patiently_async(partial(self.show, job_id))
        return job


class Jobs:
    """Jobs of the coordinator."""

    def __init__(self, line: Connection) -> None:
        self._line = line

    def submit(self, type: str, *, idempotency_key: str | None = None, **wish: Any) -> JobView:
        """Have a job done; returns once it is accepted. With the same key again, the job made the first time.

        `type` is `supervised` (or `sft`), `dpo`, `evaluate`, `tune` or `script`. `wish` is `model`, `name`,
        `training_file` and `validation_file` (ids of files), `hyperparameters`, `options`, `seed`, `priority` (1 to
        10), `devices`, `memory` (such as `2GiB`), `result` (`adapter` or `merged`), `metadata`.
        """
        return self._line.send(calls.submit({"type": type, **wish}, idempotency_key))

    def list(
        self,
        *,
        status: str | None = None,
        type: str | None = None,
        parent: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page[JobView]:
        """The jobs there are, oldest first; only those that are said."""
        return self._line.send(calls.list_jobs(after, limit, status=status, type=type, parent=parent))

    def show(self, job_id: str) -> JobView:
        """One job; NotFound when there is none."""
        return self._line.send(calls.show(job_id))

    def pause(self, job_id: str) -> JobView:
        """Have it save a checkpoint and give its memory back, until it is resumed."""
        return self._line.send(calls.change(job_id, "pause"))

    def resume(self, job_id: str) -> JobView:
        """Have it go on."""
        return self._line.send(calls.change(job_id, "resume"))

    def cancel(self, job_id: str, *, pruned: bool = False) -> JobView:
        """End it; `pruned` when the search that it belongs to needs it no more. Conflict when it ended otherwise."""
        return self._line.send(calls.cancel(job_id, pruned=pruned))

    def remove(self, job_id: str) -> None:
        """Forget one that has ended, with all it left but the model it made."""
        self._line.send(calls.remove(job_id))

    def events(self, job_id: str, *, after: int = 0, limit: int = 100) -> JobEventPage:
        """What happened to it, oldest first, from behind the event with the number `after`."""
        return self._line.send(calls.list_events(job_id, after, limit))

    def follow(self, job_id: str, *, after: int = 0) -> Following[JobEventView]:
        """Its events behind `after`, then each as it comes, restarts of the coordinator included; ends with the job."""
        return Following(self._line, partial(calls.follow, job_id), itemgetter("number"), after)

    def logs(self, job_id: str, *, attempt: int | None = None, tail_bytes: int = _TAIL_BYTES) -> str:
        """The end of what its program wrote, in its last attempt or in another."""
        return self._line.send(calls.logs(job_id, attempt, tail_bytes))

    def checkpoints(self, job_id: str) -> Sequence[CheckpointView]:
        """The states it can go on from, oldest first."""
        return self._line.send(calls.list_checkpoints(job_id))

    def wait(self, job_id: str) -> JobView:
        """Return when it has ended, however; its `status` says how. The coordinator may be started again meanwhile."""
        job = self.show(job_id)
        while job["status"] not in ENDED:
            time.sleep(LOOK_S)
            job = patiently(partial(self.show, job_id))
        return job
