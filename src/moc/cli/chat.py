"""`moc chat`: a conversation with a model."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moc.cli import screen
from moc.cli.session import Session, connected
from moc.cli.terms import DeadlineOption, PriorityOption, SessionOption, terms
from moc.kernel.errors import InvalidRequest, MocError

if TYPE_CHECKING:
    from moc.client import Client

_HELP = "Say something; /clear forgets the conversation, /exit or Ctrl-D ends it, Ctrl-C stops an answer."
_INPUT_MAX = 16 * 1024 * 1024

Message = dict[str, str]


@connected
def chat(
    session: Session,
    model: Annotated[str, typer.Argument(metavar="NAME[@VERSION]")],
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="What to say; none = a conversation, or what is piped in.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", metavar="FILE", help="Add this file's text to the prompt.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="What the model is told to be.")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", min=0.0, help="0 = always the same.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="Longest answer.")] = None,
    deadline: DeadlineOption = None,
    priority: PriorityOption = None,
    session_name: SessionOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the API's JSON instead of a stream.")] = False,
) -> None:
    """Ask a model something and watch it answer, or talk with it."""
    messages = [{"role": "system", "content": system}] if system else []
    options: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens}
    options = {name: value for name, value in options.items() if value is not None}
    options |= terms(deadline, priority, session_name)
    text = _prompt(prompt, file)
    if text is None and as_json:
        raise typer.BadParameter("a conversation has no JSON; give a prompt", param_hint="--json")
    with session.client() as client:
        if text is None:
            _converse(client, model, messages, options)
            return
        messages.append({"role": "user", "content": text})
        if as_json:
            screen.json(client.chat(model, messages, **options))
        else:
            _answer(client, model, messages, options)


def _prompt(prompt: str | None, file: Path | None) -> str | None:
    """The text to send; None = nothing was given and a person sits there to give it."""
    parts = [prompt] if prompt else []
    if file is not None:
        try:
            parts.append(_text(file.read_bytes(), str(file)))
        except OSError as error:
            raise typer.BadParameter(f"cannot read {file}: {error.strerror}", param_hint="--file") from error
    if not parts and not sys.stdin.isatty():
        parts.append(_text(sys.stdin.buffer.read(_INPUT_MAX + 1), "standard input"))
    if not parts:
        return None
    text = "\n\n".join(parts)
    if not text.strip():
        raise typer.BadParameter("the prompt is empty", param_hint="PROMPT")
    return text


def _text(content: bytes, where: str) -> str:
    if len(content) > _INPUT_MAX:
        raise InvalidRequest(f"{where} holds more than {_INPUT_MAX} bytes; give a part of it")
    try:
        return content.decode("utf-8").rstrip("\n")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{where} is not UTF-8 text ({error.reason} at byte {error.start})") from error


def _converse(client: "Client", model: str, messages: list[Message], options: dict[str, Any]) -> None:
    import readline  # noqa: F401  (gives `input` its line editing and history)

    start = len(messages)
    screen.line(_HELP)
    while True:
        try:
            said = input("> ").strip()
        except EOFError:
            screen.line("")
            return
        except KeyboardInterrupt:
            screen.line("")
            continue
        if said == "/exit":
            return
        if said == "/clear":
            del messages[start:]
        elif said.startswith("/"):
            screen.line(_HELP)
        elif said:
            _turn(client, model, messages, said, options)


def _turn(client: "Client", model: str, messages: list[Message], said: str, options: dict[str, Any]) -> None:
    """One exchange; what was answered so far stays in the conversation when the person stops it."""
    messages.append({"role": "user", "content": said})
    answer: list[str] = []
    try:
        _answer(client, model, messages, options, answer)
    except KeyboardInterrupt:
        screen.line(" [stopped]")
    except MocError as error:
        screen.complain(error.message)
    if answer:
        messages.append({"role": "assistant", "content": "".join(answer)})
    else:
        messages.pop()


def _answer(
    client: "Client", model: str, messages: list[Message], options: dict[str, Any], answer: list[str] | None = None
) -> None:
    """Print an answer as it comes, and add its parts to `answer`."""
    with client.chat(model, messages, stream=True, **options) as stream:
        for part in _parts(stream):
            if answer is not None:
                answer.append(part)
            screen.write(part)
    screen.line("")


def _parts(chunks: Iterable[dict[str, Any]]) -> Iterable[str]:
    for chunk in chunks:
        for choice in chunk.get("choices", ()):
            content = choice.get("delta", {}).get("content")
            if content:
                yield content
