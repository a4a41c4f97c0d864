"""Probability calibration and split-conformal prediction, as records that JSON can hold.

Everything here is fitted on calibration patients: neither trained on, nor used for early
stopping, nor scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from scipy import optimize, special

from cardioray.config import config
from cardioray.registry import Registry

Floats = NDArray[np.float64]

# Probabilities closer to 0 or 1 than this have no finite logit in float32.
_EDGE = 1e-7
# A map must not turn the order of the scores round, whatever a small calibration set suggests.
_SMALLEST_SLOPE = 1e-2


@config
class NoCalibration:
    """Probabilities as the model gives them."""

    kind: Literal["none"] = "none"

    def apply(self, probabilities: ArrayLike) -> Floats:
        """The probabilities unchanged."""
        return np.asarray(probabilities, dtype=float)


@config
class PlattCalibration:
    """p -> sigmoid(slope * logit(p) + intercept), strictly rising in p."""

    kind: Literal["platt"] = "platt"
    slope: float = Field(gt=0)
    intercept: float

    def apply(self, probabilities: ArrayLike) -> Floats:
        """Calibrated probabilities, of the same shape."""
        return _sigmoid(self.slope * _logit(probabilities) + self.intercept)


@config
class TemperatureCalibration:
    """p -> sigmoid(logit(p) / temperature), strictly rising in p."""

    kind: Literal["temperature"] = "temperature"
    temperature: float = Field(gt=0)

    def apply(self, probabilities: ArrayLike) -> Floats:
        """Calibrated probabilities, of the same shape."""
        return _sigmoid(_logit(probabilities) / self.temperature)


@config
class IsotonicCalibration:
    """A rising, piecewise linear map, constant beyond its first and last knot."""

    kind: Literal["isotonic"] = "isotonic"
    knots: tuple[float, ...] = Field(min_length=1)
    values: tuple[float, ...] = Field(min_length=1)

    def __post_init__(self) -> None:
        if len(self.knots) != len(self.values):
            raise ValueError("isotonic calibration: knots and values differ in number.")
        if np.any(np.diff(self.knots) <= 0) or np.any(np.diff(self.values) < 0):
            raise ValueError("isotonic calibration: knots and values must rise.")

    def apply(self, probabilities: ArrayLike) -> Floats:
        """Calibrated probabilities, of the same shape."""
        return np.asarray(
            np.interp(np.asarray(probabilities, dtype=float), self.knots, self.values)
        )


Calibration = Annotated[
    NoCalibration | PlattCalibration | TemperatureCalibration | IsotonicCalibration,
    Field(discriminator="kind"),
]
CALIBRATIONS: Registry[Callable[[Floats, Floats], Calibration]] = Registry("calibration")


def fit_calibration(method: str, labels: ArrayLike, probabilities: ArrayLike) -> Calibration:
    """Fit a calibration map.

    Args:
        method: "none", "platt", "temperature" or "isotonic".
        labels: 0 or 1, shape (rows,), one row per study of the calibration patients.
        probabilities: the model's probabilities of class 1, shape (rows,).

    Raises:
        ValueError: when the method is unknown, or it is not "none" and a class is absent.
    """
    fit = CALIBRATIONS.get(method)
    truth, scores = np.asarray(labels, dtype=float), np.asarray(probabilities, dtype=float)
    if method != "none" and (truth.all() or not truth.any()):
        raise ValueError(
            f"Calibration {method!r} needs rows of both classes, all {len(truth)} have label "
            f"{int(truth.any())}. Use calibration 'none', or more calibration patients."
        )
    return fit(truth, scores)


def calibrate_out_of_fold(
    method: str,
    labels: ArrayLike,
    probabilities: ArrayLike,
    patient_ids: ArrayLike,
    *,
    num_folds: int = 5,
    seed: int = 0,
) -> Floats:
    """Probabilities of each row calibrated by a map that was fitted on other patients.

    Args:
        method: as in `fit_calibration`.
        labels: 0 or 1, shape (rows,).
        probabilities: the model's probabilities of class 1, shape (rows,).
        patient_ids: patient of each row, shape (rows,).
        num_folds: folds at most; fewer where a class has fewer patients.
        seed: of the assignment of patients to folds.

    Raises:
        ValueError: as `fit_calibration`, and when a class has fewer than two patients.
    """
    truth, scores = np.asarray(labels, dtype=float), np.asarray(probabilities, dtype=float)
    if method == "none":
        return fit_calibration(method, truth, scores).apply(scores)
    calibrated = np.empty(len(scores))
    for fitted, held_out in patient_folds(truth, patient_ids, num_folds=num_folds, seed=seed):
        fold_map = fit_calibration(method, truth[fitted], scores[fitted])
        calibrated[held_out] = fold_map.apply(scores[held_out])
    return calibrated


def patient_folds(
    labels: ArrayLike | None, patient_ids: ArrayLike, *, num_folds: int = 5, seed: int = 0
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Cut rows into folds by patient.

    The cut depends on the patients, their labels and the seed, not on the order of the rows.

    Args:
        labels: 0 or 1, shape (rows,), to stratify by whether a patient has a positive row; None
            for labels that are numbers.
        patient_ids: patient of each row, shape (rows,).
        num_folds: folds at most; fewer where there are fewer patients (of a class).
        seed: of the assignment.

    Yields:
        Row numbers to fit on and row numbers held out; each row is held out once.

    Raises:
        ValueError: when there are fewer than two patients (of a class).
    """
    from sklearn.model_selection import StratifiedKFold  # answers need no sklearn

    patients, owner = np.unique(np.asarray(patient_ids, dtype=str), return_inverse=True)
    positive, negative = np.zeros((2, len(patients)), dtype=bool)
    if labels is not None:
        np.logical_or.at(positive, owner, np.asarray(labels) == 1)
        np.logical_or.at(negative, owner, np.asarray(labels) == 0)
    counts = [int(positive.sum()), int(negative.sum())]
    if labels is not None and min(counts) < 2:
        raise ValueError(
            f"Cross-fitting by patient needs at least 2 patients of each class, there are "
            f"{counts[0]} positive and {counts[1]} negative ones."
        )
    if labels is None and len(patients) < 2:
        raise ValueError("Cross-fitting by patient needs at least 2 patients, there is one.")
    alike = int((~positive).sum())
    if alike < 2:  # nearly every patient has rows of both classes
        positive[:] = False
        alike = len(patients)
    smallest = len(patients) if labels is None else min(alike, counts[0])
    cut = StratifiedKFold(min(num_folds, smallest), shuffle=True, random_state=seed)
    for _, held_out in cut.split(patients, positive):
        inside = np.isin(owner, held_out)
        yield np.flatnonzero(~inside), np.flatnonzero(inside)


@config
class ConformalBinary:
    """Split-conformal set for a calibrated probability.

    The set holds each class whose score 1 - P(class) is at most the quantile. Over new patients
    like the calibration patients it holds the true class with probability at least 1 - alpha.
    V. Vovk, A. Gammerman, G. Shafer, "Algorithmic Learning in a Random World", 2005; A. N.
    Angelopoulos, S. Bates, arXiv:2107.07511, section 1.

    Attributes:
        alpha: share of patients whose true class may be outside the set.
        quantile: see `conformal_quantile`; None stands for infinity: with fewer than
            1 / alpha - 1 calibration rows (9 for 90 %) nothing can be promised, so every set
            holds both classes and every answer is uncertain.
        n: calibration rows it was fitted on.
    """

    kind: Literal["binary"] = "binary"
    alpha: float = Field(gt=0, lt=1)
    quantile: float | None
    n: int

    @classmethod
    def fit(
        cls, labels: ArrayLike, probabilities: ArrayLike, alpha: float = 0.1
    ) -> ConformalBinary:
        """Fit on calibration rows.

        Args:
            labels: 0 or 1, shape (rows,).
            probabilities: of class 1, calibrated by a map that did not see the row's patient
                (`calibrate_out_of_fold`), shape (rows,).
            alpha: as the attribute.
        """
        truth, scores = np.asarray(labels) == 1, np.asarray(probabilities, dtype=float)
        strangeness = np.where(truth, 1 - scores, scores)
        quantile = conformal_quantile(strangeness, alpha)
        return cls(alpha=alpha, quantile=quantile, n=len(strangeness))

    @property
    def promises_nothing(self) -> bool:
        """Whether there were too few calibration rows for any set but the full one."""
        return self.quantile is None

    def prediction_set(
        self, probabilities: ArrayLike
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Whether the set holds class 0, and whether it holds class 1; shapes as the input's."""
        scores = np.asarray(probabilities, dtype=float)
        if self.quantile is None:
            both = np.ones(scores.shape, dtype=bool)
            return both, both.copy()
        return scores <= self.quantile, 1 - scores <= self.quantile

    def uncertain(self, probabilities: ArrayLike) -> NDArray[np.bool_]:
        """Whether the set is not exactly one class.

        It holds both where the model cannot tell them apart. It is empty where a model that is
        nearly always sure is not: such a case is unlike those it was calibrated on, and no class
        can be named for it either.
        """
        negative, positive = self.prediction_set(probabilities)
        return np.asarray(negative == positive)


@config
class ConformalInterval:
    """Split-conformal interval for a predicted number: prediction plus and minus a half width.

    Holds the truth of new patients like the calibration patients with probability at least
    1 - alpha (J. Lei et al., J Am Stat Assoc 113:1094-1111, 2018,
    doi:10.1080/01621459.2017.1307116).

    Attributes:
        alpha: share of patients whose truth may be outside the interval.
        half_width: in the target's unit; None stands for infinity (too few calibration rows).
        n: calibration rows it was fitted on.
    """

    kind: Literal["regression"] = "regression"
    alpha: float = Field(gt=0, lt=1)
    half_width: float | None
    n: int

    @classmethod
    def fit(
        cls, labels: ArrayLike, predictions: ArrayLike, alpha: float = 0.1
    ) -> ConformalInterval:
        """Fit on calibration rows; labels and predictions have shape (rows,)."""
        residuals = np.abs(np.asarray(predictions, dtype=float) - np.asarray(labels, dtype=float))
        half_width = conformal_quantile(residuals, alpha)
        return cls(alpha=alpha, half_width=half_width, n=len(residuals))

    @property
    def promises_nothing(self) -> bool:
        """Whether there were too few calibration rows for a finite interval."""
        return self.half_width is None

    def interval(
        self, predictions: ArrayLike, low: float = -math.inf, high: float = math.inf
    ) -> tuple[Floats, Floats]:
        """Lower and upper bounds, cut at the lowest and highest possible value."""
        values = np.asarray(predictions, dtype=float)
        reach = math.inf if self.half_width is None else self.half_width
        return np.clip(values - reach, low, high), np.clip(values + reach, low, high)


def conformal_quantile(scores: Floats, alpha: float) -> float | None:
    """The k-th smallest of n scores with k = ceil((n + 1) (1 - alpha)); None where k > n."""
    k = math.ceil(round((len(scores) + 1) * (1 - alpha), 9))
    return float(np.sort(scores)[k - 1]) if k <= len(scores) else None


@dataclass(frozen=True)
class ReliabilityCurve:
    """Predicted and observed share of positives in bins of equal size.

    Attributes:
        predicted: mean probability of each bin, shape (bins,).
        observed: share of label 1 in each bin, shape (bins,).
        counts: rows in each bin, shape (bins,).
    """

    predicted: Floats
    observed: Floats
    counts: NDArray[np.int64]


def reliability_curve(
    labels: ArrayLike, probabilities: ArrayLike, num_bins: int = 10
) -> ReliabilityCurve:
    """Cut rows, sorted by probability, into bins of equal size and compare.

    Args:
        labels: 0 or 1, shape (rows,).
        probabilities: shape (rows,).
        num_bins: bins at most; there is never a bin without a row.
    """
    order = np.argsort(np.asarray(probabilities, dtype=float), kind="stable")
    scores = np.asarray(probabilities, dtype=float)[order]
    truth = np.asarray(labels, dtype=float)[order]
    bins = np.array_split(np.arange(len(order)), min(num_bins, len(order)))
    return ReliabilityCurve(
        predicted=np.array([scores[rows].mean() for rows in bins]),
        observed=np.array([truth[rows].mean() for rows in bins]),
        counts=np.array([len(rows) for rows in bins]),
    )


def _fit_platt(labels: Floats, probabilities: Floats) -> PlattCalibration:
    """J. Platt, "Probabilistic outputs for support vector machines", 1999, on the logit.

    Newton's method with step halving after H.-T. Lin, C.-J. Lin, R. C. Weng, Mach Learn
    68:267-276, 2007, doi:10.1007/s10994-007-5018-6. L-BFGS, of SciPy or scikit-learn, finds the
    same line but calls threaded BLAS for its two unknowns, which costs many times the arithmetic.
    """
    logits, targets = _logit(probabilities), _smoothed(labels)
    design = np.stack([logits, np.ones_like(logits)])
    line = np.array([0.0, special.logit(targets.mean())])
    for _ in range(100):
        fitted = _sigmoid(line @ design)
        gradient = (design * (fitted - targets)).mean(axis=1)
        if np.abs(gradient).max() < 1e-10:
            break
        (a, b), (_, d) = (design * (fitted * (1 - fitted))) @ design.T / len(logits)
        ridge = 1e-12 * (1 + a)  # all logits may be equal
        a, d = a + ridge, d + ridge
        step = np.array([d * gradient[0] - b * gradient[1], a * gradient[1] - b * gradient[0]])
        step /= a * d - b * b
        before, size = _cross_entropy(line @ design, targets), 1.0
        while _cross_entropy((line - size * step) @ design, targets) > before and size > 1e-10:
            size /= 2
        line = line - size * step
    slope, intercept = float(line[0]), float(line[1])
    if slope < _SMALLEST_SLOPE:
        # The loss is convex, so the best line that rises is on the edge of what is allowed.
        slope = _SMALLEST_SLOPE

        def excess(shift: float) -> float:
            return float((_sigmoid(slope * logits + shift) - targets).mean())

        intercept = float(optimize.brentq(excess, -50, 50))
    return PlattCalibration(slope=slope, intercept=intercept)


def _fit_temperature(labels: Floats, probabilities: Floats) -> TemperatureCalibration:
    """C. Guo et al., arXiv:1706.04599, with Platt's targets, which keep a separable set finite."""
    logits, targets = _logit(probabilities), _smoothed(labels)

    def loss(log_temperature: float) -> float:
        return _cross_entropy(logits / math.exp(log_temperature), targets)

    limits = (math.log(0.01), math.log(1 / _SMALLEST_SLOPE))
    found = optimize.minimize_scalar(loss, bounds=limits, method="bounded")
    return TemperatureCalibration(temperature=math.exp(found.x))


def _fit_isotonic(labels: Floats, probabilities: Floats) -> IsotonicCalibration:
    from sklearn.isotonic import IsotonicRegression  # answers need no sklearn

    # The bounds keep a few pure rows at an end from being called certain.
    edge = 1 / (len(labels) + 2)
    model = IsotonicRegression(y_min=edge, y_max=1 - edge, out_of_bounds="clip")
    model.fit(probabilities, labels)
    return IsotonicCalibration(
        knots=tuple(float(knot) for knot in model.X_thresholds_),
        values=tuple(float(value) for value in model.y_thresholds_),
    )


def _cross_entropy(logits: Floats, targets: Floats) -> float:
    return float((np.logaddexp(0, logits) - targets * logits).mean())


def _smoothed(labels: Floats) -> Floats:
    """Platt's targets: (N+ + 1) / (N+ + 2) for a positive, 1 / (N- + 2) for a negative."""
    positives = labels.sum()
    negatives = len(labels) - positives
    hit, miss = (positives + 1) / (positives + 2), 1 / (negatives + 2)
    return np.asarray(np.where(labels == 1, hit, miss))


def _logit(probabilities: ArrayLike) -> Floats:
    return np.asarray(special.logit(np.clip(np.asarray(probabilities, float), _EDGE, 1 - _EDGE)))


def _sigmoid(values: Floats) -> Floats:
    return np.asarray(special.expit(values))


CALIBRATIONS.add("none", lambda labels, probabilities: NoCalibration())
CALIBRATIONS.add("platt", _fit_platt)
CALIBRATIONS.add("temperature", _fit_temperature)
CALIBRATIONS.add("isotonic", _fit_isotonic)
