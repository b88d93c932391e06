"""Counts and times of a server, in the text that Prometheus reads (exposition format 0.0.4)."""

import bisect
from collections import Counter, defaultdict

KIND = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Histogram:
    """How many values there were up to each bound, and their sum."""

    def __init__(self, bounds):
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def observe(self, value):
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name, labels=""):
        total, before = 0, f"{labels}," if labels else ""
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            total += count
            yield f'{name}_bucket{{{before}le="{bound}"}} {total}'
        after = f"{{{labels}}}" if labels else ""
        yield f"{name}_sum{after} {self.sum:g}"
        yield f"{name}_count{after} {total}"


class Metrics:
    """Of one server; `route` and `status` are the server's own words, never the client's."""

    def __init__(self):
        self.requests = Counter()
        self.seconds = defaultdict(lambda: Histogram(SECONDS))
        self.images = Histogram(IMAGES)

    def answered(self, route, status, seconds):
        self.requests[route, status] += 1
        self.seconds[route].observe(seconds)

    def text(self) -> str:
        name = "cnnlab_request_seconds"
        lines = [
            "# HELP cnnlab_requests_total Requests by route and status.",
            "# TYPE cnnlab_requests_total counter",
            *(
                f'cnnlab_requests_total{{route="{route}",status="{status}"}} {count}'
                for (route, status), count in sorted(self.requests.items())
            ),
            f"# HELP {name} From a request's head to the end of its answer.",
            f"# TYPE {name} histogram",
            *(line for route, one in sorted(self.seconds.items()) for line in one.lines(name, f'route="{route}"')),
            "# HELP cnnlab_images_total Images that went through the model.",
            "# TYPE cnnlab_images_total counter",
            f"cnnlab_images_total {self.images.sum:g}",
            "# HELP cnnlab_batch_images Images that went through the model together.",
            "# TYPE cnnlab_batch_images histogram",
            *self.images.lines("cnnlab_batch_images"),
        ]
        return "\n".join(lines) + "\n"
