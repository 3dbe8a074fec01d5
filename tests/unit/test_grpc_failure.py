"""What a refused gRPC call is told."""

import grpc
import pytest

from moc.kernel.errors import ERRORS, NoCapacity, NotFound, QueueFull, error_for
from moc.transports.grpc.failure import CODES, failure_of
from moc.transports.grpc.stubs.moc.wire.status_pb2 import ErrorInfo, RetryInfo, Status


def test_codes_are_those_of_grpc() -> None:
    assert CODES.items() <= {code.name: code.value[0] for code in grpc.StatusCode}.items()


@pytest.mark.parametrize("code", ERRORS)
def test_every_error_has_a_status_and_its_reason(code: str) -> None:
    failure = failure_of(error_for(code, "it went wrong"))
    status = Status.FromString(failure.details)
    assert (status.code, status.message) == (failure.code, "it went wrong")
    assert failure.code in CODES.values()
    info = ErrorInfo.FromString(status.details[0].value)
    assert (info.reason, info.domain) == (code.upper(), "moc")


def test_what_may_succeed_later_says_when() -> None:
    def retry_ms(failure_details: bytes) -> list[int]:
        details = Status.FromString(failure_details).details
        infos = [each for each in details if each.type_url == "type.googleapis.com/google.rpc.RetryInfo"]
        return [RetryInfo.FromString(each.value).retry_delay.ToMilliseconds() for each in infos]

    assert retry_ms(failure_of(QueueFull("full", retry_after_s=0.25)).details) == [250]
    assert retry_ms(failure_of(NoCapacity("full")).details) == [1000]
    assert retry_ms(failure_of(NotFound("nobody")).details) == []


def test_trailers_stay_small() -> None:
    failure = failure_of(NotFound("x" * 100_000, details={"long": "y" * 100_000, "short": 1}))
    assert len(failure.message) == 2000
    assert len(failure.details) < 3000
    info = ErrorInfo.FromString(Status.FromString(failure.details).details[0].value)
    assert "long" not in info.metadata
