"""What one client may cost."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of the gRPC server; sizes in bytes, times in seconds.

    A connection without a call is asked every `keep_alive_s` whether it still stands and has `keep_alive_grace_s`
    to say so; a client may ask as often as every `ping_interval_s`, and leave
    `write_timeout_s` without reading an answer. `stop_grace_s` is how long a stopping server
    waits for the last answers.
    """

    message_bytes: int = 64 * 1024 * 1024
    metadata_bytes: int = 64 * 1024
    streams_max: int = 1024
    calls_max: int = 8192
    keep_alive_s: float = 60.0
    keep_alive_grace_s: float = 20.0
    ping_interval_s: float = 5.0
    write_timeout_s: float = 60.0
    stop_grace_s: float = 5.0
