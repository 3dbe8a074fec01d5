"""Server-sent events, however the network cuts them."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moc.client.sse import SseDecoder
from moc.kernel.errors import TooLarge

STREAM = (
    ": comment\n\nid: 1\nevent: a.b\ndata: one\n\ndata:two\r\ndata:  lines\r\n\r\n"
    'data: {"text": "\u2028\x85\x0b line ends that are none"}\n\nevent: empty\n\ndata: unfinished'
).encode()
EVENTS = [b"one", b"two\n lines", '{"text": "\u2028\x85\x0b line ends that are none"}'.encode()]


@given(st.lists(st.integers(0, len(STREAM))))
def test_events_are_the_same_wherever_the_bytes_are_cut(cuts: list[int]) -> None:
    decoder = SseDecoder()
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[start:end] for start, end in pairwise(edges)]
    assert [event for piece in pieces for event in decoder.feed(piece)] == EVENTS


def test_a_line_without_end_is_refused() -> None:
    decoder = SseDecoder()
    assert decoder.feed(b"data: " + b"x" * 16_000_000) == []
    with pytest.raises(TooLarge, match="longer than"):
        decoder.feed(b"x" * 1_000_000)
