"""No secret gets into a log."""

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import pytest
import structlog

from moc.security.identity import Role
from moc.security.key import KeyTerms, new_key
from moc.security.redact import MASK, redact, redacted
from moc.telemetry import logs

SECRET = "s3cr3tPassw0rd-Canary"


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {SECRET}",
        f"authorization=basic {SECRET}",
        f"{{'X-API-Key': '{SECRET}'}}",
        f"x-api-key: {SECRET}",
        f"redis://user:{SECRET}@host:6379/0",
        f"postgres://:{SECRET}@host",
        f"GET https://me:{SECRET}@host/x?y failed",
        f"hf_{SECRET}{SECRET}",
        f"sk-{SECRET}{SECRET}",
    ],
)
def test_secrets_are_taken_out_of_text(text: str) -> None:
    assert SECRET not in redacted(text)
    assert MASK in redacted(text)


def test_a_key_loses_its_secret_and_keeps_its_id() -> None:
    for _ in range(200):
        token, key = new_key(KeyTerms(role=Role.VIEWER), now=0, actor="test")
        shown = redacted(f"could not use {token}, sorry")
        assert shown == f"could not use moc_{key.id}_{MASK}, sorry"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a plain line",
        "http://host:8008/v1/models",
        "me@example.org",
        "the bearer",
        "model moc_a_b",
        "hf:org/repo@rev",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text


def test_secrets_are_found_however_deep_they_are() -> None:
    entry: dict[str, Any] = {
        "event": f"Bearer {SECRET}",
        "headers": {"authorization": SECRET, "deep": [{"password": SECRET}, (f"x://u:{SECRET}@h",)]},
        "token": SECRET,
        "error": ValueError(f"Bearer {SECRET}"),
        "raw": f"Bearer {SECRET}".encode(),
        "count": 7,
        "none": None,
    }
    cleaned = redact(None, "info", entry)
    assert SECRET not in repr(cleaned)
    assert (cleaned["count"], cleaned["none"]) == (7, None)


@contextmanager
def logging_to(form: str) -> Iterator[io.StringIO]:
    """Standard error as the coordinator sets it up."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with redirect_stderr(io.StringIO()) as out:
        logs.configure(level="debug", form=form)
        try:
            yield out
        finally:
            structlog.reset_defaults()
            root.handlers[:], root.level = handlers, level


@pytest.mark.parametrize("form", ["json", "console"])
def test_neither_our_logs_nor_those_of_libraries_show_any(form: str) -> None:
    with logging_to(form) as out:
        ours = structlog.get_logger("ours")
        ours.warning("asked", headers={"authorization": SECRET}, url=f"redis://:{SECRET}@h")
        logging.getLogger("theirs").warning("failed: Bearer %s", SECRET)
        try:
            raise ValueError(f"https://me:{SECRET}@host/")
        except ValueError as error:
            ours.error("boom", exc_info=error)
            logging.getLogger("theirs").exception("boom")
    told = out.getvalue()
    assert SECRET not in told
    assert told.count("ValueError") >= 2
    if form == "json":
        assert json.loads(told.splitlines()[0])["event"] == "asked"
