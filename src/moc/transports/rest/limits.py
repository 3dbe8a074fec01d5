"""What one client may cost."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of the REST server; sizes in bytes, times in seconds.

    A request head has `header_timeout_s` to arrive, a body may pause for `body_timeout_s`, a client may
    leave `write_timeout_s` without reading; an unused connection is closed after `keep_alive_s`. A request
    that is refused may go on sending for `linger_s`, so that its client gets to read why.
    `watch_after_s` is how long a request runs before its client's disconnection is looked for, and
    `stop_grace_s` how long a stopping server waits for the last answers.
    """

    body_bytes: int = 64 * 1024 * 1024
    head_bytes: int = 64 * 1024
    headers_max: int = 100
    connections_max: int = 4096
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    write_timeout_s: float = 60.0
    keep_alive_s: float = 75.0
    linger_s: float = 5.0
    watch_after_s: float = 0.02
    event_keep_alive_s: float = 15.0
    stop_grace_s: float = 5.0
