"""Rows to learn from: what each format takes, and what is told of lines that are no rows."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moc.learning import rows as reader
from moc.learning.rows import Flaw, Format, Row, detect, rows

USER = {"role": "user", "content": "What is a zorblax?"}
GOOD = {"role": "assistant", "content": "A blue fruit."}
BAD = {"role": "assistant", "content": "No idea."}
CHAT = {"messages": [USER, GOOD]}
CALL = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}


def written(folder: Path, content: bytes) -> Path:
    path = folder / "rows.jsonl"
    path.write_bytes(content)
    return path


def row_of(folder: Path, given: Any, wanted: Format | None = None) -> Row | Flaw:
    (found,) = rows(written(folder, json.dumps(given).encode()), wanted)
    return found


def value_of(folder: Path, given: Any) -> dict[str, Any]:
    found = row_of(folder, given)
    assert isinstance(found, Row), found
    return found.value


def test_a_conversation_is_kept_as_it_is_but_for_what_no_trainer_reads(tmp_path: Path) -> None:
    tool = {"role": "tool", "content": "", "tool_call_id": "c"}
    asked = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    parts = {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "it?"}]}
    given = {"messages": [parts, asked, tool, {**GOOD, "weight": 1, "refusal": None, "mood": 3}], "tools": [{"a": 1}]}
    assert value_of(tmp_path, {**given, "parallel_tool_calls": False, "source": "mine"}) == {
        "messages": [
            {"role": "user", "content": "What is it?"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            tool,
            {**GOOD, "weight": 1},
        ],
        "tools": [{"a": 1}],
    }


@pytest.mark.parametrize(
    "given",
    [
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"input": {"messages": [USER]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
    ],
)
def test_preferences_of_both_makers_become_the_same(tmp_path: Path, given: dict[str, Any]) -> None:
    assert value_of(tmp_path, given) == {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}


def test_the_format_is_seen_in_the_first_row_that_has_one(tmp_path: Path) -> None:
    texts = {"prompt": "a", "chosen": "b", "rejected": "c"}
    for row, wanted in ((CHAT, "chat"), (texts, "preference"), ({"text": "a"}, "text"), ({"b": 1}, "chat")):
        assert detect(written(tmp_path, b"\xff\n[1]\n\n" + json.dumps(row).encode())) == wanted


def test_what_a_row_asks_and_answers(tmp_path: Path) -> None:
    found = {
        name: row_of(tmp_path, given)
        for name, given in {
            "chat": {"messages": [USER, GOOD, {**USER, "content": "Sure?"}, BAD]},
            "longer": {"prompt": "ab", "chosen": "c", "rejected": "def"},
            "text": {"text": "abc"},
        }.items()
    }
    said = {name: (row.answer, row.characters) for name, row in found.items() if isinstance(row, Row)}
    whole = "What is a zorblax?\nA blue fruit.\nSure?\nNo idea."
    assert said == {"chat": ("No idea.", len(whole)), "longer": ("c", 5), "text": ("abc", 3)}


def test_rows_that_are_the_same_are_known_to_be(tmp_path: Path) -> None:
    twice = {"messages": [{"content": USER["content"], "role": "user"}, GOOD]}
    spaced = {"messages": [{**USER, "content": " what IS a\u00a0zorblax? "}, GOOD]}
    other = {"messages": [USER, BAD]}
    path = written(tmp_path, "\n".join(map(json.dumps, (CHAT, twice, spaced, other))).encode())
    one, same, alike, another = [row for row in rows(path) if isinstance(row, Row)]
    assert one.digest == same.digest != alike.digest
    assert one.content == alike.content != another.content
    assert one.prompt == alike.prompt == another.prompt


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"nope", "is not JSON: Expecting value (column 1); write one JSON object on each line, a table such as CSV"),
        (b'{"text": "a"}\r{"text": "b"}', "is not JSON: Extra data (column 15); its lines end in CR alone"),
        (b"7", "is not a JSON object"),
        (b'{"messages": NaN}', "has NaN, which is no JSON number"),
        (b'{"a": 1, "a": 2}', "has the key `a` twice in one object"),
        (b'{"messages": "\xed\xa0\x80"}', "is not UTF-8 (byte 15)"),
        (rb'{"messages": ["\ud800"]}', "has half a character (a lone surrogate) in a text"),
        (rb'{"text": "\u0000"}', "has a NUL character in a text"),
        (b'{"text": "\0"}', "is not JSON: Invalid control character at (column 11)"),
        (b'{"n": ' + b"7" * 5000 + b"}", "is not JSON: Exceeds the limit"),
        (b'{"messages": ' * 100_000, "is nested too deeply"),
        (b'{"a": 1, "b": 2}', "has no `messages` (it has `a`, `b`); a row of the format chat has `messages`"),
    ],
)
def test_a_line_that_is_no_row_is_told_and_the_next_one_read(tmp_path: Path, line: bytes, told: str) -> None:
    good = json.dumps(CHAT).encode()
    first, broken, last = rows(written(tmp_path, good + b"\n" + line + b"\n" + good))
    assert isinstance(broken, Flaw)
    assert broken.line == 2
    assert broken.message.startswith(told)
    assert not broken.warns
    assert isinstance(first, Row)
    assert isinstance(last, Row)
    assert last.line == 3


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"messages": []}, "not a list of messages"),
        ({"messages": ["hi"]}, "no message at messages[0]"),
        ({"messages": [USER]}, "no message of the assistant"),
        ({"messages": [GOOD]}, "begins with the assistant"),
        ({"messages": [USER, {**GOOD, "role": "bot"}]}, "has the role `bot` at messages[1]"),
        ({"messages": [USER, {**GOOD, "role": ["user"]}]}, 'has the role `["user"]` at messages[1]'),
        ({"messages": [USER, {**GOOD, "content": " "}]}, "has an empty message at messages[1]"),
        ({"messages": [USER, {**GOOD, "content": 7}]}, "neither a text nor a list of parts"),
        ({"messages": [USER, {**GOOD, "weight": 0}]}, "has the weight 0 in every message"),
        ({"messages": [USER, {**GOOD, "weight": 2}]}, "that is not 0 or 1"),
        ({"messages": [USER, {**GOOD, "function_call": {}}]}, "write `tool_calls`"),
        ({"messages": [USER, {**GOOD, "tool_calls": [{}]}]}, "not calls of functions"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, GOOD]}, "only texts are learned from"),
        ({"messages": [USER, GOOD], "tools": ["a"]}, "not a list of tools"),
        ({"prompt": "a", "chosen": "b"}, "has no `rejected`"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "nothing to prefer"),
        ({"prompt": "a", "chosen": [GOOD], "rejected": [BAD]}, "that is not a text"),
        ({"prompt": [USER], "chosen": [USER, GOOD], "rejected": [BAD]}, "put it into the prompt"),
        ({"input": {}, "preferred_output": [GOOD], "non_preferred_output": [BAD]}, "`input` without `messages`"),
        ({"text": "  "}, "has an empty `text`"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(tmp_path: Path, given: Any, told: str) -> None:
    found = row_of(tmp_path, given)
    assert isinstance(found, Flaw)
    assert told in found.message


def test_preferences_are_texts_or_messages_in_one_file(tmp_path: Path) -> None:
    texts = {"prompt": "a", "chosen": "b", "rejected": "c"}
    messages = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}
    path = written(tmp_path, "\n".join(map(json.dumps, (texts, messages, texts))).encode())
    assert [type(row) for row in rows(path)] == [Row, Flaw, Row]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"PAR1\x15\x04", "a Parquet file"),
        (b"\x1f\x8b\x08", "is the beginning of a compressed file (gzip);"),
        ('{"text": "a"}\n'.encode("utf-16"), "UTF-16 text"),
        (b'\xef\xbb\xbf[\n{"text": "a"}\n]', "begins a JSON array"),
    ],
)
def test_files_of_other_kinds_are_told_once(tmp_path: Path, content: bytes, told: str) -> None:
    broken = [flaw for flaw in rows(written(tmp_path, content)) if isinstance(flaw, Flaw) and not flaw.warns]
    assert [flaw.line for flaw in broken] == [1]
    assert told in broken[0].message


def test_marks_returns_and_empty_lines_are_passed_over_with_a_warning(tmp_path: Path) -> None:
    found = list(rows(written(tmp_path, b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \n{"text": "b"}\r\n')))
    assert [(flaw.line, flaw.warns) for flaw in found if isinstance(flaw, Flaw)] == [
        (1, True), (1, True), (2, True), (3, True),
    ]  # fmt: skip
    assert [(row.line, row.value) for row in found if isinstance(row, Row)] == [(1, {"text": "a"}), (4, {"text": "b"})]


def test_a_line_that_is_too_long_is_not_kept(tmp_path: Path) -> None:
    longest = reader.LINE_MAX_BYTES - len(b'{"text": ""}')
    lines = [b'{"text": "%s"}' % (b"x" * size) for size in (longest, longest + 1, 3 * longest)]
    first, *others = rows(written(tmp_path, b"\n".join([*lines, b'{"text": "b"}'])))
    assert isinstance(first, Row | Flaw)
    told = [(found.line, isinstance(found, Flaw)) for found in (first, *others)]
    assert told == [(1, True), (2, True), (3, True), (4, False)] or told == [
        (1, False),
        (2, True),
        (3, True),
        (4, False),
    ]


KEYS = (
    *("messages", "role", "content", "prompt", "chosen", "rejected", "text", "input", "tools", "tool_calls", "weight"),
    *("preferred_output", "non_preferred_output", "type", "function"),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.just("user"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
lines = st.binary(max_size=40) | json_values.map(lambda value: json.dumps(value).encode())


@settings(max_examples=300, deadline=None)
@given(st.lists(lines, max_size=6), st.sampled_from([None, *Format]))
def test_nothing_that_a_file_may_hold_ends_in_an_error(
    tmp_path_factory: pytest.TempPathFactory, content: list[bytes], wanted: Format | None
) -> None:
    path = tmp_path_factory.mktemp("rows") / "any"
    path.write_bytes(b"\n".join(content))
    for found in rows(path, wanted):
        assert 1 <= found.line <= path.read_bytes().count(b"\n") + 1
        if isinstance(found, Row):
            assert found.characters > 0 or "messages" in found.value
            assert json.loads(json.dumps(found.value)) == found.value or "NaN" in json.dumps(found.value)
