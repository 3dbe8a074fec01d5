"""What the gateway takes of a request: by a model's name, and by aliases with all they can have."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

from moc.inference.request import Caller, Reply, Request, Terms
from moc.inference.routing import Route, Target
from moc.resilience.deadline import Deadline
from moc.testing.workers import INFO, FakeLink
from tests.crossroads import Crossroads

ROUNDS = 7
CALLS = 3_000
CALLER = Caller("key-1")
REQUEST = Request("tensors", b"abc")
BOTH = (Target("a", 90), Target("b", 10))
ROUTES = (
    Route("weighted", BOTH),
    Route("sticky", BOTH, sticky="key"),
    Route("fastest", BOTH, policy="fastest", fallback=("c",)),
    Route("hedged", BOTH, hedge=True),
)


class ReadyLink(FakeLink):
    """Answers at once."""

    def __init__(self) -> None:
        super().__init__(INFO)
        self.reply = Reply(b"abc")

    async def infer(self, request: Request) -> Reply:
        return self.reply


async def measured_us(ask: Callable[[], Awaitable[object]]) -> float:
    """Microseconds of one call, the median of a round."""
    spent = []
    for _ in range(CALLS):
        began = time.perf_counter()
        await ask()
        spent.append(time.perf_counter() - began)
    return statistics.median(spent) * 1e6


async def measure() -> dict[str, list[float]]:
    """The figures, round by round."""
    place = Crossroads()
    for name in ("a", "b", "c"):
        await place.models.load(name)
        place.models.workers.links[place.models.resident(name).worker_id] = ReadyLink()
    for route in ROUTES:
        place.alias(route)
    gateway, link = place.gateway, place.models.link("a")

    def infer(name: str) -> Callable[[], Awaitable[object]]:
        return lambda: gateway.infer(CALLER, name, REQUEST, Terms())

    kinds: dict[str, Callable[[], Awaitable[object]]] = {
        "the link alone": lambda: link.infer(REQUEST),
        "a model": infer("a"),
        "a model, with a deadline": lambda: gateway.infer(CALLER, "a", REQUEST, Terms(Deadline.after(30))),
        **{f"an alias, {route.name}": infer(route.name) for route in ROUTES},
    }
    figures: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(ROUNDS):
        for kind, ask in kinds.items():
            figures[kind].append(await measured_us(ask))
        place.journal.codes.clear()
        place.journal.served.clear()
    await gateway.stop()
    return figures


def main() -> None:
    for kind, values in asyncio.run(measure()).items():
        print(f"{kind:26} median {statistics.median(values):6.2f} µs   from {min(values):.2f} to {max(values):.2f}")


if __name__ == "__main__":
    main()
