"""What goes wrong with an engine that speaks HTTP is told truly."""

import asyncio
import contextlib
import json
import socket
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from moc.kernel.errors import (
    Internal,
    InvalidRequest,
    LoadFailed,
    MocError,
    QueueFull,
    TooLarge,
    Unavailable,
    Unimplemented,
    WorkerLost,
)
from moc.security.certificates import PrivateAuthority
from moc.workers.upstream import Upstream, UpstreamOptions
from moc.workers.upstream.key import FileKey
from moc.workers.upstream.line import Resolver
from tests.coordinator import free_port
from tests.upstream_server import (
    CHUNK,
    WORDS,
    Answer,
    Peer,
    Seen,
    UpstreamServer,
    answer_chat,
    breaking_off,
    chat,
    hanging,
    refusing,
    resetting,
    sending,
    serving,
    streamed,
    upstream_to,
)


@pytest.fixture
async def server() -> AsyncIterator[UpstreamServer]:
    async with serving() as it:
        yield it


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, InvalidRequest),
        (401, Unavailable),
        (403, Unavailable),
        (404, Unimplemented),
        (413, TooLarge),
        (422, InvalidRequest),
        (429, QueueFull),
        (500, Internal),
        (501, Unimplemented),
        (502, Unavailable),
        (503, Unavailable),
        (504, Unavailable),
        (307, Unavailable),
    ],
)
async def test_a_status_has_its_meaning(server: UpstreamServer, status: int, error: type[MocError]) -> None:
    server.answer = refusing(status, location="http://elsewhere.example/", retry_after="7")
    async with upstream_to(server) as upstream:
        with pytest.raises(error) as caught:
            await upstream.infer(chat())
        with pytest.raises(error):
            await streamed(upstream, chat())
    assert type(caught.value) is error
    assert caught.value.retry_after_s == 7
    assert ("no more" in caught.value.message) == (status not in (307, 401, 403))


async def test_a_secret_is_never_told(server: UpstreamServer, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("hunter2-of-ours")
    async with upstream_to(server, key=FileKey(tmp_path / "key")) as upstream:
        for status in (400, 401, 500):
            server.answer = refusing(status, b'{"error": "the key hunter2-of-ours is wrong"}')
            with pytest.raises(MocError) as caught:
                await upstream.infer(chat())
            assert "hunter2" not in caught.value.message
            assert "hunter2" not in repr(upstream.options)
            assert (str(tmp_path / "key") in caught.value.message) == (status == 401)


async def test_an_upstream_that_lost_the_model_is_not_available(server: UpstreamServer) -> None:
    server.answer = refusing(404, b'{"error": {"message": "model theirs not found, try pulling it first"}}')
    async with upstream_to(server) as upstream:
        with pytest.raises(Unavailable, match="pulling"):
            await upstream.infer(chat())


async def test_one_that_cannot_be_reached_was_sent_nothing(server: UpstreamServer) -> None:
    async with upstream_to(server) as upstream:
        await server.stop()
        with pytest.raises(Unavailable) as caught:
            await upstream.infer(chat())
        assert caught.value.details == {"sent": False}
    with pytest.raises(WorkerLost) as closed:
        await upstream.infer(chat())
    assert not closed.value.sent


@pytest.mark.parametrize("answer", [resetting, breaking_off, sending(b""), sending(b"HTTP/1.1 200 OK\r\n")])
async def test_one_that_goes_away_may_have_done_it(server: UpstreamServer, answer: Answer) -> None:
    server.answer = answer
    async with upstream_to(server) as upstream:
        with pytest.raises(WorkerLost) as caught:
            await upstream.infer(chat())
        assert caught.value.sent


async def test_one_that_closes_connections_behind_streams_is_asked_over_new_ones(server: UpstreamServer) -> None:
    served: set[asyncio.StreamWriter] = set()

    async def once(seen: Seen, peer: Peer) -> None:
        if peer.writer in served:
            peer.writer.close()
            return
        served.add(peer.writer)
        await answer_chat(seen, peer)

    server.answer = once
    async with upstream_to(server) as upstream:
        assert await streamed(upstream, chat())
        assert "connection" not in server.last.headers
        await upstream.infer(chat())
        assert len(server.seen) == 3
        served.clear()
        assert await streamed(upstream, chat())
        assert server.last.headers["connection"] == "close", "next time the race is not run"


async def test_what_an_upstream_was_working_on_is_not_sent_twice(server: UpstreamServer) -> None:
    async def crashing(_: Seen, peer: Peer) -> None:
        await asyncio.sleep(0.1)  # its work
        peer.reset()

    server.answer = crashing
    async with upstream_to(server) as upstream:
        await upstream.probe()
        with pytest.raises(WorkerLost) as caught:
            await upstream.infer(chat())
    assert caught.value.sent
    assert [seen.method for seen in server.seen] == ["GET", "POST"]
    assert server.connections == 1


async def test_nothing_is_sent_more_than_twice(server: UpstreamServer) -> None:
    server.answer = resetting
    async with upstream_to(server) as upstream:
        await asyncio.gather(*(upstream.probe() for _ in range(3)))
        assert server.connections == 3
        with pytest.raises(WorkerLost):
            await upstream.infer(chat())
    assert [seen.method for seen in server.seen][3:] in (["POST"], ["POST", "POST"])


async def test_half_an_answer_is_none(server: UpstreamServer) -> None:
    server.answer = sending(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
    async with upstream_to(server) as upstream:
        with pytest.raises(WorkerLost, match="in the middle"):
            await upstream.infer(chat())


async def test_a_stream_that_breaks_gives_what_there_was(server: UpstreamServer) -> None:
    async def cut(_: Seen, peer: Peer) -> None:
        await peer.begin_stream(framed=False)
        await peer.send(b"data: %s\n\ndata: {" % (CHUNK % WORDS[0]))
        peer.writer.close()

    for answer in (breaking_off, cut):
        server.answer = answer
        async with upstream_to(server) as upstream:
            stream = upstream.stream(chat())
            assert await anext(stream) == [CHUNK % WORDS[0]]
            with pytest.raises(WorkerLost) as caught:
                await anext(stream)
            assert caught.value.sent


@pytest.mark.parametrize("ending", ["none", "finish", "usage", "half"])
async def test_a_stream_is_whole_when_it_says_so(server: UpstreamServer, ending: str) -> None:
    finish = b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'
    usage = b'{"choices":[],"usage":{"total_tokens":3}}'
    chunks = {"none": [], "finish": [finish], "usage": [finish, usage], "half": [finish]}[ending]

    async def without_done(_: Seen, peer: Peer) -> None:
        await peer.begin_stream()
        for chunk in (CHUNK % WORDS[0], *chunks):
            await peer.piece(b"data: %s\n\n" % chunk)
        if ending == "half":
            await peer.piece(b"data: " + usage[:20])
        await peer.piece(b"")

    server.answer = without_done
    async with upstream_to(server) as upstream:
        if ending in ("finish", "usage"):
            assert await streamed(upstream, chat()) == [CHUNK % WORDS[0], *chunks]
        else:
            with pytest.raises(WorkerLost, match="whole") as caught:
                await streamed(upstream, chat())
            assert caught.value.sent


async def test_an_error_in_the_midst_of_a_stream_is_raised(server: UpstreamServer) -> None:
    async def failing(_: Seen, peer: Peer) -> None:
        await peer.begin_stream()
        error = {"error": {"message": "out of cards", "code": 503}}
        await peer.piece(b"data: %s\n\ndata: %s\n\n" % (CHUNK % WORDS[0], json.dumps(error).encode()))
        await peer.piece(b"")

    server.answer = failing
    async with upstream_to(server) as upstream:
        stream = upstream.stream(chat())
        assert await anext(stream) == [CHUNK % WORDS[0]]
        with pytest.raises(Unavailable, match="out of cards"):
            await anext(stream)


@pytest.mark.parametrize(
    "answer",
    [
        sending(b"SSH-2.0-Other\r\n\r\n"),
        sending(b"HTTP/1.1 200 OK\r\n" + b"x-long: " + b"x" * 100_000 + b"\r\n\r\n"),
        refusing(200, b"<html>hello</html>"),
        refusing(200, b"[1]"),
        refusing(200, b'{"error": {"message": "no"}}'),
    ],
)
async def test_garbage_is_told_as_such(server: UpstreamServer, answer: Answer) -> None:
    server.answer = answer
    async with upstream_to(server) as upstream:
        with pytest.raises(Internal):
            await upstream.infer(chat())
        with pytest.raises(Internal):
            await streamed(upstream, chat())


async def test_a_stream_of_garbage_is_told_as_such(server: UpstreamServer) -> None:
    async def garbage(_: Seen, peer: Peer) -> None:
        await peer.begin_stream()
        await peer.piece(b"data: hello\n\n")
        await peer.piece(b"")

    server.answer = garbage
    async with upstream_to(server) as upstream:
        with pytest.raises(Internal, match="JSON"):
            await streamed(upstream, chat())


async def test_silence_is_not_waited_for_for_ever(server: UpstreamServer) -> None:
    async def stalling(_: Seen, peer: Peer) -> None:
        await peer.begin_stream()
        await peer.piece(b"data: %s\n\n" % (CHUNK % WORDS[0]))
        await peer.hang()

    async with upstream_to(server, timeout_s=0.2) as upstream:
        server.answer = hanging
        with pytest.raises(WorkerLost, match="said nothing") as caught:
            await upstream.infer(chat())
        assert caught.value.sent
        server.answer = stalling
        with pytest.raises(WorkerLost, match="said nothing"):
            await streamed(upstream, chat())


async def test_slow_bytes_are_no_silence(server: UpstreamServer) -> None:
    async def slowly(_: Seen, peer: Peer) -> None:
        await peer.begin_stream()
        for byte in b"data: %s\n\ndata: [DONE]\n\n" % (CHUNK % WORDS[0]):
            await peer.piece(bytes([byte]))
            await asyncio.sleep(0)
        await peer.piece(b"")

    server.answer = slowly
    async with upstream_to(server, timeout_s=5.0) as upstream:
        assert await streamed(upstream, chat()) == [CHUNK % WORDS[0]]


async def test_cancelling_ends_the_request_at_once(server: UpstreamServer) -> None:
    left = asyncio.Event()

    async def waiting(seen: Seen, peer: Peer) -> None:
        if seen.json().get("stream"):
            await peer.begin_stream()
            await peer.piece(b"data: %s\n\n" % (CHUNK % WORDS[0]))
        await peer.hang()
        left.set()

    server.answer = waiting
    async with upstream_to(server) as upstream, asyncio.timeout(30):
        asking = asyncio.create_task(upstream.infer(chat()))
        await server.asked.wait()
        asking.cancel()
        await left.wait()
        left.clear()
        stream = upstream.stream(chat())
        await anext(stream)
        await stream.aclose()
        await left.wait()


async def test_closing_ends_what_is_under_way(server: UpstreamServer) -> None:
    server.answer = hanging
    async with upstream_to(server) as upstream:
        await upstream.probe()  # over a connection that is kept
        asking = asyncio.create_task(upstream.infer(chat()))
        await server.asked.wait()
        await upstream.close()
        with pytest.raises(WorkerLost) as caught:
            await asking
        assert caught.value.sent


async def test_a_probe_tells_what_is_wrong(server: UpstreamServer) -> None:
    async with upstream_to(server) as upstream:
        await upstream.probe()
        assert server.seen[-1].path == "/v1/models"
        server.health = 503
        with pytest.raises(Unavailable):
            await upstream.probe()
    async with upstream_to(server, health="/healthz") as upstream:
        server.health = 200
        await upstream.probe()
        assert server.seen[-1].path == "/healthz"


async def test_connecting_takes_no_longer_than_it_may() -> None:
    with socket.socket() as deaf, contextlib.ExitStack() as crowd:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for _ in range(3):  # who comes after them is not let in
            waiting = crowd.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(deaf.getsockname())
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        upstream = Upstream(UpstreamOptions(url=url, model="m", connect_timeout_s=0.1))
        await upstream.start()
        try:
            with pytest.raises(Unavailable, match="cannot be reached") as caught:
                await upstream.infer(chat())
            assert caught.value.details == {"sent": False}
        finally:
            await upstream.close()


async def test_certificates_are_checked(tmp_path: Path) -> None:
    authority = PrivateAuthority(tmp_path)
    authority.create()
    certificate = authority.issue_server(["127.0.0.1"])
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, certificate.with_suffix(".key"))
    async with serving(tls) as server:
        async with upstream_to(server, ca_file=str(authority.certificate)) as upstream:
            assert await streamed(upstream, chat()) == [CHUNK % word for word in WORDS]
        async with upstream_to(server) as upstream:
            with pytest.raises(Unavailable, match=r"cannot be reached: .*certificate") as caught:
                await upstream.infer(chat())
            assert caught.value.details == {"sent": False}
        with pytest.raises(Unavailable, match="cannot be read"):
            await Upstream(UpstreamOptions(url=server.url, model="m", ca_file=str(tmp_path / "none.pem"))).start()


async def test_proxies_are_gone_by_when_that_is_asked(
    server: UpstreamServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password hunter2\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("http_proxy", server.url.replace("//", "//ours:word@"))
    monkeypatch.setenv("no_proxy", "")
    nobody = f"http://127.0.0.1:{free_port()}/v1"
    for use_proxy in (True, False):
        upstream = Upstream(UpstreamOptions(url=nobody, model="m", use_proxy=use_proxy))
        await upstream.start()
        try:
            if use_proxy:
                await upstream.infer(chat())
                assert server.last.path == f"{nobody}/chat/completions"
                assert server.last.headers["proxy-authorization"] == f"Basic {b64encode(b'ours:word').decode()}"
                assert "authorization" not in server.last.headers
            else:
                with pytest.raises(Unavailable, match="cannot be reached"):
                    await upstream.infer(chat())
        finally:
            await upstream.close()


@pytest.mark.parametrize("use_proxy", [True, False])
async def test_an_address_that_may_not_be_reached_is_not(
    server: UpstreamServer, monkeypatch: pytest.MonkeyPatch, use_proxy: bool
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    asked: list[tuple[str, str]] = []

    def reach(host: str, port: int, address: str) -> None:
        assert server.url.endswith(f":{port}")
        asked.append((host, address))
        if address == "127.0.0.1":
            raise LoadFailed("not there", reason="load_failed")

    url = server.url.replace("127.0.0.1", "localhost")
    upstream = Upstream(UpstreamOptions(url=url, model="m", reach=reach, use_proxy=use_proxy))
    await upstream.start()
    try:
        with pytest.raises(LoadFailed, match="not there"):
            await upstream.infer(chat())
    finally:
        await upstream.close()
    with pytest.raises(LoadFailed, match="not there"):
        await Upstream(UpstreamOptions(url=server.url, model="m", reach=reach)).start()
    assert server.connections == 0
    assert ("localhost", "127.0.0.1") in asked


async def test_an_address_is_checked_whatever_the_http_client_makes_of_the_host() -> None:
    def reach(host: str, port: int, address: str) -> None:
        raise LoadFailed(f"{host}:{port} is at {address}", reason="load_failed")

    resolver = Resolver(reach, "https://inside.example./v1")
    with pytest.raises(LoadFailed, match=r"^inside\.example\.:443 is at "):
        await resolver.resolve("localhost")
    await resolver.close()
