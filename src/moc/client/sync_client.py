"""The client for programs without an event loop; `async_client` is its twin, method for method."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from moc.client import calls
from moc.client.aliases import Aliases
from moc.client.calls import Messages, Terms
from moc.client.config import Config
from moc.client.connection import Connection, Stream
from moc.client.discovery import Target
from moc.client.evaluations import Evaluations
from moc.client.files import Files
from moc.client.following import Following
from moc.client.jobs import Jobs
from moc.client.keys import Audit, Keys
from moc.client.leases import HeldLease, Leases, Notice
from moc.client.rollouts import Rollouts
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


class Models:
    """The models the coordinator knows. A reference is `name` (its newest version) or `name@version`."""

    def __init__(self, line: Connection) -> None:
        self._line = line

    def list(self, *, after: str | None = None, limit: int = 100) -> Page[ModelView]:
        """The newest version of each model, by name."""
        return self._line.send(calls.list_models(after, limit))

    def versions(self, name: str) -> Sequence[ModelView]:
        """Every version of one model; NotFound when there is none."""
        return self._line.send(calls.list_versions(name))

    def show(self, reference: str) -> ModelView:
        """One version; NotFound when there is none."""
        return self._line.send(calls.show_model(reference))

    def card(self, name: str, version: int) -> str:
        """The model card of a version that was trained here, as Markdown; NotFound when it was not."""
        return self._line.send(calls.show_card(name, version))

    def explain(self, reference: str) -> ExplanationView:
        """What loading it would do now; changes nothing. Conflict until its files are here."""
        return self._line.send(calls.explain_model(reference))

    def add(self, name: str, *, runtime: str, source: str = "", **spec: Any) -> ModelView:
        """Make a new version. The same spec again changes nothing and returns the version there is.

        `spec` has the keys of a model in `moc.yaml`: `options`, `memory` (bytes or `2GiB`), `ttl_s`, `preload`, …
        """
        return self._line.send(calls.add_model(name, runtime, source, spec))

    def pull(self, reference: str, *, deadline_s: float | None = None) -> ModelView:
        """Fetch its files, unless they are here."""
        return self._line.send(calls.change_model(reference, "pull", deadline_s))

    def load(self, reference: str, *, deadline_s: float | None = None) -> ModelView:
        """Load it, unless it is loaded; returns when it is ready. LoadFailed says why it could not."""
        return self._line.send(calls.change_model(reference, "load", deadline_s))

    def unload(self, reference: str, *, deadline_s: float | None = None) -> ModelView:
        """Let its requests finish and free its memory; returns when its worker is gone."""
        return self._line.send(calls.change_model(reference, "unload", deadline_s))

    def remove(self, reference: str) -> None:
        """Forget one version, or every version of a bare name."""
        self._line.send(calls.remove_model(reference))


class Workers:
    """The processes that hold loaded models."""

    def __init__(self, line: Connection) -> None:
        self._line = line

    def list(self, *, after: str | None = None, limit: int = 100) -> Page[WorkerView]:
        """The workers there are, by id."""
        return self._line.send(calls.list_workers(after, limit))

    def show(self, worker_id: str) -> WorkerView:
        """One worker; NotFound when it is gone."""
        return self._line.send(calls.show_worker(worker_id))


class Devices:
    """The memory that models are put in."""

    def __init__(self, line: Connection) -> None:
        self._line = line

    def list(self, *, after: str | None = None, limit: int = 100) -> Page[DeviceView]:
        """The devices there are, by id."""
        return self._line.send(calls.list_devices(after, limit))

    def show(self, device_id: str) -> DeviceView:
        """One device; NotFound when there is none."""
        return self._line.send(calls.show_device(device_id))

    def cordon(self, device_id: str) -> DeviceView:
        """Let it take no new models, until it is uncordoned; those it has stay."""
        return self._line.send(calls.change_device(device_id, "cordoned"))

    def uncordon(self, device_id: str) -> DeviceView:
        """Let it take models again; one that is lost does when it answers."""
        return self._line.send(calls.change_device(device_id, "online"))


class System:
    """The replica that answers."""

    def __init__(self, line: Connection) -> None:
        self._line = line

    def status(self) -> SystemView:
        """What it is, which seats it holds, its workers and memory."""
        return self._line.send(calls.status())


class Events:
    """What happened."""

    def __init__(self, line: Connection) -> None:
        self._line = line

    def list(self, *, after: int = 0, limit: int = 100) -> EventPage:
        """The first events behind the one with the id `after`, oldest first."""
        return self._line.send(calls.list_events(after, limit))

    def follow(self, *, after: int | None = None) -> Following[EventView]:
        """Events as they happen, those behind `after` first; without it only new ones.

        It outlives restarts of the coordinator, and ends only with an error.
        """
        return Following(self._line, calls.follow_events, itemgetter("id"), after)


class Client:
    """Talks to one coordinator and blocks; threads may share it. Use it in a `with` block, or close it.

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
        self._line = Connection(url, key, data_dir, timeout_s)
        self.models = Models(self._line)
        self.aliases = Aliases(self._line)
        self.rollouts = Rollouts(self._line)
        self.workers = Workers(self._line)
        self.devices = Devices(self._line)
        self.leases = Leases(self._line)
        self.jobs = Jobs(self._line)
        self.files = Files(self._line)
        self.evaluations = Evaluations(self._line)
        self.keys = Keys(self._line)
        self.audit = Audit(self._line)
        self.config = Config(self._line)
        self.system = System(self._line)
        self.events = Events(self._line)

    @property
    def target(self) -> Target:
        """The address and key in use; the first look may read the data folder's files."""
        return self._line.target

    def ready(self) -> bool:
        """Whether a coordinator answers and takes requests: False while it starts, drains or is not there."""
        try:
            self._line.send(calls.ready())
        except (Unavailable, DeadlineExceeded):
            return False
        return True

    @overload
    def chat(
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
    def chat(
        self,
        model: str,
        messages: Messages,
        *,
        stream: Literal[True],
        deadline_s: float | None = None,
        priority: int | None = None,
        session: str | None = None,
        **options: Any,
    ) -> Stream[Document]: ...

    def chat(
        self,
        model: str,
        messages: Messages,
        *,
        stream: bool = False,
        deadline_s: float | None = None,
        priority: int | None = None,
        session: str | None = None,
        **options: Any,
    ) -> Document | Stream[Document]:
        """The next turn of a conversation, whole or as its chunks come; a string is one user message.

        `options` are those of the OpenAI API: `temperature`, `max_tokens`, `response_format`, …
        """
        if stream:
            return self._line.open(calls.stream_chat(model, messages, options, Terms(deadline_s, priority, session)))
        return self._line.send(calls.chat(model, messages, options, Terms(deadline_s, priority, session)))

    @overload
    def complete(
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
    def complete(
        self,
        model: str,
        prompt: str,
        *,
        stream: Literal[True],
        deadline_s: float | None = None,
        priority: int | None = None,
        session: str | None = None,
        **options: Any,
    ) -> Stream[Document]: ...

    def complete(
        self,
        model: str,
        prompt: str,
        *,
        stream: bool = False,
        deadline_s: float | None = None,
        priority: int | None = None,
        session: str | None = None,
        **options: Any,
    ) -> Document | Stream[Document]:
        """How a text goes on, whole or as its chunks come; `options` as for `chat`."""
        if stream:
            return self._line.open(calls.stream_complete(model, prompt, options, Terms(deadline_s, priority, session)))
        return self._line.send(calls.complete(model, prompt, options, Terms(deadline_s, priority, session)))

    def embed(
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
        return self._line.send(calls.embed(model, texts, options, Terms(deadline_s, priority, session)))

    def tokenize(
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
        return self._line.send(calls.tokenize(model, text, options, Terms(deadline_s, priority, session)))

    def metadata(self, model: str) -> MetadataView:
        """The tensors a model takes and gives; loads it if that is not known yet."""
        return self._line.send(calls.metadata(model))

    def infer(
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
        return self._line.send(calls.infer(model, inputs, outputs, parameters, Terms(deadline_s, priority, session)))

    def lease(self, memory: str | int, *, on_preempt: Notice | None = None, **wish: Any) -> HeldLease:
        """Device memory to use within a `with` block: waited for at its start, kept alive, released at its end.

        `wish` is as for `leases.acquire`; `pid` is this process unless it is said. `on_preempt(lease)` is called once,
        in another thread: when somebody more urgent gets the memory in `lease.view["evict_in_s"]` seconds, or has it.
        """
        return HeldLease(self._line, {"memory": memory, **wish}, on_preempt)

    def close(self) -> None:
        """Let go of every connection; calling it again does nothing."""
        self._line.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
