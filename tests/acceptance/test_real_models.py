"""Real models, asked the way users ask."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import psutil
import pytest

from moc.client import Client
from tests.coordinator import Coordinator, eventually
from tests.speech import SAMPLE_RATE, speech

PROMPT = "Name three rivers."


def chat(coordinator: Coordinator, prompt: str = PROMPT, **more: Any) -> httpx.Response:
    body = {"model": "smollm2", "temperature": 0, "max_tokens": 24, "messages": [{"role": "user", "content": prompt}]}
    return httpx.post(
        f"{coordinator.url}/v1/chat/completions", json=body | more, headers=coordinator.headers, timeout=300
    )


def test_the_answer_is_the_same_over_rest_and_cli(coordinator: Coordinator) -> None:
    over_rest = chat(coordinator).json()["choices"][0]["message"]["content"]
    done = coordinator.cli("chat", "smollm2", PROMPT, "--temperature", "0", "--max-tokens", "24")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == over_rest.strip()
    assert over_rest.strip()


def test_an_answer_names_its_version_and_digest(coordinator: Coordinator) -> None:
    answer = chat(coordinator, max_tokens=1)
    assert answer.headers["x-moc-model"] == "smollm2@1"
    assert answer.headers["x-moc-digest"] == coordinator.get("/api/v1/models/smollm2")["digest"]
    assert float(answer.headers["x-moc-queue-ms"]) >= 0
    assert answer.headers["x-moc-request-id"]


@pytest.mark.timeout(600)
async def test_two_hundred_requests_share_four_slots_in_the_order_they_came(coordinator: Coordinator) -> None:
    ended: list[int] = []
    url = f"{coordinator.url}/v1/chat/completions"

    async def ask(client: httpx.AsyncClient, number: int) -> httpx.Response:
        messages = [{"role": "user", "content": f"Say {number}."}]
        body = {"model": "smollm2", "temperature": 0, "max_tokens": 4, "messages": messages}
        answer = await client.post(url, json=body, headers=coordinator.headers)
        ended.append(number)
        return answer

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(limits=limits, timeout=300) as client:
        await ask(client, 0)
        ended.clear()
        answers = await asyncio.gather(*(ask(client, number) for number in range(200)))
    assert [answer.status_code for answer in answers] == [200] * 200
    assert all(answer.json()["usage"]["completion_tokens"] > 0 for answer in answers)
    # four run at once and connections do not open in perfect order, so places differ a little, never by much
    assert max(abs(place - number) for place, number in enumerate(ended)) < 40, ended
    assert coordinator.get("/api/v1/models/smollm2")["worker"]["in_flight"] == 0


def test_fifty_first_requests_start_one_worker(coordinator: Coordinator) -> None:
    assert coordinator.post("/api/v1/models/identity/unload").status_code == 200
    last = coordinator.get("/api/v1/events?follow=false&after=0&limit=1000")["events"][-1]["id"]
    body = {"inputs": [{"name": "INPUT0", "shape": [1, 8], "datatype": "FP32", "data": [0.5] * 8}]}
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: coordinator.post("/v2/models/identity/infer", body), range(50)))
    assert [answer.status_code for answer in answers] == [200] * 50
    events = coordinator.get(f"/api/v1/events?follow=false&after={last}&limit=1000")["events"]
    assert [event["kind"] for event in events].count("worker.starting") == 1


def speech_probability(client: Client, audio: npt.NDArray[np.float32]) -> float:
    """The median of silero's probability over the frames."""
    state = np.zeros((2, 1, 128), np.float32)
    context = np.zeros((1, 64), np.float32)
    rate = np.array(SAMPLE_RATE, np.int64)
    found = []
    for start in range(0, len(audio) - 511, 512):
        frame = np.concatenate([context, audio[None, start : start + 512]], axis=1)
        outputs = client.infer("silero", {"input": frame, "state": state, "sr": rate})
        state, context = outputs["stateN"], frame[:, -64:]
        found.append(outputs["output"].item())
    return float(np.median(found))


def test_silero_tells_speech_from_noise(coordinator: Coordinator) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(2 * SAMPLE_RATE).astype(np.float32)
    spoken = speech("The quick brown fox jumps over the lazy dog.")
    with Client(url=coordinator.url, key=coordinator.key) as client:
        in_speech, in_noise = speech_probability(client, spoken), speech_probability(client, noise)
    assert in_speech > 0.9, in_speech
    assert in_noise < 0.1, in_noise


def test_the_key_is_needed_everywhere_but_for_probes(coordinator: Coordinator) -> None:
    paths = coordinator.get("/openapi.json")["paths"]
    open_paths = {"/livez", "/readyz", "/startupz", "/v2/health/live", "/v2/health/ready"}
    checked = 0
    for path, methods in paths.items():
        for method in methods:
            shown = path.replace("{", "").replace("}", "")
            answer = httpx.request(method.upper(), f"{coordinator.url}{shown}", timeout=10)
            assert (answer.status_code == 401) == (path not in open_paths), (method, path, answer.status_code)
            checked += 1
    assert checked > 30


def test_metrics_count_what_was_asked(coordinator: Coordinator) -> None:
    chat(coordinator, max_tokens=1)
    text = httpx.get(f"{coordinator.url}/metrics", headers=coordinator.headers).text
    counted = [line for line in text.splitlines() if line.startswith("modelops_requests_total{")]
    assert any('code="ok"' in line and 'kind="chat"' in line and 'model="smollm2@1"' in line for line in counted), text
    assert "modelops_worker_memory_bytes" in text


def test_a_client_that_leaves_frees_its_slot(coordinator: Coordinator) -> None:
    ask = {"messages": [{"role": "user", "content": "Count."}], "max_tokens": 900, "ignore_eos": True}
    body = {"model": "smollm2", "stream": True, **ask}
    with httpx.stream(
        "POST", f"{coordinator.url}/v1/chat/completions", json=body, headers=coordinator.headers, timeout=60
    ) as answer:
        lines = answer.iter_lines()  # kept: dropping it would close the connection
        next(lines)
        assert coordinator.get("/api/v1/models/smollm2")["worker"]["in_flight"] == 1
    eventually(lambda: coordinator.get("/api/v1/models/smollm2")["worker"]["in_flight"] == 0, timeout_s=5)


def test_worker_memory_is_measured(coordinator: Coordinator) -> None:
    chat(coordinator, max_tokens=1)
    worker = coordinator.get("/api/v1/models/smollm2")["worker"]
    resident = psutil.Process(worker["pid"]).memory_info().rss
    eventually(lambda: coordinator.get("/api/v1/models/smollm2")["worker"]["memory_bytes"] > resident / 4)


def test_events_tell_the_story_of_a_load(coordinator: Coordinator) -> None:
    coordinator.post("/api/v1/models/add_sub/unload")
    last = coordinator.get("/api/v1/events?follow=false&after=0&limit=1000")["events"][-1]["id"]
    coordinator.post("/api/v1/models/add_sub/load")
    with httpx.stream(
        "GET", f"{coordinator.url}/api/v1/events?after={last}", headers=coordinator.headers, timeout=30
    ) as stream:
        kinds = []
        for line in stream.iter_lines():
            if line.startswith("data:"):
                kinds.append(json.loads(line.removeprefix("data:"))["kind"])
            if kinds and kinds[-1] == "model.ready":
                break
    assert kinds.index("model.loading") < kinds.index("worker.starting") < kinds.index("worker.ready")
