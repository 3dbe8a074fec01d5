"""Server-sent events come out whole, however they were cut and whatever their lines end in."""

import json
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moc.kernel.errors import Internal
from moc.workers.upstream.events import EVENT_BYTES_MAX, Events

objects = st.dictionaries(st.text(max_size=4), st.text(max_size=8), max_size=2)
documents = st.lists(st.builds(json.dumps, objects, indent=st.sampled_from([None, 0])), max_size=6)
breaks = st.sampled_from(["\n", "\r\n", "\r"])


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[bytes], bytes]:
    """Some data, and a stream that carries it among all that may stand between."""
    data, line = draw(documents), draw(breaks)
    noise = st.sampled_from(["", f": still here{line}{line}", f"event: more{line}", f"id: 7{line}retry: 3{line}", line])
    field = st.sampled_from(["data:", "data: "])
    events = [draw(noise) + "".join(f"{draw(field)}{part}{line}" for part in each.split("\n")) + line for each in data]
    ending = "" if not events or draw(st.booleans()) else line
    text = "".join(events)
    return [each.encode() for each in data], (text.removesuffix(ending) if ending else text).encode()


def read(blocks: list[bytes]) -> list[bytes]:
    events = Events()
    return [data for block in blocks for data in events.feed(block)] + events.end()


@given(streams(), st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_cut_gives_the_same_events(stream: tuple[list[bytes], bytes], data: st.DataObject) -> None:
    wanted, text = stream
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    blocks = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(blocks) == wanted
    assert read([bytes([byte]) for byte in text]) == wanted


def test_data_of_several_lines_is_joined_and_an_event_without_data_is_none() -> None:
    text = b"\xef\xbb\xbfdata: {\ndata:   1}\n\nevent: ping\n\n: comment\n\ndata\n\ndata: [DONE]"
    assert read([text]) == [b"{\n  1}", b"[DONE]"]


def test_events_of_one_block_come_together() -> None:
    assert Events().feed(b"data: 1\n\ndata: 2\n\ndata: 3") == [b"1", b"2"]


def test_a_large_event_in_small_pieces_is_not_read_again_with_each() -> None:
    events, piece = Events(), b"x" * 64
    began = time.thread_time()
    for _ in range(EVENT_BYTES_MAX // len(piece) - 1):
        assert events.feed(piece) == []
    assert time.thread_time() - began < 20, "it takes well under a second, and minutes when it is"


def test_an_endless_event_is_given_up() -> None:
    events = Events()
    assert events.feed(b"x" * EVENT_BYTES_MAX) == []
    with pytest.raises(Internal, match="more than"):
        events.feed(b"x")
