"""How much of the time jobs may compute: found by what requests take beside them, and held back accordingly."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moc.inference.observed import SAMPLES_MIN, Observed, Sample
from moc.learning.governor import ALONE_KEPT_S, LEAST_SHARE, Governor
from moc.learning.ports import Started
from moc.service.throttle import IDLE_TURN_S, LEAST_WINDOW_S, PERIOD_S, TRIAL_S, TURN_S, Throttle
from moc.testing.clock import ManualClock

ALONE_S = 0.1
MODEL = "m@1"
JOB = Started(pid=5_000_001, process_started_at=1.0)


def governor(max_ratio: float = 1.5) -> Governor:
    one = Governor(max_ratio=max_ratio)
    one.learn(MODEL, ALONE_S, now=0)
    return one


@given(harm=st.floats(0, 20), max_ratio=st.floats(1.05, 4))
def test_it_comes_to_rest_where_requests_are_within_the_limit_or_jobs_have_the_least(
    harm: float, max_ratio: float
) -> None:
    """Requests take `1 + harm * share` of what they do alone."""
    one = governor(max_ratio)
    last = [one.judge({MODEL: ALONE_S * (1 + harm * one.share)}) for _ in range(200)][-50:]
    ratio = 1 + harm * max(last)
    if harm <= max_ratio - 1:
        assert last == [1.0] * 50 or max(last) - min(last) < 1e-9, "nothing was to be held back, or it rests"
    else:
        assert min(last) >= LEAST_SHARE
        assert ratio <= max_ratio * 1.25 + harm * LEAST_SHARE, "a step beyond the limit at most"


def test_the_worst_model_counts_and_what_is_not_known_does_not() -> None:
    one = governor()
    one.learn("slow@1", 1.0, now=0)
    assert one.judge({MODEL: 0.1, "slow@1": 3.0, "new@1": 99.0}) == 0.5
    assert one.judge({"new@1": 99.0}) == 0.5
    assert one.judge({}) == 0.5


async def test_what_was_seen_long_ago_is_seen_anew() -> None:
    one = governor()
    assert one.unknown([MODEL, "new@1"], now=ALONE_KEPT_S) == ["new@1"]
    assert one.unknown([MODEL], now=ALONE_KEPT_S + 1) == [MODEL]
    one.forget([])
    assert one.unknown([MODEL], now=0) == [MODEL]


class Host:
    """Requests of one model, one running at any time, and a job beside them; time passes by hand."""

    def __init__(self) -> None:
        self.clock = ManualClock(monotonic=0.0)
        self.observed = Observed(clock=self.clock)
        self.jobs: list[Started] = []
        self.serving: dict[str, int] = {MODEL: 1}
        self.halted: set[Started] = set()
        self.told: list[str] = []
        self.ran_s = self.passed_s = 0.0
        self.shares: list[float] = []
        self.throttle = Throttle(
            programs=self,
            running=lambda: self.jobs,
            serving=self._serving,
            observed=self,
            governor=Governor(max_ratio=1.5),
            clock=self.clock,
            on_share=self.shares.append,
        )

    def _serving(self) -> Mapping[str, int]:
        return self.serving

    def snapshot(self, reference: str) -> Sample:
        return self.observed.snapshot(reference)

    def halt(self, process: Started) -> None:
        self.halted.add(process)

    def proceed(self, process: Started) -> None:
        self.halted.discard(process)
        self.told.append("proceed")

    async def pass_time(self, seconds: float, *, beside_s: float = ALONE_S) -> None:
        """Twenty answers a second: they take `beside_s` while a job computes."""
        end = self.clock.monotonic() + seconds
        while self.clock.monotonic() < end:
            await self.throttle.turn()
            runs = bool(self.jobs) and not self.halted
            if any(self.serving.values()):
                self.observed.finished(MODEL, "chat", "ok", queue_s=0, engine_s=beside_s if runs else ALONE_S)
            self.clock.advance(TURN_S)
            self.ran_s += TURN_S * runs
            self.passed_s += TURN_S


@pytest.fixture
def host() -> Host:
    return Host()


async def test_a_job_that_harms_nobody_is_not_held_back(host: Host) -> None:
    await host.pass_time(10)
    host.jobs = [JOB]
    await host.pass_time(60)
    assert host.throttle.share == 1.0
    assert host.ran_s == pytest.approx(60, abs=1)


async def test_a_job_that_slows_requests_down_is_held_back(host: Host) -> None:
    await host.pass_time(10)
    host.jobs = [JOB]
    await host.pass_time(120, beside_s=ALONE_S * 3)
    assert host.throttle.share < 0.2
    host.ran_s = 0
    await host.pass_time(60, beside_s=ALONE_S * 3)
    assert host.ran_s < 15
    host.serving = {MODEL: 0}
    await host.pass_time(1)
    assert not host.halted, "nobody is waiting for an answer"
    host.serving = {MODEL: 1}
    await host.pass_time(100)
    assert host.throttle.share == 1.0, "it slows nobody down any more"


async def test_what_requests_take_without_jobs_is_tried_if_nobody_knows(host: Host) -> None:
    host.jobs = [JOB]
    await host.pass_time(LEAST_WINDOW_S - TURN_S, beside_s=ALONE_S * 3)
    assert host.throttle.share == 1.0
    await host.pass_time(2, beside_s=ALONE_S * 3)
    assert 0.0 in host.shares
    assert host.throttle.share > 0
    await host.pass_time(120, beside_s=ALONE_S * 3)
    assert host.throttle.share < 0.2


async def test_a_trial_ends_though_few_ask(host: Host) -> None:
    host.jobs = [JOB]
    await host.pass_time(LEAST_WINDOW_S + TURN_S)
    assert host.throttle.share == 0.0
    for _ in range(int(TRIAL_S) + 1):
        await host.throttle.turn()
        host.clock.advance(IDLE_TURN_S)
    assert host.throttle.share == 1.0
    await host.throttle.turn()
    assert not host.halted


async def test_few_answers_say_nothing(host: Host) -> None:
    host.jobs = [JOB]
    for _ in range(SAMPLES_MIN - 1):
        await host.throttle.turn()
        host.observed.finished(MODEL, "chat", "ok", queue_s=0, engine_s=9)
        host.clock.advance(LEAST_WINDOW_S)
    assert set(host.shares) == {1.0}


async def test_no_program_is_left_halted(host: Host) -> None:
    await host.pass_time(10)
    host.jobs = [JOB]
    assert host.told == []
    await host.pass_time(TURN_S)
    assert host.told == ["proceed"], "an earlier coordinator may have halted it"
    await host.pass_time(60, beside_s=ALONE_S * 3)
    while not host.halted:
        await host.pass_time(TURN_S, beside_s=ALONE_S * 3)
    host.jobs = []
    await host.throttle.turn()
    assert not host.halted, "it was asked to end"
    host.jobs = [JOB]
    while not host.halted:
        await host.pass_time(TURN_S, beside_s=ALONE_S * 3)
    await host.throttle.stop()
    assert not host.halted
    assert PERIOD_S > 2 * TURN_S
