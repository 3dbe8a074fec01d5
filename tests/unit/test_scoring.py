"""What answers are worth, and what they come to."""

import math
from typing import Any

import pytest

from moc.kernel.errors import InvalidRequest
from moc.learning.scoring import ACCURACY, LATENCY, PERPLEXITY, Record, adds_up, compared, likeliest, right, summed_up
from moc.learning.suite import Choice, Contains, ExactMatch, JsonSchema, MultipleChoice, Prompt, Question, Regex

SCHEMA = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}


def question(*expected: str) -> Question:
    return Question(prompt="?", expected=expected)


@pytest.mark.parametrize(
    ("task", "item", "got", "is_right"),
    [
        (ExactMatch(name="t"), question("Paris"), " Paris\n", True),
        (ExactMatch(name="t"), question("Paris"), "paris", False),
        (ExactMatch(name="t", ignore=("case", "punctuation")), question("Paris"), "PARIS.", True),
        (ExactMatch(name="t", ignore=("whitespace",)), question("New York"), "New\n  York", True),
        (ExactMatch(name="t"), question("a", "b"), "b", True),
        (Contains(name="t"), question("Paris"), "It is Paris, I think", True),
        (Contains(name="t", all=True), question("a", "b"), "only a", False),
        (Contains(name="t"), question("a", "b"), "only a", True),
        (Regex(name="t"), question(r"\d+"), "about 42", True),
        (Regex(name="t", whole=True), question(r"\d+"), "about 42", False),
        (JsonSchema(name="t", schema=SCHEMA), Prompt(prompt="?"), '{"a": 1}', True),
        (JsonSchema(name="t", schema=SCHEMA), Prompt(prompt="?"), '{"a": "1"}', False),
        (JsonSchema(name="t", schema=SCHEMA), Prompt(prompt="?"), "{", False),
        (JsonSchema(name="t", schema={"multipleOf": 0.5}), Prompt(prompt="?"), "1" + "0" * 400, False),
    ],
)
def test_an_answer_is_right_or_not(task: Any, item: Any, got: str, is_right: bool) -> None:
    assert right(task, item, got) is is_right


@pytest.mark.parametrize("schema", [{"type": "colour"}, {"$ref": "http://nowhere.invalid/schema.json"}])
def test_a_schema_that_is_none_is_told_of_and_nothing_is_fetched(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="not a JSON schema"):
        right(JsonSchema(name="t", schema=schema), Prompt(prompt="?"), "{}")


def test_a_pattern_that_would_try_every_way_is_given_up() -> None:
    with pytest.raises(InvalidRequest, match="took over"):
        right(Regex(name="t"), question(r"(?:a|b|ab)*c(?:x+x+)+y"), "ab" * 40 + "c" + "x" * 60)


@pytest.mark.parametrize(("normalise", "chosen"), [("none", 0), ("tokens", 1), ("characters", 2)])
def test_the_likeliest_choice_depends_on_how_length_counts(normalise: Any, chosen: int) -> None:
    task = MultipleChoice(name="t", normalise=normalise)
    item = Choice(prompt="?", choices=("a", "bb", "cccccccc"), answer=0)
    assert likeliest(task, item, [-2.0, -3.0, -6.0], [1, 3, 4]) == chosen


def records(*scores: float | None, **fields: Any) -> list[Record]:
    return [Record(task="t", id=str(at), score=score, **fields) for at, score in enumerate(scores)]


def test_accuracies_have_wilsons_interval_and_leave_errors_out() -> None:
    result = summed_up(ACCURACY, records(1, 1, 0, None), seed=0)
    assert (result.n, result.errors) == (3, 1)
    assert result.score == pytest.approx(2 / 3)
    assert result.ci95 == pytest.approx((0.2077, 0.9385), abs=1e-4)
    assert summed_up(ACCURACY, records(None), seed=0).n == 0


def test_a_perplexity_counts_tokens_and_not_texts() -> None:
    found = [
        Record(task="t", id="a", score=10 * math.log(2), tokens=10),
        Record(task="t", id="b", score=0.0, tokens=10),
    ]
    result = summed_up(PERPLEXITY, found, seed=0)
    assert result.score == pytest.approx(math.sqrt(2))
    assert result.ci95 == pytest.approx((1, 2))


def test_latencies_are_told_by_quantiles() -> None:
    result = summed_up(LATENCY, records(*range(1, 101), first_token_ms=2.0, tokens=5), seed=0)
    assert result.score == pytest.approx(95.05)
    assert result.more["p50_ms"] == pytest.approx(50.5)
    assert result.more["first_token_p95_ms"] == 2
    assert result.more["tokens_per_s"] == pytest.approx(500 / 5.05)


def test_runs_are_compared_as_their_metric_wants() -> None:
    better = compared(ACCURACY, records(*[0] * 8, 1), records(*[1] * 8, 1), seed=0)
    assert better.test == "mcnemar"
    assert better.p_value == pytest.approx(2 / 2**8)
    assert compared("acc", records(0, 1), records(1, 1), seed=0, harness=True).test == "mcnemar"
    assert compared("likelihood", records(0.5, 1), records(0.25, 1), seed=0, harness=True).test == "permutation"
    slower = compared(LATENCY, records(*range(100)), records(*range(50, 150)), seed=0)
    assert slower.difference == pytest.approx(50)
    assert slower.p_value < 0.01


def test_the_perplexity_of_the_harness_is_of_answers() -> None:
    first, second = records(-3.0, -5.0, -2.5), records(-2.0, -4.0, -1.5)
    found = compared(PERPLEXITY, first, second, seed=0, harness=True)
    assert [found.first, found.second] == pytest.approx([math.exp(3.5), math.exp(2.5)])
    assert found.p_value == pytest.approx(2 / 2**3)
    assert adds_up(PERPLEXITY, math.exp(3.5), first)


def test_a_metric_of_the_harness_that_its_items_do_not_make_up_is_known() -> None:
    assert adds_up("acc", 0.5, records(0, 1, None))
    assert not adds_up("acc", 1.0, records(0, 1, 1))  # as by `aggregation: median`
    assert not adds_up("f1", 0.5, records(None, None))


@pytest.mark.parametrize("metric", [ACCURACY, PERPLEXITY, LATENCY])
def test_one_item_says_nothing_of_the_error(metric: str) -> None:
    assert summed_up(metric, records(1.0, tokens=5), seed=0).stderr is None
    assert (summed_up(metric, records(1.0, tokens=5), seed=0).ci95 is None) == (metric != ACCURACY)
