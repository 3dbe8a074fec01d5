"""Errors cross process boundaries as a code, a message and details."""

import pytest

from moc.kernel.errors import ERRORS, Internal, LoadFailed, MocError, NoCapacity, WorkerLost, error_for


def test_every_class_is_found_by_its_code() -> None:
    def below(root: type[MocError]) -> set[type[MocError]]:
        return {root}.union(*(below(child) for child in root.__subclasses__()))

    own = {error for error in below(MocError) if error.__module__ == MocError.__module__}
    assert set(ERRORS.values()) == own - {MocError}
    assert all(found.code == code for code, found in ERRORS.items())


@pytest.mark.parametrize("code", sorted(ERRORS))
def test_an_error_is_rebuilt_from_what_crossed(code: str) -> None:
    error = error_for(code, "what happened")
    assert type(error) is ERRORS[code]
    assert (error.code, str(error), error.message) == (code, "what happened", "what happened")


def test_details_cross() -> None:
    assert error_for("no_capacity", "full", {"bytes": 1}).details == {"bytes": 1}


def test_an_unknown_code_is_an_internal_error() -> None:
    assert type(error_for("from_the_future", "what happened")) is Internal


def test_the_reason_of_a_failed_load_crosses() -> None:
    sent = LoadFailed("too big", reason="out_of_memory", details={"log": ["line"]})
    received = error_for(sent.code, sent.message, sent.details)
    assert isinstance(received, LoadFailed)
    assert received.reason == "out_of_memory"
    assert received.details == {"log": ["line"], "reason": "out_of_memory"}


@pytest.mark.parametrize(("details", "sent"), [({"sent": False}, False), ({"sent": True}, True), ({}, True)])
def test_a_lost_worker_is_taken_to_have_run_the_request_unless_it_says_not(
    details: dict[str, bool], sent: bool
) -> None:
    error = error_for("worker_lost", "gone", details)
    assert isinstance(error, WorkerLost)
    assert error.sent is sent


def test_details_are_a_copy() -> None:
    details = {"n": 1}
    error = NoCapacity("full", details=details, retry_after_s=3)
    details["n"] = 2
    assert (error.details, error.retry_after_s) == ({"n": 1}, 3)
