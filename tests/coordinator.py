"""A real `moc serve` for tests: its own data directory and ports, killed and started at will, nothing left behind."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import yaml

MOC = [sys.executable, "-m", "moc"]
START_TIMEOUT_S = 60.0
T = TypeVar("T")


def free_port() -> int:
    """A loopback port nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def short_home() -> Iterator[Path]:
    """A data directory whose path is short enough for sockets to lie in it, and gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="moc-") as folder:
        yield Path(folder) / "data"


def eventually(look: Callable[[], T], *, timeout_s: float = 30.0, what: str = "") -> T:
    """Look at something outside this process until it is true (not falsy, no AssertionError or transport error)."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            found = look()
            if found:
                return found
            last: object = found
        except (AssertionError, httpx.HTTPError) as error:
            last = error
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout_s:g} s: {what or look} (last: {last!r})")
        _pause()


def _pause() -> None:
    """Give the other process a moment; it cannot be awaited."""
    select_nothing = socket.socketpair()
    try:
        select_nothing[0].settimeout(0.02)
        select_nothing[0].recv(1)
    except TimeoutError:
        pass
    finally:
        for end in select_nothing:
            end.close()


class Coordinator:
    """One `moc serve` process on `data_dir`; `start`, `kill` and `stop` any number of times, `close` at the end."""

    def __init__(
        self,
        data_dir: Path,
        *,
        config: dict[str, Any] | None = None,
        arguments: Sequence[str] = (),
        prefix: Sequence[str] = (),
        ca_file: Path | None = None,
    ) -> None:
        self.data_dir = data_dir
        self.port = free_port()
        self.url = f"{'https' if ca_file else 'http'}://127.0.0.1:{self.port}"
        self.grpc_port = free_port()
        self.tls = ssl.create_default_context(cafile=ca_file) if ca_file else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.arguments = list(arguments)
        self.prefix = list(prefix)
        self.process: subprocess.Popen[bytes] | None = None
        self._log = data_dir.parent / f"{data_dir.name}.log"
        self._seen: set[int] = set()
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        if config is not None:
            (data_dir / "moc.yaml").write_text(yaml.safe_dump(config))

    @property
    def key(self) -> str:
        """The admin key."""
        return (self.data_dir / "admin.key").read_text().strip()

    @property
    def headers(self) -> dict[str, str]:
        """What a request must carry."""
        return {"authorization": f"Bearer {self.key}"}

    @property
    def endpoints(self) -> dict[str, Any]:
        """Where it says that it is reached, by protocol."""
        found: dict[str, Any] = json.loads((self.data_dir / "endpoints.json").read_text())
        return found

    @property
    def output(self) -> str:
        """All that the process printed so far."""
        return self._log.read_text() if self._log.exists() else ""

    def environment(self) -> dict[str, str]:
        """For `moc` commands that talk to it."""
        return {**os.environ, "MOC_URL": self.url, "MOC_DATA_DIR": str(self.data_dir)}

    def start(self, *, wait: bool = True) -> "Coordinator":
        """Start it, and wait until it is ready."""
        command = [*self.prefix, *MOC, "serve", "--data-dir", str(self.data_dir), "--rest-port", str(self.port)]
        command += ["--grpc-port", str(self.grpc_port), "--zmq-port", "0", *self.arguments]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        """Wait for `/readyz`; fails with the log when the process ends instead."""

        def look() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                raise RuntimeError(f"moc serve ended with {self.process.returncode}:\n{self.output[-4000:]}")
            return httpx.get(f"{self.url}/readyz", timeout=2, verify=self.tls).status_code == 200

        eventually(look, timeout_s=START_TIMEOUT_S, what="the coordinator to be ready")

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self._remember()
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def stop(self, *, timeout_s: float = 45.0) -> int:
        """SIGTERM, and the exit status."""
        self._remember()
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout_s)
        self.process = None
        return status

    def close(self) -> None:
        """End it and every worker and every program of a job it ever had; for the end of a test."""
        if self.process is not None and self.process.poll() is None:
            self._remember()
            self.process.kill()
            self.process.wait()
        for pid in [*self.worker_pids(), *self.supervisor_pids()]:
            _kill_group(pid)

    def worker_pids(self) -> list[int]:
        """Processes that hold a worker folder of this data directory, whoever started them."""
        return [
            process.pid
            for process in psutil.process_iter(["cmdline"])
            if any("moc.workers.child" in part for part in process.info["cmdline"] or ())
            and (process.pid in self._seen or self._mine(process.info["cmdline"]))
        ]

    def supervisor_pids(self) -> list[int]:
        """Processes that look after programs of this data directory's jobs; the programs end with them."""
        return [
            process.pid
            for process in psutil.process_iter(["cmdline"])
            if "moc.workers.trainers.supervisor" in (process.info["cmdline"] or ())
            and self._mine(process.info["cmdline"])
        ]

    def get(self, path: str) -> Any:
        """The JSON of a GET, which must succeed."""
        answer = httpx.get(f"{self.url}{path}", headers=self.headers, timeout=30, verify=self.tls)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: Any = None, *, timeout_s: float = 120) -> httpx.Response:
        """A POST, whatever it answers."""
        return httpx.post(f"{self.url}{path}", json=body, headers=self.headers, timeout=timeout_s, verify=self.tls)

    def cli(
        self, *arguments: str, text: str | None = None, timeout_s: float = 120
    ) -> "subprocess.CompletedProcess[str]":
        """Run `moc ARGUMENTS` against it."""
        return subprocess.run(
            [*MOC, *arguments], env=self.environment(), input=text, capture_output=True, text=True, timeout=timeout_s
        )

    def _mine(self, command: list[str]) -> bool:
        return any(str(self.data_dir) in part for part in command)

    def _remember(self) -> None:
        if self.process is not None:
            try:
                children = psutil.Process(self.process.pid).children(recursive=True)
            except psutil.NoSuchProcess:
                return
            self._seen.update(child.pid for child in children)


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    eventually(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
