"""How callers say how a request is to be served."""

import pytest
from starlette.types import Message

from moc.inference.request import Terms
from moc.kernel.errors import InvalidRequest
from moc.resilience.deadline import NEVER, Deadline
from moc.transports.grpc.call import Call
from moc.transports.headers import terms_of
from moc.transports.oip.request import Haste, taken_from
from moc.transports.rest.disconnect import Watchman
from moc.transports.rest.exchange import Exchange
from moc.transports.rest.limits import Limits


def test_who_says_nothing_gets_what_is_ordinary() -> None:
    assert terms_of(None, None, None, None, began_at=0.0) == Terms(NEVER, 5, "", False)


def test_every_header_is_read() -> None:
    terms = terms_of(b"60000", b"2", b"ann", b"7f3a", began_at=100.0)
    assert terms.deadline == Deadline(160.0)
    assert (terms.priority, terms.session, terms.repeatable) == (2, "ann", True)
    assert terms_of(None, None, None, b"", began_at=0.0).repeatable


@pytest.mark.parametrize(
    ("deadline", "priority", "session"),
    [
        (b"0", None, None),
        (b"soon", None, None),
        (b"1.5", None, None),
        (None, b"0", None),
        (None, b"11", None),
        (None, b"-1", None),
        (None, b"high", None),
        (None, b"1" * 5000, None),
        (None, None, b"s" * 257),
    ],
)
def test_what_cannot_be_right_is_refused(deadline: bytes | None, priority: bytes | None, session: bytes | None) -> None:
    with pytest.raises(InvalidRequest):
        terms_of(deadline, priority, session, None, began_at=0.0)


def test_parameters_add_to_what_headers_say() -> None:
    terms = Terms(Deadline.after(60), 5, "ann", True)
    assert Haste().on(terms) is terms
    assert Haste(priority=1).on(terms) == Terms(terms.deadline, 1, "ann", True)
    assert Haste(timeout_s=3600.0).on(terms) == terms
    sooner = Haste(timeout_s=1.0).on(terms).deadline.remaining_s()
    assert sooner is not None
    assert sooner <= 1


def test_parameters_are_taken_out_and_zero_says_nothing() -> None:
    parameters = {"timeout": 0, "priority": 0, "beam": 4}
    assert taken_from(parameters) == Haste(None, None)  # type: ignore[arg-type]
    assert parameters == {"beam": 4}
    with pytest.raises(InvalidRequest, match="priority"):
        taken_from({"priority": True})


def test_a_deadline_is_counted_from_when_the_request_came() -> None:
    """Whenever it is asked for: a call that does two things has no more time than one that does one."""
    call = Call("m", [("x-moc-deadline-ms", "60000")], remaining_s=None, address="")
    assert call.deadline() == call.deadline() == call.terms().deadline
    hasty = Call("m", [("x-moc-deadline-ms", "60000")], remaining_s=0.0, address="")
    assert hasty.deadline().remaining_s() == 0


async def test_a_deadline_is_counted_from_when_the_head_came() -> None:
    async def receive() -> Message:
        raise AssertionError("nobody is to read")

    async def send(message: Message) -> None:
        raise AssertionError("nobody is to write")

    scope = {"path": "/v1/models", "headers": [(b"x-moc-deadline-ms", b"60000")]}
    exchange = Exchange(scope, receive, send, Limits(), Watchman(1.0))
    assert exchange.deadline() == exchange.deadline() == exchange.terms().deadline
