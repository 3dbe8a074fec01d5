"""What OpenAI requests have as `prompt` and `input`: texts, or tokens of texts."""

from typing import Any

from moc.kernel.errors import InvalidRequest


def listed(value: Any, name: str) -> "list[str | list[int]]":
    """One or several texts, or tokens of texts, as a list."""
    if isinstance(value, str) or _is_tokens(value):
        return [value]
    if isinstance(value, list) and all(isinstance(one, str) or _is_tokens(one) for one in value):
        return value
    raise InvalidRequest(f"{name!r} is neither a text, tokens, nor a list of either")


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int for one in value)
