"""A small coordinator for the client's and the CLI's tests: real HTTP on a real socket, answers from a few tables."""

import asyncio
import json
import socket
import struct
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

KEY = "moc_test_key"
WORKER: dict[str, Any] = {
    "id": "wrk-1", "host": "here", "pid": 4242, "model": "echo@2", "digest": "sha256:ab", "runtime": "python",
    "state": "ready", "adopted": True, "term": 3, "started_at": "2026-01-01T00:00:00Z",
    "devices": ["cuda:0", "cuda:1"], "memory_bytes": 2048, "in_flight": 1,
}  # fmt: skip
DEVICE: dict[str, Any] = {
    "id": "cuda:0/mig:1", "kind": "cuda", "name": "H200 1g", "uuid": "MIG-1", "state": "online",
    "capacity_bytes": 16 * 1024**3, "limit_bytes": 14 * 1024**3, "charged_bytes": 2048,
    "charges": [{"holder": "model:echo@2", "bytes": 2048, "priority": 5}], "measured_bytes": 4096,
    "unmanaged_bytes": 1024, "temperature_c": 61.0, "utilization_ratio": 0.5, "problem": "",
}  # fmt: skip
WIDE: dict[str, Any] = {
    "shards": 2, "group": "chat", "min_residency_s": 90.0, "host_memory_bytes": 3 * 1024**3,
    "expected_memory": {"bytes": 20 * 1024**3, "how": "learned"},
}  # fmt: skip
EXPLAINED: dict[str, dict[str, Any]] = {
    "echo": {
        "reference": "echo@2", "needed_bytes": 20 * 1024**3, "fits": True, "reason": "", "message": "",
        "retry_after_s": None,
        "placements": [
            {"device": "cuda:0", "free_before_bytes": 30 * 1024**3, "free_after_bytes": 10 * 1024**3},
            {"device": "cuda:1", "free_before_bytes": 5 * 1024**3, "free_after_bytes": 0},
        ],
        "victims": [{
            "reference": "spare@1", "bytes": 15 * 1024**3, "reason": "capacity", "because": "idle 60s", "score": 1.0,
            "after_drain": False,
        }],
        "pauses": [{"job": "job-1", "device": "cuda:1", "bytes": 1024**3, "priority": 5, "grace_s": 30.0}],
    },
    "spare": {
        "reference": "spare@1", "needed_bytes": 1, "fits": False, "placements": [], "victims": [], "pauses": [],
        "reason": "no_device", "message": "it needs 4 device(s) of cuda online", "retry_after_s": 7.0,
    },
}  # fmt: skip
LINEAGE = {
    "base": "echo@1", "base_digest": "sha256:ab", "data_digest": "sha256:da7a", "job": "job_1", "type": "supervised",
    "method": "lora", "hyperparameters": {}, "seed": 7, "code_version": "0.1.0", "metrics": {"train_loss": 0.25},
    "trained_tokens": 1234, "licence": "",
}  # fmt: skip
EVALUATION: dict[str, Any] = {
    "id": "job-1", "model": "echo@2", "suite": "sums", "suite_digest": "", "status": "failed", "message": "no items",
    "waits_for": "", "done": 0, "total": 0, "score": None, "tasks": {}, "digests": [], "warnings": [],
    "created_at": "2026-01-01T00:00:00Z", "created_by_name": "me", "finished_at": "2026-01-01T00:00:01Z",
    "metadata": {},
}  # fmt: skip
LOG = "\r 1%|x\r99%|x\r\n\x1b[31mred\x9b\n"
EVENTS: list[dict[str, Any]] = [
    {
        "id": number, "at": "2026-01-01T00:00:00Z", "kind": "model.ready", "subject": f"echo@{number}", "reason": "",
        "actor": "system", "data": {"load_s": 0.5},
    }
    for number in range(1, 6)
]  # fmt: skip
REFUSALS = {
    "native": (
        507,
        {"error": {"code": "no_capacity", "message": "native no", "request_id": "req-1", "details": {"a": 1}}},
    ),
    "openai": (404, {"error": {"message": "openai no", "type": "invalid_request_error", "code": "model_not_found"}}),
    "oip": (503, {"error": "oip no"}),
    "load": (503, {"error": {"code": "load_failed", "message": "bad file", "details": {"reason": "out_of_memory"}}}),
    "internal": (500, {"error": {"code": "internal", "message": "broke", "request_id": "req-9"}}),
}
TENSORS = {
    "add": [("a", "INT32", [16]), ("b", "INT32", [16])],
    "text": [("text", "BYTES", [-1])],
    "batch": [("x", "FP32", [-1, 2])],
}


def model(name: str, version: int = 1, **changes: Any) -> dict[str, Any]:
    """What the API says of a model."""
    return {
        "name": name, "version": version, "reference": f"{name}@{version}", "state": "registered", "reason": "",
        "message": "", "digest": "sha256:ab", "runtime": "python", "source": "file:/models/x.py", "options": {},
        "devices": "auto", "memory_bytes": None, "expected_memory": None, "host_memory_bytes": None, "shards": 1,
        "group": "", "min_residency_s": None, "preload": False, "pin": False, "ttl_s": 300.0, "priority": 5,
        "max_concurrent": 64, "max_queue": 256, "created_at": "2026-01-01T00:00:00Z",
        "changed_at": "2026-01-01T00:00:00Z", "artifact": None, "load_s": 0.0, "info": {}, "adopted": False,
        "worker": None, "problem": "", "batching": None, "canary": None, "cost": 0.0, "circuit": "closed",
        "lineage": None, **changes,
    }  # fmt: skip


class StandIn:
    """What it was asked, newest last, and what the tests wait for."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.stream_closed = threading.Event()
        self.is_ready = True
        self.models = {
            "echo": [model("echo"), model("echo", 2, state="ready", worker=WORKER, adopted=True, **WIDE)],
            "spare": [model("spare")],
            "third": [model("third", message="a \x1b[31mred\x1b[0m line", lineage=LINEAGE)],
        }

    def last(self, path: str) -> tuple[dict[str, str], Any]:
        """The headers and decoded body of the newest request for a path."""
        headers, body = next((h, b) for _, p, h, b in reversed(self.requests) if p == path)
        return headers, json.loads(body)

    async def answer(self, request: Request) -> Response:
        """One answer to anything."""
        body = await request.body()
        self.requests.append((request.method, request.url.path, dict(request.headers), body))
        if request.url.path == "/readyz":
            return JSONResponse({}, 200 if self.is_ready else 503)
        if request.headers.get("authorization") != f"Bearer {KEY}":
            error = {"code": "unauthenticated", "message": "this needs a key", "request_id": "r"}
            return JSONResponse({"error": error}, 401)
        parts = [unquote(part) for part in request.scope["raw_path"].decode().strip("/").split("/")]
        match parts:
            case ["api", "v1", "models", *rest]:
                return self._models(request, rest, body)
            case ["api", "v1", "workers", *rest]:
                return JSONResponse(WORKER if rest else {"workers": [WORKER], "next": None})
            case ["api", "v1", "devices"]:
                return JSONResponse({"devices": [DEVICE], "next": None})
            case ["api", "v1", "devices", "cuda:0/mig:1"]:
                return JSONResponse({**DEVICE, **(json.loads(body) if body else {})})
            case ["api", "v1", "evaluations", *_]:
                return JSONResponse(EVALUATION)
            case ["api", "v1", "jobs", _, "logs"]:
                return JSONResponse({"log": LOG})
            case ["api", "v1", "events"]:
                return self._events(request)
            case ["api", "v1", "system"]:
                return JSONResponse(_SYSTEM)
            case ["v1", "chat" | "completions", *_]:
                return self._generate(json.loads(body))
            case ["v1", "embeddings"]:
                return JSONResponse({"data": [{"index": 0, "embedding": [1.0, 2.0]}]})
            case ["v2", "models", name, *rest]:
                return _infer(request, name, body) if rest[-1:] == ["infer"] else _metadata(name)
        return JSONResponse({"error": {"code": "not_found", "message": "no such path"}}, 404)

    def _models(self, request: Request, rest: list[str], body: bytes) -> Response:
        if not rest and request.method == "POST":
            spec = json.loads(body)
            return JSONResponse(model(spec["name"], 1), 201)
        if not rest:
            names = sorted(self.models)
            after = request.query_params.get("after")
            names = [name for name in names if after is None or name > after]
            page = [self.models[name][-1] for name in names[:2]]
            return JSONResponse({"models": page, "next": names[1] if len(names) > 2 else None})
        reference, *verb = rest
        if reference in REFUSALS:
            status, refusal = REFUSALS[reference]
            return JSONResponse(refusal, status, {"retry-after": "7", "x-moc-request-id": "req-h"})
        if reference == "elsewhere":
            return RedirectResponse("https://example.invalid/")
        if reference == "garbled":
            return Response("<html>bad gateway</html>", 502)
        versions = self.models.get(reference.partition("@")[0])
        if versions is None:
            message = f"there is no model {reference!r}; `moc models list` shows those there are"
            return JSONResponse({"error": {"code": "not_found", "message": message}}, 404)
        if verb == ["versions"]:
            return JSONResponse({"versions": versions})
        if verb[-1:] == ["card"]:
            return PlainTextResponse(f"# {reference}@{verb[1]}\n\nFine-tuned.\n", media_type="text/markdown")
        if verb == ["explain"]:
            return JSONResponse(EXPLAINED[reference])
        return Response(status_code=204) if request.method == "DELETE" else JSONResponse(versions[-1])

    def _events(self, request: Request) -> Response:
        after = int(request.query_params.get("after", 0))
        found = [event for event in EVENTS if event["id"] > after]
        if request.query_params.get("follow") == "false":
            page = found[: min(2, int(request.query_params["limit"]))]
            following = page[-1]["id"] if len(page) < len(found) else None
            return JSONResponse({"events": page, "next": following})
        if not found:
            return JSONResponse(REFUSALS["native"][1], REFUSALS["native"][0])

        async def stream() -> AsyncIterator[bytes]:
            yield b": keep-alive\n\n"
            for event in found:
                yield f"id: {event['id']}\nevent: {event['kind']}\ndata: {json.dumps(event)}\n\n".encode()

        return StreamingResponse(stream(), media_type="text/event-stream")

    def _generate(self, asked: dict[str, Any]) -> Response:
        if asked["model"] == "missing":
            return JSONResponse(REFUSALS["openai"][1], 404)
        messages = asked.get("messages")
        text = messages[-1]["content"] if messages else asked["prompt"]
        if not asked.get("stream"):
            return JSONResponse({"choices": [{"message": {"role": "assistant", "content": f"you said {text}"}}]})
        return StreamingResponse(self._chunks(asked["model"], text), media_type="text/event-stream")

    async def _chunks(self, name: str, text: str) -> AsyncIterator[bytes]:
        try:
            for word in ("you said\u2028", "\x1b[2J", text):
                chunk = {"choices": [{"index": 0, "delta": {"content": word}}]}
                yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n".encode()
            if name == "breaks":
                yield b'data: {"error": {"message": "the worker died", "code": "worker_lost"}}\n\n'
            elif name == "endless":
                await asyncio.Event().wait()
            elif name != "cut":
                yield b"data: [DONE]\n\n"
        finally:
            self.stream_closed.set()


def _metadata(name: str) -> Response:
    if name not in TENSORS:
        return JSONResponse({"error": f"there is no model {name!r}"}, 404)
    inputs = [{"name": tensor, "datatype": kind, "shape": shape} for tensor, kind, shape in TENSORS[name]]
    return JSONResponse({"name": name, "versions": ["1"], "platform": "python", "inputs": inputs, "outputs": inputs})


def _infer(request: Request, name: str, body: bytes) -> Response:
    """The inputs come back as outputs, `add` gives the sum of its two."""
    length = int(request.headers["inference-header-content-length"])
    header, at = json.loads(body[:length]), length
    parts, arrays = [], []
    for tensor in header["inputs"]:
        size = tensor["parameters"]["binary_data_size"]
        parts.append(body[at : at + size])
        at += size
    if at != len(body):
        return JSONResponse({"error": "sizes and body differ"}, 400)
    outputs = header["inputs"]
    if name == "add":
        arrays = [np.frombuffer(part, "<i4") for part in parts]
        outputs, parts = [{**outputs[0], "name": "sum"}], [(arrays[0] + arrays[1]).astype("<i4").tobytes()]
    answer = json.dumps({"model_name": name, "outputs": outputs}).encode()
    headers = {"inference-header-content-length": str(len(answer))}
    return Response(b"".join((answer, *parts)), headers=headers, media_type="application/octet-stream")


def bytes_tensor(*elements: bytes) -> bytes:
    """How BYTES elements lie on the wire."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


_SYSTEM = {
    "version": "0.1.0", "replica": "here-1", "host": "here", "pid": 77, "started_at": "2026-01-01T00:00:00Z",
    "uptime_s": 5.0, "state": "ready", "data_dir": "/data", "store": "sqlite", "urls": {"rest": "http://127.0.0.1:8008"},
    "seats": [{"name": "cluster", "holder": "here-1", "term": 3}], "workers": [WORKER],
    "memory": {"total_bytes": 8 * 1024**3, "available_bytes": 4 * 1024**3, "coordinator_bytes": 90 * 1024**2},
}  # fmt: skip


@contextmanager
def running() -> Iterator[StandIn]:
    """A stand-in that listens on a free loopback port until the block ends."""
    stand_in = StandIn()
    methods = ["GET", "POST", "PATCH", "DELETE"]
    app = Starlette(routes=[Route("/{path:path}", stand_in.answer, methods=methods)])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stand_in.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield stand_in
        finally:
            server.should_exit = True
            thread.join()
