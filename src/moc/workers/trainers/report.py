"""What a program of ours tells of its work, and whether it was asked to stop."""

import asyncio
import contextlib
import json
import math
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any


class Report:
    """The progress file of an attempt: a JSON line for each thing told, in one write. Safe to use from any thread."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._torn = False

    def metrics(
        self,
        step: int,
        metrics: Mapping[str, float],
        *,
        total_steps: int = 0,
        epoch: float = 0.0,
        eta_s: float | None = None,
    ) -> None:
        """How far it is. A metric that is no finite number is left out."""
        self._tell("metrics", step=step, total_steps=total_steps, epoch=epoch, eta_s=eta_s, metrics=_finite(metrics))

    def message(self, text: str, *, level: str = "info") -> None:
        """Something for whoever reads the job's events; `level` is info, warn or error."""
        self._tell("message", level=level, message=text)

    def checkpoint(self, name: str, step: int, metrics: Mapping[str, float]) -> None:
        """The folder `name` of the checkpoints is complete, and on the disk."""
        self._tell("checkpoint", name=name, step=step, metrics=_finite(metrics))

    def error(self, reason: str, message: str) -> None:
        """Why it is about to fail: OutOfMemory, DiskFull, Invalid or ProgramFailed. Never fails itself."""
        print(message, file=sys.stderr)
        with contextlib.suppress(OSError):  # the disk may be what is full
            self._tell("error", reason=reason, message=message)

    def result(
        self, metrics: Mapping[str, float], *, trained_tokens: int = 0, data: Mapping[str, Any] | None = None
    ) -> None:
        """What it came to; the last thing told before it ends with status 0."""
        self._tell("result", metrics=_finite(metrics), trained_tokens=trained_tokens, data=dict(data or {}))

    def _tell(self, kind: str, **told: Any) -> None:
        line = json.dumps({"type": kind, **told}, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        if self._torn:
            line = b"\n" + line
        self._torn = True
        self._torn = os.write(self._file, line) < len(line)


class Stop:
    """Whether SIGTERM came: save a checkpoint, and end with the status that says so. Made in the main thread."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, lambda *_: self._ask())

    def _ask(self) -> None:
        self.asked = True

    async def wait(self) -> None:
        """Return when it came; for programs with an event loop, once."""
        told = asyncio.Event()

        def ask() -> None:
            self._ask()
            told.set()

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ask)
        if not self.asked:
            await told.wait()


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
