"""What is logged, and from which level on."""

import json
from collections.abc import Iterator

import pytest
import structlog

from moc.telemetry import logs


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def test_a_level_counts_for_loggers_that_are_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(level="error", form="json")
    log = structlog.get_logger("used")
    log.error("first")
    log.info("lost")
    logs.set_level("debug")
    log.debug("second")
    logs.set_level("warning")
    log.info("lost")
    log.warning("third")
    said = [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
    assert said == ["first", "second", "third"]
