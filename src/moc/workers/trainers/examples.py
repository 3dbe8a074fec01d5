"""What trainings learn from: rows as tokens, with labels where there is something to learn, or in a prompt and answers.

In a conversation that is what the assistant says, if the chat template lets it be found: a template writes turn after
turn, so what it adds for one is the difference between the conversation with it and the one before it. Some write a
turn otherwise once others follow, most often without its thoughts. Such a turn is learned as the end of a conversation,
which is how the model says it, and only read in the others.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from jinja2 import TemplateError

from moc.kernel.errors import InvalidRequest

IGNORED = -100
"""The label of a token that is read and not learned."""

Example = tuple[list[int], list[int]]
"""The ids and the labels."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows with `input_ids` and `labels`, or with the ids of `prompt`, `chosen` and `rejected`.

    Told is how many examples were `cut`, and how many taught nothing (`empty`), which are left out. Of the rows, told
    is how many became several examples (`parted`), and for how many nobody can tell who says what, so that all of them
    is learned, or where an answer begins, so that the end of the prompt belongs to it (`blurred`). Rows for which that
    would teach what has the weight 0 are left out (`refused`).
    """

    rows: list[dict[str, list[int]]]
    cut: int
    empty: int
    blurred: int
    parted: int = 0
    refused: int = 0

    @property
    def count(self) -> int:
        """How many examples there were before those that teach nothing were left out."""
        return len(self.rows) + self.empty


class Encoder:
    """Makes examples with a tokenizer, of up to `max_length` tokens; all begin with the token `first` if given."""

    def __init__(self, tokenizer: Any, *, max_length: int, first: int | None = None) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._first = first

    def encode(self, rows: Sequence[Mapping[str, Any]], *, assistant_only: bool | str) -> Examples:
        """The examples of rows of text or chat; `assistant_only` is true, false or `auto`.

        InvalidRequest when they have no turns of an assistant that can be told from the rest, and must.
        """
        told = Counter[str]()
        encoded = list[Example]()
        for row in rows:
            found = None if assistant_only is False or "messages" not in row else self._answers(row)
            if found is None and assistant_only is True:
                raise InvalidRequest(
                    "assistant_only_loss is true, and the turns of the assistant cannot be told from the rest: the "
                    "data is no chat, or the model's chat template writes what is before them differently"
                )
            if found is None:
                found = self._whole(row) if "messages" in row else self._windows(row["text"])
                told["blurred"] += bool(found) and assistant_only is not False and "messages" in row
            told["parted"] += len(found) > 1
            told["refused"] += not found
            encoded += found
        cut = sum(len(ids) > self._max_length for ids, _ in encoded)
        short = [
            {"input_ids": ids[: self._max_length], "labels": labels[: self._max_length]} for ids, labels in encoded
        ]
        teaching = [row for row in short if any(label != IGNORED for label in row["labels"][1:])]
        empty = len(short) - len(teaching)
        return Examples(teaching, cut, empty, told["blurred"], told["parted"], told["refused"])

    def left_out(self, row: Mapping[str, Any]) -> str | None:
        """What the chat template passes by of a row about tools, so that something else would be learned."""
        for talk in _talks(row):
            for name, bare in _without(talk):
                try:
                    if self._render(talk, len(talk["messages"])) == self._render(bare, len(bare["messages"])):
                        return name
                except InvalidRequest:  # what looks for it does not pass it by
                    continue
        return None

    def prefer(self, rows: Sequence[Mapping[str, Any]]) -> Examples:
        """The examples of rows of preferences; one whose answers are the same once they are cut teaches nothing."""
        found, cut, blurred = list[dict[str, list[int]]](), 0, 0
        for row in rows:
            prompt, chosen, rejected = self._sides(row)
            begin = min(_common(prompt, chosen), _common(prompt, rejected))
            blurred += begin < len(prompt)
            cut += max(len(chosen), len(rejected)) > self._max_length
            chosen, rejected = chosen[: self._max_length], rejected[: self._max_length]
            if begin < min(len(chosen), len(rejected)) and chosen != rejected:
                answers = {"chosen_ids": chosen[begin:], "rejected_ids": rejected[begin:]}
                found.append({"prompt_ids": prompt[:begin], **answers})
        return Examples(found, cut, len(rows) - len(found), blurred)

    def _sides(self, row: Mapping[str, Any]) -> tuple[list[int], list[int], list[int]]:
        """The prompt, and the prompt with each of its answers."""
        prompt, chosen, rejected = row["prompt"], row["chosen"], row["rejected"]
        if isinstance(prompt, str):
            return self._ids(prompt), self._ended(prompt + chosen), self._ended(prompt + rejected)
        talk = [{**row, "messages": messages} for messages in (prompt, prompt + chosen, prompt + rejected)]
        texts = [self._render(each, len(each["messages"]), prompt=each is talk[0]) for each in talk]
        asked, better, worse = (self._begun(self._tokenizer(text, add_special_tokens=False)) for text in texts)
        return asked, better, worse

    def _answers(self, row: Mapping[str, Any]) -> list[Example] | None:
        """The examples in which each answer of a conversation is learned once; None if one cannot be told in any."""
        render = cache(partial(self._render, row))
        left = [at for at in _assistant(row) if _is_learned(row, at)]
        found = list[Example]()
        while left:
            text = render(left[-1] + 1)
            spans = {at: span for at in left if (span := _span(render, text, at))}
            if left[-1] not in spans:
                return None
            found.append(self._labelled(text, list(spans.values()), learned=True))
            left = [at for at in left if at not in spans]
        return found[::-1]

    def _whole(self, row: Mapping[str, Any]) -> list[Example]:
        """A conversation of which all is learned but what has the weight 0; none if that cannot be told."""
        render = cache(partial(self._render, row))
        text = render(len(row["messages"]))
        spans = [_span(render, text, at) for at in _assistant(row) if not _is_learned(row, at)]
        known = [span for span in spans if span]
        return [self._labelled(text, known, learned=False)] if len(known) == len(spans) else []

    def _labelled(self, text: str, spans: Sequence[tuple[int, int]], *, learned: bool) -> Example:
        """A text of which only the spans are `learned`, or all but these."""
        found = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        inside = [any(begin <= at < end for begin, end in spans) for at, _ in found["offset_mapping"]]
        labels = [
            token if within is learned else IGNORED for token, within in zip(found["input_ids"], inside, strict=True)
        ]
        ids = self._begun(found)
        return ids, [IGNORED] * (len(ids) - len(labels)) + labels

    def _windows(self, text: str) -> list[Example]:
        """A text in parts; each begins with the last token of the one before, so that every other token is learned."""
        ids = self._ended(text)
        begun = ids[0] in (self._first, self._tokenizer.bos_token_id)
        head, body = ids[:begun], ids[begun:]
        size = self._max_length - len(head)
        found = [(ids[: self._max_length], ids[: self._max_length])]
        for at in range(size - 1, len(body) - 1, size - 1):
            part = body[at : at + size]
            found.append((head + part, [IGNORED] * (len(head) + 1) + part[1:]))
        return found

    def _ids(self, text: str) -> list[int]:
        return self._begun(self._tokenizer(text))

    def _ended(self, text: str) -> list[int]:
        ids, end = self._ids(text), self._tokenizer.eos_token_id
        return ids if ids[-1:] == [end] else [*ids, end]

    def _begun(self, found: Mapping[str, Any]) -> list[int]:
        """The tokens of a text, behind the one that is to be in front of all."""
        ids = list(found["input_ids"])
        return ids if self._first is None or ids[:1] == [self._first] else [self._first, *ids]

    def _render(self, row: Mapping[str, Any], count: int, *, prompt: bool = False) -> str:
        """The text of the first messages, up to where the next answer begins if it is to be a `prompt`."""
        messages, tools = row["messages"][:count], row.get("tools")
        how = {"tools": json.loads(tools) if isinstance(tools, str) else tools, "add_generation_prompt": prompt}
        try:
            try:
                text = self._tokenizer.apply_chat_template(_arguments(messages, _object), tokenize=False, **how)
            except TypeError:  # of a template that puts arguments together as texts
                text = self._tokenizer.apply_chat_template(_arguments(messages, _json), tokenize=False, **how)
        except (TemplateError, TypeError) as error:
            raise InvalidRequest(f"the model's chat template refuses a conversation: {error}") from None
        except ValueError as error:  # there is none
            raise InvalidRequest(f"the model cannot be trained on conversations: {error}") from None
        return str(text)


def _span(render: Callable[..., str], text: str, at: int) -> tuple[int, int] | None:
    """Where an answer is in a text; with its header, if what asks for one is written differently from that."""
    end = render(at + 1)
    begins = (render(at, prompt=True), render(at)) if text.startswith(end) else ()
    return next(((len(begin), len(end)) for begin in begins if end.startswith(begin)), None)


def _talks(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The conversations in a row."""
    if isinstance(row.get("prompt"), list):
        return [{**row, "messages": row["prompt"] + row[answer]} for answer in ("chosen", "rejected")]
    return [row] if "messages" in row else []


def _without(talk: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What a template may pass by, and the conversation without it."""
    messages = talk["messages"]
    if talk.get("tools"):
        yield "`tools`", {**talk, "tools": None}
    if any(message.get("tool_calls") for message in messages):
        silent = [{name: said for name, said in message.items() if name != "tool_calls"} for message in messages]
        yield "`tool_calls`", {**talk, "messages": silent}
    if any(message["role"] == "tool" and message["content"] for message in messages):
        empty = [{**message, "content": ""} if message["role"] == "tool" else message for message in messages]
        yield "messages of a tool", {**talk, "messages": empty}


def _arguments(messages: Sequence[Mapping[str, Any]], written: Callable[[Any], Any]) -> list[Mapping[str, Any]]:
    """Messages whose calls have their arguments as `written`."""
    return [
        {
            **message,
            "tool_calls": [
                {**call, "function": {**call["function"], "arguments": written(call["function"]["arguments"])}}
                for call in message["tool_calls"]
            ],
        }
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def _object(arguments: Any) -> Any:
    """Arguments as engines give them to a template: read, if they are the text of a JSON object."""
    if not isinstance(arguments, str):
        return arguments
    try:
        found = json.loads(arguments)
    except ValueError:
        return arguments
    return found if isinstance(found, dict) else arguments


def _json(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """With how many tokens both begin."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (left, right) in pairs if left != right), min(len(one), len(other)))


def _assistant(row: Mapping[str, Any]) -> list[int]:
    return [at for at, message in enumerate(row["messages"]) if message["role"] == "assistant"]


def _is_learned(row: Mapping[str, Any], at: int) -> bool:
    return bool(row["messages"][at].get("weight", 1))
