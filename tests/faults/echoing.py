"""A model that gives back what it was given, after as many seconds as a file says."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np

Fields = dict[str, Any]
PACE_S = 0.005


class Model:
    inputs = [("INPUT0", "INT64", [-1, 2])]  # noqa: RUF012 - as the manual writes a model
    outputs = [("OUTPUT0", "INT64", [-1, 2])]  # noqa: RUF012
    concurrency = 8

    def load(self, pace: str = "") -> None:
        self._pace = Path(pace) if pace else None

    async def infer(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        await self._take_time()
        return {"OUTPUT0": inputs["INPUT0"]}

    async def chat(self, request: Fields) -> Fields:
        await self._take_time()
        message = {"role": "assistant", "content": request["messages"][-1]["content"]}
        return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}

    async def stream(self, request: Fields) -> AsyncIterator[Fields]:
        for letter in request["messages"][-1]["content"]:
            await self._take_time()
            yield {"choices": [{"index": 0, "delta": {"content": letter}}]}

    async def _take_time(self) -> None:
        slow = self._pace is not None and self._pace.exists()
        await asyncio.sleep(float(self._pace.read_text()) if slow and self._pace else PACE_S)
