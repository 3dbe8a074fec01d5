"""What the management routes have in common: the parameters they take, and how they answer."""

from typing import Annotated, Any

import msgspec
from fastapi import Depends, Header, Query, Request
from fastapi.responses import Response

from moc.transports.rest.exchange import Exchange
from moc.transports.rest.operation import EXCHANGE


async def _exchange_of(request: Request) -> Exchange:  # what is no coroutine FastAPI runs in a thread
    exchange: Exchange = request.scope[EXCHANGE]
    return exchange


Call = Annotated[Exchange, Depends(_exchange_of)]
Limit = Annotated[int, Query(ge=1, le=1000, description="How many at most.")]
After = Annotated[str | None, Query(max_length=200, description="Start behind this one: `next` of the page before.")]

IdempotencyKey = Annotated[
    str, Header(max_length=200, description="Asked again with the same key, what was made the first time is given.")
]


def json_answer(value: Any, status: int = 200) -> Response:
    """A view, encoded."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")
