"""What authentication and authorisation add to a request: the key looked up, its role, models and limits checked."""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from moc.kernel.clock import SystemClock
from moc.security.audit import ORIGIN, Origin
from moc.security.authenticator import Authenticator
from moc.security.identity import Role
from moc.security.key import KeyTerms
from moc.security.keyring import KeyRing
from moc.security.policy import Operation
from moc.security.quota import Rate
from moc.service.guard import require
from moc.store.memory import MemoryStore

ROUNDS = 5
CALLS = 5_000
OTHERS = 1_000
KINDS = {
    "a key": KeyTerms(role=Role.INFERENCE),
    "for some models": KeyTerms(role=Role.INFERENCE, models=("other-*", "identity")),
    "with a rate": KeyTerms(role=Role.INFERENCE, rate=Rate(10_000, 1)),
    "with everything": KeyTerms(
        role=Role.INFERENCE, models=("other-*", "identity"), rate=Rate(10_000, 1), max_concurrency=64
    ),
}


def measured_us(ask: Callable[[], None]) -> list[float]:
    """Microseconds of one call, by round."""
    found = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(CALLS):
            ask()
        found.append((time.perf_counter() - began) / CALLS * 1e6)
        time.sleep(1)  # a rate is kept, not run into: that would measure refusals
    return found


async def measure(data_dir: Path) -> dict[str, list[float]]:
    """The figures, with a thousand other keys there are."""
    store, clock = MemoryStore(), SystemClock()
    ring = KeyRing(store=store, data_dir=data_dir, clock=clock)
    authenticator = Authenticator(keys=ring, clock=clock)
    await store.start()
    await ring.start()
    for _ in range(OTHERS):
        await ring.create(KeyTerms(role=Role.VIEWER), actor="bench")
    figures = {}
    for kind, terms in KINDS.items():
        token, _ = await ring.create(terms, actor="bench")

        def ask(token: str = token) -> None:
            ORIGIN.set(Origin("req-1", "127.0.0.1"))
            identity = authenticator.identify(token, "127.0.0.1")
            require(identity, Operation.INFER, model="identity")
            with identity.quota:
                pass

        figures[kind] = measured_us(ask)
    await ring.stop()
    await store.stop()
    return figures


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(measure(Path(folder)))
    for kind, values in figures.items():
        print(f"{kind:16} median {statistics.median(values):6.2f} µs   from {min(values):.2f} to {max(values):.2f}")


if __name__ == "__main__":
    main()
