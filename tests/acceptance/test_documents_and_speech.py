"""Documents ranked and speech written down by a whole coordinator."""

from collections.abc import Iterator

import httpx
import pytest

from tests.acceptance.conftest import EXAMPLES, model, served
from tests.coordinator import Coordinator, short_home
from tests.models import smollm2_path
from tests.speech import speech, wav

WORDS = ["one", "two", "three", "four", "five"]


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    """Talks to a coordinator with a ranker and a listener; it has the key."""
    models = {
        "ranker": model("llama_cpp", smollm2_path(), options={"pooling": "rank", "slots": 1, "context": 512}),
        "listener": model("python", EXAMPLES / "spoken_words.py", options={"words": WORDS}),
    }
    with short_home() as data_dir:
        for running in served(Coordinator(data_dir, config={"models": models})):
            headers = {"authorization": f"Bearer {running.key}"}
            with httpx.Client(base_url=running.url, headers=headers, timeout=60) as made:
                yield made


def test_documents_are_ranked(client: httpx.Client) -> None:
    asked = {"model": "ranker", "query": "rivers", "documents": ["The Rhine.", {"text": "A cat."}, "The sea."]}
    answer = client.post("/v1/rerank", json={**asked, "return_documents": True})
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    scores = [result["relevance_score"] for result in results]
    assert scores == sorted(scores, reverse=True)
    assert {result["document"]["text"] for result in results} == {"The Rhine.", "A cat.", "The sea."}
    best = client.post("/v1/rerank", json={**asked, "top_n": 1}).json()["results"]
    assert [result["index"] for result in best] == [results[0]["index"]]


def test_speech_is_written_down(client: httpx.Client) -> None:
    files = {"file": ("said.wav", wav(speech("one two three four five")), "audio/wav")}
    asked = {"model": "listener", "response_format": "verbose_json"}
    answer = client.post("/v1/audio/transcriptions", data=asked, files=files)
    assert answer.status_code == 200, answer.text
    assert answer.json()["text"] == "one two three four five"
    assert answer.json()["language"] == "en"
    assert answer.json()["duration"] > 1


def test_each_says_what_it_cannot_do(client: httpx.Client) -> None:
    chat = {"max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}
    for name, can in (("ranker", "rerank"), ("listener", "transcription")):
        answer = client.post("/v1/messages", json={"model": name, **chat})
        assert (answer.status_code, answer.json()["type"]) == (501, "error")
        assert f"it can do {can}" in answer.json()["error"]["message"]
