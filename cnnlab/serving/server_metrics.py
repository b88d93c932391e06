"""Counts and times of a server, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as KIND

__all__ = ["KIND", "Metrics"]

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
IMAGES = (1, 2, 4, 8, 16, 32, 64)

disable_created_metrics()  # a series for each other one, with the time of its first value


class Metrics:
    """Of one server; `route` and `status` are the server's own words, never the client's."""

    def __init__(self):
        self._registry = CollectorRegistry()
        of_ours = {"registry": self._registry}
        self._requests = Counter("cnnlab_requests", "Requests by route and status.", ("route", "status"), **of_ours)
        says = "From a request's head to the end of its answer."
        self._seconds = Histogram("cnnlab_request_seconds", says, ("route",), buckets=SECONDS, **of_ours)
        says = "Images that went through the model together."
        self._images = Histogram("cnnlab_batch_images", says, buckets=IMAGES, **of_ours)

    def answered(self, route, status, seconds):
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def computed(self, images):
        self._images.observe(images)

    def text(self) -> bytes:
        return generate_latest(self._registry)
