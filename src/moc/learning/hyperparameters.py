"""The hyperparameters of trainings: what each means, what it may be, and what it is when nobody says.

Some defaults go by the size of the model that is trained. Until that is known they are `AUTO`, which may be given
for any of them too.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from moc.kernel.errors import InvalidRequest
from moc.learning.job import JobType

AUTO = "auto"
SIZES = (500_000_000, 3_000_000_000, 15_000_000_000)
"""Up to so many parameters a model is tiny, small or medium; above it is large."""

SIZE_NAMES = ("tiny", "small", "medium", "large")
SUPERVISED = frozenset({JobType.SUPERVISED})
DPO = frozenset({JobType.DPO})
BOTH = SUPERVISED | DPO
BySize = tuple[Any, Any, Any, Any]

LEARNING_RATES: dict[tuple[JobType, str], BySize] = {
    (JobType.SUPERVISED, "lora"): (5e-4, 2e-4, 1e-4, 1e-4),
    (JobType.SUPERVISED, "full"): (5e-5, 2e-5, 1e-5, 5e-6),
    (JobType.DPO, "lora"): (5e-5, 2e-5, 1e-5, 5e-6),
    (JobType.DPO, "full"): (5e-6, 1e-6, 5e-7, 5e-7),
}
"""A preference pulls harder than an example, and all weights give way sooner than a few added ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameter:
    """One of them: `read` makes the value of what was given or raises ValueError; `range` tells what it takes.

    `default` is a value, or four of them, one for each size of model; None when `default_text` tells how it follows
    from others.
    """

    name: str
    meaning: str
    range: str
    read: Callable[[Any], Any]
    default: Any = None
    default_text: str = ""
    types: frozenset[JobType] = BOTH


def _integer(low: int, high: int) -> tuple[str, Callable[[Any], int]]:
    def read(given: Any) -> int:
        if isinstance(given, bool) or not isinstance(given, int | float) or given != int(given):
            raise ValueError
        if not low <= given <= high:
            raise ValueError
        return int(given)

    return f"a whole number from {low} to {high}", read


def _number(low: float, high: float) -> tuple[str, Callable[[Any], float]]:
    def read(given: Any) -> float:
        if isinstance(given, bool) or not isinstance(given, int | float) or not low <= given <= high:
            raise ValueError
        return float(given)

    return f"a number from {low:g} to {high:g}", read


def _choice(*choices: Any) -> tuple[str, Callable[[Any], Any]]:
    def read(given: Any) -> Any:
        return next(choice for choice in choices if choice == given and type(choice) is type(given))

    return " or ".join(str(choice).lower() for choice in choices), read


def _targets(given: Any) -> Any:
    if given == "all-linear":
        return given
    if not isinstance(given, list) or not given or not all(isinstance(name, str) and name for name in given):
        raise ValueError
    return list(given)


def _of(name: str, takes: tuple[str, Callable[[Any], Any]], default: Any, meaning: str, **more: Any) -> Hyperparameter:
    return Hyperparameter(name=name, meaning=meaning, range=takes[0], read=takes[1], default=default, **more)


ALL: dict[str, Hyperparameter] = {
    one.name: one
    for one in (
        _of(
            "method",
            _choice("lora", "full"),
            "lora",
            "`lora` trains a small adapter beside frozen weights; `full` trains all weights, which takes "
            "several times the memory and ends in a merged model",
        ),
        _of(
            "epochs",
            _number(0.001, 1000),
            None,
            "how often the training data is gone through",
            default_text="3; of dpo 1",
        ),
        _of(
            "max_steps",
            _integer(0, 10**8),
            0,
            "train for so many steps, whatever `epochs` says; 0 = as `epochs` says",
        ),
        _of("batch_size", _integer(1, 1024), (4, 4, 2, 1), "examples worked on at once; memory grows with it"),
        _of(
            "gradient_accumulation",
            _integer(1, 1024),
            (1, 2, 4, 8),
            "batches whose gradients make one step: a step learns from `batch_size` times as many "
            "examples, in the memory of one batch",
        ),
        _of(
            "learning_rate",
            _number(1e-9, 1),
            None,
            "how far a step goes, at its highest",
            default_text="by size, type and method, below",
        ),
        _of("learning_rate_multiplier", _number(1e-3, 1e3), 1.0, "multiplies `learning_rate`, as in the API of OpenAI"),
        _of(
            "scheduler",
            _choice("cosine", "linear", "constant"),
            "cosine",
            "how the learning rate goes down after the warmup; `constant` does not",
        ),
        _of(
            "warmup_ratio",
            _number(0, 0.9),
            0.03,
            "share of all steps in which the learning rate rises from 0, rounded down",
        ),
        _of(
            "weight_decay", _number(0, 1), 0.0, "pulls weights towards 0, by this share of the learning rate each step"
        ),
        _of(
            "max_length",
            _integer(8, 2**20),
            (512, 1024, 2048, 2048),
            "tokens of an example; the rest of it is cut off, of a `text` it becomes others; memory grows with it",
        ),
        _of("lora_rank", _integer(1, 1024), 16, "width of the adapter: what it can learn, and its size"),
        _of(
            "lora_alpha",
            _number(0.1, 4096),
            None,
            "how strongly the adapter acts: it is scaled by `lora_alpha / lora_rank`",
            default_text="twice `lora_rank`",
        ),
        _of(
            "lora_dropout",
            _number(0, 0.9),
            0.0,
            "share of the adapter's inputs that is left out at random each time, against learning by heart",
        ),
        _of(
            "lora_targets",
            ("all-linear or a list of names of modules", _targets),
            "all-linear",
            "which layers get an adapter, such as `[q_proj, v_proj]`",
        ),
        _of(
            "gradient_checkpointing",
            _choice(True, False),
            (False, True, True, True),
            "compute activations anew instead of keeping them: a third slower, with much less memory",
        ),
        _of(
            "assistant_only_loss",
            _choice(AUTO, True, False),
            AUTO,
            "learn from what the assistant says only; `auto` does so where the model's chat template "
            "tells the turns apart, `true` refuses one that does not",
            types=SUPERVISED,
        ),
        _of(
            "beta",
            _number(1e-4, 10),
            0.1,
            "how strongly the model is held to what it was: lower strays further",
            types=DPO,
        ),
        _of(
            "validation_split",
            _number(0, 0.9),
            0.0,
            "up to which share of the training data is validated with instead, when there is no validation file; rows "
            "of one prompt stay together; 0 = none",
        ),
        _of(
            "eval_steps",
            _integer(0, 10**8),
            0,
            "validate after every so many steps, which takes data for it; 0 = ten times in all",
        ),
        _of(
            "checkpoint_steps",
            _integer(0, 10**8),
            0,
            "save a checkpoint after every so many steps; 0 = ten times in all",
        ),
        _of(
            "early_stopping_patience",
            _integer(0, 1000),
            0,
            "end after so many validations in a row that were not better than the best, and keep the "
            "best, which takes data to validate with; 0 = never, and keep the last",
        ),
    )
}
"""Every hyperparameter, by its name."""

OPENAI_NAMES = {"n_epochs": "epochs"}
METHODS = {"supervised": JobType.SUPERVISED, "dpo": JobType.DPO}


def names(type: JobType) -> list[str]:
    """Those that a training of this type has."""
    return [one.name for one in ALL.values() if type in one.types]


def complete(type: JobType, given: Mapping[str, Any]) -> dict[str, Any]:
    """All hyperparameters of a type: those given, checked, and defaults; InvalidRequest naming what is wrong.

    Names of OpenAI's are taken too. Where the default goes by the size of the model it is `AUTO`.
    """
    given = _in_our_names({"": given})
    for name in given:
        if name not in names(type):
            raise _unknown(type, name)
    found: dict[str, Any] = {}
    for name in names(type):
        one = ALL[name]
        value = given.get(name, AUTO)
        if value is None or value == AUTO:
            found[name] = one.default if one.default is not None and not isinstance(one.default, tuple) else AUTO
        else:
            found[name] = _read(one, value)
    return found


def check_effects(found: Mapping[str, Any], *, has_validation_file: bool) -> None:
    """InvalidRequest when one of the complete hyperparameters is not its default, and others keep it from acting."""
    if has_validation_file and found["validation_split"]:
        raise InvalidRequest("`validation_split` does nothing beside a validation file; give one of the two")
    if not has_validation_file and not found["validation_split"]:
        for name in ("early_stopping_patience", "eval_steps"):
            if found[name]:
                raise InvalidRequest(
                    f"{name!r} needs something to validate with: a validation file, or validation_split"
                )
    if found["method"] == "full":
        for name in ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets"):
            if found[name] not in (_alpha(found) if name == "lora_alpha" else ALL[name].default, AUTO):
                raise InvalidRequest(f"{name!r} does nothing with method=full, which trains all weights")


def resolved(type: JobType, hyperparameters: Mapping[str, Any], parameters: int) -> dict[str, Any]:
    """The same for a model of so many parameters (0 = unknown, taken as small), with every default in place."""
    size = sum(parameters > limit for limit in SIZES) if parameters else 1
    found = complete(type, hyperparameters)
    if found["epochs"] == AUTO:
        found["epochs"] = 3.0 if type is JobType.SUPERVISED else 1.0
    if found["learning_rate"] == AUTO:
        found["learning_rate"] = LEARNING_RATES[type, found["method"]][size]
    if found["lora_alpha"] == AUTO:
        found["lora_alpha"] = _alpha(found)
    for name, value in found.items():
        if value == AUTO and isinstance(ALL[name].default, tuple):
            found[name] = ALL[name].default[size]
    return found


def _alpha(found: Mapping[str, Any]) -> float:
    """What `auto` means for lora_alpha."""
    return 2.0 * float(found["lora_rank"])


def from_openai(
    method: Mapping[str, Any] | None, hyperparameters: Mapping[str, Any] | None
) -> tuple[JobType, dict[str, Any]]:
    """The type and the hyperparameters of a request to OpenAI's `fine_tuning.jobs`, in our names.

    InvalidRequest for a method that there is not, and for one hyperparameter given as different things in the two
    places. Names of ours pass, so that all of them can be given that way.
    """
    kind = str((method or {}).get("type", "supervised"))
    if kind not in METHODS:
        raise InvalidRequest(f"the method {kind[:40]!r} is not supported; there are {' and '.join(METHODS)}")
    for name in (method or {}).keys() - {"type", kind}:
        raise InvalidRequest(f"the method {kind!r} has no {name[:40]!r}", details={"param": f"method.{name[:40]}"})
    described = _mapping((method or {}).get(kind), f"method.{kind}")
    for name in described.keys() - {"hyperparameters"}:
        raise InvalidRequest(f"`method.{kind}` has no {name[:40]!r}", details={"param": f"method.{kind}.{name[:40]}"})
    place = f"method.{kind}.hyperparameters"
    inner = _mapping(described.get("hyperparameters"), place)
    return METHODS[kind], _in_our_names({"hyperparameters.": hyperparameters or {}, f"{place}.": inner})


def _in_our_names(given: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What was given, by place, in one; InvalidRequest when a hyperparameter was given twice and differs."""
    found: dict[str, Any] = {}
    told: dict[str, str] = {}
    for place, values in given.items():
        for name, value in values.items():
            ours = OPENAI_NAMES.get(name, name)
            if value in (None, AUTO):
                found.setdefault(ours, value)
                continue
            if ours in told and found[ours] != value:
                raise InvalidRequest(
                    f"`{told[ours]}` and `{place}{name}` are one hyperparameter and differ; give one of the two",
                    details={"param": f"{place}{name}"},
                )
            found[ours], told[ours] = value, f"{place}{name}"
    return found


def _mapping(given: Any, place: str) -> Mapping[str, Any]:
    if given is not None and not isinstance(given, Mapping):
        raise InvalidRequest(f"`{place}` is no mapping", details={"param": place})
    return given or {}


def _read(one: Hyperparameter, value: Any) -> Any:
    try:
        return one.read(value)
    except (ValueError, OverflowError, StopIteration):
        raise InvalidRequest(f"hyperparameter {one.name!r} is {repr(value)[:100]}, not {one.range}") from None


def _unknown(type: JobType, name: str) -> InvalidRequest:
    if name in ALL:
        return InvalidRequest(f"trainings of the type {type} have no hyperparameter {name!r}")
    near = difflib.get_close_matches(name, names(type), 1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names(type))}"
    return InvalidRequest(f"there is no hyperparameter {name!r}; {hint}")
