"""Tells whose key it is that somebody shows."""

import ipaddress
from collections.abc import Callable
from typing import NoReturn

from moc.kernel.clock import Clock
from moc.kernel.errors import RateLimited, Unauthenticated
from moc.security.identity import ANYONE, Identity
from moc.security.key import id_of
from moc.security.keyring import HeldKey, KeyRing
from moc.security.quota import Rate, Rates

_IPV6_HOST_BITS = 64
"""The part of an IPv6 address that its user chooses."""


class Authenticator:
    """Keys to identities, without I/O: some microseconds for each.

    An address that shows `failed_logins_per_min` wrong keys is refused further tries for a while; right keys
    open from there all the same. `on_failed` is told the address of each wrong key that was not refused so.
    """

    def __init__(
        self,
        *,
        keys: KeyRing,
        clock: Clock,
        require_key: bool = True,
        failed_logins_per_min: int = 20,
        on_failed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._keys = keys
        self._clock = clock
        self._require_key = require_key
        self._failures = Rates()
        self._failures_rate = Rate(failed_logins_per_min, 60)
        self._on_failed = on_failed

    def adjust(self, *, require_key: bool, failed_logins_per_min: int) -> None:
        """Let these count from the next request on; with another rate every address begins anew."""
        self._require_key = require_key
        rate = Rate(failed_logins_per_min, 60)
        if rate != self._failures_rate:
            self._failures, self._failures_rate = Rates(), rate

    def identify(self, token: str | None, address: str = "") -> Identity:
        """Whose key this is, shown from an IP address ('' = unknown).

        Unauthenticated when it is missing, nobody's or ended; RateLimited when too many wrong ones came from there.
        """
        if token is None:
            if not self._require_key:
                return ANYONE
            raise Unauthenticated(
                "this needs a key: send `Authorization: Bearer KEY` or `X-API-Key: KEY` (`moc keys show` prints yours)"
            )
        now = self._clock.wall()
        held = self._keys.find(id_of(token))
        if held is None or not held.is_secret(token, now):
            self._fail(address, "this key is not known here; `moc keys show` prints the one that is")
        return self._open(held, now, address)

    def identify_curve(self, public_key_z85: str, address: str = "") -> Identity:
        """Whom a CURVE public key belongs to, once ZeroMQ has proved it; errors as for `identify`."""
        held = self._keys.find_curve(public_key_z85)
        if held is None:
            self._fail(address, "this CURVE key is bound to no key; `moc keys create --curve-public` binds it")
        return self._open(held, self._clock.wall(), address)

    def identify_certificate(self, key_id: str, address: str = "") -> Identity:
        """Whose key a client's certificate names, once TLS has proved it; errors as for `identify`."""
        held = self._keys.find(key_id)
        if held is None:
            self._fail(address, "this certificate names no key; `moc certs client KEY_ID` makes one that does")
        return self._open(held, self._clock.wall(), address)

    def _open(self, held: HeldKey, now: float, address: str) -> Identity:
        if now >= held.until:
            self._fail(address, f"key {held.key.id} is {held.key.state(now)}; ask for another")
        if not self._keys.is_open(held, now):
            self._fail(address, f"key {held.key.id} ended with the key {held.key.on_behalf_of} that it was made for")
        held.used_at = now
        return held.identity

    def _fail(self, address: str, message: str) -> NoReturn:
        wait_s = self._failures.spend(_place(address), self._failures_rate)
        if wait_s is not None:
            raise RateLimited(
                f"too many wrong keys came from {address or 'this address'}; try again in {wait_s:.0f} s",
                retry_after_s=wait_s,
            )
        self._on_failed(address)
        raise Unauthenticated(message)


def _place(address: str) -> str:
    """What failures are counted by: the address, or the network that one user of IPv6 has."""
    try:
        parsed = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    return str(parsed.ipv4_mapped or int(parsed) >> _IPV6_HOST_BITS)
