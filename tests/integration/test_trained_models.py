"""A version that was trained here, as callers see it."""

import httpx

from moc.models.catalogue import Trained
from moc.models.model import Artifact, ModelSpec
from moc.transports.grpc.stubs.moc.v1 import models_pb2
from tests.grpc_stack import GrpcStack
from tests.rest_stack import RestStack
from tests.unit.test_lineage import LINEAGE

SPEC = ModelSpec(runtime="python", source="file:echo.py")
ARTIFACT = Artifact(path="file:echo.py", sha256="ab", size_bytes=1, modified_at=0.0)


async def add_trained(stack: RestStack) -> str:
    trained = Trained(ARTIFACT, LINEAGE)
    return (await stack.manager.add("zorblax", SPEC, actor="key_1", trained=trained)).version.reference


async def test_it_tells_where_it_came_from(rest_stack: RestStack, rest_client: httpx.AsyncClient) -> None:
    tuned = await add_trained(rest_stack)
    model = (await rest_client.get(f"/api/v1/models/{tuned}")).json()
    assert (model["lineage"]["base"], model["lineage"]["metrics"]) == ("smollm2@1", {"train_loss": 0.123456789})
    assert (model["artifact"]["sha256"], model["digest"][:7]) == ("ab", "sha256:")
    answer = await rest_client.get("/api/v1/models/zorblax/versions/1/card")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/markdown; charset=utf-8")
    assert answer.text.startswith("# zorblax@1\n")


async def test_one_from_elsewhere_has_no_card(rest_client: httpx.AsyncClient) -> None:
    await rest_client.post("/api/v1/models", json={"name": "echo", "runtime": "python", "source": "file:echo.py"})
    assert (await rest_client.get("/api/v1/models/echo")).json()["lineage"] is None
    answer = await rest_client.get("/api/v1/models/echo/versions/1/card")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


async def test_it_does_so_over_grpc(grpc_stack: GrpcStack) -> None:
    reference = models_pb2.ModelReference(reference=await add_trained(grpc_stack.rest))
    lineage = (await grpc_stack.ask("/moc.v1.Models/Get", reference, models_pb2.Model)).lineage
    assert (lineage.base, lineage.seed, dict(lineage.metrics)) == ("smollm2@1", 7, {"train_loss": 0.123456789})
    assert lineage.hyperparameters["lora_rank"] == 8
