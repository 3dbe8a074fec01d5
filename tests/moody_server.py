"""A server as engines are, in moods that a test sets: `python tests/moody_server.py PORT NOTES [MIB]`.

It answers every chat alike. A file `sick` in the folder NOTES makes it unwell; `stubborn`, refuse to sleep. It notes
down there what it was given, how often it was asked for its health, and that it was told to leave. It holds so many
MiB of memory, unless it sleeps.
"""

import http.server
import json
import os
import signal
import sys
from pathlib import Path

CHAT = {
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hm"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


class Moods(http.server.BaseHTTPRequestHandler):
    """One connection."""

    notes: Path
    mib = 0
    held: bytes | None = b""

    def do_GET(self) -> None:
        """Its health."""
        with (self.notes / "asked").open("a") as asked:
            asked.write(".")
        self._answer(503 if (self.notes / "sick").exists() or Moods.held is None else 200, {})

    def do_POST(self) -> None:
        """`/sleep`, `/wake`, or a chat."""
        self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path == "/sleep":
            stubborn = (self.notes / "stubborn").exists()
            Moods.held = Moods.held if stubborn else None
            self._answer(500 if stubborn else 200, {})
        elif self.path == "/wake":
            Moods.fill()
            self._answer(200, {})
        else:
            self._answer(503 if Moods.held is None else 200, CHAT)

    @classmethod
    def fill(cls) -> None:
        """Take the memory."""
        cls.held = os.urandom(cls.mib * 2**20)

    def _answer(self, status: int, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def serve(port: int, notes: Path, mib: int) -> None:
    """Answer on loopback until told to end."""
    Moods.notes, Moods.mib = notes, mib
    Moods.fill()

    def leave(*_: object) -> None:
        (notes / "left").touch()
        sys.exit()

    signal.signal(signal.SIGINT, leave)
    (notes / "environment").write_text("\n".join(f"{name}={value}" for name, value in os.environ.items()))
    (notes / "folder").write_text(str(Path.cwd()))
    print("hear, hear", flush=True)
    http.server.ThreadingHTTPServer(("127.0.0.1", port), Moods).serve_forever()


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
