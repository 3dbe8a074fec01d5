"""Who holds which bytes. Pure: facts in, numbers out.

Every byte of a device is free, charged to one holder, or unmanaged (in use by processes nobody declared).
A charge is made before its holder starts, and taken back only when its process is dead and the device
says so. What is unmanaged is never given away.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from moc.gpu.device import CUDA, DECLARED, HOST, DeviceState


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """Bytes of one device that belong to one holder (`model:smollm2@1`, `lease:lse-…`, `quarantine:…`).

    A holder has one charge on each of its devices. `group` is that of its demand.
    """

    holder: str
    device: str
    bytes: int
    priority: int = 5
    group: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One device's side of the ledger. `limit_bytes` is the soft limit: charges and unmanaged never pass it."""

    device: str
    kind: str
    capacity_bytes: int
    limit_bytes: int
    unmanaged_bytes: int = 0
    state: DeviceState = DeviceState.ONLINE


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What somebody wants: `bytes` on one device of `devices` (`auto`, a kind, or a list of ids).

    A demand in `shards` wants `bytes` on each of so many devices. Models of one `group` are never loaded
    together; empty is no group. `by_kind` says of which kinds of devices it needs another number of bytes.
    `waited_s` is how long it has not been met. Its equals that were used in the last `spares_used_s` stay.
    """

    holder: str
    bytes: int
    devices: str | tuple[str, ...] = "auto"
    priority: int = 5
    shards: int = 1
    group: str = ""
    by_kind: Mapping[str, int] = field(default_factory=dict)
    waited_s: float = 0.0
    spares_used_s: float = 0.0

    def bytes_on(self, kind: str) -> int:
        """What it wants of one device of a kind."""
        return self.by_kind.get(kind, self.bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A device the demand goes on: what is free there now, and what is when the victims are gone and it is charged."""

    device: str
    free_before_bytes: int
    free_after_bytes: int


@dataclass(frozen=True)
class Ledger:
    """A snapshot: accounts by device id, and every charge."""

    accounts: Mapping[str, Account]
    charges: tuple[Charge, ...] = ()

    def charged_bytes(self, device: str) -> int:
        """All that is charged on a device."""
        return sum(charge.bytes for charge in self.charges if charge.device == device)

    def free_bytes(self, device: str) -> int:
        """What may still be charged on a device; negative when outside processes took what was charged."""
        return self._free[device]

    def free(self) -> dict[str, int]:
        """`free_bytes` of every device."""
        return dict(self._free)

    @cached_property
    def _free(self) -> Mapping[str, int]:
        free = {each.device: each.limit_bytes - each.unmanaged_bytes for each in self.accounts.values()}
        for charge in self.charges:
            if charge.device in free:
                free[charge.device] -= charge.bytes
        return free

    def with_charge(self, charge: Charge) -> "Ledger":
        """The ledger after one more charge."""
        return replace(self, charges=(*self.charges, charge))

    def without(self, holders: Iterable[str]) -> "Ledger":
        """The ledger after these holders gave all they had back."""
        gone = set(holders)
        return replace(self, charges=tuple(charge for charge in self.charges if charge.holder not in gone))

    def candidates(self, demand: Demand) -> list[Account]:
        """The accounts the demand may be put on: online, and of a kind or id it accepts.

        `auto` prefers accelerators: main memory and declared devices only when there is no `cuda` device.
        """
        online = [account for account in self.accounts.values() if account.state is DeviceState.ONLINE]
        if demand.devices != "auto":
            wanted = (demand.devices,) if isinstance(demand.devices, str) else demand.devices
            return [account for account in online if account.device in wanted or account.kind in wanted]
        for kind in (CUDA, DECLARED, HOST):
            if any(account.kind == kind for account in self.accounts.values()):
                return [account for account in online if account.kind == kind]
        return []


def fit(demand: Demand, accounts: Iterable[Account], free: Mapping[str, int]) -> tuple[Placement, ...]:
    """Where a demand goes if nobody has to leave: where it leaves the least. None at all when there is no room.

    `free` is by device, as `Ledger.free` gives it.
    """
    left = sorted((free[each.device] - demand.bytes_on(each.kind), each.device) for each in accounts)
    able = [(after, device) for after, device in left if after >= 0][: demand.shards]
    if len(able) < demand.shards:
        return ()
    return tuple(
        Placement(device=device, free_before_bytes=free[device], free_after_bytes=after) for after, device in able
    )
