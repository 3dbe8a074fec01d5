"""The client for programs with an event loop; `sync_client` is its twin, method for method."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from moc.client import calls
from moc.client.aliases import AsyncAliases
from moc.client.calls import Messages, Terms
from moc.client.config import AsyncConfig
from moc.client.connection import AsyncConnection, AsyncStream
from moc.client.discovery import Target
from moc.client.evaluations import AsyncEvaluations
from moc.client.files import AsyncFiles
from moc.client.following import AsyncFollowing
from moc.client.jobs import AsyncJobs
from moc.client.keys import AsyncAudit, AsyncKeys
from moc.client.leases import AsyncHeldLease, AsyncLeases, AsyncNotice
from moc.client.rollouts import AsyncRollouts
from moc.client.views import (
    DeviceView,
    Document,
    EventPage,
    EventView,
    ExplanationView,
    MetadataView,
    ModelView,
    Page,
    SystemView,
    TokensView,
    WorkerView,
)
from moc.kernel.errors import DeadlineExceeded, Unavailable

if TYPE_CHECKING:
    from moc.client.tensors import Array


class AsyncModels:
    """The models the coordinator knows. A reference is `name` (its newest version) or `name@version`."""

    def __init__(self, line: AsyncConnection) -> None:
        self._line = line

    async def list(self, *, after: str | None = None, limit: int = 100) -> Page[ModelView]:
        """The newest version of each model, by name."""
        return await self._line.send(calls.list_models(after, limit))

    async def versions(self, name: str) -> Sequence[ModelView]:
        """Every version of one model; NotFound when there is none."""
        return await self._line.send(calls.list_versions(name))

    async def show(self, reference: str) -> ModelView:
        """One version; NotFound when there is none."""
        return await self._line.send(calls.show_model(reference))

    async def card(self, name: str, version: int) -> str:
        """The model card of a version that was trained here, as Markdown; NotFound when it was not."""
        return await self._line.send(calls.show_card(name, version))

    async def explain(self, reference: str) -> ExplanationView:
        """What loading it would do now; changes nothing. Conflict until its files are here."""
        return await self._line.send(calls.explain_model(reference))

    async def add(self, name: str, *, runtime: str, source: str = "", **spec: Any) -> ModelView:
        """Make a new version. The same spec again changes nothing and returns the version there is.

        `spec` has the keys of a model in `moc.yaml`: `options`, `memory` (bytes or `2GiB`), `ttl_s`, `preload`, …
        """
        return await self._line.send(calls.add_model(name, runtime, source, spec))

    async def pull(self, reference: str, *, deadline_s: float | None = None) -> ModelView:
        """Fetch its files, unless they are here."""
        return await self._line.send(calls.change_model(reference, "pull", deadline_s))

    async def load(self, reference: str, *, deadline_s: float | None = None) -> ModelView:
        """Load it, unless it is loaded; returns when it is ready. LoadFailed says why it could not."""
        return await self._line.send(calls.change_model(reference, "load", deadline_s))

    async def unload(self, reference: str, *, deadline_s: float | None = None) -> ModelView:
        """Let its requests finish and free its memory; returns when its worker is gone."""
        return await self._line.send(calls.change_model(reference, "unload", deadline_s))

    async def remove(self, reference: str) -> None:
        """Forget one version, or every version of a bare name."""
        await self._line.send(calls.remove_model(reference))


class AsyncWorkers:
    """The processes that hold loaded models."""

    def __init__(self, line: AsyncConnection) -> None:
        self._line = line

    async def list(self, *, after: str | None = None, limit: int = 100) -> Page[WorkerView]:
        """The workers there are, by id."""
        return await self._line.send(calls.list_workers(after, limit))

    async def show(self, worker_id: str) -> WorkerView:
        """One worker; NotFound when it is gone."""
        return await self._line.send(calls.show_worker(worker_id))


class AsyncDevices:
    """The memory that models are put in."""

    def __init__(self, line: AsyncConnection) -> None:
        self._line = line

    async def list(self, *, after: str | None = None, limit: int = 100) -> Page[DeviceView]:
        """The devices there are, by id."""
        return await self._line.send(calls.list_devices(after, limit))

    async def show(self, device_id: str) -> DeviceView:
        """One device; NotFound when there is none."""
        return await self._line.send(calls.show_device(device_id))

    async def cordon(self, device_id: str) -> DeviceView:
        """Let it take no new models, until it is uncordoned; those it has stay."""
        return await self._line.send(calls.change_device(device_id, "cordoned"))

    async def uncordon(self, device_id: str) -> DeviceView:
        """Let it take models again; one that is lost does when it answers."""
        return await self._line.send(calls.change_device(device_id, "online"))


class AsyncSystem:
    """The replica that answers."""

    def __init__(self, line: AsyncConnection) -> None:
        self._line = line

    async def status(self) -> SystemView:
        """What it is, which seats it holds, its workers and memory."""
        return await self._line.send(calls.status())


class AsyncEvents:
    """What happened."""

    def __init__(self, line: AsyncConnection) -> None:
        self._line = line

    async def list(self, *, after: int = 0, limit: int = 100) -> EventPage:
        """The first events behind the one with the id `after`, oldest first."""
        return await self._line.send(calls.list_events(after, limit))

    async def follow(self, *, after: int | None = None) -> AsyncFollowing[EventView]:
        """Events as they happen, those behind `after` first; without it only new ones.

        It outlives restarts of the coordinator, and ends only with an error.
        """
        return await AsyncFollowing(self._line, calls.follow_events, itemgetter("id"), after).open()


class AsyncClient:
    """Talks to one coordinator. Use it in an `async with` block, in one event loop, or aclose it.

    `url`, `key` and `data_dir` are taken from `MOC_URL`, `MOC_KEY` and `MOC_DATA_DIR` when not given, then from
    the data folder of a coordinator on this machine. `timeout_s` is how long to wait for an answer, or for the
    next part of a streamed one, when a call has no `deadline_s`. A `deadline_s`, in seconds, is kept by the
    coordinator too: work that cannot end in time is refused or stopped with DeadlineExceeded. Where requests wait
    for a model, those of your key go in by `priority`, from 1 (the highest) to 10; those of one `session` are answered
    by the same version where the alias is sticky.

    Every method raises what the coordinator raised (`moc.kernel.errors`), or Unreachable when none answers.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        data_dir: str | Path | None = None,
        *,
        timeout_s: float = 600.0,
    ) -> None:
        self._line = AsyncConnection(url, key, data_dir, timeout_s)
        self.models = AsyncModels(self._line)
        self.aliases = AsyncAliases(self._line)
        self.rollouts = AsyncRollouts(self._line)
        self.workers = AsyncWorkers(self._line)
        self.devices = AsyncDevices(self._line)
        self.leases = AsyncLeases(self._line)
        self.jobs = AsyncJobs(self._line)
        self.files = AsyncFiles(self._line)
        self.evaluations = AsyncEvaluations(self._line)
        self.keys = AsyncKeys(self._line)
        self.audit = AsyncAudit(self._line)
        self.config = AsyncConfig(self._line)
        self.system = AsyncSystem(self._line)
        self.events = AsyncEvents(self._line)

    @property
    def target(self) -> Target:
        """The address and key in use; the first look may read the data folder's files."""
        return self._line.target

    async def ready(self) -> bool:
        """Whether a coordinator answers and takes requests: False while it starts, drains or is not there."""
        try:
            await self._line.send(calls.ready())
        except (Unavailable, DeadlineExceeded):
            return False
        return True

    @overload
    async def chat(
        self,
        model: str,
        messages: Messages,
        *,
        stream: Literal[False] = False,
        deadline_s: float | None = None,
        priority: int | None = None,
        session: str | None = None,
        **options: Any,
    ) -> Document: ...

    @overload
    async def chat(
        self,
        model: str,
        messages: Messages,
        *,
        stream: Literal[True],
        deadline_s: float | None = None,
        priority: int | None = None,
        session: str | None = None,
        **options: Any,
    ) -> AsyncStream[Document]: ...

    async def chat(
        self,
        model: str,
        messages: Messages,
        *,
        stream: bool = False,
        deadline_s: float | None = None,
        priority: int | None = None,
        session: str | None = None,
        **options: Any,
    ) -> Document | AsyncStream[Document]:
        """The next turn of a conversation, whole or as its chunks come; a string is one user message.

        `options` are those of the OpenAI API: `temperature`, `max_tokens`, `response_format`, …
        """
        if stream:
            return await self._line.open(
                calls.stream_chat(model, messages, options, Terms(deadline_s, priority, session))
            )
        return await self._line.send(calls.chat(model, messages, options, Terms(deadline_s, priority, session)))

    @overload
    async def complete(
        self,
        model: str,
        prompt: str,
        *,
        stream: Literal[False] = False,
        deadline_s: float | None = None,
        priority: int | None = None,
        session: str | None = None,
        **options: Any,
    ) -> Document: ...

    @overload
    async def complete(
        self,
        model: str,
        prompt: str,
        *,
        stream: Literal[True],
        deadline_s: float | None = None,
        priority: int | None = None,
        session: str | None = None,
        **options: Any,
    ) -> AsyncStream[Document]: ...

    async def complete(
        self,
        model: str,
        prompt: str,
        *,
        stream: bool = False,
        deadline_s: float | None = None,
        priority: int | None = None,
        session: str | None = None,
        **options: Any,
    ) -> Document | AsyncStream[Document]:
        """How a text goes on, whole or as its chunks come; `options` as for `chat`."""
        if stream:
            return await self._line.open(
                calls.stream_complete(model, prompt, options, Terms(deadline_s, priority, session))
            )
        return await self._line.send(calls.complete(model, prompt, options, Terms(deadline_s, priority, session)))

    async def embed(
        self,
        model: str,
        texts: str | Sequence[str],
        *,
        deadline_s: float | None = None,
        priority: int | None = None,
        session: str | None = None,
        **options: Any,
    ) -> Document:
        """Embeddings of one text or several, in order."""
        return await self._line.send(calls.embed(model, texts, options, Terms(deadline_s, priority, session)))

    async def tokenize(
        self,
        model: str,
        text: Messages,
        *,
        deadline_s: float | None = None,
        priority: int | None = None,
        session: str | None = None,
        **options: Any,
    ) -> TokensView:
        """The tokens of a text, or of a conversation up to where the answer would begin.

        `options` are `add_special_tokens` of a text, `add_generation_prompt` of a conversation; both true by default.
        """
        return await self._line.send(calls.tokenize(model, text, options, Terms(deadline_s, priority, session)))

    async def metadata(self, model: str) -> MetadataView:
        """The tensors a model takes and gives; loads it if that is not known yet."""
        return await self._line.send(calls.metadata(model))

    async def infer(
        self,
        model: str,
        inputs: "Mapping[str, Array]",
        *,
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Any] | None = None,
        deadline_s: float | None = None,
        priority: int | None = None,
        session: str | None = None,
    ) -> "dict[str, Array]":
        """Run a model on arrays and return its output arrays by name: those in `outputs`, or all of them.

        Text and bytes travel as BYTES and come back as arrays of `bytes` objects.
        """
        return await self._line.send(
            calls.infer(model, inputs, outputs, parameters, Terms(deadline_s, priority, session))
        )

    def lease(self, memory: str | int, *, on_preempt: AsyncNotice | None = None, **wish: Any) -> AsyncHeldLease:
        """Device memory to use within an `async with` block: waited for at its start, kept alive, released at its end.

        `wish` is as for `leases.acquire`; `pid` is this process unless it is said. `on_preempt(lease)` is called, or
        awaited, once: when somebody more urgent gets the memory in `lease.view["evict_in_s"]` seconds, or has it.
        """
        return AsyncHeldLease(self._line, {"memory": memory, **wish}, on_preempt)

    async def aclose(self) -> None:
        """Let go of every connection; calling it again does nothing."""
        await self._line.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()
