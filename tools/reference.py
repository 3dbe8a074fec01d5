"""Write the tables of docs/reference/ from the code; with `--check`, only tell whether they are up to date.

A table stands between `<!-- generated: NAME -->` and `<!-- end -->`; the words around it are written by hand.
"""

import asyncio
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, cast

import typer
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from moc.cli.main import app as cli
from moc.config import PREFIX, Settings
from moc.config.change import is_live
from moc.gpu.device import MOVES as DEVICE_MOVES
from moc.gpu.lease import MOVES as LEASE_MOVES
from moc.learning.hyperparameters import ALL as HYPERPARAMETERS
from moc.learning.hyperparameters import LEARNING_RATES, SIZE_NAMES, Hyperparameter
from moc.learning.job import MOVES as JOB_MOVES
from moc.models.alias import Alias
from moc.models.model import MOVES, ModelSpec
from moc.models.rollout import MOVES as ROLLOUT_MOVES
from moc.security.key import MOVES as KEY_MOVES
from moc.security.policy import ALLOWED, Operation
from moc.service.services import Services
from moc.telemetry.metrics import DeviceGauges, Metrics
from moc.transports.rest import compatibility, management, operations
from moc.transports.rest.aliases import ALIAS
from moc.transports.rest.app import protocol_operations
from moc.transports.rest.document import document
from moc.transports.status import STATUSES

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "reference"
REGION = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
CONNECTION = {"help", "url", "key", "data_dir"}
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def table(columns: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def errors() -> str:
    """Every error code, and what each protocol calls it."""
    rows = (
        (
            f"`{code}`",
            str(s.http),
            str(s.oip or s.http),
            s.grpc,
            f"`{code}`",
            f"`{s.openai}`",
            f"`{s.openai_code or code}`",
            f"`{s.anthropic}`",
            "yes" if s.retry else "",
        )
        for code, s in STATUSES.items()
    )
    columns = ("code", "REST", "`/v2` routes", "gRPC", "ZeroMQ", "OpenAI `type`", "OpenAI `code`", "Anthropic `type`")
    return table((*columns, "retry may help"), rows)


def configuration() -> str:
    """Every section of `moc.yaml` but `models`."""
    parts = []
    for section, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            parts.append(f"### `{section}`\n\n{field.annotation.__doc__}\n\n")
            keys = field.annotation.model_fields.items()
            rows = (
                (
                    f"`{key}`",
                    f"`{_default(f.default)}`",
                    _meaning(f),
                    "at once" if is_live(f"{section}.{key}") else "restart",
                    f"`{PREFIX}{section}__{key}`".upper(),
                )
                for key, f in keys
            )
            parts.append(table(("key", "default", "meaning", "takes effect", "environment"), rows) + "\n")
    return "".join(parts).rstrip("\n") + "\n"


def _meaning(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(bound, name):g}"
        for bound in field.metadata
        for name, sign in SIGNS.items()
        if hasattr(bound, name)
    ]
    choices = [f"`{choice}`" for choice in getattr(field.annotation, "__args__", ()) if isinstance(choice, str)]
    limits = [*bounds, *([" or ".join(choices)] if choices else [])]
    meaning = " ".join(str(field.description).split())  # a table's row is one line
    return f"{meaning} ({', '.join(limits)})" if limits else meaning


def _default(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value).replace("'", '"') if isinstance(value, list) else str(value)


def model_keys() -> str:
    """What may stand below a model's name in `moc.yaml`, and in the body that adds a model."""
    described = cast(dict[str, dict[str, str]], management.NEW_MODEL["properties"])
    rows = (
        (f"`{field.name}`", _spec_default(field), described[field.name].get("description", ""))
        for field in fields(ModelSpec)
    )
    return table(("key", "default", "meaning"), rows)


def _spec_default(field: "Field[Any]") -> str:
    if field.default is not MISSING:
        return f"`{_default(field.default)}`" if field.default not in ("", ()) else "empty"
    return "required" if field.default_factory is MISSING else "empty"


def alias_keys() -> str:
    """What may stand below an alias's name in `moc.yaml`, and in the body that sets an alias."""
    rows = ((f"`{field.name}`", _spec_default(field), ALIAS[field.name]["description"]) for field in fields(Alias))
    return table(("key", "default", "meaning"), rows)


def commands() -> str:
    """Every command of `moc`."""
    return "\n".join(_commands(typer.main.get_command(cli), "moc")).rstrip("\n") + "\n"


def _commands(command: Any, name: str) -> Iterator[str]:
    for child, below in getattr(command, "commands", {}).items():
        yield from _commands(below, f"{name} {child}")
    if hasattr(command, "commands"):
        return
    context = command.context_class(command, info_name=name)
    usage = " ".join(piece.strip("{}") for piece in command.collect_usage_pieces(context)).replace("[[", "[")
    usage = usage.replace("]]", "]")
    yield f"### `{name}`\n\n    {name} {usage}\n\n{command.help}\n"
    names = {parameter.name for parameter in command.params}
    hidden = CONNECTION if "url" in names else {"help"}
    records = [parameter.get_help_record(context) for parameter in command.params if parameter.name not in hidden]
    if records:
        yield table(("given", "meaning"), ((f"`{left}`", right) for left, right in records))


class _Nothing:
    """Stands where routes expect services, which they only call for a request."""

    def __getattr__(self, name: str) -> "_Nothing":
        return self


def routes() -> str:
    """Every route, by tag, as the OpenAPI document has it."""
    services = cast(Services, _Nothing())
    protocols = protocol_operations(services)
    app = FastAPI(openapi_url=None)
    app.include_router(management.router(services, closing=asyncio.Event(), route=APIRoute))
    app.include_router(operations.router(services, route=APIRoute))
    app.include_router(compatibility.router(services, route=APIRoute))
    public = frozenset(operation.path for operation in protocols if operation.public) | frozenset(operations.PUBLIC)
    by_tag: dict[str, list[tuple[str, str, str]]] = {}
    for path, methods in document(app, protocols, public)["paths"].items():
        for method, described in methods.items():
            key = "none" if path in public else "key"
            row = (f"`{method.upper()} {path}`", described["summary"], key)
            by_tag.setdefault(described["tags"][0], []).append(row)
    parts = (
        f"### {tag[0].upper()}{tag[1:]}\n\n{table(('route', 'what it does', 'needs'), iter(rows))}"
        for tag, rows in by_tag.items()
    )
    return "\n".join(parts)


def metrics() -> str:
    """Every series of `/metrics`."""
    found = Metrics(version="0")
    found.finished("m@1", "chat", "ok", queue_s=0, engine_s=0)  # a series without a sample does not tell its labels
    found.observe_workers({"m@1": 1})
    found.observe_devices(
        [
            DeviceGauges(
                device="host",
                state="online",
                capacity_bytes=1,
                used_bytes=1,
                unmanaged_bytes=1,
                reserved_bytes={"model": 1},
            )
        ]
    )
    found.observe_leases({"admitted": 1})
    found.evicted("capacity")
    found.lease_waited("granted", 0)
    found.model_loaded("m@1", 0)
    found.observe_seat("cluster", held=True, term=1)
    rows = []
    for family in found.registry.collect():
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        name = family.name + ("_total" if family.type == "counter" else "")
        rows.append((f"`{name}`", family.type, ", ".join(f"`{label}`" for label in labels), family.documentation))
    return table(("series", "type", "labels", "meaning"), iter(rows))


def moves() -> str:
    """The states of a model version."""
    return _moves(MOVES)


def device_moves() -> str:
    """The states of a device."""
    return _moves(DEVICE_MOVES)


def lease_moves() -> str:
    """The states of a lease."""
    return _moves(LEASE_MOVES)


def rollout_moves() -> str:
    """The states of a rollout."""
    return _moves(ROLLOUT_MOVES)


def job_moves() -> str:
    """The states of a job."""
    return _moves(JOB_MOVES)


def hyperparameters() -> str:
    """Every hyperparameter of trainings."""
    rows = (
        (
            f"`{one.name}`",
            _hyperparameter_default(one),
            f"{one.meaning} ({one.range})",
            ", ".join(f"`{type}`" for type in sorted(one.types)),
        )
        for one in HYPERPARAMETERS.values()
    )
    return table(("hyperparameter", "default", "meaning", "trainings"), rows)


def _hyperparameter_default(one: Hyperparameter) -> str:
    if isinstance(one.default, tuple):
        return " / ".join(f"`{_default(value)}`" for value in one.default)
    return one.default_text or f"`{_default(one.default)}`"


def learning_rates() -> str:
    """The default of `learning_rate`."""
    rows = (
        (f"`{type}`", f"`{method}`", *(f"`{rate:g}`" for rate in rates))
        for (type, method), rates in LEARNING_RATES.items()
    )
    return table(("training", "`method`", *SIZE_NAMES), rows)


def key_moves() -> str:
    """The states of a key."""
    return _moves(KEY_MOVES)


def roles() -> str:
    """What each role may do."""
    rows = (
        (f"`{operation}`", *("yes" if operation in allowed else "" for allowed in ALLOWED.values()))
        for operation in Operation
    )
    return table(("operation", *(f"`{role}`" for role in ALLOWED)), rows)


def _moves(of: Mapping[Any, frozenset[Any]]) -> str:
    rows = ((f"`{state}`", ", ".join(f"`{after}`" for after in sorted(next_ones))) for state, next_ones in of.items())
    return table(("state", "may become"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "errors": errors,
    "configuration": configuration,
    "model_keys": model_keys,
    "alias_keys": alias_keys,
    "commands": commands,
    "routes": routes,
    "metrics": metrics,
    "moves": moves,
    "device_moves": device_moves,
    "lease_moves": lease_moves,
    "rollout_moves": rollout_moves,
    "job_moves": job_moves,
    "hyperparameters": hyperparameters,
    "learning_rates": learning_rates,
    "key_moves": key_moves,
    "roles": roles,
}


def main() -> int:
    check = sys.argv[1:] == ["--check"]
    missing, stale = set(TABLES), []
    for page in sorted(FOLDER.glob("*.md")):
        text = page.read_text()
        missing -= {region[2] for region in REGION.finditer(text)}
        written = REGION.sub(lambda region: f"{region[1]}\n{TABLES[region[2]]()}\n{region[3]}", text)
        if written != text:
            stale.append(str(page.relative_to(FOLDER.parents[1])))
            if not check:
                page.write_text(written)
    if missing:
        print(f"no page of {FOLDER.name}/ has a place for: {', '.join(sorted(missing))}")
        return 1
    if check and stale:
        print(f"not what the code says: {', '.join(stale)}; run `make generated`")
        return 1
    print(f"wrote {', '.join(stale)}" if stale else "the reference tables are what the code says")
    return 0


if __name__ == "__main__":
    sys.exit(main())
