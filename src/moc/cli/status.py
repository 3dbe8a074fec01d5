"""`moc status`: the replica that answers, and what it looks after."""

from moc.cli import screen, workers
from moc.cli.session import JsonOption, Session, connected


@connected
def status(session: Session, as_json: JsonOption = False) -> None:
    """Show the replica, its seats, its workers and the memory each model holds."""
    with session.client() as client:
        system = client.system.status()
    if as_json:
        screen.json(system)
        return
    memory = system["memory"]
    held = sum(worker["memory_bytes"] or 0 for worker in system["workers"])
    screen.fields(
        [
            ("replica", f"{system['replica']} on {system['host']}, pid {system['pid']}, version {system['version']}"),
            ("state", system["state"]),
            ("up since", system["started_at"]),
            ("store", system["store"]),
            ("listens on", ", ".join(system["urls"].values())),
            *(
                (f"seat {seat['name']}", f"held by {seat['holder'] or 'nobody'}, term {seat['term']}")
                for seat in system["seats"]
            ),
            (
                "memory",
                f"{screen.size(memory['available_bytes'])} of {screen.size(memory['total_bytes'])} free, "
                f"models {screen.size(held)}, coordinator {screen.size(memory['coordinator_bytes'])}",
            ),
        ]
    )
    screen.line("")
    if system["workers"]:
        workers.table(system["workers"])
    else:
        screen.line("No model is loaded; load one with `moc models load NAME`.")
