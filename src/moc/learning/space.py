"""What a search may try: the values of each hyperparameter, as somebody declared them. Pure."""

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moc.kernel.errors import InvalidRequest

PARAMETERS_MAX = 20
CHOICES_MAX = 100
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,63}")
_KEYS = ("low", "high", "step", "log", "choices")
_POWER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+")
"""Numbers such as 1e-5 and 1.5e3, which YAML takes for texts unless they have a point and a sign."""


Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Every number from `low` to `high`, those `step` apart only if it is given, each decade alike with `log`.

    Whole numbers when all that is given is whole.
    """

    low: float
    high: float
    step: float | None = None
    log: bool = False

    @property
    def is_whole(self) -> bool:
        return all(isinstance(each, int) for each in (self.low, self.high, self.step or 0))

    @property
    def extremes(self) -> tuple[Scalar, ...]:
        """Values that stand for all when it comes to whether they make sense."""
        return (self.low, self.high)


@dataclass(frozen=True, slots=True)
class Choices:
    """One of these."""

    values: tuple[Scalar, ...]

    @property
    def extremes(self) -> tuple[Scalar, ...]:
        """All of them."""
        return self.values


Space = Mapping[str, Range | Choices]


def read_space(document: Any) -> Space:
    """The space that a document such as `{lr: {low: 1e-5, high: 1e-3, log: true}, rank: {choices: [4, 8]}}` declares.

    InvalidRequest saying what is wrong with which parameter.
    """
    if not isinstance(document, Mapping) or not 0 < len(document) <= PARAMETERS_MAX:
        raise InvalidRequest(
            f"`space` names 1 to {PARAMETERS_MAX} hyperparameters, each with `low` and `high` or with `choices`"
        )
    return {_name(name): _values(name, entry) for name, entry in document.items()}


def corners(space: Space) -> Iterator[dict[str, Scalar]]:
    """Points of a space that between them have every extreme value of each parameter."""
    for index in range(max(len(values.extremes) for values in space.values())):
        yield {name: values.extremes[index % len(values.extremes)] for name, values in space.items()}


def _name(name: Any) -> str:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InvalidRequest(f"{str(name)[:100]!r} in `space` is no name of a hyperparameter")
    return name


def _values(name: str, entry: Any) -> Range | Choices:
    if not isinstance(entry, Mapping):
        raise _wrong(name, "it needs `low` and `high`, or `choices`")
    for key in entry:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(_KEYS)}"
            raise _wrong(name, f"there is no {str(key)[:40]!r}; {hint}")
    return _choices(name, entry) if "choices" in entry else _range(name, entry)


def _choices(name: str, entry: Mapping[str, Any]) -> Choices:
    values = entry["choices"]
    if len(entry) > 1:
        raise _wrong(name, "`choices` stands alone")
    if not isinstance(values, list) or not 0 < len(values) <= CHOICES_MAX:
        raise _wrong(name, f"`choices` is a list of 1 to {CHOICES_MAX} values")
    values = [float(value) if isinstance(value, str) and _POWER.fullmatch(value) else value for value in values]
    if not all(value is None or isinstance(value, (str, bool, int)) or _is_finite(value) for value in values):
        raise _wrong(name, "each of its `choices` is a text, a number, true, false or null")
    if len({(type(value), value) for value in values}) < len(values):
        raise _wrong(name, "its `choices` are not all different")
    return Choices(tuple(values))


def _range(name: str, entry: Mapping[str, Any]) -> Range:
    if "low" not in entry or "high" not in entry:
        raise _wrong(name, "it needs `low` and `high`, or `choices`")
    low, high = _number(name, "low", entry["low"]), _number(name, "high", entry["high"])
    step = None if entry.get("step") is None else _number(name, "step", entry["step"])
    log = entry.get("log", False)
    if not isinstance(log, bool):
        raise _wrong(name, f"`log` is true or false, not {str(log)[:40]!r}")
    if low > high:
        raise _wrong(name, f"`low` {low} is more than `high` {high}")
    if step is not None and (step <= 0 or log):
        raise _wrong(name, "`step` is more than 0, and not together with `log`")
    if log and low <= 0:
        raise _wrong(name, f"with `log`, `low` is more than 0, not {low}")
    return Range(low=low, high=high, step=step, log=log)


def _number(name: str, key: str, value: Any) -> float:
    if isinstance(value, str):  # see _POWER
        try:
            value = float(value)
        except ValueError:
            raise _wrong(name, f"`{key}` is a number, not {value[:40]!r}") from None
    if isinstance(value, bool) or not _is_finite(value):
        raise _wrong(name, f"`{key}` is a number, not {str(value)[:40]!r}")
    number: float = value
    return number


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, (int, float)) and math.isfinite(value)
    except OverflowError:
        return False


def _wrong(name: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"the hyperparameter `{name}` of `space`: {what}")
