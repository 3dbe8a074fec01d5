"""Counters of what is done for requests beside serving them."""

from prometheus_client import CollectorRegistry, Counter


class TrafficCounters:
    """Retries, fallbacks, hedges, copies for shadows, and circuits."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(name, meaning, labels, registry=registry)

        self._retries = counter(
            "modelops_retries_total",
            "Requests sent to the same model again, by the error before.",
            "model",
            "code",
        )
        self._fallbacks = counter(
            "modelops_fallbacks_total",
            "Requests passed on to an alias's next target, by the target that failed and its error.",
            "alias",
            "model",
            "code",
        )
        self._hedges = counter(
            "modelops_hedges_total",
            "Requests also sent to an alias's next target because the model took long.",
            "alias",
            "model",
        )
        self._shadows = counter(
            "modelops_shadow_requests_total",
            "Copies of requests that ended; code `dropped` = not sent at all.",
            "alias",
            "model",
            "code",
        )
        self._circuits = counter(
            "modelops_circuit_changes_total",
            "Times the circuit of one of a model's workers became open, half_open or closed.",
            "model",
            "circuit",
        )

    def retried(self, reference: str, code: str) -> None:
        """Count a request that is sent to the same model again."""
        self._retries.labels(reference, code).inc()

    def fell_back(self, alias: str, reference: str, code: str) -> None:
        """Count a request that is passed on after an alias's target failed."""
        self._fallbacks.labels(alias, reference, code).inc()

    def hedged(self, alias: str, reference: str) -> None:
        """Count a request that is also sent elsewhere because an alias's target takes long."""
        self._hedges.labels(alias, reference).inc()

    def shadowed(self, alias: str, reference: str, code: str) -> None:
        """Count a copy of a request, by how it ended."""
        self._shadows.labels(alias, reference, code).inc()

    def circuit_changed(self, reference: str, circuit: str) -> None:
        """Count a change of a worker's circuit."""
        self._circuits.labels(reference, circuit).inc()
