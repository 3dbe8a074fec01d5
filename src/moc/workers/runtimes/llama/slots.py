"""Requests to a llama.cpp engine that runs in this process."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import xllamacpp

from moc.inference.request import Info, Kind, Reply, Request
from moc.kernel.errors import Cancelled, Internal, InvalidRequest, MocError, Unavailable, Unimplemented
from moc.workers.runtimes.feed import Feed
from moc.workers.runtimes.llama.answer import Answer
from moc.workers.runtimes.llama.scores import LlamaScores
from moc.workers.runtimes.llama.tokens import LlamaTokens
from moc.workers.runtimes.scores import EchoRequest, answer, read_echo
from moc.workers.runtimes.tokenization import read_tokenize, tokenized

_TRUE = msgspec.Raw(b"true")
_PROGRESS = "return_progress"
_IS_PROGRESS = b'"prompt_progress":'
_WITH_USAGE = msgspec.Raw(b'{"include_usage":true}')
_SCORED_WITH = ("lora", "cache_prompt")
_NO_INPUT = "input is not supported"
_IN_ONE_PIECE = {"embeddings": "handle_embeddings", "rerank": "handle_rerank"}
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class _Fault(msgspec.Struct):
    code: int = 500
    message: str = "the engine failed without a reason"


class _Faulty(msgspec.Struct):
    error: _Fault | None = None


_decode_fault = msgspec.json.Decoder(_Faulty).decode


class LlamaSlots:
    """The engine's slots. JSON goes in and comes out as the engine's own bytes.

    A request that is cancelled leaves its slot at the next token, or the next part of its prompt. For that the engine
    is always asked to stream and to tell of its progress, and a whole answer is put together from the chunks. It
    cannot be stopped when several prompts or choices are asked for at once: such an answer comes in one piece.
    A stream whose reader stops reading is held back here, while the engine goes on to the request's own limit.
    """

    def __init__(
        self, server: Any, kinds: tuple[Kind, ...], tokens: LlamaTokens, *, model: str, slots: int, context: int
    ) -> None:
        self.info = Info(
            kinds=kinds,
            engine=f"llama.cpp (xllamacpp {xllamacpp.__version__})",
            concurrency=slots,
            details={"context": context, "context_per_request": context // slots},
        )
        self._server = server
        self._tokens = tokens
        self._model = model
        # one more for each slot: a cancelled request keeps its thread until the next token
        self._threads = ThreadPoolExecutor(2 * slots, "llama")

    async def infer(self, request: Request) -> Reply:
        """The whole answer."""
        fields = _fields(request)
        loop = asyncio.get_running_loop()
        if request.kind in _IN_ONE_PIECE:
            handler = getattr(self._server, _IN_ONE_PIECE[request.kind])
            answer = await loop.run_in_executor(self._threads, _guarded, handler, bytes(request.body))
            if (fault := _fault_in(answer)) is not None:
                raise fault
            return Reply(answer)
        if request.kind == "tokenize":
            return await loop.run_in_executor(self._threads, self._tokenized, request)
        work = self._work(request, fields)
        try:
            return Reply(await loop.run_in_executor(self._threads, work.run))
        except asyncio.CancelledError:
            work.cancelled = True
            raise

    async def stream(self, request: Request) -> AsyncGenerator[bytes, None]:
        """The engine's chunks; an error it meets midway is raised after them."""
        fields = _fields(request)
        if request.kind in (*_IN_ONE_PIECE, "tokenize"):
            raise Unimplemented(f"{request.kind} is not streamed; ask for the whole answer")
        feed = Feed()
        self._threads.submit(
            _pour, self._handler(request), _streamed(fields), feed, told=fields.get(_PROGRESS) == _TRUE
        )
        async with contextlib.aclosing(feed.chunks()) as chunks:
            async for chunk in chunks:
                yield chunk

    async def close(self) -> None:
        # ending the engine in the middle of a request hangs; the end of the process does not
        return

    def _tokenized(self, request: Request) -> Reply:
        asked = read_tokenize(request.body)
        text, special = asked.prompt, asked.add_special_tokens
        if asked.messages is not None:
            text, special = self._tokens.prompt_of(asked.messages, generate=asked.add_generation_prompt), True
        tokens = self._tokens.encode(text or "", special=special)
        return tokenized([token.id for token in tokens], self.info.details["context_per_request"])

    def _work(self, request: Request, fields: dict[str, msgspec.Raw]) -> "_Whole | _Scoring":
        handler = self._handler(request)
        if request.kind == "completion" and fields.get("echo") == _TRUE:
            room = self.info.details["context_per_request"]
            return _Scoring(handler, self._model, self._tokens, read_echo(request.body), fields, room)
        return _Whole(handler, bytes(request.body), fields)

    def _handler(self, request: Request) -> Callable[..., Any]:
        handler: Callable[..., Any] = (
            self._server.handle_chat_completions if request.kind == "chat" else self._server.handle_completions
        )
        return handler


class _Whole:
    """One whole answer on its way, in a thread."""

    def __init__(self, handler: Callable[..., Any], body: bytes, fields: dict[str, msgspec.Raw]) -> None:
        self.cancelled = False
        self._handler = handler
        self._body = body
        self._fields = fields
        self._chunks: list[bytes] = []
        self._fault: MocError | None = None

    def run(self) -> bytes:
        in_one_piece = self._has_several_choices()
        body = self._body
        if not in_one_piece:
            body = _streamed({**self._fields, "stream_options": _WITH_USAGE})
        _guarded(self._handler, body, self._take)
        if self._fault is not None:
            raise self._fault
        if in_one_piece:
            return self._chunks[0]
        answer = Answer()
        for chunk in self._chunks:
            answer.add(chunk)
        return answer.whole()

    def _has_several_choices(self) -> bool:
        choices = [self._fields[name] for name in ("n", "n_cmpl", "best_of") if name in self._fields]
        listed = bytes(self._fields.get("prompt", b"")).startswith(b"[")
        return listed or any(bytes(choice) not in (b"1", b"null") for choice in choices)

    def _take(self, chunk: bytes) -> bool:
        self._fault = _fault_in(chunk)
        if chunk != b"null" and _IS_PROGRESS not in chunk:
            self._chunks.append(chunk)
        return self.cancelled or self._fault is not None


class _Scoring:
    """The scores of texts on their way, in a thread."""

    def __init__(
        self,
        handler: Callable[..., Any],
        model: str,
        tokens: LlamaTokens,
        asked: EchoRequest,
        fields: dict[str, msgspec.Raw],
        room: int,
    ) -> None:
        self.cancelled = False
        self._handler = handler
        self._model = model
        self._prompts = asked.prompts()
        kept = {name: fields[name] for name in _SCORED_WITH if name in fields}
        self._scores = LlamaScores(tokens, self._ask, asked, kept, room=room)

    def run(self) -> bytes:
        return answer(self._model, [self._scores.of(prompt) for prompt in self._prompts])

    def _ask(self, body: dict[str, Any]) -> list[bytes]:
        chunks: list[bytes] = []
        fault: MocError | None = None

        def take(chunk: bytes) -> bool:
            nonlocal fault
            fault = fault or _fault_in(chunk)
            if chunk != b"null":
                chunks.append(chunk)
            return self.cancelled or fault is not None

        _guarded(self._handler, _encode({**body, "stream": True, _PROGRESS: True}), take)
        if self.cancelled:
            raise Cancelled("nobody waits for these scores any more")
        if fault is not None:
            raise fault
        return chunks


def _streamed(fields: dict[str, msgspec.Raw]) -> bytes:
    """The request, to be answered in chunks, also while its prompt is read: only then can it be stopped."""
    return _encode({**fields, "stream": _TRUE, _PROGRESS: _TRUE})


def _pour(handler: Callable[..., Any], body: bytes, feed: Feed, *, told: bool) -> None:
    """Put the chunks into `feed`; those that tell of progress only if the caller asked to be `told`."""
    fault: MocError | None = None

    def take(chunk: bytes) -> bool:
        nonlocal fault
        fault = _fault_in(chunk)
        if chunk == b"null" or (_IS_PROGRESS in chunk and not told):
            return fault is not None or not feed.wanted
        return fault is not None or not feed.put(chunk)

    try:
        _guarded(handler, body, take)
    except BaseException as error:
        feed.end(error)
    else:
        feed.end(fault)


def _guarded(handler: Callable[..., Any], *arguments: Any) -> Any:
    """Call the engine, with what it raises for a wrong request as InvalidRequest."""
    try:
        return handler(*arguments)
    except UnicodeDecodeError:
        raise InvalidRequest("the request is not valid UTF-8") from None
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
    except RuntimeError as error:
        if str(error).startswith("[json.exception."):
            raise InvalidRequest(str(error)) from None
        if (wanting := str(error).partition(" - hint")[0]).endswith(_NO_INPUT):
            raise Unimplemented(f"{wanting} by this model; send text") from None
        raise Internal(f"llama.cpp: {error}") from None


def _fields(request: Request) -> dict[str, msgspec.Raw]:
    try:
        return _decode_object(request.body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not a JSON object: {error}") from None


def _fault_in(chunk: bytes) -> MocError | None:
    """What the engine says went wrong, if that is what it says. Not raised: its callbacks cannot carry it."""
    if not chunk.startswith(b'{"error"'):
        return None
    fault = _decode_fault(chunk).error or _Fault()
    match fault.code:
        case 501:
            return Unimplemented(fault.message)
        case 503:
            return Unavailable(fault.message)
        case code if 400 <= code < 500:
            return InvalidRequest(fault.message)
        case _:
            return Internal(f"llama.cpp: {fault.message}")
