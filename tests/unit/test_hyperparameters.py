"""Hyperparameters: what may be given, what is refused how, and what the defaults are."""

from typing import Any

import pytest

from moc.kernel.errors import InvalidRequest
from moc.learning.hyperparameters import ALL, AUTO, check_effects, complete, from_openai, names, resolved
from moc.learning.job import TRAINING, JobType

SFT, DPO = JobType.SUPERVISED, JobType.DPO


@pytest.mark.parametrize("type", sorted(TRAINING))
def test_every_one_has_a_value_for_a_model_of_any_size(type: JobType) -> None:
    for parameters in (0, 135_000_000, 1_000_000_000, 8_000_000_000, 70_000_000_000):
        found = resolved(type, complete(type, {}), parameters)
        assert list(found) == names(type)
        assert [name for name, value in found.items() if value == AUTO and name != "assistant_only_loss"] == []


def test_bigger_models_learn_in_smaller_steps_and_batches() -> None:
    found = [resolved(SFT, {}, size * 10**8) for size in (1, 10, 70, 700)]
    assert [each["batch_size"] for each in found] == [4, 4, 2, 1]
    assert [each["gradient_checkpointing"] for each in found] == [False, True, True, True]
    assert [each["learning_rate"] for each in found] == sorted((each["learning_rate"] for each in found), reverse=True)


def test_a_preference_pulls_less_and_so_do_all_weights() -> None:
    rates = [
        resolved(type, {"method": method}, 10**8)["learning_rate"] for type in (SFT, DPO) for method in ("lora", "full")
    ]
    assert rates == [5e-4, 5e-5, 5e-5, 5e-6]


@pytest.mark.parametrize("type", sorted(TRAINING))
@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_was_used_may_be_given_again(type: JobType, method: str) -> None:
    used = resolved(type, {"method": method}, 10**8)
    check_effects(complete(type, used), has_validation_file=False)
    assert resolved(type, used, 10**8) == used


def test_what_is_given_stays_and_auto_is_the_default() -> None:
    found = resolved(SFT, {"epochs": 2, "batch_size": AUTO, "lora_rank": 4, "learning_rate": None}, 10**8)
    assert (found["epochs"], found["batch_size"], found["lora_rank"], found["lora_alpha"]) == (2.0, 4, 4, 8.0)
    assert found["learning_rate"] == 5e-4


def test_to_complete_or_resolve_again_changes_nothing() -> None:
    once = complete(DPO, {"beta": 0.5, "lora_targets": ["q_proj"]})
    assert complete(DPO, once) == once
    found = resolved(DPO, once, 10**8)
    assert resolved(DPO, found, 10**10) == found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", "3"),
        ("epochs", True),
        ("epochs", float("nan")),
        ("max_steps", 2.5),
        ("max_steps", float("inf")),
        ("batch_size", 0),
        ("learning_rate", -1e-4),
        ("method", "qlora"),
        ("gradient_checkpointing", 1),
        ("lora_targets", []),
        ("lora_targets", "q_proj"),
        ("lora_targets", [1]),
        ("warmup_ratio", {}),
    ],
)
def test_a_wrong_value_is_refused_by_name_and_range(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        complete(SFT, {name: value})
    assert repr(name) in refused.value.message
    assert ALL[name].range in refused.value.message


def test_a_long_wrong_value_is_not_repeated_in_full() -> None:
    with pytest.raises(InvalidRequest) as refused:
        complete(SFT, {"method": "x" * 10_000})
    assert len(refused.value.message) < 300


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidRequest, match="did you mean 'learning_rate'"):
        complete(SFT, {"learning_rat": 1e-4})
    with pytest.raises(InvalidRequest, match="known are method, epochs"):
        complete(SFT, {"zzz": 1})


def test_one_of_the_other_type_is_refused_as_such() -> None:
    with pytest.raises(InvalidRequest, match="the type supervised have no hyperparameter 'beta'"):
        complete(SFT, {"beta": 0.1})


def test_whole_numbers_may_be_written_as_fractions() -> None:
    found = complete(SFT, {"batch_size": 8.0, "learning_rate": 1})
    assert (found["batch_size"], found["learning_rate"]) == (8, 1.0)
    assert isinstance(found["batch_size"], int)


def test_openai_names_its_own_way() -> None:
    legacy = from_openai(None, {"n_epochs": 2, "learning_rate_multiplier": "auto"})
    assert legacy == (SFT, {"epochs": 2, "learning_rate_multiplier": "auto"})
    method = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": "auto", "lora_rank": 4}}}
    assert from_openai(method, None) == (DPO, {"beta": 0.2, "epochs": "auto", "lora_rank": 4})
    assert from_openai({"type": "supervised"}, None) == (SFT, {})


def test_names_of_openais_stand_wherever_ours_may() -> None:
    assert complete(SFT, {"n_epochs": 2})["epochs"] == 2.0
    assert complete(SFT, {"n_epochs": 2, "epochs": AUTO})["epochs"] == 2.0
    assert complete(SFT, {"epochs": 2, "n_epochs": 2.0}) == complete(SFT, {"epochs": 2})
    with pytest.raises(InvalidRequest, match="`n_epochs` and `epochs` are one hyperparameter and differ"):
        complete(SFT, {"n_epochs": 1, "epochs": 2})


def test_one_hyperparameter_is_not_two_things() -> None:
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": AUTO}}}
    assert from_openai(method, {"n_epochs": 2, "batch_size": 4}) == (SFT, {"epochs": 2, "batch_size": 4})
    for legacy in ({"n_epochs": 1}, {"epochs": 1}):
        with pytest.raises(InvalidRequest) as refused:
            from_openai(method, legacy)
        for place in (f"hyperparameters.{next(iter(legacy))}", "method.supervised.hyperparameters.n_epochs"):
            assert f"`{place}`" in refused.value.message


def test_reinforcement_is_refused_naming_what_there_is() -> None:
    with pytest.raises(InvalidRequest, match="'reinforcement' is not supported; there are supervised and dpo"):
        from_openai({"type": "reinforcement", "reinforcement": {"grader": {}}}, None)
    with pytest.raises(InvalidRequest, match="no mapping"):
        from_openai({"type": "dpo", "dpo": {"hyperparameters": "auto"}}, None)
