"""What those who wait for a lease can expect, on a clock that stands still."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from moc.gpu.lease import Standing
from moc.gpu.lease_book import MARGIN_S
from tests.unit.test_leases import NEVER_S, Host, token_of

Waiting = asyncio.Task[Standing]


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    """Two devices of a hundred bytes."""
    one = Host(100, 100)
    async with one.running():
        yield one


async def ended(*waiting: Waiting) -> None:
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


def pending(host: Host) -> dict[int, tuple[int | None, float | None]]:
    """The places of all who wait, by how much they wait for, and what they can expect."""
    found = [each for each in host.leases.standings() if each.lease.state == "pending"]
    assert [host.leases.show(each.lease.id) for each in found] == found
    return {each.lease.terms.bytes: (each.position, each.estimated_wait_s) for each in found}


def places(host: Host) -> dict[int, int | None]:
    return {size: position for size, (position, _) in pending(host).items()}


async def test_places_are_counted_among_those_who_want_the_same_devices(host: Host) -> None:
    await host.get(100, devices="declared:0", grace_s=2 * NEVER_S)
    await host.get(100, devices="declared:1", grace_s=2 * NEVER_S)
    waiting = [
        await host.waiting(51, devices="declared:0"),
        await host.waiting(52, devices="declared:1"),
        await host.waiting(53),
        await host.waiting(54, devices="declared:0", priority=1),
    ]
    assert places(host) == {51: 2, 52: 1, 53: 4, 54: 1}
    firsts = {each.lease.terms.bytes: each.first.terms.bytes for each in host.leases.standings() if each.first}
    assert firsts == {51: 54, 53: 54}
    await ended(waiting.pop(1))
    assert places(host) == {51: 2, 53: 3, 54: 1}
    await ended(*waiting)
    assert places(host) == {}


async def test_what_is_held_has_no_place(host: Host) -> None:
    held = await host.get(100)
    assert (held.position, host.leases.show(held.lease.id).position) == (None, None)


async def test_a_lease_that_was_never_renewed_ends_in_time(host: Host) -> None:
    await host.get(60, devices="declared:0", ttl_s=20)
    await host.get(40, devices="declared:0", ttl_s=50)
    waiting = [await host.waiting(50, devices="declared:0"), await host.waiting(90, devices="declared:0")]
    assert pending(host) == {50: (1, 20 + MARGIN_S), 90: (2, None)}
    host.clock.advance(5)
    assert pending(host) == {50: (1, 15 + MARGIN_S), 90: (2, None)}
    await ended(waiting.pop(0))
    await host.leases.look()
    assert pending(host) == {90: (1, 45 + MARGIN_S)}
    await ended(*waiting)


async def test_a_lease_that_is_renewed_has_no_known_end(host: Host) -> None:
    held = await host.get(100, devices="declared:0", ttl_s=20)
    waiting = await host.waiting(50, devices="declared:0")
    host.clock.advance(1)
    host.leases.renew(held.lease.id, token_of(held))
    assert pending(host) == {50: (1, None)}
    await ended(waiting)


async def test_the_grace_of_who_is_preempted_is_what_is_waited(host: Host) -> None:
    low = await host.get(100, devices="declared:0", priority=8, grace_s=5)
    host.clock.advance(1)
    host.leases.renew(low.lease.id, token_of(low))
    waiting = await host.waiting(100, devices="declared:0", priority=2)
    assert pending(host) == {100: (1, 5)}
    await host.pass_time(4)
    assert pending(host) == {100: (1, 1)}
    await host.pass_time(1)
    assert (await waiting).lease.device == "declared:0"


async def test_the_first_device_that_has_room_counts(host: Host) -> None:
    await host.get(100, devices="declared:0", ttl_s=50)
    await host.get(100, devices="declared:1", ttl_s=20)
    waiting = await host.waiting(100)
    assert pending(host) == {100: (1, 20 + MARGIN_S)}
    await ended(waiting)
