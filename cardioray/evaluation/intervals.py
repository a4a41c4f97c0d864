"""Confidence intervals and paired tests: bootstrap over patients, and DeLong's for the AUC."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Mapping[str, Floats]]

# Weight matrices are made in pieces of about this many numbers (32 MB), whatever the table's size.
_PIECE = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A figure and its confidence interval; NaN where undefined."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """Keys `value`, `low`, `high`; None for NaN, which JSON does not know."""
        return {
            name: None if math.isnan(number) else float(number)
            for name, number in (("value", self.value), ("low", self.low), ("high", self.high))
        }

    def __format__(self, spec: str) -> str:
        if math.isnan(self.value):
            return "undefined"
        spec = spec or ".3f"
        if math.isnan(self.low):
            return f"{self.value:{spec}} (no interval)"
        return f"{self.value:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


@dataclass(frozen=True)
class PairedTest:
    """The difference of two models on the same patients.

    Attributes:
        difference: figure of the first minus figure of the second, with its interval.
        p_value: two-sided, for no difference; NaN where undefined.
        method: "DeLong" or "paired patient bootstrap".
    """

    difference: Interval
    p_value: float
    method: str

    def to_dict(self) -> dict[str, Any]:
        """Keys `difference`, `p_value`, `method`."""
        p_value = None if math.isnan(self.p_value) else self.p_value
        return {
            "difference": self.difference.to_dict(),
            "p_value": p_value,
            "method": self.method,
        }


def patient_bootstrap(
    table: pd.DataFrame,
    statistic: Statistic,
    *,
    num_resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Interval]:
    """Percentile intervals from resampling patients, each with all their rows.

    Frames of a patient are alike; resampling them one by one would pretend to more evidence than
    there is (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13).

    Args:
        table: one row per sample, with a column `patient_id`.
        statistic: figures of the table by name, shape (resamples,) each, given how often each
            row counts, shape (resamples, rows), rows in the table's order.
        num_resamples: resamples drawn.
        seed: of the draw; the same seed and patients give the same draw, whatever the row order.
        confidence: coverage aimed at.

    Returns:
        An interval per figure. Resamples in which a figure is undefined (only one class was drawn)
        are left out; where they are more than half, the bounds are NaN.
    """
    whole = statistic(np.ones((1, len(table))))
    draws = _resample(table["patient_id"], statistic, num_resamples, seed)
    return {
        name: _percentiles(float(whole[name][0]), values, confidence)
        for name, values in draws.items()
    }


def paired_patient_bootstrap(
    table: pd.DataFrame,
    first: Statistic,
    second: Statistic,
    *,
    num_resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, PairedTest]:
    """Test of two models on the same rows; both see the same resampled patients.

    Args:
        table: the rows both models were scored on, with a column `patient_id`.
        first: figures of the first model, as in `patient_bootstrap`.
        second: figures of the second model, by the same names.
        num_resamples: resamples drawn; the smallest possible p-value is 2 / (num_resamples + 1).
        seed: of the draw.
        confidence: coverage aimed at.

    Returns:
        A test per figure. The p-value is twice the smaller share of resamples on either side of
        zero (one added above and below the line, so that it is never 0).
    """

    def difference(weights: Floats) -> dict[str, Floats]:
        other = second(weights)
        return {name: values - other[name] for name, values in first(weights).items()}

    whole = difference(np.ones((1, len(table))))
    draws = _resample(table["patient_id"], difference, num_resamples, seed)
    return {
        name: PairedTest(
            difference=_percentiles(float(whole[name][0]), values, confidence),
            p_value=_two_sided(values),
            method="paired patient bootstrap",
        )
        for name, values in draws.items()
    }


def delong_interval(labels: ArrayLike, scores: ArrayLike, confidence: float = 0.95) -> Interval:
    """AUC with DeLong's interval, cut at 0 and 1; for rows that are independent of each other.

    Args:
        labels: 0 or 1, shape (rows,).
        scores: shape (rows,); only their order counts.
        confidence: coverage aimed at.

    Returns:
        NaN throughout when a class is absent, NaN bounds when it has a single row.
    """
    auc, covariance = delong_covariance(labels, np.asarray(scores, dtype=float)[None])
    if np.isnan(covariance[0, 0]):
        return Interval(float(auc[0]), math.nan, math.nan)
    reach = stats.norm.ppf(0.5 + confidence / 2) * math.sqrt(covariance[0, 0])
    return Interval(float(auc[0]), max(0.0, auc[0] - reach), min(1.0, auc[0] + reach))


def delong_test(
    labels: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    confidence: float = 0.95,
    *,
    groups: ArrayLike | None = None,
) -> PairedTest:
    """DeLong's test of two correlated AUCs; for rows that are independent of each other.

    Args:
        labels: 0 or 1, shape (rows,).
        scores_a: scores of the first model for these rows.
        scores_b: scores of the second model for the same rows.
        confidence: coverage of the interval of AUC a minus AUC b.
        groups: fold of each row where networks of several folds scored them: AUCs then compare rows
            of the same fold only, as `auc_within_groups` does. As no row is in two folds, the
            variances of their differences add up.

    Returns:
        p = 1 when the two rank alike; NaN when a class has fewer than two rows (in a fold), and
        when two models that differ show no variance at all.
    """
    truth = np.asarray(labels)
    both = np.stack([np.asarray(scores_a, dtype=float), np.asarray(scores_b, dtype=float)])
    fold = np.zeros(len(truth)) if groups is None else np.asarray(groups)
    difference = variance = pairs = 0.0
    for group in np.unique(fold):
        rows = fold == group
        count = int((truth[rows] == 1).sum()) * int((truth[rows] != 1).sum())
        if not count:
            continue
        auc, covariance = delong_covariance(truth[rows], both[:, rows])
        pairs += count
        difference += count * float(auc[0] - auc[1])
        spread = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
        variance += count**2 * max(spread, 0.0) if not math.isnan(spread) else math.nan
    difference = difference / pairs if pairs else math.nan
    error = math.sqrt(variance) / pairs if pairs else math.nan
    method = "DeLong" if groups is None else "DeLong within folds"
    if error > 1e-12:
        reach = float(stats.norm.ppf(0.5 + confidence / 2)) * error
        p_value = float(2 * stats.norm.sf(abs(difference) / error))
        interval = Interval(difference, difference - reach, difference + reach)
        return PairedTest(interval, p_value, method)
    if error <= 1e-12 and abs(difference) < 1e-12:
        return PairedTest(Interval(difference, difference, difference), 1.0, method)
    return PairedTest(Interval(difference, math.nan, math.nan), math.nan, method)


def delong_covariance(labels: ArrayLike, scores: Floats) -> tuple[Floats, Floats]:
    """AUCs of several models on the same rows and the covariance of these AUCs.

    E. R. DeLong, D. M. DeLong, D. L. Clarke-Pearson, Biometrics 44:837-845, 1988,
    doi:10.2307/2531595; computed from mid-ranks in O(n log n) after X. Sun and W. Xu, IEEE Signal
    Process Lett 21:1389-1393, 2014, doi:10.1109/LSP.2014.2337313.

    Args:
        labels: 0 or 1, shape (rows,).
        scores: shape (models, rows).

    Returns:
        AUCs of shape (models,) and their covariance of shape (models, models); NaN where a class
        is absent, and for the covariance where a class has fewer than two rows.
    """
    positive = np.asarray(labels) == 1
    num_models = len(scores)
    m, n = int(positive.sum()), int((~positive).sum())
    if not m or not n:
        return np.full(num_models, np.nan), np.full((num_models, num_models), np.nan)
    joint = stats.rankdata(scores, axis=1)
    within_positive = stats.rankdata(scores[:, positive], axis=1)
    within_negative = stats.rankdata(scores[:, ~positive], axis=1)
    # Share of the negatives below each positive, and of the positives above each negative.
    placed_positive = (joint[:, positive] - within_positive) / n
    placed_negative = 1 - (joint[:, ~positive] - within_negative) / m
    auc = placed_positive.mean(axis=1)
    if m < 2 or n < 2:
        return auc, np.full((num_models, num_models), np.nan)
    covariance = np.atleast_2d(np.cov(placed_positive)) / m
    return auc, covariance + np.atleast_2d(np.cov(placed_negative)) / n


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, by Holm's step-down procedure.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scand J Stat 6:65-70, 1979.
    NaN stays NaN and does not count.
    """
    values = np.array(p_values, dtype=float)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected = np.full(len(values), np.nan)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    return [float(value) for value in corrected]


def _resample(
    patient_ids: pd.Series[str], statistic: Statistic, num_resamples: int, seed: int
) -> dict[str, Floats]:
    """Figures of each resample, by name."""
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, given {num_resamples}.")
    patients, owner = np.unique(patient_ids.to_numpy(dtype=str), return_inverse=True)
    rng = np.random.default_rng(seed)
    shares = np.full(len(patients), 1 / len(patients))
    step = max(1, _PIECE // max(len(owner), 1))
    pieces: dict[str, list[Floats]] = {}
    for start in range(0, num_resamples, step):
        count = min(step, num_resamples - start)
        drawn = rng.multinomial(len(patients), shares, size=count).astype(float)
        for name, values in statistic(drawn[:, owner]).items():
            pieces.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in pieces.items()}


def _percentiles(value: float, draws: Floats, confidence: float) -> Interval:
    defined = draws[np.isfinite(draws)]
    if math.isnan(value) or len(defined) <= len(draws) / 2:
        return Interval(value, math.nan, math.nan)
    low, high = np.quantile(defined, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(value, float(low), float(high))


def _two_sided(differences: Floats) -> float:
    defined = differences[np.isfinite(differences)]
    if len(defined) <= len(differences) / 2:
        return math.nan
    rounding = 1e-12
    below = int((defined <= rounding).sum()) + 1
    above = int((defined >= -rounding).sum()) + 1
    return min(1.0, 2 * min(below, above) / (len(defined) + 1))
