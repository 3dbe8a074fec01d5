"""The ZeroMQ server with peers that are many, slow, gone, too eager or not making sense."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import psutil
import pytest
import zmq
import zmq.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moc.inference.request import Request
from moc.kernel.errors import Conflict
from moc.transports.zmq.limits import Limits
from moc.transports.zmq.server import ZmqServer
from tests.hosted import eventually
from tests.rest_stack import INFO, EchoLink, RestStack
from tests.zmq_peer import SOON, Peer, peers, serving

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
LEASE = {"memory": "600MiB", "wait_s": 600}


async def answers(peer: Peer, count: int) -> dict[str, dict[str, Any]]:
    """The next answers, by request id."""
    found = [await peer.receive() for _ in range(count)]
    return {answer["request_id"]: answer for answer in found}


def code(answer: dict[str, Any]) -> str:
    return "ok" if answer["success"] else answer["error"]["code"]


class Endless(EchoLink):
    """Never comes to the end of a stream."""

    async def stream(self, request: Request) -> AsyncIterator[list[bytes]]:
        self.running += 1
        self.began.set()
        try:
            while True:
                yield [b'"%s"' % (b"x" * 100_000)]
                await asyncio.sleep(0)
        finally:
            self.running -= 1
            await self._ended()


async def endless(stack: RestStack) -> Endless:
    """The link of the model `echo`, whose streams are without end."""
    await stack.load()
    (worker_id,) = stack.workers.links
    link = stack.workers.links[worker_id] = Endless(INFO)
    return link


async def test_a_pipeline_of_requests_is_answered_each_by_its_id(rest_stack: RestStack) -> None:
    link = await rest_stack.load()
    async with serving(rest_stack) as server:
        with peers(server.url, rest_stack.key) as dial:
            peer = dial.dealer()
            for number in range(100):
                await peer.send(action="chat", payload={**CHAT, "user": str(number)}, request_id=f"r{number}")
            found = await answers(peer, 100)
    assert {name: answer["result"]["user"] for name, answer in found.items()} == {f"r{n}": str(n) for n in range(100)}
    assert link.most_running == 2  # as many as the model's engine works on at once


async def test_a_request_may_be_cancelled_and_its_place_is_free(rest_stack: RestStack) -> None:
    link = await rest_stack.load()
    link.gate.clear()
    async with serving(rest_stack) as server:
        with peers(server.url, rest_stack.key) as dial:
            peer, other = dial.dealer(), dial.dealer()
            await peer.send(action="chat", payload=CHAT, request_id="a")
            await link.began.wait()
            assert (await other.ask("cancel", {"request_id": "a"}))["result"] == {"cancelled": False}
            await peer.send(action="cancel", payload={"request_id": "a"}, request_id="b")
            found = await answers(peer, 2)
            assert (code(found["a"]), found["b"]["result"]) == ("cancelled", {"cancelled": True})
            await link.idle()
            again = await peer.ask("cancel", {"request_id": "a"}, request_id="c")
    assert again["result"] == {"cancelled": False}
    assert link.cancelled == 1


async def test_a_deadline_ends_a_request(rest_stack: RestStack) -> None:
    link = await rest_stack.load()
    link.gate.clear()
    async with serving(rest_stack) as server:
        with peers(server.url, rest_stack.key) as dial:
            answer = await dial.req().ask("chat", CHAT, deadline_ms=20)
            await link.idle()
            assert code(answer) == "deadline_exceeded"
            assert answer["error"]["retry_after_s"] == 1
            assert answer["latency_ms"] >= 20
            for wrong in (0, -1, 1e12):
                assert code(await dial.req().ask("chat", CHAT, deadline_ms=wrong)) == "invalid_request"


async def test_who_left_is_noticed_and_its_work_is_ended(rest_stack: RestStack) -> None:
    link = await endless(rest_stack)
    link.gate.clear()
    async with serving(rest_stack) as server:
        with peers(server.url, rest_stack.key) as dial:
            peer = dial.dealer()
            await peer.send(action="chat", payload=CHAT)
            await link.began.wait()
            await peer.send(action="chat", payload={**CHAT, "stream": True})
            assert len((await peer.receive())["chunk"]) == 100_000
            peer.close()
            await link.idle()
    assert link.cancelled == 1


async def test_who_left_is_missed_though_there_is_nothing_to_tell(rest_stack: RestStack) -> None:
    link = await rest_stack.load()
    link.gate.clear()
    async with serving(rest_stack, limits=Limits(look_s=0.01)) as server:
        with peers(server.url, rest_stack.key) as dial:
            peer, other = dial.dealer(), dial.dealer()
            await peer.send(action="chat", payload=CHAT)
            await link.began.wait()
            link.began.clear()
            await other.send(action="chat", payload=CHAT)
            await link.began.wait()
            peer.close()
            await eventually(lambda: link.cancelled == 1)
            link.gate.set()
            assert (await other.receive())["success"]
    assert link.cancelled == 1


async def test_who_does_not_read_waits_alone(rest_stack: RestStack) -> None:
    await rest_stack.load()
    count, filling = 60, "x" * 200_000
    async with serving(rest_stack, limits=Limits(unread_max=2)) as server:
        with peers(server.url, rest_stack.key) as dial:
            slow, quick = dial.dealer(rcvhwm=1, rcvbuf=4096), dial.req()
            for number in range(count):
                await slow.send(action="chat", payload={**CHAT, "user": filling}, request_id=f"r{number}")
            for _ in range(50):
                assert code(await quick.ask("chat", CHAT)) == "ok"
            found = await answers(slow, count)
    assert {code(answer) for answer in found.values()} == {"ok"}
    assert len(found) == count


async def test_who_never_reads_is_given_up(rest_stack: RestStack) -> None:
    link = await endless(rest_stack)
    async with serving(rest_stack, limits=Limits(unread_max=2, write_timeout_s=0.1)) as server:
        with peers(server.url, rest_stack.key) as dial:
            slow = dial.dealer(rcvhwm=1, rcvbuf=4096)
            await slow.send(action="chat", payload={**CHAT, "stream": True}, request_id="s")
            await link.began.wait()
            await link.idle()
            assert code(await dial.req().ask("health")) == "ok"
            answer = await slow.ask("health", request_id="h")
            while answer["request_id"] == "s":
                answer = await slow.receive()
            assert code(answer) == "ok"


async def test_a_peer_has_its_share_and_no_more(rest_stack: RestStack) -> None:
    link = await rest_stack.load()
    link.gate.clear()
    async with serving(rest_stack, limits=Limits(requests_per_peer=3, requests_max=4)) as server:
        with peers(server.url, rest_stack.key) as dial:
            greedy, modest, late = dial.dealer(), dial.dealer(), dial.req()
            for number in range(4):
                await greedy.send(action="chat", payload=CHAT, request_id=f"r{number}")
            assert (await greedy.receive())["error"]["code"] == "queue_full"
            await modest.send(action="chat", payload=CHAT, request_id="m")
            refused = await late.ask("health")
            while code(refused) == "ok":  # it came before the one of `modest`
                refused = await late.ask("health")
            assert (refused["error"]["code"], refused["error"]["retry_after_s"]) == ("queue_full", 1)
            link.gate.set()
            found = await answers(greedy, 3)
            assert {code(answer) for answer in [*found.values(), await modest.receive()]} == {"ok"}
            assert code(await late.ask("health")) == "ok"


async def test_messages_are_bounded(rest_stack: RestStack) -> None:
    await rest_stack.load()
    limits = Limits(message_bytes=10_000, frames_max=10)
    async with serving(rest_stack, limits=limits) as server:
        with peers(server.url, rest_stack.key) as dial:
            peer = dial.dealer()
            head = msgspec.msgpack.encode({"action": "infer", "request_id": "big"})
            await peer.socket.send_multipart([head, *[b"x" * 6000] * 2])
            big = msgspec.msgpack.decode((await peer.frames())[0])
            assert (big["error"]["code"], big["request_id"]) == ("too_large", "big")
            await peer.socket.send_multipart([head, *[b""] * 10])
            many = msgspec.msgpack.decode((await peer.frames())[0])
            assert many["error"]["code"] == "too_large"
            deep = '{"request_id": "deep", "action": "chat", "payload": ' + "[" * 4000 + "]" * 4000 + "}"
            await peer.socket.send(deep.encode())
            assert code(await peer.receive()) == "invalid_request"
            too_big = dial.dealer()
            await too_big.socket.send(b"x" * 20_000)  # one frame of it ends the connection, which is made anew
            assert code(await peer.ask("health")) == "ok"


async def test_an_id_is_used_once_at_a_time(rest_stack: RestStack) -> None:
    link = await rest_stack.load()
    link.gate.clear()
    async with serving(rest_stack) as server:
        with peers(server.url, rest_stack.key) as dial:
            peer = dial.dealer()
            await peer.send(action="chat", payload=CHAT, request_id="same")
            assert code(await peer.ask("health", request_id="same")) == "conflict"
            link.gate.set()
            assert code(await peer.receive()) == "ok"
            assert code(await peer.ask("health", request_id="same")) == "ok"


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (b" ", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "Expected `object`"),
        (b"{}", "`action`"),
        (b'{"action": 1}', "`str`"),
        (b'{"action": "chat", "type": "heartbeat"}', "`action`"),
        (b'{"action": "chta"}', "'chat'"),
        (b'{"type": "chat"}', "no type"),
        (b'{"type": "heartbeat", "data": []}', "`object`"),
        (b'{"action": "chat", "payload": {"model": "echo"}}\xff', "not JSON"),
        (b'{"action": "chat", "payload": []}', "`object`"),
        (b'{"action": "infer", "payload": {"model": "echo"}}', "`inputs` or a `prompt`"),
        (b'{"action": "load_model", "payload": {"model": "echo", "modle": 1}}', "modle"),
        (b'{"action": "chat", "request_id": "a\\nb"}', "printable"),
        (b"\x81", "not msgpack"),
        (b"\x81\xa6action\xa4chta", "'chat'"),
    ],
)
async def test_what_is_wrong_is_said(rest_stack: RestStack, message: bytes, says: str) -> None:
    await rest_stack.load()
    key = rest_stack.key.encode()
    message = message.replace(b'{"action"', b'{"key": "%s", "action"' % key, 1)
    message = message.replace(b"\x81\xa6action", b"\x82\xa3key\xd9%c%s\xa6action" % (len(key), key))
    async with serving(rest_stack) as server:
        with peers(server.url, None) as dial:
            for peer in (dial.req(), dial.dealer()):
                await peer.socket.send(message)
                (frame,) = await peer.frames()
                decode = msgspec.msgpack.decode if message[:1] > b"\x7f" else msgspec.json.decode
                answer: dict[str, Any] = decode(frame)
                assert answer["error"]["code"] == "invalid_request", answer
                assert says in answer["error"]["message"]


@pytest.mark.parametrize(
    ("inputs", "frames", "says"),
    [
        ([{"name": "x", "shape": [2], "datatype": "FP32"}], [], "1 inputs are described, but 0 frames"),
        ([{"name": "x", "shape": [2], "datatype": "FP32"}], [b"1234"], "takes 8 bytes, not 4"),
        ([{"name": "x", "shape": [1], "datatype": "FP33"}], [b"1234"], "unknown datatype"),
        ([{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}], [b"1234"], "has `data`"),
        ([{"name": "x", "shape": [1], "datatype": "INT8"}] * 2, [b"1", b"2"], "same input twice"),
        ([{"name": "x", "shape": [-1], "datatype": "INT8"}], [b"1"], ">= 0"),
        ([], [b"1"], "`inputs` or a `prompt`"),
    ],
)
async def test_what_is_wrong_with_tensors_is_said(
    rest_stack: RestStack, inputs: Any, frames: list[bytes], says: str
) -> None:
    async with serving(rest_stack) as server:
        with peers(server.url, rest_stack.key) as dial:
            message = {"action": "infer", "payload": {"model": "echo", "inputs": inputs}}
            answer, _ = await dial.dealer().ask_msgpack(message, *frames)
    assert answer["error"]["code"] == "invalid_request"
    assert says in answer["error"]["message"]


async def test_a_fault_of_our_own_tells_nothing_of_its_inside(rest_stack: RestStack) -> None:
    link = await rest_stack.load()
    link.fault = ZeroDivisionError("secret")
    async with serving(rest_stack) as server:
        with peers(server.url, rest_stack.key) as dial:
            answer = await dial.req().ask("chat", CHAT, request_id="f")
    assert answer["error"]["code"] == "internal"
    assert "secret" not in answer["error"]["message"]
    assert "f" in answer["error"]["message"]


def connections(server: ZmqServer) -> int:
    """How many the server has."""
    return sum(each.laddr.port == server.port and bool(each.raddr) for each in psutil.Process().net_connections("tcp"))


async def test_a_lease_granted_to_nobody_is_given_back(rest_stack: RestStack) -> None:
    async with serving(rest_stack) as server:
        with peers(server.url, rest_stack.key) as dial:
            holder, waiting, other = dial.req(), dial.dealer(), dial.req()
            lease = (await holder.ask("acquire_lease", LEASE))["result"]
            await waiting.send(action="acquire_lease", payload=LEASE)
            assert code(await waiting.ask("health")) == "ok"
            before = connections(server)
            waiting.close()
            async with asyncio.timeout(SOON):
                while connections(server) == before:  # noqa: ASYNC110 - only the system can tell
                    await asyncio.sleep(0.01)
            await holder.ask("release_lease", {"id": lease["id"], "token": lease["token"]})
            assert code(await other.ask("acquire_lease", LEASE)) == "ok"


async def test_draining_finishes_what_runs_and_refuses_the_rest(rest_stack: RestStack) -> None:
    link = await rest_stack.load()
    link.gate.clear()
    async with serving(rest_stack) as server:
        with peers(server.url, rest_stack.key) as dial:
            peer, other = dial.dealer(), dial.req()
            assert code(await other.ask("acquire_lease", LEASE)) == "ok"
            await peer.send(action="acquire_lease", payload=LEASE, request_id="lease")
            await peer.send(action="chat", payload=CHAT, request_id="chat")
            await link.began.wait()
            draining = asyncio.create_task(server.drain())
            assert code((await answers(peer, 1))["lease"]) == "unavailable"
            assert code(await other.ask("chat", CHAT)) == "unavailable"
            assert not draining.done()
            link.gate.set()
            assert code((await answers(peer, 1))["chat"]) == "ok"
            await draining


async def test_stopping_cuts_off_what_does_not_end(rest_stack: RestStack) -> None:
    link = await rest_stack.load()
    link.gate.clear()
    async with serving(rest_stack, limits=Limits(stop_grace_s=0.05)) as server:
        with peers(server.url, rest_stack.key) as dial:
            await dial.dealer().send(action="chat", payload=CHAT)
            await link.began.wait()
            await server.stop()
            await server.stop()
    await link.idle()
    assert link.cancelled == 1


async def test_a_port_that_is_taken_is_named(rest_stack: RestStack) -> None:
    async with serving(rest_stack) as server:
        second = ZmqServer(rest_stack.services, host="127.0.0.1", port=server.port)
        with pytest.raises(Conflict, match=f"port {server.port} .*--zmq-port"):
            await second.start()
        await second.stop()


async def test_events_are_published_by_kind(rest_stack: RestStack) -> None:
    async with serving(rest_stack, events_port=0) as server:
        assert server.events_url is not None
        with peers(server.url, rest_stack.key) as dial:
            socket = dial.subscriber(server.events_url, "model.")
            seen = asyncio.create_task(_event(socket))
            peer, number = dial.req(), 0
            while not seen.done():  # until the subscription is there
                number += 1
                spec = {"runtime": "python", "source": f"file:{number}.py"}
                assert code(await peer.ask("load_model", {"model": f"m{number}", "spec": spec})) == "ok"
            kind, event = await seen
    assert kind.startswith("model.")
    assert event["kind"] == kind
    assert set(event) == {"id", "at", "kind", "subject", "reason", "actor", "data"}


async def _event(socket: zmq.asyncio.Socket) -> tuple[str, dict[str, Any]]:
    topic, body = await socket.recv_multipart()
    return topic.decode(), msgspec.json.decode(body)


NOISE = st.one_of(
    st.binary(max_size=60),
    st.dictionaries(
        st.sampled_from(["action", "payload", "type", "data", "request_id", "deadline_ms", "key"]),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers(-(2**63), 2**64 - 1)
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(max_size=20)
            | st.sampled_from(["infer", "chat", "cancel", "heartbeat", "load_model", "discovery"]),
            lambda children: (
                st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3)
            ),
            max_leaves=8,
        ),
        max_size=7,
    ).flatmap(lambda made: st.sampled_from([msgspec.json.encode(made), msgspec.msgpack.encode(made)])),
)


async def test_noise_harms_nobody(rest_stack: RestStack) -> None:
    await rest_stack.load()
    loop = asyncio.get_running_loop()
    async with serving(rest_stack) as server:
        with peers(server.url, rest_stack.key) as dial:
            noisy, sane = dial.dealer(key=None), dial.req()

            async def shout(frames: list[bytes]) -> None:
                with contextlib.suppress(zmq.ZMQError):
                    await noisy.socket.send_multipart(frames)
                assert code(await sane.ask("health")) == "ok"

            @given(st.lists(NOISE, min_size=1, max_size=4), st.booleans())
            @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), database=None)
            def shout_something(frames: list[bytes], keyed: bool) -> None:
                if keyed and frames[0][:1] == b"{" and frames[0] != b"{}":
                    frames[0] = b'{"key":"%s",' % rest_stack.key.encode() + frames[0][1:]
                asyncio.run_coroutine_threadsafe(shout(frames), loop).result(SOON)

            await asyncio.to_thread(shout_something)
            assert code(await sane.ask("chat", CHAT)) == "ok"
            tensor = {"name": "INPUT0", "shape": [2], "datatype": "FP32"}
            message = {"action": "infer", "payload": {"model": "echo", "inputs": [tensor]}}
            _, frames = await dial.dealer().ask_msgpack(message, struct.pack("<2f", 1, 2))
            assert frames == [struct.pack("<2f", 1, 2)]
