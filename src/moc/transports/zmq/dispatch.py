"""From messages to actions and back: who asks, what, by when; and nobody more than may be."""

import asyncio
import difflib
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import structlog
import zmq
from msgspec import UNSET, Raw

from moc.kernel.errors import (
    Cancelled,
    Conflict,
    InvalidRequest,
    MocError,
    QueueFull,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from moc.resilience.deadline import NEVER, Deadline
from moc.security.audit import ORIGIN, Origin
from moc.security.authenticator import Authenticator
from moc.security.identity import Identity
from moc.service.inference import Terms
from moc.transports.headers import checked_priority, checked_session, request_id_of
from moc.transports.status import unexpected, zmq_error
from moc.transports.zmq.call import Action, Call, Emit, Outcome, no_key
from moc.transports.zmq.first_generation import TYPES, Older
from moc.transports.zmq.limits import Limits
from moc.transports.zmq.message import Envelope, Form, Message, form_of
from moc.transports.zmq.presence import Connection
from moc.transports.zmq.router import Buffer, Gone, Router
from moc.transports.zmq.work import Peer, Work

log = structlog.get_logger(__name__)

_ID_MAX: Final = 128
_DAY_MS: Final = 86_400_000


class Dispatch:
    """Answers what a Router brings, each request in a task of its own."""

    def __init__(
        self,
        router: Router,
        authenticator: Authenticator,
        actions: Mapping[str, Action],
        *,
        limits: Limits,
        curve: bool,
    ) -> None:
        self._router = router
        self._authenticator = authenticator
        self._actions = actions
        self._limits = limits
        self._curve = curve
        self._peers: dict[bytes, Peer] = {}
        self._running = 0
        self._held_bytes = 0
        self._closing = False
        self._looking: asyncio.TimerHandle | None = None

    def arrived(self, frames: list[zmq.Frame]) -> None:
        """Begin to work on a message, or refuse it."""
        peer_id = frames[0].bytes
        peer = self._peers.get(peer_id) or Peer(peer_id, Connection(frames[-1]))
        work = self._work(peer, frames)
        refusal = self._refusal(work, len(frames))
        if refusal is not None:
            work.request_id = work.form.request_id(work.envelope.head)
            self._router.offer(peer_id, work.parts(work.reply(success=False, error=zmq_error(refusal))))
            return
        self._peers[peer_id] = peer
        peer.works.add(work)
        self._running += 1
        self._held_bytes += work.size
        work.task = asyncio.create_task(self._run(work), name="zmq-request")
        if self._looking is None:
            self._look_later()

    async def drain(self) -> None:
        """Refuse what comes, end what may take for ever, wait for the rest."""
        self._closing = True
        works = self._works()
        for work in works:
            if work.patient:
                work.end(Unavailable("this coordinator is stopping; ask again shortly"))
        await _settle(works, None)

    async def stop(self) -> None:
        """Give the last answers `stop_grace_s`, and cut off what is left."""
        self._closing = True
        await _settle(self._works(), self._limits.stop_grace_s)
        works = self._works()
        for work in works:
            work.end(None)
        await _settle(works, None)

    def _works(self) -> list[Work]:
        return [work for peer in self._peers.values() for work in peer.works]

    def _work(self, peer: Peer, frames: list[zmq.Frame]) -> Work:
        views = [frame.buffer for frame in frames[1:]]
        envelope = Envelope.open(views)
        address = str(frames[-1].get("Peer-Address"))
        curve_key = str(frames[-1].get("User-Id")) if self._curve else ""
        size = sum(map(len, views))
        return Work(peer, envelope, form_of(envelope.head), size, address, curve_key, time.monotonic())

    def _refusal(self, work: Work, frames: int) -> MocError | None:
        limits = self._limits
        if self._closing:
            return Unavailable("this coordinator is stopping; ask again shortly")
        if work.size > limits.message_bytes:
            return TooLarge(f"the message is larger than the {limits.message_bytes} bytes this server takes; send less")
        if frames > limits.frames_max:
            return TooLarge(f"the message has more than the {limits.frames_max} frames this server takes; send fewer")
        if len(work.peer.works) >= limits.requests_per_peer:
            return QueueFull(
                f"{limits.requests_per_peer} requests of this connection are not answered yet; wait for some"
            )
        if self._running >= limits.requests_max or self._held_bytes + work.size > limits.held_bytes:
            return QueueFull(f"{self._running} requests are being worked on; try again shortly", retry_after_s=1.0)
        return None

    async def _run(self, work: Work) -> None:
        peer = work.peer
        try:
            parts = await self._answer(work)
            await self._router.send(peer.id, parts)
        except Gone:
            await self._left(work)
        except asyncio.CancelledError:
            if work.ended is None:
                raise
        finally:
            peer.works.discard(work)
            if peer.named.get(work.request_id) is work:
                del peer.named[work.request_id]
            if not peer.works and self._peers.get(peer.id) is peer:
                del self._peers[peer.id]
            self._running -= 1
            self._held_bytes -= work.size

    def _look_later(self) -> None:
        self._looking = asyncio.get_running_loop().call_later(self._limits.look_s, self._look)

    def _look(self) -> None:
        """End what those asked who have left; what is done already is taken back when it cannot be told."""
        self._looking = None
        for peer in self._peers.values():
            if not peer.connection.is_open:
                for work in peer.works:
                    if work.undo is None:
                        work.end(None)
        if self._peers:
            self._look_later()

    async def _left(self, work: Work) -> None:
        """Nobody is there to be answered: end all that the peer asked."""
        for other in work.peer.works:
            if other is not work:
                other.end(None)
        if work.undo is not None:
            try:
                await work.undo()
            except MocError as error:
                log.warning("what nobody was told of is still there", request_id=work.request_id, problem=error.message)

    async def _answer(self, work: Work) -> list[Buffer]:
        try:
            outcome = await self._outcome(work)
        except MocError as error:
            return self._failed(work, error)
        except Gone:
            raise
        except asyncio.CancelledError:
            if work.ended is None or work.task is None:
                raise
            work.task.uncancel()
            return self._failed(work, work.ended)
        except Exception as error:
            log.error("request failed", request_id=work.request_id, exc_info=error)
            return self._failed(work, unexpected(work.request_id))
        work.undo = outcome.undo
        return self._done(work, outcome)

    async def _outcome(self, work: Work) -> Outcome:
        form, envelope = work.form, work.envelope
        try:
            message = form.read(envelope.head, Message)
            self._name(work, message.request_id)
        except InvalidRequest:
            work.request_id = work.request_id or form.request_id(envelope.head)[:_ID_MAX]
            raise
        ORIGIN.set(Origin(work.request_id, work.address))
        name, payload = self._asked(work, message)
        action = self._actions.get(name)
        identity = self._identity(work, message.key, keyless=action is not None and action.keyless)
        if action is None:
            near = difflib.get_close_matches(name, self._actions, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(self._actions)}"
            raise InvalidRequest(f"there is no action {name[:40]!r}; {hint}")
        emit = None if envelope.single else self._emitter(work)
        terms = _terms(message, work.began)
        call = Call(
            work.request_id,
            identity,
            terms,
            form,
            payload,
            envelope.tensors,
            emit,
            partial(_cancel, work),
            message.idempotency_key or "",
        )
        work.patient = action.patient
        return await action.handle(call)

    def _name(self, work: Work, given: str) -> None:
        """Let the request be known by its id, a new one if it has none. Conflict while another has the same."""
        if len(given) > _ID_MAX or not given.isprintable():
            raise InvalidRequest(f"request_id is at most {_ID_MAX} printable characters")
        work.request_id = given or request_id_of(None)
        if work.peer.named.setdefault(work.request_id, work) is not work:
            raise Conflict(f"request_id {given!r} is that of a request which is not answered yet; use another")

    def _asked(self, work: Work, message: Message) -> tuple[str, Raw]:
        """The action and its payload."""
        form = work.form
        if bool(message.action) == bool(message.type):
            raise InvalidRequest("a message has an `action` and its `payload`, or a `type` and its `data`")
        if message.action:
            return message.action, form.empty if message.payload is UNSET else message.payload
        older = TYPES.get(message.type)
        if older is None:
            raise InvalidRequest(f"there is no type {message.type[:40]!r}; known are {', '.join(TYPES)}")
        work.type = older.answer
        return older.action, _translated(form, older, form.empty if message.data is UNSET else message.data)

    def _identity(self, work: Work, key: str | None, *, keyless: bool) -> Identity | None:
        """Who asks: by the key in the message, or the one that the connection's CURVE key is bound to."""
        if key is None and work.curve_key:
            return self._authenticator.identify_curve(work.curve_key, work.address)
        try:
            return self._authenticator.identify(key, work.address)
        except Unauthenticated:
            if key is not None:
                raise
        if keyless:
            return None
        raise no_key()

    def _emitter(self, work: Work) -> Emit:
        async def emit(piece: Any) -> None:
            reply = work.reply(success=True, chunk=piece, seq=work.pieces)
            await self._router.send(work.peer.id, work.parts(reply))
            work.pieces += 1

        return emit

    def _done(self, work: Work, outcome: Outcome) -> list[Buffer]:
        reply = work.reply(success=True, result=outcome.result)
        if outcome.result is UNSET or work.pieces:
            reply.seq, reply.done = work.pieces, True
        source = outcome.source
        if source is not None:
            reply.model, reply.digest, reply.queue_ms = source.reference, source.digest, _ms(source.queue_s)
        reply.latency_ms = _ms(time.monotonic() - work.began)
        return work.parts(reply, outcome.frames)

    def _failed(self, work: Work, error: MocError) -> list[Buffer]:
        reply = work.reply(success=False, error=zmq_error(error))
        if work.pieces:
            reply.seq, reply.done = work.pieces, True
        reply.latency_ms = _ms(time.monotonic() - work.began)
        return work.parts(reply)


def _cancel(work: Work, request_id: str) -> bool:
    """End another request of the same peer; whether there was one."""
    found = work.peer.named.get(request_id)
    if found is None or found is work:
        return False
    found.end(Cancelled("it was cancelled by its caller"))
    return True


def _translated(form: Form, older: Older, data: Raw) -> Raw:
    return Raw(form.write(older.payload(form.read(data, dict[str, Any]))))


def _terms(message: Message, began: float) -> Terms:
    return Terms(
        _deadline(message.deadline_ms, began),
        checked_priority(message.priority),
        checked_session(message.session),
        message.idempotency_key is not None,
    )


def _deadline(given_ms: float | None, began: float) -> Deadline:
    if given_ms is None:
        return NEVER
    if not 0 < given_ms <= _DAY_MS:
        raise InvalidRequest(f"deadline_ms is more than 0 and at most {_DAY_MS}, not {given_ms:g}")
    return Deadline(began + given_ms / 1000)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


async def _settle(works: Sequence[Work], timeout_s: float | None) -> None:
    tasks = [work.task for work in works if work.task is not None]
    if tasks:
        await asyncio.wait(tasks, timeout=timeout_s)
