"""How much a key may ask: rates as they are written, requests counted, requests at work."""

import pytest

from moc.kernel.errors import InvalidRequest, RateLimited
from moc.security.quota import UNLIMITED, Quota, Rate, Rates


def quota(
    rate: str | None = None, max_concurrency: int | None = None, *, who: str = "k", rates: Rates | None = None
) -> Quota:
    """Days are long enough for the time a test takes not to matter."""
    parsed = None if rate is None else Rate.parse(rate)
    return Quota(who, rates or Rates(), rate=parsed, max_concurrency=max_concurrency)


@pytest.mark.parametrize("text", ["1/s", "100/min", "5000/h", "10000/d"])
def test_a_rate_prints_as_it_is_written(text: str) -> None:
    assert str(Rate.parse(text)) == text


@pytest.mark.parametrize("text", ["", "100", "0/min", "10001/s", "1/fortnight", "-1/s", "1.5/s", "1/ s", "\u0661/s"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        Rate.parse(text)


def test_a_rate_is_kept_and_says_when_to_come_back() -> None:
    limited = quota("3/d")
    for _ in range(3):
        limited.spend()
    for _ in range(2):
        with pytest.raises(RateLimited, match="3/d") as refused:
            limited.spend()
    assert 86_000 < (refused.value.retry_after_s or 0) <= 86_400


def test_keys_are_counted_apart_and_a_key_wherever_it_is_held() -> None:
    rates = Rates()
    quota("1/d", who="a", rates=rates).spend()
    quota("1/d", who="b", rates=rates).spend()
    with pytest.raises(RateLimited):
        quota("1/d", who="a", rates=rates).spend()


def test_only_so_many_are_remembered() -> None:
    rates, rate = Rates(who_max=2), Rate(1, 86_400)
    assert [rates.spend(who, rate) for who in "abc"] == [None] * 3
    assert rates.spend("c", rate) is not None
    assert rates.spend("b", rate) is not None
    assert rates.spend("a", rate) is None  # forgotten for c
    assert rates.spend("c", rate) is None  # forgotten for a, since b was seen later


def test_only_so_many_are_at_work_at_once() -> None:
    busy = quota(max_concurrency=2)
    with busy:
        with busy:
            with pytest.raises(RateLimited, match="2 requests at work"):
                busy.enter()
            assert busy.running == 2
        with busy:
            assert busy.running == 2
    assert busy.running == 0


def test_a_request_that_fails_is_at_work_no_longer() -> None:
    busy = quota(max_concurrency=1)
    with pytest.raises(ValueError, match="boom"), busy:
        raise ValueError("boom")
    assert busy.running == 0


def test_without_limits_nothing_is_refused() -> None:
    for _ in range(20_000):
        UNLIMITED.spend()
    with UNLIMITED, UNLIMITED:
        pass
