"""Which targets a request is tried at, and in which order. Pure: nothing here knows the time, or chance."""

import math
import struct
from collections.abc import Callable
from hashlib import blake2b
from typing import Literal

import msgspec

Policy = Literal["weighted", "local_first", "cheapest", "fastest"]
Sticky = Literal["", "key", "session"]

_DRAW = struct.Struct("<d")
_SPAN = float(2**64)


class Target(msgspec.Struct, frozen=True):
    """A model or version, and its share of the requests beside the weights of the other targets; 0 = none."""

    reference: str
    weight: float


class Shadow(msgspec.Struct, frozen=True):
    """Who gets a copy of so many percent of the requests; its answers are dropped."""

    reference: str
    share_pct: float


class Route(msgspec.Struct, frozen=True):
    """What an alias stands for.

    `policy` puts the targets in order; the `fallback` ones come after them, as they are written. With `sticky` the
    requests of one key, or of one session, go to the same target. `hedge` lets a slow request be asked a second time.
    """

    name: str
    targets: tuple[Target, ...]
    fallback: tuple[str, ...] = ()
    policy: Policy = "weighted"
    sticky: Sticky = ""
    shadow: Shadow | None = None
    hedge: bool = False


class Standing(msgspec.Struct, frozen=True):
    """How a target is doing: whether it is loaded, whether requests are refused on its behalf, and what it costs.

    `delay_s` is how long an answer takes about now, 0 when that is not known; `cost` is in whatever unit the operator
    gave.
    """

    ready: bool = True
    blocked: bool = False
    remote: bool = False
    cost: float = 0.0
    delay_s: float = 0.0


def draw_of(name: str, who: str) -> float:
    """The same number from 0 to 1 for the same caller of the same alias, always."""
    return _fraction(f"{name}\0{who}".encode())


def order(route: Route, draw: float, standing: Callable[[str], Standing]) -> tuple[str, ...]:
    """The references to try, each once.

    `draw`, from 0 to 1, decides which target of equal standing comes first: over all draws each gets its share, and
    when shares change a draw moves only to a target whose part of the whole has grown. A target that is not loaded
    comes after those that are, one that is blocked after everything else, the fallback chain included.
    """
    drawn = _drawn(route, draw)
    references = list(dict.fromkeys((*drawn, *route.fallback)))
    if len(references) == 1:
        return (references[0],)
    standings = {reference: standing(reference) for reference in references}
    drawn.sort(key=lambda reference: _rank(route.policy, standings[reference]))
    references = list(dict.fromkeys((*drawn, *route.fallback)))
    references.sort(key=lambda reference: standings[reference].blocked)
    return tuple(references)


def _drawn(route: Route, draw: float) -> list[str]:
    """The targets, as if drawn one by one without putting back, each by its share of those that are left.

    Each has a number of its own for this draw, independent of the others' and of its weight; the weight only
    stretches it. So another's weight never puts it before or behind a third.
    """
    salt = _DRAW.pack(draw)
    keyed = [
        (-math.log(_fraction(salt + target.reference.encode())) / target.weight, target.reference)
        for target in route.targets
        if target.weight > 0
    ]
    return [reference for _, reference in sorted(keyed)]


def _rank(policy: Policy, standing: Standing) -> tuple[bool, float]:
    """What a target is sorted by; the draw decides between equal ones."""
    match policy:
        case "weighted":
            preference = 0.0
        case "local_first":
            preference = float(standing.remote)
        case "cheapest":
            preference = standing.cost
        case "fastest":
            preference = standing.delay_s
    return not standing.ready, preference


def _fraction(text: bytes) -> float:
    """A number above 0 and below 1 that looks like chance and is always the same for the same text."""
    return (int.from_bytes(blake2b(text, digest_size=8).digest(), "little") + 0.5) / _SPAN
