"""Telling whether a peer is still there: libzmq says that it has left only when something is sent to it."""

import os

import zmq


class Connection:
    """The socket that a message came by.

    Its number goes to another once it is closed, so it is known by its inode; it is looked at and never opened,
    for closing a second handle of what may be a file by now would give up this process's locks of that.
    """

    __slots__ = ("_fd", "_inode")

    def __init__(self, frame: zmq.Frame) -> None:
        self._fd = int(frame.get(zmq.SRCFD))
        self._inode = _inode(self._fd)

    @property
    def is_open(self) -> bool:
        """False once it is closed."""
        return self._inode is not None and _inode(self._fd) == self._inode


def _inode(fd: int) -> int | None:
    try:
        return os.fstat(fd).st_ino
    except OSError:
        return None
