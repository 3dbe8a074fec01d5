import mmap
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moc.inference.request import Info, Tensor, TensorSpec
from moc.kernel.errors import Cancelled, InvalidRequest, TooLarge
from moc.workers.wire import (
    BODY_MAX,
    JOINED_MAX,
    BrokenFrame,
    Cancel,
    Chunk,
    Credit,
    End,
    Failure,
    Frames,
    Hello,
    Infer,
    Loaded,
    Message,
    NotLoaded,
    Ping,
    Pong,
    Refused,
    Result,
    Stop,
    Stream,
    Welcome,
    failure,
    frame,
)

ids = st.integers(0, 2**63)
texts = st.text(max_size=20)
plain = st.dictionaries(texts, st.none() | st.booleans() | st.integers(-(2**63), 2**63) | texts, max_size=3)
kinds = st.sampled_from(["tensors", "chat", "completion", "embeddings"])
shapes = st.lists(st.integers(-1, 2**40), max_size=4).map(tuple)
tensors = st.lists(st.builds(Tensor, texts, texts, shapes, ids), max_size=3).map(tuple)
specs = st.lists(st.builds(TensorSpec, texts, texts, shapes), max_size=2).map(tuple)
infos = st.builds(Info, st.lists(kinds, max_size=2).map(tuple), texts, specs, specs, ids, ids, plain)
messages: st.SearchStrategy[Any] = st.one_of(
    st.builds(Hello, texts, ids, texts),
    st.builds(Welcome, ids, st.none() | infos, ids),
    st.builds(Refused, texts, texts),
    st.builds(Loaded, infos),
    st.builds(NotLoaded, texts, texts, plain),
    st.builds(Infer, ids, kinds, tensors, st.lists(texts, max_size=2).map(tuple), plain),
    st.builds(Result, ids, tensors, plain),
    st.builds(Failure, ids, texts, texts, plain),
    st.builds(Stream, ids, kinds, plain),
    st.builds(Chunk, ids),
    st.builds(End, ids),
    st.builds(Credit, ids, ids),
    st.builds(Cancel, ids),
    st.builds(Stop),
    st.builds(Ping),
    st.builds(Pong),
)
said = st.lists(st.tuples(messages, st.binary(max_size=200)), max_size=6)


def on_the_wire(talk: list[tuple[Message, bytes]]) -> bytes:
    return b"".join(piece for message, body in talk for piece in frame(message, body))


@given(said)
def test_what_is_said_is_heard(talk: list[tuple[Message, bytes]]) -> None:
    assert Frames().feed(on_the_wire(talk)) == talk


@given(said, st.data())
def test_frames_torn_anywhere_are_heard_whole(talk: list[tuple[Message, bytes]], data: st.DataObject) -> None:
    stream = on_the_wire(talk)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    frames, heard = Frames(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        heard += frames.feed(stream[start:end])
    assert heard == talk


@given(st.binary(min_size=1, max_size=300))
def test_noise_is_refused_or_waited_on_but_never_heard(noise: bytes) -> None:
    frames = Frames(header_max=64, body_max=64)
    try:
        heard = frames.feed(noise)
    except BrokenFrame:
        return
    assert on_the_wire(heard) == noise[: len(on_the_wire(heard))]


@pytest.mark.parametrize("sizes", [(101, 0), (0, 201), (2**32 - 1, 2**32 - 1)])
def test_a_size_over_the_limit_is_refused_before_its_bytes_come(sizes: tuple[int, int]) -> None:
    with pytest.raises(BrokenFrame):
        Frames(header_max=100, body_max=200).feed(struct.pack("<II", *sizes))


@pytest.mark.parametrize("header", [b"", b"\xc1", b"\x91\x63", b"\x80", b"\x92\x09\xa1x"])
def test_a_header_that_is_no_message_is_refused(header: bytes) -> None:
    with pytest.raises(BrokenFrame):
        Frames().feed(struct.pack("<II", len(header), 0) + header)


def test_a_header_nested_without_end_is_refused() -> None:
    header = b"\x91" * 100_000
    with pytest.raises(BrokenFrame):
        Frames().feed(struct.pack("<II", len(header), 0) + header)


def test_what_would_be_refused_is_not_sent() -> None:
    with mmap.mmap(-1, BODY_MAX + 1) as body, memoryview(body) as view, pytest.raises(TooLarge):  # takes no memory
        frame(Chunk(1), view)


def test_a_big_body_is_not_copied() -> None:
    body = bytes(JOINED_MAX + 1)
    pieces = frame(Chunk(1), body)
    assert pieces[1] is body
    assert Frames().feed(b"".join(pieces)) == [(Chunk(1), body)]


def test_an_error_is_told_with_its_code_and_its_details() -> None:
    assert failure(7, InvalidRequest("no", details={"a": 1})) == Failure(7, "invalid_request", "no", {"a": 1})


def test_an_error_of_somebody_else_is_told_as_internal() -> None:
    assert failure(7, KeyError("x")) == Failure(7, "internal", "KeyError: 'x'", {})


def test_details_that_cannot_be_sent_are_left_out() -> None:
    assert failure(7, Cancelled("no", details={"a": object()})) == Failure(7, "cancelled", "no", {})
