"""One source of readings, asked in a thread of its own, so that a driver that hangs holds up nobody else."""

import asyncio
import contextlib
import math
import threading
import time
from queue import SimpleQueue

from moc.gpu.device import DeviceReading
from moc.gpu.ports import DeviceSource
from moc.kernel.errors import Unavailable

CLOSE_TIMEOUT_S = 1.0

_Outcome = list[DeviceReading] | Exception
_Answer = asyncio.Future[_Outcome]


class Reader:
    """Reads `source`, one read at a time; callers that wait for the same read share it.

    A read that never ends is left behind with its thread, which keeps no process from exiting. `read_at` is when
    the last one that told something began, on `time.monotonic`.
    """

    def __init__(self, source: DeviceSource, *, timeout_s: float) -> None:
        self.kind = source.kind
        self._source = source
        self._timeout_s = timeout_s
        self._thread: threading.Thread | None = None
        self._asked: SimpleQueue[_Answer | None] = SimpleQueue()
        self._running: _Answer | None = None
        self._next: _Answer | None = None
        self.read_at = -math.inf

    async def read(self) -> list[DeviceReading]:
        """What a read tells that begins after this call.

        Raises Unavailable when that did not end within the timeout (because it hangs, or one before it
        does), or whatever the source raised. Cancelling it stops no read.
        """
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        answer = self._next
        if self._running is None:
            self._begin()
        done, _ = await asyncio.wait([answer], timeout=self._timeout_s)
        if not done:
            raise Unavailable(f"no answer within {self._timeout_s:g} s")
        outcome = answer.result()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def close(self) -> None:
        """End the thread and close the source; a thread that hangs is left alone."""
        thread, self._thread = self._thread, None
        self._running = self._next = None
        if thread is not None:
            self._asked.put(None)
            await asyncio.to_thread(thread.join, CLOSE_TIMEOUT_S)

    def _begin(self) -> None:
        self._running, self._next = self._next, None
        if self._running is None:
            return
        if self._thread is None:
            self._asked = SimpleQueue()  # one that was left behind still waits at its own
            self._thread = threading.Thread(
                target=self._work, args=(self._asked,), name=f"devices-{self.kind}", daemon=True
            )
            self._thread.start()
        self._asked.put(self._running)

    def _work(self, asked: "SimpleQueue[_Answer | None]") -> None:
        while (answer := asked.get()) is not None:
            outcome: _Outcome
            began = time.monotonic()
            try:
                outcome = self._source.read()
            except Exception as error:  # told to whoever asked
                outcome = error
            with contextlib.suppress(RuntimeError):  # the loop ended while the driver hung
                answer.get_loop().call_soon_threadsafe(self._answered, answer, outcome, began)
        self._source.close()

    def _answered(self, answer: _Answer, outcome: _Outcome, began: float) -> None:
        if not isinstance(outcome, Exception):
            self.read_at = began
        if not answer.done():
            answer.set_result(outcome)
        if self._running is answer:
            self._begin()
