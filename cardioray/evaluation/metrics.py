"""Figures of merit, each computed for many weightings of the same rows at once.

Scikit-learn takes one weight vector a call; a bootstrap of 2,000 resamples over a dozen figures
would be 24,000 calls. Here a figure is a function of a weight matrix (resamples x rows), and a
figure of the table itself is the case of weights that are all one. The tests compare every figure
with scikit-learn's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

# Figures for which a smaller value is the better one.
LOWER_IS_BETTER = frozenset({"brier", "ece", "mae", "rmse", "sd", "loss"})
CALIBRATION_BINS = 10


@dataclass(frozen=True, kw_only=True)
class BinaryMetrics:
    """Figures of a yes/no prediction. A figure that is undefined is NaN, `undefined` says why.

    Attributes:
        n: rows.
        tp: true positives; `fp`, `fn`, `tn` likewise.
        prevalence: share of rows with label 1.
        accuracy: share of right decisions.
        sensitivity: tp / (tp + fn), also recall.
        specificity: tn / (tn + fp).
        precision: tp / (tp + fp), also positive predictive value.
        npv: tn / (tn + fn), negative predictive value.
        f1: 2 tp / (2 tp + fp + fn).
        auc: area under the ROC curve, from scores, ties counted half.
        average_precision: sum of precision over the steps of recall, without interpolation.
        brier: mean squared difference of probability and label.
        ece: expected calibration error over ten bins of equal width (Guo et al. 2017,
            arXiv:1706.04599).
        undefined: reason by name for each figure that is NaN.
    """

    n: int
    tp: int
    fp: int
    fn: int
    tn: int
    prevalence: float
    accuracy: float
    sensitivity: float
    specificity: float
    precision: float
    npv: float
    f1: float
    auc: float
    average_precision: float
    brier: float
    ece: float
    undefined: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The figures ready for JSON; an undefined one is None."""
        return _plain(self)


@dataclass(frozen=True, kw_only=True)
class RegressionMetrics:
    """Figures of a predicted number. Errors are prediction minus truth, in the target's unit.

    Attributes:
        n: rows.
        mae: mean absolute error.
        rmse: root of the mean squared error.
        r2: coefficient of determination, 1 - SS_res / SS_tot.
        bias: mean error.
        sd: standard deviation of the errors (n - 1 in the denominator).
        limits_low: bias - 1.96 sd, the lower 95 % limit of agreement (Bland and Altman 1986,
            doi:10.1016/S0140-6736(86)90837-8).
        limits_high: bias + 1.96 sd.
        pearson_r: correlation of prediction and truth.
        icc: ICC(2,1) of prediction and truth as two raters: two-way random effects, absolute
            agreement, one rater (Shrout and Fleiss 1979, doi:10.1037/0033-2909.86.2.420).
        undefined: reason by name for each figure that is NaN.
    """

    n: int
    mae: float
    rmse: float
    r2: float
    bias: float
    sd: float
    limits_low: float
    limits_high: float
    pearson_r: float
    icc: float
    undefined: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The figures ready for JSON; an undefined one is None."""
        return _plain(self)


COUNTS = ("tp", "fp", "fn", "tn")


def binary_metrics(
    labels: ArrayLike, scores: ArrayLike, threshold: float, probabilities: ArrayLike | None = None
) -> BinaryMetrics:
    """Figures of a table of labels and scores.

    Args:
        labels: 0 or 1, shape (rows,).
        scores: probability of class 1, shape (rows,); a row is called positive when its
            probability is at least the threshold.
        threshold: in the units of the probabilities.
        probabilities: calibrated probabilities for the decision, `brier` and `ece`, where they
            differ from `scores`, which then only rank (`auc`, `average_precision`).
    """
    truth, ranks = _vectors(labels, scores)
    calibrated = ranks if probabilities is None else _vectors(labels, probabilities)[1]
    decisions = calibrated >= threshold
    return binary_metrics_of(truth, ranks, calibrated, decisions)


def binary_metrics_of(
    labels: Floats, scores: Floats, probabilities: Floats, decisions: NDArray[np.bool_]
) -> BinaryMetrics:
    """Figures where the decision of each row was made elsewhere. All arguments have shape (rows,).

    Args:
        labels: 0 or 1.
        scores: what `auc` and `average_precision` rank by.
        probabilities: what `brier` and `ece` judge.
        decisions: whether the row was called positive.
    """
    assert labels.shape == scores.shape == probabilities.shape == decisions.shape
    once = np.ones((1, len(labels)))
    raw = binary_statistics(labels, scores, probabilities, decisions, once)
    values = {name: float(value[0]) for name, value in raw.items()}
    tp, fp, fn, tn = (round(values.pop(name)) for name in COUNTS)
    reasons = _binary_reasons(tp, fp, fn, tn)
    undefined = {name: reasons[name] for name, value in values.items() if np.isnan(value)}
    return BinaryMetrics(n=len(labels), tp=tp, fp=fp, fn=fn, tn=tn, undefined=undefined, **values)


def binary_statistics(
    labels: Floats,
    scores: Floats,
    probabilities: Floats,
    decisions: NDArray[np.bool_],
    weights: Floats,
) -> dict[str, Floats]:
    """Every figure of `BinaryMetrics` for each row of a weight matrix.

    Args:
        labels: 0 or 1, shape (rows,); `scores`, `probabilities`, `decisions` likewise.
        scores: what `auc` and `average_precision` rank by.
        probabilities: what `brier` and `ece` judge.
        decisions: whether the row was called positive.
        weights: how often each row counts, shape (resamples, rows).

    Returns:
        Arrays of shape (resamples,) by name; NaN where a figure is undefined.
    """
    positive = labels == 1
    cells = [positive & decisions, ~positive & decisions, positive & ~decisions]
    cells.append(~positive & ~decisions)
    tp, fp, fn, tn = (weights @ np.stack(cells, axis=1).astype(float)).T
    total = weights.sum(axis=1)
    auc, average_precision = _ranking(positive, scores, weights)
    return {
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "tn": tn,
        "prevalence": _ratio(tp + fn, total),
        "accuracy": _ratio(tp + tn, total),
        "sensitivity": _ratio(tp, tp + fn),
        "specificity": _ratio(tn, tn + fp),
        "precision": _ratio(tp, tp + fp),
        "npv": _ratio(tn, tn + fn),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "auc": auc,
        "average_precision": average_precision,
        "brier": _ratio(weights @ (probabilities - labels) ** 2, total),
        "ece": _calibration_error(labels, probabilities, weights),
    }


def auc_statistic(labels: Floats, scores: Floats, weights: Floats) -> Floats:
    """Area under the ROC curve for each row of a weight matrix; shape (resamples,)."""
    return _ranking(labels == 1, scores, weights)[0]


def auc_within_groups(
    labels: Floats, scores: Floats, groups: NDArray[Any], weights: Floats
) -> Floats:
    """AUC that compares rows of the same group only, for each row of a weight matrix.

    Networks of different folds put their scores on different scales; pooling the scores then
    counts pairs that no single network ever ranked (G. Forman, M. Scholz, SIGKDD Explor 12:49-57,
    2010, doi:10.1145/1882471.1882479).

    Args:
        labels: 0 or 1, shape (rows,).
        scores: shape (rows,).
        groups: fold of each row, shape (rows,).
        weights: shape (resamples, rows).

    Returns:
        Mean of the groups' AUCs weighted by their pairs of a positive and a negative, shape
        (resamples,); NaN where no group has such a pair.
    """
    won, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    for group in np.unique(groups):
        rows = groups == group
        part = weights[:, rows]
        count = (part @ labels[rows]) * (part @ (1 - labels[rows]))
        won += np.nan_to_num(auc_statistic(labels[rows], scores[rows], part)) * count
        pairs += count
    return _ratio(won, pairs)


def sensitivity_at(
    labels: Floats, scores: Floats, weights: Floats, false_positive_rates: Floats
) -> Floats:
    """Height of the ROC curve at given places for each row of a weight matrix.

    Returns:
        Sensitivities of shape (resamples, places); NaN where a class has no weight.
    """
    hits, false_alarms = _roc_steps(labels == 1, scores, weights)
    tpr, fpr = _ratio(hits, hits[:, -1:]), _ratio(false_alarms, false_alarms[:, -1:])
    start = np.zeros(1)
    return np.stack(
        [
            np.interp(false_positive_rates, np.append(start, x), np.append(start, y))
            for x, y in zip(fpr, tpr, strict=True)
        ]
    )


def regression_metrics(labels: ArrayLike, predictions: ArrayLike) -> RegressionMetrics:
    """Figures of predicted numbers, both of shape (rows,)."""
    truth, predicted = _vectors(labels, predictions)
    raw = regression_statistics(truth, predicted, np.ones((1, len(truth))))
    values = {name: float(value[0]) for name, value in raw.items()}
    few = "needs at least two rows"
    reasons = dict.fromkeys(("sd", "limits_low", "limits_high", "icc"), few) | {
        "r2": few if len(truth) < 2 else "all labels are equal",
        "pearson_r": few if len(truth) < 2 else "all labels or all predictions are equal",
        **({"icc": "all numbers are equal"} if len(truth) > 1 else {}),
    }
    undefined = {name: reasons[name] for name, value in values.items() if np.isnan(value)}
    return RegressionMetrics(n=len(truth), undefined=undefined, **values)


def regression_statistics(
    labels: Floats, predictions: Floats, weights: Floats
) -> dict[str, Floats]:
    """Every figure of `RegressionMetrics` for each row of a weight matrix (resamples, rows).

    Returns:
        Arrays of shape (resamples,) by name; NaN where a figure is undefined.
    """
    errors = predictions - labels
    # Sums of squares about a centre near the mean lose no digits to cancellation.
    x, y = predictions - predictions.mean(), labels - labels.mean()
    columns = np.stack([np.abs(errors), errors, errors**2, x, y, x**2, y**2, x * y], axis=1)
    total = weights.sum(axis=1)
    mae, bias, mse, mx, my, mxx, myy, mxy = (weights @ columns).T / total
    rounding = 1e-12
    var_x, var_y = mxx - mx**2, myy - my**2
    var_x = np.where(var_x > rounding * (x**2).max(), var_x, np.nan)
    var_y = np.where(var_y > rounding * (y**2).max(), var_y, np.nan)
    spread = np.maximum(mse - bias**2, 0.0)
    sd = np.sqrt(_ratio(spread * total, np.maximum(total - 1, 0.0)))
    return {
        "mae": mae,
        "rmse": np.sqrt(mse),
        "r2": 1 - mse / var_y,
        "bias": bias,
        "sd": sd,
        "limits_low": bias - 1.96 * sd,
        "limits_high": bias + 1.96 * sd,
        "pearson_r": (mxy - mx * my) / np.sqrt(var_x * var_y),
        "icc": _icc(total, bias, spread, (mxx + 2 * mxy + myy) / 4 - ((mx + my) / 2) ** 2),
    }


def _icc(total: Floats, bias: Floats, spread: Floats, between: Floats) -> Floats:
    """ICC(2,1) of two raters from the mean and the variance of their differences.

    Args:
        total: rows.
        bias: mean difference.
        spread: variance of the differences, with the number of rows in the denominator.
        between: variance of the rows' means, likewise.
    """
    corrected = _ratio(total, np.maximum(total - 1, 0.0))
    of_rows, residual = 2 * between * corrected, spread * corrected / 2
    of_raters = total * bias**2 / 2
    scale = of_rows + residual + 2 * (of_raters - residual) / total
    return _ratio(of_rows - residual, scale)


def _ranking(positive: NDArray[np.bool_], scores: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """AUC (trapezoids, ties counted half) and average precision, each of shape (resamples,)."""
    hits, false_alarms = _roc_steps(positive, scores, weights)
    called = hits + false_alarms
    gained = np.diff(hits, axis=1, prepend=0)
    # Of the negatives of a tie, half rank below its positives.
    missed = np.diff(false_alarms, axis=1, prepend=0)
    below = false_alarms[:, -1:] - false_alarms + missed / 2
    auc = _ratio((gained * below).sum(axis=1), hits[:, -1] * false_alarms[:, -1])
    precision = np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)
    return auc, _ratio((gained * precision).sum(axis=1), hits[:, -1])


def _roc_steps(
    positive: NDArray[np.bool_], scores: Floats, weights: Floats
) -> tuple[Floats, Floats]:
    """Positives and negatives at or above each distinct score, from the highest score down."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    sorted_weights = weights[:, order]
    hits = np.cumsum(sorted_weights * positive[order], axis=1)[:, ends]
    return hits, np.cumsum(sorted_weights, axis=1)[:, ends] - hits


def calibration_bins(probabilities: Floats, num_bins: int = CALIBRATION_BINS) -> NDArray[np.int64]:
    """Index of the bin of equal width that holds each probability; the last one holds 1.0."""
    return np.minimum((probabilities * num_bins).astype(np.int64), num_bins - 1)


def _calibration_error(labels: Floats, probabilities: Floats, weights: Floats) -> Floats:
    bins = calibration_bins(probabilities)
    gaps = np.zeros((len(labels), CALIBRATION_BINS))
    gaps[np.arange(len(labels)), bins] = labels - probabilities
    return _ratio(np.abs(weights @ gaps).sum(axis=1), weights.sum(axis=1))


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    undefined = np.full(np.broadcast(numerator, denominator).shape, np.nan)
    np.divide(numerator, denominator, out=undefined, where=denominator > 0)
    return undefined


def _binary_reasons(tp: int, fp: int, fn: int, tn: int) -> dict[str, str]:
    no_positive, no_negative = "no row has label 1", "no row has label 0"
    return {
        "sensitivity": no_positive,
        "average_precision": no_positive,
        "specificity": no_negative,
        "auc": no_positive if tp + fn == 0 else no_negative,
        "precision": "no row was called positive",
        "npv": "no row was called negative",
        "f1": "no row has label 1 or was called positive",
    }


def _vectors(labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    truth, values = np.asarray(labels, dtype=float), np.asarray(scores, dtype=float)
    if truth.ndim != 1 or truth.shape != values.shape or not len(truth):
        raise ValueError(
            f"Labels and scores must be two vectors of one length, given {truth.shape} and "
            f"{values.shape}."
        )
    return truth, values


def _plain(metrics: Any) -> dict[str, Any]:
    values = dataclasses.asdict(metrics)
    return {
        name: None if isinstance(value, float) and np.isnan(value) else value
        for name, value in values.items()
    }
