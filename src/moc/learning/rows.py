"""Rows to learn from: JSON Lines in the formats that OpenAI and TRL use, read strictly, one line at a time.

What is wrong with a line is told with its number, and the next one is read: nothing that a file may hold ends in
another error.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

LINE_MAX_BYTES = 10 * 1024**2
"""The longest line that is read; nobody's context has so much text."""

TEMPLATE_TOKENS = 128
"""What chat templates add to a row, beside what stands for the names of its members; few add more."""

ROLES = ("system", "developer", "user", "assistant", "tool")
_KEPT = frozenset({"role", "content", "name", "weight", "tool_calls", "tool_call_id", "reasoning_content"})
"""What is kept of a message."""

_LOOKED_AT = 100
"""In how many lines the format is looked for."""

_BOM = b"\xef\xbb\xbf"
_OTHERS = {
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "a compressed file (gzip)",
    b"PK\x03\x04": "a ZIP archive",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}
"""What files of other kinds begin with."""

_KEYS_SHOWN = 5
_SPACE = re.compile(r"\s+")


class Format(StrEnum):
    """`chat`: conversations; `preference`: a prompt with a better and a worse answer; `text`: plain text."""

    CHAT = "chat"
    PREFERENCE = "preference"
    TEXT = "text"


WANTED: dict[Format, str] = {
    Format.CHAT: "`messages`",
    Format.PREFERENCE: "`prompt`, `chosen` and `rejected`",
    Format.TEXT: "`text`",
}
"""The keys of a row in each format."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """Something about a line, the first of which is 1; what `warns` leaves the row as good as it was."""

    line: int
    message: str
    warns: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A good row: `value` is what the trainer is given.

    `digest` is the same for equal rows however they are written, `content` for rows that are equal but for case and
    spaces, `prompt` for rows that ask the same, but for these.
    """

    line: int
    value: dict[str, Any]
    digest: bytes
    content: bytes
    prompt: bytes

    @property
    def answer(self) -> str:
        """What the model is to learn to say: the last text, or the better one of two."""
        if "text" in self.value:
            return str(self.value["text"])
        if "chosen" in self.value:
            return text_of(self.value["chosen"])
        return text_of(self.value["messages"][-1:])

    @property
    def characters(self) -> int:
        """How much text it has in all; of two answers the longer one counts."""
        if "chosen" in self.value:
            answers = max(len(text_of(self.value["chosen"])), len(text_of(self.value["rejected"])))
            return len(text_of(self.value["prompt"])) + answers
        return len(text_of(self.value.get("messages", self.value.get("text"))))

    @property
    def tokens_max(self) -> int:
        """As how many tokens it is worked on at most, whatever the tokenizer: a token has at least one byte."""
        if "chosen" in self.value:
            answers = max(_size(self.value["chosen"]), _size(self.value["rejected"]))
            return _size(self.value["prompt"]) + answers + TEMPLATE_TOKENS
        return _size(self.value) + TEMPLATE_TOKENS


class _Broken(Exception):
    """A row that cannot be learned from, and why."""


def rows(path: Path, wanted: Format | None = None) -> Iterator[Row | Flaw]:
    """Every row of a file, in order, and what is wrong with it; in the `wanted` format, or the one it seems to have.

    Raises OSError when the file cannot be read.
    """
    read = _READERS[wanted or detect(path)]
    style: type | None = None
    for number, line in _lines(path):
        if isinstance(line, Flaw):
            yield line
            continue
        try:
            value, prompt = read(_object(line))
            style = _same_style(style, value)
            yield Row(number, value, _digest(value), _digest(_plain(value)), _digest(_plain(prompt)))
        except _Broken as broken:
            yield Flaw(number, str(broken))
        except RecursionError:
            yield Flaw(number, "is nested too deeply")


def detect(path: Path) -> Format:
    """The format that a file seems to have; `chat` when it looks like none."""
    for number, line in _lines(path):
        if number > _LOOKED_AT:
            break
        if isinstance(line, Flaw):
            continue
        try:
            keys = _object(line).keys()
        except (_Broken, RecursionError):
            continue
        if "messages" in keys:
            return Format.CHAT
        if keys & {"chosen", "rejected", "preferred_output", "non_preferred_output"}:
            return Format.PREFERENCE
        if "text" in keys:
            return Format.TEXT
    return Format.CHAT


def text_of(said: Any) -> str:
    """The text of messages, or of what is text already."""
    if isinstance(said, str):
        return said
    return "\n".join(message["content"] for message in said if message.get("content"))


# lines


def _lines(path: Path) -> Iterator[tuple[int, bytes | Flaw]]:
    """Each line that is not empty, with its number; a Flaw for those that are nothing to read."""
    with path.open("rb") as file:
        head = file.read(4)
        file.seek(0)
        for sign, kind in _OTHERS.items():
            if head.startswith(sign):
                yield 1, Flaw(1, f"is the beginning of {kind}; write JSON Lines: UTF-8 text, one JSON object a line")
                return
        told_of_returns = False
        for number, whole in _cut(file):
            if whole is None:
                yield number, Flaw(number, f"is longer than {LINE_MAX_BYTES // 1024**2} MiB")
                continue
            if number == 1 and whole.startswith(_BOM):
                yield 1, Flaw(1, "begins with a byte order mark, which is left out", warns=True)
            if whole.endswith(b"\r\n") and not told_of_returns:
                told_of_returns = True
                yield number, Flaw(number, "ends in CR LF, and so may others; the CR is left out", warns=True)
            line = (whole.removeprefix(_BOM) if number == 1 else whole).strip(b" \t\r\n")
            if number == 1 and line.startswith(b"["):
                yield 1, Flaw(1, "begins a JSON array; write one JSON object on each line")
                return
            yield number, line or Flaw(number, "is empty", warns=True)


def _cut(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """The lines with their numbers; None for one that is too long, of which no more than that is kept."""
    number = 0
    while line := file.readline(LINE_MAX_BYTES + 1):
        number += 1
        too_long = len(line) > LINE_MAX_BYTES
        while too_long and line and not line.endswith(b"\n"):
            line = file.readline(LINE_MAX_BYTES)
        yield number, None if too_long else line


# JSON


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line.decode(), object_pairs_hook=_members, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise _Broken(f"is not UTF-8 (byte {error.start + 1})") from None
    except ValueError as error:
        told = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise _Broken(f"is not JSON: {told}{_place(error)}{_advice(line, told)}") from None
    if not isinstance(found, dict):
        raise _Broken("is not a JSON object")
    if b"\\u" in line:
        _check_characters(found)
    return found


def _place(error: ValueError) -> str:
    return f" (column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""


def _advice(line: bytes, told: str) -> str:
    if b"\r" in line and told == "Extra data":
        return "; its lines end in CR alone, end each in LF"
    return "" if line.startswith(b"{") else "; write one JSON object on each line, a table such as CSV is not read"


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Broken(f"has the key {_shown(twice)} twice in one object")
    return members


def _no_number(name: str) -> NoReturn:
    raise _Broken(f"has {name}, which is no JSON number")


def _check_characters(value: Any) -> None:
    """No text may have what JSON can escape and no tokenizer can read."""
    if isinstance(value, str):
        if "\0" in value:
            raise _Broken("has a NUL character in a text")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise _Broken("has half a character (a lone surrogate) in a text")
    elif isinstance(value, dict):
        for name, member in value.items():
            _check_characters(name)
            _check_characters(member)
    elif isinstance(value, list):
        for member in value:
            _check_characters(member)


# rows


def _chat(given: dict[str, Any]) -> tuple[dict[str, Any], str]:
    _check_keys(given, Format.CHAT, ("messages",))
    messages = _messages(given["messages"], "messages")
    learned = [message for message in messages if message["role"] == "assistant"]
    if not learned:
        raise _Broken("has no message of the assistant, so nothing to learn")
    if all(message.get("weight") == 0 for message in learned):
        raise _Broken("has the weight 0 in every message of the assistant, so nothing to learn")
    if messages[0]["role"] == "assistant":
        raise _Broken("begins with the assistant; there is nothing it answers")
    last = max(place for place, message in enumerate(messages) if message["role"] == "assistant")
    return {"messages": messages, **_tools(given)}, text_of(messages[:last])


def _preference(given: dict[str, Any]) -> tuple[dict[str, Any], str]:
    tools: dict[str, Any] = {}
    if "input" in given:
        _check_keys(given, Format.PREFERENCE, ("input", "preferred_output", "non_preferred_output"))
        asked = given["input"]
        if not isinstance(asked, dict) or "messages" not in asked:
            raise _Broken("has an `input` without `messages`")
        prompt, tools = asked["messages"], _tools(asked)
        chosen, rejected = given["preferred_output"], given["non_preferred_output"]
    else:
        _check_keys(given, Format.PREFERENCE, ("prompt", "chosen", "rejected"))
        prompt, chosen, rejected = given["prompt"], given["chosen"], given["rejected"]
        tools = _tools(given)
    sides = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    in_texts = any(isinstance(side, str) for side in sides.values())
    value: dict[str, Any] = {
        name: _text(side, name) if in_texts else _messages(side, name) for name, side in sides.items()
    }
    if not in_texts and any(message["role"] == "user" for message in value["chosen"] + value["rejected"]):
        raise _Broken("has a message of the user in an answer; put it into the prompt")
    if value["chosen"] == value["rejected"]:
        raise _Broken("has the same answer in `chosen` and `rejected`, so nothing to prefer")
    return {**value, **tools}, text_of(value["prompt"])


def _plain_text(given: dict[str, Any]) -> tuple[dict[str, Any], str]:
    _check_keys(given, Format.TEXT, ("text",))
    text = _text(given["text"], "text")
    return {"text": text}, text


_READERS: Mapping[Format, Callable[[dict[str, Any]], tuple[dict[str, Any], str]]] = {
    Format.CHAT: _chat,
    Format.PREFERENCE: _preference,
    Format.TEXT: _plain_text,
}
"""For each format what makes the trainer's value and the prompt of an object; keys it does not know are left out."""


def _check_keys(given: dict[str, Any], wanted: Format, needed: Iterable[str]) -> None:
    missing = [name for name in needed if given.get(name) is None]
    if missing:
        has = ", ".join(map(_shown, list(given)[:_KEYS_SHOWN])) or "no keys"
        raise _Broken(f"has no {_shown(missing[0])} (it has {has}); a row of the format {wanted} has {WANTED[wanted]}")


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise _Broken(f"has a {_shown(name)} that is not a text, as others of its parts are")
    if not value.strip():
        raise _Broken(f"has an empty {_shown(name)}")
    return value


def _messages(given: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(given, list) or not given:
        raise _Broken(f"has `{where}` that are not a list of messages")
    return [_message(message, f"{where}[{place}]") for place, message in enumerate(given)]


def _message(given: Any, where: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise _Broken(f"has no message at {where}, but something else")
    message = {name: value for name, value in given.items() if name in _KEPT and value is not None and value != []}
    role = message.get("role")
    if role not in ROLES:
        raise _Broken(f"has the role {_shown(role)} at {where}; there are {', '.join(ROLES)}")
    if given.get("function_call") is not None:
        raise _Broken(f"has a `function_call` at {where}; write `tool_calls`")
    if "weight" in message and (role != "assistant" or message["weight"] not in (0, 1)):
        raise _Broken(f"has a `weight` at {where} that is not 0 or 1 of an assistant's message")
    content = message["content"] = _content(message.get("content", ""), where)
    calls = message.get("tool_calls", [])
    if not isinstance(calls, list) or not all(_is_call(call) for call in calls):
        raise _Broken(f"has `tool_calls` at {where} that are not calls of functions")
    if not content.strip() and not (role == "tool" or (role == "assistant" and calls)):
        raise _Broken(f"has an empty message at {where}")
    return message


def _content(given: Any, where: str) -> str:
    """The text of a message, put together from its parts."""
    if isinstance(given, str):
        return given
    if not isinstance(given, list):
        raise _Broken(f"has a `content` at {where} that is neither a text nor a list of parts")
    texts = []
    for part in given:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise _Broken(f"has a part at {where} that is not a text; only texts are learned from")
        texts.append(part["text"])
    return "".join(texts)


def _is_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str) and "arguments" in function


def _tools(given: dict[str, Any]) -> dict[str, Any]:
    tools = given.get("tools")
    if not tools:
        return {}
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise _Broken("has `tools` that are not a list of tools")
    return {"tools": tools}


def _same_style(before: type | None, value: dict[str, Any]) -> type | None:
    """Whether preferences are texts or messages, which a file may not mix."""
    if "prompt" not in value:
        return before
    style = type(value["prompt"])
    if before not in (None, style):
        raise _Broken("is written in texts where the rows before are in messages, or the other way round")
    return style


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"`{text[:40]}`"


# the same again


def _size(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode())


def _digest(value: Any) -> bytes:
    """Short enough to keep one of each row."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).digest()


def _plain(value: Any) -> Any:
    """The value without what makes no difference to a reader of its texts: case, spaces, ways to write a character."""
    if isinstance(value, str):
        return _SPACE.sub(" ", unicodedata.normalize("NFKC", value)).strip().casefold()
    if isinstance(value, dict):
        return {name: _plain(member) for name, member in value.items()}
    return [_plain(member) for member in value] if isinstance(value, list) else value
