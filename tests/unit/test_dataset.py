"""What a report says of rows: counts, lengths, repeats, leaks and hints; and that a split leaks nothing."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from moc.kernel.errors import InvalidRequest
from moc.learning.dataset import TOLD_MAX, Leak, Lengths, Report, leaks, read, split
from moc.learning.rows import Format, Row, rows


def chat(asked: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


def written(path: Path, given: list[Any]) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in given))
    return path


def report(folder: Path, given: list[Any]) -> Report:
    return read(written(folder / "rows.jsonl", given))


def test_a_report_counts_what_is_there(tmp_path: Path) -> None:
    found = report(tmp_path, [chat("a", "b"), "nope", chat("aa", "bb"), "", chat("a ", "B"), chat("a", "b")])
    assert (found.format, found.rows, found.errors.count, found.warnings.count) == (Format.CHAT, 4, 1, 1)
    assert found.errors.told[0].line == 2
    assert [(repeat.line, repeat.first, repeat.exact) for repeat in found.repeats] == [(5, 1, False), (6, 1, True)]
    assert found.characters == Lengths(3, 3.75, 3, 5, 5)
    assert found.roles == {"user": 4, "assistant": 4}


def test_all_are_counted_and_the_first_told(tmp_path: Path) -> None:
    found = report(tmp_path, ["nope"] * (TOLD_MAX + 7) + [chat("a", "b")] * (TOLD_MAX + 9))
    assert (found.errors.count, len(found.errors.told)) == (TOLD_MAX + 7, TOLD_MAX)
    assert (found.repeat_count, len(found.repeats)) == (TOLD_MAX + 8, TOLD_MAX)


def test_a_check_names_the_lines(tmp_path: Path) -> None:
    report(tmp_path, [chat("a", "b")]).check("mine")
    with pytest.raises(InvalidRequest, match=r"mine has 7 rows.*line 2 is not JSON.*and 2 more") as refused:
        report(tmp_path, [chat("a", "b"), *["nope"] * 7]).check("mine")
    assert refused.value.details["lines"] == [2, 3, 4, 5, 6, 7, 8]
    with pytest.raises(InvalidRequest, match="mine has no rows"):
        report(tmp_path, [""]).check("mine")


def test_what_validation_would_measure_though_it_was_learned(tmp_path: Path) -> None:
    training = report(tmp_path, [chat("a", "b"), chat("c", "d"), chat("e", "f")])
    validation = report(tmp_path, [chat("x", "y"), chat("E ", "other"), chat("c", "d")])
    assert leaks(training, validation) == [Leak(3, 2, exact=False), Leak(2, 3, exact=True)]
    assert leaks(training, report(tmp_path, [chat("x", "y")])) == []


def test_hints_about_the_whole(tmp_path: Path) -> None:
    assert "only 2 rows" in report(tmp_path, [chat("a", "b"), chat("c", "d")]).hints[0]
    same = report(tmp_path, [chat(str(number), "always") for number in range(12)])
    assert same.hints == ("12 of 12 rows have the same answer; the model may come to give it to everything",)
    longer = [{"prompt": str(n), "chosen": f"a longer {n}", "rejected": "no"} for n in range(12)]
    assert "the longer one in 12 of 12" in report(tmp_path, longer).hints[0]
    assert report(tmp_path, [chat(str(number), f"answer {number}") for number in range(12)]).hints == ()


def test_a_conversation_that_ends_with_a_question_is_warned_of(tmp_path: Path) -> None:
    given = chat("a", "b")
    given["messages"].append({"role": "user", "content": "and?"})
    found = report(tmp_path, [given])
    assert (found.rows, found.warnings.count) == (1, 1)


def test_lengths() -> None:
    assert Lengths.of([]) is None
    assert Lengths.of([7]) == Lengths(7, 7, 7, 7, 7)
    found = Lengths.of(random.Random(0).sample(range(1, 101), 100))
    assert found == Lengths(1, 50.5, 50, 95, 100)


@pytest.fixture
def many(tmp_path: Path) -> list[Row]:
    """Sixty rows, of which each three in a row ask the same."""
    path = written(tmp_path / "many.jsonl", [chat(f"question {n // 3}", f"answer {n}") for n in range(60)])
    return [row for row in rows(path) if isinstance(row, Row)]


def test_a_split_is_the_same_every_time_and_leaks_nothing(many: list[Row]) -> None:
    training, validation = split(many, 0.1, 7)
    assert split(many, 0.1, 7) == (training, validation)
    assert split(many, 0.1, 8) != (training, validation)
    assert len(validation) == 6
    assert sorted([*training, *validation], key=lambda row: row.line) == many
    assert not {row.prompt for row in training} & {row.prompt for row in validation}
    assert [row.line for row in validation] == [31, 32, 33, 49, 50, 51]  # wherever it is run


@pytest.mark.parametrize("seed", range(8))
def test_a_split_takes_no_more_than_its_share_however_many_rows_a_prompt_has(tmp_path: Path, seed: int) -> None:
    asked = ["the same"] * 95 + [f"another {number}" for number in range(5)]
    given = written(tmp_path / "skewed", [chat(question, str(number)) for number, question in enumerate(asked)])
    training, validation = split([row for row in rows(given) if isinstance(row, Row)], 0.1, seed)
    assert (len(training), len(validation)) == (95, 5)


def test_neither_side_of_a_split_is_empty_unless_it_must_be(many: list[Row]) -> None:
    assert split(many, 0, 0) == (many, [])
    assert len(split(many, 0.001, 0)[1]) == 3
    assert len(split(many, 0.999, 0)[0]) == 3
    assert split(many[:3], 0.5, 0) == (many[:3], [])
    assert split([], 0.5, 0) == ([], [])
