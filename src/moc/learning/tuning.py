"""Searches: jobs that try hyperparameters in other jobs, and keep what came out best."""

import difflib
import importlib.util
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import msgspec

from moc.kernel.choices import told
from moc.kernel.errors import Forbidden, InvalidRequest, Unimplemented
from moc.kernel.units import Bytes
from moc.learning.job import TRAINING, Job, JobSpec, JobType, Outcome
from moc.learning.ports import Kind, Prepared
from moc.learning.space import Space, corners, read_space

TRIABLE = TRAINING | {JobType.SCRIPT}
TRIALS_MAX = 500
PARALLEL_MAX = 64
TRIALS, PARALLEL, METRIC = 12, 2, "valid_loss"
DIRECTIONS, PRUNERS = ("minimize", "maximize"), ("median", "none")
OPTIONS = ("base", "space", "trials", "parallel", "metric", "direction", "pruner", "sampler_seed")
TRIAL = "trial"
"""What a trial's number is called in its metadata."""

SEED_MAX = 2**32 - 1
METRIC_MAX = 200
VALIDATED = frozenset({"valid_loss", "full_valid_loss", "valid_mean_token_accuracy"})
"""What trainings tell of rows they do not learn from."""

TOLD = {
    JobType.SUPERVISED: VALIDATED | {"train_loss", "train_mean_token_accuracy"},
    JobType.DPO: VALIDATED
    | {"train_loss", "train_mean_token_accuracy"}
    | {"rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"},
}
"""By what trainings can be ranked; a script tells what it likes."""

_INHERITED = ("model", "training_file", "validation_file", "seed", "priority", "devices", "memory_bytes", "result")
_OWN = ("name", "parent")
_BASE = tuple(field.name for field in fields(JobSpec) if field.name not in _OWN)
_OTHER_NAMES = {"sft": JobType.SUPERVISED}

Publish = Callable[[str, str], Awaitable[str]]
"""Makes what the job of that id ended in a version under that name; its reference."""


class Tuning:
    """Implements `Kind`; docs/howto/tune.md says what its options mean. `kinds` are those its trials may be of.

    `library` is what decides what to try next.
    """

    def __init__(
        self, *, kinds: Mapping[JobType, Kind], enabled: bool, publish: Publish, library: str = "optuna"
    ) -> None:
        self._kinds = kinds
        self._enabled = enabled
        self._publish = publish
        self._library = library

    async def check(self, spec: JobSpec) -> JobSpec:
        """See `Kind`. What a trial is not told itself it has of the search; every extreme of the space is checked."""
        if not self._enabled:
            raise Forbidden("searches are switched off here: learning.enable_auto_tune is false in moc.yaml")
        if importlib.util.find_spec(self._library) is None:
            raise Unimplemented(
                "searches need libraries that are not installed: pip install 'modelops-coordinator[learning]'"
            )
        options = _options(spec)
        base = _base(spec)
        if spec.name and base.type not in TRAINING:
            raise InvalidRequest(f"a search over jobs of the type {base.type} ends in no model; leave its `name` out")
        checked = base
        space = read_space(options["space"])
        _check_metric(options["metric"], base, space)
        for point in corners(space):
            trial = replace(base, name=spec.name, hyperparameters={**base.hyperparameters, **point})
            checked = await self._kinds[base.type].check(trial)
        base = replace(base, model=checked.model, options=checked.options)
        return replace(
            spec,
            model=base.model,
            training_file=base.training_file,
            validation_file=base.validation_file,
            hyperparameters={},
            devices="host",
            memory_bytes=None,
            options={**options, "base": _body(base)},
        )

    async def prepare(self, job: Job, folder: Path) -> Prepared:
        """See `Kind`."""
        return Prepared(task=job.spec.options, visits=True)

    async def finish(self, job: Job, prepared: Prepared, told: Mapping[str, Any], folder: Path) -> Outcome:
        """See `Kind`. What the best trial ended in becomes a version under the name of the search, if it has one."""
        data = told["data"]
        model = await self._publish(data["best"]["job"], job.spec.name) if job.spec.name else ""
        return Outcome(model=model, metrics=told["metrics"], data=data)


def _options(spec: JobSpec) -> dict[str, Any]:
    """All options, with their defaults."""
    given = spec.options
    for name in given:
        if name not in OPTIONS:
            raise InvalidRequest(f"a search has no option {name[:100]!r}; {_hint(name, OPTIONS)}")
    metric = given.get("metric", METRIC)
    if not isinstance(metric, str) or not 0 < len(metric) <= METRIC_MAX:
        raise InvalidRequest("`metric` is the name of a metric that the trials tell, such as valid_loss")
    return {
        "space": given.get("space"),
        "trials": _integer(given, "trials", TRIALS, 1, TRIALS_MAX),
        "parallel": _integer(given, "parallel", PARALLEL, 1, PARALLEL_MAX),
        "metric": metric,
        "direction": _one_of(given, "direction", DIRECTIONS),
        "pruner": _one_of(given, "pruner", PRUNERS),
        "sampler_seed": _integer(given, "sampler_seed", spec.seed, 0, SEED_MAX),
    }


def _base(spec: JobSpec) -> JobSpec:
    """What every trial has in common."""
    given = spec.options.get("base")
    if not isinstance(given, Mapping) or not isinstance(given.get("type"), str):
        raise InvalidRequest('`base` is the job to try, such as {"type": "supervised", "model": "smollm2"}')
    base = dict(given)
    if "memory" in base:
        base["memory_bytes"] = int(Bytes.parse(base.pop("memory")))
    for name in base:
        if name in _OWN:
            raise InvalidRequest(f"`base` has no `{name}`: that is for the search to have")
        if name not in _BASE:
            raise InvalidRequest(f"a job, as `base` is one, has no {name[:100]!r}; {_hint(name, _BASE)}")
    base["type"] = _OTHER_NAMES.get(base["type"], base["type"])
    if base["type"] not in TRIABLE:
        raise InvalidRequest(f"trials are of the type {', '.join(sorted(TRIABLE))}, not {base['type'][:40]}")
    inherited = {name: getattr(spec, name) for name in _INHERITED}
    try:
        job = msgspec.convert({**inherited, **base}, JobSpec)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"`base` is no job: {told(error, JobSpec)}") from None
    replace(job, metadata={**job.metadata, TRIAL: ""}).check()
    return replace(job, hyperparameters={**spec.hyperparameters, **job.hyperparameters})


def _check_metric(metric: str, base: JobSpec, space: Space) -> None:
    """InvalidRequest when no trial would tell it."""
    told = TOLD.get(base.type)
    if told is None:
        return
    if metric not in told:
        raise InvalidRequest(
            f"trainings of the type {base.type} tell no {metric!r}; {_hint(metric, tuple(sorted(told)))}"
        )
    splits = "validation_split" in space or base.hyperparameters.get("validation_split")
    if metric in VALIDATED and not (base.validation_file or splits):
        raise InvalidRequest(
            f"{metric} is measured on rows for validation, and there are none: give a file (`--validation`), "
            "or the hyperparameter `validation_split`"
        )


def _body(base: JobSpec) -> dict[str, Any]:
    """The job as it is submitted."""
    body = {name: getattr(base, name) for name in _BASE}
    return {**body, "type": str(base.type)}


def _integer(given: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequest(f"`{name}` is a whole number from {low} to {high}, not {str(value)[:40]!r}")
    return value


def _one_of(given: Mapping[str, Any], name: str, known: tuple[str, ...]) -> str:
    value = given.get(name, known[0])
    if value not in known:
        raise InvalidRequest(f"`{name}` is {' or '.join(known)}, not {str(value)[:40]!r}")
    return str(value)


def _hint(name: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean `{near[0]}`?" if near else f"there are {', '.join(known)}"
