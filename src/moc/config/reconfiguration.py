"""The configuration in force: decided at the start, changed while everything runs, as one revision or not at all."""

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import structlog

from moc.config.change import changes, shown
from moc.config.config import Config
from moc.config.history import Head, History
from moc.config.inventory import ACTOR, Inventory
from moc.kernel.clock import Clock
from moc.kernel.errors import Conflict, InvalidRequest, MocError
from moc.kernel.events import Event
from moc.kernel.tasks import Tasks
from moc.service.configuration import Change, Revision

log = structlog.get_logger(__name__)

START, REQUESTED, SIGNAL = "Start", "Requested", "Signal"
APPLYING, APPLIED, FAILED, INTERRUPTED = "applying", "applied", "failed", "interrupted"
MESSAGE_MAX = 2000

_NOTHING = Revision(number=0, name="", text="", sha256="", at=0.0, actor="", reason="", changes=())


class Reconfiguration:
    """Puts configurations in force; `config` is what the file said when the process began.

    At the start the file counts if it has changed since it was last read, and otherwise what was in force before.
    `take_up(config, vouched)` gives a configuration's settings to the parts that have them; `vouched` is what the file
    said when it last counted, the operator's word. It may be called at any time and cannot fail. Events:
    `config.applied` and `config.refused`.
    """

    def __init__(
        self,
        config: Config,
        *,
        history: History,
        inventory: Inventory,
        take_up: Callable[[Config, Config], None],
        clock: Clock,
    ) -> None:
        self._config = self._vouched = config
        self._origin = config.origin
        self._history = history
        self._inventory = inventory
        self._take_up = take_up
        self._clock = clock
        self._head = Head()
        self._revision = _NOTHING
        self._lock = asyncio.Lock()
        self._signalled = asyncio.Event()
        self._tasks = Tasks(lambda error: log.error("the configuration could not be changed", exc_info=error))

    # life

    async def start(self) -> None:
        """Put in force what counts; InvalidRequest when it cannot be right. Idempotent."""
        if self._revision.number:
            return
        file, self._head = self._config, await self._history.head()
        before = await self._before()
        config = self._which_counts(file, before)
        self._inventory.check(config)
        broken = await self._interrupted()
        if broken is not None:
            await self._take_over(broken, config)
        known = before if broken is None else None
        if before is None or config.text != before.text:
            await self._change(known, config, actor=ACTOR, reason=START, vouched=file)
        else:
            self._revision = await self._history.revision(self._head.number)
            await self._again(known, config, vouched=file)
        if broken is not None:
            await self._history.write(self._head, replace(broken, outcome=INTERRUPTED))
        self._tasks.spawn(self._reread_when_signalled())

    async def drain(self) -> None:
        return

    async def stop(self) -> None:
        """Break off what is being applied; the next start takes it back."""
        await self._tasks.cancel()

    async def _before(self) -> Config | None:
        """What was in force when the last coordinator ended; None at the first start, and when it can be no longer."""
        if not self._head.number:
            return None
        revision = await self._history.revision(self._head.number)
        try:
            return self._origin.parse(revision.text, revision.name)
        except InvalidRequest as error:
            log.error("what was in force is no longer understood", revision=revision.number, problem=error.message)
            return None

    def _which_counts(self, file: Config, before: Config | None) -> Config:
        if before is None or self._head.seen_sha256 != hash_of(file.text):
            return file
        for_restart = _for_restart(changes(file, before))
        if for_restart:
            log.error("the file counts: the environment no longer hides where they differ", keys=for_restart)
            return file
        return before

    async def _interrupted(self) -> Revision | None:
        """The attempt in which the last coordinator ended, if it did in one."""
        if self._head.last == self._head.number:
            return None
        revision = await self._history.revision(self._head.last)
        return revision if revision.outcome == APPLYING else None

    async def _take_over(self, broken: Revision, config: Config) -> None:
        """Have what an interrupted attempt brought count as brought: it goes unless `config` names it."""
        with contextlib.suppress(InvalidRequest):
            aliases = self._origin.parse(broken.text, broken.name).aliases
            await self._inventory.unsay(aliases.keys() - config.aliases.keys())
        self._head = replace(self._head, brought=tuple(sorted({*self._head.brought, *broken.added})))

    # what is in force

    @property
    def revision(self) -> Revision:
        """The one in force; of number 0 before the start."""
        return self._revision

    @property
    def file(self) -> str:
        """The file that is read at the start and on SIGHUP, '' when there is none."""
        return str(self._origin.file or "")

    def settings(self) -> dict[str, Any]:
        """All that is in force, by section, without secrets."""
        return shown(self._config)

    async def history(self, *, after: int, limit: int) -> list[Revision]:
        """Revisions with numbers greater than `after`, oldest first."""
        return await self._history.list(after=after, limit=limit)

    # changing it

    async def diff(self, text: str, name: str) -> list[Change]:
        """What applying it would change; InvalidRequest, with `name` and the line, when it is not right."""
        config = await asyncio.to_thread(self._origin.parse, text, name)
        self._check(config, trusted=await asyncio.to_thread(self._origin.says, text))
        return [*changes(self._config, config)]

    async def apply(self, text: str, name: str, *, actor: str) -> Revision:
        """Put `text` in force, all of it or nothing; the same text again is the same revision.

        InvalidRequest with `name` and the line, also when it names what the API may not, unless it is what the file
        says; Conflict when a key is for the next start, or an alias names a model that would go. Once begun it goes
        on, though the caller is cancelled.
        """
        return await self._put(lambda: self._origin.parse(text, name), name, actor=actor, reason=REQUESTED)

    async def rollback(self, number: int, *, actor: str) -> Revision:
        """Put the text of revision `number` in force, as one more revision; NotFound, and as `apply`."""
        earlier = await self._history.revision(number)
        name = earlier.name
        return await self._put(
            lambda: self._origin.parse(earlier.text, name), name, actor=actor, reason=f"Rollback to {number}"
        )

    def reread_soon(self) -> None:
        """Put in force what the file says now; what is wrong with it is logged."""
        self._signalled.set()

    async def _reread_when_signalled(self) -> None:
        while True:
            await self._signalled.wait()
            self._signalled.clear()
            try:
                revision = await self._put(self._origin.read, self.file, actor=ACTOR, reason=SIGNAL)
            except MocError as error:
                log.error("the configuration file is refused, nothing is changed", problem=error.message)
            except Exception:
                log.exception("the configuration file could not be put in force")
            else:
                log.info("the configuration file is in force", revision=revision.number)

    async def _put(self, read: Callable[[], Config], name: str, *, actor: str, reason: str) -> Revision:
        work = self._put_in_turn(read, name, actor=actor, reason=reason)
        return await asyncio.shield(self._tasks.spawn(work))

    async def _put_in_turn(self, read: Callable[[], Config], name: str, *, actor: str, reason: str) -> Revision:
        async with self._lock:
            try:
                config = await asyncio.to_thread(read)
                trusted = await asyncio.to_thread(self._origin.says, config.text)
                return await self._put_checked(config, actor=actor, reason=reason, trusted=trusted)
            except MocError as error:
                data = {"message": error.message[:MESSAGE_MAX]}
                with contextlib.suppress(MocError):
                    await self._history.note(
                        Event(kind="config.refused", subject=name, reason=reason, actor=actor, data=data)
                    )
                raise

    def _check(self, config: Config, *, trusted: bool) -> None:
        """InvalidRequest for what can never be, and for what only the operator's own file may say."""
        self._inventory.check(config, None if trusted else self._config)
        bounds = [change.key for change in changes(self._config, config) if change.key.startswith("security.")]
        if bounds and not trusted:
            raise InvalidRequest(
                f"{', '.join(bounds)}: only the coordinator's own file may change this; "
                "write it there, then apply that file, or send SIGHUP"
            )

    async def _put_checked(self, config: Config, *, actor: str, reason: str, trusted: bool) -> Revision:
        self._check(config, trusted=trusted)
        vouched = config if trusted else self._vouched
        keys = _for_restart(changes(self._config, config))
        if keys:
            raise Conflict(
                f"{', '.join(keys)}: only a restart changes this, so nothing is applied; "
                "leave it as it is, or change the file and start the coordinator again",
                details={"restart": keys},
            )
        if config.text == self._config.text:
            await self._again(self._config, config, vouched=vouched)
            return self._revision
        before = self._config
        self._inventory.check_unused(self._going(config), before, config)
        revision = await self._change(before, config, actor=actor, reason=reason, vouched=vouched)
        self._inventory.preload(before, config)
        return revision

    async def _again(self, before: Config | None, config: Config, *, vouched: Config) -> None:
        """Bring what is missing, and what has changed behind its name, of a configuration that is in force."""
        async with AsyncExitStack() as undo:
            await self._inventory.bring(before, config, undo)
            undo.pop_all()
        self._vouched = vouched
        self._take_up(config, vouched)
        await self._settle(config, replace(self._head, seen_sha256=hash_of(vouched.text)))

    async def _change(
        self, before: Config | None, config: Config, *, actor: str, reason: str, vouched: Config
    ) -> Revision:
        revision = Revision(
            number=self._head.last + 1,
            name=config.document.name,
            text=config.text,
            sha256=hash_of(config.text),
            at=self._clock.wall(),
            actor=actor,
            reason=reason,
            changes=() if before is None else changes(before, config),
            added=self._inventory.absent(config),
            outcome=APPLYING,
        )
        self._head = replace(self._head, last=revision.number)
        await self._history.write(self._head, revision)
        try:
            await self._bring(before, config, revision, vouched)
        except Exception as error:
            problem = error.message if isinstance(error, MocError) else repr(error)
            await self._history.write(self._head, replace(revision, outcome=FAILED, problem=problem))
            raise
        await self._settle(config, self._head)
        return self._revision

    async def _bring(self, before: Config | None, config: Config, revision: Revision, vouched: Config) -> None:
        """Everything but what goes; when part of it fails, the rest is put back."""
        new = [name for name in config.models if name in revision.added or not self._head.number]
        head = replace(
            self._head,
            number=revision.number,
            seen_sha256=hash_of(vouched.text),
            brought=tuple(sorted({*self._head.brought, *new})),
        )
        done = replace(revision, outcome=APPLIED)
        data = {"changes": [change.key for change in revision.changes]}
        event = Event(
            kind="config.applied",
            subject=str(revision.number),
            reason=revision.reason,
            actor=revision.actor,
            data=data,
        )
        async with AsyncExitStack() as undo:
            undo.callback(self._take_up, self._config, self._vouched)
            self._take_up(config, vouched)
            await self._inventory.bring(before, config, undo)
            await self._history.write(head, done, event=event)
            undo.pop_all()
        self._head, self._revision, self._vouched = head, done, vouched

    async def _settle(self, config: Config, head: Head) -> None:
        """Take away the models that went; what cannot go now does when the configuration next changes."""
        self._config = config
        going = self._going(config)
        left = await self._inventory.withdraw(going)
        stay = tuple(name for name in head.brought if name not in going or name in left)
        head = replace(head, brought=stay)
        if head != self._head:
            await self._history.write(head)
        self._head = head

    def _going(self, config: Config) -> list[str]:
        """The models that are there because of a configuration, and not because of this one."""
        return [name for name in self._head.brought if name not in config.wanted]


def hash_of(text: str) -> str:
    """What tells two texts apart."""
    return hashlib.sha256(text.encode()).hexdigest()


def _for_restart(found: Iterable[Change]) -> list[str]:
    return [change.key for change in found if not change.live]
