"""What is said when files cannot be had."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from moc.kernel.errors import LoadFailed
from moc.models.model import FailReason

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def failed(message: str) -> LoadFailed:
    """The error of a source that cannot be fetched or read."""
    return LoadFailed(message, reason=FailReason.LOAD_FAILED)


def is_full(error: OSError) -> bool:
    """Whether it was space that was missing."""
    return error.errno in _FULL


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turn what the file system refuses into LoadFailed, saying what we were `doing`."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        if is_full(error):
            what = f"the disk is full: {error.strerror} while {doing}{where}"
            raise failed(f"{what}; free some space and pull again") from error
        raise failed(f"{error.strerror or error} while {doing}{where}; check the path and its permissions") from error
