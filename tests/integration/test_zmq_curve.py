"""ZeroMQ with CURVE: who connects is known by a key of its own, and what travels cannot be read."""

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio

from moc.kernel.errors import InvalidRequest
from moc.security.identity import Role
from moc.security.key import ApiKey, KeyTerms
from moc.transports.zmq.server import ZmqServer
from tests.rest_stack import RestStack
from tests.zmq_peer import Peers, peers, serving

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
Pair = tuple[bytes, bytes]


@pytest.fixture
async def server(rest_stack: RestStack, tmp_path: Path) -> AsyncIterator[ZmqServer]:
    await rest_stack.load()
    async with serving(rest_stack, curve_folder=tmp_path / "zmq", events_port=0) as made:
        yield made


@pytest.fixture
async def dial(server: ZmqServer) -> AsyncIterator[Peers]:
    with peers(server.url, None) as made:
        yield made


async def bound(stack: RestStack, role: Role = Role.INFERENCE) -> tuple[Pair, ApiKey]:
    """A client's key pair, bound to a new API key."""
    public, secret = zmq.curve_keypair()
    _, key = await stack.keys.create(KeyTerms(role=role, curve_public=public.decode()), actor="test")
    return (public, secret), key


def options(server: ZmqServer, pair: Pair) -> dict[str, Any]:
    return {"curve_serverkey": server.public_key.encode(), "curve_publickey": pair[0], "curve_secretkey": pair[1]}


async def refused(socket: zmq.asyncio.Socket) -> bool:
    """Whether the handshake of a connection that is being made fails; libzmq tries again and again."""
    monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH)
    async with asyncio.timeout(10):
        event = await monitor.recv_multipart()
    socket.disable_monitor()
    monitor.close()
    return int.from_bytes(event[0][:2], "little") == zmq.EVENT_HANDSHAKE_FAILED_AUTH


async def test_a_bound_key_needs_no_other(rest_stack: RestStack, server: ZmqServer, dial: Peers) -> None:
    pair, key = await bound(rest_stack)
    for peer in (dial.req(**options(server, pair)), dial.dealer(**options(server, pair))):
        assert (await peer.ask("chat", CHAT))["success"]
        assert (await peer.ask("status"))["error"]["code"] == "forbidden"
        assert (await peer.ask("discovery"))["result"]["models"]
    as_admin = await dial.req(**options(server, pair), key=rest_stack.key).ask("status")
    assert as_admin["success"]
    assert rest_stack.keys.last_used_at(key.id)


async def test_who_is_not_known_does_not_get_in(rest_stack: RestStack, server: ZmqServer, dial: Peers) -> None:
    unknown = zmq.curve_keypair()
    peer = dial.dealer(**options(server, unknown), key=rest_stack.key)
    assert await refused(peer.socket)


async def test_a_revoked_key_opens_nothing_any_more(rest_stack: RestStack, server: ZmqServer, dial: Peers) -> None:
    pair, key = await bound(rest_stack)
    peer = dial.req(**options(server, pair))
    assert (await peer.ask("chat", CHAT))["success"]
    await rest_stack.keys.revoke(key.id, actor="test")
    assert (await peer.ask("chat", CHAT))["error"]["code"] == "unauthenticated"
    assert await refused(dial.dealer(**options(server, pair)).socket)


async def test_events_go_to_who_may_read_them_and_no_longer(
    rest_stack: RestStack, server: ZmqServer, dial: Peers
) -> None:
    assert server.events_url is not None
    viewer, key = await bound(rest_stack, Role.VIEWER)
    inferring, _ = await bound(rest_stack)
    assert await refused(dial.subscriber(server.events_url, "", **options(server, inferring)))
    socket = dial.subscriber(server.events_url, "key.", **options(server, viewer))
    seen = asyncio.ensure_future(socket.recv_multipart())
    while not seen.done():  # until the subscription is there
        await bound(rest_stack)
        await asyncio.wait({seen}, timeout=0.05)
    assert (await seen)[0] == b"key.created"
    monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
    await rest_stack.keys.revoke(key.id, actor="test")
    async with asyncio.timeout(10):
        await monitor.recv_multipart()  # connected anew, in vain
    socket.disable_monitor()
    monitor.close()


async def test_the_server_keeps_its_key_to_itself(rest_stack: RestStack, tmp_path: Path) -> None:
    folder, publics = tmp_path / "zmq", set()
    for _ in range(2):
        async with serving(rest_stack, curve_folder=folder) as server:
            publics.add(server.public_key)
    assert publics == {(folder / "server.pub").read_text().strip()}
    assert stat.S_IMODE((folder / "server.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (folder / "server.key").write_text("damaged")
    with pytest.raises(InvalidRequest, match=r"server\.key cannot be used"):
        async with serving(rest_stack, curve_folder=folder):
            pass
