"""The options of the runtime `command`, read and checked; `command` says what each means."""

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from moc.inference.request import Kind
from moc.kernel.errors import LoadFailed
from moc.workers.runtimes.options import Options

if TYPE_CHECKING:
    from moc.workers.upstream.options import Wording

PROTOCOLS: "dict[str, Wording]" = {"openai": "openai", "oip": "oip"}
HEALTH = {"openai": "/health", "oip": "/v2/health/ready"}
KINDS: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}
STOP_SIGNALS = {number.name: number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)}
RESERVED = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")
"""What tells a server which GPUs it was given."""


@dataclass(frozen=True, slots=True)
class Hook:
    """A POST that makes the server sleep or wake: a path of its host, and a JSON document, empty for none."""

    path: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a server is started, asked, watched and ended. It has both hooks or none."""

    command: list[str]
    environment: dict[str, str]
    protocol: "Wording"
    kinds: tuple[Kind, ...]
    model: str
    health: str
    health_interval_s: float
    start_timeout_s: float
    concurrency: int
    stop_signal: signal.Signals
    sleep: Hook | None
    wake: Hook | None


def plan_for(model: str, options: Mapping[str, Any]) -> Plan:
    """The plan for `model` (`name@version`); LoadFailed(invalid_spec) for what is wrong with its options."""
    given = Options("command", options)
    protocol = given.one_of("protocol", given.text("protocol") or "openai", PROTOCOLS)
    plan = Plan(
        command=given.texts("command"),
        environment=given.named_texts("env"),
        protocol=protocol,
        kinds=tuple(given.one_of("kinds", kind, KINDS) for kind in given.texts("kinds")),
        model=given.text("model") or model,
        health=given.text("health") or HEALTH[protocol],
        health_interval_s=given.number("health_interval_s", 10.0, low=0.1, high=3600),
        start_timeout_s=given.number("start_timeout_s", 600.0, low=0.1, high=3600),
        concurrency=given.integer("concurrency", 32, low=1, high=4096),
        stop_signal=given.one_of("stop_signal", given.text("stop_signal") or "SIGTERM", STOP_SIGNALS),
        sleep=_hook(given, "sleep"),
        wake=_hook(given, "wake"),
    )
    given.done()
    _check(plan)
    return plan


def _hook(given: Options, name: str) -> Hook | None:
    entry = given.mapping(name)
    if entry is None:
        return None
    path, body = entry.get("path"), entry.get("body")
    if not isinstance(path, str) or not _is_path(path) or not entry.keys() <= {"path", "body"}:
        raise _wrong(f"option {name!r} is {entry!r}; write {{path: /…}}, and a `body` if it takes one")
    return Hook(path, b"" if body is None else msgspec.json.encode(body))


def _check(plan: Plan) -> None:
    program = plan.command[0] if plan.command else ""
    if not program:
        raise _wrong("the runtime command needs the option 'command': the program and its arguments, as a list")
    if os.path.dirname(program) and not os.path.isabs(program) and "{" not in program:
        raise _wrong(f"{program!r} is neither a name on PATH nor an absolute path; write one of these")
    if not _is_path(plan.health):
        raise _wrong(f"option 'health' is {plan.health!r}; write a path, such as /health")
    if (plan.sleep is None) != (plan.wake is None):
        raise _wrong("the options 'sleep' and 'wake' go together")
    for name in RESERVED:
        if name in plan.environment:
            raise _wrong(f"'env' may not set {name}: the GPUs are those that the model was given; see `devices`")


def _is_path(text: str) -> bool:
    return text.startswith("/") and text.isascii() and text.isprintable() and " " not in text


def _wrong(what: str) -> LoadFailed:
    return LoadFailed(what, reason="invalid_spec")
