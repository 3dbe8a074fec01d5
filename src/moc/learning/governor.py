"""How much of the time programs of jobs may compute, so that requests do not wait for them. Pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

LEAST_SHARE = 0.1
"""Jobs always get a little further."""

MORE_SHARE = 0.1
"""What is given back at once, when there is room below the limit."""

CALM = 0.85
"""So far below the limit requests have to be before jobs get more: else they would be slowed down again at once."""

ALONE_KEPT_S = 600.0
"""How long it is believed what requests take without jobs: they get longer and shorter over the day."""


@dataclass(frozen=True, slots=True)
class Alone:
    """What 95 % of a model's answers took at most without jobs beside them, as seen at a time."""

    p95_s: float | None
    at: float


class Governor:
    """Requests may take `max_ratio` times what they take without jobs, at the 95th percentile, of the worst model."""

    def __init__(self, *, max_ratio: float) -> None:
        self.max_ratio = max_ratio
        self.share = 1.0
        self._alone: dict[str, Alone] = {}

    def learn(self, model: str, p95_s: float | None, *, now: float) -> None:
        """A model's answers took so much without jobs; None when there were too few to tell, although it was tried."""
        self._alone[model] = Alone(p95_s, now)

    def unknown(self, models: Collection[str], *, now: float) -> list[str]:
        """The models of which it has to be seen anew what their answers take without jobs."""
        return [model for model in models if (alone := self._alone.get(model)) is None or now - alone.at > ALONE_KEPT_S]

    def forget(self, kept: Collection[str]) -> None:
        """Remember no more than these."""
        self._alone = {model: alone for model, alone in self._alone.items() if model in kept}

    def judge(self, p95_s: Mapping[str, float]) -> float:
        """The share from now on, by what models' answers take beside jobs."""
        alone = {model: self._alone[model].p95_s for model in p95_s if model in self._alone}
        worst = max((p95_s[model] / base for model, base in alone.items() if base), default=None)
        if worst is None:
            return self.share
        if worst > self.max_ratio:
            self.share = max(LEAST_SHARE, self.share * max(0.5, self.max_ratio / worst))
        elif worst < 1 + CALM * (self.max_ratio - 1):
            self.share = min(1.0, self.share + MORE_SHARE)
        return self.share
