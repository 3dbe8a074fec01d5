"""When a silent worker is taken for hung."""

import pytest

from moc.workers.heartbeat import INTERVAL_S, Patience, Vigil
from moc.workers.process import Activity


class Process:
    """Uses `share` of a processor, looked at every `INTERVAL_S`; counts the looks."""

    def __init__(self, *, at_work: bool = False, share: float = 0.0) -> None:
        self.at_work = at_work
        self.share = share
        self.used_s = 1000.0
        self.looks = 0

    def look(self) -> Activity:
        self.looks += 1
        self.used_s += self.share * INTERVAL_S
        return Activity(self.at_work, self.used_s)


def hung_after_s(vigil: Vigil, process: Process) -> float:
    """How long it has to be silent."""
    silent_s = 0.0
    while silent_s < 1000.0:
        silent_s += INTERVAL_S
        if vigil.is_hung(silent_s, INTERVAL_S, process.look):
            return silent_s
    raise AssertionError("it was never taken for hung")


@pytest.mark.parametrize(
    ("process", "expected_s"),
    [
        (Process(), 5.0),
        (Process(share=0.05), 5.0),
        (Process(share=0.5), 30.0),
        (Process(at_work=True), 30.0),
    ],
    ids=["stopped", "nearly idle", "computing", "waiting for a processor"],
)
def test_one_that_does_nothing_is_given_less_time_than_one_at_work(process: Process, expected_s: float) -> None:
    found_s = hung_after_s(Vigil(Patience(unresponsive_after_s=1.0, hung_after_s=5.0)), process)
    assert expected_s <= found_s <= expected_s + INTERVAL_S  # the first look tells nothing of what it used since when


def test_one_that_answers_is_not_looked_at_and_begins_anew() -> None:
    vigil, process = Vigil(Patience(hung_after_s=1.0)), Process()
    assert not vigil.is_hung(0.0, INTERVAL_S, process.look)
    assert process.looks == 0
    assert not any(vigil.is_hung(0.5, INTERVAL_S, process.look) for _ in range(3))
    assert not vigil.is_hung(0.0, INTERVAL_S, process.look)
    assert not any(vigil.is_hung(0.5, INTERVAL_S, process.look) for _ in range(3))
