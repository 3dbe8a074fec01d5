"""The devices that were chosen, out of `devices:`."""

import re
from dataclasses import dataclass
from typing import Any

from moc.config.document import nearest
from moc.kernel.errors import InvalidRequest
from moc.kernel.units import Bytes

DEVICE_IDS = {
    "cuda": re.compile(r"cuda:\d{1,4}(/mig:\d{1,4})?", re.ASCII),
    "host": re.compile(r"host"),
    "declared": re.compile(r"declared:[A-Za-z0-9._-]{1,64}"),
}
"""The kinds of devices, and what the ids of each look like."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceChoice:
    """A device to use, at most `memory_bytes` of it (None = all it has); one that is `declared` has just that."""

    id: str
    kind: str
    memory_bytes: int | None


def devices_from(given: str | list[Any], where: str) -> tuple[DeviceChoice, ...] | None:
    if given == "auto":
        return None
    if isinstance(given, str):
        raise InvalidRequest(f"{where}: {given!r} is neither `auto` nor a list of devices")
    choices = tuple(_device(fields, f"{where}[{place}]") for place, fields in enumerate(given))
    ids = [choice.id for choice in choices]
    twice = sorted({each for each in ids if ids.count(each) > 1})
    if twice:
        raise InvalidRequest(f"{where}: there twice: {', '.join(twice)}")
    return choices


def _device(fields: Any, where: str) -> DeviceChoice:
    if not isinstance(fields, dict):
        raise InvalidRequest(f"{where}: must be a mapping with `id`, `kind` and `memory`")
    for key in fields:
        if key not in ("id", "kind", "memory"):
            raise InvalidRequest(f"{where}: unknown key {key!r}{nearest(key, ['id', 'kind', 'memory'])}")
    device_id, kind, memory = str(fields.get("id")), str(fields.get("kind")), fields.get("memory")
    if kind not in DEVICE_IDS:
        raise InvalidRequest(f"{where}: `kind` is {kind!r}; known are {', '.join(DEVICE_IDS)}")
    if DEVICE_IDS[kind].fullmatch(device_id) is None:
        examples = {"cuda": "cuda:0 or cuda:0/mig:1", "host": "host", "declared": "declared:0"}
        raise InvalidRequest(f"{where}: `id` is {device_id!r}; one of kind {kind} is called {examples[kind]}")
    if memory is None and kind == "declared":
        raise InvalidRequest(f"{where}: {device_id} needs `memory`, such as 24GiB")
    try:
        size = None if memory is None else int(Bytes.parse(memory))
    except InvalidRequest as error:
        raise InvalidRequest(f"{where}: `memory`: {error.message}") from None
    if size is not None and size <= 0:
        raise InvalidRequest(f"{where}: `memory` is {size}; it must be more than 0")
    return DeviceChoice(id=device_id, kind=kind, memory_bytes=size)
