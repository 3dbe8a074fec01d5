"""What a caller may ask about models."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from moc.gpu.device import CUDA
from moc.inference.station import Stations
from moc.kernel.errors import Conflict, InvalidRequest, NotFound
from moc.kernel.units import Bytes, parse_duration_s
from moc.models.catalogue import Catalogue, Entry
from moc.models.footprints import Footprints
from moc.models.lineage import card
from moc.models.manager import ModelManager
from moc.models.model import NAME, REMOTE, RUNTIMES, SHARDED, SOURCELESS, Batching, Canary, ModelSpec, State
from moc.models.ports import Sources
from moc.resilience.deadline import Deadline
from moc.security.identity import Identity
from moc.security.policy import Operation
from moc.service.guard import Journal, audited, require, visible
from moc.service.health import Health
from moc.service.tenancy import Explanation, Tenancy
from moc.service.views import ModelView, Page, model_view
from moc.service.workforce import Workforce

_FIELDS = ModelSpec.__dataclass_fields__.keys()
_CANARY_KINDS = ("tensors", "chat", "completion", "embeddings", "rerank")
_DURATIONS = ("ttl_s", "min_residency_s")
_Limit = tuple[str, float, float, float]


def spec_from(fields: Mapping[str, Any], *, where: str) -> ModelSpec:
    """A ModelSpec from what a person wrote: `memory: 2GiB`, `ttl_s: 10m` and `min_residency_s: 1m` are understood.

    InvalidRequest names the field, what is wrong with it and where (`where`: a place in a file or a request).
    """
    given = dict(fields)
    if "memory" in given:
        memory = given.pop("memory")
        given["memory_bytes"] = None if memory is None else int(Bytes.parse(memory))
    _check_keys(given, [*_FIELDS, "memory"], where)
    for name, kind in (("batching", Batching), ("canary", Canary)):
        if isinstance(given.get(name), dict):
            _check_keys(given[name], [*kind.__dataclass_fields__], f"{where}: {name}")
    for key in _DURATIONS:
        if isinstance(given.get(key), str):
            given[key] = parse_duration_s(given[key])
    try:
        spec = msgspec.convert(given, ModelSpec)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"{where}: {error}") from None
    _check_ranges(spec, where)
    return spec


def _check_keys(given: Iterable[str], known: Sequence[str], where: str) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
            raise InvalidRequest(f"{where}: unknown key {key!r}{hint}")


def _check_canary(canary: Canary, where: str) -> None:
    if canary.kind not in _CANARY_KINDS:
        raise InvalidRequest(f"{where}: canary.kind is {canary.kind!r}; it is one of {', '.join(_CANARY_KINDS)}")
    if (canary.kind == "tensors") == bool(canary.body):
        needed = "takes no `body`: it is zeros" if canary.body else f"needs a `body`: what to ask of a {canary.kind}"
        raise InvalidRequest(f"{where}: the canary {needed}")


def _check_ranges(spec: ModelSpec, where: str) -> None:
    if spec.runtime not in RUNTIMES:
        raise InvalidRequest(f"{where}: unknown runtime {spec.runtime!r}; known are {', '.join(RUNTIMES)}")
    if not spec.source and (spec.runtime not in SOURCELESS or not spec.memory_bytes):
        raise InvalidRequest(
            f"{where}: source is missing; only a model that is a command may have none, if its memory is declared"
        )
    if spec.shards > 1 and spec.runtime not in SHARDED:
        raise InvalidRequest(f"{where}: {spec.runtime} runs on one device, so shards must be 1; not {spec.shards}")
    if spec.group and NAME.fullmatch(spec.group) is None:
        raise InvalidRequest(f"{where}: group is {spec.group[:150]!r}; use letters, digits, '.', '_' and '-'")
    if spec.batching is not None and spec.runtime == REMOTE:
        raise InvalidRequest(f"{where}: batching is for models that run here; a remote gathers requests itself")
    if spec.canary is not None:
        _check_canary(spec.canary, where)
    limits: tuple[_Limit, ...] = (
        ("ttl_s", spec.ttl_s, 0, 10**9),
        ("priority", spec.priority, 1, 10),
        ("max_concurrent", 1 if spec.max_concurrent is None else spec.max_concurrent, 1, 100_000),
        ("max_queue", spec.max_queue or 0, 0, 1_000_000),
        ("memory", spec.memory_bytes or 0, 0, 2**60),
        ("shards", spec.shards, 1, 64),
        ("min_residency_s", spec.min_residency_s or 0, 0, 10**9),
        ("cost", spec.cost, 0, 10**9),
        *_batching_limits(spec.batching),
        *_canary_limits(spec.canary),
    )
    for name, value, low, high in limits:
        if not low <= value <= high:
            raise InvalidRequest(f"{where}: {name} is {value}; it must be from {low} to {high}")


def _batching_limits(batching: Batching | None) -> list[_Limit]:
    if batching is None:
        return []
    return [
        ("batching.max_batch", batching.max_batch, 2, 65_536),
        ("batching.max_delay_ms", batching.max_delay_ms, 0, 10_000),
    ]


def _canary_limits(canary: Canary | None) -> list[_Limit]:
    if canary is None:
        return []
    return [
        ("canary.interval_s", canary.interval_s, 0.1, 86_400),
        ("canary.timeout_s", canary.timeout_s, 0.1, 3_600),
    ]


class ModelsService:
    """Models by reference (`name` or `name@version`); every method authorises first."""

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        manager: ModelManager,
        sources: Sources,
        footprints: Footprints,
        tenancy: Tenancy,
        workforce: Workforce,
        health: Health,
        stations: Stations,
        journal: Journal,
    ) -> None:
        self.journal = journal
        self._catalogue = catalogue
        self._manager = manager
        self._sources = sources
        self._footprints = footprints
        self._tenancy = tenancy
        self._workforce = workforce
        self._health = health
        self._stations = stations

    async def list(self, identity: Identity, *, after: str | None, limit: int) -> Page[ModelView]:
        """The newest version of each model, by name; `after` is the last name of the page before."""
        seen = visible(identity, Operation.READ_MODELS)
        names = [name for name in self._catalogue.names() if seen(name) and (after is None or name > after)]
        views = [await self._view(self._catalogue.entry(name)) for name in names[:limit]]
        return Page(views, names[limit - 1] if len(names) > limit else None)

    async def versions(self, identity: Identity, name: str) -> Sequence[ModelView]:
        """Every version of a model, oldest first; NotFound when there is none."""
        require(identity, Operation.READ_MODELS, model=name)
        self._catalogue.entry(name)
        return [await self._view(entry) for entry in self._catalogue.versions(name)]

    async def index(self, identity: Identity, *, ready_only: bool) -> Sequence[ModelView]:
        """Every version of every model."""
        seen = visible(identity, Operation.READ_MODELS)
        entries = [entry for name in self._catalogue.names() if seen(name) for entry in self._catalogue.versions(name)]
        views = [await self._view(entry) for entry in entries]
        return [view for view in views if (view.state == State.READY and not view.problem) or not ready_only]

    async def show(self, identity: Identity, reference: str) -> ModelView:
        """One version."""
        require(identity, Operation.READ_MODELS, model=reference)
        return await self._view(self._catalogue.entry(reference))

    async def card(self, identity: Identity, reference: str) -> str:
        """The model card of a version that was trained here, as Markdown; NotFound when it was not."""
        require(identity, Operation.READ_MODELS, model=reference)
        version = self._catalogue.entry(reference).version
        if version.lineage is None:
            raise NotFound(f"{version.reference} was not trained here, so it has no card")
        return card(version.reference, version.digest, version.lineage)

    async def explain(self, identity: Identity, reference: str) -> Explanation:
        """What loading it would do now; changes nothing. Conflict until its files are here or its need declared."""
        require(identity, Operation.READ_MODELS, model=reference)
        version = self._catalogue.entry(reference).version
        needs: dict[str, int] = {}
        for kind in self._tenancy.kinds(version):
            expected = await self._footprints.known(version, device_kind=kind)
            if expected is None:
                raise Conflict(f"what {version.reference} needs is not known before its files are here; pull it first")
            needs[kind] = expected.bytes
        return self._tenancy.explain(version, needs)

    @audited("models.add")
    async def add(self, identity: Identity, name: str, spec: ModelSpec) -> ModelView:
        """Register a new version; the same spec as the newest one's returns that one."""
        require(identity, Operation.CHANGE_MODELS, model=name)
        self._sources.check(spec, trusted=False)
        return await self._view(await self._manager.add(name, spec, actor=identity.key_id))

    @audited("models.pull")
    async def pull(self, identity: Identity, reference: str, deadline: Deadline) -> ModelView:
        """Bring its files here."""
        require(identity, Operation.CHANGE_MODELS, model=reference)
        return await self._view(await self._manager.pull(reference, deadline))

    @audited("models.load")
    async def load(self, identity: Identity, reference: str, deadline: Deadline) -> ModelView:
        """Load it; returns when it is ready."""
        require(identity, Operation.CHANGE_MODELS, model=reference)
        return await self._view(await self._manager.load(reference, deadline, actor=identity.key_id))

    @audited("models.unload")
    async def unload(self, identity: Identity, reference: str, deadline: Deadline) -> ModelView:
        """Drain it and free its memory."""
        require(identity, Operation.CHANGE_MODELS, model=reference)
        return await self._view(await self._manager.unload(reference, deadline, actor=identity.key_id))

    @audited("models.remove")
    async def remove(self, identity: Identity, reference: str) -> None:
        """Unload and forget it; a bare name means all its versions."""
        require(identity, Operation.CHANGE_MODELS, model=reference)
        await self._manager.remove(reference, actor=identity.key_id)

    async def _view(self, entry: Entry) -> ModelView:
        worker_id = entry.status.worker_id
        worker = self._workforce.holding(worker_id) if worker_id else None
        version = entry.version
        kind = self._tenancy.kinds(version)[0]
        expected = await self._footprints.known(version, device_kind=kind)
        beside = await self._footprints.beside(version, device_kind=kind) if kind == CUDA else None
        return model_view(
            entry,
            worker,
            expected,
            host_memory_bytes=beside,
            problem=self._problem(entry),
            circuit=self._stations.circuit(worker_id),
            bulkhead=self._stations.bulkhead,
        )

    def _problem(self, entry: Entry) -> str:
        return self._health.problem(entry.status.worker_id) if entry.status.state is State.READY else ""
