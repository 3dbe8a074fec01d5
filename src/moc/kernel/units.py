"""Sizes and durations as people write them: `12GiB`, `500MB`, `30s`, `10m`, `2h`."""

import re

from moc.kernel.errors import InvalidRequest

_SIZES = {
    "": 1, "b": 1,
    "k": 1024, "kib": 1024, "kb": 1000,
    "m": 1024**2, "mib": 1024**2, "mb": 1000**2,
    "g": 1024**3, "gib": 1024**3, "gb": 1000**3,
    "t": 1024**4, "tib": 1024**4, "tb": 1000**4,
}  # fmt: skip
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


class Bytes(int):
    """A size in bytes that parses and prints with a unit: `Bytes.parse("12GiB")`, `str(Bytes(1024)) == "1KiB"`."""

    @classmethod
    def parse(cls, text: "str | int") -> "Bytes":
        """Read `12GiB`, `500MB`, `1.5g` or a plain number of bytes.

        A bare `k`, `m`, `g`, `t` is binary. Raises InvalidRequest on anything else, negative sizes included.
        """
        if isinstance(text, bool):
            raise InvalidRequest(f"not a size: {text!r}; write a number of bytes or a size such as 12GiB")
        number, unit = _split(str(text), _SIZES, "size", "12GiB")
        return cls(round(number * _SIZES[unit]))

    def __str__(self) -> str:
        value = float(self)
        for unit in ("B", "KiB", "MiB", "GiB"):
            if value < 1024:
                return f"{value:.4g}{unit}"
            value /= 1024
        return f"{value:.4g}TiB"


def parse_duration_s(text: "str | int | float") -> float:
    """Seconds in `30s`, `10m`, `2h`, `250ms`, `1d` or a plain number of seconds; InvalidRequest otherwise."""
    if isinstance(text, bool):
        raise InvalidRequest(f"not a duration: {text!r}; write seconds or a duration such as 10m")
    number, unit = _split(str(text), _SECONDS, "duration", "10m")
    return number * _SECONDS[unit]


def _split(text: str, units: dict[str, float] | dict[str, int], noun: str, example: str) -> tuple[float, str]:
    match = _QUANTITY.fullmatch(text)
    unit = match[2].lower() if match else ""
    if match is None or unit not in units:
        known = ", ".join(u for u in units if u)
        raise InvalidRequest(f"not a {noun}: {text!r}; write something like {example} (units: {known})")
    return float(match[1]), unit
