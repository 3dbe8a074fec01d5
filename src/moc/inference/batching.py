"""Requests on tensors gathered into batches, each of them one call of the engine.

Only requests that differ in nothing but their rows go together: the same inputs of the same datatypes and shapes
behind the first dimension, the same wanted outputs, the same parameters. Nothing is padded.
"""

import asyncio
import math
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Sequence
from itertools import accumulate, pairwise

import msgspec

from moc.inference.ports import Link
from moc.inference.request import Buffer, Info, Reply, Request, Tensor
from moc.kernel.errors import DeadlineExceeded, NoCapacity, QueueFull, Unavailable, WorkerLost, retold

_OF_ALL = (WorkerLost, Unavailable, QueueFull, NoCapacity, DeadlineExceeded)
"""Errors of which no single request can be the cause: asked alone, each would meet them anew."""

_LENGTH = struct.Struct("<I")
_encode = msgspec.msgpack.Encoder(order="deterministic").encode


class NotRows(Exception):
    """An engine's answer to a batch does not fall into rows: `str` says which output it is."""


class _Member:
    """One request in a batch; `answer` is done early when nobody waits for it any more."""

    __slots__ = ("answer", "batch", "request", "rows")

    def __init__(self, request: Request, answer: "asyncio.Future[Reply]") -> None:
        self.request = request
        self.rows = _rows(request)
        self.answer = answer
        self.batch: _Batch | None = None

    def settle(self, outcome: Reply | Exception) -> None:
        """Tell whoever waits."""
        if self.answer.done():
            return
        if isinstance(outcome, Exception):
            self.answer.set_exception(outcome)
        else:
            self.answer.set_result(outcome)

    def leave(self) -> None:
        """Nobody waits for this one; a batch that nobody waits for at all is not run, or ends."""
        batch = self.batch
        if batch is None:
            return
        if batch.task is None:
            batch.members.remove(self)
            batch.rows -= self.rows
        elif all(each.answer.done() for each in batch.members):
            batch.task.cancel()


class _Batch:
    """Requests that go to the engine together, at `due` or as soon after that as it has a place."""

    __slots__ = ("due", "key", "members", "rows", "task")

    def __init__(self, key: Hashable, due: float, *members: _Member) -> None:
        self.key = key
        self.due = due
        self.members: list[_Member] = []
        self.rows = 0
        self.task: asyncio.Task[None] | None = None
        for member in members:
            self.add(member)

    def add(self, member: _Member) -> None:
        """Take one more."""
        member.batch = self
        self.members.append(member)
        self.rows += member.rows


class Batcher:
    """Implements `Link` over the link of one worker, and hands it whole batches.

    A batch is handed over when one of the engine's `concurrency` places is free and the batch has `max_batch` rows
    or its first request has waited `max_delay_s`; until then it grows. A request that cannot be batched goes alone,
    in its turn, and so does each request of a batch that the engine refuses. If the engine's answers do not fall
    into rows every request goes alone from then on, and `on_off` is told why.
    """

    def __init__(self, link: Link, *, max_batch: int, max_delay_s: float, on_off: Callable[[str], object]) -> None:
        self._link = link
        self._max_batch = max_batch
        self._max_delay_s = max_delay_s
        self._on_off = on_off
        self._free = max(1, link.info.concurrency)
        self._loop = asyncio.get_running_loop()
        self._open: dict[Hashable, _Batch] = {}
        self._full: deque[_Batch] = deque()
        self._timer: asyncio.TimerHandle | None = None
        fixed = _without_rows(link.info)
        if fixed:
            self._turn_off(f"{fixed} has no first dimension of any size")

    @property
    def info(self) -> Info:
        """What the engine says of itself."""
        return self._link.info

    @property
    def alive(self) -> bool:
        """False from the moment the connection is lost."""
        return self._link.alive

    @property
    def responsive(self) -> bool:
        """Whether the worker shows signs of life."""
        return self._link.responsive

    def stream(self, request: Request) -> AsyncIterator[list[bytes]]:
        """Streams are the engine's own to batch."""
        return self._link.stream(request)

    async def infer(self, request: Request) -> Reply:
        """One answer, as if the request had been alone; cancelling the caller takes it out of its batch."""
        if request.kind != "tensors":
            return await self._link.infer(request)
        member = _Member(request, self._loop.create_future())
        self._take(member)
        self._hand_over()
        try:
            return await member.answer
        except asyncio.CancelledError:
            member.leave()
            raise

    # gathering

    def _take(self, member: _Member) -> None:
        """Put it in the batch it fits in, or in a new one."""
        now = self._loop.time()
        if not 0 < member.rows < self._max_batch:
            self._full.append(_Batch(None, now, member))
            return
        key = _key(member)
        batch = self._open.get(key)
        if batch is not None and batch.rows + member.rows > self._max_batch:
            self._full.append(self._open.pop(key))
            batch = None
        if batch is None:
            batch = self._open[key] = _Batch(key, now + self._max_delay_s)
        batch.add(member)
        if batch.rows == self._max_batch:
            self._full.append(self._open.pop(key))

    def _hand_over(self) -> None:
        """Give the engine what is due, as long as it has a place."""
        while self._free and (batch := self._next()) is not None:
            self._free -= 1
            batch.task = self._loop.create_task(self._run(batch.members))
            batch.task.add_done_callback(self._ended)  # also of one that was cancelled before it began
        if self._free and self._open and self._timer is None:
            self._timer = self._loop.call_at(next(iter(self._open.values())).due, self._wake)

    def _next(self) -> _Batch | None:
        """Of the batches that are full or have waited long enough, the one that is due first."""
        while self._full and not self._full[0].members:
            self._full.popleft()
        while (oldest := next(iter(self._open.values()), None)) is not None and not oldest.members:
            del self._open[oldest.key]
        full = self._full[0].due if self._full else math.inf
        if oldest is not None and oldest.due <= min(self._loop.time(), full):
            return self._open.pop(oldest.key)
        return self._full.popleft() if self._full else None

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._free += 1
        self._hand_over()

    def _wake(self) -> None:
        self._timer = None
        self._hand_over()

    # running

    async def _run(self, members: Sequence[_Member]) -> None:
        if len(members) == 1:
            await self._alone(members[0])
        elif not await self._together(members):
            left = [member for member in members if not member.answer.done()]
            self._full.extendleft(_Batch(None, -math.inf, member) for member in reversed(left))

    async def _alone(self, member: _Member) -> None:
        try:
            member.settle(await self._link.infer(member.request))
        except Exception as error:
            member.settle(error)

    async def _together(self, members: Sequence[_Member]) -> bool:
        """Answer all with one call of the engine; False when each has to be asked alone."""
        try:
            reply = await self._link.infer(_joined(members))
            parts = _parted(reply, [member.rows for member in members])
        except _OF_ALL as error:
            for member in members:
                member.settle(retold(error))
            return True
        except NotRows as why:
            self._turn_off(str(why))
            return False
        except Exception:
            return False  # one of them may be at fault, and the others are not to suffer for it
        for member, part in zip(members, parts, strict=True):
            member.settle(part)
        return True

    def _turn_off(self, why: str) -> None:
        if self._max_batch == 1:
            return
        self._max_batch = 1
        self._on_off(why)


def _without_rows(info: Info) -> str:
    """The first input or output whose first dimension is fixed; a model that declares none may take any."""
    fixed = (spec.name for spec in (*info.inputs, *info.outputs) if spec.shape[:1] != (-1,))
    return next((f"tensor {name!r}" for name in fixed), "")


def _rows(request: Request) -> int:
    """How many rows a request has; 0 when it does not consist of any."""
    found = {tensor.shape[0] if tensor.shape else 0 for tensor in request.inputs}
    whole = sum(tensor.size for tensor in request.inputs) == len(request.body)
    return found.pop() if len(found) == 1 and whole else 0


def _key(member: _Member) -> Hashable:
    """The same for requests that may go together."""
    request = member.request
    inputs = tuple(
        (tensor.name, tensor.datatype, tensor.shape[1:], tensor.datatype == "BYTES" or tensor.size / member.rows)
        for tensor in request.inputs
    )
    return inputs, request.outputs, _encode(request.parameters) if request.parameters else b""


def _joined(members: Sequence[_Member]) -> Request:
    """All their rows as one request."""
    first, rows = members[0].request, sum(member.rows for member in members)
    cut = [list(_pieces(member.request.body, member.request.inputs)) for member in members]
    pieces = [piece for column in zip(*cut, strict=True) for piece in column]
    sizes = [sum(len(piece) for piece in column) for column in zip(*cut, strict=True)]
    inputs = tuple(
        Tensor(tensor.name, tensor.datatype, (rows, *tensor.shape[1:]), size)
        for tensor, size in zip(first.inputs, sizes, strict=True)
    )
    return Request(first.kind, b"".join(pieces), inputs, first.outputs, first.parameters)


def _parted(reply: Reply, rows: Sequence[int]) -> list[Reply]:
    """One reply for each member, by their rows; NotRows when an output has not as many."""
    total = sum(rows)
    columns = []
    for tensor, data in zip(reply.outputs, _pieces(reply.body, reply.outputs), strict=True):
        if tensor.shape[:1] != (total,):
            raise NotRows(f"output {tensor.name!r} has shape {list(tensor.shape)} for a batch of {total} rows")
        ends = _ends(tensor, data, list(accumulate(rows, initial=0)))
        columns.append([data[start:end] for start, end in pairwise(ends)])
    parts = []
    for place, count in enumerate(rows):
        pieces = [column[place] for column in columns]
        outputs = tuple(
            Tensor(tensor.name, tensor.datatype, (count, *tensor.shape[1:]), len(piece))
            for tensor, piece in zip(reply.outputs, pieces, strict=True)
        )
        parts.append(Reply(b"".join(pieces), outputs, dict(reply.parameters)))
    return parts


def _pieces(body: Buffer, tensors: Sequence[Tensor]) -> Iterator[memoryview]:
    """The bytes of each tensor."""
    view, at = memoryview(body), 0
    for tensor in tensors:
        yield view[at : at + tensor.size]
        at += tensor.size


def _ends(tensor: Tensor, data: memoryview, rows: Sequence[int]) -> list[int]:
    """Where in `data` so many rows end, for each of `rows`; the last of them is all."""
    if tensor.datatype == "BYTES":
        found = _element_ends(data, [math.prod(tensor.shape[1:]) * row for row in rows])
    else:
        found = [len(data) // rows[-1] * row for row in rows]
    if found[-1] != len(data):
        raise NotRows(f"output {tensor.name!r} has {len(data)} bytes, which are not {rows[-1]} rows")
    return found


def _element_ends(data: memoryview, counts: Sequence[int]) -> list[int]:
    """Where so many elements of BYTES end, for each of `counts`; -1 is behind the end of `data`."""
    found, at = [], 0
    for before, count in pairwise((0, *counts)):
        for _ in range(count - before):
            if at + _LENGTH.size > len(data):
                return [-1]
            at += _LENGTH.size + _LENGTH.unpack_from(data, at)[0]
        found.append(at)
    return found
