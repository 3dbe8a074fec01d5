"""The space of a search, as somebody declared it."""

from typing import Any

import pytest

from moc.kernel.errors import InvalidRequest
from moc.learning.space import PARAMETERS_MAX, Choices, Range, corners, read_space

WRONG: list[tuple[Any, str]] = [
    (None, "names 1 to"),
    ({}, "names 1 to"),
    ([], "names 1 to"),
    ({f"p{number}": {"low": 0, "high": 1} for number in range(PARAMETERS_MAX + 1)}, "names 1 to"),
    ({"a b": {"low": 0, "high": 1}}, "'a b' in `space` is no name"),
    ({7: {"low": 0, "high": 1}}, "'7' in `space` is no name"),
    ({"lr": 3}, "`lr` of `space`: it needs `low` and `high`, or `choices`"),
    ({"lr": {"low": 1}}, "it needs `low` and `high`, or `choices`"),
    ({"lr": {"low": 1, "hihg": 2}}, "there is no 'hihg'; did you mean `high`?"),
    ({"lr": {"low": 1, "high": 2, "zzz": 2}}, "there is no 'zzz'; there are low"),
    ({"lr": {"low": 2, "high": 1}}, "`low` 2 is more than `high` 1"),
    ({"lr": {"low": "x", "high": 1}}, "`low` is a number, not 'x'"),
    ({"lr": {"low": True, "high": 1}}, "`low` is a number, not 'True'"),
    ({"lr": {"low": 0, "high": float("inf")}}, "`high` is a number, not 'inf'"),
    ({"lr": {"low": 0, "high": "nan"}}, "`high` is a number, not 'nan'"),
    ({"lr": {"low": 0, "high": 10**400}}, "`high` is a number"),
    ({"lr": {"low": 0, "high": 1, "log": True}}, "with `log`, `low` is more than 0"),
    ({"lr": {"low": 1, "high": 2, "log": "yes"}}, "`log` is true or false"),
    ({"lr": {"low": 1, "high": 2, "step": 0}}, "`step` is more than 0"),
    ({"lr": {"low": 1, "high": 2, "step": 1, "log": True}}, "not together with `log`"),
    ({"lr": {"choices": [1], "low": 1}}, "`choices` stands alone"),
    ({"lr": {"choices": []}}, "`choices` is a list of 1 to"),
    ({"lr": {"choices": "abc"}}, "`choices` is a list of 1 to"),
    ({"lr": {"choices": [[1]]}}, "each of its `choices`"),
    ({"lr": {"choices": [float("nan")]}}, "each of its `choices`"),
    ({"lr": {"choices": [1, 1]}}, "not all different"),
    ({"lr": {"choices": [0.001, "1e-3"]}}, "not all different"),
    ({"lr": {"choices": ["1e400"]}}, "each of its `choices`"),
]


@pytest.mark.parametrize(("document", "message"), WRONG)
def test_what_is_wrong_is_said(document: Any, message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_space(document)
    assert message in refused.value.message


def test_choices_that_yaml_takes_for_texts_are_numbers() -> None:
    given = ["1e-3", "1.5e3", "-.5E2", "1e-3x", "7", "e5"]
    assert read_space({"lr": {"choices": given}}) == {"lr": Choices((0.001, 1500.0, -50.0, "1e-3x", "7", "e5"))}


def test_a_space_is_read() -> None:
    space = read_space(
        {
            "learning_rate": {"low": "1e-5", "high": 1e-3, "log": True},
            "epochs": {"low": 1, "high": 5, "step": 2},
            "dropout": {"low": 0, "high": 1, "step": 0.25},
            "lora_rank": {"choices": [4, 8, 16]},
            "method": {"choices": ["lora", None, True, 1]},
        }
    )
    assert space == {
        "learning_rate": Range(low=1e-5, high=1e-3, log=True),
        "epochs": Range(low=1, high=5, step=2),
        "dropout": Range(low=0, high=1, step=0.25),
        "lora_rank": Choices((4, 8, 16)),
        "method": Choices(("lora", None, True, 1)),
    }
    whole = {name: values.is_whole for name, values in space.items() if isinstance(values, Range)}
    assert whole == {"learning_rate": False, "epochs": True, "dropout": False}


def test_corners_have_every_extreme_of_each_parameter() -> None:
    space = read_space({"a": {"low": 1, "high": 2}, "b": {"choices": ["x", "y", "z"]}, "c": {"choices": [0]}})
    points = list(corners(space))
    assert {point["a"] for point in points} == {1, 2}
    assert {point["b"] for point in points} == {"x", "y", "z"}
    assert all(point["c"] == 0 for point in points)
    assert len(points) == 3
