"""A server of its own that speaks HTTP: vLLM, SGLang, llama-server, TEI, Triton, or whatever else a command starts.

Options:
`command`            the program and its arguments, a list of texts; no shell reads them
`env`                environment variables for it, beside those that every worker has
`protocol`           openai (default) or oip
`kinds`              what it can do (default: all that its protocol has)
`model`              its name for the model (default: `name@version`)
`health`             the path that answers 200 once it is ready (default: /health, of oip /v2/health/ready)
`health_interval_s`  how often that is asked later (default 10); failing three times in a row ends the worker, unless
                     requests were answered meanwhile
`start_timeout_s`    how long it may take to become ready (default 600)
`concurrency`        requests it is given at once (default 32)
`stop_signal`        what tells it to end: SIGTERM (default), SIGINT or SIGQUIT
`sleep`, `wake`      {path, body}: a POST that makes it give the memory of its devices back, and one that makes it take
                     it again; with both, it sleeps when others need the memory or nobody has asked for long

In `command` and `env` these words stand for something: `{port}` for a free port, which it is to listen on, `{host}` for
its address, `{path}` for the file or folder of the model, `{model}` for the option `model`, and `{key}` for a secret
made anew at each start, which every request then shows. In `env`, `{file:PATH}` stands for what is in a file.
"""

import os
import secrets
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from moc.kernel.errors import LoadFailed
from moc.workers.runtimes.runtime import Run
from moc.workers.runtimes.served.line import Words
from moc.workers.runtimes.served.plan import plan_for
from moc.workers.runtimes.served.server import Server

if TYPE_CHECKING:
    from moc.workers.runtimes.served.engine import Engine

HOST = "127.0.0.1"
KEY = "key"
ROOTS = {"openai": "/v1", "oip": ""}
SILENCE_S = 3600.0
"""How long it may think without a word: whether it still lives is asked apart from that."""


@dataclass(frozen=True, slots=True)
class _Key:
    """The secret that keeps other users of this machine from the server."""

    secret: str = field(repr=False)
    name: str = "the key of this start"

    def value(self) -> str:
        return self.secret


def load(*, model: str, path: str, options: dict[str, Any], run: Run) -> "Engine":
    """Start the server and wait until it is ready; see `Load`."""
    plan = plan_for(model, options)
    if path and not os.path.exists(path):
        raise LoadFailed(f"there is no file {os.path.basename(path)}; pull the model again", reason="load_failed")
    port = _free_port()
    key = _Key(secrets.token_hex(32))
    words = Words({"host": HOST, "port": str(port), "path": path, "model": plan.model, KEY: key.secret})
    command = [words.fill(word) for word in plan.command]
    environment = {name: words.fill(text, files=True) for name, text in plan.environment.items()}
    server = Server.start(command, {**os.environ, **environment})
    # while it starts, the rest is imported
    from moc.workers.runtimes.served.engine import Engine
    from moc.workers.upstream import Upstream, UpstreamOptions

    upstream = Upstream(
        UpstreamOptions(
            url=f"http://{HOST}:{port}{ROOTS[plan.protocol]}",
            model=plan.model,
            protocol=plan.protocol,
            kinds=plan.kinds,
            key=key if KEY in words.used else None,
            timeout_s=SILENCE_S,
            max_connections=plan.concurrency,
            health=plan.health,
        )
    )
    engine = Engine(server, upstream, plan)
    run(engine.ready(port))
    return engine


def _free_port() -> int:
    """One that nobody has now; if somebody takes it before the server does, the server ends and is started again."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
