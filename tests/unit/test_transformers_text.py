"""Text from tokens that are pieces of UTF-8, as byte-level tokenizers have them."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moc.workers.runtimes.hugging_face.text import Text


def decode(tokens: Sequence[int]) -> str:
    """Each token is a byte."""
    return bytes(tokens).decode(errors="replace")


def pieces(text: str | bytes, *stops: str) -> tuple[list[str], bool]:
    """What comes of each byte and of the end, and whether it was stopped."""
    taken = Text(decode, stops)
    given = []
    for byte in text.encode() if isinstance(text, str) else text:
        given.append(taken.push(byte))
        if taken.stopped:
            break
    given.append(taken.end())
    return given, taken.stopped


def test_a_character_comes_when_it_is_whole() -> None:
    assert pieces("aé→b") == (["a", "", "é", "", "", "→", "b", ""], False)


def test_half_a_character_at_the_end_is_shown_as_one() -> None:
    assert pieces("a→".encode()[:-1]) == (["a", "", "", "\ufffd"], False)


def test_a_stop_ends_the_text_and_is_no_part_of_it() -> None:
    assert pieces("so long STOP more", "STOP")[1]
    assert "".join(pieces("so long STOP more", "STOP")[0]) == "so long "


def test_what_may_be_a_stop_waits_until_it_is_not() -> None:
    assert pieces("abac", "abab") == (["", "", "", "abac", ""], False)
    assert pieces("xab", "abab") == (["x", "", "", "ab"], False)


def test_the_first_of_several_stops_counts() -> None:
    given, stopped = pieces("one two three", "three", "two")
    assert ("".join(given), stopped) == ("one ", True)


def test_tokens_that_read_differently_beside_others_keep_their_spaces() -> None:
    words = ["<s>", "Hello", "world", "!"]

    def joined(tokens: Sequence[int]) -> str:  # as sentence pieces do: no space before the first
        return " ".join(words[token] for token in tokens).replace(" !", "!").replace("<s> ", "").replace("<s>", "")

    taken = Text(joined)
    assert "".join([*(taken.push(token) for token in (0, 1, 2, 3)), taken.end()]) == "Hello world!"


@given(st.text(alphabet="aéb→c", max_size=40), st.lists(st.text("aéb→", min_size=1, max_size=4), max_size=3))
def test_the_pieces_are_the_text_up_to_the_stop_that_is_seen_first(text: str, stops: list[str]) -> None:
    ends = [at + len(stop) for stop in stops if (at := text.find(stop)) >= 0]
    seen = text[: min(ends, default=len(text))]
    expected = min((seen[: seen.find(stop)] for stop in stops if stop in seen), key=len, default=text)
    given, stopped = pieces(text, *stops)
    assert ("".join(given), stopped) == (expected, bool(ends))


@pytest.mark.parametrize("stops", [(), ("zz",)])
def test_nothing_comes_of_nothing(stops: tuple[str, ...]) -> None:
    assert pieces("", *stops) == ([""], False)
