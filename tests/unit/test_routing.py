"""Where requests go: shares, stickiness, policies, and what is not well goes behind."""

import math
import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from moc.inference.routing import Policy, Route, Standing, Target, draw_of, order

_SOURCE = random.Random(7)
DRAWS = [_SOURCE.random() for _ in range(8000)]
WELL = Standing()
WEIGHTS = st.lists(st.integers(0, 100), min_size=1, max_size=5).filter(any)


def route_of(*weights: float, policy: Policy = "weighted", fallback: tuple[str, ...] = ()) -> Route:
    targets = tuple(Target(f"m@{number}", weight) for number, weight in enumerate(weights, 1))
    return Route("alias", targets, policy=policy, fallback=fallback)


def standing(**known: Standing) -> Callable[[str], Standing]:
    """Of `m@1` as `m1`; all others are well."""
    return lambda reference: known.get(reference.replace("@", ""), WELL)


def firsts(route: Route) -> list[str]:
    return [order(route, draw, lambda _: WELL)[0] for draw in DRAWS]


@pytest.mark.parametrize("weights", [(90, 10), (1, 1, 1), (0.5, 0, 1.5), (1, 99), (100,)])
def test_each_target_gets_its_share(weights: tuple[float, ...]) -> None:
    counts = Counter(firsts(route_of(*weights)))
    for number, weight in enumerate(weights, 1):
        share = weight / sum(weights)
        allowed = 5 * math.sqrt(share * (1 - share) / len(DRAWS))  # five times the standard deviation
        assert abs(counts[f"m@{number}"] / len(DRAWS) - share) <= allowed


@given(WEIGHTS, st.floats(0, 1, exclude_max=True))
def test_every_target_that_has_a_weight_is_tried_once_and_then_the_fallback(weights: list[int], draw: float) -> None:
    route = route_of(*weights, fallback=("cloud", "m@1"))
    found = order(route, draw, lambda _: WELL)
    weighty = {target.reference for target in route.targets if target.weight}
    assert set(found[: len(weighty)]) == weighty
    assert list(found[len(weighty) :]) == [each for each in route.fallback if each not in weighty]
    assert found == order(route, draw, lambda _: WELL)


@given(WEIGHTS, st.data())
def test_when_one_weight_grows_requests_move_to_it_alone(weights: list[int], data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(weights) - 1))
    grown = [*weights]
    grown[number] += data.draw(st.integers(1, 100))
    draw = data.draw(st.floats(0, 1, exclude_max=True))
    before, after = (order(route_of(*each), draw, lambda _: WELL)[0] for each in (weights, grown))
    assert after in (before, f"m@{number + 1}")


def test_no_more_move_than_must() -> None:
    """From 10 % to 50 % for the new one: 40 % of the callers move, the others stay where they were."""
    before, after = firsts(route_of(90, 10)), firsts(route_of(50, 50))
    moved = sum(old != new for old, new in zip(before, after, strict=True)) / len(DRAWS)
    assert abs(moved - 0.4) < 0.03


def test_a_target_that_goes_leaves_the_others_callers_where_they_were() -> None:
    before, after = firsts(route_of(40, 30, 30)), firsts(route_of(40, 30, 0))
    assert all(new == old for old, new in zip(before, after, strict=True) if old != "m@3")


def test_a_caller_has_the_same_draw_always_and_other_callers_others() -> None:
    draws = [draw_of("alias", f"key-{number}") for number in range(4000)]
    assert draws == [draw_of("alias", f"key-{number}") for number in range(4000)]
    assert draw_of("alias", "key-1") != draw_of("other", "key-1")
    assert sum(order(route_of(90, 10), draw, lambda _: WELL)[0] == "m@2" for draw in draws) == pytest.approx(
        400, abs=95
    )


def test_what_is_not_loaded_goes_behind_what_is_but_before_the_fallback() -> None:
    route = route_of(100, 1, fallback=("cloud",))
    assert order(route, 0.5, standing(m1=Standing(ready=False))) == ("m@2", "m@1", "cloud")


def test_what_is_blocked_goes_behind_everything() -> None:
    route = route_of(100, fallback=("spare", "cloud"))
    blocked = Standing(blocked=True)
    assert order(route, 0.5, standing(m1=blocked)) == ("spare", "cloud", "m@1")
    assert order(route, 0.5, standing(m1=blocked, spare=blocked, cloud=blocked)) == ("m@1", "spare", "cloud")


def test_local_first_takes_those_that_are_loaded_here_then_remotes() -> None:
    route = route_of(1, 100, 50, policy="local_first")
    remote = Standing(remote=True)
    assert order(route, 0.5, standing(m2=remote, m3=replace(WELL, ready=False))) == ("m@1", "m@2", "m@3")


def test_cheapest_and_fastest_go_by_cost_and_delay_and_equal_ones_by_weight() -> None:
    costs = standing(m1=Standing(cost=3), m2=Standing(cost=0.5), m3=Standing(cost=0.5))
    found = [order(route_of(100, 90, 10, policy="cheapest"), draw, costs) for draw in DRAWS]
    assert {references[2] for references in found} == {"m@1"}
    share = Counter(references[0] for references in found)["m@2"] / len(DRAWS)
    assert share == pytest.approx(0.9, abs=0.02)
    delays = standing(m1=Standing(delay_s=0.2), m2=Standing(delay_s=0.1))
    assert order(route_of(100, 1, policy="fastest"), 0.5, delays) == ("m@2", "m@1")
