"""Requests gathered into batches: every caller gets exactly its own rows, whatever the engine does."""

import asyncio
import struct
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moc.inference.batching import Batcher
from moc.inference.request import Info, Reply, Request, Tensor, TensorSpec
from moc.kernel.errors import (
    DeadlineExceeded,
    InvalidRequest,
    MocError,
    NoCapacity,
    QueueFull,
    Unavailable,
    WorkerLost,
)
from moc.workers.tensors import inputs_of, reply_of

INPUTS = (TensorSpec("X", "INT32", (-1, 2)), TensorSpec("NAME", "BYTES", (-1, 1)))
OUTPUTS = (TensorSpec("NAME", "BYTES", (-1, 1)), TensorSpec("SUM", "INT64", (-1,)))
LONG_S = 3600.0


class Engine:
    """Real arrays in and out: the sum of each row and its name twice; refuses rows that hold a -1.

    `gate` holds answers back; `seen` are the rows of each call. With `odd` it answers one row more than it was given.
    """

    alive = responsive = True

    def __init__(self, *, concurrency: int = 1, inputs: Sequence[TensorSpec] = INPUTS) -> None:
        self.info = Info(("tensors",), "test", tuple(inputs), OUTPUTS, concurrency)
        self.gate = asyncio.Event()
        self.gate.set()
        self.seen: list[int] = []
        self.odd = False
        self.error: MocError | None = None
        self.running = 0
        self.most_running = 0
        self.cancelled = 0

    async def infer(self, request: Request) -> Reply:
        rows = request.inputs[0].shape[0]
        self.seen.append(rows)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        if self.error is not None:
            raise self.error
        arrays = inputs_of(request, self.info.inputs)
        if (arrays["X"] == -1).any():
            raise InvalidRequest("there is a -1")
        names = np.array([[bytes(name) * 2] for name in arrays["NAME"][:, 0]], object).reshape(rows, 1)
        sums = arrays["X"].sum(axis=1, dtype=np.int64)
        if self.odd and rows > 1:
            names, sums = np.vstack([names, names[:1]]), np.append(sums, 0)
        return reply_of({"NAME": names, "SUM": sums}, OUTPUTS)

    async def stream(self, request: Request) -> AsyncIterator[list[bytes]]:
        yield [b"{}"]


def ask(values: Sequence[Sequence[int]], names: Sequence[bytes], **parameters: object) -> Request:
    numbers = np.array(values, "<i4").reshape(len(values), 2).tobytes()
    texts = b"".join(struct.pack("<I", len(name)) + name for name in names)
    rows = len(values)
    tensors = (Tensor("X", "INT32", (rows, 2), len(numbers)), Tensor("NAME", "BYTES", (rows, 1), len(texts)))
    return Request("tensors", numbers + texts, tensors, (), parameters)


def answer_to(reply: Reply) -> tuple[list[bytes], list[int]]:
    """The names and the sums in a reply, which has to be no longer than they are."""
    names, sums = reply.outputs
    data, at, found = bytes(reply.body), 0, []
    assert len(data) == names.size + sums.size
    for _ in range(names.shape[0]):
        (size,) = struct.unpack_from("<I", data, at)
        found.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    assert at == names.size
    assert names.shape == (sums.shape[0], 1)
    return found, list(struct.unpack(f"<{sums.shape[0]}q", data[at:]))


def one(number: int, **parameters: object) -> Request:
    return ask([[number, number]], [b"%d" % number], **parameters)


def is_right(reply: Reply, number: int) -> bool:
    return answer_to(reply) == ([b"%d" % number * 2], [2 * number])


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# what callers get


@dataclass
class Asked:
    """One caller: what it asks, how many turns of the loop after the one before, and whether it gives up at once."""

    rows: list[tuple[int, int, bytes]]
    parameter: int
    pause: int
    gives_up: bool

    @property
    def request(self) -> Request:
        values = [[a, b] for a, b, _ in self.rows]
        parameters = {"p": self.parameter} if self.parameter else {}
        return ask(values, [name for _, _, name in self.rows], **parameters)

    @property
    def is_bad(self) -> bool:
        return any(-1 in row[:2] for row in self.rows)

    def answer(self, odd: bool) -> tuple[list[bytes], list[int]]:
        """What the engine answers when it is asked this alone."""
        names, sums = [name * 2 for _, _, name in self.rows], [a + b for a, b, _ in self.rows]
        return (names + names[:1], [*sums, 0]) if odd and len(sums) > 1 else (names, sums)


ROW = st.tuples(st.integers(-1, 10**6), st.integers(0, 10**6), st.binary(max_size=5))
ASKED = st.builds(
    Asked,
    rows=st.lists(ROW, min_size=1, max_size=6),
    parameter=st.integers(0, 2),
    pause=st.integers(0, 3),
    gives_up=st.integers(0, 5).map(lambda draw: draw == 0),
)


@settings(max_examples=150, deadline=None)
@given(
    crowd=st.lists(ASKED, min_size=1, max_size=25),
    max_batch=st.integers(2, 8),
    concurrency=st.integers(1, 3),
    delay_s=st.sampled_from([0.0, 0.0005]),
    odd=st.booleans(),
)
def test_every_caller_gets_its_own_rows(
    crowd: list[Asked], max_batch: int, concurrency: int, delay_s: float, odd: bool
) -> None:
    async def run() -> None:
        engine = Engine(concurrency=concurrency)
        engine.odd = odd
        batcher = Batcher(engine, max_batch=max_batch, max_delay_s=delay_s, on_off=str)
        tasks = []
        for asked in crowd:
            await turns(asked.pause)
            tasks.append(asyncio.create_task(batcher.infer(asked.request)))
            if asked.gives_up:
                await turns(1)
                tasks[-1].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for asked, outcome in zip(crowd, outcomes, strict=True):
            if asked.gives_up and isinstance(outcome, asyncio.CancelledError):
                continue
            if asked.is_bad:
                assert isinstance(outcome, InvalidRequest), outcome
            else:
                assert isinstance(outcome, Reply), outcome
                assert answer_to(outcome) == asked.answer(odd)
        assert max(engine.seen, default=0) <= max(max_batch, *(len(asked.rows) for asked in crowd))
        assert engine.most_running <= concurrency
        assert engine.running == 0

    asyncio.run(run())


# when a batch goes


async def test_a_full_batch_goes_at_once() -> None:
    engine = Engine()
    batcher = Batcher(engine, max_batch=4, max_delay_s=LONG_S, on_off=str)
    replies = await asyncio.gather(*(batcher.infer(one(number)) for number in range(4)))
    assert engine.seen == [4]
    assert all(is_right(reply, number) for number, reply in enumerate(replies))


async def test_a_lonely_request_goes_after_the_delay() -> None:
    engine = Engine()
    assert is_right(await Batcher(engine, max_batch=4, max_delay_s=0.001, on_off=str).infer(one(7)), 7)
    assert engine.seen == [1]


async def test_without_a_delay_a_batch_is_what_came_while_the_engine_was_busy() -> None:
    engine = Engine()
    engine.gate.clear()
    batcher = Batcher(engine, max_batch=8, max_delay_s=0, on_off=str)
    tasks = [asyncio.create_task(batcher.infer(one(number))) for number in range(6)]
    await turns()
    engine.gate.set()
    await asyncio.gather(*tasks)
    assert engine.seen == [1, 5]


async def test_rows_count_and_a_batch_is_never_larger_than_it_may_be() -> None:
    engine = Engine()
    batcher = Batcher(engine, max_batch=4, max_delay_s=0.001, on_off=str)
    wide = ask([[1, 1]] * 3, [b"a", b"b", b"c"])
    broad = ask([[1, 1]] * 9, [b"n"] * 9)
    await asyncio.gather(batcher.infer(wide), batcher.infer(wide), batcher.infer(broad), batcher.infer(one(1)))
    assert sorted(engine.seen) == [3, 4, 9]


async def test_what_differs_in_parameters_or_outputs_is_not_mixed() -> None:
    engine = Engine()
    batcher = Batcher(engine, max_batch=8, max_delay_s=0.001, on_off=str)
    asked = [one(1), one(2), one(3, p=1), one(4, p=True), one(5, p=1.0), one(6, p=1)]
    asked[1].outputs = ("SUM",)
    await asyncio.gather(*(batcher.infer(request) for request in asked), return_exceptions=True)
    assert Counter(engine.seen) == Counter([1, 1, 1, 1, 2])


async def test_other_kinds_and_streams_pass_through() -> None:
    engine = Engine()
    batcher = Batcher(engine, max_batch=8, max_delay_s=LONG_S, on_off=str)
    assert [chunk async for chunk in batcher.stream(Request("chat", b"{}"))] == [[b"{}"]]
    assert batcher.info is engine.info


# what goes wrong


async def test_a_bad_request_does_not_fail_its_neighbours() -> None:
    engine = Engine()
    batcher = Batcher(engine, max_batch=3, max_delay_s=LONG_S, on_off=str)
    good, bad, other = await asyncio.gather(
        batcher.infer(one(1)), batcher.infer(one(-1)), batcher.infer(one(3)), return_exceptions=True
    )
    assert isinstance(good, Reply)
    assert isinstance(other, Reply)
    assert is_right(good, 1)
    assert is_right(other, 3)
    assert isinstance(bad, InvalidRequest)
    assert engine.seen == [3, 1, 1, 1]


@pytest.mark.parametrize(
    "error",
    [
        WorkerLost("it died", sent=True),
        Unavailable("down", retry_after_s=3),
        QueueFull("full"),
        NoCapacity("no memory"),
        DeadlineExceeded("late"),
    ],
)
async def test_what_is_nobodys_fault_is_everybodys_loss_and_nothing_is_asked_twice(error: MocError) -> None:
    engine = Engine()
    engine.error = error
    batcher = Batcher(engine, max_batch=2, max_delay_s=LONG_S, on_off=str)
    lost = await asyncio.gather(batcher.infer(one(1)), batcher.infer(one(2)), return_exceptions=True)
    assert [(type(each), getattr(each, "retry_after_s", 0)) for each in lost] == [
        (type(error), error.retry_after_s)
    ] * 2
    assert lost[0] is not lost[1]
    assert engine.seen == [2]


async def test_an_answer_that_is_no_rows_is_given_to_nobody_and_ends_batching() -> None:
    told: list[str] = []
    engine = Engine()
    engine.odd = True
    batcher = Batcher(engine, max_batch=2, max_delay_s=LONG_S, on_off=told.append)
    replies = await asyncio.gather(batcher.infer(one(1)), batcher.infer(one(2)))
    assert is_right(replies[0], 1)
    assert is_right(replies[1], 2)
    assert is_right(await batcher.infer(one(3)), 3)
    assert engine.seen == [2, 1, 1, 1]
    assert told == ["output 'NAME' has shape [3, 1] for a batch of 2 rows"]


async def test_a_model_of_fixed_shapes_is_not_batched() -> None:
    told: list[str] = []
    fixed = (TensorSpec("X", "INT32", (1, 2)), INPUTS[1])
    engine = Engine(inputs=fixed)
    batcher = Batcher(engine, max_batch=2, max_delay_s=LONG_S, on_off=told.append)
    await asyncio.gather(batcher.infer(one(1)), batcher.infer(one(2)))
    assert engine.seen == [1, 1]
    assert told == ["tensor 'X' has no first dimension of any size"]


# those who leave


@dataclass
class Crowd:
    """Callers of a batcher whose engine is held back."""

    engine: Engine
    batcher: Batcher
    tasks: "list[asyncio.Task[Reply]]" = field(default_factory=list)

    def ask(self, number: int) -> "asyncio.Task[Reply]":
        self.tasks.append(asyncio.create_task(self.batcher.infer(one(number))))
        return self.tasks[-1]


@pytest.fixture
async def crowd() -> Crowd:
    engine = Engine()
    engine.gate.clear()
    return Crowd(engine, Batcher(engine, max_batch=2, max_delay_s=0, on_off=str))


async def test_one_that_leaves_while_it_waits_is_never_asked(crowd: Crowd) -> None:
    first, second, third = crowd.ask(1), crowd.ask(2), crowd.ask(3)
    await turns()
    second.cancel()
    await turns()
    crowd.engine.gate.set()
    assert is_right(await first, 1)
    assert is_right(await third, 3)
    assert crowd.engine.seen == [1, 1]


async def test_one_that_leaves_a_running_batch_leaves_the_others_alone(crowd: Crowd) -> None:
    first, second, third = crowd.ask(1), crowd.ask(2), crowd.ask(3)
    await turns()
    first.cancel()
    await turns()
    second.cancel()
    await turns()
    crowd.engine.gate.set()
    assert is_right(await third, 3)
    assert crowd.engine.cancelled == 1


async def test_a_running_batch_that_all_leave_is_cancelled_in_the_engine(crowd: Crowd) -> None:
    crowd.ask(0)
    await turns()
    waiting = [crowd.ask(1), crowd.ask(2)]
    await turns()
    crowd.tasks[0].cancel()
    await turns()
    assert crowd.engine.seen == [1, 2]
    for task in waiting:
        task.cancel()
    await turns()
    assert crowd.engine.cancelled == 2
    crowd.engine.gate.set()
    assert is_right(await crowd.batcher.infer(one(5)), 5)
