"""The noun: a name that stands for versions of models, in shares, and for others when those fail."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from moc.kernel.errors import InvalidRequest
from moc.models.model import NAME, parse_reference

Policy = Literal["weighted", "local_first", "cheapest", "fastest"]
Sticky = Literal["", "key", "session"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
STICKY: tuple[Sticky, ...] = get_args(Sticky)
VERSIONS_MAX = 32
FALLBACK_MAX = 8
WEIGHT_MAX = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias:
    """What a name stands for; one entry of `aliases:` in `moc.yaml`.

    `versions` are references (`name@version`, or `name` for its newest) with their weights: shares of the requests,
    of whatever sum; one of weight 0 gets none. `fallback` are tried in turn when they fail. `policy` says which of
    them comes first; with `sticky`, requests of one key or one session (`x-moc-session`) go to the same version.
    `shadow` is a reference that gets a copy of so many percent of the requests, its answers dropped. With `hedge` a
    request that takes longer than nearly all do is also sent to the next one, and the first answer counts.
    """

    versions: dict[str, float]
    fallback: tuple[str, ...] = ()
    policy: Policy = "weighted"
    sticky: Sticky = ""
    shadow: dict[str, float] = field(default_factory=dict)
    hedge: bool = False

    @property
    def answerers(self) -> list[str]:
        """Every model that may answer for it, each once."""
        return list(dict.fromkeys((*self.versions, *self.fallback)))

    @property
    def references(self) -> list[str]:
        """Every model it names, each once."""
        return list(dict.fromkeys((*self.answerers, *self.shadow)))

    @property
    def receiving(self) -> list[str]:
        """The versions that get requests."""
        return [reference for reference, weight in self.versions.items() if weight]

    @property
    def heaviest(self) -> str:
        """The reference of the greatest weight; of equal ones the first."""
        return max(self.versions, key=lambda reference: self.versions[reference])

    def share(self, reference: str) -> float:
        """Which part of the requests a version is to get, from 0 to 1."""
        return self.versions.get(reference, 0.0) / math.fsum(self.versions.values())


def check_alias(name: str, alias: Alias) -> None:
    """InvalidRequest when it cannot be right whatever models there are."""
    if NAME.fullmatch(name) is None:
        raise InvalidRequest(
            f"not a name: {name[:150]!r}; use up to 128 letters, digits, '.', '_' and '-', a letter or digit first"
        )
    if not 1 <= len(alias.versions) <= VERSIONS_MAX:
        raise InvalidRequest(f"`versions` names {len(alias.versions)}; name 1 to {VERSIONS_MAX}")
    if len(alias.fallback) > FALLBACK_MAX or len(set(alias.fallback)) < len(alias.fallback):
        raise InvalidRequest(f"`fallback` names at most {FALLBACK_MAX}, each once")
    if len(alias.shadow) > 1:
        raise InvalidRequest(f"`shadow` names {len(alias.shadow)}; it names one at most")
    for reference in alias.references:
        parse_reference(reference)
    for reference, weight in alias.versions.items():
        if not 0 <= weight <= WEIGHT_MAX:
            raise InvalidRequest(f"{reference} weighs {weight:g}; a weight is from 0 to {WEIGHT_MAX}")
    if not any(alias.versions.values()):
        raise InvalidRequest("every weight is 0; give one of the versions more")
    for reference, percent in alias.shadow.items():
        if not 0 < percent <= 100:
            raise InvalidRequest(f"{reference} shadows {percent:g} %; it is more than 0 and at most 100")
