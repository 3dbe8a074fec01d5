"""`moc devices`: the memory that models are put in."""

from typing import Annotated

import typer

from moc.cli import screen
from moc.cli.session import DataDirOption, JsonOption, KeyOption, Session, UrlOption, connected
from moc.client.views import DeviceView

app = typer.Typer(help="Look at the memory that models are put in, and take devices out of use.", rich_markup_mode=None)

DeviceArgument = Annotated[str, typer.Argument(metavar="ID", help="Such as cuda:0 or host.")]


@app.callback(invoke_without_command=True)
def devices(
    context: typer.Context,
    as_json: JsonOption = False,
    url: UrlOption = None,
    key: KeyOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Look at the memory that models are put in, and take devices out of use; alone it lists them."""
    context.obj = (context.find_object(Session) or Session()).told(url, key, data_dir)
    if context.invoked_subcommand is None:
        list_devices(context, as_json=as_json, url=None, key=None, data_dir=None)
    elif as_json:
        raise typer.BadParameter(f"write --json behind {context.invoked_subcommand}")


@app.command("list")
@connected
def list_devices(session: Session, as_json: JsonOption = False) -> None:
    """List the devices; `moc devices` alone does, too."""
    with session.client() as client:
        found = screen.every(lambda after: client.devices.list(after=after))
    if as_json:
        screen.json({"devices": found, "next": None})
        return
    rows = [
        (
            device["id"],
            device["state"],
            screen.size(device["capacity_bytes"]),
            screen.size(device["limit_bytes"]),
            screen.size(device["charged_bytes"]),
            screen.size(device["measured_bytes"]),
            screen.size(device["unmanaged_bytes"]),
            _percent(device["utilization_ratio"]),
            _degrees(device["temperature_c"]),
            device["problem"],
        )
        for device in found
    ]
    columns = ("id", "state", "capacity", "limit", "charged", "measured", "unmanaged", "busy", "heat", "problem")
    screen.table(columns, rows)


@app.command("show")
@connected
def show_device(session: Session, device_id: DeviceArgument, as_json: JsonOption = False) -> None:
    """Show one device, and who has its memory."""
    with session.client() as client:
        device = client.devices.show(device_id)
    _show(device, as_json)


@app.command("cordon")
@connected
def cordon_device(session: Session, device_id: DeviceArgument, as_json: JsonOption = False) -> None:
    """Let a device take no new models until it is uncordoned; those it has stay."""
    with session.client() as client:
        device = client.devices.cordon(device_id)
    _show(device, as_json)


@app.command("uncordon")
@connected
def uncordon_device(session: Session, device_id: DeviceArgument, as_json: JsonOption = False) -> None:
    """Let a device take models again."""
    with session.client() as client:
        device = client.devices.uncordon(device_id)
    _show(device, as_json)


def _show(device: DeviceView, as_json: bool) -> None:
    if as_json:
        screen.json(device)
        return
    screen.fields(
        [
            ("id", device["id"]),
            ("kind", device["kind"]),
            ("name", device["name"]),
            ("uuid", device["uuid"]),
            ("state", device["state"]),
            ("problem", device["problem"]),
            ("capacity", screen.size(device["capacity_bytes"])),
            ("limit", screen.size(device["limit_bytes"])),
            ("charged", screen.size(device["charged_bytes"])),
            ("measured", screen.size(device["measured_bytes"])),
            ("unmanaged", screen.size(device["unmanaged_bytes"])),
            ("busy", _percent(device["utilization_ratio"])),
            ("heat", _degrees(device["temperature_c"])),
        ]
    )
    if device["charges"]:
        screen.line("")
        rows = [
            (charge["holder"], screen.size(charge["bytes"]), str(charge["priority"])) for charge in device["charges"]
        ]
        screen.table(("holder", "memory", "priority"), rows)


def _percent(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.0%}"


def _degrees(celsius: float | None) -> str:
    return "" if celsius is None else f"{celsius:.0f}°C"
