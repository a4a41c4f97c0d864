"""What Prometheus learns of a replica.

The figures go through Ray, which adds `application`, `deployment` and `replica` labels and serves
them, with its own, on the metrics port of every node; a scrape of any one replica behind the proxy
would show an arbitrary part. Ray prefixes the names with `ray_`.
"""

from __future__ import annotations

from typing import Any

from ray.serve import metrics as serve_metrics

from cardioray.targets import BinaryTarget, RegressionTarget

# Ray annotates the names of labels as a tuple of one.
Counter: Any = serve_metrics.Counter
Gauge: Any = serve_metrics.Gauge
Histogram: Any = serve_metrics.Histogram

SECONDS = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0]
SIZES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]
TENTHS = [round(0.1 * tenth, 1) for tenth in range(1, 11)]


class ServeMetrics:
    """The metrics of one replica."""

    def __init__(self) -> None:
        self._requests = Counter(
            "cardioray_requests",
            description="Answered requests by route, model and HTTP status.",
            tag_keys=("route", "model", "status"),
        )
        self._seconds = Histogram(
            "cardioray_request_seconds",
            description="Time from a request's arrival at the replica to its answer.",
            boundaries=SECONDS,
            tag_keys=("route",),
        )
        self._errors = Counter(
            "cardioray_errors",
            description="Requests that were refused or failed, by kind of problem.",
            tag_keys=("kind",),
        )
        self._batches = Histogram(
            "cardioray_batch_frames",
            description="Frames in a forward pass.",
            boundaries=SIZES,
            tag_keys=("model",),
        )
        self._queue = Gauge(
            "cardioray_queue_studies",
            description="Studies that wait for the model.",
            tag_keys=("model",),
        )
        self._model_seconds = Histogram(
            "cardioray_model_seconds",
            description="Time a study spends in the queue and in the model.",
            boundaries=SECONDS,
            tag_keys=("model",),
        )
        self._scores = Histogram(
            "cardioray_score",
            description="Answers: a probability, or a number's place between its target's bounds.",
            boundaries=TENTHS,
            tag_keys=("model", "target"),
        )
        self._swaps = Counter(
            "cardioray_model_swaps",
            description="Changes of the production model, and failed looks at the store.",
            tag_keys=("outcome",),
        )

    def request(self, route: str, model: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.inc(1, {"route": route, "model": model, "status": str(status)})
        self._seconds.observe(seconds, {"route": route})

    def error(self, kind: str) -> None:
        """Count a problem."""
        self._errors.inc(1, {"kind": kind})

    def batch(self, model: str, frames: int, waiting: int) -> None:
        """Note a forward pass and the queue it leaves."""
        self._batches.observe(frames, {"model": model})
        self._queue.set(waiting, {"model": model})

    def study(
        self,
        model: str,
        seconds: float,
        targets: tuple[BinaryTarget | RegressionTarget, ...],
        answer: dict[str, Any],
    ) -> None:
        """Note the time and the scores of an answer."""
        self._model_seconds.observe(seconds, {"model": model})
        for target in targets:
            said = answer[target.name]
            score = (
                said["probability"] if target.kind == "binary" else _place(target, said["value"])
            )
            self._scores.observe(score, {"model": model, "target": target.name})

    def swap(self, outcome: str) -> None:
        """Count a change of the production model ("swapped") or a failed look ("failed")."""
        self._swaps.inc(1, {"outcome": outcome})


def _place(target: RegressionTarget, value: float) -> float:
    """Where a number stands between its target's bounds; 0.5 where there are none."""
    if target.low is None or target.high is None:
        return 0.5
    return (value - target.low) / (target.high - target.low)
