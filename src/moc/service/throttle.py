"""Holding back the programs of jobs while requests are answered, by as much as it takes."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

import structlog

from moc.inference.observed import SAMPLES_MIN, Sample
from moc.kernel.clock import Clock
from moc.kernel.routine import Routine
from moc.kernel.tasks import to_the_end
from moc.learning.governor import Governor
from moc.learning.ports import Started

log = structlog.get_logger(__name__)

PERIOD_S = 0.5
"""In which a program runs once and is halted once."""

TURN_S = 0.05
IDLE_TURN_S = 1.0
TRIAL_S = 20.0
"""How long programs are halted at most, while requests are answered, to see what those take without them."""

TRIAL_ANSWERS = 10

LEAST_WINDOW_S = 5.0
"""Over which answers are counted at least before the share is changed again."""


class Halting(Protocol):
    """Of `learning.ports.Programs` what is needed here."""

    def halt(self, process: Started) -> None: ...

    def proceed(self, process: Started) -> None: ...


class Observations(Protocol):
    """What is seen of the requests of each version."""

    def snapshot(self, reference: str) -> Sample: ...


class Throttle:
    """Lets the programs that are `running` compute for the governor's share of the time while requests are answered.

    `serving` are the models that are loaded here, with how many requests each answers now; while that is none,
    programs run freely. No program is left halted: not when it is asked to end, nor when this ends; for when this is
    killed see `trainers.supervisor`. `on_share` is told the share at every look.
    """

    def __init__(
        self,
        *,
        programs: Halting,
        running: Callable[[], Sequence[Started]],
        serving: Callable[[], Mapping[str, int]],
        observed: Observations,
        governor: Governor,
        clock: Clock,
        on_share: Callable[[float], None],
    ) -> None:
        self._programs = programs
        self._running = running
        self._serving = serving
        self._observed = observed
        self._governor = governor
        self._clock = clock
        self._on_share = on_share
        self._known: set[Started] = set()
        self._halted: set[Started] = set()
        self._marks: dict[str, Sample] = {}
        self._window_at = clock.monotonic()
        self._had_jobs = False
        self._trial: list[str] = []
        self._trial_ends_at = 0.0
        self._routine = Routine("throttle", self._run)

    @property
    def share(self) -> float:
        """How much of the time programs may run now; 0 while it is seen what requests take without them."""
        return 0.0 if self._trial else self._governor.share

    def adjust(self, *, max_ratio: float) -> None:
        """Let requests take so much more, from now on."""
        self._governor.max_ratio = max_ratio

    async def start(self) -> None:
        """Begin to look."""
        if not self._routine.runs:
            self._on_share(self.share)
        self._routine.start()

    async def drain(self) -> None:
        return

    async def stop(self) -> None:
        """Let every program go on."""
        await self._routine.stop()
        await self._hold(())

    async def turn(self) -> float:
        """Halt and let go on whom it is time for; in how many seconds to look again."""
        processes, serving, now = self._running(), self._serving(), self._clock.monotonic()
        fresh, self._known = set(processes) - self._known, set(processes)
        self._look(serving, now, has_jobs=bool(processes))
        resting = any(serving.values()) and now % PERIOD_S >= self.share * PERIOD_S
        if not resting:
            self._halted |= fresh  # whoever halted them may have been killed then
        await self._hold(processes if resting else ())
        return TURN_S if processes and self.share < 1 else IDLE_TURN_S

    async def _run(self) -> None:
        while True:
            delay_s = IDLE_TURN_S
            try:
                delay_s = await self.turn()
            except Exception as error:  # whatever it is must not leave a program halted
                log.warning("jobs are not held back for a moment", error=str(error))
                await self._hold(())
            await asyncio.sleep(delay_s)

    async def _hold(self, processes: Collection[Started]) -> None:
        """Halt these, and no others: in a thread, for all processes of the system may have to be looked at."""
        released, halted = self._halted - set(processes), set(processes) - self._halted
        if released or halted:
            self._halted |= halted
            await to_the_end(asyncio.to_thread(self._signal, released, halted))
        self._halted = set(processes)

    def _signal(self, released: Collection[Started], halted: Collection[Started]) -> None:
        for process in released:
            self._programs.proceed(process)
        for process in halted:
            self._programs.halt(process)

    # what is seen

    def _look(self, serving: Mapping[str, int], now: float, *, has_jobs: bool) -> None:
        """Count answers, and judge by them when there are enough."""
        self._governor.forget(serving)
        self._marks = {model: mark for model, mark in self._marks.items() if model in serving}
        if has_jobs != self._had_jobs:
            self._had_jobs, self._trial = has_jobs, []
            self._begin_window(serving, now)
        if self._trial or not has_jobs:
            self._see_alone(serving, now)
        elif now - self._window_at >= LEAST_WINDOW_S and (p95_s := self._answers(serving, SAMPLES_MIN)):
            self._trial = self._governor.unknown(p95_s, now=now)
            self._trial_ends_at = now + TRIAL_S
            self._governor.judge(p95_s)
            self._begin_window(serving, now)
        self._on_share(self.share)

    def _see_alone(self, serving: Mapping[str, int], now: float) -> None:
        """Without jobs: on trial, or because there are none."""
        for model, seconds in self._answers(serving, TRIAL_ANSWERS if self._trial else SAMPLES_MIN).items():
            self._governor.learn(model, seconds, now=now)
            self._marks[model] = self._observed.snapshot(model)
        if self._trial:
            unknown = self._governor.unknown([model for model in self._trial if model in serving], now=now)
            if not unknown or now >= self._trial_ends_at:
                for model in unknown:
                    self._governor.learn(model, None, now=now)
                self._trial = []
                self._begin_window(serving, now)

    def _begin_window(self, serving: Mapping[str, int], now: float) -> None:
        self._marks = {model: self._observed.snapshot(model) for model in serving}
        self._window_at = now

    def _answers(self, serving: Mapping[str, int], least: int) -> dict[str, float]:
        """What 95 % of the answers since the window began took at most, of the models that gave so many."""
        found = {}
        for model in serving:
            sample = self._observed.snapshot(model)
            window = sample - self._marks.setdefault(model, sample)
            if sum(window.buckets) >= least:
                found[model] = window.quantile_s(0.95)
        return found
