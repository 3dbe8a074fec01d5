"""`moc lease`: device memory for any process."""

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moc.cli import screen
from moc.cli.leased import LeasedCommand, environment_of
from moc.cli.session import JsonOption, Session, connected
from moc.client.views import LeaseView
from moc.kernel.errors import Conflict, InvalidRequest, MocError
from moc.kernel.units import Bytes, parse_duration_s

if TYPE_CHECKING:
    from moc.client import Client

app = typer.Typer(
    help="Take device memory for any process; nothing else is put there.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

LeaseArgument = Annotated[str, typer.Argument(metavar="ID", help="Such as lse-01jd3w….")]
MemoryOption = Annotated[str, typer.Option("--memory", metavar="SIZE", help="How much, such as 12GiB.")]
DeviceOption = Annotated[str, typer.Option("--device", metavar="ID", help="A device, or a kind of device.")]
PriorityOption = Annotated[int, typer.Option("--priority", min=1, max=10, help="1 is the highest.")]
TtlOption = Annotated[str, typer.Option("--ttl", metavar="TIME", help="How long it lasts without being renewed.")]
WaitOption = Annotated[str, typer.Option("--wait", metavar="TIME", help="How long to stand in line for it.")]
MinRuntimeOption = Annotated[
    str, typer.Option("--min-runtime", metavar="TIME", help="How long it cannot be preempted.")
]
GraceOption = Annotated[str, typer.Option("--grace", metavar="TIME", help="How long it lasts once it is preempted.")]
TokenOption = Annotated[
    str | None,
    typer.Option("--token", metavar="TOKEN", help="What it was granted with [MOC_LEASE_TOKEN, else its token now]."),
]


@app.command("acquire")
@connected
def acquire_lease(
    session: Session,
    memory: MemoryOption,
    device: DeviceOption = "auto",
    priority: PriorityOption = 5,
    ttl: TtlOption = "60s",
    wait: WaitOption = "0s",
    min_runtime: MinRuntimeOption = "0s",
    grace: GraceOption = "10s",
    pid: Annotated[int | None, typer.Option("--pid", help="The process that will use it, if it is known.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Take memory of a device. It ends with its time unless it is renewed; `moc lease run` does all of that."""
    wish = _wish(device, priority, ttl, wait, min_runtime, grace)
    with session.client() as client:
        lease = client.leases.acquire(_bytes(memory), pid=pid, **wish)
    _show(lease, as_json)


@app.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@connected
def run_leased(
    session: Session,
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="What to run, behind `--`.")],
    memory: MemoryOption,
    device: DeviceOption = "auto",
    priority: PriorityOption = 5,
    ttl: TtlOption = "60s",
    wait: WaitOption = "1d",
    min_runtime: MinRuntimeOption = "0s",
    grace: GraceOption = "10s",
) -> None:
    """Wait for memory, then run a command that has it: `moc lease run --memory 12GiB -- python train.py`.

    It is told MOC_LEASE_ID, MOC_LEASE_TOKEN, MOC_LEASE_DEVICE and MOC_LEASE_BYTES, and CUDA_VISIBLE_DEVICES on a GPU.
    When somebody more urgent needs the memory it gets SIGTERM, and SIGKILL after its grace. Exits as the command does.
    """
    wish = _wish(device, priority, ttl, wait, min_runtime, grace)
    with session.client() as client:
        lease = client.leases.acquire(_bytes(memory), **wish)
        try:
            environment = environment_of(lease, client.devices.show(lease["device"]))
            status = LeasedCommand(client, lease, command, environment).run(tell_pid=session.target().is_local)
        finally:
            _give_back(client, lease)
    raise typer.Exit(status)


@app.command("renew")
@connected
def renew_lease(
    session: Session, lease_id: LeaseArgument, token: TokenOption = None, as_json: JsonOption = False
) -> None:
    """Keep a lease for another of its times."""
    with session.client() as client:
        lease = client.leases.renew(lease_id, _token(client, lease_id, token))
    _show(lease, as_json)


@app.command("release")
@connected
def release_lease(
    session: Session, lease_id: LeaseArgument, token: TokenOption = None, as_json: JsonOption = False
) -> None:
    """Give a lease back; doing so again changes nothing."""
    with session.client() as client:
        lease = client.leases.release(lease_id, _token(client, lease_id, token))
    _show(lease, as_json)


@app.command("show")
@connected
def show_lease(session: Session, lease_id: LeaseArgument, as_json: JsonOption = False) -> None:
    """Show one lease."""
    with session.client() as client:
        lease = client.leases.show(lease_id)
    _show(lease, as_json)


@app.command("list")
@connected
def list_leases(
    session: Session,
    everything: Annotated[bool, typer.Option("--all", help="Also the last ones that are over.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the leases that are waited for or held."""
    with session.client() as client:
        found = screen.every(lambda after: client.leases.list(ended=everything, after=after))
    if as_json:
        screen.json({"leases": found, "next": None})
        return
    rows = [
        (
            lease["id"],
            lease["state"],
            lease["reason"],
            lease["device"] or lease["devices"],
            screen.size(lease["bytes"]),
            str(lease["priority"]),
            lease["holder_name"],
            str(lease["pid"] or ""),
            lease["expires_at"] or "",
        )
        for lease in found
    ]
    screen.table(("id", "state", "reason", "device", "memory", "priority", "holder", "pid", "expires"), rows)


def _show(lease: LeaseView, as_json: bool) -> None:
    if as_json:
        screen.json(lease)
        return
    screen.fields(
        [
            ("id", lease["id"]),
            ("state", lease["state"]),
            ("reason", lease["reason"]),
            ("message", lease["message"]),
            ("position", str(lease["position"] or "")),
            ("estimated wait", _wait(lease["estimated_wait_s"])),
            ("token", lease["token"] or ""),
            ("device", lease["device"] or lease["devices"]),
            ("memory", screen.size(lease["bytes"])),
            ("priority", str(lease["priority"])),
            ("holder", lease["holder_name"]),
            ("pid", str(lease["pid"] or "")),
            ("quarantined", "yes, its process still has the memory" if lease["quarantined"] else ""),
            ("granted", lease["granted_at"] or ""),
            ("expires", lease["expires_at"] or ""),
            ("evicted", lease["evict_at"] or ""),
        ]
    )


def _wish(device: str, priority: int, ttl: str, wait: str, min_runtime: str, grace: str) -> dict[str, Any]:
    try:
        return {
            "device": device,
            "priority": priority,
            "ttl_s": parse_duration_s(ttl),
            "wait_s": parse_duration_s(wait),
            "min_runtime_s": parse_duration_s(min_runtime),
            "grace_s": parse_duration_s(grace),
        }
    except InvalidRequest as error:
        raise typer.BadParameter(error.message) from None


def _wait(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.0f} s"


def _bytes(text: str) -> int:
    try:
        return int(Bytes.parse(text))
    except InvalidRequest as error:
        raise typer.BadParameter(error.message) from None


def _token(client: "Client", lease_id: str, given: str | None) -> str:
    """The token to act with: one said, the command's own under `moc lease run`, or the one the lease has."""
    if given is not None:
        return given
    if os.environ.get("MOC_LEASE_ID") == lease_id and "MOC_LEASE_TOKEN" in os.environ:
        return os.environ["MOC_LEASE_TOKEN"]
    token = client.leases.show(lease_id)["token"]
    if token is None:
        raise Conflict(f"lease {lease_id} is not granted yet; whoever waits for it gives it up by going away")
    return token


def _give_back(client: "Client", lease: LeaseView) -> None:
    try:
        client.leases.release(lease["id"], lease["token"] or "")
    except MocError as error:
        screen.complain(f"{lease['id']} was not given back, and expires: {error.message}")
