"""The workers as the services see them."""

from typing import Protocol

from moc.kernel.errors import NotFound
from moc.models.ports import Worker
from moc.service.views import WorkerView, worker_view


class Crew(Protocol):
    """What is known of the worker processes on this host."""

    def workers(self) -> list[Worker]: ...

    def memory_bytes(self, worker_id: str) -> int: ...

    def in_flight(self, worker_id: str) -> int: ...


class Workforce:
    """Worker views, by id and by the model they hold."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew

    def views(self) -> list[WorkerView]:
        """Every worker, oldest first."""
        return [self._view(worker) for worker in sorted(self._crew.workers(), key=lambda worker: worker.id)]

    def view(self, worker_id: str) -> WorkerView:
        """One worker; NotFound when it is gone."""
        for worker in self._crew.workers():
            if worker.id == worker_id:
                return self._view(worker)
        raise NotFound(f"there is no worker {worker_id[:100]!r}; `moc workers list` shows those there are")

    def holding(self, worker_id: str) -> WorkerView | None:
        """One worker, None when it is gone."""
        found = [worker for worker in self._crew.workers() if worker.id == worker_id]
        return self._view(found[0]) if found else None

    def memory_by_model(self) -> dict[str, int]:
        """Measured bytes of each loaded `name@version`."""
        return {worker.model: self._crew.memory_bytes(worker.id) for worker in self._crew.workers()}

    def _view(self, worker: Worker) -> WorkerView:
        return worker_view(
            worker, memory_bytes=self._crew.memory_bytes(worker.id), in_flight=self._crew.in_flight(worker.id)
        )
