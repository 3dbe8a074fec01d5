"""`moc jobs submit`: a command for each type of job."""

import contextlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import typer

from moc.cli import screen
from moc.cli.evaluate import OutsideOption, suite_document
from moc.cli.job_screen import finish, follow, show
from moc.cli.session import JsonOption, Session, connected
from moc.cli.uploads import Uploads
from moc.client.job_views import UNDONE
from moc.kernel.errors import InvalidRequest
from moc.kernel.units import Bytes

if TYPE_CHECKING:
    from moc.client import Client
    from moc.client.job_views import JobView

app = typer.Typer(
    help="Submit a job; it waits for its turn and for memory.", no_args_is_help=True, rich_markup_mode=None
)

FILE_ID = "file-"
_DATA = "A file of JSON lines, which is uploaded, or the id of one that was."
ModelOption = Annotated[str, typer.Option("--model", metavar="NAME", help="The model to start from.")]
DataOption = Annotated[str, typer.Option("--data", metavar="FILE", help=_DATA)]
MaybeDataOption = Annotated[str, typer.Option("--data", metavar="FILE", help=_DATA)]
ValidationOption = Annotated[
    str, typer.Option("--validation", metavar="FILE", help="Rows to measure with, that it does not learn from.")
]
NameOption = Annotated[str, typer.Option("--name", metavar="NAME", help="What the model is called that it makes.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A hyperparameter, such as epochs=3.")
]
PriorityOption = Annotated[int, typer.Option("--priority", min=1, max=10, help="1 is the highest.")]
MemoryOption = Annotated[
    str | None, typer.Option("--memory", metavar="SIZE", help="How much it needs; without it that is estimated.")
]
DevicesOption = Annotated[str, typer.Option("--devices", metavar="ID", help="A device, or a kind of device.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same result.")]
ResultOption = Annotated[
    Literal["adapter", "merged"],
    typer.Option("--result", metavar="KIND", help="An `adapter` beside the base, or a `merged` model."),
]
FollowOption = Annotated[bool, typer.Option("--follow", help="Print what happens to it until it has ended.")]
WaitOption = Annotated[bool, typer.Option("--wait", help="Return when it has ended.")]


def _add_training(name: str, kind: str, story: str) -> None:
    @app.command(name, help=story)
    @connected
    def submit_training(
        session: Session,
        model: ModelOption,
        data: DataOption,
        called: NameOption,
        validation: ValidationOption = "",
        settings: SetOption = None,
        priority: PriorityOption = 5,
        memory: MemoryOption = None,
        devices: DevicesOption = "auto",
        seed: SeedOption = 0,
        result: ResultOption = "adapter",
        followed: FollowOption = False,
        waited: WaitOption = False,
        as_json: JsonOption = False,
    ) -> None:
        terms = _terms(priority, memory, devices, seed)
        wish = {"model": model, "name": called, "hyperparameters": pairs(settings), "result": result, **terms}
        with session.client() as client:
            with Uploads(client) as uploads:
                job = client.jobs.submit(kind, **wish, **_files(uploads, data, validation))
            _tell(client, job, followed, waited, as_json)


_add_training("sft", "supervised", "Fine-tune a model on examples of what it is to say.")
_add_training("dpo", "dpo", "Fine-tune a model on pairs of answers, of which one is preferred.")


@app.command("evaluate")
@connected
def submit_evaluate(
    session: Session,
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="The model to measure.")],
    suite: Annotated[Path, typer.Option("--suite", metavar="FILE", help="What it is asked, as YAML.")],
    priority: PriorityOption = 5,
    seed: SeedOption = 0,
    allow_outside: OutsideOption = False,
    followed: FollowOption = False,
    waited: WaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a model; `moc evaluate` shows and compares what came out."""
    with session.client() as client:
        with Uploads(client) as uploads:
            options = {"suite": suite_document(suite, uploads, allow_outside)}
            job = client.jobs.submit("evaluate", model=model, options=options, priority=priority, seed=seed)
        _tell(client, job, followed, waited, as_json)


@app.command("tune")
@connected
def submit_tune(
    session: Session,
    base: Annotated[
        Literal["sft", "supervised", "dpo", "script"],
        typer.Option("--base", metavar="TYPE", help="What each trial is: sft (or supervised), dpo or script."),
    ],
    space: Annotated[Path, typer.Option("--space", metavar="FILE", help="What is searched, as YAML.")],
    trials: Annotated[int, typer.Option("--trials", min=1, help="How many are made at most.")] = 12,
    parallel: Annotated[int, typer.Option("--parallel", min=1, help="How many at once.")] = 2,
    metric: Annotated[str | None, typer.Option("--metric", help="What makes a trial good, such as valid_loss.")] = None,
    direction: Annotated[
        Literal["minimize", "maximize"] | None,
        typer.Option("--direction", metavar="WAY", help="`minimize` or `maximize`."),
    ] = None,
    pruner: Annotated[
        Literal["median", "none"] | None,
        typer.Option("--pruner", metavar="KIND", help="`median` ends trials that fall behind; `none`."),
    ] = None,
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="The model that trials start from.")] = "",
    data: MaybeDataOption = "",
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="What the best trial's model is called.")] = "",
    validation: ValidationOption = "",
    settings: SetOption = None,
    command: Annotated[str, typer.Option("--command", help="What trials that are scripts run.")] = "",
    priority: PriorityOption = 5,
    memory: MemoryOption = None,
    devices: DevicesOption = "auto",
    seed: SeedOption = 0,
    followed: FollowOption = False,
    waited: WaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Search for the hyperparameters that make the best model; every trial is a job."""
    if base != "script" and not model:
        raise typer.BadParameter("trials of trainings start from a model; name one", param_hint="--model")
    trial = {"model": model, "hyperparameters": pairs(settings), **_terms(priority, memory, devices, seed)}
    if command:
        trial["options"] = _script(command)
    chosen = {"metric": metric, "direction": direction, "pruner": pruner}
    options = {
        "space": _yaml(space),
        "trials": trials,
        "parallel": parallel,
        **{option: value for option, value in chosen.items() if value is not None},
    }
    with session.client() as client:
        with Uploads(client) as uploads:
            options["base"] = {"type": base, **trial, **_files(uploads, data, validation)}
            job = client.jobs.submit("tune", model=model, name=name, options=options, priority=priority, seed=seed)
        _tell(client, job, followed, waited, as_json)


@app.command("script")
@connected
def submit_script(
    session: Session,
    command: Annotated[str, typer.Option("--command", help="What is run, as a shell would split it.")],
    data: MaybeDataOption = "",
    validation: ValidationOption = "",
    settings: SetOption = None,
    name: Annotated[str, typer.Option("--name", help="What the job is called.")] = "",
    priority: PriorityOption = 5,
    memory: MemoryOption = None,
    devices: DevicesOption = "auto",
    seed: SeedOption = 0,
    followed: FollowOption = False,
    waited: WaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run any program, in the folder this is called in, as one that saves checkpoints and yields its memory."""
    terms = _terms(priority, memory, devices, seed)
    wish = {"name": name, "hyperparameters": pairs(settings), "options": _script(command), **terms}
    with session.client() as client:
        with Uploads(client) as uploads:
            job = client.jobs.submit("script", **wish, **_files(uploads, data, validation))
        _tell(client, job, followed, waited, as_json)


def pairs(given: list[str] | None) -> dict[str, Any]:
    """`NAME=VALUE` texts as a mapping, the values read as JSON or YAML; a usage error when one is none."""
    found = {}
    for text in given or []:
        name, sign, value = text.partition("=")
        if not name or not sign:
            raise typer.BadParameter(f"{text!r} is not NAME=VALUE")
        found[name] = _value(value)
    return found


def _value(text: str) -> Any:
    import yaml

    with contextlib.suppress(msgspec.DecodeError):
        return msgspec.json.decode(text)  # knows 1e-4 for a number, which YAML does not
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise typer.BadParameter(f"{text!r} is no value that YAML knows") from None


def _tell(client: "Client", job: "JobView", followed: bool, waited: bool, as_json: bool) -> None:
    if not (followed or waited):
        if as_json:
            screen.json(job)
        elif job["status"] not in UNDONE:
            screen.line(f"job {job['id']} is {job['status']}; `moc jobs events {job['id']} --follow` shows how it goes")
        if job["status"] in UNDONE:
            finish(job)
        return
    if followed:
        screen.note(f"job {job['id']}")
        job = follow(client, job["id"], as_json=as_json)
    else:
        job = client.jobs.wait(job["id"])
    if not (followed and as_json):
        show(job, as_json)
    finish(job)


def _terms(priority: int, memory: str | None, devices: str, seed: int) -> dict[str, Any]:
    try:
        memory_bytes = None if memory is None else int(Bytes.parse(memory))
    except InvalidRequest as error:
        raise typer.BadParameter(error.message, param_hint="--memory") from None
    return {"priority": priority, "memory_bytes": memory_bytes, "devices": devices, "seed": seed}


def _files(uploads: Uploads, data: str, validation: str) -> dict[str, str]:
    """The ids of the files that were given, uploaded where they are files here."""
    return {"training_file": _file(uploads, data), "validation_file": _file(uploads, validation)}


def _file(uploads: Uploads, given: str) -> str:
    if not given or (given.startswith(FILE_ID) and not Path(given).exists()):
        return given
    path = Path(given)
    if not path.is_file():
        raise typer.BadParameter(f"there is no file {given}, and it is not the id of one")
    return uploads.add(path)


def _script(command: str) -> dict[str, Any]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise typer.BadParameter(f"--command cannot be split: {error}") from None
    return {"command": words, "workdir": str(Path.cwd())}


def _yaml(path: Path) -> Any:
    from moc.kernel import yaml_text

    try:
        return yaml_text.load(path.read_bytes(), str(path))
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read: {error.strerror}") from None
    except InvalidRequest as error:
        raise typer.BadParameter(error.message) from None
