"""Ordering documents by how well they answer a query, in the form that Jina and Cohere share."""

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from moc.kernel.errors import Internal, NotFound
from moc.service.inference import Request
from moc.service.services import Services
from moc.transports.rest.body import decoded
from moc.transports.rest.chat import model_not_found
from moc.transports.rest.exchange import Exchange, inference_headers
from moc.transports.rest.operation import Operation


class Document(Struct):
    """A document; what else it has is not looked at."""

    text: str


class RerankRequest(Struct):
    """`top_n` is how many of the best are wanted, all by default."""

    model: str
    query: str
    documents: Annotated[list[str | Document], Meta(min_length=1)]
    top_n: Annotated[int, Meta(ge=1)] | None = None
    return_documents: bool | None = None


class Ranked(Struct, omit_defaults=True):
    """A document by its place in the request; the higher its score, the better it fits."""

    index: int
    relevance_score: float
    document: Document | None = None


class Ranking(Struct):
    """The best first."""

    model: str
    results: list[Ranked]
    usage: dict[str, Any] = {}
    object: str = "list"


class _Answer(Struct):
    results: list[Ranked]
    usage: dict[str, Any] = {}


_request_decoder: Final = msgspec.json.Decoder(RerankRequest)
_answer_decoder: Final = msgspec.json.Decoder(_Answer)


class Rerank:
    """The endpoint."""

    def __init__(self, services: Services) -> None:
        self._inference = services.inference

    def operations(self) -> list[Operation]:
        """Its route."""
        return [
            Operation(
                method="POST",
                path="/v1/rerank",
                handle=self._answer,
                summary="Order documents by relevance",
                body=RerankRequest,
                answer=Ranking,
            )
        ]

    async def _answer(self, exchange: Exchange) -> None:
        wanted = decoded(_request_decoder, await exchange.body())
        texts = [document if isinstance(document, str) else document.text for document in wanted.documents]
        body = msgspec.json.encode({"model": wanted.model, "query": wanted.query, "documents": texts})
        request, terms = Request("rerank", body, headers=exchange.headers), exchange.terms()
        try:
            with exchange.watch():
                answer = await self._inference.infer(exchange.identity, wanted.model, request, terms)
        except NotFound as error:
            raise model_not_found(error) from None
        ranking = _ranking(wanted, texts, bytes(answer.reply.body), answer.reference)
        await exchange.answer(200, msgspec.json.encode(ranking), headers=inference_headers(answer))


def _ranking(wanted: RerankRequest, texts: list[str], answer: bytes, reference: str) -> Ranking:
    """The engine's scores in order. It need not know of `top_n`."""
    try:
        scored = _answer_decoder.decode(answer)
    except msgspec.DecodeError as error:
        raise Internal(f"the model answered something else than scores: {error}") from None
    if any(not 0 <= result.index < len(texts) for result in scored.results):
        raise Internal(f"the model scored a document that is none of the {len(texts)} it was given")
    best = sorted(scored.results, key=lambda result: (-result.relevance_score, result.index))[: wanted.top_n]
    for result in best:
        result.document = Document(texts[result.index]) if wanted.return_documents else None
    return Ranking(reference, best, scored.usage)
