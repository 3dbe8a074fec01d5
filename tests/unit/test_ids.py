"""Identifiers say what they name and sort by when they were made."""

import re
import time

from moc.kernel.ids import new_id


def test_an_id_has_its_prefix_and_twenty_digits() -> None:
    assert re.fullmatch(r"wrk-[0-9a-hj-km-np-tv-z]{20}", new_id("wrk"))


def test_no_two_are_the_same() -> None:
    assert len({new_id("x") for _ in range(10_000)}) == 10_000


def test_a_later_one_sorts_after() -> None:
    earlier = new_id("x")
    made_at = time.time_ns() // 1_000_000
    while time.time_ns() // 1_000_000 == made_at:
        pass
    assert new_id("x") > earlier
