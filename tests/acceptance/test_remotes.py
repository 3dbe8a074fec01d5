"""Models of another coordinator as models of this one: named in the configuration and over the API."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from moc.client import Client
from tests.acceptance.conftest import EXAMPLES, model, served
from tests.coordinator import Coordinator, eventually, short_home

TALKER = """
class Model:
    inputs = [("x", "FP32", [-1])]
    outputs = [("y", "FP32", [-1])]

    def infer(self, inputs):
        return {"y": inputs["x"] * 2}

    def chat(self, request):
        return {"choices": [{"message": {"role": "assistant", "content": "I am " + request["model"]}}]}

    def stream(self, request):
        for word in ("one", "two"):
            yield {"choices": [{"index": 0, "delta": {"content": word}}]}
"""


class Pair(NamedTuple):
    """`near` has remotes on `far`."""

    near: Coordinator
    far: Coordinator


@pytest.fixture(scope="module")
def far() -> Iterator[Coordinator]:
    with short_home() as data_dir:
        data_dir.mkdir()
        (data_dir / "talker.py").write_text(TALKER)
        yield from served(Coordinator(data_dir, config={"models": {"talker": model("python", Path("talker.py"))}}))


@pytest.fixture(scope="module")
def pair(far: Coordinator) -> Iterator[Pair]:
    options = {"model": "talker", "coordinator": True, "health_interval_s": 0.1}
    models = {
        "talk": {**remote(f"{far.url}/v1", key_file="far", **options), "ttl_s": 0.1},
        "double": remote(far.url, key_env="FAR_KEY", protocol="oip", **options),
        "here": model("python", EXAMPLES / "identity.py", ttl_s=0.1),
    }
    with short_home() as data_dir:
        (data_dir / "secrets").mkdir(parents=True, mode=0o700)
        (data_dir / "secrets" / "far").write_text(far.key)
        near = Coordinator(data_dir, config={"models": models}, prefix=["env", f"FAR_KEY={far.key}"])
        for each in served(near):
            yield Pair(each, far)


def remote(url: str, **options: Any) -> dict[str, Any]:
    return {"runtime": "remote", "source": url, "options": options}


def ask(coordinator: Coordinator, **fields: Any) -> httpx.Response:
    return coordinator.post("/v1/chat/completions", {"model": "talk", "messages": [], **fields})


def doubled(coordinator: Coordinator) -> Any:
    tensor = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2.5]}
    answer = coordinator.post("/v2/models/double/infer", {"inputs": [tensor]})
    assert answer.status_code == 200, answer.text
    return answer.json()["outputs"][0]["data"]


def test_a_model_elsewhere_is_evaluated_as_one_here(pair: Pair) -> None:
    task = {"name": "who", "type": "exact_match", "items": [{"prompt": "Who are you?", "expected": "I am talker"}]}
    with Client(pair.near.url, pair.near.key) as client:
        evaluation = client.evaluations.run("talk", {"name": "names", "tasks": [task]})
        client.jobs.wait(evaluation["id"])
        done = client.evaluations.show(evaluation["id"])
        assert (done["status"], done["tasks"]["who"]["score"]) == ("succeeded", 1), done
        (item,) = client.evaluations.items(done["id"])["items"]
        assert (item["got"], item["model"]) == ("I am talker", "talk@1")


def test_it_answers_as_the_other_does(pair: Pair) -> None:
    answer = ask(pair.near)
    assert answer.json()["choices"][0]["message"]["content"] == "I am talker"
    assert answer.headers["x-moc-model"] == "talk@1"
    events = [line.removeprefix("data: ") for line in ask(pair.near, stream=True).text.split("\n\n") if line]
    assert events.pop() == "[DONE]"
    assert [json.loads(event)["choices"][0]["delta"]["content"] for event in events] == ["one", "two"]
    assert doubled(pair.near) == [2.0, 5.0]
    assert pair.near.get("/v2/models/double")["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1]}]


def test_it_takes_nothing_here_and_is_shown_without_its_key(pair: Pair) -> None:
    ask(pair.near).raise_for_status()
    shown = pair.near.cli("models", "show", "talk").stdout
    assert pair.far.url in shown
    view = pair.near.get("/api/v1/models/talk")
    assert view["info"]["details"] == {"upstream": pair.far.url.removeprefix("http://"), "model": "talker"}
    assert (view["worker"]["pid"], view["worker"]["state"], view["worker"]["memory_bytes"]) == (0, "ready", 0)
    assert not [each["charges"] for each in pair.near.get("/api/v1/devices")["devices"] if each["charges"]]
    assert "talk@1" in [each["model"] for each in pair.near.get("/api/v1/workers")["workers"]]
    assert pair.near.get("/api/v1/models/talk/explain")["needed_bytes"] == 0
    told = [shown, json.dumps(view), pair.near.output]
    kept = b"".join(path.read_bytes() for path in pair.near.data_dir.glob("moc.db*"))
    assert not any(pair.far.key in text for text in told)
    assert pair.far.key.encode() not in kept


def test_over_the_api_it_may_not_reach_inside(pair: Pair) -> None:
    body = {"name": "inside", "runtime": "remote"}
    for fields, said in (
        ({"source": "http://169.254.169.254/latest"}, "allowed_model_hosts"),
        ({"source": "http://localhost:1/v1"}, "allowed_model_hosts"),
        ({"source": "http://127.0.0.1:1/v1"}, "allowed_model_hosts"),
        ({"source": f"{pair.far.url}/v1", "options": {"use_proxy": True}}, "use_proxy"),
        ({"source": f"{pair.far.url}/v1", "options": {"key_env": "FAR_KEY"}}, "key_env"),
        ({"source": f"{pair.far.url}/v1", "options": {"key_file": str(pair.near.data_dir / "admin.key")}}, "secrets"),
    ):
        answer = pair.near.post("/api/v1/models", {**body, **fields})
        assert (answer.status_code, said in answer.text) == (400, True), answer.text
    added = pair.near.cli(
        *("models", "add", "added", "--runtime", "remote", "--source", f"{pair.far.url}/v1"),
        *("--option", "model=talker", "--option", "key_file=far"),
    )
    assert added.returncode == 0, added.stderr
    assert ask(pair.near, model="added").json()["choices"][0]["message"]["content"] == "I am talker"
    assert pair.near.cli("models", "remove", "added", "--yes").returncode == 0


def test_it_stays_loaded_when_it_is_idle(pair: Pair) -> None:
    ask(pair.near).raise_for_status()
    worker = pair.near.get("/api/v1/models/talk")["worker"]["id"]
    pair.near.post("/api/v1/models/here/load").raise_for_status()
    eventually(lambda: pair.near.get("/api/v1/models/here")["state"] == "registered")
    assert pair.near.get("/api/v1/models/talk")["worker"]["id"] == worker


def test_it_is_there_again_after_a_restart(pair: Pair) -> None:
    ask(pair.near).raise_for_status()
    pair.near.kill()
    pair.near.start()
    eventually(lambda: pair.near.get("/api/v1/models/talk")["state"] == "ready")
    assert doubled(pair.near) == [2.0, 5.0]


def test_while_the_other_is_away_it_says_so_and_then_goes_on(pair: Pair) -> None:
    ask(pair.near).raise_for_status()
    pair.far.kill()
    began = time.monotonic()
    assert ask(pair.near).status_code == 503
    assert time.monotonic() - began < 10
    eventually(lambda: pair.near.get("/api/v1/models/talk")["worker"]["state"] == "unresponsive")
    assert ask(pair.near).status_code == 503
    assert httpx.get(f"{pair.near.url}/v2/models/talk/ready", headers=pair.near.headers).status_code == 503
    pair.far.start()
    eventually(lambda: pair.near.get("/api/v1/models/talk")["worker"]["state"] == "ready")
    eventually(lambda: ask(pair.near).status_code == 200)
    assert doubled(pair.near) == [2.0, 5.0]
