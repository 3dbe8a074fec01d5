"""Actions on models, on leases and on other requests."""

import contextlib
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from moc.kernel.errors import Unimplemented
from moc.service.leases import LeaseWish
from moc.service.models import spec_from
from moc.service.services import Services
from moc.service.views import LeaseView
from moc.transports.zmq.call import Action, Call, Emit, Outcome


class LoadPayload(msgspec.Struct, forbid_unknown_fields=True):
    """A model by reference; `spec` registers it first, with the keys that a model has in `moc.yaml`."""

    model: str
    spec: dict[str, Any] | None = None


class UnloadPayload(msgspec.Struct, forbid_unknown_fields=True):
    """A model by reference."""

    model: str


class PagePayload(msgspec.Struct, forbid_unknown_fields=True):
    """Some of a list: those behind `after`."""

    after: str | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class AcquirePayload(LeaseWish, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A lease that is wanted; with `stream` pieces tell its place in line while it is pending."""

    stream: bool = False


class RenewPayload(msgspec.Struct, forbid_unknown_fields=True):
    """A lease and the token that proves it; `pid` says which process uses it, if that is new."""

    id: str
    token: str
    pid: int | None = None


class ReleasePayload(msgspec.Struct, forbid_unknown_fields=True):
    """A lease and the token that proves it."""

    id: str
    token: str


def management_actions(services: Services) -> Mapping[str, Action]:
    """Models, leases, and what is to be ended."""
    managing = _Managing(services)
    return {
        "load_model": Action(handle=managing.load_model),
        "unload_model": Action(handle=managing.unload_model),
        "list_models": Action(handle=managing.list_models),
        "acquire_lease": Action(handle=managing.acquire_lease, patient=True),
        "renew_lease": Action(handle=managing.renew_lease),
        "release_lease": Action(handle=managing.release_lease),
        "cancel": Action(handle=_cancel),
        **{name: Action(handle=_later) for name in ("create_goal", "goal")},
    }


class CancelPayload(msgspec.Struct, forbid_unknown_fields=True):
    """Which of the caller's own requests is to end."""

    request_id: str


async def _cancel(call: Call) -> Outcome:
    return Outcome({"cancelled": call.cancel(call.read(CancelPayload).request_id)})


async def _later(call: Call) -> Outcome:
    raise Unimplemented("this version has no goals; a later one will")


class _Managing:
    def __init__(self, services: Services) -> None:
        self._models = services.models
        self._leases = services.leases

    async def load_model(self, call: Call) -> Outcome:
        payload = call.read(LoadPayload)
        reference = payload.model
        if payload.spec is not None:
            spec = spec_from(payload.spec, where=f"model {payload.model[:128]!r}")
            reference = (await self._models.add(call.identity, payload.model, spec)).reference
        return Outcome(await self._models.load(call.identity, reference, call.deadline))

    async def unload_model(self, call: Call) -> Outcome:
        return Outcome(await self._models.unload(call.identity, call.read(UnloadPayload).model, call.deadline))

    async def list_models(self, call: Call) -> Outcome:
        payload = call.read(PagePayload)
        page = await self._models.list(call.identity, after=payload.after, limit=payload.limit)
        return Outcome({"models": page.items, "next": page.next})

    async def acquire_lease(self, call: Call) -> Outcome:
        wish = call.read(AcquirePayload)
        if wish.stream and call.emit is not None:
            lease = await self._acquire_told(call, wish, call.emit)
        else:
            lease = await self._leases.acquire(call.identity, wish, call.deadline)
        return Outcome(lease, undo=partial(self._leases.release, call.identity, lease.id, lease.token))

    async def _acquire_told(self, call: Call, wish: LeaseWish, emit: Emit) -> LeaseView:
        async with contextlib.aclosing(self._leases.follow(call.identity, wish, call.deadline)) as followed:
            while (lease := await anext(followed)).state == "pending":
                await emit(lease)
            return lease

    async def renew_lease(self, call: Call) -> Outcome:
        payload = call.read(RenewPayload)
        return Outcome(await self._leases.renew(call.identity, payload.id, payload.token, payload.pid))

    async def release_lease(self, call: Call) -> Outcome:
        payload = call.read(ReleasePayload)
        return Outcome(await self._leases.release(call.identity, payload.id, payload.token))
