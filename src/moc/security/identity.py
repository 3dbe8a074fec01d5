"""Who is asking: what a key is known by once it was found good."""

from dataclasses import dataclass, field
from enum import StrEnum

from moc.security.quota import UNLIMITED, Quota


class Role(StrEnum):
    VIEWER = "viewer"
    INFERENCE = "inference"
    OPERATOR = "operator"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who makes a request.

    `models` are globs of the models it may have to do with, empty = everything its role allows; where it waits
    with others its share of the service is as `weight` to theirs; `quota` counts what its key asks. The program of a
    job asks `on_behalf_of` the key that submitted it.
    """

    key_id: str
    name: str
    role: Role
    models: tuple[str, ...] = ()
    quota: Quota = field(default=UNLIMITED, compare=False, repr=False)
    weight: float = 1.0
    on_behalf_of: str = ""


ANYONE = Identity("anonymous", "anonymous", Role.ADMIN)
"""Who asks when `security.require_key` is off."""
