"""A class in the user's own file.

    class Model:
        inputs = [("INPUT0", "INT32", [16])]        # name, datatype, shape; -1 = any size
        outputs = [("OUTPUT0", "INT32", [16])]
        concurrency = 1                             # requests at once, default 1 (32 when inline)
        inline = False                              # True: `infer` is quicker than a hand-over to a thread

        def load(self, **options): ...              # optional
        def infer(self, inputs): ...                # {name: array} -> {name: array}
        def chat(self, request): ...                # optional: the JSON of an OpenAI request -> that of its answer
        def completion(self, request): ...          # the same; also `embeddings`
        def rerank(self, request): ...              # {query, documents: [str]} -> {results: [{index, relevance_score}]}
        def transcribe(self, sound, asked): ...     # a sound file's bytes -> {text, language?, duration?, segments?}
        def stream(self, request): ...              # optional: yields the JSON chunks of a chat or completion
        def close(self): ...                        # optional

Each method may be `async`; those that are not run in a thread. `stream` is a generator, plain or async.
Arrays given to `infer` are read-only. A MocError from `moc.kernel.errors` reaches the caller as it is, any
other exception as an internal error with its message; its traceback goes to the worker's log.
Cancelling stops an async method at its next `await`, a generator at its next chunk, a plain method not at all.

`asked` is a dict of what the caller wants of a transcription: any of `language`, `prompt` and `temperature`.

Option `class` names the class; otherwise it is `Model`, or the only class in the file that has one of the
methods that answer. All other options go to `load`.
"""

import asyncio
import contextlib
import functools
import importlib.util
import inspect
import os
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

import msgspec
import numpy as np

from moc.inference.request import Info, Kind, Reply, Request, TensorSpec
from moc.kernel.errors import Internal, InvalidRequest, LoadFailed, Unimplemented
from moc.workers.runtimes.feed import Feed
from moc.workers.runtimes.options import Options
from moc.workers.runtimes.runtime import Run, file_in
from moc.workers.tensors import DTYPES, chosen, inputs_of, reply_of

METHODS: dict[Kind, str] = {
    "tensors": "infer",
    "chat": "chat",
    "completion": "completion",
    "embeddings": "embeddings",
    "rerank": "rerank",
    "transcription": "transcribe",
    "tokenize": "tokenize",
}
MODULE = "moc_user_model"
INLINE_WAITING = 32
"""An inline model answers one request at a time, but is given more: the next is there when one is done."""


def load(*, model: str, path: str, options: dict[str, Any], run: Run) -> "Python":
    """Import the file, make the class and let it load; see `Load`."""
    given = Options("python", options)
    name = given.text("class")
    file = file_in(path, ".py")
    chosen_class = _find_class(_import(file), name, os.path.basename(file))
    instance = chosen_class()
    if hasattr(instance, "load"):
        _check_arguments(instance.load, given, options)
        outcome = instance.load(**given.rest())
        if inspect.isawaitable(outcome):
            run(_awaited(outcome))
    given.done()
    return Python(instance)


class Python:
    """An instance of the user's class."""

    def __init__(self, instance: Any) -> None:
        kinds: tuple[Kind, ...] = tuple(
            kind for kind in get_args(Kind) if callable(getattr(instance, METHODS[kind], None))
        )
        inline = bool(getattr(instance, "inline", False))
        concurrency = getattr(instance, "concurrency", INLINE_WAITING if inline else 1)
        if isinstance(concurrency, bool) or not isinstance(concurrency, int) or not 1 <= concurrency <= 1024:
            raise LoadFailed(
                f"`concurrency` is {concurrency!r}, not a whole number from 1 to 1024", reason="invalid_spec"
            )
        self.info = Info(
            kinds=kinds,
            engine=f"python {sys.version_info.major}.{sys.version_info.minor}, numpy {np.__version__}",
            inputs=_specs(instance, "inputs"),
            outputs=_specs(instance, "outputs"),
            concurrency=concurrency,
        )
        self._instance = instance
        self._inline = inline
        self._threads = ThreadPoolExecutor(concurrency, "model")
        self._encoder = msgspec.json.Encoder(enc_hook=_numbers)

    def infer(self, request: Request) -> Reply | Coroutine[Any, Any, Reply]:
        """Call the method of the request's kind: at once if the class is `inline`, else in a thread or awaited."""
        method = getattr(self._instance, METHODS[request.kind])
        if request.kind == "transcription":
            return self._document(functools.partial(method, bytes(request.body), request.parameters))
        if request.kind != "tensors":
            return self._document(functools.partial(method, _decode(request)))
        inputs = inputs_of(request, self.info.inputs)
        wanted = chosen(request, self.info.outputs)
        if self._inline and not inspect.iscoroutinefunction(method):
            return reply_of(_mapping(method(inputs)), wanted)
        return self._tensors(method, inputs, wanted)

    async def stream(self, request: Request) -> AsyncGenerator[bytes, None]:
        """The chunks of the class's `stream`; Unimplemented when it has none."""
        if not hasattr(self._instance, "stream"):
            raise Unimplemented("this model does not stream; ask for the whole answer")
        made = self._instance.stream(_decode(request))
        if inspect.isawaitable(made):
            made = await made
        if isinstance(made, AsyncGenerator):
            async with contextlib.aclosing(made):
                async for chunk in made:
                    yield self._encoder.encode(chunk)
            return
        feed = Feed()
        self._threads.submit(self._pour, made, feed)
        async with contextlib.aclosing(feed.chunks()) as chunks:
            async for data in chunks:
                yield data

    async def close(self) -> None:
        if hasattr(self._instance, "close"):
            await self._call(self._instance.close)

    async def _tensors(self, method: Callable[..., Any], inputs: dict[str, Any], wanted: Any) -> Reply:
        return reply_of(_mapping(await self._call(method, inputs)), wanted)

    async def _document(self, method: Callable[[], Any]) -> Reply:
        return Reply(self._encoder.encode(_mapping(await self._call(method))))

    async def _call(self, method: Callable[..., Any], *arguments: Any) -> Any:
        if inspect.iscoroutinefunction(method):
            return await method(*arguments)
        answer = await asyncio.get_running_loop().run_in_executor(self._threads, _quietly, method, *arguments)
        return await answer if inspect.isawaitable(answer) else answer

    def _pour(self, chunks: Iterable[Any], feed: Feed) -> None:
        try:
            for chunk in chunks:
                if not feed.put(self._encoder.encode(chunk)):
                    break
        except BaseException as error:
            feed.end(error)
        else:
            feed.end()


def _import(file: str) -> Any:
    spec = importlib.util.spec_from_file_location(MODULE, file)
    if spec is None or spec.loader is None:
        raise LoadFailed(
            f"{os.path.basename(file)} is not a Python file; its name has to end in .py", reason="invalid_spec"
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    sys.path.append(os.path.dirname(file))  # what lies beside it can be imported, and hides nothing
    spec.loader.exec_module(module)
    return module


def _find_class(module: Any, name: str | None, file: str) -> type:
    classes = {key: value for key, value in vars(module).items() if isinstance(value, type)}
    if name is not None:
        if name not in classes:
            raise LoadFailed(f"there is no class {name!r} in {file}", reason="invalid_spec")
        return classes[name]
    own = [c for c in classes.values() if c.__module__ == MODULE and any(hasattr(c, m) for m in METHODS.values())]
    if "Model" in classes:
        return classes["Model"]
    if len(own) != 1:
        raise LoadFailed(
            f"{file} has {len(own)} classes with any of {', '.join(METHODS.values())}; "
            "name the one to use in the option `class`",
            reason="invalid_spec",
        )
    return own[0]


def _check_arguments(method: Callable[..., Any], given: Options, options: dict[str, Any]) -> None:
    """Refuse options `load` does not take, as for every runtime."""
    parameters = inspect.signature(method).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    given.know(parameters)
    for name in options:
        if name not in parameters and name != "class":
            given.refuse(name)


def _specs(instance: Any, attribute: str) -> tuple[TensorSpec, ...]:
    try:
        specs = tuple(
            TensorSpec(str(name), str(datatype), tuple(int(size) for size in shape))
            for name, datatype, shape in getattr(instance, attribute, ())
        )
    except (TypeError, ValueError):
        raise LoadFailed(f"`{attribute}` is not a list of (name, datatype, shape)", reason="invalid_spec") from None
    for spec in specs:
        if spec.datatype not in DTYPES:
            raise LoadFailed(
                f"{spec.name!r} in `{attribute}` has datatype {spec.datatype!r}; there are {', '.join(DTYPES)}",
                reason="invalid_spec",
            )
    return specs


def _decode(request: Request) -> dict[str, Any]:
    try:
        return msgspec.json.decode(request.body, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not a JSON object: {error}") from None


def _mapping(answer: Any) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise Internal(f"the model answered with a {type(answer).__name__}; it has to be a dict")
    return answer


def _numbers(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} has no form in JSON")


def _quietly(method: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return method(*arguments)
    except StopIteration as error:
        raise Internal("the model let a StopIteration escape") from error  # a future cannot carry one


async def _awaited(outcome: Any) -> Any:
    return await outcome
