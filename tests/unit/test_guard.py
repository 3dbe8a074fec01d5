"""Who may do what: every operation by every role, keys that are for some models only, and what is written down."""

import asyncio

import pytest
from structlog.testing import capture_logs

from moc.kernel.errors import Forbidden, NotFound, RateLimited, StoreUnavailable
from moc.security.audit import Deed
from moc.security.identity import Identity, Role
from moc.security.policy import ALLOWED, Operation, covers
from moc.security.quota import Quota, Rate, Rates
from moc.service.guard import audited, check, require, visible

READS = {"models.read", "system.read", "devices.read", "leases.read", "jobs.read"}
MAY = {
    "viewer": READS,
    "inference": {"infer", "models.read"},
    "operator": READS | {"infer", "models.change", "devices.change", "leases.change", "jobs.change"},
    "admin": {str(operation) for operation in Operation},
}
"""Written out here once more: whoever changes the policy has to mean it."""


def identity(role: Role, *models: str) -> Identity:
    return Identity("0a", "someone", role, models)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("operation", Operation)
def test_every_operation_by_every_role(role: Role, operation: Operation) -> None:
    for asked in (
        lambda: require(identity(role), operation),
        lambda: check(identity(role), operation),
        lambda: require(identity(role), operation, model="m@1"),
        lambda: visible(identity(role), operation),
    ):
        if operation in MAY[role]:
            asked()
        else:
            with pytest.raises(Forbidden, match=operation):
                asked()


def test_only_an_admin_has_to_do_with_keys_and_the_audit() -> None:
    for operation in (Operation.READ_KEYS, Operation.CHANGE_KEYS, Operation.READ_AUDIT):
        assert [role for role in Role if operation in ALLOWED[role]] == [Role.ADMIN]


@pytest.mark.parametrize("operation", [Operation.INFER, Operation.READ_MODELS, Operation.CHANGE_MODELS])
def test_a_key_for_some_models_is_for_no_others(operation: Operation) -> None:
    limited = identity(Role.OPERATOR, "team-*", "shared")
    for model in ("team-a", "team-a@3", "shared", "shared@1"):
        require(limited, operation, model=model)
    for model in ("other", "xteam-a", "shared2", "Shared", "", "team"):
        with pytest.raises(Forbidden, match="is for the models"):
            require(limited, operation, model=model)
    seen = visible(limited, operation)
    assert [name for name in ("other", "shared", "team-b") if seen(name)] == ["shared", "team-b"]


@pytest.mark.parametrize("operation", sorted(ALLOWED[Role.OPERATOR]))
def test_a_key_for_some_models_does_nothing_that_is_about_more(operation: Operation) -> None:
    with pytest.raises(Forbidden, match="anything else"):
        require(identity(Role.OPERATOR, "*"), operation)


@pytest.mark.parametrize(
    ("glob", "reference", "covered"),
    [
        ("m", "m@2", True),
        ("m@2", "m@2", True),
        ("m@2", "m@1", False),
        ("m@2", "m", False),
        ("m@*", "m@7", True),
        ("?", "m", True),
        ("[ab]-x", "b-x", True),
        ("[!a]-x", "a-x", False),
    ],
)
def test_globs(glob: str, reference: str, covered: bool) -> None:
    assert covers([glob], reference) is covered


def test_a_request_is_counted_even_if_it_is_refused_and_once() -> None:
    quota = Quota("k", Rates(), rate=Rate(2, 86_400), max_concurrency=None)
    limited = Identity("0a", "x", Role.VIEWER, (), quota)
    with pytest.raises(Forbidden):
        require(limited, Operation.INFER)
    check(limited, Operation.READ_MODELS)
    require(limited, Operation.READ_MODELS)
    with pytest.raises(RateLimited):
        visible(limited, Operation.READ_MODELS)


class Notes:
    """Keeps what was written down; fails while `fault` is set."""

    def __init__(self) -> None:
        self.deeds: list[Deed] = []
        self.fault: Exception | None = None

    async def append(self, deed: Deed) -> None:
        if self.fault is not None:
            raise self.fault
        self.deeds.append(deed)


class Service:
    """Changes that end in every way."""

    def __init__(self, journal: Notes) -> None:
        self.journal = journal

    @audited("things.change")
    async def change(self, identity: Identity, name: str, error: BaseException | None = None) -> str:
        if error is not None:
            raise error
        return f"new-{name}"

    @audited("things.make", subject=str.upper)
    async def make(self, identity: Identity, wish: int) -> str:
        return f"made-{wish}"


async def test_what_was_done_is_written_down_with_how_it_ended() -> None:
    notes = Notes()
    service, who = Service(notes), identity(Role.ADMIN)
    assert await service.change(who, "a") == "new-a"
    assert await service.change(who, name="b") == "new-b"
    assert await service.make(who, 7) == "made-7"
    for error in (NotFound("no"), ValueError("boom"), asyncio.CancelledError()):
        with pytest.raises(type(error)):
            await service.change(who, "c", error)
    assert [(deed.operation, deed.subject, deed.outcome) for deed in notes.deeds] == [
        ("things.change", "a", "ok"),
        ("things.change", "b", "ok"),
        ("things.make", "MADE-7", "ok"),
        ("things.change", "c", "not_found"),
        ("things.change", "c", "internal"),
        ("things.change", "c", "cancelled"),
    ]
    assert {(deed.actor, deed.actor_name) for deed in notes.deeds} == {("0a", "someone")}


async def test_what_cannot_be_written_down_is_logged_and_answered_truly() -> None:
    notes = Notes()
    notes.fault = StoreUnavailable("the disk is full")
    with capture_logs() as logs:
        assert await Service(notes).change(identity(Role.ADMIN), "a") == "new-a"
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [("not in the audit", "error")]
