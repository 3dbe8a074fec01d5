"""Requests and answers in the words of OpenAI's API: their bytes are passed on, but for the name of the model."""

import secrets
from collections.abc import Mapping
from typing import Any

import msgspec

from moc.inference.request import Buffer, Info, Kind, Reply, Request
from moc.kernel.errors import Internal, InvalidRequest, MocError, Unimplemented
from moc.workers.upstream.failure import fault
from moc.workers.upstream.line import Call, Line
from moc.workers.upstream.options import UpstreamOptions

DONE = b"[DONE]"
"""The data of the event that ends a stream."""

HEALTH = "models"
PATHS: dict[Kind, str] = {
    "chat": "chat/completions",
    "completion": "completions",
    "embeddings": "embeddings",
    "rerank": "rerank",
    "transcription": "audio/transcriptions",
}
STREAMED: frozenset[Kind] = frozenset({"chat", "completion"})
FAULT_WITHIN = 32
"""Where in a chunk the word `error` would stand, if that is what the chunk is about."""


class _Choice(msgspec.Struct):
    finish_reason: Any = None


class _Finish(msgspec.Struct):
    choices: list[_Choice] = []


_TRUE, _FALSE, _NULL = msgspec.Raw(b"true"), msgspec.Raw(b"false"), msgspec.Raw(b"null")
_JSON = {"Content-Type": "application/json"}
_finish_decoder = msgspec.json.Decoder(_Finish)
_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class OpenAI:
    """The protocol `openai`."""

    health = HEALTH

    def __init__(self, options: UpstreamOptions, line: Line) -> None:
        self._model = msgspec.Raw(_encode(options.model))
        self._name = options.model
        self._who = line.who
        self._info = Info(
            kinds=options.kinds or tuple(PATHS),
            engine=f"openai at {line.host}",
            concurrency=options.max_connections,
            details={"upstream": line.host, "model": options.model},
        )

    async def info(self) -> Info:
        """What it was said to do; this protocol has no way to ask."""
        return self._info

    def call(self, request: Request, *, stream: bool) -> Call:
        """The HTTP request for one of ours."""
        path = PATHS.get(request.kind)
        if path is None or (stream and request.kind not in STREAMED):
            raise Unimplemented(f"{self._who} cannot {'stream' if stream else 'do'} {request.kind}")
        if request.kind == "transcription":
            return _form(path, self._name, request)
        try:
            fields = _decode(request.body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise InvalidRequest(f"the body is not a JSON object: {error}") from None
        fields["model"] = self._model
        if stream:
            fields["stream"] = _TRUE
        elif fields.get("stream") == _TRUE:
            fields["stream"] = _FALSE
        return Call(path, _encode(fields), dict(_JSON))

    def reply(self, body: bytes, headers: Mapping[str, str]) -> Reply:
        """The answer in a body; Internal when it is none."""
        error = _fault_in(self._who, body)
        if error is not None:
            raise error
        return Reply(body)


def sound(who: str, chunks: list[bytes]) -> tuple[list[bytes], MocError | None]:
    """The chunks up to one that is none, and what is wrong with that; `who` is whose they are."""
    for place, chunk in enumerate(chunks):
        if not chunk.startswith(b"{"):
            return chunks[:place], Internal(f"{who} streams something else than JSON objects")
        if b'"error"' in chunk[:FAULT_WITHIN] and (found := _fault_in(who, chunk)) is not None:
            return chunks[:place], found
    return chunks, None


def finishes(chunk: bytes) -> bool:
    """Whether a chunk says why a choice has come to its end."""
    try:
        return any(choice.finish_reason is not None for choice in _finish_decoder.decode(chunk).choices)
    except (msgspec.DecodeError, RecursionError):
        return False


def _fault_in(who: str, document: bytes) -> MocError | None:
    """What a document says went wrong, if that is what it says; Internal when it is no JSON object."""
    try:
        error = _decode(document).get("error", _NULL)
    except (msgspec.DecodeError, RecursionError):
        return Internal(f"{who} answers something else than a JSON object")
    return None if error == _NULL else fault(who, msgspec.json.decode(error))


def _form(path: str, model: str, request: Request) -> Call:
    """A sound file with what is asked of it, as a form; with all that the upstream can tell of it wanted."""
    boundary = secrets.token_hex(16)
    fields: dict[str, Any] = {"model": model, "response_format": "verbose_json", **request.parameters}
    opening = f"--{boundary}\r\nContent-Disposition: form-data; name="
    parts: list[Buffer] = [f'{opening}"{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields.items()]
    file = f'{opening}"file"; filename="sound"\r\nContent-Type: application/octet-stream\r\n\r\n'.encode()
    parts += (file, request.body, f"\r\n--{boundary}--\r\n".encode())
    return Call(path, b"".join(parts), {"Content-Type": f"multipart/form-data; boundary={boundary}"})
