"""`moc serve`: run the coordinator."""

import asyncio
import gc
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import platformdirs
import typer

from moc.client.discovery import ADMIN_KEY_FILE
from moc.kernel.errors import MocError
from moc.resilience.deadline import NEVER

if TYPE_CHECKING:
    from moc.app import Coordinator


def serve(
    data_dir: Annotated[Path | None, typer.Option(help="Where state is kept; made when missing.")] = None,
    config: Annotated[Path | None, typer.Option(help="Configuration file; DATA_DIR/moc.yaml when not given.")] = None,
    rest_port: Annotated[int | None, typer.Option(help="Port of REST; 0 = any free one.")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="Port of gRPC; 0 = any free one.")] = None,
    zmq_port: Annotated[int | None, typer.Option(help="Port of ZeroMQ; 0 = any free one.")] = None,
    starter: Annotated[
        bool, typer.Option("--starter", help="Register and load the small language model smollm2.")
    ] = False,
    stop_workers: Annotated[
        bool, typer.Option("--stop-workers", help="End the workers too when stopped, instead of leaving them warm.")
    ] = False,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Run the coordinator until SIGTERM or Ctrl-C."""
    ports = {"rest_port": rest_port, "grpc_port": grpc_port, "zmq_port": zmq_port}
    _serve(data_dir, config, ports, starter=starter, stop_workers=stop_workers, log_level=log_level)


def _serve(
    data_dir: Path | None,
    file: Path | None,
    ports: dict[str, int | None],
    *,
    starter: bool,
    stop_workers: bool,
    log_level: str | None,
) -> None:
    gc.disable()  # what a start makes is there to stay; looking through it for garbage takes a tenth of the start
    import uvloop  # here, so that the other commands need not wait for the server's imports

    from moc import config
    from moc.app import Coordinator
    from moc.telemetry import logs

    loaded = config.load(data_dir=data_dir, file=file, ports=ports, log_level=log_level, starter=starter)
    logs.configure(level=loaded.settings.telemetry.log_level, form=loaded.settings.telemetry.log_format)
    for folder in (loaded.data_dir, loaded.data_dir / "models"):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def main() -> None:
        coordinator = Coordinator(loaded)
        tasks: list[asyncio.Task[None]] = []

        def ready(running: Coordinator) -> None:
            gc.freeze()
            gc.enable()
            _announce(running)
            if starter:
                tasks.append(asyncio.create_task(_announce_starter(running)))

        try:
            await coordinator.run(ready, stop_workers=stop_workers)
        finally:
            for task in tasks:
                task.cancel()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def _announce_starter(coordinator: "Coordinator") -> None:
    """Say how to talk to the starter model once it answers, or why it does not."""
    from moc.config import STARTER_NAME

    _say(f"\nFetching and loading {STARTER_NAME} (92 MB the first time) ...")
    try:
        await coordinator.manager.ensure_ready(STARTER_NAME, NEVER)
    except MocError as error:
        _say(f"{STARTER_NAME} could not be loaded: {error.message}")
        return
    body = f'{{"model":"{STARTER_NAME}","stream":true,"messages":[{{"role":"user","content":"Name three rivers."}}]}}'
    program = program_of(sys.argv[0], coordinator.config.data_dir)
    _say(f"{STARTER_NAME} is ready. In another terminal, paste one of:\n")
    _say(f'  {program} chat {STARTER_NAME} "Name three rivers."\n')
    _say(f"  curl -N {coordinator.rest.url}/v1/chat/completions \\")
    _say(f'    -H "Authorization: Bearer $(cat {shlex.quote(str(_key_file(coordinator)))})" \\')
    _say(f"    -d '{body}'\n")


def _announce(coordinator: "Coordinator") -> None:
    _say(f"ModelOps Coordinator {coordinator.replica.version} is ready.")
    _say(f"  REST       {coordinator.rest.url}  (API documentation under /docs)")
    _say(f"  gRPC       {coordinator.grpc.target}")
    _say(f"  ZeroMQ     {coordinator.zmq.url}{_curve(coordinator)}")
    _say(f"  admin key  {_key_file(coordinator)}")
    _say(f"  data       {coordinator.config.data_dir}")


def _curve(coordinator: "Coordinator") -> str:
    key = coordinator.zmq.public_key
    return f"  (CURVE, the server's key is {key})" if key else ""


def program_of(started: str, place: Path) -> str:
    """How to type `moc`, `started` as that file, in another terminal so that it finds a coordinator's data."""
    is_module = Path(started).name == "__main__.py"
    program = f"{shlex.quote(sys.executable)} -m moc" if is_module else shlex.quote(started)
    if place == Path(platformdirs.user_data_dir("moc")).resolve():
        return program
    return f"{program} --data-dir {shlex.quote(str(place))}"


def _key_file(coordinator: "Coordinator") -> Path:
    return coordinator.config.data_dir / ADMIN_KEY_FILE


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
