"""One number with its uncertainty from several predictors of it, some of which may be missing.

Predictors are, for instance, heads on the frames of a cine. Weights are at least 0 and add up to 1,
so that the answer lies among what the predictors say.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from scipy import optimize, special

from cardioray.config import config
from cardioray.registry import unknown_name

Floats = NDArray[np.float64]
Criterion = Literal["squared_error", "log_loss"]
CRITERIA: tuple[Criterion, ...] = ("squared_error", "log_loss")

_EDGE = 1e-6
# Logarithms of weights are sought between plus and minus this: below it a weight is 0 but in name.
_LOWEST = 16.0
# With fewer rows a spread of errors is a guess.
_LEAST_ROWS = 3


@config
class EnsembleWeights:
    """How much each predictor counts.

    Attributes:
        members: names of the predictors.
        weights: one each, at least 0, with sum 1.
    """

    members: tuple[str, ...] = Field(min_length=1)
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.members) != len(self.weights) or len(set(self.members)) < len(self.members):
            raise ValueError("ensemble: every member needs a name of its own and a weight.")
        if min(self.weights) < 0 or abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError("ensemble: weights are at least 0 and add up to 1.")

    def mean(self, predictions: ArrayLike) -> Floats:
        """Weighted means; the weights of the members that are there are rescaled to sum 1.

        Where all members that are there have weight 0, they count alike.

        Args:
            predictions: numbers or probabilities (S, V), NaN where a member is missing.

        Returns:
            (S,); NaN where every member is missing.
        """
        values = np.asarray(predictions, dtype=float)
        shares = _rescaled(np.array(self.weights), np.isfinite(values))
        mean = (shares * np.nan_to_num(values)).sum(axis=1)
        return np.where(np.isfinite(values).any(axis=1), mean, np.nan)

    def mixture(self, means: ArrayLike, sds: ArrayLike) -> tuple[Floats, Floats]:
        """Mean and SD of the weighted mixture of the members' predictive distributions.

        With weights w, means m and standard deviations s the mean is M = sum w m and the variance
        sum w (s^2 + m^2) - M^2 = sum w s^2 + sum w (m - M)^2: what the members are unsure of, and
        how far they disagree (B. Lakshminarayanan, A. Pritzel, C. Blundell, arXiv:1612.01474,
        section 2.4, there with equal weights).

        Args:
            means: (S, V), NaN where a member is missing.
            sds: (S, V), at least 0, NaN where the mean is NaN.

        Returns:
            Means and standard deviations, (S,) each; NaN where every member is missing.

        Raises:
            ValueError: when a mean has no standard deviation, or one is below 0.
        """
        values, spreads = _pair(means, sds)
        middle = self.mean(values)
        shares = _rescaled(np.array(self.weights), np.isfinite(values))
        apart = np.nan_to_num(values - middle[:, None])
        variance = (shares * (np.nan_to_num(spreads) ** 2 + apart**2)).sum(axis=1)
        return middle, np.where(np.isfinite(middle), np.sqrt(variance), np.nan)


def fit_ensemble(
    criterion: Criterion,
    members: tuple[str, ...],
    predictions: ArrayLike,
    labels: ArrayLike,
    *,
    shrinkage: float = 0.25,
) -> EnsembleWeights:
    """Fit weights to studies that the members have not learned from.

    The weights that are best on these studies are drawn towards equal ones, the more the fewer
    studies there are: w = k w_best + (1 - k) / V with k = max(0, 1 - shrinkage V / (S - 1 - V)) for
    V members and S studies (after J. H. Stock, M. W. Watson, J Forecast 23:405-430, 2004,
    doi:10.1002/for.928). As few studies as members tell nothing better than equal weights.

    Args:
        criterion: "squared_error" of the weighted mean (L. Breiman, Mach Learn 24:49-64, 1996,
            doi:10.1007/BF00117832); "log_loss" of the weighted mean of probabilities.
        members: names.
        predictions: (S, V) numbers or probabilities, NaN where a member is missing.
        labels: (S,) numbers, or 0 and 1.
        shrinkage: 0 takes the best weights as they are.

    Raises:
        ValueError: when the criterion is unknown, a member is in no study, a study has no member or
            no label, or the shrinkage is below 0.
    """
    if criterion not in CRITERIA:
        raise unknown_name("criterion of an ensemble", criterion, CRITERIA)
    values, truth = np.asarray(predictions, dtype=float), np.asarray(labels, dtype=float)
    there = _checked(members, values, truth)
    if shrinkage < 0:
        raise ValueError(f"shrinkage is at least 0, given {shrinkage}.")
    loss = _mean_loss(criterion, np.nan_to_num(values), truth, there)
    count, studies = len(members), len(truth)
    equal = np.full(count, 1 / count)
    spare = studies - 1 - count
    kept = max(0.0, 1 - shrinkage * count / spare) if spare > 0 else 0.0
    if shrinkage == 0:
        kept = 1.0
    weights = kept * _best_on_simplex(loss, equal) + (1 - kept) * equal if kept else equal
    return EnsembleWeights(members=members, weights=tuple(map(float, weights)))


@config
class SdCalibration:
    """sd -> max(factor * max(sd, floor), floor): predicted SDs brought to the observed errors.

    Attributes:
        factor: above 0.
        floor: smallest standard deviation that is believed, in the target's unit, before scaling
            and after it.
    """

    factor: float = Field(gt=0)
    floor: float = Field(default=0.0, ge=0)

    def apply(self, sds: ArrayLike) -> Floats:
        """Calibrated standard deviations, of the same shape."""
        believed = np.maximum(np.asarray(sds, dtype=float), self.floor)
        return np.asarray(np.maximum(self.factor * believed, self.floor))


def fit_sd_calibration(
    labels: ArrayLike, means: ArrayLike, sds: ArrayLike, *, floor: float = 0.0
) -> SdCalibration:
    """Fit the factor to errors on rows that were not learned from.

    factor^2 is the mean of (error / sd)^2, which has the largest likelihood of all factors under
    normal errors (D. Levi, L. Gispan, N. Giladi, E. Fetaya, Sensors 22:5540, 2022,
    doi:10.3390/s22155540; M.-H. Laves et al., arXiv:2104.12376). One number is all that few
    patients can tell; the isotonic map of V. Kuleshov, N. Fenner, S. Ermon, arXiv:1807.00263,
    needs many.

    Args:
        labels: the truth, shape (rows,), one row a study.
        means: the predictions, shape (rows,).
        sds: their standard deviations, shape (rows,).
        floor: as the attribute.

    Raises:
        ValueError: when there are fewer than three rows, a standard deviation is not above 0
            (with its floor), or all errors are 0.
    """
    truth, values, spreads = (np.asarray(each, dtype=float) for each in (labels, means, sds))
    if len(truth) < _LEAST_ROWS:
        raise ValueError(
            f"Calibration of standard deviations needs {_LEAST_ROWS} studies, there are "
            f"{len(truth)}; use more calibration patients."
        )
    spreads = np.maximum(spreads, floor)
    if not (spreads > 0).all():
        raise ValueError("A standard deviation is not above 0; set a floor.")
    factor = math.sqrt(float((((truth - values) / spreads) ** 2).mean()))
    if not factor > 0:
        raise ValueError("Every prediction equals its label: these rows were learned from.")
    return SdCalibration(factor=factor, floor=floor)


Loss = Callable[[Floats], tuple[float, Floats]]


def _mean_loss(
    criterion: Criterion, values: Floats, truth: Floats, there: NDArray[np.bool_]
) -> Loss:
    """Loss of the weighted mean, and its gradient by the weights."""

    def loss(weights: Floats) -> tuple[float, Floats]:
        total = np.maximum(there @ weights, _EDGE)
        mean = values @ weights / total
        slopes = (values - mean[:, None]) * there / total[:, None]
        if criterion == "squared_error":
            error = mean - truth
            return float((error**2).mean()), 2 * error @ slopes / len(truth)
        p = np.clip(mean, _EDGE, 1 - _EDGE)
        value = -(special.xlogy(truth, p) + special.xlog1py(1 - truth, -p)).mean()
        slope = np.where(p == mean, (p - truth) / (p * (1 - p)), 0.0)
        return float(value), slope @ slopes / len(truth)

    return loss


def _best_on_simplex(loss: Loss, start: Floats) -> Floats:
    """Weights of least loss, at least 0 and with sum 1.

    They are sought as shares of exponentials, which are never 0: where members are missing, those
    that are left need weights to be compared by.
    """
    first = max(abs(loss(start)[0]), 1e-12)

    def of_logarithms(logarithms: Floats) -> tuple[float, Floats]:
        weights = special.softmax(logarithms)
        value, gradient = loss(weights)
        return value / first, weights * (gradient - weights @ gradient) / first

    found = optimize.minimize(
        of_logarithms,
        np.log(start),
        jac=True,
        method="L-BFGS-B",
        bounds=[(-_LOWEST, _LOWEST)] * len(start),
        options={"maxiter": 2000, "maxfun": 4000, "ftol": 1e-15, "gtol": 1e-10},
    )
    weights = special.softmax(found.x)
    weights[weights < _EDGE] = 0.0
    return np.asarray(weights / weights.sum())


def _checked(members: tuple[str, ...], values: Floats, truth: Floats) -> NDArray[np.bool_]:
    """Which member is there in which study, (S, V)."""
    if values.ndim != 2 or values.shape != (len(truth), len(members)) or not len(truth):
        raise ValueError(
            f"Predictions of {len(members)} members for {len(truth)} labels are a table of that "
            f"size, given {values.shape}."
        )
    if not np.isfinite(truth).all():
        raise ValueError("Every study that weights are fitted to needs a label.")
    there = np.isfinite(values)
    for number, member in enumerate(members):
        if not there[:, number].any():
            raise ValueError(f"No study to fit weights to has the member {member}.")
    if not there.any(axis=1).all():
        row = int(np.flatnonzero(~there.any(axis=1))[0])
        raise ValueError(f"Study {row + 1} has no member; leave it out.")
    return there


def _pair(means: ArrayLike, sds: ArrayLike) -> tuple[Floats, Floats]:
    values, spreads = np.asarray(means, dtype=float), np.asarray(sds, dtype=float)
    if values.shape != spreads.shape:
        raise ValueError(
            f"Means and standard deviations differ in shape: {values.shape}, {spreads.shape}."
        )
    known = np.isfinite(values)
    if not (np.isfinite(spreads[known]).all() and (spreads[known] >= 0).all()):
        raise ValueError("Every mean needs a standard deviation of at least 0.")
    return values, spreads


def _rescaled(weights: Floats, there: NDArray[np.bool_]) -> Floats:
    """Shares (S, V) of the members that are there, with sum 1 in each study that has one."""
    shares = there * weights
    nothing = there.any(axis=1) & (shares.sum(axis=1) <= 0)
    shares[nothing] = there[nothing]
    total = shares.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(shares, total, out=np.zeros_like(shares), where=total > 0))
