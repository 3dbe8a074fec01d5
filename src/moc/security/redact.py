"""Secrets taken out of what is logged, whoever logged it."""

import re
from collections.abc import Mapping, MutableMapping
from typing import Any

MASK = "[redacted]"

_NAMES = frozenset({"authorization", "x-api-key", "token", "secret", "password", "api_key", "cookie"})
"""What is logged under these names is never shown."""

_NAMED_SO = re.compile(r"(?i)[_-](token|secret|password|key)$")
"""Nor is a text under a name that ends so, such as `HF_TOKEN`."""

_SECRETS = (
    (re.compile(r"\b(moc_[0-9a-f]{12})_[A-Za-z0-9_-]{16,}"), rf"\1_{MASK}"),  # the id may be told
    (re.compile(r"(?i)\b(bearer|basic)\s+[^\s'\",;]+"), rf"\1 {MASK}"),
    (re.compile(r"(?i)(x-api-key['\"]?\s*[:=]\s*b?['\"]?)[^\s'\",;]+"), rf"\1{MASK}"),
    (re.compile(r"(://[^/\s:@]*):[^/\s@]+@"), rf"\1:{MASK}@"),
    (re.compile(r"\b(hf_|sk-)[A-Za-z0-9_-]{16,}"), rf"\1{MASK}"),
)


def redacted(text: str) -> str:
    """The text without keys, bearer tokens, and passwords in URLs."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def redact(_: Any, __: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: the entry without secrets, however deep they are."""
    return {name: without_secrets(name, value) for name, value in entry.items()}


def without_secrets(name: str, value: Any) -> Any:
    """What may be shown of a value called `name`, however deep its secrets are."""
    if value and name.lower() in _NAMES:
        return MASK
    if isinstance(value, str):
        return MASK if value and _NAMED_SO.search(name) else redacted(value)
    if isinstance(value, Mapping):
        return {key: without_secrets(str(key), each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [without_secrets("", each) for each in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return redacted(repr(value))
