"""Figures with their intervals, of tables in which each row is decided already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cardioray.evaluation.intervals import (
    Interval,
    Statistic,
    delong_interval,
    patient_bootstrap,
)
from cardioray.evaluation.metrics import (
    COUNTS,
    auc_statistic,
    binary_metrics_of,
    binary_statistics,
    regression_metrics,
    regression_statistics,
)
from cardioray.evaluation.operating_point import BinaryOperatingPoint, RegressionOperatingPoint

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Resampling:
    """How intervals are made.

    Attributes:
        num_resamples: resamples of the patients.
        seed: of the draw.
        confidence: coverage aimed at.
    """

    num_resamples: int = 2000
    seed: int = 0
    confidence: float = 0.95


@dataclass(frozen=True)
class Figures:
    """Figures of one table of rows.

    Attributes:
        n: rows (studies or frames).
        counts: `tp`, `fp`, `fn`, `tn` for a binary target, empty otherwise.
        values: each figure with its interval, by the names in `metrics`; NaN where undefined.
        undefined: reason by name for the figures that are NaN.
    """

    n: int
    counts: Mapping[str, int]
    values: Mapping[str, Interval]
    undefined: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Counts and figures side by side, ready for JSON."""
        figures = {name: interval.to_dict() for name, interval in self.values.items()}
        return {"n": self.n, **self.counts, **figures, "undefined": dict(self.undefined)}


# Beginning of the names of figures that are made without calibration.
RAW = "raw_"


def decide(
    table: pd.DataFrame, operating_point: BinaryOperatingPoint | RegressionOperatingPoint
) -> pd.DataFrame:
    """Add the answers of an operating point to a checked table of frames or studies.

    Returns:
        For a binary target with the columns `probability`, `positive`, `uncertain`, `covered`
        (the conformal set holds the label); for a regression target with `value` (calibrated),
        `width`, `covered`.
    """
    scores = table["score"].to_numpy()
    if isinstance(operating_point, RegressionOperatingPoint):
        low, high = operating_point.bounds(scores)
        label = table["label"].to_numpy()
        return table.assign(
            value=operating_point.value(scores),
            width=high - low,
            covered=(low <= label) & (label <= high),
        )
    answers = operating_point.decide(scores)
    truth = table["label"].to_numpy() == 1
    return table.assign(
        probability=answers.probability,
        positive=answers.positive,
        uncertain=answers.uncertain,
        covered=np.where(truth, answers.in_set_positive, answers.in_set_negative),
    )


def binary_figures(table: pd.DataFrame, resampling: Resampling) -> Figures:
    """Figures of decided rows of a yes/no question; `auc_delong` where rows are independent."""
    labels, scores = table["label"].to_numpy(float), table["score"].to_numpy(float)
    probabilities, decisions = (
        table["probability"].to_numpy(float),
        table["positive"].to_numpy(bool),
    )
    point = binary_metrics_of(labels, scores, probabilities, decisions)

    def statistic(weights: Floats) -> dict[str, Floats]:
        values = binary_statistics(labels, scores, probabilities, decisions, weights)
        return {name: value for name, value in values.items() if name not in COUNTS}

    intervals = _bootstrap(table, statistic, resampling)
    if table["patient_id"].is_unique:
        intervals["auc_delong"] = delong_interval(labels, scores, resampling.confidence)
    counts = {name: int(getattr(point, name)) for name in COUNTS}
    return Figures(len(table), counts, intervals, point.undefined)


def regression_figures(
    table: pd.DataFrame, resampling: Resampling, cutoffs: Sequence[float] = ()
) -> Figures:
    """Figures of decided rows of a predicted number.

    Beside those of `regression_statistics`: `mae_of_mean`, the error of whoever always says the
    mean of these labels; `auc_below_<cutoff>`, how well the number tells the rows below each
    cut-off; and, where numbers are calibrated, `raw_<name>`, the figures without that.
    """
    labels, scores = table["label"].to_numpy(float), table["value"].to_numpy(float)
    uncalibrated = table["score"].to_numpy(float)
    calibrated = not np.array_equal(scores, uncalibrated)
    point = regression_metrics(labels, scores)
    below = {cutoff: (labels < cutoff).astype(float) for cutoff in cutoffs}
    divided = {cutoff: low for cutoff, low in below.items() if 0 < low.sum() < len(low)}
    blind = np.abs(labels - labels.mean())

    def statistic(weights: Floats) -> dict[str, Floats]:
        values = regression_statistics(labels, scores, weights)
        values["mae_of_mean"] = weights @ blind / weights.sum(axis=1)
        for cutoff, low in divided.items():
            values[f"auc_below_{cutoff:g}"] = auc_statistic(low, -scores, weights)
        if calibrated:
            raw = regression_statistics(labels, uncalibrated, weights)
            values |= {f"{RAW}{name}": found for name, found in raw.items()}
        return values

    missing = {
        f"auc_below_{cutoff:g}": "all rows are on one side" for cutoff in below.keys() - divided
    }
    return Figures(
        len(table), {}, _bootstrap(table, statistic, resampling), {**point.undefined, **missing}
    )


def conformal_figures(
    studies: pd.DataFrame, resampling: Resampling, binary: bool
) -> dict[str, Interval]:
    """Coverage of the conformal sets and their price, as means over (some of) the studies."""
    everyone = np.ones(len(studies), dtype=bool)
    covered = studies["covered"].to_numpy(float)
    if binary:
        positive = studies["label"].to_numpy() == 1
        uncertain = studies["uncertain"].to_numpy(bool)
        right = (studies["positive"].to_numpy(bool) == positive).astype(float)
        means = {
            "coverage": (covered, everyone),
            "coverage_positive": (covered, positive),
            "coverage_negative": (covered, ~positive),
            "uncertain": (uncertain.astype(float), everyone),
            "accuracy_certain": (right, ~uncertain),
        }
    else:
        width = studies["width"].to_numpy(float)
        means = {"coverage": (covered, everyone), "width": (width, everyone)}

    def statistic(weights: Floats) -> dict[str, Floats]:
        with np.errstate(invalid="ignore"):  # no row of a kind was drawn: 0 / 0 is NaN
            return {
                name: (weights[:, rows] @ values[rows]) / weights[:, rows].sum(axis=1)
                for name, (values, rows) in means.items()
            }

    return _bootstrap(studies, statistic, resampling)


def _bootstrap(
    table: pd.DataFrame, statistic: Statistic, resampling: Resampling
) -> dict[str, Interval]:
    return patient_bootstrap(
        table,
        statistic,
        num_resamples=resampling.num_resamples,
        seed=resampling.seed,
        confidence=resampling.confidence,
    )
