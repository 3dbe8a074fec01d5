"""Both clients against real HTTP: what they ask, what they make of the answers, and that they let go."""

import inspect
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moc.client import AsyncClient, Client, Unreachable
from moc.kernel.errors import (
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    LoadFailed,
    MocError,
    NoCapacity,
    NotFound,
    Unauthenticated,
    Unavailable,
    WorkerLost,
)
from tests.unit.stand_in import KEY, StandIn, running


@pytest.fixture(scope="module")
def shared() -> Iterator[StandIn]:
    with running() as stand_in:
        yield stand_in


@pytest.fixture
def stand_in(shared: StandIn) -> StandIn:
    shared.requests.clear()
    shared.stream_closed.clear()
    shared.is_ready = True
    return shared


@pytest.fixture
def client(stand_in: StandIn, tmp_path: Path) -> Iterator[Client]:
    with Client(stand_in.url, KEY, tmp_path) as client:
        yield client


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address that refuses: a port that is bound and not listened on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


def surface(kind: type) -> dict[str, Any]:
    """A client's public methods with their parameters, those of its parts included."""
    found: dict[str, Any] = {}
    made = kind("http://127.0.0.1:1", KEY)
    parts = {f"{name}.": part for name, part in vars(made).items() if not name.startswith("_")}
    for prefix, part in {"": made, **parts}.items():
        for name, method in inspect.getmembers(part, inspect.ismethod):
            if not name.startswith("_"):
                found[prefix + name] = list(inspect.signature(method).parameters.values())
    return found


def without_annotations(parameters: list[inspect.Parameter]) -> list[tuple[str, Any, Any]]:
    return [(parameter.name, parameter.kind, parameter.default) for parameter in parameters]


def test_both_clients_offer_the_same() -> None:
    blocking, awaited = surface(Client), surface(AsyncClient)
    awaited["close"] = awaited.pop("aclose")
    assert set(blocking) == set(awaited)
    assert "models.load" in blocking
    for name, parameters in blocking.items():
        assert without_annotations(parameters) == without_annotations(awaited[name]), name


def test_models_are_listed_by_pages(client: Client) -> None:
    first = client.models.list(limit=2)
    assert [model["name"] for model in first["items"]] == ["echo", "spare"]
    second = client.models.list(after=first["next"])
    assert [model["name"] for model in second["items"]] == ["third"]
    assert second["next"] is None


def test_a_model_is_shown_changed_and_removed(client: Client, stand_in: StandIn) -> None:
    assert client.models.show("echo@2")["adopted"] is True
    assert [version["version"] for version in client.models.versions("echo")] == [1, 2]
    added = client.models.add("new", runtime="onnx", source="file:/x", memory="2GiB", ttl_s=5)
    assert added["name"] == "new"
    assert stand_in.last("/api/v1/models")[1] == {
        "name": "new",
        "runtime": "onnx",
        "source": "file:/x",
        "memory": "2GiB",
        "ttl_s": 5,
    }
    client.models.load("echo", deadline_s=1.5)
    assert client.models.remove("echo@2") is None  # type: ignore[func-returns-value]
    asked = [(method, path) for method, path, _, _ in stand_in.requests]
    assert asked[-2:] == [("POST", "/api/v1/models/echo/load"), ("DELETE", "/api/v1/models/echo@2")]
    assert stand_in.requests[-2][2]["x-moc-deadline-ms"] == "1500"


def test_devices_are_listed_shown_and_cordoned(client: Client, stand_in: StandIn) -> None:
    assert [device["id"] for device in client.devices.list()["items"]] == ["cuda:0/mig:1"]
    assert client.devices.show("cuda:0/mig:1")["charges"][0]["holder"] == "model:echo@2"
    assert client.devices.cordon("cuda:0/mig:1")["state"] == "cordoned"
    assert client.devices.uncordon("cuda:0/mig:1")["state"] == "online"
    assert [method for method, *_ in stand_in.requests] == ["GET", "GET", "PATCH", "PATCH"]


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_name_that_would_be_another_path_is_never_sent(client: Client, stand_in: StandIn, name: str) -> None:
    with pytest.raises(InvalidRequest):
        client.models.remove(name)
    assert stand_in.requests == []


def test_a_strange_name_stays_one_part_of_the_path(client: Client) -> None:
    with pytest.raises(NotFound, match="a/b"):
        client.models.show("a/b?c")


@pytest.mark.parametrize(
    ("reference", "kind", "message"),
    [
        ("native", NoCapacity, "native no"),
        ("openai", NotFound, "openai no"),
        ("oip", Unavailable, "oip no"),
        ("load", LoadFailed, "bad file"),
        ("garbled", Unavailable, "HTTP 502, not from a coordinator: <html>"),
        ("elsewhere", Internal, "sends elsewhere"),
    ],
)
def test_a_refusal_is_the_error_the_coordinator_raised(
    client: Client, reference: str, kind: type[MocError], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        client.models.show(reference)
    assert not isinstance(caught.value, Unreachable)


def test_a_refusal_keeps_its_details(client: Client) -> None:
    with pytest.raises(NoCapacity) as caught:
        client.models.show("native")
    assert caught.value.details == {"a": 1, "request_id": "req-1"}
    assert caught.value.retry_after_s == 7
    with pytest.raises(LoadFailed) as failed:
        client.models.show("load")
    assert failed.value.reason == "out_of_memory"
    assert failed.value.details["request_id"] == "req-h"


def test_no_key_and_a_key_that_cannot_be_one(stand_in: StandIn, tmp_path: Path) -> None:
    with Client(stand_in.url, data_dir=tmp_path) as client, pytest.raises(Unauthenticated):
        client.system.status()
    with Client(stand_in.url, "clé\n", tmp_path) as client, pytest.raises(InvalidRequest) as caught:
        client.system.status()
    assert "clé" not in caught.value.message


def test_nobody_there_says_what_to_do(nobody: str) -> None:
    with Client(nobody, KEY) as client:
        assert client.ready() is False
        with pytest.raises(Unreachable, match=r"no coordinator answers at .*moc serve"):
            client.system.status()


def test_ready_is_what_the_coordinator_says(client: Client, stand_in: StandIn) -> None:
    assert client.ready() is True
    stand_in.is_ready = False
    assert client.ready() is False


def test_a_server_that_hangs_up_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, Client(_url(listener), KEY) as client:
        listener.settimeout(5)
        import threading

        def hang_up() -> None:
            connection, _ = listener.accept()
            connection.recv(100)
            connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(Unreachable, match="went away"):
            client.system.status()
        thread.join()


def test_a_server_that_says_nothing_is_given_up_on() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        Client(_url(listener), KEY, timeout_s=0.05) as client,
        pytest.raises(DeadlineExceeded, match="did not answer in time"),
    ):
        client.system.status()


def _url(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_no_proxy_stands_between_on_this_machine(client: Client, nobody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, nobody)
    assert client.system.status()["replica"] == "here-1"


def test_a_closed_client_opens_again(stand_in: StandIn) -> None:
    client = Client(stand_in.url, KEY)
    client.close()
    assert client.ready()
    client.close()
    client.close()


def test_chat_whole_and_streamed(client: Client, stand_in: StandIn) -> None:
    whole = client.chat("echo", "hello", temperature=0)
    assert whole["choices"][0]["message"]["content"] == "you said hello"
    assert stand_in.last("/v1/chat/completions")[1] == {
        "model": "echo",
        "messages": [{"role": "user", "content": "hello"}],
        "temperature": 0,
    }
    with client.chat("echo", [{"role": "user", "content": "é"}], stream=True) as stream:
        parts = [chunk["choices"][0]["delta"]["content"] for chunk in stream]
    assert parts == ["you said\u2028", "\x1b[2J", "é"]
    assert client.complete("echo", "more")["choices"][0]["message"]["content"] == "you said more"
    assert len(list(client.complete("echo", "more", stream=True))) == 3
    assert client.embed("echo", ["a"])["data"][0]["embedding"] == [1.0, 2.0]


def test_an_error_before_the_stream_is_raised_at_once(client: Client) -> None:
    with pytest.raises(NotFound, match="openai no"):
        client.chat("missing", "x", stream=True)


def test_an_error_inside_a_stream_ends_it(client: Client) -> None:
    stream = client.chat("breaks", "x", stream=True)
    assert len([next(stream) for _ in range(3)]) == 3
    with pytest.raises(WorkerLost, match="the worker died"):
        next(stream)
    assert list(stream) == []


def test_a_stream_that_just_stops_is_not_taken_for_an_answer(client: Client) -> None:
    with pytest.raises(Unreachable, match="middle of its answer"):
        list(client.chat("cut", "x", stream=True))


def test_closing_a_stream_early_stops_the_work(client: Client, stand_in: StandIn) -> None:
    with client.chat("endless", "x", stream=True) as stream:
        next(stream)
        assert not stand_in.stream_closed.is_set()
    assert stand_in.stream_closed.wait(5)


def test_events_are_listed_and_followed(client: Client) -> None:
    page = client.events.list(after=1, limit=2)
    assert [event["id"] for event in page["items"]] == [2, 3]
    with client.events.follow(after=3) as stream:
        assert [next(stream)["id"], next(stream)["id"]] == [4, 5]
        with pytest.raises(NoCapacity):  # the line broke, and who asks for those behind 5 is refused
            next(stream)


def test_infer_sends_and_returns_arrays(client: Client, stand_in: StandIn) -> None:
    ones = np.ones(16, np.int32)
    assert client.infer("add@1", {"a": ones, "b": ones * 2})["sum"].tolist() == [3] * 16
    assert stand_in.requests[-1][1] == "/v2/models/add/versions/1/infer"
    assert client.metadata("add")["inputs"][0]["shape"] == [16]
    client.infer("add", {"a": ones, "b": ones}, deadline_s=2, priority=3, session="ann")
    assert terms_in(stand_in) == {"x-moc-deadline-ms": "2000", "x-moc-priority": "3", "x-moc-session": "ann"}
    with pytest.raises(NotFound, match="no model 'nothing'"):
        client.metadata("nothing")


def terms_in(stand_in: StandIn) -> dict[str, str]:
    """How the last request was to be served."""
    names = ("x-moc-deadline-ms", "x-moc-priority", "x-moc-session")
    return {name: stand_in.requests[-1][2][name] for name in names if name in stand_in.requests[-1][2]}


async def test_the_awaited_client_does_the_same(stand_in: StandIn, nobody: str) -> None:
    async with AsyncClient(stand_in.url, KEY) as client:
        assert await client.ready()
        assert (await client.models.load("echo", deadline_s=2))["state"] == "ready"
        assert stand_in.requests[-1][2]["x-moc-deadline-ms"] == "2000"
        await client.chat("echo", "hello", priority=1, session="ann")
        assert terms_in(stand_in) == {"x-moc-priority": "1", "x-moc-session": "ann"}
        await client.chat("echo", "hello")
        assert terms_in(stand_in) == {}
        with pytest.raises(NoCapacity, match="native no"):
            await client.models.show("native")
        async with await client.chat("echo", "hello", stream=True) as stream:
            assert [chunk["choices"][0]["delta"]["content"] async for chunk in stream][-1] == "hello"
        async with await client.chat("endless", "x", stream=True) as stream:
            await anext(stream)
        assert stand_in.stream_closed.wait(5)
        with pytest.raises(NotFound):
            await client.chat("missing", "x", stream=True)
        doubled = await client.infer("batch", {"x": np.ones((1, 2), np.float32)})
        assert doubled["x"].shape == (1, 2)
    async with AsyncClient(nobody, KEY) as client:
        assert await client.ready() is False


def test_json_that_cannot_be_is_refused_before_it_is_sent(client: Client, stand_in: StandIn) -> None:
    with pytest.raises(InvalidRequest, match="cannot be sent as JSON"):
        client.chat("echo", "x", stop=object())
    assert stand_in.requests == []


def test_a_timeout_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="timeout_s"):
        Client("http://127.0.0.1:1", timeout_s=0)


def test_what_is_asked_is_plain_json(client: Client, stand_in: StandIn) -> None:
    client.chat("echo", "x")
    headers, _ = stand_in.last("/v1/chat/completions")
    assert headers["content-type"] == "application/json"
    assert headers["authorization"] == f"Bearer {KEY}"
    assert json.loads(stand_in.requests[-1][3])["model"] == "echo"
