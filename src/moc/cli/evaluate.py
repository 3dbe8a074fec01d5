"""`moc evaluate`: models are measured by suites, and two runs are compared."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from moc.cli import screen
from moc.cli.session import JsonOption, Session, connected
from moc.cli.uploads import Uploads
from moc.client.evaluation_views import EvaluationView, TaskComparisonView, TaskScoreView
from moc.client.job_views import UNDONE
from moc.kernel.errors import InvalidRequest

app = typer.Typer(
    help="Measure models by suites, and compare what came out.", no_args_is_help=True, rich_markup_mode=None
)

EvaluationArgument = Annotated[str, typer.Argument(metavar="ID", help="The id of an evaluation.")]
OutsideOption = Annotated[
    bool, typer.Option("--allow-outside", help="Send files that do not lie below the suite's folder, too.")
]


@app.command("run")
@connected
def run_evaluation(
    session: Session,
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="A model, a version of one, or an alias.")],
    suite: Annotated[Path, typer.Option("--suite", metavar="FILE", help="What it is asked, as YAML.")],
    priority: Annotated[int, typer.Option("--priority", min=1, max=10, help="1 is the highest.")] = 5,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of what is drawn at random.")] = 0,
    allow_outside: OutsideOption = False,
    waited: Annotated[bool, typer.Option("--wait", help="Return when it is done; exit with 1 if it fails.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Begin to measure a model; files that the suite names are sent along."""
    with session.client() as client:
        with Uploads(client) as uploads:
            document = suite_document(suite, uploads, allow_outside)
            evaluation = client.evaluations.run(model, document, priority=priority, seed=seed)
        if waited:
            screen.note(f"evaluation {evaluation['id']} of {model} by {evaluation['suite']}")
            client.jobs.wait(evaluation["id"])
            evaluation = client.evaluations.show(evaluation["id"])
    _show(evaluation, as_json)
    if evaluation["status"] in UNDONE:
        raise typer.Exit(1)


@app.command("list")
@connected
def list_evaluations(session: Session, as_json: JsonOption = False) -> None:
    """List the evaluations there are, oldest first."""
    with session.client() as client:
        found = screen.every(lambda after: client.evaluations.list(after=after))
    if as_json:
        screen.json({"evaluations": found, "next": None})
        return
    rows = [
        (
            evaluation["id"],
            evaluation["model"],
            evaluation["suite"],
            evaluation["status"],
            "" if evaluation["score"] is None else f"{evaluation['score']:.4g}",
            evaluation["created_at"],
        )
        for evaluation in found
    ]
    screen.table(("id", "model", "suite", "status", "score", "created"), rows)


@app.command("show")
@connected
def show_evaluation(session: Session, evaluation: EvaluationArgument, as_json: JsonOption = False) -> None:
    """Show what an evaluation came to, task by task."""
    with session.client() as client:
        _show(client.evaluations.show(evaluation), as_json)


@app.command("items")
@connected
def list_items(
    session: Session,
    evaluation: EvaluationArgument,
    task: Annotated[str | None, typer.Option("--task", metavar="NAME", help="Only those of this task.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only those that were not right.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List what came of each item."""
    with session.client() as client:
        found = screen.every(
            lambda after: client.evaluations.items(evaluation, task=task, failed=failed, after=after, limit=1000)
        )
    if as_json:
        screen.json({"items": found, "next": None})
        return
    rows = [
        (
            item["task"],
            item["id"],
            "" if item["score"] is None else f"{item['score']:.4g}",
            _short(item["expected"]),
            _short(item["error"] or item["got"]),
            f"{item['latency_ms']:.0f}",
        )
        for item in found
    ]
    screen.table(("task", "item", "score", "expected", "got", "ms"), rows)


@app.command("compare")
@connected
def compare_evaluations(
    session: Session,
    a: Annotated[str, typer.Argument(metavar="A", help="An evaluation.")],
    b: Annotated[str, typer.Argument(metavar="B", help="One by the same suite.")],
    as_json: JsonOption = False,
) -> None:
    """Say by how much B differs from A in each task, and how likely that is by chance."""
    with session.client() as client:
        comparison = client.evaluations.compare(a, b)
    if as_json:
        screen.json(comparison)
        return
    rows = [(name, *_compared(task)) for name, task in comparison["tasks"].items()]
    for warning in comparison["warnings"]:
        screen.note(warning)
    columns = ("task", "metric", "a", "b", "difference", "95 %", "p", "test", "items", "only a", "only b")
    screen.table(columns, rows)


def suite_document(path: Path, uploads: Uploads, allow_outside: bool) -> dict[str, Any]:
    """What the suite at `path` says, the files it names uploaded; InvalidRequest with the line of what is wrong."""
    from moc.kernel import yaml_text
    from moc.learning.suite import Suite, check_items

    text = _text(path)
    document = yaml_text.load(text, str(path))
    files = _files(document, path, allow_outside)
    try:
        suite = Suite.parse(document)
    except InvalidRequest as error:
        raise InvalidRequest(f"{path}:{_line(text, error.details['place'])}: {error.message}") from None
    try:
        check_items(suite, {name: Path(name) for name in files}, {name: name for name in files})
    except OSError as error:
        raise InvalidRequest(f"{error.filename} cannot be read: {error.strerror}") from None
    for name in files:
        screen.note(f"sending {name}")
    sent = {name: uploads.add(Path(name), purpose="evals") for name in files}
    for task in document["tasks"]:
        if task.get("data", {}).get("file") in sent:
            task["data"] = {"file": sent[task["data"]["file"]]}
    return dict(document)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidRequest(f"{path} cannot be read: it is not UTF-8 text") from None


def _files(document: Any, path: Path, allow_outside: bool) -> Sequence[str]:
    """The files that tasks have their items in, once each; tasks of the harness get what their own file says."""
    from moc.kernel import yaml_text

    found: dict[str, None] = {}
    tasks = document.get("tasks") if isinstance(document, dict) else None
    for task in [task for task in tasks if isinstance(task, dict)] if isinstance(tasks, list) else []:
        if isinstance(task.get("config"), str):
            config = _beside(path, task["config"], allow_outside)
            task["config"] = yaml_text.load(_text(config), str(config))
        if isinstance(task.get("data"), str):
            data = _beside(path, task["data"], allow_outside)
            if not data.is_file():
                raise InvalidRequest(f"{path}: there is no file {data}")
            found[str(data)] = None
            task["data"] = {"file": str(data)}
    return list(found)


def _beside(suite: Path, name: str, allow_outside: bool) -> Path:
    """What a suite calls so; InvalidRequest where that would send what its author may not know of."""
    path = suite.parent / name
    if not (allow_outside or path.resolve().is_relative_to(suite.parent.resolve())):
        raise InvalidRequest(
            f"{suite}: {name} does not lie below its folder; give --allow-outside to send it all the same"
        )
    return path


def _line(text: str, place: str) -> int:
    """The line of a place such as `$.tasks[0].items[1]`, or of what it is in."""
    import yaml

    node = yaml.compose(text, yaml.SafeLoader)
    for name in place.replace("[", ".").replace("]", "").split(".")[1:]:
        if isinstance(node, yaml.SequenceNode) and name.isdecimal() and int(name) < len(node.value):
            node = node.value[int(name)]
        elif isinstance(node, yaml.MappingNode):
            node = next((value for key, value in node.value if key.value == name), node)
    return node.start_mark.line + 1 if node is not None else 1


def _show(evaluation: EvaluationView, as_json: bool) -> None:
    if as_json:
        screen.json(evaluation)
        return
    score = evaluation["score"]
    screen.fields(
        [
            ("id", evaluation["id"]),
            ("model", evaluation["model"]),
            ("suite", evaluation["suite"]),
            ("status", evaluation["status"]),
            ("waits for", evaluation["waits_for"]),
            ("message", evaluation["message"]),
            ("warnings", "; ".join(evaluation["warnings"])),
            ("items", _progress(evaluation["done"], evaluation["total"])),
            ("score", "" if score is None else f"{score:.4g}"),
            ("created", f"{evaluation['created_at']} by {evaluation['created_by_name']}"),
            ("finished", evaluation["finished_at"] or ""),
        ]
    )
    if evaluation["tasks"]:
        rows = [(name, *_told(task)) for name, task in evaluation["tasks"].items()]
        screen.table(("task", "metric", "score", "stderr", "95 %", "items", "errors"), rows)


def _told(task: TaskScoreView) -> tuple[str, ...]:
    stderr = "" if task["stderr"] is None else f"{task['stderr']:.2g}"
    score, interval = f"{task['score']:.4g}", _interval(task["ci95"])
    return task["metric"], score, stderr, interval, str(task["n"]), str(task["errors"])


def _compared(task: TaskComparisonView) -> tuple[str, ...]:
    numbers = (f"{task['a']:.4g}", f"{task['b']:.4g}", f"{task['difference']:+.4g}", _interval(task["ci95"]))
    alone = ("" if count is None else str(count) for count in (task["only_a"], task["only_b"]))
    return task["metric"], *numbers, f"{task['p_value']:.3g}", task["test"], str(task["n"]), *alone


def _progress(done: int, total: int) -> str:
    """How far it is; the total is 0 where the harness asks."""
    return f"{done}/{total}" if total else str(done or "")


def _interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"{bounds[0]:.4g} to {bounds[1]:.4g}"


def _short(value: Any) -> str:
    text = "" if value is None else value if isinstance(value, str) else str(value)
    return screen.short(text)
