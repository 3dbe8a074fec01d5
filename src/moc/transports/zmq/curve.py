"""CURVE: the server's own key pair, and the check of its clients' keys (ZAP)."""

import os
from pathlib import Path
from typing import Any, Final

import zmq
from zmq.auth.asyncio import AsyncioAuthenticator

from moc.kernel.errors import InvalidRequest, MocError
from moc.security.authenticator import Authenticator
from moc.security.policy import Operation
from moc.service.guard import check

REQUESTS: Final = "requests"
EVENTS: Final = "events"
"""Domains: what a connection is for."""

KEY_FILE: Final = "server.key"
PUBLIC_FILE: Final = "server.pub"


class ServerKey:
    """The server's key pair in Z85; its clients must know the public one."""

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self.public: bytes = zmq.curve_public(secret)

    @classmethod
    def of(cls, folder: Path) -> "ServerKey":
        """The pair in `folder`, made when there is none; only its owner can read the secret one."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / KEY_FILE
        if not path.exists():
            _write_new(path, zmq.curve_keypair()[1])
        try:
            found = cls(path.read_bytes().strip())
        except (OSError, ValueError, zmq.ZMQError) as error:
            raise InvalidRequest(
                f"{path} cannot be used as a CURVE key ({error}); delete it and a new one is made"
            ) from None
        (folder / PUBLIC_FILE).write_bytes(found.public + b"\n")
        return found

    def guard(self, socket: zmq.Socket[Any], domain: str) -> None:
        """Let only clients connect to `socket` that the domain's check passes."""
        socket.curve_server = True
        socket.curve_secretkey = self.secret
        socket.zap_domain = domain.encode()


class ClientCheck:
    """Answers libzmq, which asks about the key of each connection that is made. Every socket of `context` may ask."""

    def __init__(self, context: zmq.Context[Any], authenticator: Authenticator) -> None:
        self._keys = authenticator
        self._zap = AsyncioAuthenticator(context)
        for domain in (REQUESTS, EVENTS):
            self._zap.configure_curve_callback(domain, self)

    def start(self) -> None:
        """Begin to answer; before any socket listens."""
        self._zap.start()

    def stop(self) -> None:
        """Stop answering; after every socket is closed."""
        self._zap.stop()

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a client may connect; for events its key must allow to read them, nobody asks again later."""
        try:
            identity = self._keys.identify_curve(key.decode("ascii"))
            if domain == EVENTS:
                check(identity, Operation.READ_SYSTEM)
        except MocError:
            return False
        return True


def _write_new(path: Path, secret: bytes) -> None:
    aside = path.with_suffix(".new")
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret + b"\n")
    aside.replace(path)
