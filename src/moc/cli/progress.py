"""What a person sees while something takes long; nothing when nobody looks."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from moc.cli import screen
from moc.cli.session import Session
from moc.client.views import EventView, ModelView

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from moc.client import AsyncFollowing


@contextmanager
def elapsed(what: str) -> Iterator[None]:
    """Show `what` with the seconds it takes, on a terminal."""
    if not screen.is_terminal():
        yield
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, transient=True) as bar:
        bar.add_task(what, total=None)
        yield


def pull(session: Session, reference: str, deadline_s: float | None) -> ModelView:
    """Pull a model behind a progress bar."""
    return asyncio.run(_pull(session, reference, deadline_s))


async def _pull(session: Session, reference: str, deadline_s: float | None) -> ModelView:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    async with session.async_client() as client, await client.events.follow() as events:
        with Progress(*columns, transient=True) as bar:
            task = bar.add_task(f"pulling {reference}", total=None)
            watcher = asyncio.create_task(_watch(events, reference, bar, task))
            try:
                return await client.models.pull(reference, deadline_s=deadline_s)
            finally:
                watcher.cancel()
                await asyncio.wait([watcher])


async def _watch(events: "AsyncFollowing[EventView]", reference: str, bar: "Progress", task: "TaskID") -> None:
    async for event in events:
        subject = event["subject"]
        if event["kind"] == "model.pulling" and reference in (subject, subject.partition("@")[0]):
            data = event["data"]
            bar.update(task, completed=data.get("done_bytes", 0), total=data.get("total_bytes") or None)
