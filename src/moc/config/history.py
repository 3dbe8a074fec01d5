"""What was put in force, and when: the records of the configuration.

Records: `config/<number>` (Revision; its text never changes, its outcome once) and `config_head` (Head).
"""

from dataclasses import dataclass
from typing import Protocol

from moc.kernel.errors import NotFound
from moc.kernel.events import Event
from moc.kernel.records import Fence, Store, Table
from moc.service.configuration import Revision

_HEAD = "head"


class HeldSeat(Protocol):
    """The seat that whoever changes the configuration holds."""

    def fence(self) -> Fence: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Which revision is in force, and which was the last to be tried.

    `seen_sha256` is of the file as it was when it was last read; `brought` are the models that are there because the
    configuration names them, or did until their removal failed.
    """

    number: int = 0
    last: int = 0
    seen_sha256: str = ""
    brought: tuple[str, ...] = ()


class History:
    """The revisions: appended to, never cut."""

    def __init__(self, *, store: Store, seat: HeldSeat) -> None:
        self._store = store
        self._seat = seat
        self._revisions: Table[Revision] = Table(store, "config/", Revision)
        self._heads: Table[Head] = Table(store, "config_", Head)

    async def head(self) -> Head:
        """The head; of number 0 when nothing was ever in force."""
        found = await self._heads.find(_HEAD)
        return Head() if found is None else found[0]

    async def revision(self, number: int) -> Revision:
        """One revision; NotFound when there is none."""
        found = await self._revisions.find(_key(number))
        if found is None:
            raise NotFound(f"there is no revision {number}; `moc config history` shows those there are")
        return found[0]

    async def list(self, *, after: int, limit: int) -> list[Revision]:
        """Those with numbers greater than `after`, oldest first."""
        return [revision for _, revision, _ in await self._revisions.list(after=_key(after), limit=limit)]

    async def write(self, head: Head, *revisions: Revision, event: Event | None = None) -> None:
        """Record all of it or nothing; only the holder of the seat does."""
        puts = [self._revisions.put(_key(revision.number), revision, expect=None) for revision in revisions]
        head_put = self._heads.put(_HEAD, head, expect=None)
        await self._store.commit([self._seat.fence(), head_put, *puts], [] if event is None else [event])

    async def note(self, event: Event) -> None:
        """Record an event that changes nothing."""
        await self._store.commit([], [event])


def _key(number: int) -> str:
    return f"{number:09d}"
