"""The circuit breaker: told against a model of it, and what the model would not show."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from moc.kernel.errors import CircuitOpen
from moc.resilience.breaker import Breaker, BreakerLimits, Circuit
from moc.testing.clock import ManualClock

LIMITS = BreakerLimits(failure_threshold=3, reset_timeout_s=10.0)


def breaker_of(clock: ManualClock, changes: list[Circuit] | None = None) -> Breaker:
    heard = changes.append if changes is not None else None
    return Breaker("m@1", limits=LIMITS, clock=clock, on_change=heard)


def opened(clock: ManualClock, changes: list[Circuit] | None = None) -> Breaker:
    breaker = breaker_of(clock, changes)
    for _ in range(LIMITS.failure_threshold):
        breaker.failed(breaker.allow())
    return breaker


class BreakerMachine(RuleBasedStateMachine):
    """Calls overlap and end in any order; `calls` are those under way with what the circuit was when they began."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.breaker = breaker_of(self.clock)
        self.calls: list[tuple[int, int]] = []  # what allow() gave, and the number of the period it began in
        self.period = 0
        self.circuit = Circuit.CLOSED
        self.in_a_row = 0
        self.open_until = 0.0

    def become(self, circuit: Circuit) -> None:
        self.circuit = circuit
        self.period += 1
        self.in_a_row = 0 if circuit is Circuit.CLOSED else self.in_a_row

    @rule()
    def ask(self) -> None:
        due = self.circuit is Circuit.OPEN and self.clock.monotonic() >= self.open_until
        if self.circuit is Circuit.CLOSED or due:
            if due:
                self.become(Circuit.HALF_OPEN)
            self.calls.append((self.breaker.allow(), self.period))
        else:
            with pytest.raises(CircuitOpen) as refused:
                self.breaker.allow()
            assert refused.value.retry_after_s

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), outcome=st.sampled_from(["succeeded", "failed", "abandoned"]))
    def end(self, data: st.DataObject, outcome: str) -> None:
        era, period = self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1)))
        getattr(self.breaker, outcome)(era)
        if period != self.period:
            return
        match outcome:
            case "succeeded":
                self.in_a_row = 0
                if self.circuit is Circuit.HALF_OPEN:
                    self.become(Circuit.CLOSED)
            case "failed":
                self.in_a_row += 1
                if self.circuit is Circuit.HALF_OPEN or self.in_a_row == LIMITS.failure_threshold:
                    self.open_until = self.clock.monotonic() + LIMITS.reset_timeout_s
                    self.become(Circuit.OPEN)
            case "abandoned":
                if self.circuit is Circuit.HALF_OPEN:
                    self.become(Circuit.OPEN)

    @rule(seconds=st.sampled_from([1.0, 4.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def is_what_it_should_be(self) -> None:
        assert self.breaker.circuit is self.circuit

    @invariant()
    def there_is_one_try_at_most(self) -> None:
        trying = [period for _, period in self.calls if period == self.period]
        assert self.circuit is not Circuit.HALF_OPEN or len(trying) == 1


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def test_it_says_when_to_ask_again() -> None:
    clock = ManualClock()
    breaker = opened(clock)
    clock.advance(4)
    with pytest.raises(CircuitOpen, match=r"m@1 failed 3 times in a row; ask again in 6 s") as refused:
        breaker.allow()
    assert refused.value.retry_after_s == breaker.retry_after_s == 6.0


def test_what_was_under_way_when_it_opened_is_not_the_try() -> None:
    clock, changes = ManualClock(), list[Circuit]()
    breaker = breaker_of(clock, changes)
    slow = [breaker.allow() for _ in range(5)]
    for era in slow[:3]:
        breaker.failed(era)
    breaker.succeeded(slow[3])
    assert changes == [Circuit.OPEN]
    clock.advance(10)
    breaker.allow()
    breaker.failed(slow[4])
    assert changes == [Circuit.OPEN, Circuit.HALF_OPEN]


def test_a_try_that_is_cancelled_is_given_back_at_once_and_nobody_is_told() -> None:
    clock, changes = ManualClock(), list[Circuit]()
    breaker = opened(clock, changes)
    clock.advance(10)
    breaker.abandoned(breaker.allow())
    assert changes == [Circuit.OPEN, Circuit.HALF_OPEN]
    breaker.succeeded(breaker.allow())
    assert breaker.circuit is Circuit.CLOSED


def test_every_change_is_told() -> None:
    clock, changes = ManualClock(), list[Circuit]()
    breaker = opened(clock, changes)
    clock.advance(10)
    breaker.failed(breaker.allow())
    clock.advance(10)
    breaker.succeeded(breaker.allow())
    assert changes == [Circuit.OPEN, Circuit.HALF_OPEN, Circuit.OPEN, Circuit.HALF_OPEN, Circuit.CLOSED]


def test_other_limits_count_at_once() -> None:
    clock = ManualClock()
    breaker = opened(clock)
    breaker.limits = BreakerLimits(failure_threshold=1, reset_timeout_s=0.5)
    clock.advance(0.5)
    assert breaker.retry_after_s == 0
    breaker.succeeded(breaker.allow())
    breaker.failed(breaker.allow())
    assert breaker.circuit is Circuit.OPEN
