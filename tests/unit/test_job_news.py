"""What a program wrote into its progress file, read piece by piece."""

import io
import json
from collections.abc import Mapping
from typing import Any

from moc.learning.ports import News
from moc.workers.trainers.news import LINE_BYTES_MAX, LINES_MAX, READ_BYTES_MAX, read_news

METRICS = {"type": "metrics", "step": 1, "metrics": {"train_loss": 0.5}}


def read(text: bytes, after_bytes: int = 0, *, over: bool = False) -> News:
    return read_news(io.BytesIO(text), after_bytes, over=over)


def line(told: object) -> bytes:
    return json.dumps(told).encode() + b"\n"


def test_complete_lines_are_told_once() -> None:
    text = line(METRICS) + line({"type": "message", "message": "half"})
    first = read(line(METRICS))
    assert list(first.lines) == [METRICS]
    second = read(text, first.read_bytes)
    assert [told["message"] for told in second.lines] == ["half"]
    assert read(text, second.read_bytes) == News((), len(text))


def test_a_line_without_its_end_is_left_for_the_next_time() -> None:
    text = line(METRICS)
    for cut in range(len(text)):
        assert read(text[:cut]) == News((), 0)
    assert list(read(text).lines) == [METRICS]


def test_the_last_line_of_an_ended_program_needs_no_end_but_must_be_whole() -> None:
    text = line(METRICS)
    assert read(text[:-1], over=True) == News((METRICS,), len(text) - 1)
    assert read(text[:-5], over=True) == News((), len(text) - 5)


def test_what_is_no_object_is_told_as_a_warning_and_what_follows_is_read() -> None:
    for garbage in (b"Traceback (most recent call last):", b"[1, 2]", b"\xff\xfe\x00", b"7", b"[" * 100_000):
        news = read(garbage + b"\n" + line(METRICS))
        warning, told = news.lines
        assert warning["level"] == "warn"
        assert "no JSON object" in warning["message"]
        assert told == METRICS


def test_empty_lines_are_nothing() -> None:
    assert list(read(b"\n \n" + line(METRICS) + b"\n").lines) == [METRICS]


def test_invalid_characters_within_an_object_are_survived() -> None:
    (told,) = read(b'{"type": "message", "message": "\xff"}\n').lines
    assert told["message"] == "\N{REPLACEMENT CHARACTER}"


def test_a_line_that_is_too_long_is_left_out_however_it_is_cut() -> None:
    for size in (LINE_BYTES_MAX + 1, READ_BYTES_MAX, 3 * READ_BYTES_MAX + 7):
        text = line(METRICS) + b"x" * size + b"\n" + line(METRICS)
        told: list[Mapping[str, Any]] = []
        at = 0
        while (news := read(text, at)).read_bytes > at:
            told += news.lines
            at = news.read_bytes
        assert at == len(text)
        assert [each["type"] for each in told] == ["metrics", "message", "metrics"]
        assert "more than" in told[1]["message"]


def test_many_lines_are_told_in_several_readings() -> None:
    text, at, readings = line(METRICS) * (2 * LINES_MAX) + line(METRICS)[:-1], 0, list[int]()
    while (news := read(text, at, over=True)).read_bytes > at:
        at = news.read_bytes
        readings.append(len(news.lines))
    assert (readings, at) == ([LINES_MAX, LINES_MAX, 1], len(text))


def test_any_cut_tells_the_same() -> None:
    text = line(METRICS) + b"rubbish\n" + line({"type": "message", "message": "ä"}) + line(METRICS)
    whole = list(read(text).lines)
    for cut in range(len(text) + 1):
        first = read(text[:cut])
        second = read(text, first.read_bytes)
        assert [*first.lines, *second.lines] == whole
