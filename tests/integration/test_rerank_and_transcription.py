"""Engines that order documents and write down speech, in real workers."""

import json
from pathlib import Path
from typing import Any

import pytest

from moc.inference.request import Request
from moc.kernel.errors import InvalidRequest, Unimplemented
from moc.models.ports import Launch
from moc.workers.link import WorkerLink
from moc.workers.local import LocalWorkers
from tests.hosted import python, start, written
from tests.models import EXAMPLES, smollm2_path
from tests.speech import speech, wav

OWN = """
class Ears:
    def transcribe(self, sound, asked):
        return {"text": f"{type(sound).__name__} {len(sound)} {asked}"}

    async def rerank(self, request):
        wanted = set(request["query"].split())
        scores = [len(wanted & set(text.split())) for text in request["documents"]]
        return {"results": [{"index": i, "relevance_score": score} for i, score in enumerate(scores)]}
"""
RANK = {"model": "m", "query": "a long river", "documents": ["a cat", "the Rhine is a long river", "the sea"]}


async def line_to(workers: LocalWorkers, launch: Launch) -> WorkerLink:
    link = workers.link((await start(workers, launch)).id)
    assert link is not None
    return link


async def answer(link: WorkerLink, request: Request) -> dict[str, Any]:
    return json.loads(bytes((await link.infer(request)).body))


def rank(**more: Any) -> Request:
    return Request("rerank", json.dumps({**RANK, **more}).encode())


async def test_llama_cpp_scores_documents_when_it_pools_by_rank(workers: LocalWorkers) -> None:
    """SmolLM2 was not trained to: its scores mean nothing, but each document has one, the same every time."""
    path, options = str(smollm2_path()), {"pooling": "rank", "slots": 1, "context": 512}
    launch = Launch(model="smollm2@1", digest="d", runtime="llama_cpp", path=path, options=options)
    link = await line_to(workers, launch)
    assert link.info.kinds == ("rerank", "tokenize")
    first = await answer(link, rank())
    assert sorted(result["index"] for result in first["results"]) == [0, 1, 2]
    assert len({result["relevance_score"] for result in first["results"]}) == 3
    assert first["usage"]["total_tokens"] > 0
    assert (await answer(link, rank()))["results"] == first["results"]
    with pytest.raises(InvalidRequest, match="query"):
        await link.infer(rank(query=7))
    with pytest.raises(Unimplemented, match="not streamed"):
        await anext(link.stream(rank()))


async def test_a_class_of_the_users_own_can_do_both(workers: LocalWorkers, tmp_path: Path) -> None:
    link = await line_to(workers, written(tmp_path, OWN))
    assert link.info.kinds == ("rerank", "transcription")
    scores = [result["relevance_score"] for result in (await answer(link, rank()))["results"]]
    assert scores == [1, 3, 0]
    told = await answer(link, Request("transcription", b"\x00\xffRIFF", parameters={"language": "en"}))
    assert told == {"text": "bytes 6 {'language': 'en'}"}


async def test_speech_is_written_down(workers: LocalWorkers) -> None:
    launch = python(EXAMPLES / "spoken_words.py", words=["one", "two", "three", "four", "five"])
    link = await line_to(workers, launch)
    for said in ("one two three four five", "five four three two one"):
        told = await answer(link, Request("transcription", wav(speech(said))))
        assert told["text"] == said
        assert told["segments"][-1]["end"] <= told["duration"] + 0.1
    for sound in (b"no sound", wav(speech("one"), rate=8000)):
        with pytest.raises(InvalidRequest, match="WAV"):
            await link.infer(Request("transcription", sound))
