"""Who is preempted for whom, on ten thousand random schedules."""

import random

from moc.gpu.lease import LeaseTerms
from moc.gpu.preemption import Claim, Preemptible, Preemption, preempt

CAPACITY = 100
PATIENT = 60.0


def lease(
    name: str, size: int, priority: int, *, ran_s: float = 1.0, job: str = "", device: str = "a", least_s: float = 0.0
) -> Preemptible:
    terms = LeaseTerms(bytes=size, priority=priority, job=job, min_runtime_s=least_s)
    return Preemptible(id=name, device=device, terms=terms, ran_s=ran_s)


def claim(priority: int, *, patience_s: float = PATIENT) -> Claim:
    return Claim(priority=priority, patience_s=patience_s)


def test_the_least_urgent_go_first_and_nobody_in_vain() -> None:
    held = [lease("old", 50, 8, ran_s=9), lease("new", 20, 8), lease("urgent", 30, 2)]
    assert preempt(claim(5), {"a": 20}, held) == [Preemption("a", ("new",))]
    assert preempt(claim(5), {"a": 50}, held) == [Preemption("a", ("old",))]
    assert preempt(claim(5), {"a": 80}, held) == []
    assert preempt(claim(5), {"a": 70}, held) == [Preemption("a", ("new", "old"))]
    assert preempt(claim(5), {"a": 0}, held) == []
    assert preempt(claim(5, patience_s=1), {"a": 20}, held) == []


def test_a_model_ends_leases_of_jobs_only_and_those_of_its_own_urgency_too() -> None:
    model = Claim(priority=5, patience_s=PATIENT, serves=True)
    equal, urgent = lease("equal", 50, 5, job="job-1"), lease("urgent", 50, 4, job="job-2")
    users = lease("users", 50, 10)
    assert preempt(model, {"a": 40}, [equal, urgent, users]) == [Preemption("a", ("equal",))]
    assert preempt(model, {"a": 60}, [equal, urgent, users]) == []
    assert preempt(claim(5), {"a": 40}, [equal, urgent]) == [], "a lease ends its equals for nobody"
    fresh = lease("fresh", 50, 5, job="job-3", least_s=20)
    assert preempt(model, {"a": 40}, [fresh]) == []


def test_of_several_devices_the_cheapest_are_made_free_or_none() -> None:
    model = Claim(priority=5, patience_s=PATIENT, serves=True)
    held = [lease(name, size, 5, job=name, device=name) for name, size in (("a", 50), ("b", 40), ("c", 60))]
    missing = dict.fromkeys("abc", 30)
    two = [Preemption("b", ("b",)), Preemption("a", ("a",))]
    assert preempt(model, missing, held, devices=2) == two
    assert preempt(model, missing, held[:1], devices=2) == []


def test_no_schedule_preempts_in_a_circle() -> None:
    """However leases come, are preempted and come again, whoever preempts is more urgent: so it ends."""
    dice = random.Random(20)
    for _ in range(10_000):
        held: list[Preemptible] = []
        waiting = [lease(str(n), dice.randint(1, CAPACITY), dice.randint(1, 10)) for n in range(dice.randint(2, 7))]
        preemptions = 0
        for _ in range(60):
            if not waiting:
                break
            asking = waiting.pop(dice.randrange(len(waiting)))
            free = CAPACITY - sum(each.terms.bytes for each in held)
            if asking.terms.bytes > free:
                missing = {"a": asking.terms.bytes - free}
                chosen = preempt(claim(asking.terms.priority), missing, held)
                if not chosen:
                    continue  # it waits for somebody to end
                gone = [each for each in held if each.id in chosen[0].victims]
                assert all(each.terms.priority > asking.terms.priority for each in gone)
                freed = free + sum(each.terms.bytes for each in gone)
                assert freed >= asking.terms.bytes > freed - min(each.terms.bytes for each in gone)
                held = [each for each in held if each not in gone]
                waiting += gone
                preemptions += len(gone)
            held.append(asking)
        assert not waiting
        assert preemptions < 50


def test_whatever_jobs_and_leases_there_are_a_model_ends_the_least_that_it_may() -> None:
    dice = random.Random(21)
    for _ in range(2_000):
        held = [
            lease(str(n), dice.randint(1, 40), dice.randint(1, 10), job=dice.choice(["", f"job-{n}"]))
            for n in range(dice.randint(1, 7))
        ]
        model = Claim(priority=dice.randint(1, 10), patience_s=PATIENT, serves=True)
        missing = dice.randint(1, CAPACITY)
        may = [each for each in held if each.terms.job and each.terms.priority >= model.priority]
        chosen = preempt(model, {"a": missing}, held)
        assert bool(chosen) == (sum(each.terms.bytes for each in may) >= missing)
        if chosen:
            gone = [each for each in held if each.id in chosen[0].victims]
            assert all(each in may for each in gone)
            freed = sum(each.terms.bytes for each in gone)
            assert freed >= missing > freed - min(each.terms.bytes for each in gone), "none could be spared"
