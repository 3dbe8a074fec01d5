"""What one peer, and all of them together, may cost."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of the ZeroMQ server; sizes in bytes, times in seconds.

    A message has at most `frames_max` frames of `message_bytes` in all; a single frame that is larger ends its
    connection. `unread_max` answers wait for a peer that does not read, the next one for `write_timeout_s`, then
    the peer is given up. A peer that answers no heartbeat for `heartbeat_timeout_s` is gone. Every `look_s` it is
    looked whether those are still there who wait for an answer.
    """

    message_bytes: int = 64 * 1024 * 1024
    frames_max: int = 128
    requests_per_peer: int = 256
    requests_max: int = 4096
    unread_max: int = 128
    write_timeout_s: float = 60.0
    heartbeat_s: float = 10.0
    heartbeat_timeout_s: float = 30.0
    look_s: float = 0.1
    stop_grace_s: float = 5.0
    linger_s: float = 1.0

    @property
    def held_bytes(self) -> int:
        """How many bytes of requests are worked on at once."""
        return 8 * self.message_bytes
