"""What a model's answers are worth: beside readers, and beside treating everybody or nobody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from cardioray.evaluation.intervals import Interval

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Reader:
    """What a reader said of test studies, and what a model says where it is as specific.

    Attributes:
        name: of the reader.
        studies: how many they read.
        sensitivity: share of positive studies that they called so, with Wilson's interval.
        specificity: of negative studies likewise.
        model_sensitivity: of the model at the threshold at which it is at least as specific on the
            same studies.
        p_value: of the positive studies that one of both found and the other one missed, whether
            they are found as often by either (exact test by McNemar); NaN where there are none.
    """

    name: str
    studies: int
    sensitivity: Interval
    specificity: Interval
    model_sensitivity: Interval
    p_value: float


def compare_readers(studies: pd.DataFrame, readings: pd.DataFrame) -> list[Reader]:
    """Readers beside a model, each on the studies that they read.

    Args:
        studies: columns study_id, label (0 or 1) and score.
        readings: a column study_id, and one column a reader with 0, 1 or nothing.

    Raises:
        ValueError: when there is no reader, a reading is neither 0 nor 1, or no study was read.
    """
    names = [str(name) for name in readings.columns if name != "study_id"]
    if "study_id" not in readings or not names:
        raise ValueError(
            "Readings have a column study_id and a column with 0 or 1 for each reader."
        )
    twice = readings["study_id"][readings["study_id"].duplicated()]
    if len(twice):
        raise ValueError(f"Readings have study {twice.iloc[0]!r} twice.")
    joined = studies[["study_id", "label", "score"]].merge(readings, on="study_id", how="inner")
    found = []
    for name in names:
        said = pd.to_numeric(joined[name], errors="coerce").to_numpy(float)
        wrong = joined[name].notna().to_numpy() & ~np.isin(said, (0, 1))
        if wrong.any():
            value = joined[name].to_numpy()[wrong][0]
            raise ValueError(f"{name} says {str(value)!r} of a study; readings are 0, 1 or empty.")
        read = np.isfinite(said)
        if not read.any():
            raise ValueError(f"{name} has read none of the {len(studies)} test studies.")
        found.append(
            _reader(
                name,
                joined["label"].to_numpy()[read] == 1,
                said[read] == 1,
                joined["score"].to_numpy(float)[read],
            )
        )
    return found


def _reader(name: str, truth: NDArray[np.bool_], said: NDArray[np.bool_], scores: Floats) -> Reader:
    specific = share(int((~said & ~truth).sum()), int((~truth).sum()))
    negatives = np.sort(scores[~truth])
    # The lowest threshold at which as many negatives are below it as the reader called negative.
    below = int((~said & ~truth).sum())
    threshold = -np.inf if below == 0 else np.nextafter(negatives[below - 1], np.inf)
    called = scores >= threshold
    only_model = int((truth & called & ~said).sum())
    only_reader = int((truth & ~called & said).sum())
    p_value = float("nan")
    if only_model + only_reader:
        p_value = float(stats.binomtest(only_model, only_model + only_reader).pvalue)
    return Reader(
        name=name,
        studies=len(truth),
        sensitivity=share(int((said & truth).sum()), int(truth.sum())),
        specificity=specific,
        model_sensitivity=share(int((called & truth).sum()), int(truth.sum())),
        p_value=p_value,
    )


def share(count: int, total: int) -> Interval:
    """A share with Wilson's 95 % interval; NaN of nothing."""
    if not total:
        return Interval(float("nan"), float("nan"), float("nan"))
    bounds = stats.binomtest(count, total).proportion_ci(0.95, method="wilson")
    return Interval(count / total, float(bounds.low), float(bounds.high))


@dataclass(frozen=True)
class DecisionCurve:
    """Net benefit of acting on a model's probabilities.

    Attributes:
        thresholds: probabilities from which one acts, (T,).
        model: net benefit a study, (T,).
        everybody: of acting on everybody, (T,).
    """

    thresholds: Floats
    model: Floats
    everybody: Floats


def decision_curve(
    labels: ArrayLike, probabilities: ArrayLike, thresholds: Sequence[float] | None = None
) -> DecisionCurve:
    """Net benefit by the threshold probability (Vickers and Elkin, Med Decis Making 2006).

    At a threshold t, a false alarm costs t / (1 - t) of what a hit is worth: the net benefit is
    hits / n - false alarms / n * t / (1 - t). Acting on nobody has 0.

    Args:
        labels: 0 or 1, (N,).
        probabilities: calibrated, (N,).
        thresholds: in (0, 1); 0.01 to 0.99 by default.
    """
    truth = np.asarray(labels) == 1
    values = np.asarray(probabilities, float)
    cuts = np.asarray(np.arange(1, 100) / 100 if thresholds is None else thresholds, float)
    acts = values[None] >= cuts[:, None]
    odds = cuts / (1 - cuts)
    model = (acts & truth).mean(axis=1) - (acts & ~truth).mean(axis=1) * odds
    everybody = truth.mean() - (~truth).mean() * odds
    return DecisionCurve(cuts, model, everybody)
