"""What REST and ZeroMQ say in JSON, as the messages of `moc.v1`; and what they are asked in JSON."""

import struct
from collections.abc import Sequence
from typing import Any

from google.protobuf import json_format

from moc.transports.grpc.stubs.moc.v1 import inference_pb2, jobs_pb2, leases_pb2, models_pb2


def packed(values: Sequence[float]) -> bytes:
    """Numbers as a tensor's bytes."""
    return struct.pack(f"<{len(values)}f", *values)


def inputs(values: Sequence[float]) -> dict[str, Any]:
    """A request on one tensor."""
    return {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, len(values)], "data": [*values]}]}


def with_outputs(found: inference_pb2.InferResponse, told: dict[str, Any]) -> inference_pb2.InferResponse:
    """An answer with the tensors that were told."""
    for tensor in told["outputs"]:
        data = packed(tensor["data"])
        found.outputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"], data=data)
    return found


def content(told: dict[str, Any]) -> str:
    """What a conversation's answer says."""
    said: str = told["choices"][0]["message"]["content"]
    return said


def delta(chunk: dict[str, Any]) -> str:
    """What a piece of it says."""
    said: str = chunk["choices"][0]["delta"]["content"]
    return said


def model(view: dict[str, Any]) -> models_pb2.Model:
    """Its `devices` are one text, or a list of them."""
    devices = view["devices"]
    return json_format.ParseDict(
        {**view, "devices": [devices] if isinstance(devices, str) else devices}, models_pb2.Model()
    )


def models(page: dict[str, Any]) -> models_pb2.ListModelsResponse:
    """A list of models."""
    models = [model(view) for view in page["models"]]
    return models_pb2.ListModelsResponse(models=models, next=page.get("next") or "")


def lease(view: dict[str, Any]) -> leases_pb2.Lease:
    """A lease."""
    return json_format.ParseDict(view, leases_pb2.Lease())


def job(view: dict[str, Any]) -> jobs_pb2.Job:
    """A job."""
    return json_format.ParseDict(view, jobs_pb2.Job())


def jobs(page: dict[str, Any]) -> jobs_pb2.ListJobsResponse:
    """A list of jobs."""
    return jobs_pb2.ListJobsResponse(jobs=[job(view) for view in page["jobs"]], next=page["next"] or "")


def job_event(view: dict[str, Any]) -> jobs_pb2.JobEvent:
    """Something told of a job."""
    return json_format.ParseDict(view, jobs_pb2.JobEvent())


def without_nulls(page: dict[str, Any]) -> dict[str, Any]:
    """Only what is something."""
    return {key: value for key, value in page.items() if value is not None}
