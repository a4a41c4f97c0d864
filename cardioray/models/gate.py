"""The input gate: says when a picture is unlike the ones a model was trained on.

A classifier answers for anything it is shown, an ECG or a holiday photograph included. The gate
compares three kinds of measures with the training pictures: the shape of the source, simple
measures of the pixels that a person can check, and the distance of the network's features. It
warns, and refuses nothing: a picture inside every range may still be one the model cannot judge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cardioray.models.pixel_ranges import (
    MEASURES,
    Fold,
    PixelRanges,
    held_out_limit,
    image_measures,
)

Floats = NDArray[np.float64]

FOLDS = 5
MIN_PATIENTS = 3

# A source may be half as large as the smallest training source and twice as large as the largest;
# its aspect may be a quarter beyond theirs. Beyond that, resizing changes what the network sees.
SIZE_FACTOR = 2.0
ASPECT_FACTOR = 1.25

COMPONENTS = 16


@dataclass(frozen=True, eq=False)
class FeatureDistance:
    """Distance of a feature vector from those of the training pictures.

    The Mahalanobis distance under a probabilistic principal component model (Tipping and Bishop,
    J. R. Stat. Soc. B 1999, doi:10.1111/1467-9868.00196): full covariance along the first
    components, one common variance for all other directions. It stays well behaved with fewer
    pictures than features.

    Attributes:
        mean: of the training features, (D,).
        components: orthonormal directions, (K, D).
        variances: along them, (K,).
        noise_variance: in every other direction.
        limit: largest accepted distance.
    """

    mean: Floats
    components: Floats
    variances: Floats
    noise_variance: float
    limit: float

    @classmethod
    def fit(cls, features: Floats, folds: Sequence[Fold]) -> FeatureDistance:
        """Fit to features (N, D) of training pictures."""
        held_out = np.empty(len(features))
        for fitted, held in folds:
            held_out[held] = cls._model(features[fitted], np.inf).distances(features[held])
        return cls._model(features, held_out_limit(held_out))

    @classmethod
    def _model(cls, features: Floats, limit: float) -> FeatureDistance:
        from sklearn.decomposition import PCA  # a check needs no sklearn

        count = max(1, min(COMPONENTS, *(side - 2 for side in features.shape)))
        pca = PCA(count, svd_solver="randomized", random_state=0).fit(features)
        floor = 1e-12 + 1e-6 * float(pca.explained_variance_[0])
        return cls(
            mean=pca.mean_,
            components=pca.components_,
            variances=np.maximum(pca.explained_variance_, floor),
            noise_variance=max(float(pca.noise_variance_), floor),
            limit=limit,
        )

    def distances(self, features: Floats) -> Floats:
        """Distance of each of (N, D) features, (N,)."""
        centred = features - self.mean
        along = centred @ self.components.T
        rest = np.maximum((centred**2).sum(axis=1) - (along**2).sum(axis=1), 0.0)
        squared = (along**2 / self.variances).sum(axis=1) + rest / self.noise_variance
        return np.asarray(np.sqrt(squared), np.float64)


@dataclass(frozen=True)
class Findings:
    """What is unusual about one picture: one sentence a measure that is out of its range.

    Attributes:
        source: about size and shape of the file's picture.
        pixels: about brightness, contrast and the like.
        features: about what the network makes of it.
    """

    source: list[str]
    pixels: list[str]
    features: list[str]

    @property
    def sentences(self) -> list[str]:
        """All of them; none when the picture is like the training pictures."""
        return [*self.source, *self.pixels, *self.features]


@dataclass(frozen=True, eq=False)
class InputGate:
    """Which pictures are like the training pictures of a model.

    Attributes:
        longer_side_px: accepted range of the longer side of the source.
        aspect: accepted range of width over height of the source.
        pixels: accepted ranges of the pixel measures.
        features: accepted distance of the network's features.
    """

    longer_side_px: tuple[float, float]
    aspect: tuple[float, float]
    pixels: PixelRanges
    features: FeatureDistance

    @classmethod
    def fit(
        cls,
        images: NDArray[np.uint8],
        source_shapes: NDArray[np.integer[Any]],
        features: NDArray[np.floating[Any]],
        patients: NDArray[Any],
    ) -> InputGate:
        """Fit to training pictures; limits are cross-fitted by patient.

        Args:
            images: preprocessed pictures (N, H, W, C), uint8, one or three channels.
            source_shapes: height and width of each source in px, (N, 2).
            features: pooled features of the network, (N, D).
            patients: patient of each picture, (N,).

        Raises:
            ValueError: when there are fewer than three patients, or a feature is not finite.
        """
        count = len(images)
        assert source_shapes.shape == (count, 2), source_shapes.shape
        assert len(features) == len(patients) == count
        num_patients = len(np.unique(patients))
        if num_patients < MIN_PATIENTS:
            raise ValueError(
                f"The input gate is fitted on pictures of {MIN_PATIENTS} patients or more, not "
                f"{num_patients}: it has to know how patients differ."
            )
        if not np.isfinite(features).all():
            raise ValueError("The network's features are not finite; its training has failed.")
        from sklearn.model_selection import GroupKFold  # a check needs no sklearn

        splitter = GroupKFold(min(FOLDS, num_patients))
        folds: list[Fold] = list(splitter.split(features, groups=patients))
        longer, aspect = _source_measures(source_shapes)
        return cls(
            longer_side_px=(longer.min() / SIZE_FACTOR, longer.max() * SIZE_FACTOR),
            aspect=(aspect.min() / ASPECT_FACTOR, aspect.max() * ASPECT_FACTOR),
            pixels=PixelRanges.fit(image_measures(images), folds),
            features=FeatureDistance.fit(np.asarray(features, np.float64), folds),
        )

    def check(
        self,
        images: NDArray[np.uint8],
        source_shapes: NDArray[np.integer[Any]],
        features: NDArray[np.floating[Any]],
    ) -> list[Findings]:
        """What is unusual about each of some pictures.

        Args:
            images: preprocessed as the training pictures were, (N, H, W, C), uint8.
            source_shapes: height and width of each source in px, (N, 2).
            features: pooled features of the same network, (N, D).
        """
        longer, aspect = _source_measures(source_shapes)
        measures = image_measures(images)
        distances = self.features.distances(np.asarray(features, np.float64))
        return [
            Findings(
                source=self._source_findings(longer[i], aspect[i]),
                pixels=self.pixels.findings(measures[i]),
                features=self._feature_findings(distances[i]),
            )
            for i in range(len(images))
        ]

    def _source_findings(self, longer: float, aspect: float) -> list[str]:
        found = []
        low, high = self.longer_side_px
        if not low <= longer <= high:
            found.append(f"longer side {longer:.0f} px is outside {low:.0f} to {high:.0f} px")
        low, high = self.aspect
        if not low <= aspect <= high:
            found.append(f"width over height {aspect:.2f} is outside {low:.2f} to {high:.2f}")
        return found

    def _feature_findings(self, distance: float) -> list[str]:
        limit = self.features.limit
        if distance <= limit:
            return []
        if not np.isfinite(distance):
            return ["the network's features are not finite"]
        times = f"{distance / limit:.1f} times the accepted distance"
        return [f"the network's features are {times} from the training pictures"]

    def to_tensors(self) -> dict[str, Floats]:
        """The gate as named arrays, for a safetensors file."""
        ranges = zip(MEASURES, self.pixels.low, self.pixels.high, strict=True)
        tensors = {
            "source.longer_side_px": self.longer_side_px,
            "source.aspect": self.aspect,
            **{f"pixels.{name}": (low, high) for name, low, high in ranges},
            "features.mean": self.features.mean,
            "features.components": self.features.components,
            "features.variances": self.features.variances,
            "features.noise_variance": [self.features.noise_variance],
            "features.limit": [self.features.limit],
        }
        # safetensors writes the memory of an array as it lies, whatever its strides say.
        return {k: np.ascontiguousarray(value, np.float64) for k, value in tensors.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[Any]]) -> InputGate:
        """The gate that `to_tensors` wrote.

        Raises:
            ValueError: when an array is missing or is not known.
        """
        wanted = [*_SOURCE_KEYS, *(f"pixels.{name}" for name in MEASURES), *_FEATURE_KEYS]
        wrong = sorted(set(wanted) ^ set(tensors))
        if wrong:
            raise ValueError(
                f"These are not the arrays of an input gate of this version; missing or not "
                f"known: {', '.join(wrong)}."
            )
        values = {name: np.asarray(tensors[name], np.float64) for name in wanted}
        ranges = np.array([values[f"pixels.{name}"] for name in MEASURES])
        longer, aspect = values["source.longer_side_px"], values["source.aspect"]
        return cls(
            longer_side_px=(float(longer[0]), float(longer[1])),
            aspect=(float(aspect[0]), float(aspect[1])),
            pixels=PixelRanges(ranges[:, 0], ranges[:, 1]),
            features=FeatureDistance(
                mean=values["features.mean"],
                components=values["features.components"],
                variances=values["features.variances"],
                noise_variance=float(values["features.noise_variance"][0]),
                limit=float(values["features.limit"][0]),
            ),
        )

    def summary(self) -> dict[str, Any]:
        """The accepted ranges in plain numbers, for the model card."""
        ranges = zip(MEASURES.items(), self.pixels.low, self.pixels.high, strict=True)
        pixels = {
            name: {
                "title": measure.title,
                "unit": measure.unit.strip(),
                "low": round(float(low), 2),
                "high": round(float(high), 2),
            }
            for (name, measure), low, high in ranges
        }
        return {
            "longer_side_px": [float(side) for side in self.longer_side_px],
            "aspect": [round(float(ratio), 3) for ratio in self.aspect],
            "pixels": pixels,
            "feature_distance": round(self.features.limit, 3),
        }


_SOURCE_KEYS = ("source.longer_side_px", "source.aspect")
_FEATURE_KEYS = (
    "features.mean",
    "features.components",
    "features.variances",
    "features.noise_variance",
    "features.limit",
)


def _source_measures(source_shapes: NDArray[np.integer[Any]]) -> tuple[Floats, Floats]:
    """Longer side in px and width over height, (N,) each."""
    height, width = np.asarray(source_shapes, np.float64).T
    return np.maximum(height, width), width / height
