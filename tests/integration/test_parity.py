"""The protocols agree: whatever more than one of them can be asked, they answer alike, and so do they refuse."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from moc.inference.admission import SAMPLES_MIN
from moc.inference.station import TrafficLimits
from moc.kernel.errors import ERRORS, LoadFailed, MocError, WorkerLost, error_for
from moc.models.alias import Alias
from moc.models.model import ModelSpec
from moc.resilience.breaker import BreakerLimits
from moc.resilience.deadline import NEVER
from moc.security.identity import Role
from moc.security.key import KeyTerms
from moc.security.quota import Rate
from moc.transports.status import STATUSES
from tests.askers import MESSAGES, Asker, Manager
from tests.hosted import eventually
from tests.parity import BODY_BYTES, House, Talker, asked, open_house, refusal, refused
from tests.refusals import Refused
from tests.rest_stack import INFO

VALUES: Final = [0.5 * n for n in range(8)]
SPEC: Final[dict[str, Any]] = {"runtime": "python", "source": "file:echo.py", "options": {"a": [1, None]}}


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as opened:
        yield opened


async def in_stages(asker: Asker) -> list[Any]:
    """A model from nothing to nothing, as far as every protocol goes."""
    return [
        await asker.load("new", SPEC),
        await asker.load("new"),
        await asker.models(),
        await asker.unload("new"),
        await asker.unload("new"),
    ]


async def leased(asker: Asker) -> list[Any]:
    """A lease from beginning to end."""
    lease = await asker.acquire({"memory": "1MiB", "ttl_s": 30, "priority": 3, "grace_s": 2, "min_runtime_s": 1})
    return [
        lease,
        await asker.renew(lease.id, lease.token),
        await asker.release(lease.id, lease.token),
        await asker.release(lease.id, lease.token),
    ]


async def test_inference_is_answered_alike(house: House) -> None:
    told = await asked(house.askers, lambda asker: asker.tensors("echo", VALUES))
    assert (told["model"], told["outputs"][0]["name"]) == ("echo@1", "OUTPUT0")
    assert await asked(house.askers, lambda asker: asker.chat("echo")) == "one two"
    assert await asked(house.askers, lambda asker: asker.pieces("echo")) == ["one", " two"]
    assert await asked(house.askers, lambda asker: asker.older_text("echo", "Once")) == [" upon a time", 3]


async def test_an_alias_is_a_model_to_every_protocol(house: House) -> None:
    await house.stack.aliases.set("assistant", Alias(versions={"echo@1": 1}), actor="test", reason="Test")
    told = await asked(house.askers, lambda asker: asker.tensors("assistant", VALUES))
    assert (told["model"], told["outputs"][0]["name"]) == ("echo@1", "OUTPUT0")
    assert await asked(house.askers, lambda asker: asker.chat("assistant")) == "one two"
    assert await asked(house.askers, lambda asker: asker.pieces("assistant")) == ["one", " two"]
    assert await asked(house.askers, lambda asker: asker.older_text("assistant", "Once")) == [" upon a time", 3]


async def test_embeddings_are_refused_alike(house: House) -> None:
    found = await asked((house.rest, house.zmq), lambda asker: refusal(asker.embed("echo")))
    assert found[0] == "unimplemented"


async def test_models_are_changed_alike(house: House) -> None:
    """The first asker adds the model, the others find it added: that is told alike too."""
    stages = await asked(house.askers, in_stages)
    assert [stage.get("state") for stage in stages] == ["ready", "ready", None, "registered", "registered"]
    assert [model["reference"] for model in stages[2]["models"]] == ["echo@1", "new@1"]


async def test_models_are_shown_and_removed_alike(house: House) -> None:
    for name, ask in {
        "model": lambda asker: asker.model("echo"),
        "version": lambda asker: asker.model("echo@1"),
        "versions": lambda asker: asker.versions("echo"),
        "pull": lambda asker: asker.pull("echo"),
        "models": lambda asker: asker.models(),
    }.items():
        assert await asked(house.managers, ask), name
    for asker in house.managers:
        await asker.load("new", SPEC)
        await asker.remove("new")
        assert [model.name for model in (await asker.models()).models] == ["echo"]


async def test_devices_are_told_of_and_changed_alike(house: House) -> None:
    devices = await asked(house.managers, lambda asker: asker.devices())
    assert devices["devices"] == [await asked(house.managers, lambda asker: asker.device("declared:0"))]

    async def cordoned_and_back(asker: Manager) -> list[str]:
        return [(await asker.set_device("declared:0", state)).state for state in ("cordoned", "cordoned", "online")]

    assert await asked(house.managers, cordoned_and_back) == ["cordoned", "cordoned", "online"]


async def test_leases_are_given_and_taken_alike(house: House) -> None:
    stages = await asked(house.askers, leased)
    assert [stage["state"] for stage in stages] == ["admitted", "admitted", "released", "released"]
    assert (stages[0]["ttl_s"], stages[0]["priority"], stages[0]["bytes"]) == (30, 3, str(2**20))


async def test_a_lease_that_is_waited_for_is_told_of_alike(house: House) -> None:
    held = await house.rest.acquire({"memory": "600MiB", "ttl_s": 600})
    waiting = asyncio.create_task(house.zmq.acquire({"memory": "600MiB", "wait_s": 60}))
    await eventually(lambda: house.stack.leases.count()["pending"] == 1)
    leases = (await asked(house.managers, lambda asker: asker.leases()))["leases"]
    assert [(lease["state"], lease.get("position")) for lease in leases] == [("admitted", None), ("pending", 1)]
    pending = (await house.grpc.leases()).leases[1]
    assert (await house.rest.lease(pending.id)).position == 1
    await house.grpc.release(held.id, held.token)
    got = await waiting
    assert (got.state, got.HasField("position")) == ("admitted", False)


async def test_the_system_is_told_of_alike(house: House) -> None:
    status = await asked(house.askers, lambda asker: asker.status())
    assert [worker["model"] for worker in status["workers"]] == ["echo@1"]
    assert await asked(house.managers, lambda asker: asker.first_event())
    assert await asked(house.askers, lambda asker: asker.ready()) is True
    house.stack.replica.state = "stopping"
    assert await asked(house.askers, lambda asker: asker.ready()) is False


async def test_what_there_is_not_is_refused_alike(house: House) -> None:
    for ask in (
        lambda asker: asker.chat("nobody"),
        lambda asker: asker.pieces("echo@7"),
        lambda asker: asker.load("nobody"),
        lambda asker: asker.unload("nobody"),
        lambda asker: asker.renew("lse-none", "1.1"),
        lambda asker: asker.release("lse-none", "1.1"),
    ):
        assert await refused(house, ask) == "not_found"
    for reference in ("nobody", "echo@7"):
        assert (await asked(house.managers, lambda asker: refusal(asker.model(reference))))[0] == "not_found"  # noqa: B023


async def test_what_cannot_be_right_is_refused_alike(house: House) -> None:
    wrong: dict[str, Any] = {"memory": "1MiB"}
    for ask in (
        lambda asker: asker.renew("lse-none", "seventeen"),
        lambda asker: asker.acquire({}),
        lambda asker: asker.acquire({**wrong, "priority": 11}),
        lambda asker: asker.acquire({**wrong, "memory": "lots"}),
        lambda asker: asker.load("bad name", SPEC),
        lambda asker: asker.load("new", {"runtime": "python", "sorce": "file:x"}),
        lambda asker: asker.load("new", {"runtime": "ruby", "source": "file:x"}),
    ):
        assert await refused(house, ask) == "invalid_request"


async def test_who_may_not_is_refused_alike(house: House) -> None:
    viewer = await house.key(KeyTerms(role=Role.VIEWER))
    narrow = await house.key(KeyTerms(role=Role.OPERATOR, models=("mine-*",)))
    assert await refused(house, lambda asker: asker.as_key(viewer).acquire({"memory": "1MiB"})) == "forbidden"
    assert await refused(house, lambda asker: asker.as_key(viewer).chat("echo")) == "forbidden"
    assert await refused(house, lambda asker: asker.as_key(narrow).chat("echo")) == "forbidden"
    assert await refused(house, lambda asker: asker.as_key(narrow).status()) == "forbidden"
    for key in ("nonsense", "moc_nobody_nothing"):
        assert await refused(house, lambda asker: asker.as_key(key).status()) == "unauthenticated"  # noqa: B023


async def test_who_asks_too_often_is_refused_alike(house: House) -> None:
    hasty = await house.key(KeyTerms(role=Role.ADMIN, rate=Rate(1, 3600)))
    await house.rest.as_key(hasty).status()
    assert await refused(house, lambda asker: asker.as_key(hasty).status()) == "rate_limited"
    single = await house.key(KeyTerms(role=Role.INFERENCE, max_concurrency=1))
    house.link.gate.clear()
    busy = asyncio.create_task(house.rest.as_key(single).chat("echo"))
    await house.link.began.wait()
    assert await refused(house, lambda asker: asker.as_key(single).chat("echo")) == "rate_limited"
    house.link.gate.set()
    await busy


async def busy_model(house: House, *, max_queue: int = 16) -> tuple[Talker, str]:
    """The model `busy`, which takes one request at a time: the line to its worker, and the worker."""
    manager = house.stack.manager
    spec = ModelSpec(runtime="python", source="file:echo.py", ttl_s=0, max_concurrent=1, max_queue=max_queue)
    await manager.add("busy", spec, actor="test")
    worker_id = (await manager.ensure_ready("busy", NEVER)).worker_id
    link = house.stack.workers.links[worker_id] = Talker(INFO)
    return link, worker_id


async def at_work(house: House, link: Talker) -> "asyncio.Task[str]":
    """A request that the model `busy` works on until its gate is opened."""
    link.gate.clear()
    link.began.clear()
    asking = asyncio.create_task(house.rest.chat("busy"))
    await link.began.wait()
    return asking


async def test_a_full_queue_refuses_alike(house: House) -> None:
    link, _ = await busy_model(house, max_queue=0)
    working = await at_work(house, link)
    assert await refused(house, lambda asker: asker.chat("busy")) == "queue_full"
    link.gate.set()
    await working


async def test_terms_that_cannot_be_right_are_refused_alike(house: House) -> None:
    for terms in ({"priority": 0}, {"priority": 11}, {"session": "s" * 300}):
        assert await refused(house, lambda asker: asker.on(**terms).chat("echo")) == "invalid_request"  # noqa: B023


async def test_who_waits_goes_in_by_priority_alike(house: House) -> None:
    link, worker_id = await busy_model(house)
    tasks: list[asyncio.Task[Any]] = [await at_work(house, link)]
    for priority, asker in zip((9, 5, 1), house.askers, strict=True):
        asking = asker.on(priority=priority, session="s", idempotency_key="k").older_text("busy", f"at {priority}")
        tasks.append(asyncio.create_task(asking))
        await eventually(lambda: house.stack.gateway.stations.waiting(worker_id) == len(tasks) - 1)
    link.gate.set()
    await asyncio.gather(*tasks)
    prompts = [msgspec.json.decode(request.body)["prompt"] for request in link.given[1:]]
    assert prompts == ["at 1", "at 5", "at 9"]


async def test_a_deadline_passes_in_line_alike(house: House) -> None:
    link, _ = await busy_model(house)
    working = await at_work(house, link)
    assert await refused(house, lambda asker: asker.on(deadline_ms=30).chat("busy")) == "deadline_exceeded"
    link.gate.set()
    await working


async def test_a_deadline_that_cannot_be_met_is_refused_alike(house: House) -> None:
    link, worker_id = await busy_model(house)
    for _ in range(SAMPLES_MIN):
        working = await at_work(house, link)
        await asyncio.sleep(0.05)  # how long a request takes there
        link.gate.set()
        await working
    working = await at_work(house, link)
    waiting = [asyncio.create_task(house.rest.chat("busy")) for _ in range(8)]
    await eventually(lambda: house.stack.gateway.stations.waiting(worker_id) == len(waiting))
    assert await refused(house, lambda asker: asker.on(deadline_ms=20).chat("busy")) == "deadline_unreachable"
    link.gate.set()
    await asyncio.gather(working, *waiting)


async def test_leases_are_refused_alike(house: House) -> None:
    held = await house.rest.acquire({"memory": "600MiB", "ttl_s": 600})
    wait = {"memory": "600MiB", "wait_s": 60}
    assert await refused(house, lambda asker: asker.renew(held.id, "9.9")) == "conflict"
    assert await refused(house, lambda asker: asker.acquire({"memory": "600MiB"})) == "no_capacity"
    assert await refused(house, lambda asker: asker.acquire({"memory": "900TiB", "wait_s": 60})) == "no_capacity"
    assert await refused(house, lambda asker: asker.acquire(wait, 50)) == "deadline_exceeded"
    await house.stack.leases.drain()
    assert await refused(house, lambda asker: asker.acquire(wait)) == "unavailable"


async def test_what_a_model_cannot_is_refused_alike(house: House) -> None:
    house.link.info = msgspec.structs.replace(INFO, kinds=("tensors",))
    assert await refused(house, lambda asker: asker.chat("echo")) == "unimplemented"
    assert await refused(house, lambda asker: asker.pieces("echo")) == "unimplemented"


async def test_a_model_that_does_not_load_is_told_of_alike(house: House) -> None:
    house.stack.workers.error = LoadFailed("the engine said no", reason="load_failed")
    assert await refused(house, lambda asker: asker.load("new", SPEC)) == "load_failed"
    assert await refused(house, lambda asker: asker.chat("new")) == "load_failed"


async def test_a_worker_that_dies_is_told_of_alike(house: House) -> None:
    house.link.fault = WorkerLost("the worker died", sent=True)
    assert await refused(house, lambda asker: asker.chat("echo")) == "worker_lost"
    house.link.fault = None
    await house.rest.chat("echo")  # or its circuit would open
    house.link.fault = RuntimeError("secret")
    code, words, _ = await refusal(house.rest.chat("echo"))
    assert (code, "secret" in words) == ("internal", False)
    for asker in (house.grpc, house.zmq):
        assert (await refusal(asker.chat("echo")))[0] == "internal"


async def test_what_is_too_large_is_refused_alike(house: House) -> None:
    """Engines end what is too large before there is a message: gRPC tells no code of ours then."""
    large = [0.0] * BODY_BYTES
    with pytest.raises(Refused) as caught:
        await house.rest.ask("POST", "/api/v1/leases", {"memory": "x" * BODY_BYTES})
    assert caught.value.code == "too_large"
    with pytest.raises(Refused) as caught:
        await house.grpc.tensors("echo", large)
    assert caught.value.code == STATUSES["too_large"].grpc
    head = {"action": "infer", "payload": {"model": "echo", "inputs": []}}
    reply, _ = await house.zmq.peer.ask_msgpack(head, bytes(BODY_BYTES // 2), bytes(BODY_BYTES // 2))
    assert reply["error"]["code"] == "too_large"


@pytest.mark.parametrize("code", ERRORS)
async def test_whatever_goes_wrong_is_told_alike(house: House, code: str) -> None:
    """Every error there is, in the same words, with the same advice when to ask again."""
    error: MocError = error_for(code, "it went wrong", {"sent": True})
    error.retry_after_s = 2.5 if STATUSES[code].retry else None
    house.link.fault = error
    house.stack.gateway.adjust(TrafficLimits(breaker=BreakerLimits(failure_threshold=100)))
    found = []
    for asker in house.askers:
        for ask in (asker.chat, asker.pieces):
            with pytest.raises(Refused) as caught:
                await ask("echo")
            found.append((caught.value.code, caught.value.message, caught.value.retry_after_s))
    assert set(found) == {(code, "it went wrong", 3 if STATUSES[code].retry else None)}


async def test_who_goes_away_frees_the_engine_alike(house: House) -> None:
    link = house.link
    for cancelled, asker in enumerate(house.askers, 1):
        link.gate.clear()
        link.began.clear()
        asking = asyncio.create_task(
            house.zmq.ask("chat", {"model": "echo", "messages": MESSAGES}, request_id="gone")
            if asker is house.zmq
            else asker.chat("echo")
        )
        async with asyncio.timeout(10):
            await link.began.wait()
        if asker is house.zmq:
            await house.zmq.peer.send(action="cancel", payload={"request_id": "gone"}, request_id="end")
        else:
            asking.cancel()
        await link.idle()
        assert link.cancelled == cancelled
        await asyncio.gather(asking, return_exceptions=True)
