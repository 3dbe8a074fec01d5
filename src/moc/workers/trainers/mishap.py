"""What libraries mean when a training fails, and what to do about it."""

import errno

from moc.learning.job import Reason
from moc.workers.runtimes.hugging_face.engine import is_out_of_memory
from moc.workers.trainers.assignment import Failure

FULL_TEXTS = ("No space left on device", "Disk quota exceeded", "enforce fail at inline_container.cc")
"""What libraries say of a full disk that do not pass on what the system said; the last is torch's word."""


def understood(error: Exception) -> Exception:
    """The error, or the failure that it amounts to."""
    if is_out_of_memory(error):
        return Failure(
            Reason.OUT_OF_MEMORY,
            "the training does not fit into the memory of its device: lower batch_size (and raise "
            "gradient_accumulation instead) or max_length, or set gradient_checkpointing",
        )
    if not isinstance(error, OSError) and any(text in str(error) for text in FULL_TEXTS):
        return OSError(errno.ENOSPC, "a checkpoint or the result could not be written")
    return error
