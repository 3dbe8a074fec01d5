"""Eviction: seconds spent loading models again, against LRU and against what knowing the future would give.

Models of many sizes share one device, requests come in by seeded workloads, and every policy serves each of them
at once: only whom it unloads differs (so no minimum residency here). Run it with `make bench-eviction`.
"""

import math
import random
import statistics
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from moc.gpu.eviction import GIB, History, Policy, Tenant, plan
from moc.gpu.ledger import Account, Charge, Demand, Ledger
from moc.gpu.plan import Plan

DAY_S = 86_400.0
MODELS = 40
REQUESTS = 4_000
SEEDS = range(3000, 3008)
CAPACITIES_GIB = (48, 80, 141)
AT_ONCE = Policy(min_residency_s=0, swap_back_reloads=0)


@dataclass(frozen=True, slots=True)
class Model:
    """What is loaded: its size, and what loading it costs."""

    name: str
    bytes: int
    reload_s: float


Trace = list[tuple[float, Model]]


def catalogue(chance: random.Random) -> list[Model]:
    """Models of 256 MiB to 40 GiB; loading is a runtime's start (0.5, 3 or 9 s) and reading at 2, 1.5 or 1 GiB/s."""
    models = []
    for number in range(MODELS):
        gib = 2 ** chance.uniform(-2, 5.3)
        start_s, gib_per_s = chance.choice([(0.5, 2.0), (3.0, 1.5), (9.0, 1.0)])
        models.append(Model(f"m{number:02}", int(gib * GIB), start_s + gib / gib_per_s))
    return models


def zipf(chance: random.Random, models: Sequence[Model], requests: int) -> Trace:
    """A few models are asked for most of the time."""
    weights = [1 / rank for rank in range(1, len(models) + 1)]
    return [(chance.uniform(0, DAY_S), chance.choices(models, weights)[0]) for _ in range(requests)]


def diurnal(chance: random.Random, models: Sequence[Model], requests: int) -> Trace:
    """Each model has its own hours, twice a day."""
    phases = [chance.random() for _ in models]
    trace = []
    for _ in range(requests):
        at = chance.uniform(0, DAY_S)
        weights = [
            (1 + math.cos(2 * math.pi * (2 * at / DAY_S - phase))) ** 2 / rank for rank, phase in enumerate(phases, 1)
        ]
        trace.append((at, chance.choices(models, weights)[0]))
    return trace


def scans(chance: random.Random, models: Sequence[Model], requests: int) -> Trace:
    """Three quarters as in `zipf`; the rest goes through all models one after the other, as an evaluation does."""
    trace = zipf(chance, models, requests * 3 // 4)
    for _ in range(requests // 4 // len(models)):
        begin = chance.uniform(0, DAY_S)
        trace += [(begin + 60 * step, model) for step, model in enumerate(models)]
    return trace


def agents(chance: random.Random, models: Sequence[Model], requests: int) -> Trace:
    """Agents come, alternate between two models for 10 to 60 calls, and go."""
    trace: Trace = []
    while len(trace) < requests:
        at, pair = chance.uniform(0, DAY_S), chance.sample(models, 2)
        for call in range(chance.randint(10, 60)):
            at += chance.uniform(5, 40)
            trace.append((at, pair[call % 2]))
    return trace


def bursts(chance: random.Random, models: Sequence[Model], requests: int) -> Trace:
    """A model is asked for 5 to 80 times in a few minutes, then by and by another."""
    weights = [rank**-0.8 for rank in range(1, len(models) + 1)]
    trace: Trace = []
    while len(trace) < requests:
        at, model = chance.uniform(0, DAY_S), chance.choices(models, weights)[0]
        for _ in range(chance.randint(5, 80)):
            at += chance.expovariate(1 / 3)
            trace.append((at, model))
    return trace


KINDS = (zipf, diurnal, scans, agents, bursts)


def traces(seed: int) -> Iterator[tuple[str, Trace]]:
    """Every workload of a seed, in order of time; `mix` is all five at once, each with its own favourites."""
    for kind in KINDS:
        chance = random.Random(f"{kind.__name__} {seed}")
        yield kind.__name__, sorted(kind(chance, catalogue(chance), REQUESTS), key=lambda request: request[0])
    chance = random.Random(f"mix {seed}")
    models = catalogue(chance)
    mix: Trace = []
    for kind in KINDS:
        mix += kind(chance, chance.sample(models, len(models)), REQUESTS // len(KINDS))
    yield "mix", sorted(mix, key=lambda request: request[0])


@dataclass(slots=True)
class Resident:
    """A model that is loaded."""

    model: Model
    loaded_at: float
    used_at: float = 0.0
    uses: int = 0


@dataclass(slots=True)
class Shelf:
    """One device and what is on it, at one step of a trace."""

    capacity: int
    residents: dict[str, Resident] = field(default_factory=dict)
    now: float = 0.0
    step: int = 0

    @property
    def free(self) -> int:
        return self.capacity - sum(resident.model.bytes for resident in self.residents.values())


class Rule(Protocol):
    """Who leaves when `wanted` does not fit. A rule is new for every run."""

    def victims(self, shelf: Shelf, wanted: Model) -> Sequence[str]: ...

    def used(self, model: Model) -> None: ...


class ByWorth:
    """LRU, and what else goes by some worth: those of least worth first, until the wanted model fits."""

    def used(self, model: Model) -> None:
        """Nothing is remembered."""

    def worth(self, shelf: Shelf, resident: Resident) -> float:
        """The more recent, the better."""
        return resident.used_at

    def victims(self, shelf: Shelf, wanted: Model) -> Sequence[str]:
        short, leaving = wanted.bytes - shelf.free, []
        for resident in sorted(shelf.residents.values(), key=lambda resident: self.worth(shelf, resident)):
            if short <= 0:
                break
            leaving.append(resident.model.name)
            short -= resident.model.bytes
        return leaving


class Counted(ByWorth):
    """LRU with a largest number of models: as many of the mean size as the device holds, and no more than fit."""

    def __init__(self, trace: Trace, capacity: int) -> None:
        models = {model.name: model.bytes for _, model in trace}
        self._most = max(1, int(capacity / statistics.mean(models.values())))

    def victims(self, shelf: Shelf, wanted: Model) -> Sequence[str]:
        by_age = [each.model.name for each in sorted(shelf.residents.values(), key=lambda each: each.used_at)]
        surplus = len(by_age) + 1 - self._most
        return by_age[: max(surplus, len(super().victims(shelf, wanted)))]


class Textbook(ByWorth):
    """GreedyDual-Size-Frequency as published: ages by inflation, counts every use."""

    def __init__(self) -> None:
        self._inflation = 0.0
        self._base: dict[str, float] = {}

    def used(self, model: Model) -> None:
        self._base[model.name] = self._inflation

    def worth(self, shelf: Shelf, resident: Resident) -> float:
        model = resident.model
        return self._base[model.name] + resident.uses * model.reload_s / model.bytes

    def victims(self, shelf: Shelf, wanted: Model) -> Sequence[str]:
        leaving = super().victims(shelf, wanted)
        self._inflation = max([self._inflation, *(self.worth(shelf, shelf.residents[name]) for name in leaving)])
        return leaving


class Foresight(ByWorth):
    """Belady with sizes and costs: knows when each model is asked for next. Good, yet not the optimum."""

    def __init__(self, trace: Trace) -> None:
        self._steps: dict[str, list[int]] = {}
        for step, (_, model) in enumerate(trace):
            self._steps.setdefault(model.name, []).append(step)

    def worth(self, shelf: Shelf, resident: Resident) -> float:
        steps, model = self._steps[resident.model.name], resident.model
        index = bisect_right(steps, shelf.step)
        return model.reload_s / model.bytes / (steps[index] - shelf.step) if index < len(steps) else 0.0


class Ours:
    """The coordinator's own decision."""

    def used(self, model: Model) -> None:
        """Nothing is remembered."""

    def victims(self, shelf: Shelf, wanted: Model) -> Sequence[str]:
        tenants, charges = [], []
        for name, resident in shelf.residents.items():
            size = resident.model.bytes
            charges.append(Charge(holder=name, device="d", bytes=size))
            tenants.append(
                Tenant(
                    holder=name,
                    device="d",
                    bytes=size,
                    loaded_at=resident.loaded_at,
                    last_used_at=resident.used_at,
                    uses=resident.uses,
                    reload_s=resident.model.reload_s,
                )
            )
        account = Account(device="d", kind="cuda", capacity_bytes=shelf.capacity, limit_bytes=shelf.capacity)
        demand = Demand(holder=wanted.name, bytes=wanted.bytes)
        ledger = Ledger({"d": account}, tuple(charges))
        decision = plan(demand, ledger, tenants, policy=AT_ONCE, now=shelf.now, history=History())
        assert isinstance(decision, Plan), decision
        return [victim.holder for victim in decision.victims]


def play(trace: Trace, capacity: int, rule: Rule) -> tuple[float, float]:
    """Seconds spent loading, and the share of requests that found their model loaded."""
    shelf, seconds, hits = Shelf(capacity), 0.0, 0
    for shelf.step, (shelf.now, model) in enumerate(trace):
        if model.name in shelf.residents:
            hits += 1
        else:
            for name in rule.victims(shelf, model):
                del shelf.residents[name]
            assert shelf.free >= model.bytes
            shelf.residents[model.name] = Resident(model, loaded_at=shelf.now)
            seconds += model.reload_s
        resident = shelf.residents[model.name]
        resident.used_at, resident.uses = shelf.now, resident.uses + 1
        rule.used(model)
    return seconds, hits / len(trace)


def least(trace: Trace, capacity: int) -> float:
    """A bound: no policy, whatever it knows, spends fewer seconds loading.

    Keeping a model from one request to the next saves a load and takes its bytes for so many steps. Of all the
    bytes times steps there are, beside those of the model being served, the best savings are taken, in part if
    need be, as if only their sum had to fit (a relaxation as in Berger, Beckmann and Harchol-Balter, 2018).
    """
    seconds, room = 0.0, 0.0
    last: dict[str, int] = {}
    savings: list[tuple[float, float]] = []
    for step, (_, model) in enumerate(trace):
        seconds += model.reload_s
        room += capacity - model.bytes
        if model.name in last:
            savings.append((model.reload_s, float(model.bytes) * (step - last[model.name] - 1)))
        last[model.name] = step
    for saved, takes in sorted(savings, key=lambda saving: saving[1] / saving[0]):
        if takes > room:
            return seconds - saved * room / takes
        seconds, room = seconds - saved, room - takes
    return seconds


RULES: dict[str, Callable[[Trace, int], Rule]] = {
    "LRU": lambda trace, capacity: ByWorth(),
    "counted LRU": Counted,
    "textbook GDSF": lambda trace, capacity: Textbook(),
    "ours": lambda trace, capacity: Ours(),
    "foresight": lambda trace, capacity: Foresight(trace),
}


@dataclass(slots=True)
class Run:
    """One trace on one device: by rule the seconds spent loading, and the share of requests that did not wait."""

    kind: str
    gib: int
    seconds: dict[str, float] = field(default_factory=dict)
    hits: dict[str, float] = field(default_factory=dict)


def run(kind: str, trace: Trace, gib: int) -> Run:
    """Every rule on one trace."""
    result = Run(kind, gib)
    for name, rule in RULES.items():
        result.seconds[name], result.hits[name] = play(trace, gib * GIB, rule(trace, gib * GIB))
    result.seconds["bound"] = least(trace, gib * GIB)
    return result


def row(label: str, runs: Sequence[Run]) -> str:
    """One line of the table: all seconds of these runs, as shares of LRU's."""
    lru = sum(each.seconds["LRU"] for each in runs)
    shares = [f"{sum(each.seconds[name] for each in runs) / lru:.2f}" for name in (*RULES, "bound") if name != "LRU"]
    worst = max(each.seconds["ours"] / each.seconds["LRU"] for each in runs)
    hits = [f"{statistics.mean(each.hits[name] for each in runs):.1%}" for name in ("LRU", "ours")]
    return f"| {' | '.join([label, f'{lru:,.0f}', *shares, f'{worst:.2f}', *hits])} |"


def workloads() -> None:
    """The table: every workload over all seeds and capacities, and the mix by capacity."""
    runs = [run(kind, trace, gib) for seed in SEEDS for kind, trace in traces(seed) for gib in CAPACITIES_GIB]
    others = [name for name in RULES if name != "LRU"]
    head = ["workload", "LRU, s", *others, "bound", "ours, worst run", "hits, LRU", "hits, ours"]
    print(f"\n| {' | '.join(head)} |\n{'|---' * len(head)}|")
    for kind in (*(kind.__name__ for kind in KINDS), "mix"):
        print(row(kind, [each for each in runs if each.kind == kind]))
    for gib in CAPACITIES_GIB:
        print(row(f"mix, {gib} GiB", [each for each in runs if (each.kind, each.gib) == ("mix", gib)]))


def main() -> None:
    workloads()


if __name__ == "__main__":
    main()
