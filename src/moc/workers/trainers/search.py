"""A search: a study that says what to try next, and jobs that try it. It can be ended and gone on with at any time."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from moc.client.job_views import JobEventView, JobView
from moc.kernel.errors import MocError
from moc.learning.job import JobState, Reason
from moc.learning.space import Choices, Range, Space, read_space
from moc.workers.trainers.assignment import Failure
from moc.workers.trainers.report import Report

PRUNED_STARTS_MAX = 5
"""How many trials at most end before any is pruned; a quarter of all when they are fewer than 20."""

_JOB, _MESSAGE = "job", "message"
_ENDS = {TrialState.COMPLETE: "completed", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


class Jobs(Protocol):
    """The trials as jobs; see `trials.Trials`."""

    async def submit(self, number: int, hyperparameters: Mapping[str, Any]) -> str: ...

    def follow(self, job_id: str) -> AsyncGenerator[JobEventView, None]: ...

    async def show(self, job_id: str) -> JobView: ...

    async def prune(self, job_id: str) -> None: ...


class Search:
    """Tries what the study proposes, `parallel` trials at once, until there were `trials`.

    The study is in the file `path`: each trial's values are written down before it is submitted, and a trial that has
    no end there is submitted again, under its number, when the search goes on.
    """

    def __init__(self, path: Path, terms: Mapping[str, Any], *, jobs: Jobs, report: Report) -> None:
        self._space = _distributions(read_space(terms["space"]))
        self._metric: str = terms["metric"]
        self._count: int = terms["trials"]
        self._parallel: int = terms["parallel"]
        self._jobs = jobs
        self._report = report
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
        known = {summary.study_name: summary.n_trials for summary in optuna.get_all_study_summaries(storage)}
        name = "search"
        self._study = optuna.create_study(
            study_name=name,
            storage=storage,
            load_if_exists=True,
            direction=terms["direction"],
            # The same seed again would propose again what was tried before.
            sampler=optuna.samplers.TPESampler(seed=terms["sampler_seed"] + known.get(name, 0)),
            pruner=_pruner(terms["pruner"], self._count),
        )
        self._unfinished = self._take_up()

    async def run(self) -> None:
        """Return when all trials have ended. Cancelled it leaves those that run to go on."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._parallel):
                    group.create_task(self._work())
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None

    def tell_result(self) -> None:
        """Tell what was best, and every trial; Failure when none came to an end."""
        trials = self._trials()
        if not any(trial.state is TrialState.COMPLETE for trial in trials):
            last = trials[-1].user_attrs.get(_MESSAGE, "")
            raise Failure(Reason.PROGRAM_FAILED, f"none of {len(trials)} trials came to an end: {last}"[:1000])
        best = self._study.best_trial
        self._report.result(
            {self._metric: self._study.best_value, "best_trial": best.number, "trials": len(trials)},
            data={"best": _described(best), "trials": [_described(trial) for trial in trials]},
        )

    async def _work(self) -> None:
        while (trial := self._next()) is not None:
            await self._carry_out(trial)
            self._tell_progress()

    def _next(self) -> Trial | None:
        if self._unfinished:
            return self._unfinished.pop(0)
        if len(self._trials()) >= self._count:
            return None
        return self._study.ask(self._space)

    def _take_up(self) -> list[Trial]:
        """The trials that have no end yet; one whose values were not all written down was never submitted."""
        found = []
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.params.keys() == self._space.keys():
                found.append(Trial(self._study, trial._trial_id))
            else:
                self._study.tell(trial.number, state=TrialState.FAIL)
        return found

    def _trials(self) -> Sequence[FrozenTrial]:
        """Those that were begun."""
        return [trial for trial in self._study.get_trials(deepcopy=False) if trial.params.keys() == self._space.keys()]

    async def _carry_out(self, trial: Trial) -> None:
        try:
            await self._try(trial)
        except MocError as error:
            self._fail(trial, error.message)

    async def _try(self, trial: Trial) -> None:
        tried = None if _JOB in trial.user_attrs else self._tried(trial)
        if tried is not None:
            trial.set_user_attr(_JOB, tried.user_attrs[_JOB])
            trial.set_user_attr(_MESSAGE, f"the same as trial {tried.number}, whose job it has")
            self._study.tell(trial, tried.value)
            return
        job_id = await self._jobs.submit(trial.number, trial.params)
        trial.set_user_attr(_JOB, job_id)
        value = await self._follow(trial, job_id)
        job = await self._jobs.show(job_id)
        if job["status"] == JobState.SUCCEEDED:
            value = (job["outcome"] or {"metrics": {}})["metrics"].get(self._metric, value)
            if value is None:
                self._fail(trial, f"job {job_id} told no {self._metric}")
            else:
                self._study.tell(trial, value)
        elif job["reason"] == Reason.PRUNED:
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._fail(trial, f"job {job_id} is {job['status']}: {job['message'] or job['reason']}")

    def _tried(self, trial: Trial) -> FrozenTrial | None:
        """One that came to an end with the same values; a job would come to the same again."""
        done, wanted = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)), _written(trial.params)
        return next((other for other in done if _written(other.params) == wanted), None)

    async def _follow(self, trial: Trial, job_id: str) -> float | None:
        """The metric as the job told it last; a job that has no prospects is ended."""
        value, pruned = None, False
        seen = max(self._study.get_trials(deepcopy=False)[trial.number].intermediate_values, default=-1)
        async with aclosing(self._jobs.follow(job_id)) as events:
            async for event in events:
                told = event["data"]
                if event["type"] != "metrics" or self._metric not in told:
                    continue
                value = told[self._metric]
                if told["step"] > seen:  # what this search heard before, or the job told before, comes again
                    seen = told["step"]
                    trial.report(value, seen)
                    if not pruned and trial.should_prune():
                        pruned = True
                        await self._jobs.prune(job_id)
        return value

    def _fail(self, trial: Trial, message: str) -> None:
        trial.set_user_attr(_MESSAGE, message[:500])
        self._study.tell(trial, state=TrialState.FAIL)
        self._report.message(f"trial {trial.number} failed: {message}", level="warn")

    def _tell_progress(self) -> None:
        states = [trial.state for trial in self._trials()]
        metrics: dict[str, float] = {f"trials_{name}": states.count(state) for state, name in _ENDS.items()}
        ended = sum(metrics.values())
        if metrics["trials_completed"]:
            metrics[f"best_{self._metric}"] = self._study.best_value
            metrics["best_trial"] = self._study.best_trial.number
        self._report.metrics(int(ended), metrics, total_steps=self._count)


def _written(params: Mapping[str, Any]) -> str:
    """What tells 1 and true apart, which compare as the same."""
    return json.dumps(params, sort_keys=True)


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    return {name: _distribution(values) for name, values in space.items()}


def _distribution(values: Range | Choices) -> BaseDistribution:
    if isinstance(values, Choices):
        return CategoricalDistribution(values.values)
    if values.is_whole:
        return IntDistribution(int(values.low), int(values.high), log=values.log, step=int(values.step or 1))
    return FloatDistribution(values.low, values.high, log=values.log, step=values.step)


def _pruner(name: str, count: int) -> optuna.pruners.BasePruner:
    if name == "none":
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(n_startup_trials=max(1, min(PRUNED_STARTS_MAX, count // 4)))


def _described(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "hyperparameters": trial.params,
        "value": trial.value,
        "state": _ENDS[trial.state],
        "job": trial.user_attrs.get(_JOB, ""),
        "message": trial.user_attrs.get(_MESSAGE, ""),
    }
