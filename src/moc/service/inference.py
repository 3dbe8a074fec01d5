"""What a caller may ask of a model."""

import time

import msgspec

from moc.inference.answer import Answer, AnswerStream
from moc.inference.gateway import Gateway
from moc.inference.request import Caller, Info, Kind, Reply, Request, Tensor, TensorSpec, Terms
from moc.models.aliases import AliasBook
from moc.models.catalogue import Catalogue, Entry
from moc.models.manager import ModelManager
from moc.models.model import Batching
from moc.resilience.deadline import Deadline
from moc.security.identity import Identity
from moc.security.policy import Operation
from moc.service.guard import check, require, visible
from moc.service.health import Health

__all__ = [
    "Answer",
    "AnswerStream",
    "Description",
    "Duration",
    "InferenceService",
    "Info",
    "Kind",
    "Reply",
    "Request",
    "Statistics",
    "Tally",
    "Tensor",
    "TensorSpec",
    "Terms",
]


NOT_LOADED = "it is not loaded; the first request loads it"


class Description(msgspec.Struct, frozen=True):
    """A model version as its callers need to know it."""

    name: str
    version: int
    versions: tuple[int, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    kinds: tuple[Kind, ...]
    created_at: float
    max_concurrent: int
    batching: Batching | None


class Duration(msgspec.Struct):
    """How often, and how many nanoseconds in all."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        """One more."""
        self.count += 1
        self.ns += int(seconds * 1e9)


class Statistics(msgspec.Struct):
    """What a version has served since this coordinator started; as the statistics extension of OIP defines it.

    The engine's work is counted whole as `compute_infer`; `compute_input` and `compute_output` stay zero.
    """

    name: str
    version: int
    last_inference_ms: int = 0
    inference_count: int = 0
    execution_count: int = 0
    success: Duration = msgspec.field(default_factory=Duration)
    fail: Duration = msgspec.field(default_factory=Duration)
    queue: Duration = msgspec.field(default_factory=Duration)
    compute_input: Duration = msgspec.field(default_factory=Duration)
    compute_infer: Duration = msgspec.field(default_factory=Duration)
    compute_output: Duration = msgspec.field(default_factory=Duration)


class Tally:
    """Statistics of each version; one of the gateway's meters."""

    def __init__(self) -> None:
        self._statistics: dict[str, Statistics] = {}

    def finished(self, reference: str, kind: str, code: str, *, queue_s: float, engine_s: float) -> None:
        """Count one request; see `inference.ports.Meter`."""
        found = self.of(reference)
        if code != "ok":
            found.fail.add(queue_s + engine_s)
            return
        found.last_inference_ms = int(time.time() * 1000)
        found.inference_count += 1
        found.execution_count += 1
        found.success.add(queue_s + engine_s)
        found.queue.add(queue_s)
        found.compute_infer.add(engine_s)

    def of(self, reference: str) -> Statistics:
        """The statistics of `name@version`, zero when it served nothing yet."""
        found = self._statistics.get(reference)
        if found is None:
            name, _, version = reference.partition("@")
            found = self._statistics[reference] = Statistics(name, int(version))
        return found


class InferenceService:
    """Inference on models by reference (`name` or `name@version`) or alias."""

    def __init__(
        self,
        *,
        gateway: Gateway,
        catalogue: Catalogue,
        aliases: AliasBook,
        manager: ModelManager,
        health: Health,
        tally: Tally,
    ) -> None:
        self._gateway = gateway
        self._catalogue = catalogue
        self._aliases = aliases
        self._manager = manager
        self._health = health
        self._tally = tally

    async def infer(self, identity: Identity, reference: str, request: Request, terms: Terms) -> Answer:
        """One answer; see `inference.gateway.Gateway.infer`."""
        require(identity, Operation.INFER, model=reference)
        with identity.quota:
            return await self._gateway.infer(_caller(identity), reference, request, terms)

    async def stream(self, identity: Identity, reference: str, request: Request, terms: Terms) -> AnswerStream:
        """An answer in chunks, when the first is there; close it."""
        require(identity, Operation.INFER, model=reference)
        identity.quota.enter()
        try:
            stream = await self._gateway.stream(_caller(identity), reference, request, terms)
        except BaseException:
            identity.quota.leave()
            raise
        stream.at_end(identity.quota.leave)
        return stream

    def problem(self, identity: Identity, reference: str) -> str:
        """Why requests would not be answered now without loading it first, empty when they would.

        Of an alias, any of its models may answer. NotFound for what there is not.
        """
        require(identity, Operation.READ_MODELS, model=reference)
        alias = self._aliases.find(reference)
        if alias is None:
            self._catalogue.entry(reference)
            return self._problem(reference)
        problems = [self._problem(each) for each in alias.answerers]
        return problems[0] if all(problems) else ""

    def _problem(self, reference: str) -> str:
        resident = self._manager.find(reference)
        return NOT_LOADED if resident is None else self._health.problem(resident.worker_id)

    async def describe(self, identity: Identity, reference: str, deadline: Deadline) -> Description:
        """What it takes and gives; a version that was never loaded is loaded to find out.

        An alias is described as its heaviest version is, under its own name.
        """
        require(identity, Operation.READ_MODELS, model=reference)
        alias = self._aliases.find(reference)
        entry = self._manager.serving(reference if alias is None else alias.heaviest)
        if not entry.status.info:
            check(identity, Operation.INFER, model=reference)
            await self._manager.ensure_ready(entry.version.reference, deadline)
        found = self._description(entry)
        return found if alias is None else msgspec.structs.replace(found, name=reference, versions=())

    def statistics(self, identity: Identity, reference: str | None) -> list[Statistics]:
        """Of one version, of those an alias stands for, or of every version there is."""
        if reference is not None:
            require(identity, Operation.READ_MODELS, model=reference)
            alias = self._aliases.find(reference)
            named = [reference] if alias is None else alias.answerers
            return [self._tally.of(self._manager.serving(each).version.reference) for each in named]
        seen = visible(identity, Operation.READ_MODELS)
        entries = [entry for name in self._catalogue.names() if seen(name) for entry in self._catalogue.versions(name)]
        return [self._tally.of(entry.version.reference) for entry in entries]

    def _description(self, entry: Entry) -> Description:
        version = entry.version
        info = msgspec.convert(entry.status.info, Info)
        bulkhead = self._gateway.stations.bulkhead.but(version.spec.max_concurrent, None)
        return Description(
            name=version.name,
            version=version.version,
            versions=tuple(other.version.version for other in self._catalogue.versions(version.name)),
            platform=version.spec.runtime,
            inputs=info.inputs,
            outputs=info.outputs,
            kinds=info.kinds,
            created_at=version.created_at,
            max_concurrent=min(bulkhead.max_concurrent, info.concurrency),
            batching=version.spec.batching,
        )


def _caller(identity: Identity) -> Caller:
    return Caller(identity.key_id, identity.weight)
