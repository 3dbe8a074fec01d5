"""What trainings learn from: rows as tokens, with labels where there is something to learn, or in a prompt and answers.

In a conversation that is what the assistant says, if the chat template lets it be found: a template writes turn after
turn, so what it adds for one is the difference between the conversation with it and the one before it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from moc.kernel.errors import InvalidRequest
from moc.learning.hyperparameters import AUTO

IGNORED = -100
"""The label of a token that is read and not learned."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows with `input_ids` and `labels`, or with the ids of `prompt`, `chosen` and `rejected`.

    Told is how many were cut and how many taught nothing, which are left out. `blurred`: nobody can tell who says what,
    so all of the conversations is learned; or where an answer begins, so that the end of its prompt belongs to it.
    """

    rows: list[dict[str, list[int]]]
    cut: int
    empty: int
    blurred: bool


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
        whole = assistant_only is False or not all(self._tells_turns(row) for row in rows)
        if whole and assistant_only is True:
            raise InvalidRequest(
                "assistant_only_loss is true, and the turns of the assistant cannot be told from the rest: the data is "
                "no chat, or the model's chat template writes a turn differently once others follow"
            )
        encoded = [self._encode(row, whole=whole) for row in rows]
        cut = sum(len(ids) > self._max_length for ids, _ in encoded)
        short = [
            {"input_ids": ids[: self._max_length], "labels": labels[: self._max_length]} for ids, labels in encoded
        ]
        teaching = [row for row in short if any(label != IGNORED for label in row["labels"][1:])]
        blurred = whole and assistant_only == AUTO and any("messages" in row for row in rows)
        return Examples(teaching, cut, len(short) - len(teaching), blurred)

    def prefer(self, rows: Sequence[Mapping[str, Any]]) -> Examples:
        """The examples of rows of preferences; one whose answers are the same once they are cut teaches nothing."""
        found, cut, blurred = list[dict[str, list[int]]](), 0, False
        for row in rows:
            prompt, chosen, rejected = self._sides(row)
            begin = min(_common(prompt, chosen), _common(prompt, rejected))
            blurred = blurred or begin < len(prompt)
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

    def _encode(self, row: Mapping[str, Any], *, whole: bool) -> tuple[list[int], list[int]]:
        if "messages" not in row:
            ids = self._ended(row["text"])
            return ids, ids
        text = self._render(row, len(row["messages"]))
        found = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = self._begun(found)
        if whole:
            return ids, ids
        spans = list(self._learned(row))
        learned = [any(begin <= at < end for begin, end in spans) for at, _ in found["offset_mapping"]]
        labels = [
            token if is_learned else IGNORED for token, is_learned in zip(found["input_ids"], learned, strict=True)
        ]
        return ids, [IGNORED] * (len(ids) - len(labels)) + labels

    def _ids(self, text: str) -> list[int]:
        return self._begun(self._tokenizer(text))

    def _ended(self, text: str) -> list[int]:
        ids, end = self._ids(text), self._tokenizer.eos_token_id
        return ids if ids[-1:] == [end] else [*ids, end]

    def _begun(self, found: Mapping[str, Any]) -> list[int]:
        """The tokens of a text, behind the one that is to be in front of all."""
        ids = list(found["input_ids"])
        return ids if self._first is None or ids[:1] == [self._first] else [self._first, *ids]

    def _tells_turns(self, row: Mapping[str, Any]) -> bool:
        if "messages" not in row:
            return False
        text = self._render(row, len(row["messages"]))
        return all(
            text.startswith(self._render(row, at, prompt=True)) and text.startswith(self._render(row, at + 1))
            for at in _assistant(row)
        )

    def _learned(self, row: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
        """Where the text of a conversation is what the assistant says and is not given the weight 0."""
        for at in _assistant(row):
            if row["messages"][at].get("weight", 1) != 0:
                yield len(self._render(row, at, prompt=True)), len(self._render(row, at + 1))

    def _render(self, row: Mapping[str, Any], count: int, *, prompt: bool = False) -> str:
        """The text of the first messages, up to where the next answer begins if it is to be a `prompt`."""
        tools = row.get("tools")
        try:
            text: str = self._tokenizer.apply_chat_template(
                row["messages"][:count],
                tools=json.loads(tools) if isinstance(tools, str) else tools,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        except TemplateError as error:
            raise InvalidRequest(f"the model's chat template refuses a conversation: {error}") from None
        except ValueError as error:  # there is none
            raise InvalidRequest(f"the model cannot be trained on conversations: {error}") from None
        return text


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """With how many tokens both begin."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (left, right) in pairs if left != right), min(len(one), len(other)))


def _assistant(row: Mapping[str, Any]) -> list[int]:
    return [at for at, message in enumerate(row["messages"]) if message["role"] == "assistant"]
