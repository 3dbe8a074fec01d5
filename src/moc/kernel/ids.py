"""Identifiers: a prefix that says what it names, then a sortable random part."""

import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(prefix: str) -> str:
    """A new identifier such as `wrk-01jd3w…`: ten time digits, ten random ones (50 bits), base 32."""
    moment = time.time_ns() // 1_000_000
    number = (moment << 50) | secrets.randbits(50)
    digits = []
    for _ in range(20):
        digits.append(_ALPHABET[number & 31])
        number >>= 5
    return f"{prefix}-{''.join(reversed(digits))}"
