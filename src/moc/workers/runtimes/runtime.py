"""What an engine is to the worker that runs it.

A runtime is a module here that has `load`, with the signature of `Load`. To keep a cold start short the
worker imports that module and calls `load` in a thread before it imports anything else; so the module's
own imports are what stands between a request and the first byte of its model.
"""

import importlib
import os
from collections.abc import AsyncGenerator, Coroutine
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from moc.kernel.errors import LoadFailed

if TYPE_CHECKING:
    from moc.inference.request import Info, Reply, Request

EXTRAS = {"llama_cpp": "llama", "onnx": "onnx", "python": None, "transformers": "transformers", "command": None}
"""Every runtime, with the extra of the distribution that brings its engine."""


class Runtime(Protocol):
    """A loaded model. Every method is called on the worker's event loop."""

    @property
    def info(self) -> "Info": ...

    def infer(self, request: "Request") -> "Reply | Coroutine[Any, Any, Reply]":
        """The answer, if it takes no longer than a hand-over to a thread would, or a coroutine that gives it.

        Cancelling the coroutine stops the engine's work on it. MocErrors reach the caller as they are,
        any other exception as Internal.
        """
        ...

    def stream(self, request: "Request") -> AsyncGenerator[bytes, None]:
        """JSON chunks as they are made; closing the iterator stops the engine's work. Errors as for `infer`."""
        ...

    async def close(self) -> None:
        """Let go of what would outlive the process. The process ends right after."""
        ...


@runtime_checkable
class Sleeper(Runtime, Protocol):
    """A runtime whose `info` says that it `sleeps`. Nothing is asked of one that is asleep but to wake."""

    async def sleep(self) -> None:
        """Give the memory of its devices back."""
        ...

    async def wake(self) -> None:
        """Take it again; returns when requests can be answered."""
        ...


class Run(Protocol):
    """Completes a coroutine on the worker's event loop, from the thread that loads."""

    def __call__(self, work: Coroutine[Any, Any, Any], /) -> Any: ...


class Load(Protocol):
    """Bring the model at `path` into memory, under the name `model` (`name@version`); LoadFailed if it cannot be."""

    def __call__(self, *, model: str, path: str, options: dict[str, Any], run: Run) -> Runtime: ...


def find(runtime: str) -> Load:
    """The `load` of the runtime of that name; LoadFailed(invalid_spec) when there is none or its extra is missing."""
    if runtime not in EXTRAS:
        raise LoadFailed(f"there is no runtime {runtime!r}; there are {', '.join(EXTRAS)}", reason="invalid_spec")
    try:
        load: Load = importlib.import_module(f"moc.workers.runtimes.{runtime}").load
    except ImportError as error:
        extra = EXTRAS[runtime]
        if extra is None or (error.name or "").startswith("moc"):
            raise
        raise LoadFailed(
            f"the runtime {runtime} is not installed here ({error}); run: pip install 'modelops-coordinator[{extra}]'",
            reason="invalid_spec",
        ) from None
    return load


def file_in(path: str, suffix: str) -> str:
    """`path` if it is a file, else the only file (or the first part of one) with `suffix` in that folder."""
    if os.path.isfile(path):
        return path
    if not os.path.isdir(path):
        raise LoadFailed(f"there is no file {os.path.basename(path)}; pull the model again", reason="load_failed")
    names = sorted(name for name in os.listdir(path) if name.endswith(suffix))
    first = [name for name in names if "-00001-of-" in name] or names
    if len(first) != 1:
        raise LoadFailed(
            f"{len(first)} files in the artifact end in {suffix} and one is needed; name it in the source, after a #",
            reason="invalid_spec",
        )
    return os.path.join(path, first[0])
