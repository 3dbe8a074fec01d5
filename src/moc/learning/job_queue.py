"""Who runs next: the most urgent first, and who has waited becomes more urgent. Pure decisions."""

from collections.abc import Iterable
from dataclasses import dataclass

AGEING_S = 600.0
"""After how long a wait a job counts as one step more urgent than it was submitted."""

MOST_URGENT = 1
SEEKERS_MAX = 4
"""How many jobs may wait for memory beside those that have places: one that needs much holds up none elsewhere.

Those that want the same device stand in one line for it, where nobody passes one before it.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A job that could run. It waits since `since` and was made at `created_at`; `coordinates`: it takes no place.

    `seeks`: it had its turn, and waits for memory since; it takes a place when it has that.
    """

    id: str
    priority: int
    since: float
    created_at: float
    coordinates: bool = False
    seeks: bool = False


def urgency(waiting: Waiting, now: float) -> tuple[int, float, str]:
    """What jobs are sorted by, the least first: the priority it has come to, then its age."""
    steps = int(max(0.0, now - waiting.since) / AGEING_S)
    return max(MOST_URGENT, waiting.priority - steps), waiting.created_at, waiting.id


def turns(waiting: Iterable[Waiting], *, running: int, places: int, now: float) -> list[str]:
    """Those that may have memory now, the most urgent first, while `running` others have some of the `places`."""
    left, seekers = places - running, SEEKERS_MAX if running < places else 0
    chosen = []
    for each in sorted(waiting, key=lambda each: urgency(each, now)):
        if each.coordinates:
            chosen.append(each.id)
        elif each.seeks and seekers > 0:
            chosen.append(each.id)
            seekers -= 1
        elif left > 0:
            chosen.append(each.id)
            left -= 1
    return chosen
