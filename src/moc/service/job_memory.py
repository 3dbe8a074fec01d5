"""Device memory for jobs: leases that wait their turn, and are taken back when models need them."""

import asyncio
import contextlib
from collections.abc import Callable

from moc.gpu.broker import Broker
from moc.gpu.device import CUDA, DECLARED, HOST
from moc.gpu.lease import LeaseTerms, Standing, Token
from moc.gpu.leases import Leases
from moc.gpu.ledger import Charge, Ledger
from moc.gpu.monitor import DeviceMonitor
from moc.gpu.queue import JOB_SPARES_USED_S
from moc.kernel.errors import InvalidRequest, NoCapacity, NotFound
from moc.kernel.ids import new_id
from moc.kernel.records import Store
from moc.kernel.units import Bytes
from moc.learning.estimate import Dimensions
from moc.learning.job import TRAINING, Job, JobType
from moc.learning.needs import OLD_CUDA, JobNeeds, estimated
from moc.learning.ports import Base, Holding, Prepared
from moc.models.footprint import GgufArchitecture
from moc.models.headers.gguf import read_gguf
from moc.models.headers.reader import BadHeader
from moc.models.headers.transformers import TransformersConfig
from moc.security.identity import Identity, Role
from moc.service.tenancy import cuda_name

TTL_S = 30.0
"""How long a lease of a job lasts once nobody renews it."""

WAIT_S = 10 * 365 * 86_400.0
"""As long as it takes: who asks anew goes to the end of the line."""

LOOK_S = 1.0
HOLDERS_TOLD = 4
_MODEL = "model:"
MAIN_MEMORY_ONLY = frozenset({JobType.EVALUATE, JobType.TUNE})
"""They have others compute for them."""

_EXPECTATIONS = ((15, "15 s"), (60, "a minute"), (300, "5 minutes"), (1800, "half an hour"), (7200, "two hours"))
"""As coarse as it is known: what a job waits for is told anew whenever it changes."""


class JobMemory:
    """Implements `learning.ports.Memory`. A job has `grace_s` to save what it did, once it ran `min_runtime_s`."""

    def __init__(
        self,
        *,
        leases: Leases,
        broker: Broker,
        devices: DeviceMonitor,
        store: Store,
        grace_s: float,
        min_runtime_s: float,
    ) -> None:
        self._leases = leases
        self._broker = broker
        self._devices = devices
        self._needs = JobNeeds(store)
        self._grace_s = grace_s
        self._min_runtime_s = min_runtime_s

    def adjust(self, *, grace_s: float, min_runtime_s: float) -> None:
        """Let these count for leases from now on."""
        self._grace_s, self._min_runtime_s = grace_s, min_runtime_s

    async def need(self, job: Job, prepared: Prepared) -> int:
        """See `learning.ports.Memory`."""
        model, digest = await self._base(job, prepared)
        wanted = self._wanted(job)
        accounts = self._broker.accounts().values()
        limit_bytes = max((each.limit_bytes for each in accounts if wanted in (each.kind, each.device)), default=0)
        kind, longest = self._kind(wanted), prepared.longest
        return await self._needs.expected(job, model, digest, kind=kind, limit_bytes=limit_bytes, longest=longest)

    async def doubt(self, job: Job, prepared: Prepared) -> str:
        """See `learning.ports.Memory`."""
        model, _ = await self._base(job, prepared)
        given = job.spec.memory_bytes
        if given is None or model is None:
            return ""
        need = estimated(job, model, self._kind(self._wanted(job)), prepared.longest)
        if given >= need.base_bytes:
            return ""
        return (
            f"it was given {Bytes(given)} of memory, and {Bytes(need.base_bytes)} are expected to be taken before the "
            f"first step, {Bytes(need.bytes)} in all"
        )

    async def learn(self, job: Job, prepared: Prepared | None, *, device: str, peak_bytes: int) -> None:
        """See `learning.ports.Memory`."""
        model, digest = await self._base(job, prepared)
        kind, longest = self._kind(device), 0 if prepared is None else prepared.longest
        await self._needs.learn(job, model, digest, kind=kind, peak_bytes=peak_bytes, longest=longest)

    async def acquire(self, job: Job, size: int, *, on_wait: Callable[[str], None]) -> Holding:
        """See `learning.ports.Memory`."""
        wanted = self._wanted(job)
        if not any(wanted in (each.device.kind, each.device.id) for each in self._devices.statuses()):
            raise NoCapacity(f"there is no device {wanted!r} here; `moc devices list` shows those there are")
        terms = LeaseTerms(
            bytes=size,
            devices=wanted,
            priority=job.spec.priority,
            ttl_s=TTL_S,
            min_runtime_s=self._min_runtime_s,
            grace_s=self._grace_s,
            job=job.id,
        )
        submitter = Identity(job.created_by, job.created_by_name, Role.OPERATOR)
        lease_id = new_id("lse")
        asking = asyncio.ensure_future(
            self._leases.acquire(terms, identity=submitter, wait_s=WAIT_S, lease_id=lease_id)
        )
        try:
            await self._tell(asking, lease_id, on_wait)
            return self._holding(asking.result())
        except BaseException:
            await self._give_up(asking)
            raise

    async def renew(self, holding: Holding, pid: int | None) -> Holding:
        """See `learning.ports.Memory`."""
        token = Token.parse(holding.token)
        standing = self._leases.renew(holding.lease_id, token)
        if pid is not None:
            with contextlib.suppress(InvalidRequest):  # the process ended just now: its runner will see
                standing = await self._leases.occupy(holding.lease_id, token, pid, actor=standing.lease.holder)
        return self._holding(standing)

    async def release(self, holding: Holding) -> None:
        """See `learning.ports.Memory`."""
        try:
            holder = self._leases.show(holding.lease_id).lease.holder
            await self._leases.release(holding.lease_id, Token.parse(holding.token), actor=holder)
        except NotFound:
            return  # it ended long ago

    # waiting

    async def _tell(self, asking: "asyncio.Future[Standing]", lease_id: str, on_wait: Callable[[str], None]) -> None:
        """Say what is waited for until that is over, whenever somebody else has the memory, or its place changes."""
        told: object = None
        while not (await asyncio.wait({asking}, timeout=LOOK_S))[0]:
            try:
                standing = self._leases.show(lease_id)
            except NotFound:
                continue
            ledger = self._broker.ledger()
            expectation = _expectation(standing.estimated_wait_s)
            news = (standing.position, standing.first, expectation, {charge.holder for charge in ledger.charges})
            if news != told:
                told = news
                on_wait(waits_for(standing, expectation, ledger))

    async def _give_up(self, asking: "asyncio.Future[Standing]") -> None:
        """Nobody waits any longer; what was granted in the same moment is given back."""
        asking.cancel()
        (outcome,) = await asyncio.gather(asking, return_exceptions=True)
        if isinstance(outcome, Standing):
            await self.release(self._holding(outcome))

    def _holding(self, standing: Standing) -> Holding:
        lease = standing.lease
        device = self._devices.status(lease.device).device
        return Holding(
            lease_id=lease.id,
            token=str(lease.token),
            device=lease.device,
            bytes=lease.terms.bytes,
            gpus=(cuda_name(device),) if device.kind == CUDA else (),
            evict_in_s=standing.evict_in_s,
        )

    # what and where

    def _wanted(self, job: Job) -> str:
        """The devices a job may be put on: with `auto` a GPU if there is one and it computes itself."""
        if job.spec.devices != "auto":
            return job.spec.devices
        kinds = (HOST, DECLARED) if job.spec.type in MAIN_MEMORY_ONLY else (CUDA, HOST, DECLARED)
        there = {status.device.kind for status in self._devices.statuses()}
        return next((kind for kind in kinds if kind in there), HOST)

    def _kind(self, wanted: str) -> str:
        """What kind of device that is; of several the one that most is needed of."""
        found = [each.device for each in self._devices.statuses() if wanted in (each.device.kind, each.device.id)]
        return wanted.partition(":")[0] if all(device.bfloat16 for device in found) else OLD_CUDA

    async def _base(self, job: Job, prepared: Prepared | None) -> tuple[Dimensions | None, str]:
        """The model a training starts from, and the name of that."""
        base = None if prepared is None else prepared.base
        if base is None or job.spec.type not in TRAINING:
            return None, ""
        return await asyncio.to_thread(dimensions, base), base.digest


def dimensions(base: Base) -> Dimensions:
    """What the files of a model tell of it, and for the rest what is usual; blocks."""
    usual = Dimensions.usual(base.parameters or base.size_bytes)
    found: GgufArchitecture | TransformersConfig
    try:
        found = GgufArchitecture(read_gguf(base.path)) if base.path.is_file() else TransformersConfig(base.path)
    except (BadHeader, OSError):
        return usual
    return Dimensions(
        parameters=usual.parameters,
        layers=found.layers or usual.layers,
        width=found.width or usual.width,
        feed_forward=found.feed_forward or usual.feed_forward,
        vocabulary=found.vocabulary or usual.vocabulary,
    )


def waits_for(standing: Standing, expectation: str, ledger: Ledger) -> str:
    """What a job waits for: how much, where, what is free there, who has the rest, who is first, how long perhaps."""
    terms, models = standing.lease.terms, False
    told = [f"{Bytes(terms.bytes)} on {terms.devices}"]
    for account in ledger.accounts.values():
        if terms.devices not in (account.kind, account.device):
            continue
        charges = [charge for charge in ledger.charges if charge.device == account.device]
        charges.sort(key=lambda charge: (-charge.bytes, charge.holder))
        models = models or any(charge.holder.startswith(_MODEL) for charge in charges)
        shares = [f"{Bytes(max(0, ledger.free_bytes(account.device)))} of {Bytes(account.limit_bytes)} free"]
        shares += [f"{_name(charge)} has {Bytes(charge.bytes)}" for charge in charges[:HOLDERS_TOLD]]
        shares += [f"{len(charges) - HOLDERS_TOLD} more have the rest"] if len(charges) > HOLDERS_TOLD else []
        told.append(f"{account.device}: {', '.join(shares)}")
    if models:
        told.append(f"a model leaves for a job when nobody has asked for it for {JOB_SPARES_USED_S:.0f} s")
    if standing.first is not None:
        first = standing.first.terms.job or f"lease {standing.first.id}"
        wanted = Bytes(standing.first.terms.bytes)
        told.append(f"number {standing.position} in line, behind {first}, which waits for {wanted}")
    if expectation:
        told.append(f"perhaps within {expectation}")
    return "; ".join(told)


def _name(charge: Charge) -> str:
    return charge.holder.removeprefix(_MODEL).replace(":", " ")


def _expectation(wait_s: float | None) -> str:
    if wait_s is None:
        return ""
    return next((text for limit_s, text in _EXPECTATIONS if wait_s <= limit_s), "hours")
