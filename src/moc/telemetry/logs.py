"""Structured logs on standard error: readable on a terminal, JSON lines otherwise."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from moc.security.redact import redact

_LEVELS = logging.getLevelNamesMapping()
_least = logging.INFO


def configure(*, level: str, form: str) -> None:
    """Set logging up for this process. `form` is `auto`, `console` or `json`; `level` a standard level name."""
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    )
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact,
    ]
    structlog.configure(
        processors=[_drop_lesser, *shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_level(level)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of what the sender of a form is told


def set_level(level: str) -> None:
    """Log from this level on; libraries from `warning` on at least."""
    global _least  # noqa: PLW0603 - as all of logging it belongs to the process
    _least = _LEVELS[level.upper()]
    logging.getLogger().setLevel(max(_least, logging.WARNING))


def _drop_lesser(_: Any, method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Decided for each entry: loggers that are in use would not hear of another level."""
    if _LEVELS[method.upper()] < _least:
        raise structlog.DropEvent
    return entry
