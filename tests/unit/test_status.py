"""The one table of errors, and the bodies they travel in."""

import http

import msgspec
import pytest

from moc.kernel.errors import ERRORS, Conflict, InvalidRequest, LoadFailed, MocError, NotFound, QueueFull
from moc.transports.status import (
    STATUSES,
    Shape,
    http_body,
    http_status,
    native_body,
    openai_body,
    retry_after_s,
    unexpected,
    zmq_error,
)

GRPC_CODES = {
    "ABORTED", "CANCELLED", "DEADLINE_EXCEEDED", "FAILED_PRECONDITION", "INTERNAL", "INVALID_ARGUMENT", "NOT_FOUND",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAUTHENTICATED", "UNAVAILABLE", "UNIMPLEMENTED",
}  # fmt: skip


def test_every_error_has_a_row_and_every_row_an_error() -> None:
    assert set(STATUSES) == set(ERRORS)


@pytest.mark.parametrize("code", sorted(STATUSES))
def test_a_row_is_made_of_real_codes(code: str) -> None:
    row = STATUSES[code]
    assert row.http in {499, *http.HTTPStatus}
    assert row.http >= 400
    assert row.oip in {0, *http.HTTPStatus}
    assert row.grpc in GRPC_CODES


def test_oip_clients_are_told_to_come_back_when_a_queue_is_full() -> None:
    assert http_status(QueueFull("full"), Shape.NATIVE) == 429
    assert http_status(QueueFull("full"), Shape.OPENAI) == 429
    assert http_status(QueueFull("full"), Shape.OIP) == 503


def test_an_error_outside_the_table_is_internal() -> None:
    class Strange(MocError):
        code = "strange"

    assert http_status(Strange("?"), Shape.NATIVE) == 500


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (QueueFull("full", retry_after_s=2.1), 3),
        (QueueFull("full", retry_after_s=0.0), 1),
        (QueueFull("full"), 1),
        (InvalidRequest("bad"), None),
    ],
)
def test_retry_after_is_whole_seconds_and_only_where_it_helps(error: MocError, expected: int | None) -> None:
    assert retry_after_s(error) == expected


def test_native_bodies_have_details_only_when_there_are_some() -> None:
    plain = msgspec.json.decode(native_body(Conflict("taken"), "req-1"))
    assert plain == {"error": {"code": "conflict", "message": "taken", "request_id": "req-1"}}
    failed = msgspec.json.decode(native_body(LoadFailed("no", reason="out_of_memory"), "req-1"))
    assert failed["error"]["details"] == {"reason": "out_of_memory"}


def test_openai_bodies_take_code_and_param_from_the_details() -> None:
    error = NotFound("no such model", details={"code": "model_not_found", "param": "model"})
    assert msgspec.json.decode(openai_body(error)) == {
        "error": {
            "message": "no such model",
            "type": "invalid_request_error",
            "code": "model_not_found",
            "param": "model",
        }
    }


def test_each_shape_has_its_own_body() -> None:
    error = Conflict("taken")
    assert msgspec.json.decode(http_body(error, Shape.OIP, "req-1")) == {"error": "taken"}
    assert msgspec.json.decode(http_body(error, Shape.OPENAI, "req-1"))["error"]["type"] == "invalid_request_error"
    assert msgspec.json.decode(http_body(error, Shape.NATIVE, "req-1"))["error"]["request_id"] == "req-1"
    assert msgspec.json.decode(http_body(error, Shape.ANTHROPIC, "req-1")) == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "taken"},
        "request_id": "req-1",
    }
    assert zmq_error(error) == {"code": "conflict", "message": "taken"}


def test_over_zeromq_an_error_tells_when_to_ask_again() -> None:
    assert zmq_error(QueueFull("busy", retry_after_s=2.5, details={"waiting": 3})) == {
        "code": "queue_full",
        "message": "busy",
        "details": {"waiting": 3},
        "retry_after_s": 3,
    }


def test_a_fault_of_our_own_tells_only_where_to_look() -> None:
    error = unexpected("req-7")
    assert error.code == "internal"
    assert "req-7" in error.message
