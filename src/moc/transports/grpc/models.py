"""`moc.v1.Models`."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import msgspec
from google.protobuf.empty_pb2 import Empty

from moc.resilience.deadline import Deadline
from moc.security.identity import Identity
from moc.service.models import spec_from
from moc.service.services import Services
from moc.service.views import ModelView
from moc.transports.grpc.call import Call, Method, Unary
from moc.transports.grpc.messages import fields_of, message_of, page_of, read
from moc.transports.grpc.stubs.moc.v1 import models_pb2 as pb

SERVICE: Final = "moc.v1.Models"
Change = Callable[[Identity, str, Deadline], Awaitable[ModelView]]


class Models:
    """The service's methods."""

    def __init__(self, services: Services) -> None:
        self._models = services.models

    def methods(self) -> dict[str, Method]:
        """By path."""
        found: dict[str, Method] = {
            "List": Unary(self._list),
            "Versions": Unary(self._versions),
            "Get": Unary(self._get),
            "Add": Unary(self._add),
            "Pull": Unary(partial(_changed, self._models.pull)),
            "Load": Unary(partial(_changed, self._models.load)),
            "Unload": Unary(partial(_changed, self._models.unload)),
            "Remove": Unary(self._remove),
        }
        return {f"/{SERVICE}/{name}": method for name, method in found.items()}

    async def _list(self, data: bytes, call: Call) -> bytes:
        message = read(pb.ListModelsRequest, data)
        after, limit = page_of(message.after, message.limit)
        page = await self._models.list(call.identity, after=after, limit=limit)
        models = [_model(view) for view in page.items]
        return pb.ListModelsResponse(models=models, next=page.next or "").SerializeToString()

    async def _versions(self, data: bytes, call: Call) -> bytes:
        views = await self._models.versions(call.identity, _reference(data))
        return pb.ListModelsResponse(models=[_model(view) for view in views]).SerializeToString()

    async def _get(self, data: bytes, call: Call) -> bytes:
        return _model(await self._models.show(call.identity, _reference(data))).SerializeToString()

    async def _add(self, data: bytes, call: Call) -> bytes:
        message = read(pb.AddModelRequest, data)
        spec = spec_from(fields_of(message.spec), where=f"model {message.name[:128]!r}")
        return _model(await self._models.add(call.identity, message.name, spec)).SerializeToString()

    async def _remove(self, data: bytes, call: Call) -> bytes:
        await self._models.remove(call.identity, _reference(data))
        return Empty().SerializeToString()


async def _changed(change: Change, data: bytes, call: Call) -> bytes:
    return _model(await change(call.identity, _reference(data), call.deadline())).SerializeToString()


def _reference(data: bytes) -> str:
    return read(pb.ModelReference, data).reference


def _model(view: ModelView) -> pb.Model:
    fields = msgspec.to_builtins(view)
    if isinstance(view.devices, str):
        fields["devices"] = [view.devices]
    return message_of(pb.Model, fields)
