"""The same questions over each protocol, answered in the same words: the messages of `moc.v1`.

`tests/integration/test_parity.py` compares the answers.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

import grpc
import httpx
import msgspec
from google.protobuf import json_format
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from moc.transports.grpc.stubs.moc.v1 import devices_pb2, inference_pb2, jobs_pb2, leases_pb2, models_pb2, system_pb2
from moc.transports.grpc.stubs.modelops import model_ops_pb2
from moc.transports.headers import DEADLINE, PRIORITY, REPEATABLE, SESSION
from moc.transports.status import STATUSES
from tests import wording
from tests.refusals import Refused, allowed, granted
from tests.zmq_peer import Peer, Peers

M = TypeVar("M", bound=Message)

_NONE: Final[Mapping[str, Any]] = {}
MESSAGES: Final = [{"role": "user", "content": "hi"}]
_OPENAI_CODES: Final = {
    "model_not_found": "not_found",
    **{status.openai_code: code for code, status in STATUSES.items() if status.openai_code},
}


class Asker(Protocol):
    """What every protocol can be asked. Refused when the answer is an error."""

    def as_key(self, key: str) -> "Asker":
        """The same, with another key."""
        ...

    def on(self, **terms: Any) -> "Asker":
        """The same, saying how it wants to be served: `deadline_ms`, `priority`, `session`, `idempotency_key`."""
        ...

    async def tensors(self, model: str, values: Sequence[float]) -> inference_pb2.InferResponse: ...

    async def chat(self, model: str) -> str: ...

    async def pieces(self, model: str) -> list[str]:
        """A conversation as it is streamed."""
        ...

    async def older_text(self, model: str, prompt: str) -> tuple[str, int]:
        """A text and its tokens, in the words of the first generation."""
        ...

    async def models(self) -> models_pb2.ListModelsResponse: ...

    async def load(self, name: str, spec: dict[str, Any] | None = None) -> models_pb2.Model:
        """Load a model; with a spec add it first."""
        ...

    async def unload(self, name: str) -> models_pb2.Model: ...

    async def acquire(self, wish: dict[str, Any], deadline_ms: int | None = None) -> leases_pb2.Lease: ...

    async def renew(self, lease_id: str, token: str) -> leases_pb2.Lease: ...

    async def release(self, lease_id: str, token: str) -> leases_pb2.Lease: ...

    async def submit(self, wish: dict[str, Any]) -> jobs_pb2.Job: ...

    async def jobs(self, **only: str) -> jobs_pb2.ListJobsResponse: ...

    async def job(self, job_id: str, verb: str = "") -> jobs_pb2.Job:
        """A job, maybe after it was asked to `pause`, `resume` or `cancel`."""
        ...

    async def job_events(self, job_id: str) -> list[jobs_pb2.JobEvent]:
        """All that happened to a job that has ended."""
        ...

    async def status(self) -> system_pb2.StatusResponse: ...

    async def ready(self) -> bool: ...


class Manager(Asker, Protocol):
    """What REST and gRPC can be asked beside."""

    async def model(self, reference: str) -> models_pb2.Model: ...

    async def versions(self, name: str) -> models_pb2.ListModelsResponse: ...

    async def pull(self, reference: str) -> models_pb2.Model: ...

    async def remove(self, reference: str) -> None: ...

    async def devices(self) -> devices_pb2.ListDevicesResponse: ...

    async def device(self, device_id: str) -> devices_pb2.Device: ...

    async def set_device(self, device_id: str, state: str) -> devices_pb2.Device: ...

    async def leases(self) -> leases_pb2.ListLeasesResponse: ...

    async def lease(self, lease_id: str) -> leases_pb2.Lease: ...

    async def first_event(self) -> system_pb2.Event: ...


class RestAsker:
    """Asks over REST."""

    def __init__(self, url: str, key: str, client: httpx.AsyncClient, terms: Mapping[str, str] = _NONE) -> None:
        self._url = url
        self._key = key
        self._client = client
        self._headers = {"authorization": f"Bearer {key}", **terms}

    def as_key(self, key: str) -> "RestAsker":
        return RestAsker(self._url, key, self._client)

    def on(self, **terms: Any) -> "RestAsker":
        return RestAsker(self._url, self._key, self._client, _headers(terms))

    async def ask(self, method: str, path: str, body: Any = None, *, deadline_ms: int | None = None) -> httpx.Response:
        """One request; Refused for a status that is an error."""
        deadline = {} if deadline_ms is None else {DEADLINE: str(deadline_ms)}
        answer = await self._client.request(method, self._url + path, json=body, headers={**self._headers, **deadline})
        if answer.is_success:
            return answer
        error, retry = answer.json()["error"], answer.headers.get("retry-after")
        code = error["code"]
        raise Refused(_OPENAI_CODES.get(code, code), error["message"], None if retry is None else int(retry))

    async def tensors(self, model: str, values: Sequence[float]) -> inference_pb2.InferResponse:
        answer = await self.ask("POST", f"/v2/models/{model}/infer", wording.inputs(values))
        found = inference_pb2.InferResponse(model=answer.headers["x-moc-model"], digest=answer.headers["x-moc-digest"])
        return wording.with_outputs(found, answer.json())

    async def chat(self, model: str) -> str:
        answer = await self.ask("POST", "/v1/chat/completions", {"model": model, "messages": MESSAGES})
        return wording.content(answer.json())

    async def pieces(self, model: str) -> list[str]:
        body = {"model": model, "messages": MESSAGES, "stream": True}
        answer = await self.ask("POST", "/v1/chat/completions", body)
        lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
        assert lines.pop() == "[DONE]"
        return [wording.delta(msgspec.json.decode(line)) for line in lines]

    async def embed(self, model: str) -> Any:
        return (await self.ask("POST", "/v1/embeddings", {"model": model, "input": "x"})).json()

    async def older_text(self, model: str, prompt: str) -> tuple[str, int]:
        told = (await self.ask("POST", "/inference", {"model_name": model, "prompt": prompt})).json()
        return told["response_text"], told["tokens_generated"]

    async def models(self) -> models_pb2.ListModelsResponse:
        return wording.models((await self.ask("GET", "/api/v1/models")).json())

    async def load(self, name: str, spec: dict[str, Any] | None = None) -> models_pb2.Model:
        if spec is not None:
            await self.ask("POST", "/api/v1/models", {"name": name, **spec})
        return wording.model((await self.ask("POST", f"/api/v1/models/{name}/load")).json())

    async def unload(self, name: str) -> models_pb2.Model:
        return wording.model((await self.ask("POST", f"/api/v1/models/{name}/unload")).json())

    async def acquire(self, wish: dict[str, Any], deadline_ms: int | None = None) -> leases_pb2.Lease:
        return wording.lease((await self.ask("POST", "/api/v1/leases", wish, deadline_ms=deadline_ms)).json())

    async def renew(self, lease_id: str, token: str) -> leases_pb2.Lease:
        return wording.lease((await self.ask("POST", f"/api/v1/leases/{lease_id}/renew", {"token": token})).json())

    async def release(self, lease_id: str, token: str) -> leases_pb2.Lease:
        return wording.lease((await self.ask("DELETE", f"/api/v1/leases/{lease_id}?token={token}")).json())

    async def submit(self, wish: dict[str, Any]) -> jobs_pb2.Job:
        return wording.job((await self.ask("POST", "/api/v1/jobs", wish)).json())

    async def jobs(self, **only: str) -> jobs_pb2.ListJobsResponse:
        query = "&".join(f"{name}={value}" for name, value in only.items())
        return wording.jobs((await self.ask("GET", f"/api/v1/jobs?{query}")).json())

    async def job(self, job_id: str, verb: str = "") -> jobs_pb2.Job:
        path = f"/api/v1/jobs/{job_id}"
        return wording.job((await (self.ask("POST", f"{path}/{verb}") if verb else self.ask("GET", path))).json())

    async def job_events(self, job_id: str) -> list[jobs_pb2.JobEvent]:
        answer = await self.ask("GET", f"/api/v1/jobs/{job_id}/events?follow=true")
        found = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
        assert found.pop() == "[DONE]"
        return [wording.job_event(msgspec.json.decode(line)) for line in found]

    async def status(self) -> system_pb2.StatusResponse:
        return json_format.ParseDict((await self.ask("GET", "/api/v1/system")).json(), system_pb2.StatusResponse())

    async def ready(self) -> bool:
        return (await self._client.get(f"{self._url}/readyz")).is_success

    async def model(self, reference: str) -> models_pb2.Model:
        return wording.model((await self.ask("GET", f"/api/v1/models/{reference}")).json())

    async def versions(self, name: str) -> models_pb2.ListModelsResponse:
        found = (await self.ask("GET", f"/api/v1/models/{name}/versions")).json()["versions"]
        return wording.models({"models": found})

    async def pull(self, reference: str) -> models_pb2.Model:
        return wording.model((await self.ask("POST", f"/api/v1/models/{reference}/pull")).json())

    async def remove(self, reference: str) -> None:
        await self.ask("DELETE", f"/api/v1/models/{reference}")

    async def devices(self) -> devices_pb2.ListDevicesResponse:
        found = wording.without_nulls((await self.ask("GET", "/api/v1/devices")).json())
        return json_format.ParseDict(found, devices_pb2.ListDevicesResponse())

    async def device(self, device_id: str) -> devices_pb2.Device:
        return json_format.ParseDict(
            (await self.ask("GET", f"/api/v1/devices/{device_id}")).json(), devices_pb2.Device()
        )

    async def set_device(self, device_id: str, state: str) -> devices_pb2.Device:
        answer = await self.ask("PATCH", f"/api/v1/devices/{device_id}", {"state": state})
        return json_format.ParseDict(answer.json(), devices_pb2.Device())

    async def leases(self) -> leases_pb2.ListLeasesResponse:
        found = (await self.ask("GET", "/api/v1/leases")).json()
        return json_format.ParseDict(wording.without_nulls(found), leases_pb2.ListLeasesResponse())

    async def lease(self, lease_id: str) -> leases_pb2.Lease:
        return wording.lease((await self.ask("GET", f"/api/v1/leases/{lease_id}")).json())

    async def first_event(self) -> system_pb2.Event:
        (event,) = (await self.ask("GET", "/api/v1/events?after=0&follow=false&limit=1")).json()["events"]
        return json_format.ParseDict(event, system_pb2.Event())


class GrpcAsker:
    """Asks over gRPC."""

    def __init__(self, channel: grpc.aio.Channel, key: str, terms: Mapping[str, str] = _NONE) -> None:
        self._channel = channel
        self._key = key
        self._metadata = (("authorization", f"Bearer {key}"), *terms.items())

    def as_key(self, key: str) -> "GrpcAsker":
        return GrpcAsker(self._channel, key)

    def on(self, **terms: Any) -> "GrpcAsker":
        return GrpcAsker(self._channel, self._key, _headers(terms))

    async def ask(self, path: str, message: Message, answer: type[M]) -> M:
        """One unary call; Refused for a status that is not OK."""
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(path)
        return answer.FromString(await allowed(method(message.SerializeToString(), metadata=self._metadata)))

    def stream(
        self, path: str, message: Message, deadline_ms: int | None = None
    ) -> "grpc.aio.UnaryStreamCall[bytes, bytes]":
        """A call that is answered in parts."""
        deadline = () if deadline_ms is None else ((DEADLINE, str(deadline_ms)),)
        method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(path)
        return method(message.SerializeToString(), metadata=(*self._metadata, *deadline))

    async def tensors(self, model: str, values: Sequence[float]) -> inference_pb2.InferResponse:
        request = inference_pb2.InferRequest(model=model)
        request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, len(values)], data=wording.packed(values))
        found = await self.ask("/moc.v1.Inference/Infer", request, inference_pb2.InferResponse)
        found.ClearField("queue_ms")
        return found

    async def chat(self, model: str) -> str:
        return "".join(await self.pieces(model))

    async def pieces(self, model: str) -> list[str]:
        request = inference_pb2.ChatRequest(model=model)
        request.messages.add(**MESSAGES[0])
        call, found = self.stream("/moc.v1.Inference/Chat", request), []
        while (data := await allowed(call.read())) is not grpc.aio.EOF:
            found.append(inference_pb2.ChatChunk.FromString(data).content)
        return found

    async def older_text(self, model: str, prompt: str) -> tuple[str, int]:
        request = model_ops_pb2.InferRequest(model_name=model, prompt=prompt)
        told = await self.ask("/modelops.ModelOps/Infer", request, model_ops_pb2.InferResponse)
        if told.status != "success":
            raise Refused(told.status, told.error_message)
        return told.response_text, told.tokens_generated

    async def models(self) -> models_pb2.ListModelsResponse:
        return await self.ask("/moc.v1.Models/List", models_pb2.ListModelsRequest(), models_pb2.ListModelsResponse)

    async def load(self, name: str, spec: dict[str, Any] | None = None) -> models_pb2.Model:
        if spec is not None:
            request = models_pb2.AddModelRequest(name=name)
            request.spec.update(spec)
            await self.ask("/moc.v1.Models/Add", request, models_pb2.Model)
        return await self._changed("Load", name)

    async def unload(self, name: str) -> models_pb2.Model:
        return await self._changed("Unload", name)

    async def acquire(self, wish: dict[str, Any], deadline_ms: int | None = None) -> leases_pb2.Lease:
        request = json_format.ParseDict(wish, leases_pb2.AcquireLeaseRequest())
        call = self.stream("/moc.v1.Leases/Acquire", request, deadline_ms)
        while True:
            lease = leases_pb2.Lease.FromString(await allowed(call.read()))
            if lease.state != "pending":
                call.cancel()
                return lease

    async def renew(self, lease_id: str, token: str) -> leases_pb2.Lease:
        request = leases_pb2.RenewLeaseRequest(id=lease_id, token=token)
        return await self.ask("/moc.v1.Leases/Renew", request, leases_pb2.Lease)

    async def release(self, lease_id: str, token: str) -> leases_pb2.Lease:
        request = leases_pb2.ReleaseLeaseRequest(id=lease_id, token=token)
        return await self.ask("/moc.v1.Leases/Release", request, leases_pb2.Lease)

    async def submit(self, wish: dict[str, Any]) -> jobs_pb2.Job:
        request = json_format.ParseDict(wish, jobs_pb2.SubmitJobRequest())
        return await self.ask("/moc.v1.Jobs/Submit", request, jobs_pb2.Job)

    async def jobs(self, **only: str) -> jobs_pb2.ListJobsResponse:
        request = json_format.ParseDict(only, jobs_pb2.ListJobsRequest())
        return await self.ask("/moc.v1.Jobs/List", request, jobs_pb2.ListJobsResponse)

    async def job(self, job_id: str, verb: str = "") -> jobs_pb2.Job:
        request = jobs_pb2.GetJobRequest(id=job_id)
        return await self.ask(f"/moc.v1.Jobs/{verb.capitalize() or 'Get'}", request, jobs_pb2.Job)

    async def job_events(self, job_id: str) -> list[jobs_pb2.JobEvent]:
        call, found = self.stream("/moc.v1.Jobs/Events", jobs_pb2.JobEventsRequest(id=job_id)), []
        while (data := await allowed(call.read())) is not grpc.aio.EOF:
            found.append(jobs_pb2.JobEvent.FromString(data))
        return found

    async def status(self) -> system_pb2.StatusResponse:
        return await self.ask("/moc.v1.System/Status", system_pb2.StatusRequest(), system_pb2.StatusResponse)

    async def ready(self) -> bool:
        told = await self.ask(
            "/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest(), health_pb2.HealthCheckResponse
        )
        return told.status == health_pb2.HealthCheckResponse.SERVING

    async def model(self, reference: str) -> models_pb2.Model:
        return await self._changed("Get", reference)

    async def versions(self, name: str) -> models_pb2.ListModelsResponse:
        reference = models_pb2.ModelReference(reference=name)
        return await self.ask("/moc.v1.Models/Versions", reference, models_pb2.ListModelsResponse)

    async def pull(self, reference: str) -> models_pb2.Model:
        return await self._changed("Pull", reference)

    async def remove(self, reference: str) -> None:
        await self.ask("/moc.v1.Models/Remove", models_pb2.ModelReference(reference=reference), Empty)

    async def devices(self) -> devices_pb2.ListDevicesResponse:
        request = devices_pb2.ListDevicesRequest()
        return await self.ask("/moc.v1.Devices/List", request, devices_pb2.ListDevicesResponse)

    async def device(self, device_id: str) -> devices_pb2.Device:
        return await self.ask("/moc.v1.Devices/Get", devices_pb2.GetDeviceRequest(id=device_id), devices_pb2.Device)

    async def set_device(self, device_id: str, state: str) -> devices_pb2.Device:
        request = devices_pb2.SetDeviceStateRequest(id=device_id, state=state)
        return await self.ask("/moc.v1.Devices/SetState", request, devices_pb2.Device)

    async def leases(self) -> leases_pb2.ListLeasesResponse:
        return await self.ask("/moc.v1.Leases/List", leases_pb2.ListLeasesRequest(), leases_pb2.ListLeasesResponse)

    async def lease(self, lease_id: str) -> leases_pb2.Lease:
        return await self.ask("/moc.v1.Leases/Get", leases_pb2.GetLeaseRequest(id=lease_id), leases_pb2.Lease)

    async def first_event(self) -> system_pb2.Event:
        call = self.stream("/moc.v1.System/Events", system_pb2.EventsRequest(after=0))
        event = system_pb2.Event.FromString(await allowed(call.read()))
        call.cancel()
        return event

    async def _changed(self, method: str, reference: str) -> models_pb2.Model:
        return await self.ask(
            f"/moc.v1.Models/{method}", models_pb2.ModelReference(reference=reference), models_pb2.Model
        )


class ZmqAsker:
    """Asks over ZeroMQ."""

    def __init__(self, peers: Peers, key: str, terms: Mapping[str, Any] = _NONE) -> None:
        self._peers = peers
        self._key = key
        self._terms = terms
        self.peer: Peer = peers.dealer(key=key)

    def as_key(self, key: str) -> "ZmqAsker":
        return ZmqAsker(self._peers, key)

    def on(self, **terms: Any) -> "ZmqAsker":
        return ZmqAsker(self._peers, self._key, terms)

    async def ask(self, action: str, payload: Any = None, **fields: Any) -> dict[str, Any]:
        """One answer; Refused for one that is no success."""
        return granted(await self.peer.ask(action, payload, **{**self._terms, **fields}))

    async def tensors(self, model: str, values: Sequence[float]) -> inference_pb2.InferResponse:
        reply = await self.ask("infer", {"model": model, **wording.inputs(values)})
        found = inference_pb2.InferResponse(model=reply["model"], digest=reply["digest"])
        return wording.with_outputs(found, reply["result"])

    async def chat(self, model: str) -> str:
        return wording.content((await self.ask("chat", {"model": model, "messages": MESSAGES}))["result"])

    async def pieces(self, model: str) -> list[str]:
        payload = {"model": model, "messages": MESSAGES, "stream": True}
        await self.peer.send(action="chat", payload=payload, **self._terms)
        found = []
        while not (reply := granted(await self.peer.receive())).get("done"):
            found.append(wording.delta(reply["chunk"]))
        return found

    async def embed(self, model: str) -> Any:
        return (await self.ask("embed", {"model": model, "input": "x"}))["result"]

    async def older_text(self, model: str, prompt: str) -> tuple[str, int]:
        data = {"model_name": model, "prompt": prompt}
        await self.peer.send(type="inference_request", data=data, **self._terms)
        result = granted(await self.peer.receive())["result"]
        return result["choices"][0]["text"], result["usage"]["completion_tokens"]

    async def models(self) -> models_pb2.ListModelsResponse:
        return wording.models((await self.ask("list_models"))["result"])

    async def load(self, name: str, spec: dict[str, Any] | None = None) -> models_pb2.Model:
        payload = {"model": name} if spec is None else {"model": name, "spec": spec}
        return wording.model((await self.ask("load_model", payload))["result"])

    async def unload(self, name: str) -> models_pb2.Model:
        return wording.model((await self.ask("unload_model", {"model": name}))["result"])

    async def acquire(self, wish: dict[str, Any], deadline_ms: int | None = None) -> leases_pb2.Lease:
        deadline = {} if deadline_ms is None else {"deadline_ms": deadline_ms}
        return wording.lease((await self.ask("acquire_lease", wish, **deadline))["result"])

    async def renew(self, lease_id: str, token: str) -> leases_pb2.Lease:
        return wording.lease((await self.ask("renew_lease", {"id": lease_id, "token": token}))["result"])

    async def release(self, lease_id: str, token: str) -> leases_pb2.Lease:
        return wording.lease((await self.ask("release_lease", {"id": lease_id, "token": token}))["result"])

    async def submit(self, wish: dict[str, Any]) -> jobs_pb2.Job:
        return wording.job((await self.ask("submit_job", wish))["result"])

    async def jobs(self, **only: str) -> jobs_pb2.ListJobsResponse:
        return wording.jobs((await self.ask("list_jobs", only))["result"])

    async def job(self, job_id: str, verb: str = "") -> jobs_pb2.Job:
        return wording.job((await self.ask(f"{verb}_job" if verb else "job", {"id": job_id}))["result"])

    async def job_events(self, job_id: str) -> list[jobs_pb2.JobEvent]:
        await self.peer.send(action="job_events", payload={"id": job_id, "stream": True}, **self._terms)
        found = []
        while not (reply := granted(await self.peer.receive())).get("done"):
            found.append(wording.job_event(reply["chunk"]))
        return found

    async def status(self) -> system_pb2.StatusResponse:
        return json_format.ParseDict((await self.ask("status"))["result"], system_pb2.StatusResponse())

    async def ready(self) -> bool:
        ready: bool = (await self.ask("health"))["result"]["ready"]
        return ready


def _headers(terms: Mapping[str, Any]) -> dict[str, str]:
    """The terms by the names that they have in HTTP headers and in gRPC metadata."""
    names = {"deadline_ms": DEADLINE, "priority": PRIORITY, "session": SESSION, "idempotency_key": REPEATABLE}
    return {names[name]: str(value) for name, value in terms.items()}
