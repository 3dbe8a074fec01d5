"""The worker process: `python -m moc.workers.child FOLDER`.

The model begins to load before the event loop is even imported: the time to the first answer of a cold
model is the engine's own.
"""

import json
import os
import sys
import threading
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from moc.kernel.errors import LoadFailed, MocError
from moc.workers.runtimes import runtime

if TYPE_CHECKING:
    import asyncio


class Loading:
    """A model on its way into memory, in a thread of its own."""

    def __init__(self, launch: dict[str, Any]) -> None:
        self.runtime: runtime.Runtime | None = None
        self.error: MocError | None = None
        self._launch = launch
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_known = threading.Event()
        self._thread = threading.Thread(target=self._load, name="load", daemon=True)

    def start(self) -> None:
        """Import the engine, then load in the background."""
        try:
            self._engine = runtime.find(self._launch["runtime"])
        except MocError as error:
            self.error = error
        else:
            self._thread.start()

    def attach(self, loop: "asyncio.AbstractEventLoop") -> None:
        """The event loop on which a model may want to do a part of its loading."""
        self._loop = loop
        self._loop_known.set()

    def wait(self) -> None:
        """Block until `runtime` or `error` is there."""
        if self._thread.ident is not None:
            self._thread.join()

    def _load(self) -> None:
        launch = self._launch
        try:
            self.runtime = self._engine(
                model=launch["model"], path=launch["path"], options=launch["options"], run=self._run
            )
        except MocError as error:
            self.error = error
        except MemoryError:
            self.error = LoadFailed(f"{launch['model']} does not fit into memory", reason="out_of_memory")
        except BaseException as error:
            import traceback  # only a failing load pays for it

            traceback.print_exc()
            message = f"{launch['model']} cannot be loaded: {type(error).__name__}: {error}"
            self.error = LoadFailed(message, reason="load_failed")

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        import asyncio  # the engine's loading is not to wait for it

        self._loop_known.wait()
        assert self._loop is not None  # noqa: S101 - set before the event
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def main(folder: str) -> None:
    """Serve the model of `folder` until told to stop, or until nobody has claimed it for too long."""
    os.chdir(folder)
    descriptor = os.open("pid", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(str(os.getpid()))
    with open("launch.json", encoding="utf-8") as file:
        launch = json.load(file)
    with open("token", encoding="ascii") as file:
        token = file.read()
    loading = Loading(launch)
    loading.start()
    from moc.workers import session  # brings the event loop; the model loads meanwhile

    session.run(loading, folder=folder, token=token, orphan_grace_s=launch["orphan_grace_s"])


if __name__ == "__main__":
    main(sys.argv[1])
