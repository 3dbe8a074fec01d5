"""A pause between two looks at something, which may be changed while somebody waits."""

import asyncio
import contextlib


class Interval:
    """Waits of `seconds`; any number may wait at once."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._changed = asyncio.Event()

    def change(self, seconds: float) -> None:
        """Wait so long from now on; whoever waits need not any longer."""
        if seconds != self.seconds:
            self.seconds = seconds
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    async def wait(self) -> None:
        """Wait for `seconds`, or until they change."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.seconds):
                await self._changed.wait()
