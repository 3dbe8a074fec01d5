"""Actions that tell what there is: for probes, for agents that look for a coordinator, for people."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from moc.security.identity import Identity
from moc.service.services import Services
from moc.service.views import ModelView
from moc.transports.oip.server import SERVER_NAME
from moc.transports.oip.tensors import DATATYPES
from moc.transports.zmq.call import Action, Call, Outcome
from moc.transports.zmq.limits import Limits
from moc.transports.zmq.message import JSON, MSGPACK

_PAGE: Final = 1000


def description_actions(services: Services, limits: Limits, actions: Mapping[str, Action]) -> Mapping[str, Action]:
    """What there is; `actions` are all that can be asked."""
    describing = _Describing(services, limits, actions)
    return {
        "status": Action(handle=describing.status),
        "health": Action(handle=describing.health, keyless=True),
        "discovery": Action(handle=describing.discovery, keyless=True),
        "capabilities": Action(handle=describing.capabilities),
    }


class _Describing:
    def __init__(self, services: Services, limits: Limits, actions: Mapping[str, Action]) -> None:
        self._models = services.models
        self._system = services.system
        self._limits = limits
        self._actions = actions

    async def status(self, call: Call) -> Outcome:
        return Outcome(await self._system.status(call.identity))

    async def health(self, call: Call) -> Outcome:
        readiness = self._system.readiness()
        return Outcome({"live": self._system.is_live(), **asdict(readiness), "version": self._system.version})

    async def discovery(self, call: Call) -> Outcome:
        found: dict[str, Any] = {"name": SERVER_NAME, "version": self._system.version}
        if call.caller is not None:
            found["urls"] = self._system.urls(call.caller)
            found["models"] = await self._inventory(call.caller)
        return Outcome(found)

    async def capabilities(self, call: Call) -> Outcome:
        limits = self._limits
        return Outcome(
            {
                "name": SERVER_NAME,
                "version": self._system.version,
                "actions": [*self._actions],
                "forms": [JSON.name, MSGPACK.name],
                "datatypes": DATATYPES,
                "limits": {
                    "message_bytes": limits.message_bytes,
                    "frames": limits.frames_max,
                    "requests_per_peer": limits.requests_per_peer,
                },
                "models": await self._inventory(call.identity),
            }
        )

    async def _inventory(self, identity: Identity) -> list[dict[str, Any]]:
        found: list[ModelView] = []
        after = None
        while True:
            page = await self._models.list(identity, after=after, limit=_PAGE)
            found += page.items
            after = page.next
            if after is None:
                return [
                    {
                        "name": view.name,
                        "version": view.version,
                        "state": view.state,
                        "kinds": view.info.get("kinds", []),
                    }
                    for view in found
                ]
