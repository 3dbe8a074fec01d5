"""This process, as it tells of itself."""

import time
from collections.abc import Callable


class Replica:
    """Where it runs, how far it has come, and by what name each listener that it has is well."""

    def __init__(self, *, name: str, host: str, version: str, data_dir: str, store: str) -> None:
        self.name = name
        self.host = host
        self.version = version
        self.data_dir = data_dir
        self.store = store
        self.started_at = time.time()
        self.state = "starting"
        self.urls: dict[str, str] = {}
        self.listeners: dict[str, Callable[[], bool]] = {}
