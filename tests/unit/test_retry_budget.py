"""How much may be asked a second time."""

from hypothesis import given
from hypothesis import strategies as st

from moc.resilience.retry import SAVED_MAX, RetryBudget


@given(st.floats(0, 100), st.lists(st.booleans(), max_size=400))
def test_extra_calls_are_never_more_than_their_share_of_those_that_went_well(pct: float, calls: list[bool]) -> None:
    budget, extra = RetryBudget(pct), 0
    for went_well in calls:
        if went_well:
            budget.succeeded()
        else:
            extra += budget.take()
        assert extra <= sum(calls) * pct / 100 + 1e-6


def test_ten_that_went_well_pay_for_one_more() -> None:
    budget = RetryBudget(10)
    for _ in range(10):
        assert not budget.take()
        budget.succeeded()
    assert budget.take()
    assert not budget.take()


def test_little_is_saved_up() -> None:
    budget = RetryBudget(10)
    for _ in range(100_000):
        budget.succeeded()
    assert sum(budget.take() for _ in range(1000)) == SAVED_MAX
