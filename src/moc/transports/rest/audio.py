"""OpenAI's transcription of speech, on models that can."""

import math
from collections.abc import AsyncGenerator
from email.message import Message
from typing import Any, Final, Literal, get_args

import msgspec
from msgspec import Struct
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from moc.kernel.errors import Internal, InvalidRequest, NotFound, Unimplemented
from moc.service.inference import Request
from moc.service.services import Services
from moc.transports.rest.chat import model_not_found
from moc.transports.rest.exchange import JSON, Exchange, inference_headers
from moc.transports.rest.operation import Operation

Form = Literal["json", "text", "verbose_json"]


class Transcription(Struct):
    """What was said."""

    text: str


class DetailedTranscription(Struct, kw_only=True):
    """The same with all that the model tells of it: `segments` and their times, `duration` in seconds."""

    text: str
    task: str = "transcribe"
    language: str = ""
    duration: float = 0.0
    segments: list[dict[str, Any]] = []


_FIELDS_MAX: Final = 20
_FIELD_BYTES_MAX: Final = 64 * 1024
_TEXT: Final = b"text/plain; charset=utf-8"
_BODY: Final = {
    "type": "object",
    "required": ["file", "model"],
    "properties": {
        "file": {"type": "string", "contentMediaType": "application/octet-stream"},
        "model": {"type": "string", "description": "`name` or `name@version`"},
        "language": {"type": "string", "description": "What is spoken, as ISO 639-1 has it"},
        "prompt": {"type": "string", "description": "Words that are likely to be said"},
        "response_format": {"type": "string", "enum": list(get_args(Form))},
        "temperature": {"type": "number", "minimum": 0, "maximum": 1},
    },
}
_answer_decoder: Final = msgspec.json.Decoder(DetailedTranscription)


class Audio:
    """The endpoint."""

    def __init__(self, services: Services) -> None:
        self._inference = services.inference

    def operations(self) -> list[Operation]:
        """Its route."""
        return [
            Operation(
                method="POST",
                path="/v1/audio/transcriptions",
                handle=self._transcribe,
                summary="Write down what is said",
                body=_BODY,
                body_media="multipart/form-data",
                answer=Transcription,
                media=("application/json", "text/plain"),
            )
        ]

    async def _transcribe(self, exchange: Exchange) -> None:
        fields, sound = await _form(exchange)
        model = fields.get("model")
        if not model:
            raise InvalidRequest("the form has no field `model`; say which model is to listen", details=_at("model"))
        form = _form_of_answer(fields)
        terms = exchange.terms()
        try:
            with exchange.watch():
                request = Request("transcription", sound, parameters=_parameters(fields), headers=exchange.headers)
                answer = await self._inference.infer(exchange.identity, model, request, terms)
        except NotFound as error:
            raise model_not_found(error) from None
        media, body = _formed(bytes(answer.reply.body), form)
        await exchange.answer(200, body, media=media, headers=inference_headers(answer))


async def _form(exchange: Exchange) -> tuple[dict[str, str], bytes]:
    """The fields of the form, and its one file; in memory only, for a body is never larger than its limit."""
    kind = (exchange.header(b"content-type") or b"").decode("latin-1")
    if not kind.lower().startswith("multipart/form-data"):
        raise InvalidRequest("the body has to be multipart/form-data, with the sound as `file`")
    body = await exchange.body()
    if _end_of_form(kind) not in body:
        raise InvalidRequest("the form has no end; send it whole, in parts divided by its `boundary`")
    parser = MultiPartParser(
        Headers({"content-type": kind}),
        _whole(body),
        max_files=1,
        max_fields=_FIELDS_MAX,
        max_part_size=_FIELD_BYTES_MAX,
    )
    parser.spool_max_size = len(body)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidRequest(f"the body is not a form: {error.message}") from None
    try:
        sound = form.get("file")
        if not isinstance(sound, UploadFile):
            raise InvalidRequest("the form has no file `file`; send the sound as that", details=_at("file"))
        return {name: value for name, value in form.items() if isinstance(value, str)}, await sound.read()
    finally:
        await form.close()


def _end_of_form(kind: str) -> bytes:
    described = Message()
    described["content-type"] = kind
    return f"--{described.get_boundary('')}--".encode("latin-1", "replace")


async def _whole(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


def _form_of_answer(fields: dict[str, str]) -> str:
    form = fields.get("response_format", "json")
    if form not in get_args(Form):
        raise InvalidRequest(
            f"`response_format` is {form[:40]!r}; there are {', '.join(get_args(Form))}", details=_at("response_format")
        )
    if fields.get("stream", "false") not in ("false", "False", "0"):
        raise Unimplemented("a transcription is not streamed; leave `stream` out", details=_at("stream"))
    return form


def _parameters(fields: dict[str, str]) -> dict[str, Any]:
    """What the engine is told beside the sound."""
    parameters: dict[str, Any] = {name: fields[name] for name in ("language", "prompt") if fields.get(name)}
    if "temperature" in fields:
        parameters["temperature"] = _temperature(fields["temperature"])
    return parameters


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise InvalidRequest(f"`temperature` is {text[:40]!r}, not a number from 0 to 1", details=_at("temperature"))
    return value


def _formed(answer: bytes, form: str) -> tuple[bytes, bytes]:
    """The media type and the body."""
    try:
        told = _answer_decoder.decode(answer)
    except msgspec.DecodeError as error:
        raise Internal(f"the model answered something else than a transcription: {error}") from None
    if form == "text":
        return _TEXT, told.text.encode() + b"\n"
    return JSON, msgspec.json.encode(told if form == "verbose_json" else Transcription(told.text))


def _at(param: str) -> dict[str, str]:
    return {"param": param}
