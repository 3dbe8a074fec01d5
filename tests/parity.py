"""A coordinator that is asked the same over every protocol, and the answers compared."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import httpx
import msgspec
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message

from moc.inference.request import Reply, Request
from moc.security.key import KeyTerms
from moc.transports.grpc.server import GrpcServer
from moc.transports.rest.limits import Limits as RestLimits
from moc.transports.status import STATUSES
from moc.transports.zmq.limits import Limits as ZmqLimits
from tests import zmq_peer
from tests.askers import Asker, GrpcAsker, Manager, RestAsker, ZmqAsker
from tests.refusals import Refused
from tests.rest_stack import INFO, EchoLink, RestStack, running

BODY_BYTES: Final = 64 * 1024
PASSING: Final = frozenset(
    {"changed_at", "created_at", "granted_at", "expires_at", "id", "token", "load_s", "pid", "started_at", "uptime_s"}
    | {"available_bytes", "coordinator_bytes", "memory_bytes", "estimated_wait_s", "at", "finished_at"}
)
"""Fields that are never twice the same."""


class Talker(EchoLink):
    """Says the same whatever it is asked, tensors excepted; `fault` is raised instead."""

    async def infer(self, request: Request) -> Reply:
        echo = await super().infer(request)
        if request.kind == "tensors":
            return echo
        choice = {"message": {"role": "assistant", "content": "one two"}, "text": " upon a time"}
        return Reply(msgspec.json.encode({"choices": [choice], "usage": {"completion_tokens": 3}}))

    async def stream(self, request: Request) -> AsyncIterator[list[bytes]]:
        if self.fault is not None:
            raise self.fault
        self.running += 1
        self.began.set()
        try:
            await self.gate.wait()
            for word in ("one", " two"):
                yield [msgspec.json.encode({"choices": [{"delta": {"content": word}}]})]
        except (GeneratorExit, asyncio.CancelledError):
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
            await self._ended()


class House:
    """One coordinator, with a door for each protocol; the model `echo` is loaded."""

    def __init__(self, stack: RestStack, link: Talker, rest: RestAsker, grpc_: GrpcAsker, zmq_: ZmqAsker) -> None:
        self.stack = stack
        self.link = link
        self.rest = rest
        self.grpc = grpc_
        self.zmq = zmq_

    @property
    def askers(self) -> tuple[Asker, ...]:
        return (self.rest, self.grpc, self.zmq)

    @property
    def managers(self) -> tuple[Manager, ...]:
        return (self.rest, self.grpc)

    async def key(self, terms: KeyTerms) -> str:
        token, _ = await self.stack.keys.create(terms, actor="test")
        return token


@asynccontextmanager
async def open_house(data_dir: Path) -> AsyncIterator[House]:
    """A house whose doors are open."""
    async with running(data_dir, RestLimits(watch_after_s=0.001, body_bytes=BODY_BYTES)) as stack:
        await stack.load()
        (worker,) = stack.workers.workers()
        link = stack.workers.links[worker.id] = Talker(INFO)
        listener = GrpcServer(stack.services, host="127.0.0.1", port=0, body_limit_bytes=BODY_BYTES)
        await listener.start()
        try:
            async with (
                zmq_peer.serving(stack, limits=ZmqLimits(message_bytes=BODY_BYTES)) as server,
                grpc.aio.insecure_channel(listener.target) as channel,
                httpx.AsyncClient(timeout=10) as client,
            ):
                rest, grpc_ = RestAsker(stack.rest.url, stack.key, client), GrpcAsker(channel, stack.key)
                with zmq_peer.peers(server.url, stack.key) as peers:
                    yield House(stack, link, rest, grpc_, ZmqAsker(peers, stack.key))
        finally:
            await listener.stop()


def plain(told: Any) -> Any:
    """What somebody was told, without what passes."""
    if isinstance(told, Message):
        told = json_format.MessageToDict(told, preserving_proto_field_name=True)
    if isinstance(told, dict):
        return {name: plain(value) for name, value in told.items() if name not in PASSING}
    return [plain(each) for each in told] if isinstance(told, list | tuple) else told


async def asked(askers: tuple[Any, ...], ask: Callable[[Any], Awaitable[Any]]) -> Any:
    """The answer to each asker in turn, which has to be the same."""
    first, *others = askers
    answer = plain(await ask(first))
    for other in others:
        assert plain(await ask(other)) == answer, f"{type(other).__name__} is not told what {type(first).__name__} is"
    return answer


async def refusal(asking: Awaitable[Any]) -> tuple[str, str, bool]:
    """The code, the message without its numbers and ids, and whether it says when to ask again."""
    with pytest.raises(Refused) as caught:
        await asking
    words = re.sub(r"\d+", "#", re.sub(r"lse-\w+", "lse", caught.value.message))
    return caught.value.code, words, caught.value.retry_after_s is not None


async def refused(house: House, ask: Callable[[Asker], Awaitable[Any]]) -> str:
    """The code that every asker is refused with, in the same words."""
    code, _, retry = await asked(house.askers, lambda asker: refusal(ask(asker)))
    assert retry or not STATUSES[code].retry
    return str(code)
