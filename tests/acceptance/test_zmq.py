"""A real coordinator over ZeroMQ: found by its endpoints, fed noise, and none the worse for it."""

import random
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import psutil
import pytest
import zmq

from tests.coordinator import Coordinator, short_home
from tests.models import EXAMPLES

SOON_MS = 20_000
TENSOR = {"name": "INPUT0", "shape": [1, 8], "datatype": "FP32"}
VALUES = [float(n) for n in range(8)]


@pytest.fixture(scope="module")
def coordinator() -> Iterator[Coordinator]:
    models = {"identity": {"runtime": "python", "source": f"file:{EXAMPLES / 'identity.py'}"}}
    with short_home() as data_dir:
        made = Coordinator(data_dir, config={"models": models, "server": {"zmq_curve": "off", "events_port": 0}})
        try:
            yield made.start()
        finally:
            made.close()


class Sockets:
    """Makes connections, and closes them."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._made: list[zmq.Socket[bytes]] = []

    def connect(self, kind: int, url: str, **options: Any) -> zmq.Socket[bytes]:
        """A connected socket of that kind."""
        socket = self._context.socket(kind)
        self._made.append(socket)
        for name, value in {"rcvtimeo": SOON_MS, "linger": 0, **options}.items():
            setattr(socket, name, value)
        socket.connect(url)
        return socket

    def close(self) -> None:
        """End all of them."""
        for socket in self._made:
            socket.close()
        self._context.term()


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    made = Sockets()
    try:
        yield made
    finally:
        made.close()


def ask(socket: zmq.Socket[bytes], message: Any) -> Any:
    socket.send(msgspec.json.encode(message))
    return msgspec.json.decode(socket.recv())


def test_a_worker_process_answers_in_both_forms(coordinator: Coordinator, sockets: Sockets) -> None:
    url, key = coordinator.endpoints["zmq"], coordinator.key
    assert coordinator.get("/api/v1/system")["urls"]["zmq"] == url
    request = {"action": "infer", "key": key, "payload": {"model": "identity", "inputs": [{**TENSOR, "data": VALUES}]}}
    reply = ask(sockets.connect(zmq.REQ, url), request)
    assert reply["result"]["outputs"][0]["data"] == VALUES
    dealer, data = sockets.connect(zmq.DEALER, url), struct.pack("<8f", *VALUES)
    for number in range(20):
        head = {"action": "infer", "key": key, "request_id": str(number)}
        payload = {"model": "identity", "inputs": [TENSOR]}
        dealer.send_multipart([msgspec.msgpack.encode({**head, "payload": payload}), data])
    answers = [dealer.recv_multipart() for _ in range(20)]
    assert {msgspec.msgpack.decode(head)["request_id"] for head, _ in answers} == {str(number) for number in range(20)}
    assert {tensor for _, tensor in answers} == {data}


def test_events_tell_of_models(coordinator: Coordinator, sockets: Sockets) -> None:
    subscriber = sockets.connect(zmq.SUB, coordinator.endpoints["events"])
    subscriber.subscribe(b"model.")
    while not subscriber.poll(0):  # until the subscription is there
        for change in ("load", "unload"):
            coordinator.post(f"/api/v1/models/identity/{change}").raise_for_status()
    topic, event = subscriber.recv_multipart()
    assert msgspec.json.decode(event)["kind"] == topic.decode()


def test_noise_leaves_it_well_and_no_larger(coordinator: Coordinator, sockets: Sockets) -> None:
    assert coordinator.process is not None
    process, dice = psutil.Process(coordinator.process.pid), random.Random(7)
    sound = msgspec.json.encode({"action": "chat", "key": coordinator.key, "payload": {"model": "identity"}})
    url = coordinator.endpoints["zmq"]

    def shout(messages: int) -> None:
        """Damaged messages, from peers that come and go; each is answered."""
        for _ in range(messages // 100):
            noisy = sockets.connect(zmq.DEALER, url)
            for _ in range(100):
                frames = [dice.randbytes(dice.randrange(200)) for _ in range(dice.randrange(3))]
                damaged = bytearray(sound)
                damaged[dice.randrange(len(damaged))] = dice.randrange(256)
                noisy.send_multipart([*frames, damaged] if dice.random() < 0.5 else [damaged, *frames])
            for _ in range(100):
                noisy.recv_multipart()
            noisy.close()
        assert ask(sockets.connect(zmq.REQ, url), {"action": "health"})["success"]

    shout(2_000)
    before = process.memory_info().rss
    shout(10_000)
    assert process.memory_info().rss - before < 16 * 2**20
    assert httpx.get(f"{coordinator.url}/livez").status_code == 200
    assert "Traceback" not in coordinator.output


def test_what_would_expose_it_is_refused(tmp_path: Any) -> None:
    server = {"host": "0.0.0.0", "zmq_curve": "off", "events_port": 0}
    coordinator = Coordinator(tmp_path / "data", config={"server": server})
    try:
        coordinator.start(wait=False)
        assert coordinator.process is not None
        assert coordinator.process.wait(30) != 0
        assert "publishing events beyond loopback needs CURVE" in coordinator.output
    finally:
        coordinator.close()


def test_beyond_loopback_it_asks_for_curve(sockets: Sockets) -> None:
    with short_home() as data_dir:
        coordinator = Coordinator(data_dir, config={"server": {"host": "0.0.0.0"}})
        try:
            coordinator.start()
            public, secret = zmq.curve_keypair()
            wish = {"role": "viewer", "curve_public": public.decode()}
            coordinator.post("/api/v1/keys", wish).raise_for_status()
            socket = sockets.connect(
                zmq.REQ,
                coordinator.endpoints["zmq"],
                curve_serverkey=(data_dir / "zmq" / "server.pub").read_bytes().strip(),
                curve_publickey=public,
                curve_secretkey=secret,
            )
            assert ask(socket, {"action": "status"})["success"]
            assert coordinator.stop() == 0
        finally:
            coordinator.close()
