"""What an upstream says of its failures is told on, as far as it may be."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from moc.kernel.errors import Internal, InvalidRequest, QueueFull, Unavailable
from moc.workers.upstream.failure import MESSAGE_MAX, RETRY_AFTER_MAX_S, fault, refusal


def said(body: bytes) -> str:
    return refusal("it", 400, body, retry_after=None, key_name=None).message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "too long", "type": "invalid_request_error"}}', "too long"),
        (b'{"error": "too long"}', "too long"),
        (b'{"message": "too long", "object": "error"}', "too long"),
        (b'{"detail": "too long"}', "too long"),
        (b'{"detail": [{"msg": "too long"}]}', '[{"msg":"too long"}]'),
        (b"too\r\n\x1b[31m long", "too [31m long"),
        (b"", "it does not say why"),
        (b"{}", "it does not say why"),
        (b"\xff\xfe", "\ufffd\ufffd"),
    ],
)
def test_the_message_is_found(body: bytes, message: str) -> None:
    assert said(body) == f"it refused the request: {message}"


def test_a_message_is_short_and_without_keys() -> None:
    assert len(said(b"x" * 10_000)) < MESSAGE_MAX + 50
    assert "sk-abcdefghijklmnopqrst" not in said(b'{"error": "no such key: sk-abcdefghijklmnopqrst"}')


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("1e9", RETRY_AFTER_MAX_S),
        ("nan", 0.0),
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
def test_when_to_ask_again(header: str | None, seconds: float | None) -> None:
    error = refusal("it", 429, b"", retry_after=header, key_name=None)
    assert isinstance(error, QueueFull)
    assert error.retry_after_s == seconds


def test_when_to_ask_again_may_be_a_date() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    seconds = refusal("it", 503, b"", retry_after=date, key_name=None).retry_after_s
    assert seconds is not None
    assert 0 < seconds <= 100


def test_what_went_wrong_in_the_midst_of_an_answer() -> None:
    assert isinstance(fault("it", {"message": "full", "code": 429}), QueueFull)
    assert isinstance(fault("it", {"message": "down", "code": 503}), Unavailable)
    assert isinstance(fault("it", {"message": "no", "type": "invalid_request_error", "code": None}), InvalidRequest)
    for error in ({"message": "oh"}, "oh", {"message": "oh", "code": "worker_lost"}, {"message": "oh", "code": 7}):
        assert isinstance(fault("it", error), Internal)
        assert fault("it", error).message == "it failed: oh"
