"""Count a server's requests and batches, and measure its times, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as KIND

__all__ = ["KIND", "Metrics"]

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
IMAGES = (1, 2, 4, 8, 16, 32, 64)

disable_created_metrics()  # they would double the series, with the time of the first value of each


class Metrics:
    """Metrics of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        text = "Requests by route and status."
        self._requests = Counter("cnnlab_requests", text, ("route", "status"), registry=registry)
        text = "From a request's head to the end of its answer."
        self._seconds = Histogram("cnnlab_request_seconds", text, ("route",), buckets=SECONDS, registry=registry)
        text = "Images that went through the model together."
        self._images = Histogram("cnnlab_batch_images", text, buckets=IMAGES, registry=registry)

    def answered(self, route: str, status: str, seconds: float) -> None:
        """Count a request. Route and status are words of the server, as a client could make any number of others."""
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def computed(self, images: int) -> None:
        """Count a batch with this number of images."""
        self._images.observe(images)

    def text(self) -> bytes:
        """Write all metrics in Prometheus's text format."""
        return generate_latest(self._registry)
