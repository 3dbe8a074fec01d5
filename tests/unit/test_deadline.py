"""A moment by which the caller wants its answer."""

import time

import pytest

from moc.kernel.errors import DeadlineExceeded
from moc.resilience.deadline import NEVER, Deadline


def test_never_has_no_limit() -> None:
    assert Deadline.after(None) is NEVER
    assert NEVER.remaining_s() is None
    NEVER.check("waiting")


def test_what_remains_shrinks_to_nothing_and_no_further() -> None:
    remaining = Deadline.after(60).remaining_s()
    assert remaining is not None
    assert 59 < remaining <= 60
    assert Deadline.after(-1).remaining_s() == 0


def test_it_is_checked() -> None:
    Deadline.after(60).check("waiting")
    with pytest.raises(DeadlineExceeded, match="passed while loading; allow more time"):
        Deadline(time.monotonic()).check("while loading")


def test_the_sooner_of_two() -> None:
    soon, late = Deadline.after(1), Deadline.after(100)
    assert soon.sooner(50) is soon
    assert (late.sooner(50).remaining_s() or 0) == pytest.approx(50, abs=1)
    assert (NEVER.sooner(50).remaining_s() or 0) == pytest.approx(50, abs=1)
