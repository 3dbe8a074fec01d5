"""Those who wait for one worker: a line for each key, and who of them is next. Nothing here knows the time."""

import math
from bisect import bisect_left, insort
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final, NamedTuple

PATIENCE: Final = 32
"""Of so many places one goes to whoever has waited longest: nobody starves, whatever the others have had."""


class Place(NamedTuple):
    """A request in line: the lowest `priority` first, then in the order of `number`."""

    priority: int
    number: int
    deadline_at: float | None = None


@dataclass(slots=True)
class Line:
    """Those of one key who wait, the next one first.

    `burden` is what the key has had and is having by its weight, `step` what each request will add to that.
    """

    key: str
    weight: float
    burden: float = 0.0
    step: float = 1.0
    places: list[Place] = field(default_factory=list)

    def add(self, place: Place) -> None:
        """Let somebody stand in line."""
        insort(self.places, place)

    def remove(self, place: Place) -> None:
        """Let somebody go who stands here."""
        del self.places[self.index(place)]

    def index(self, place: Place) -> int:
        """How many of this line go before somebody of the same key."""
        return bisect_left(self.places, place)


def foremost(lines: Collection[Line], turn: int) -> tuple[Line, Place]:
    """Who is next: of the key with the least burden, or on every turn of `PATIENCE` who has waited longest."""
    if turn % PATIENCE == 0:
        return min(((line, place) for line in lines for place in line.places), key=lambda standing: standing[1].number)
    line = min(lines, key=lambda line: (line.burden, line.places[0].number))
    return line, line.places[0]


def hindmost(lines: Collection[Line]) -> tuple[Line, Place]:
    """Who would be served last; of two, the one who came later."""
    line = max(lines, key=lambda line: (line.burden + (len(line.places) - 1) * line.step, line.places[-1].number))
    return line, line.places[-1]


def before(lines: Collection[Line], line: Line, place: Place) -> list[Place]:
    """Those who go before somebody in `line` unless others come, the next one first."""
    index = line.index(place)
    limit = line.burden + index * line.step
    found = [(line.burden + at * line.step, other) for at, other in enumerate(line.places[:index])]
    for rival in lines:
        if rival is not line and rival.burden < limit:
            count = math.ceil((limit - rival.burden) / rival.step)
            found += [(rival.burden + at * rival.step, other) for at, other in enumerate(rival.places[:count])]
    found.sort(key=lambda standing: standing[0])
    return [other for _, other in found]
