"""The audit under /api/v1/audit."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import Response

from moc.service.audit import AuditView, VerdictView
from moc.service.services import Services
from moc.transports.rest.parameters import Call, Limit, json_answer


@dataclass(frozen=True, slots=True)
class AuditList:
    """Entries, oldest first; `next` is the `after` of the following page, null when there is none yet."""

    audit: list[AuditView]
    next: int | None


def add_audit(routes: APIRouter, services: Services) -> None:
    """The routes."""
    audit = services.audit

    @routes.get("/audit", tags=["audit"], response_model=AuditList, summary="List who did what")
    async def list_audit(
        call: Call,
        after: Annotated[
            int | None, Query(ge=0, lt=10**15, description="Only entries behind this one; the newest if left out.")
        ] = None,
        limit: Limit = 100,
    ) -> Response:
        found = await audit.list(call.identity, after=after, limit=limit)
        return json_answer(AuditList(found, found[-1].seq if after is not None and len(found) == limit else None))

    @routes.get("/audit/verify", tags=["audit"], response_model=VerdictView, summary="Tell whether the audit is whole")
    async def verify_audit(call: Call) -> Response:
        return json_answer(await audit.verify(call.identity))
