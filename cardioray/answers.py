"""What a network says of samples, and the answers that become of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cardioray.evaluation.operating_point import BinaryOperatingPoint, RegressionOperatingPoint


@dataclass(frozen=True)
class ModelOutputs:
    """What the network says of some samples.

    Attributes:
        scores: per target, uncalibrated probabilities or numbers (N,); means over the windows of
            a sample that the network saw. NaN for a sample that it was not asked about.
        features: pooled features (N, D), means too; NaN for such a sample.
        windows: per target and sample, the score of every window; a picture has one, a sample that
            the network was not asked about has none.
    """

    scores: Mapping[str, NDArray[np.float32]]
    features: NDArray[np.float32]
    windows: Mapping[str, Sequence[NDArray[np.float32]]]

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, part: slice) -> ModelOutputs:
        return ModelOutputs(
            {k: v[part] for k, v in self.scores.items()},
            self.features[part],
            {k: v[part] for k, v in self.windows.items()},
        )

    @property
    def asked(self) -> NDArray[np.bool_]:
        """Whether the network was asked about each sample, shape (N,)."""
        windows = next(iter(self.windows.values()))
        return np.array([len(own) > 0 for own in windows], bool)

    def take(self, chosen: NDArray[np.int64]) -> ModelOutputs:
        """The outputs for some of the samples, by their places."""
        return ModelOutputs(
            {k: v[chosen] for k, v in self.scores.items()},
            self.features[chosen],
            {k: [v[i] for i in chosen] for k, v in self.windows.items()},
        )

    @classmethod
    def of_windows(
        cls,
        counts: Sequence[int],
        scores: Mapping[str, NDArray[np.float32]],
        features: NDArray[np.float32],
    ) -> ModelOutputs:
        """The outputs for samples from those for their windows.

        Args:
            counts: windows of each sample, in order; 0 where the network was not asked about it.
            scores: per target, of every window.
            features: of every window.
        """
        if all(count == 1 for count in counts):
            windows = {k: [v[i : i + 1] for i in range(len(v))] for k, v in scores.items()}
            return cls(scores, features, windows)
        edges = np.cumsum(counts)[:-1]
        parts = {name: np.split(values, edges) for name, values in scores.items()}
        means = {
            name: np.array(
                [part.mean(dtype=np.float64) if len(part) else np.nan for part in own], np.float32
            )
            for name, own in parts.items()
        }
        nothing = np.full(features.shape[1], np.nan, np.float32)
        pooled = np.stack(
            [part.mean(axis=0) if len(part) else nothing for part in np.split(features, edges)]
        )
        return cls(means, pooled, parts)


def binary_answer(
    point: BinaryOperatingPoint, classes: tuple[str, str], frames: NDArray[np.floating[Any]]
) -> dict[str, Any]:
    """The answer to a yes/no question from the uncalibrated probabilities of its frames (N,)."""
    decision = point.decide(np.array([frames.mean(dtype=np.float64)]))
    positive = bool(decision.positive[0])
    return {
        "prediction": int(positive),
        "class": classes[int(positive)],
        "probability": float(decision.probability[0]),
        "threshold": point.threshold,
        "uncertain": bool(decision.uncertain[0]),
        "probability_per_frame": [float(p) for p in point.calibration.apply(frames)],
    }


def number_answer(
    point: RegressionOperatingPoint, unit: str, frames: NDArray[np.floating[Any]]
) -> dict[str, Any]:
    """The answer in numbers from what the network says of the frames (N,).

    A bound that calibration patients were too few for is the target's own, or None.
    """
    raw = np.array([frames.mean(dtype=np.float64)])
    low, high = point.bounds(raw)
    return {
        "value": float(point.value(raw)[0]),
        "low": _finite(low[0]),
        "high": _finite(high[0]),
        "unit": unit,
    }


def _finite(bound: float) -> float | None:
    return float(bound) if np.isfinite(bound) else None
