"""What can be asked over ZeroMQ, by REQ and DEALER, in JSON and msgpack, in today's words and the older ones."""

import struct
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from moc.kernel.errors import Unavailable
from moc.security.identity import Role
from moc.security.key import KeyTerms
from moc.transports.zmq.actions import actions_of
from moc.transports.zmq.limits import Limits
from tests.rest_stack import RestStack
from tests.zmq_peer import Peers, peers, serving

VALUES = [0.5 * n for n in range(8)]
BYTES = struct.pack("<8f", *VALUES)
DESCRIBED = {"name": "INPUT0", "shape": [1, 8], "datatype": "FP32"}
TENSOR = {**DESCRIBED, "data": VALUES}
CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
async def dial(rest_stack: RestStack) -> AsyncIterator[Peers]:
    """Connections to a server whose model `echo` is loaded."""
    await rest_stack.load()
    async with serving(rest_stack) as server:
        with peers(server.url, rest_stack.key) as made:
            yield made


async def test_tensors_in_json_come_back_in_json(dial: Peers) -> None:
    reply = await dial.req().ask("infer", {"model": "echo", "inputs": [TENSOR], "id": "mine"}, request_id="r-1")
    assert reply["result"] == {
        "model_name": "echo",
        "model_version": "1",
        "id": "mine",
        "outputs": [{"name": "OUTPUT0", "shape": [1, 8], "datatype": "FP32", "data": VALUES}],
    }
    assert (reply["success"], reply["request_id"], reply["model"]) == (True, "r-1", "echo@1")
    assert reply["digest"].startswith("sha256:")
    assert reply["latency_ms"] > reply["queue_ms"] >= 0


async def test_tensors_in_frames_come_back_in_frames(dial: Peers) -> None:
    inputs = [DESCRIBED, {"name": "INPUT1", "shape": [2], "datatype": "BYTES"}]
    words = b"\x01\x00\x00\x00a\x00\x00\x00\x00"
    message = {"action": "infer", "payload": {"model": "echo", "inputs": inputs}, "request_id": "r-2"}
    for peer in (dial.dealer(), dial.req(), dial.req(req_correlate=1)):
        reply, frames = await peer.ask_msgpack(message, BYTES, words)
        assert [(each["name"], each["datatype"]) for each in reply["result"]["outputs"]] == [
            ("OUTPUT0", "FP32"),
            ("OUTPUT1", "BYTES"),
        ]
        assert (reply["request_id"], frames) == ("r-2", [BYTES, words])


async def test_a_prompt_is_a_completion(dial: Peers, rest_stack: RestStack) -> None:
    payload = {"model": "echo", "prompt": "Once", "max_tokens": 8, "temperature": 0}
    reply = await dial.req().ask("infer", payload)
    assert reply["result"] == payload  # this engine gives back what it was given
    reply, frames = await dial.dealer().ask_msgpack({"action": "infer", "payload": payload})
    assert (reply["result"], frames) == (payload, [])


async def test_a_stream_comes_in_numbered_pieces_to_a_dealer(dial: Peers) -> None:
    peer = dial.dealer()
    await peer.send(action="chat", payload={**CHAT, "stream": True}, request_id="s")
    pieces = [await peer.receive() for _ in range(4)]
    assert [piece["request_id"] for piece in pieces] == ["s"] * 4
    assert [piece["seq"] for piece in pieces] == [0, 1, 2, 3]
    assert [piece["chunk"]["choices"][0]["text"] for piece in pieces[:3]] == ["one", " two", " three"]
    assert (pieces[3]["done"], pieces[3]["model"]) == (True, "echo@1")
    assert all(piece["success"] for piece in pieces)
    assert not any("done" in piece for piece in pieces[:3])


async def test_a_stream_in_msgpack(dial: Peers) -> None:
    peer = dial.dealer()
    payload = {"model": "echo", "prompt": "Once", "stream": True}
    reply, _ = await peer.ask_msgpack({"action": "infer", "payload": payload})
    assert reply["chunk"] == {"choices": [{"text": "one"}]}
    last = [msgspec.msgpack.decode((await peer.frames())[0]) for _ in range(3)][-1]
    assert (last["done"], last["seq"]) == (True, 3)


async def test_who_takes_one_answer_gets_a_stream_whole(dial: Peers) -> None:
    reply = await dial.req().ask("chat", {**CHAT, "stream": True})
    assert reply["result"] == {**CHAT, "stream": False}
    assert "chunk" not in reply


async def test_an_error_in_a_stream_is_its_last_piece(dial: Peers, rest_stack: RestStack) -> None:
    link = await rest_stack.load("other")
    link.error = Unavailable("broke")
    peer = dial.dealer()
    await peer.send(action="chat", payload={**CHAT, "model": "other", "stream": True})
    pieces = [await peer.receive() for _ in range(3)]
    assert [piece["success"] for piece in pieces] == [True, True, False]
    assert (pieces[2]["error"]["code"], pieces[2]["done"], pieces[2]["seq"]) == ("unavailable", True, 2)


async def test_embedding_needs_a_model_that_can(dial: Peers) -> None:
    reply = await dial.req().ask("embed", {"model": "echo", "input": "text"})
    assert reply["error"]["code"] == "unimplemented"


async def test_models_are_loaded_listed_and_unloaded(dial: Peers) -> None:
    peer = dial.req()
    spec = {"runtime": "python", "source": "file:other.py", "ttl_s": "10m"}
    loaded = await peer.ask("load_model", {"model": "other", "spec": spec})
    assert (loaded["result"]["reference"], loaded["result"]["state"]) == ("other@1", "ready")
    listed = await peer.ask("list_models", {"limit": 1})
    assert [model["name"] for model in listed["result"]["models"]] == ["echo"]
    assert listed["result"]["next"] == "echo"
    rest = await peer.ask("list_models", {"after": "echo"})
    assert ([model["name"] for model in rest["result"]["models"]], rest["result"]["next"]) == (["other"], None)
    unloaded = await peer.ask("unload_model", {"model": "other"})
    assert unloaded["result"]["state"] == "registered"
    assert (await peer.ask("load_model", {"model": "other"}))["result"]["state"] == "ready"


async def test_a_lease_is_acquired_renewed_and_released(dial: Peers) -> None:
    peer = dial.req()
    lease = (await peer.ask("acquire_lease", {"memory": "1MiB", "priority": 3}))["result"]
    assert (lease["state"], lease["bytes"], lease["priority"]) == ("admitted", 2**20, 3)
    proof = {"id": lease["id"], "token": lease["token"]}
    assert (await peer.ask("renew_lease", proof))["result"]["state"] == "admitted"
    stolen = await peer.ask("release_lease", {**proof, "token": "9.9"})
    assert not stolen["success"]
    assert (await peer.ask("release_lease", proof))["result"]["state"] == "released"


async def test_who_waits_for_a_lease_is_told_its_place_in_pieces(dial: Peers, rest_stack: RestStack) -> None:
    peer, other = dial.dealer(), dial.dealer()
    held = (await other.ask("acquire_lease", {"memory": "600MiB", "ttl_s": 600, "stream": True}))["result"]
    wish = {"memory": "500MiB", "wait_s": 60, "stream": True}
    await peer.send(action="acquire_lease", payload=wish, request_id="mine")
    told = await peer.receive()
    assert (told["request_id"], told["seq"], told["chunk"]["state"], told["chunk"]["position"]) == (
        "mine",
        0,
        "pending",
        1,
    )
    assert told["chunk"]["estimated_wait_s"] > 0
    await other.ask("release_lease", {"id": held["id"], "token": held["token"]})
    while "chunk" in (told := await peer.receive()):
        assert told["chunk"]["state"] == "pending"
    assert (told["done"], told["result"]["state"], told["result"]["position"]) == (True, "admitted", None)


async def test_who_takes_one_answer_is_told_of_the_grant_only(dial: Peers) -> None:
    answer = await dial.req().ask("acquire_lease", {"memory": "1MiB", "stream": True})
    assert (answer["result"]["state"], "done" in answer, "seq" in answer) == ("admitted", False, False)


async def test_what_there_is_can_be_found_out(dial: Peers, rest_stack: RestStack) -> None:
    peer = dial.req()
    rest_stack.replica.urls["rest"] = "http://there"
    assert (await peer.ask("status"))["result"]["version"] == "1.2.3"
    found = (await peer.ask("capabilities"))["result"]
    assert set(found["actions"]) == set(actions_of(rest_stack.services, Limits()))
    assert "FP16" in found["datatypes"]
    assert found["models"] == [
        {"name": "echo", "version": 1, "state": "ready", "kinds": ["tensors", "chat", "completion"]}
    ]
    found = (await peer.ask("discovery"))["result"]
    assert (found["urls"], found["models"][0]["name"]) == ({"rest": "http://there"}, "echo")


async def test_without_a_key_there_are_signs_of_life_and_no_more(dial: Peers, rest_stack: RestStack) -> None:
    peer = dial.req(key=None)
    health = (await peer.ask("health"))["result"]
    assert (health["live"], health["ready"], health["version"]) == (True, True, "1.2.3")
    assert (await peer.ask("discovery"))["result"] == {"name": "modelops-coordinator", "version": "1.2.3"}
    for action in actions_of(rest_stack.services, Limits()).keys() - {"health", "discovery"}:
        assert (await peer.ask(action))["error"]["code"] == "unauthenticated"
    assert (await peer.ask("nonsense"))["error"]["code"] == "unauthenticated"
    for action in ("health", "discovery", "status"):
        assert (await peer.ask(action, key="moc_wrong_key"))["error"]["code"] == "unauthenticated"


async def test_a_key_opens_what_its_role_may(dial: Peers, rest_stack: RestStack) -> None:
    token, _ = await rest_stack.keys.create(KeyTerms(role=Role.INFERENCE, models=("echo",)), actor="test")
    peer = dial.req(key=token)
    assert (await peer.ask("chat", CHAT))["success"]
    assert (await peer.ask("capabilities"))["success"]
    for action, payload in (
        ("chat", {**CHAT, "model": "other"}),
        ("load_model", {"model": "echo"}),
        ("unload_model", {"model": "echo"}),
        ("status", {}),
        ("acquire_lease", {"memory": "1MiB"}),
    ):
        assert (await peer.ask(action, payload))["error"]["code"] == "forbidden", action


@pytest.mark.parametrize("action", ["create_goal", "goal"])
async def test_what_is_not_there_yet_says_so(dial: Peers, action: str) -> None:
    assert (await dial.req().ask(action, {"anything": 1}))["error"]["code"] == "unimplemented"


@pytest.mark.parametrize(
    ("kind", "data", "answer", "key", "value"),
    [
        ("inference_request", {"model_name": "echo", "inputs": [TENSOR]}, "inference_response", "model_name", "echo"),
        (
            "inference_request",
            {"model_name": "echo", "prompt": "Hi", "max_tokens": 3, "parameters": {"top_p": 0.5}},
            "inference_response",
            "top_p",
            0.5,
        ),
        ("model_load_request", {"model_name": "echo"}, "model_load_response", "state", "ready"),
        (
            "model_load_request",
            {"model_name": "new", "model_path": "new.GGUF", "load_params": {"ttl_s": 9}, "shards": 1},
            "model_load_response",
            "runtime",
            "llama_cpp",
        ),
        ("model_unload_request", {"model": "echo", "force": True}, "model_unload_response", "state", "registered"),
        ("status_request", {}, "status_response", "version", "1.2.3"),
        ("capabilities_request", None, "capabilities_response", "version", "1.2.3"),
        ("discovery", None, "discovery_response", "version", "1.2.3"),
        ("heartbeat", {}, "heartbeat_response", "live", True),
    ],
)
async def test_the_older_words_are_understood(
    dial: Peers, kind: str, data: dict[str, Any] | None, answer: str, key: str, value: Any
) -> None:
    peer = dial.req()
    await peer.send(type=kind, request_id="o", **({} if data is None else {"data": data}))
    reply = await peer.receive()
    assert (reply["success"], reply["type"], reply["request_id"]) == (True, answer, "o"), reply
    assert reply["result"][key] == value


async def test_older_words_for_what_is_not_there_yet(dial: Peers) -> None:
    peer = dial.req()
    await peer.send(type="goal_create_request", data={})
    reply = await peer.receive()
    assert (reply["type"], reply["error"]["code"]) == ("goal_create_response", "unimplemented")


async def test_a_job_in_older_words(dial: Peers) -> None:
    peer = dial.req()
    await peer.send(type="learning_job_request", data={"job_type": "sft", "model_name": "tale", "name": "fable"})
    reply = await peer.receive()
    assert (reply["type"], reply["result"]["type"]) == ("learning_job_response", "supervised")
    assert (reply["result"]["model"], reply["result"]["name"]) == ("tale", "fable")
