"""`moc data`: whether a file of rows is fit to learn from, told before anything is sent anywhere."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moc.cli import screen
from moc.cli.progress import elapsed
from moc.cli.session import JsonOption, Session, connected
from moc.kernel.errors import InvalidRequest

if TYPE_CHECKING:
    from moc.client import AsyncClient
    from moc.learning.dataset import Leak, Lengths, Report
    from moc.learning.rows import Flaw, Format, Row

app = typer.Typer(help="Look at rows to learn from.", no_args_is_help=True, rich_markup_mode=None)

AT_ONCE = 16
"""How many rows are made tokens of at once."""

SHOWN_MAX = 20
"""How many findings of a kind a person is shown; --json has more."""

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="JSON Lines: one JSON object a line.")]
FormatOption = Annotated[
    str | None, typer.Option("--format", metavar="FORMAT", help="chat, preference or text; else as it looks.")
]


@app.command("check")
@connected
def check_data(
    session: Session,
    file: FileArgument,
    validation: Annotated[
        Path | None, typer.Option("--validation", metavar="FILE", help="Rows that the training is to be measured on.")
    ] = None,
    format_name: FormatOption = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Count tokens as this model does.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option("--max-length", metavar="N", min=1, help="Tell how many rows have more tokens.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell what is wrong with rows, line by line, and what they hold; exits with 1 when some cannot be learned from."""
    from moc.learning.dataset import leaks

    if max_length is not None and model is None:
        raise typer.BadParameter("tokens are counted as a --model does", param_hint="--max-length")
    paths = [file] if validation is None else [file, validation]
    with elapsed("reading"):
        reports = [_read(path, _format(format_name)) for path in paths]
    leaked = leaks(reports[0], reports[1]) if validation else []
    tokens = [None] * len(paths) if model is None else asyncio.run(_count(session, model, paths, reports))
    if as_json:
        screen.json(_document(paths, reports, tokens, max_length, leaked))
    else:
        for path, report, counts in zip(paths, reports, tokens, strict=True):
            _tell(path, report, counts, max_length)
        _tell_leaks(leaked)
    if any(report.errors.count or not report.rows for report in reports):
        raise typer.Exit(1)


@app.command("split")
def split_data(
    file: FileArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the two files go.")],
    share: Annotated[
        float,
        typer.Option("--share", metavar="PERCENT", max=90, help="How many of 100 rows are for validation; 1 or more."),
    ] = 10,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Another one, another split.")] = 0,
    format_name: FormatOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the two files if they are there.")] = False,
) -> None:
    """Part rows into train.jsonl and valid.jsonl; rows that ask the same stay together."""
    from moc.learning.dataset import split
    from moc.learning.rows import Row, rows

    if not share >= 1:
        raise typer.BadParameter(f"{share:g} is less than 1 %; give percent, such as 10", param_hint="--share")
    _read(file, _format(format_name)).check(str(file))
    targets = [output / "train.jsonl", output / "valid.jsonl"]
    for target in targets:
        _check_target(target, file, force)
    found = [row for row in rows(file, _format(format_name)) if isinstance(row, Row)]
    parts = split(found, share / 100, seed)
    if not all(parts):
        raise InvalidRequest(f"{file} cannot be parted: it has {_asking(found)}, and nothing is left to validate with")
    for target, part in zip(targets, parts, strict=True):
        _write(target, part)
        screen.line(f"{target}: {len(part)} rows")


def _format(name: str | None) -> "Format | None":
    from moc.learning.rows import Format

    if name is None or name in tuple(Format):
        return None if name is None else Format(name)
    raise typer.BadParameter(f"{name!r} is none of {', '.join(Format)}", param_hint="--format")


def _read(path: Path, wanted: "Format | None") -> "Report":
    from moc.learning.dataset import read

    try:
        return read(path, wanted)
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from None


def _check_target(target: Path, source: Path, force: bool) -> None:
    """InvalidRequest when what is there already would be lost."""
    if not target.exists():
        return
    if target.samefile(source):
        raise InvalidRequest(f"{target} would replace the rows that are parted; give another folder to --output")
    if not force:
        raise InvalidRequest(f"{target} is there already; give --force to replace it, or another folder to --output")


def _asking(found: "Sequence[Row]") -> str:
    return "one row" if len(found) == 1 else f"{len(found)} rows that all ask the same"


def _write(path: Path, part: "Sequence[Row]") -> None:
    import msgspec

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(msgspec.json.encode(row.value) + b"\n" for row in part))
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be written: {error.strerror}") from None


# tokens


async def _count(session: Session, model: str, paths: Sequence[Path], reports: "Sequence[Report]") -> list[list[int]]:
    """The tokens of every good row of each file."""
    async with session.async_client() as client:
        with elapsed(f"counting tokens as {model} does"):
            return [
                await _count_all(client, model, path, report.format)
                for path, report in zip(paths, reports, strict=True)
            ]


async def _count_all(client: "AsyncClient", model: str, path: Path, wanted: "Format") -> list[int]:
    from moc.learning.rows import Row, rows

    values = (row.value for row in rows(path, wanted) if isinstance(row, Row))

    async def count() -> list[int]:
        return [await _count_row(client, model, value) for value in values]  # whoever is free takes the next

    counting = [asyncio.create_task(count()) for _ in range(AT_ONCE)]
    try:
        return [tokens for counts in await asyncio.gather(*counting) for tokens in counts]
    finally:
        for task in counting:
            task.cancel()
        await asyncio.gather(*counting, return_exceptions=True)


async def _count_row(client: "AsyncClient", model: str, value: dict[str, Any]) -> int:
    """The tokens of a row; of two answers the longer one counts."""
    if "chosen" not in value:
        return await _count_text(client, model, value.get("messages", value.get("text")))
    prompt = value["prompt"]
    return max([await _count_text(client, model, prompt + value[answer]) for answer in ("chosen", "rejected")])


async def _count_text(client: "AsyncClient", model: str, said: Any) -> int:
    if isinstance(said, str):
        return (await client.tokenize(model, said))["count"]
    return (await client.tokenize(model, said, add_generation_prompt=False))["count"]


# what is told


def _document(
    paths: Sequence[Path],
    reports: "Sequence[Report]",
    tokens: Sequence[list[int] | None],
    max_length: int | None,
    leaked: "Sequence[Leak]",
) -> dict[str, Any]:
    from moc.learning.dataset import Lengths

    return {
        "files": [
            {
                "file": str(path),
                "format": report.format,
                "rows": report.rows,
                "errors": report.errors,
                "warnings": report.warnings,
                "repeats": {"told": report.repeats, "count": report.repeat_count},
                "characters": report.characters,
                "tokens": None if counts is None else Lengths.of(counts),
                "too_long": None if counts is None or max_length is None else _too_long(counts, max_length),
                "roles": report.roles,
                "hints": report.hints,
            }
            for path, report, counts in zip(paths, reports, tokens, strict=True)
        ],
        "leaks": leaked,
    }


def _tell(path: Path, report: "Report", counts: list[int] | None, max_length: int | None) -> None:
    from moc.learning.dataset import Lengths

    roles = ", ".join(f"{count} of {role}" for role, count in report.roles.items())
    told = counts is not None and Lengths.of(counts)
    screen.line(str(path))
    screen.fields(
        [
            ("format", report.format),
            ("rows", f"{report.rows} good, {report.errors.count} broken"),
            ("messages", roles),
            ("characters", _lengths(report.characters)),
            ("tokens", _lengths(told) if told else ""),
            ("repeated", str(report.repeat_count or "")),
        ]
    )
    _tell_flaws("error", report.errors.told, report.errors.count)
    _tell_flaws("warning", report.warnings.told, report.warnings.count)
    repeats = [
        (repeat.line, f"says what line {repeat.first} says" + ("" if repeat.exact else ", but for case and spaces"))
        for repeat in report.repeats
    ]
    _tell_lines("repeat", repeats, report.repeat_count)
    if counts is not None and max_length is not None and (many := _too_long(counts, max_length)):
        done = "learned in parts" if report.format == "text" else "cut"
        screen.line(f"hint: {many} of {len(counts)} rows have more than {max_length} tokens, and would be {done}")
    for hint in report.hints:
        screen.line(f"hint: {hint}")


def _tell_leaks(leaked: "Sequence[Leak]") -> None:
    said = {True: "is line {} of the training, too", False: "asks what line {} of the training asks"}
    found = [(leak.validation, said[leak.exact].format(leak.training)) for leak in leaked]
    _tell_lines("leak: validation", found, len(found))


def _tell_flaws(kind: str, flaws: "Sequence[Flaw]", count: int) -> None:
    _tell_lines(kind, [(flaw.line, flaw.message) for flaw in flaws], count)


def _tell_lines(kind: str, found: Sequence[tuple[int, str]], count: int) -> None:
    """Each with its line first, as compilers do."""
    for line, message in found[:SHOWN_MAX]:
        screen.line(f"line {line}: {kind}: {message}")
    if count > SHOWN_MAX:
        screen.line(f"… and {count - SHOWN_MAX} more of these")


def _lengths(lengths: "Lengths | None") -> str:
    if lengths is None:
        return ""
    return f"{lengths.min} to {lengths.max}, mean {lengths.mean:.0f}, median {lengths.p50}, 95 % up to {lengths.p95}"


def _too_long(counts: Sequence[int], max_length: int) -> int:
    return sum(count > max_length for count in counts)
