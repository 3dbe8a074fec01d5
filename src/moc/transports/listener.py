"""Sockets that listen, and what to say when they cannot."""

import asyncio
import errno
import socket
from typing import Final

from moc.kernel.errors import Conflict, InvalidRequest

BACKLOG: Final = 2048


async def bind(host: str, port: int, *, option: str) -> socket.socket:
    """A socket that listens there. Conflict when the port is taken or may not be used (`server.{option}` sets it),
    InvalidRequest for a host that is not one of this machine.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        raise InvalidRequest(f"{host!r} is not an address of this machine; set server.host to one that is") from None
    family, kind, protocol, _, address = min(found, key=lambda info: info[0])
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _bind_error(error, host, port, option) from None
    return listener


def _bind_error(error: OSError, host: str, port: int, option: str) -> Conflict | InvalidRequest:
    if error.errno == errno.EADDRINUSE:
        return Conflict(
            f"port {port} on {host} is taken by another program; stop that one or choose another with "
            f"--{option.replace('_', '-')} (server.{option})"
        )
    if error.errno == errno.EACCES:
        return Conflict(f"port {port} may not be opened by this user; choose one above 1023 (server.{option})")
    return InvalidRequest(f"cannot listen on {host!r}: {error.strerror}; set server.host to an address of this machine")
