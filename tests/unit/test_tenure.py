"""Who has a seat, decided without a store."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from moc.store.tenure import Tenure, taken, trusted

TENURE = Tenure(term=3, holder="me", ttl_s=10, expires_at=110, boot="monday")


def test_a_seat_is_held_until_it_expires() -> None:
    assert TENURE.held(100, "monday")
    assert TENURE.held(109.9, "monday")
    assert not TENURE.held(110, "monday")
    assert not replace(TENURE, holder=None).held(100, "monday")


def test_another_boot_frees_it() -> None:
    assert not TENURE.held(100, "tuesday")


def test_a_clock_that_began_anew_frees_it_where_boots_have_no_name() -> None:
    nameless = replace(TENURE, boot="")
    assert nameless.held(100, "")
    assert not nameless.held(3, "")


@given(now=st.floats(0, 1e9), ttl_s=st.floats(0.01, 3600))
def test_a_seat_just_taken_is_held_whatever_the_rounding(now: float, ttl_s: float) -> None:
    tenure = taken(None, "me", ttl_s, now=now, boot="", dead_term=None)
    assert tenure is not None
    assert tenure.held(now, "")
    assert taken(tenure, "you", ttl_s, now=now, boot="", dead_term=None) is None


@given(asked_at=st.floats(0, 1e6), waited_s=st.floats(0, 1e3), ttl_s=st.floats(0.1, 3600))
def test_trust_ends_before_the_seat_does(asked_at: float, waited_s: float, ttl_s: float) -> None:
    tenure = taken(None, "me", ttl_s, now=asked_at + waited_s, boot="", dead_term=None)
    assert tenure is not None
    assert trusted("s", tenure, asked_at).trusted_until < tenure.expires_at
