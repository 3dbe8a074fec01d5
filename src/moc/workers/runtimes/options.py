"""Reading the `options:` of a model, each key once, refusing what is left over."""

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, TypeVar

from moc.kernel.errors import LoadFailed

T = TypeVar("T")


class Options:
    """The options given to one runtime. Every reader raises LoadFailed(invalid_spec) for a wrong value."""

    def __init__(self, runtime: str, given: Mapping[str, Any]) -> None:
        self._runtime = runtime
        self._given = dict(given)
        self._known: list[str] = []

    def integer(self, name: str, default: int, *, low: int, high: int) -> int:
        """A whole number from `low` to `high`."""
        value = self._take(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._wrong(name, value, f"a whole number from {low} to {high}")
        return value

    def number(self, name: str, default: float, *, low: float, high: float) -> float:
        """A number from `low` to `high`."""
        value = self._take(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self._wrong(name, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """true or false."""
        value = self._take(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def text(self, name: str) -> str | None:
        """A string, None when it is not given."""
        value = self._take(name, None)
        if value is not None and not isinstance(value, str):
            raise self._wrong(name, value, "a text")
        return value

    def one_of(self, name: str, value: str, choices: Mapping[str, T]) -> T:
        """What `choices` has for the `value` that was read."""
        if value not in choices:
            raise self._wrong(name, value, f"one of {', '.join(choices)}")
        return choices[value]

    def texts(self, name: str) -> list[str]:
        """A list of texts, empty when it is not given."""
        value = self._take(name, [])
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise self._wrong(name, value, "a list of texts")
        return value

    def named_texts(self, name: str) -> dict[str, str]:
        """Texts by their names, none when it is not given."""
        value = self._take(name, {})
        if not isinstance(value, dict) or not all(isinstance(entry, str) for pair in value.items() for entry in pair):
            raise self._wrong(name, value, "a mapping of names to texts")
        return value

    def mapping(self, name: str) -> dict[str, Any] | None:
        """A mapping, None when it is not given."""
        value = self._take(name, None)
        if value is not None and not isinstance(value, dict):
            raise self._wrong(name, value, "a mapping")
        return value

    def mappings(self, name: str) -> list[dict[str, Any]]:
        """A list of mappings, empty when it is not given."""
        value = self._take(name, [])
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise self._wrong(name, value, "a list of mappings")
        return value

    def rest(self) -> dict[str, Any]:
        """Every option that was not read yet."""
        rest, self._given = self._given, {}
        return rest

    def know(self, names: Iterable[str]) -> None:
        """These are options too, though not read here."""
        self._known += names

    def done(self) -> None:
        """Refuse the options nobody read."""
        if self._given:
            self.refuse(min(self._given))

    def refuse(self, unknown: str) -> NoReturn:
        """Say that there is no such option, and which is the nearest."""
        import difflib  # only a failing load pays for it

        near = difflib.get_close_matches(unknown, self._known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(self._known))}"
        raise LoadFailed(f"the runtime {self._runtime} has no option {unknown!r}; {hint}", reason="invalid_spec")

    def _take(self, name: str, default: Any) -> Any:
        self._known.append(name)
        value = self._given.pop(name, default)
        return default if value is None else value

    def _wrong(self, name: str, value: Any, wanted: str) -> LoadFailed:
        return LoadFailed(
            f"option {name!r} of the runtime {self._runtime} is {value!r}, not {wanted}", reason="invalid_spec"
        )
