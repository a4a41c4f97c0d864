"""Gaussian process regression of a number on features: a mean and how far it may be off.

Hyperparameters are fitted by GPyTorch (`gaussian_process_fitting.py`); what is kept and what
predicts is NumPy. Up to `exact_rows` training rows the process is exact (C. E. Rasmussen, C. K. I.
Williams, "Gaussian Processes for Machine Learning", 2006, algorithm 2.1). With more it is a sparse
variational one: the collapsed bound of M. Titsias, AISTATS 2009, on inducing points at the centres
of clusters. Its best posterior has a closed form, so that, other than with stochastic steps towards
it (SVGP), the same rows always give the same process, and a bound to compare starts by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from scipy import linalg

from cardioray.config import Failed, config
from cardioray.models.feature_space import (
    Features,
    FeatureSpace,
    FeatureSpaceConfig,
    below,
    canonical_order,
    check_names,
)
from cardioray.models.kernels import KERNELS, Hyperparameters

Floats = NDArray[np.float64]


@config
class GaussianProcessConfig:
    """A Gaussian process on features.

    Attributes:
        kernel: rbf, matern32, matern52 or rational_quadratic, each times a constant and with white
            noise added.
        ard: whether each input has a length scale of its own.
        restarts: further starts of the optimiser from drawn hyperparameters.
        exact_rows: training rows up to which the process is exact.
        inducing: inducing points beyond.
        iterations: of the optimiser, at most, for each start.
        seed: of the draws and of the clusters.
        space: from features to inputs.
    """

    kernel: str = "rational_quadratic"
    ard: bool = False
    restarts: int = Field(default=5, ge=0)
    exact_rows: int = Field(default=2000, ge=2)
    inducing: int = Field(default=256, ge=1)
    iterations: int = Field(default=100, ge=1)
    seed: int = Field(default=42, ge=0)
    space: FeatureSpaceConfig = FeatureSpaceConfig()

    def __post_init__(self) -> None:
        KERNELS.get(self.kernel)


@dataclass(frozen=True, eq=False)
class GaussianProcess:
    """A fitted process.

    Attributes:
        space: from features to inputs.
        hyper: hyperparameters.
        centre: mean of the training targets, in the target's unit.
        scale: their standard deviation.
        rows: training rows.
        points: training inputs of an exact process, inducing points of a sparse one, (M, K).
        information: of an exact process the standardised targets, (M,); of a sparse one c, (M,).
        inner: of a sparse process the lower Cholesky factor of B, (M, M); (0, 0) of an exact one.
            B = I + A A^T with A = L^-1 K_mn / noise_sd, L L^T = K_mm, and c = LB^-1 A y / noise_sd.
    """

    space: FeatureSpace
    hyper: Hyperparameters
    centre: float
    scale: float
    rows: int
    points: Floats
    information: Floats
    inner: Floats

    @classmethod
    def fit(
        cls,
        features: Features,
        targets: ArrayLike,
        settings: GaussianProcessConfig | None = None,
    ) -> GaussianProcess:
        """Fit to training rows.

        The process depends on the rows and the seed, not on the order of the rows.

        Args:
            features: (N, D), as the backbone gives them.
            targets: (N,), in any unit.
            settings: of the process.

        Raises:
            ValueError: when features or targets are not finite or do not match, there are fewer
                than three rows, or all targets are equal.
            Failed: when no start of the optimiser comes to finite hyperparameters.
        """
        from cardioray.models.gaussian_process_fitting import fit_hyperparameters

        settings = settings or GaussianProcessConfig()
        truth = checked_targets(features, targets)
        space = FeatureSpace.fit(features, settings.space)
        inputs = space.apply(features)
        order = canonical_order(inputs, truth)
        inputs, truth = inputs[order], truth[order]
        centre, scale = float(truth.mean()), float(truth.std())
        standard = (truth - centre) / scale
        exact = len(inputs) <= settings.exact_rows
        points = inputs if exact else _inducing_points(inputs, settings)
        hyper = fit_hyperparameters(
            settings.kernel,
            inputs,
            standard,
            None if exact else points,
            ard=settings.ard,
            restarts=settings.restarts,
            iterations=settings.iterations,
            seed=settings.seed,
        )
        if exact:
            information, inner = standard, np.empty((0, 0))
        else:
            information, inner = _sparse_posterior(hyper, inputs, standard, points)
        return cls(space, hyper, centre, scale, len(truth), points, information, inner)

    @property
    def exact(self) -> bool:
        """Whether every training row is kept."""
        return not self.inner.size

    def predict(self, features: Features) -> tuple[Floats, Floats]:
        """Predictive mean and standard deviation, noise included, in the target's unit.

        Args:
            features: (N, D).

        Returns:
            (N,) each.

        Raises:
            ValueError: when the features are not finite or not D a row.
        """
        between = self.hyper.covariance(self.points, self.space.apply(features))
        spread = linalg.solve_triangular(self._lower, between, lower=True)
        variance = self.hyper.variance + self.hyper.noise - (spread**2).sum(axis=0)
        if self.exact:
            mean = between.T @ self._weights
        else:
            known = linalg.solve_triangular(self.inner, spread, lower=True)
            variance = variance + (known**2).sum(axis=0)
            mean = known.T @ self.information
        # What rounding takes from a variance cannot be more than what the noise adds to it.
        sd = np.sqrt(np.maximum(variance, self.hyper.noise))
        return self.centre + self.scale * mean, self.scale * sd

    @cached_property
    def _lower(self) -> Floats:
        """Lower Cholesky factor of the points' covariance, with noise where they are rows."""
        covariance = self.hyper.covariance(self.points, self.points)
        return cholesky(covariance, self.hyper.noise if self.exact else 0.0)

    @cached_property
    def _weights(self) -> Floats:
        return np.asarray(linalg.cho_solve((self._lower, True), self.information))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The process as named arrays, for a safetensors file."""
        numbers = (self.centre, self.scale, self.rows)
        shape = (self.hyper.mixture, self.hyper.variance, self.hyper.noise)
        arrays = {
            "kernel": np.frombuffer(self.hyper.kernel.encode(), np.uint8).copy(),
            "length_scales": self.hyper.length_scales,
            "hyperparameters": np.array(shape, np.float64),
            "target": np.array(numbers, np.float64),
            "points": self.points,
            "information": self.information,
            "inner": self.inner,
        }
        arrays |= {f"space.{name}": array for name, array in self.space.to_arrays().items()}
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> GaussianProcess:
        """The process that `to_arrays` wrote.

        Raises:
            ValueError: when an array is missing or not known, or the kernel is unknown.
        """
        own = {name: array for name, array in arrays.items() if not name.startswith("space.")}
        check_names(own, _ARRAYS, "a Gaussian process")
        kernel = bytes(np.asarray(own["kernel"], np.uint8)).decode()
        KERNELS.get(kernel)
        mixture, variance, noise = (float(number) for number in own["hyperparameters"])
        centre, scale, rows = (float(number) for number in own["target"])
        scales = np.asarray(own["length_scales"], np.float64)
        return cls(
            space=FeatureSpace.from_arrays(below(arrays, "space.")),
            hyper=Hyperparameters(kernel, scales, mixture, variance, noise),
            centre=centre,
            scale=scale,
            rows=int(rows),
            points=np.asarray(own["points"], np.float64),
            information=np.asarray(own["information"], np.float64),
            inner=np.asarray(own["inner"], np.float64),
        )

    def summary(self) -> dict[str, Any]:
        """Hyperparameters in plain numbers, standard deviations in the target's unit."""
        lengths = self.hyper.length_scales
        return {
            "kernel": self.hyper.kernel,
            "exact": self.exact,
            "rows": self.rows,
            "points": len(self.points),
            "inputs": self.space.dimensions,
            "length_scale": [float(lengths.min()), float(np.median(lengths)), float(lengths.max())],
            "mixture": self.hyper.mixture,
            "process_sd": self.scale * math.sqrt(self.hyper.variance),
            "noise_sd": self.scale * math.sqrt(self.hyper.noise),
        }


_ARRAYS = (
    "kernel",
    "length_scales",
    "hyperparameters",
    "target",
    "points",
    "information",
    "inner",
)


def predict_out_of_fold(
    features: Features,
    targets: ArrayLike,
    patient_ids: ArrayLike,
    settings: GaussianProcessConfig | None = None,
    *,
    num_folds: int = 5,
    seed: int = 0,
) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each row by a process fitted to other patients.

    Space, hyperparameters and posterior are fitted anew for every fold.

    Args:
        features: (N, D).
        targets: (N,).
        patient_ids: patient of each row, (N,).
        settings: of the process.
        num_folds: folds at most; fewer where there are fewer patients.
        seed: of the assignment of patients to folds; it does not depend on the order of the rows.

    Returns:
        (N,) each, in the target's unit.

    Raises:
        ValueError: as `GaussianProcess.fit`, and when there are fewer than two patients.
    """
    from sklearn.model_selection import GroupKFold  # answers need no sklearn

    owners = np.asarray(patient_ids, dtype=str)
    truth = checked_targets(features, targets)
    if len(owners) != len(truth):
        raise ValueError(f"There are {len(owners)} patients for {len(truth)} rows.")
    folds = min(num_folds, len(np.unique(owners)))
    if folds < 2:
        raise ValueError("Folds by patient need at least two patients and two folds.")
    mean, sd = np.empty((2, len(truth)))
    splitter = GroupKFold(folds, shuffle=True, random_state=seed)
    for fitted, held in splitter.split(features, groups=owners):
        process = GaussianProcess.fit(features[fitted], truth[fitted], settings)
        mean[held], sd[held] = process.predict(features[held])
    return mean, sd


def score_candidate(
    features: Features,
    targets: ArrayLike,
    patient_ids: ArrayLike,
    settings: GaussianProcessConfig | None = None,
    *,
    num_folds: int = 5,
    seed: int = 0,
) -> dict[str, float]:
    """How well settings predict patients they were not fitted to; larger is better.

    Arguments and errors are those of `predict_out_of_fold`.

    Returns:
        `negative_mean_squared_error`, in the target's unit squared, and `mean_log_density`, of the
        truth under the predictive normal distributions (Rasmussen and Williams, section 2.5), which
        asks for true standard deviations, too.
    """
    mean, sd = predict_out_of_fold(
        features, targets, patient_ids, settings, num_folds=num_folds, seed=seed
    )
    errors = np.asarray(targets, dtype=float) - mean
    densities = -0.5 * (errors / sd) ** 2 - np.log(sd) - 0.5 * math.log(2 * math.pi)
    return {
        "negative_mean_squared_error": -float((errors**2).mean()),
        "mean_log_density": float(densities.mean()),
    }


def checked_targets(features: Features, targets: ArrayLike) -> Floats:
    """Targets as float64.

    Raises:
        ValueError: when they are not one finite number a row, three at least, that differ.
    """
    truth = np.asarray(targets, np.float64)
    if truth.shape != (len(features),):
        raise ValueError(f"There are {truth.shape} targets for {len(features)} rows of features.")
    if not np.isfinite(truth).all():
        raise ValueError("Targets are not finite; leave out rows without one.")
    if len(truth) < 3 or not truth.std() > 1e-9 * np.abs(truth).max():
        raise ValueError("A head is fitted to three rows or more with targets that differ.")
    return truth


def cholesky(covariance: Floats, noise: float) -> Floats:
    """Lower Cholesky factor of a covariance with noise on its diagonal.

    Points that lie together make a covariance singular to rounding; a millionth of the variance at
    most is then added, a power of ten at a time, as GPyTorch does.

    Raises:
        Failed: when that is not enough.
    """
    size, variance = len(covariance), float(covariance[0, 0])
    for jitter in (0.0, 1e-8, 1e-7, 1e-6):
        try:
            shifted = covariance + (noise + jitter * variance) * np.eye(size)
            return np.asarray(linalg.cholesky(shifted, lower=True))
        except linalg.LinAlgError:
            continue
    raise Failed(
        "The covariance of the Gaussian process is singular; take fewer inducing points or more "
        "components."
    )


def _inducing_points(inputs: Floats, settings: GaussianProcessConfig) -> Floats:
    """Centres of clusters of the inputs (M, K), or the inputs where no more of them differ."""
    from sklearn.cluster import KMeans  # answers need no sklearn

    different = np.unique(inputs, axis=0)
    if len(different) <= settings.inducing:
        return different
    # Centres need only spread as the rows do; ten of Lloyd's steps see to that.
    clusters = KMeans(settings.inducing, n_init=1, max_iter=10, random_state=settings.seed)
    return np.asarray(clusters.fit(inputs).cluster_centers_, np.float64)


def _sparse_posterior(
    hyper: Hyperparameters, inputs: Floats, targets: Floats, points: Floats
) -> tuple[Floats, Floats]:
    """`information` and `inner` of a sparse process (Titsias 2009, equation 10)."""
    noise_sd = math.sqrt(hyper.noise)
    lower = cholesky(hyper.covariance(points, points), 0.0)
    scaled = linalg.solve_triangular(lower, hyper.covariance(points, inputs), lower=True) / noise_sd
    inner = np.asarray(linalg.cholesky(np.eye(len(points)) + scaled @ scaled.T, lower=True))
    information = linalg.solve_triangular(inner, scaled @ targets, lower=True) / noise_sd
    return np.asarray(information), inner
