"""What differs between two configurations, and whether that can be changed while the coordinator runs."""

from collections.abc import Iterator, Mapping
from typing import Any

from moc.config.config import Config
from moc.config.settings import LIVE
from moc.security.redact import without_secrets
from moc.service.configuration import Change


def changes(before: Config, after: Config) -> tuple[Change, ...]:
    """Every key that differs, by name; a whole mapping where one side has none."""
    return tuple(
        Change(key=key, before=_shown(key, was), after=_shown(key, now), live=is_live(key))
        for key, was, now in _differences("", _values(before), _values(after))
    )


def is_live(key: str) -> bool:
    """Whether a dotted key takes effect while the coordinator runs; otherwise it is for the next start."""
    return any(key == live or key.startswith(f"{live}.") for live in LIVE)


def shown(config: Config) -> dict[str, Any]:
    """All that is set, by section, without secrets."""
    return {section: _shown(section, value) for section, value in _values(config).items()}


def _values(config: Config) -> dict[str, Any]:
    return config.settings.model_dump(mode="json")


def _shown(key: str, value: Any) -> Any:
    return without_secrets(key.rpartition(".")[2], value)


def _differences(key: str, before: Any, after: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in sorted({*before, *after}):
            yield from _differences(f"{key}.{name}" if key else name, before.get(name), after.get(name))
    elif before != after:
        yield key, before, after
