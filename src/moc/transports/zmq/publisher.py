"""Events for whoever subscribes: a PUB socket, the kind of an event as the topic and the event as JSON behind it."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import msgspec
import structlog
import zmq

from moc.kernel.errors import MocError
from moc.security.identity import Identity, Role
from moc.service.system import SystemService

log = structlog.get_logger(__name__)

PUBLISHER: Final = Identity("zmq-events", "events over ZeroMQ", Role.VIEWER)
_RETRY_S: Final = 1.0
_LOCKOUT: Final = "key.revoked"


class Publisher:
    """Publishes every event from `start` on. A subscriber that does not keep up misses some; REST has them all.

    `listen` makes a socket that listens. With `guarded`, when a key ends every subscriber has to connect anew, for
    its key is looked at only then.
    """

    def __init__(self, system: SystemService, listen: Callable[[], zmq.Socket[Any]], *, guarded: bool) -> None:
        self._system = system
        self._listen = listen
        self._guarded = guarded
        self._socket: zmq.Socket[Any] | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen, and publish what happens from now on."""
        after = await self._system.last_event_id(PUBLISHER)
        self._socket = self._listen()
        self._task = asyncio.create_task(self._publish(self._socket, after), name="zmq-events")

    async def stop(self, *, linger_s: float) -> None:
        """Publish no more; idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._socket is not None:
            self._socket.close(linger=round(linger_s * 1000))

    async def _publish(self, socket: zmq.Socket[Any], after: int) -> None:
        while True:
            try:
                async for event in self._system.follow(PUBLISHER, after=after):
                    after = event.id
                    socket.send_multipart([event.kind.encode(), msgspec.json.encode(event)], zmq.NOBLOCK)
                    if self._guarded and event.kind == _LOCKOUT:
                        socket.close(linger=0)
                        socket = self._socket = self._listen()
            except MocError as error:
                log.warning("events are not published", problem=error.message)
            await asyncio.sleep(_RETRY_S)
