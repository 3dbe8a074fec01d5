"""The nouns: a suite of tasks that a model is measured by, and their items."""

import difflib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, get_args

import msgspec

from moc.kernel import choices
from moc.kernel.errors import InvalidRequest

ITEMS_MAX: Final = 100_000
TASKS_MAX: Final = 100
LINE_MAX_BYTES: Final = 1024**2
HARNESS_KEYS: Final = frozenset(
    {
        *("output_type", "doc_to_text", "doc_to_target", "doc_to_choice", "description", "target_delimiter"),
        *("fewshot_delimiter", "num_fewshot", "generation_kwargs", "metric_list", "filter_list", "repeats"),
        *("gen_prefix", "task"),
    }
)
"""What a task of the harness may say: nothing that would run code of its own, and no data but the task's file."""

HARNESS_OUTPUTS: Final = ("generate_until", "loglikelihood", "loglikelihood_rolling", "multiple_choice")
HARNESS_METRIC_KEYS: Final = frozenset(
    {"metric", "aggregation", "higher_is_better", "ignore_case", "ignore_punctuation", "ignore_numbers"}
    | {"regexes_to_ignore", "multi_target"}
)
HARNESS_METRICS: Final = frozenset(
    {
        *("acc", "acc_norm", "acc_mutual_info", "acc_bytes", "acc_all", "exact_match", "f1", "mcc", "brier_score"),
        *("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "likelihood", "bleu", "chrf", "ter"),
    }
)
"""Metrics that the harness has in itself; another one it would fetch, and run what it got."""

HARNESS_LENGTHS: Final = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""How a task may call the length of an answer; the first one given counts."""

HARNESS_GENERATION_KEYS: Final = frozenset({*HARNESS_LENGTHS, "until", "do_sample", "temperature", "top_p", "seed"})

_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_PLACE: Final = re.compile(r" - at `(?:key in )?(\$[^`]*)`")
_UNKNOWN: Final = re.compile(r"unknown field `([^`]*)`")

Name = Annotated[str, msgspec.Meta(pattern=_NAME)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Ignored = Literal["case", "whitespace", "punctuation"]


class _Noun(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Message(_Noun, frozen=True, kw_only=True):
    """A message of a conversation."""

    role: str
    content: str


class Prompt(_Noun, frozen=True, kw_only=True):
    """What is asked: a text, or the messages of a chat. `id` names it among the items, its place when it has none."""

    prompt: str | tuple[Message, ...]
    id: str = ""


class Question(Prompt, frozen=True, kw_only=True):
    """With the right answer, or several."""

    expected: str | tuple[str, ...]

    @property
    def right(self) -> tuple[str, ...]:
        """The right answers."""
        return (self.expected,) if isinstance(self.expected, str) else self.expected


class Choice(_Noun, frozen=True, kw_only=True):
    """A text with several continuations, of which the one `answer` names, by its place from 0 or itself, is right."""

    prompt: Annotated[str, msgspec.Meta(min_length=1)]
    choices: Annotated[tuple[str, ...], msgspec.Meta(min_length=2, max_length=64)]
    answer: int | str
    id: str = ""

    @property
    def right(self) -> int:
        """The place of the right one; InvalidRequest when it is none of them."""
        if isinstance(self.answer, int) and 0 <= self.answer < len(self.choices):
            return self.answer
        if self.answer in self.choices:
            return self.choices.index(str(self.answer))
        raise InvalidRequest(f"`answer` is {self.answer!r}, which is none of the {len(self.choices)} choices")


class Text(_Noun, frozen=True, kw_only=True):
    """A text whose probability is wanted."""

    text: Annotated[str, msgspec.Meta(min_length=1)]
    id: str = ""


class Stored(_Noun, frozen=True, kw_only=True):
    """Items that are in a file, one JSON object a line; `file` is its id."""

    file: str


class _Task(_Noun, frozen=True, kw_only=True, tag_field="type"):
    name: Name
    data: Stored | None = None
    limit: Positive | None = None
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=256)] | None = None


class _Asking(_Task, frozen=True, kw_only=True):
    """Has the model answer; what is not said here is as the suite's defaults say. `api` is chat or completion."""

    api: Literal["chat", "completion"] = "chat"
    system: str | None = None
    max_tokens: Positive | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


class ExactMatch(_Asking, frozen=True, kw_only=True, tag="exact_match"):
    """The answer is an expected one, but for what is `ignore`d."""

    ignore: tuple[Ignored, ...] = ()
    items: tuple[Question, ...] = ()


class Contains(_Asking, frozen=True, kw_only=True, tag="contains"):
    """An expected text, or with `all` every one, is in the answer."""

    ignore: tuple[Ignored, ...] = ()
    all: bool = False
    items: tuple[Question, ...] = ()


class Regex(_Asking, frozen=True, kw_only=True, tag="regex"):
    """An expected pattern is found in the answer, or with `whole` is all of it."""

    whole: bool = False
    items: tuple[Question, ...] = ()


class JsonSchema(_Asking, frozen=True, kw_only=True, tag="json_schema"):
    """The answer is JSON that the schema allows. With `constrain` the model is asked for such an answer."""

    schema: dict[str, Any]
    constrain: bool = False
    items: tuple[Prompt, ...] = ()


class MultipleChoice(_Task, frozen=True, kw_only=True, tag="multiple_choice"):
    """The right continuation is the likeliest one, as a whole or for each of its `tokens` or `characters`.

    A choice stands behind the prompt and `joiner`.
    """

    normalise: Literal["none", "tokens", "characters"] = "none"
    joiner: str = " "
    items: tuple[Choice, ...] = ()


class Perplexity(_Task, frozen=True, kw_only=True, tag="perplexity"):
    """How unlikely texts are to the model; the first token of each is not counted, for nothing stands before it."""

    items: tuple[Text, ...] = ()


class Latency(_Asking, frozen=True, kw_only=True, tag="latency"):
    """How long answers take; each prompt is asked `repeat` times."""

    repeat: Positive = 1
    items: tuple[Prompt, ...] = ()


class Harness(_Task, frozen=True, kw_only=True, tag="harness"):
    """A task of the lm-evaluation-harness: its YAML as `config`, over the rows of the file."""

    config: dict[str, Any]


Task = ExactMatch | Contains | Regex | JsonSchema | MultipleChoice | Perplexity | Latency | Harness
Item = Question | Prompt | Choice | Text
Answering = ExactMatch | Contains | Regex | JsonSchema


class Defaults(_Noun, frozen=True, kw_only=True):
    """What tasks that say nothing else have."""

    system: str = ""
    max_tokens: Positive = 128
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] = 0.0
    seed: int = 0
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=256)] = 4


class Suite(_Noun, frozen=True, kw_only=True):
    """Tasks, each with its items here or in a file."""

    name: Name
    tasks: Annotated[tuple[Task, ...], msgspec.Meta(min_length=1, max_length=TASKS_MAX)]
    defaults: Defaults = Defaults()

    @classmethod
    def parse(cls, document: Any) -> "Suite":
        """The suite a document says; InvalidRequest with where it is wrong, the `place` in the details too."""
        suite = _converted(document, cls, "")
        names = [task.name for task in suite.tasks]
        if len(set(names)) < len(names):
            raise _wrong("two tasks have the same name", "$.tasks")
        for number, task in enumerate(suite.tasks):
            _check_task(task, f"$.tasks[{number}]")
        return suite

    @property
    def files(self) -> list[str]:
        """The ids of the files it is in, besides itself."""
        return [task.data.file for task in self.tasks if task.data is not None]

    def with_contents(self, sha256: Mapping[str, str]) -> dict[str, Any]:
        """What it says, each file named by its content: the same for suites that measure the same."""
        document: dict[str, Any] = msgspec.to_builtins(self)
        for task in document["tasks"]:
            if task["data"] is not None:
                task["data"] = {"sha256": sha256[task["data"]["file"]]}
        return document


ITEMS: Final[Mapping[type, type]] = {
    ExactMatch: Question,
    Contains: Question,
    Regex: Question,
    JsonSchema: Prompt,
    MultipleChoice: Choice,
    Perplexity: Text,
    Latency: Prompt,
}
"""What the items of a task are."""


def normalised(text: str, ignore: Sequence[str]) -> str:
    """A text without what is to make no difference; white space around it never does."""
    if "case" in ignore:
        text = text.casefold()
    if "punctuation" in ignore:
        text = "".join(character for character in text if not unicodedata.category(character).startswith("P"))
    if "whitespace" in ignore:
        text = " ".join(text.split())
    return text.strip()


def items_of(task: Task, paths: Mapping[str, Path], names: Mapping[str, str] | None = None) -> list[Any]:
    """All items of a task, each with its id; those of the file after those of the suite. InvalidRequest as it says.

    `names` are what the files are called where something is wrong with one, by their ids.
    """
    kind = ITEMS[type(task)]
    found = [*getattr(task, "items", ())]
    if task.data is not None:
        path = paths[task.data.file]
        rows = _rows(task.name, path, (names or {}).get(task.data.file, path.name), kind)
        found += [_checked_item(task, row, where) for where, row in rows]
    found = [item if item.id else msgspec.structs.replace(item, id=str(place)) for place, item in enumerate(found)]
    found = found[: task.limit]
    if not found:
        raise InvalidRequest(f"the task {task.name} has no items")
    if len({item.id for item in found}) < len(found):
        raise InvalidRequest(f"two items of the task {task.name} have the same id")
    return found


def check_items(suite: Suite, paths: Mapping[str, Path], names: Mapping[str, str]) -> None:
    """InvalidRequest with the name and the line of what is wrong in a file; tasks of others than `paths` are left."""
    for task in suite.tasks:
        if isinstance(task, Harness):  # whose rows may be anything
            continue
        if task.data is None or task.data.file in paths:
            items_of(task, paths, names)


def _rows(task: str, path: Path, name: str, kind: type) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(LINE_MAX_BYTES + 1), b""), 1):
            where = f"{name}:{number}: the task {task}"
            if number > ITEMS_MAX or len(line) > LINE_MAX_BYTES:
                raise InvalidRequest(f"{where}: at most {ITEMS_MAX} lines of {LINE_MAX_BYTES} bytes are read")
            if line.strip():
                try:
                    yield where, _converted(msgspec.json.decode(line), kind, where)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    raise InvalidRequest(f"{where}: no JSON: {error}") from None


T = TypeVar("T")


def _converted(document: Any, kind: type[T], where: str) -> T:
    try:
        return msgspec.convert(document, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        told = choices.told(error, kind) if isinstance(error, msgspec.ValidationError) else str(error)
        place = found[1] if (found := _PLACE.search(told)) else "$"
        told = _PLACE.sub("", told)
        raise _wrong(told + _nearest(told, document, place), place, where) from None


def _wrong(told: str, place: str, where: str = "") -> InvalidRequest:
    before = ": ".join(filter(None, (where, place.removeprefix("$").removeprefix("."))))
    return InvalidRequest(f"{before}: {told}" if before else told, details={"place": place})


def _nearest(told: str, document: Any, place: str) -> str:
    """What an unknown key was probably to be, or what there is."""
    if place.endswith(".type"):
        return f"; there are {', '.join(kind.__struct_config__.tag for kind in get_args(Task))}"
    unknown = _UNKNOWN.search(told)
    if unknown is None:
        return ""
    every = {name for noun in _every_noun(_Noun) for name in noun.__struct_fields__} | {"type"}
    close = difflib.get_close_matches(unknown[1], sorted(every), 1)
    return f"; did you mean `{close[0]}`?" if close else ""


def _every_noun(noun: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    for kind in noun.__subclasses__():
        yield kind
        yield from _every_noun(kind)


def _check_task(task: Task, place: str) -> None:
    items = getattr(task, "items", ())
    if not items and task.data is None:
        raise _wrong("there is neither `items` nor `data`", place)
    if isinstance(task, Harness):
        _check_harness(task, f"{place}.config")
    if isinstance(task, JsonSchema):
        _check_schema(task.schema, f"{place}.schema")
    for number, item in enumerate(items):
        _checked_item(task, item, f"{place}.items[{number}]")


def _check_schema(schema: Mapping[str, Any], place: str) -> None:
    """InvalidRequest unless it is a JSON schema, as far as there is what knows one."""
    if find_spec("jsonschema") is None:  # an extra, without which no such task is begun
        return
    import jsonschema

    try:
        jsonschema.validators.validator_for(schema).check_schema(schema)
    except jsonschema.SchemaError as error:
        named = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path)
        told = " or ".join(one.message for one in error.context or [error])
        raise _wrong(f"is not a JSON schema: {' '.join(told.split())[:300]}", place + named) from None
    except (AttributeError, TypeError, ValueError):
        raise _wrong("is not a JSON schema: what it names as its own schema is none", f"{place}.$schema") from None
    except RecursionError:
        raise _wrong("is not a JSON schema: is nested too deeply", place) from None


def _check_harness(task: Harness, place: str) -> None:
    _check_keys(task.config, HARNESS_KEYS, place)
    output = task.config.get("output_type", HARNESS_OUTPUTS[0])
    if output not in HARNESS_OUTPUTS:
        raise _wrong(f"{output!r} is none of {', '.join(HARNESS_OUTPUTS)}", f"{place}.output_type")
    generation = task.config.get("generation_kwargs") or {}
    if not isinstance(generation, dict):
        raise _wrong("is a mapping such as {until: [.]}", f"{place}.generation_kwargs")
    _check_keys(generation, HARNESS_GENERATION_KEYS, f"{place}.generation_kwargs")
    metrics = task.config.get("metric_list", [])
    if not isinstance(metrics, list) or not all(isinstance(entry, dict) for entry in metrics):
        raise _wrong("is a list of mappings such as {metric: acc}", f"{place}.metric_list")
    for number, entry in enumerate(metrics):
        _check_keys(entry, HARNESS_METRIC_KEYS, f"{place}.metric_list[{number}]")
        if entry.get("metric") not in HARNESS_METRICS:
            told = f"{entry.get('metric')!r} is not taken; there are {', '.join(sorted(HARNESS_METRICS))}"
            raise _wrong(told, f"{place}.metric_list[{number}].metric")


def _check_keys(given: Mapping[str, Any], known: frozenset[str], place: str) -> None:
    unknown = sorted(given.keys() - known)
    if unknown:
        raise _wrong(f"`{unknown[0]}` is not taken; there are {', '.join(sorted(known))}", place)


def _checked_item(task: Task, item: T, place: str) -> T:
    """The item; InvalidRequest when what it expects cannot be."""
    try:
        if isinstance(item, Choice):
            _ = item.right
        if isinstance(task, Regex) and isinstance(item, Question):
            for pattern in item.right:
                re.compile(pattern)
    except InvalidRequest as error:
        raise _wrong(error.message, place) from None
    except re.error as error:
        raise _wrong(f"{error.pattern!r} is no pattern: {error}", place) from None
    if isinstance(item, Question) and not item.right:
        raise _wrong("`expected` names nothing", place)
    if isinstance(item, Question) and not all(_says(task, expected) for expected in item.right):
        raise _wrong("an `expected` says nothing, so that every answer would be right", place)
    if isinstance(task, _Asking) and task.api == "completion" and not isinstance(getattr(item, "prompt", ""), str):
        raise _wrong("messages are for the chat API; give a text, or `api: chat`", place)
    return item


def _says(task: Task, expected: str) -> bool:
    """Whether there are answers that it is not found in."""
    if isinstance(task, Contains):
        return normalised(expected, task.ignore) != ""
    return not isinstance(task, Regex) or task.whole or expected != ""
