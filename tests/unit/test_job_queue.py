"""Who runs next: urgency, ageing and places, by the thousand."""

import random
from collections import Counter
from dataclasses import replace

from moc.learning.job_queue import AGEING_S, SEEKERS_MAX, Waiting, turns

SEED = 20261123


def waiting(
    name: str, *, priority: int = 5, since: float = 0.0, made: float = 0.0, coordinates: bool = False
) -> Waiting:
    return Waiting(id=name, priority=priority, since=since, created_at=made, coordinates=coordinates)


def some_jobs(dice: random.Random, now: float) -> list[Waiting]:
    return [
        waiting(
            f"job-{number}",
            priority=dice.randint(1, 10),
            since=now - dice.uniform(0, 3 * AGEING_S),
            made=now - dice.uniform(0, 9 * AGEING_S),
            coordinates=dice.random() < 0.1,
        )
        for number in range(dice.randint(0, 20))
    ]


def test_the_most_urgent_comes_first_then_the_oldest() -> None:
    jobs = [waiting("young", made=2.0), waiting("old", made=1.0), waiting("urgent", priority=1, made=3.0)]

    assert turns(jobs, running=0, places=2, now=3.0) == ["urgent", "old"]


def test_who_waits_becomes_more_urgent_but_never_above_the_first() -> None:
    jobs = [waiting("patient", priority=9, since=0.0), waiting("new", priority=5, since=4 * AGEING_S, made=1.0)]
    assert turns(jobs, running=0, places=1, now=4 * AGEING_S - 1) == ["new"]
    assert turns(jobs, running=0, places=1, now=4 * AGEING_S) == ["patient"]

    ancient = [waiting("ancient", priority=10, made=5.0), waiting("first", priority=1, since=0.0, made=1.0)]
    assert turns(ancient, running=0, places=1, now=1000 * AGEING_S) == ["first"]


def test_who_waits_for_memory_takes_no_place_while_there_is_one() -> None:
    large = [replace(waiting(f"large-{number}"), seeks=True) for number in range(2 * SEEKERS_MAX)]
    jobs = [*large, waiting("small", made=1.0), waiting("late", made=2.0)]

    assert turns(jobs, running=0, places=SEEKERS_MAX + 1, now=2.0) == [job.id for job in jobs[:-1]]
    assert turns(jobs[SEEKERS_MAX:], running=0, places=1, now=2.0) == [f"large-{number}" for number in range(4, 8)] + [
        "small"
    ]
    assert not turns(jobs, running=1, places=1, now=2.0)


def test_a_clock_that_goes_back_makes_nobody_less_urgent() -> None:
    jobs = [waiting("a", priority=2, since=5000.0), waiting("b", priority=3, since=0.0)]

    assert turns(jobs, running=0, places=1, now=0.0) == ["a"]


def test_places_are_kept_and_the_order_of_asking_plays_no_part() -> None:
    dice = random.Random(SEED)
    for _ in range(2000):
        now, places = 1e6, dice.randint(1, 5)
        running, jobs = dice.randint(0, 6), some_jobs(dice, 1e6)
        chosen = turns(jobs, running=running, places=places, now=now)
        taking = [each for each in jobs if each.id in chosen and not each.coordinates]
        able = [each for each in jobs if not each.coordinates]

        assert len(taking) == min(len(able), max(0, places - running))
        assert {each.id for each in jobs if each.coordinates} <= set(chosen)
        assert len(chosen) == len(set(chosen))
        dice.shuffle(jobs)
        assert turns(jobs, running=running, places=places, now=now) == chosen


def test_nobody_waits_for_ever_behind_urgent_newcomers() -> None:
    """One place, always a newcomer of the highest priority: the least urgent has its turn once it has aged."""
    now, ran = 0.0, Counter[str]()
    least = waiting("least", priority=10, since=0.0, made=0.0)
    for number in range(1000):
        newcomer = waiting(f"new-{number}", priority=1, since=now, made=now + 1)
        (chosen,) = turns([least, newcomer], running=0, places=1, now=now)
        ran[chosen] += 1
        if chosen == "least":
            break
        now += AGEING_S / 10
    assert ran["least"] == 1
    assert now <= 9 * AGEING_S
