"""How many requests a model takes, so that one that is slow does not fill the coordinator."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Bulkhead:
    """At most so many requests at once, and so many that wait."""

    max_concurrent: int = 64
    max_queue: int = 256

    def but(self, max_concurrent: int | None, max_queue: int | None) -> "Bulkhead":
        """The same, but for what is given."""
        if max_concurrent is None and max_queue is None:
            return self
        return Bulkhead(
            max_concurrent=self.max_concurrent if max_concurrent is None else max_concurrent,
            max_queue=self.max_queue if max_queue is None else max_queue,
        )
