"""The ledger's arithmetic, who may go where, and best fit."""

from hypothesis import given
from hypothesis import strategies as st

from moc.gpu.device import DeviceState
from moc.gpu.ledger import Account, Charge, Demand, Ledger


def account(device: str = "cuda:0", limit: int = 100, **fields: object) -> Account:
    facts = {"kind": device.partition(":")[0], "capacity_bytes": limit, "limit_bytes": limit} | fields
    return Account(device=device, **facts)  # type: ignore[arg-type]


def ledger(*accounts: Account, charges: tuple[Charge, ...] = ()) -> Ledger:
    return Ledger({each.device: each for each in accounts}, charges)


def test_what_is_free_is_the_limit_less_charges_and_unmanaged() -> None:
    books = ledger(account(limit=100, unmanaged_bytes=15), account("cuda:1", 50))
    books = books.with_charge(Charge(holder="model:a@1", device="cuda:0", bytes=30))
    assert books.charged_bytes("cuda:0") == 30
    assert books.free() == {"cuda:0": 55, "cuda:1": 50}


def test_outside_processes_can_take_more_than_is_left() -> None:
    books = ledger(account(limit=100, unmanaged_bytes=90), charges=(Charge(holder="a", device="cuda:0", bytes=30),))
    assert books.free_bytes("cuda:0") == -20


def test_a_holder_gives_back_all_it_has_everywhere() -> None:
    charges = tuple(Charge(holder=holder, device=f"cuda:{n}", bytes=10) for holder in "ab" for n in (0, 1))
    books = ledger(account(), account("cuda:1"), charges=charges).without(["a"])
    assert books.free() == {"cuda:0": 90, "cuda:1": 90}


def test_a_charge_on_a_device_that_is_gone_changes_no_other() -> None:
    books = ledger(account(), charges=(Charge(holder="a", device="cuda:7", bytes=10),))
    assert books.free() == {"cuda:0": 100}


@given(
    charges=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["cuda:0", "host"]), st.integers(0, 90))),
    unmanaged=st.integers(0, 90),
)
def test_every_byte_is_free_charged_or_unmanaged(charges: list[tuple[str, str, int]], unmanaged: int) -> None:
    books = ledger(account(unmanaged_bytes=unmanaged), account("host"))
    for holder, device, size in charges:
        books = books.with_charge(Charge(holder=holder, device=device, bytes=size))
    for device, each in books.accounts.items():
        assert books.free()[device] == books.free_bytes(device)
        assert books.free_bytes(device) + books.charged_bytes(device) + each.unmanaged_bytes == each.limit_bytes
    assert books.without("abc").free() == {"cuda:0": 100 - unmanaged, "host": 100}


def devices_of(books: Ledger, demand: Demand) -> list[str]:
    return [each.device for each in books.candidates(demand)]


def test_a_demand_takes_the_ids_and_kinds_it_names() -> None:
    books = ledger(account("cuda:0"), account("cuda:1"), account("host"), account("declared:0"))
    assert devices_of(books, Demand(holder="a", bytes=1, devices="cuda")) == ["cuda:0", "cuda:1"]
    assert devices_of(books, Demand(holder="a", bytes=1, devices=("cuda:1", "host"))) == ["cuda:1", "host"]
    assert devices_of(books, Demand(holder="a", bytes=1, devices="cuda:9")) == []


def test_auto_takes_main_memory_only_where_there_is_nothing_better() -> None:
    host, declared, card = account("host"), account("declared:0"), account("cuda:0")
    anywhere = Demand(holder="a", bytes=1)
    assert devices_of(ledger(host, declared, card), anywhere) == ["cuda:0"]
    assert devices_of(ledger(host, declared), anywhere) == ["declared:0"]
    assert devices_of(ledger(host), anywhere) == ["host"]
    assert devices_of(ledger(), anywhere) == []


def test_a_lost_card_does_not_send_its_models_to_main_memory() -> None:
    books = ledger(account("host"), account("cuda:0", state=DeviceState.LOST))
    assert devices_of(books, Demand(holder="a", bytes=1)) == []


def test_a_cordoned_device_takes_nobody() -> None:
    books = ledger(account("cuda:0", state=DeviceState.CORDONED), account("cuda:1"))
    assert devices_of(books, Demand(holder="a", bytes=1, devices=("cuda:0", "cuda:1"))) == ["cuda:1"]
