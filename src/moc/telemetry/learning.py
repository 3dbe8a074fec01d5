"""Series of jobs."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Gauge


class LearningGauges:
    """How many jobs there are, and how much they may compute."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._jobs = Gauge("modelops_jobs", "Learning jobs there are.", ["state"], registry=registry)
        self._share = Gauge(
            "modelops_learning_share_ratio",
            "Part of the time that programs of jobs may compute while requests are answered.",
            registry=registry,
        )

    def observe_jobs(self, count_by_state: Mapping[str, int]) -> None:
        """Take stock of the jobs."""
        for state, count in count_by_state.items():
            self._jobs.labels(state).set(count)

    def observe_share(self, share: float) -> None:
        """Programs of jobs may compute for so much of the time while requests are answered."""
        self._share.set(share)
