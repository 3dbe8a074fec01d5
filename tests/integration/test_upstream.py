"""Requests to an engine that speaks HTTP are passed on as they are, and so are its answers."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from moc.inference.request import Request, TensorSpec
from moc.kernel.errors import Internal, Unavailable, Unimplemented
from moc.resilience.deadline import Deadline
from moc.workers.upstream.key import EnvironmentKey, FileKey
from moc.workers.upstream.line import WRITTEN_AT_ONCE_MAX
from tests.hosted import arrays, tensors
from tests.upstream_server import (
    CHUNK,
    WORDS,
    Peer,
    Seen,
    UpstreamServer,
    chat,
    refusing,
    serving,
    streamed,
    upstream_to,
)

BODY = (
    b'{"model": "mine", "messages": [{"role": "user", "content": "Hi"}], "seed": 12345678901234567890, "top_p": 1e-1}'
)


@pytest.fixture
async def server() -> AsyncIterator[UpstreamServer]:
    async with serving() as it:
        yield it


async def test_only_the_name_of_the_model_is_replaced(server: UpstreamServer) -> None:
    async with upstream_to(server) as upstream:
        reply = await upstream.infer(Request("chat", BODY))
    assert json.loads(bytes(reply.body))["choices"][0]["message"]["content"] == "one two three"
    assert server.last.path == "/v1/chat/completions"
    wanted = BODY.replace(b'"mine"', b'"theirs"')
    assert json.loads(server.last.body) == json.loads(wanted)
    assert b"12345678901234567890" in server.last.body
    assert b"1e-1" in server.last.body


async def test_every_kind_has_its_path(server: UpstreamServer) -> None:
    server.answer = refusing(200, b'{"data": []}')
    async with upstream_to(server) as upstream:
        for kind, path in (("completion", "completions"), ("embeddings", "embeddings"), ("rerank", "rerank")):
            assert bytes((await upstream.infer(Request(kind, b'{"model": "m"}'))).body) == b'{"data": []}'  # type: ignore[arg-type]
            assert server.last.path == f"/v1/{path}"
        with pytest.raises(Unimplemented):
            await upstream.infer(tensors(x=np.zeros(1, np.float32)))
        with pytest.raises(Unimplemented):
            await streamed(upstream, Request("embeddings", b"{}"))


async def test_a_sound_goes_as_a_form(server: UpstreamServer) -> None:
    server.answer = refusing(200, b'{"text": "hello"}')
    async with upstream_to(server) as upstream:
        reply = await upstream.infer(Request("transcription", b"\x00RIFF\r\n", parameters={"language": "en"}))
    assert bytes(reply.body) == b'{"text": "hello"}'
    assert server.last.headers["content-type"].startswith("multipart/form-data; boundary=")
    boundary = server.last.headers["content-type"].partition("=")[2].encode()
    parts = server.last.body.split(b"--" + boundary)
    assert parts[-1] == b"--\r\n"
    assert [part.partition(b"\r\n\r\n")[2] for part in parts[1:-1]] == [
        b"theirs\r\n",
        b"verbose_json\r\n",
        b"en\r\n",
        b"\x00RIFF\r\n\r\n",
    ]


async def test_a_stream_gives_the_chunks_as_they_came(server: UpstreamServer) -> None:
    async with upstream_to(server) as upstream:
        assert await streamed(upstream, chat()) == [CHUNK % word for word in WORDS]
        assert server.last.json()["stream"] is True
        assert await streamed(upstream, chat(stream=True)) == [CHUNK % word for word in WORDS]
        await upstream.infer(chat(stream=True))
        assert server.last.json()["stream"] is False
    assert server.connections == 1, "a connection is used again after a stream that ended"


async def test_chunks_that_came_together_are_given_together(server: UpstreamServer) -> None:
    async def at_once(_: Seen, peer: Peer) -> None:
        await peer.begin_stream(framed=False)
        await peer.send(b"".join(b"data: %s\r\n\r\n" % (CHUNK % word) for word in WORDS) + b"data: [DONE]")
        peer.writer.close()

    server.answer = at_once
    async with upstream_to(server) as upstream:
        bunches = [bunch async for bunch in upstream.stream(chat())]
    assert bunches == [[CHUNK % word for word in WORDS]]


async def test_a_large_body_goes_whole(server: UpstreamServer) -> None:
    large = "x" * (2 * WRITTEN_AT_ONCE_MAX)
    async with upstream_to(server) as upstream:
        await upstream.infer(chat(user=large))
    assert server.last.json()["user"] == large


async def test_headers_are_those_that_were_named(server: UpstreamServer) -> None:
    caller = {b"authorization": b"Bearer ours", b"x-team": b"blue", b"x-other": b"1", b"x-moc-priority": b"2"}
    request = Request("chat", BODY, headers=caller)
    async with upstream_to(server, headers={"x-fixed": "7"}, forward_headers=("X-Team", "x-missing")) as upstream:
        await upstream.infer(request)
    seen = server.last.headers
    assert (seen["x-fixed"], seen["x-team"]) == ("7", "blue")
    assert not {"authorization", "x-other", "x-missing", "x-moc-priority"} & seen.keys()
    async with upstream_to(server, coordinator=True) as upstream:
        await upstream.infer(request)
        assert server.last.headers["x-moc-priority"] == "2"
        assert "x-moc-deadline-ms" not in server.last.headers
        request.deadline = Deadline.after(60)
        await upstream.infer(request)
        assert 50_000 < int(server.last.headers["x-moc-deadline-ms"]) <= 60_000


async def test_a_key_is_read_where_it_is_kept(
    server: UpstreamServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key"
    file.write_text("first\n")
    async with upstream_to(server, key=FileKey(file)) as upstream:
        await upstream.infer(chat())
        assert server.last.headers["authorization"] == "Bearer first"
        file.write_text("second, longer\n")
        await upstream.infer(chat())
        assert server.last.headers["authorization"] == "Bearer second, longer"
        file.write_text("two\nlines")
        with pytest.raises(Unavailable, match="one line"):
            await upstream.infer(chat())
        file.unlink()
        with pytest.raises(Unavailable, match="cannot be read"):
            await upstream.infer(chat())
    monkeypatch.setenv("SOME_KEY", "of the environment")
    async with upstream_to(server, key=EnvironmentKey("SOME_KEY"), key_header="api-key") as upstream:
        await upstream.infer(chat())
        assert server.last.headers["api-key"] == "of the environment"
        monkeypatch.delenv("SOME_KEY")
        with pytest.raises(Unavailable, match="SOME_KEY"):
            await upstream.infer(chat())


# tensors


async def echo(seen: Seen, peer: Peer) -> None:
    """Gives inputs back as outputs, in the form they came in."""
    size = int(seen.headers.get("inference-header-content-length", len(seen.body)))
    asked = json.loads(seen.body[:size])
    if asked.get("parameters", {}).get("binary_data_output"):
        await peer.answer(
            json.dumps({"outputs": asked["inputs"]}).encode() + seen.body[size:],
            inference_header_content_length=str(len(json.dumps({"outputs": asked["inputs"]}))),
        )
    else:
        await peer.answer(json.dumps({"outputs": asked["inputs"]}).encode())


@pytest.mark.parametrize("binary", [True, False])
async def test_tensors_go_and_come_back(server: UpstreamServer, binary: bool) -> None:
    server.answer = echo
    given = {
        "numbers": np.arange(6, dtype=np.float32).reshape(2, 3),
        "large": np.array([2**63], np.uint64),
        "flags": np.array([True, False]),
        "texts": np.array([b"caf\xc3\xa9", b""], object),
        "none": np.zeros((0, 4), np.int16),
    }
    async with upstream_to(server, protocol="oip", model="theirs@3", binary=binary) as upstream:
        reply = await upstream.infer(tensors(**given))
    assert server.last.path == "/v2/models/theirs/versions/3/infer"
    came = arrays(reply)
    assert came.keys() == given.keys()
    for name, array in given.items():
        np.testing.assert_array_equal(came[name], array)


@pytest.mark.parametrize(
    "outputs",
    [
        [{"name": "y", "datatype": "FP32", "shape": [2], "data": [1]}],
        [{"name": "y", "datatype": "FP32", "shape": [2]}],
        [{"name": "y", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}],
        [{"name": "y", "datatype": "WHAT", "shape": [1], "data": [1]}],
        [{"name": "y", "datatype": "UINT8", "shape": [1], "data": [300]}],
        [{"name": "y", "datatype": "FP32", "shape": [-1], "data": [1]}],
        "none",
    ],
)
async def test_tensors_that_are_none_are_told_as_such(server: UpstreamServer, outputs: object) -> None:
    server.answer = refusing(200, json.dumps({"outputs": outputs}).encode())
    async with upstream_to(server, protocol="oip") as upstream:
        with pytest.raises(Internal, match="tensors"):
            await upstream.infer(tensors(x=np.zeros(1, np.float32)))


async def test_an_upstream_is_asked_what_tensors_it_takes(server: UpstreamServer) -> None:
    inputs = [{"name": "x", "datatype": "FP32", "shape": [-1, 8]}]
    server.page = json.dumps({"name": "theirs", "platform": "onnx", "inputs": inputs, "outputs": []}).encode()
    async with upstream_to(server, protocol="oip") as upstream:
        info = await upstream.info()
        assert info.inputs == (TensorSpec("x", "FP32", (-1, 8)),)
        assert server.seen[-1].path == "/v2/models/theirs"
        server.health = 404
        assert (await upstream.info()).inputs == ()


async def test_only_tensors_go_that_way(server: UpstreamServer) -> None:
    async with upstream_to(server, protocol="oip") as upstream:
        assert (await upstream.info()).kinds == ("tensors",)
        with pytest.raises(Unimplemented):
            await upstream.infer(chat())
