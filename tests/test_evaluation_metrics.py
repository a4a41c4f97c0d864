"""Figures against scikit-learn and SciPy, weighted and not, and where they are undefined."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sk

from cardioray.evaluation.metrics import (
    binary_metrics,
    binary_statistics,
    regression_metrics,
    regression_statistics,
)


def binary_rows(seed: int, n: int = 80) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.35).astype(float)
    # Rounded, so that there are ties between and within the classes.
    scores = np.round(1 / (1 + np.exp(-(rng.normal(size=n) + labels))), 1)
    return labels, scores


@pytest.mark.parametrize("seed", range(4))
def test_every_binary_figure_equals_scikit_learn(seed: int) -> None:
    labels, scores = binary_rows(seed)
    called = scores >= 0.55
    ours = binary_metrics(labels, scores, 0.55)
    tn, fp, fn, tp = sk.confusion_matrix(labels, called).ravel()
    assert (ours.tp, ours.fp, ours.fn, ours.tn) == (tp, fp, fn, tn)
    expected = {
        "prevalence": labels.mean(),
        "accuracy": sk.accuracy_score(labels, called),
        "sensitivity": sk.recall_score(labels, called),
        "specificity": sk.recall_score(1 - labels, ~called),
        "precision": sk.precision_score(labels, called),
        "npv": sk.precision_score(1 - labels, ~called),
        "f1": sk.f1_score(labels, called),
        "auc": sk.roc_auc_score(labels, scores),
        "average_precision": sk.average_precision_score(labels, scores),
        "brier": sk.brier_score_loss(labels, scores),
    }
    for name, value in expected.items():
        assert getattr(ours, name) == pytest.approx(value, abs=1e-12), name
    assert not ours.undefined


def test_weights_act_as_repetition_and_as_scikit_learns_sample_weight() -> None:
    labels, scores = binary_rows(9)
    weights = np.random.default_rng(1).integers(0, 4, size=(5, len(labels))).astype(float)
    ours = binary_statistics(labels, scores, scores, scores >= 0.5, weights)
    for row, weight in enumerate(weights):
        times = weight.astype(int)
        repeated = binary_metrics(np.repeat(labels, times), np.repeat(scores, times), 0.5)
        for name, values in ours.items():
            assert values[row] == pytest.approx(getattr(repeated, name), abs=1e-12), name
        auc = sk.roc_auc_score(labels, scores, sample_weight=weight)
        precision = sk.average_precision_score(labels, scores, sample_weight=weight)
        assert ours["auc"][row] == pytest.approx(auc, abs=1e-12)
        assert ours["average_precision"][row] == pytest.approx(precision, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_auc_ignores_monotone_transforms_and_turns_with_the_label(seed: int) -> None:
    labels, scores = binary_rows(seed, n=30)
    if not 0 < labels.sum() < len(labels):
        return
    auc = binary_metrics(labels, scores, 0.5).auc
    assert binary_metrics(labels, scores**3 / 7, 0.5).auc == auc
    assert binary_metrics(1 - labels, scores, 0.5).auc == pytest.approx(1 - auc, abs=1e-12)
    shuffle = np.random.default_rng(seed).permutation(len(labels))
    assert binary_metrics(labels[shuffle], scores[shuffle], 0.5).auc == auc


def test_auc_comes_from_probabilities_not_from_decisions() -> None:
    labels = [0, 0, 1, 1]
    scores = [0.1, 0.2, 0.3, 0.4]
    figures = binary_metrics(labels, scores, 0.5)
    assert figures.auc == 1.0
    assert figures.sensitivity == 0.0


def test_calibrated_probabilities_decide_and_scores_rank() -> None:
    labels, scores = binary_rows(3)
    constant = np.full(len(labels), labels.mean())
    figures = binary_metrics(labels, scores, 0.5, probabilities=constant)
    assert figures.auc == binary_metrics(labels, scores, 0.5).auc
    assert figures.tp == figures.fp == 0
    assert figures.ece == pytest.approx(0, abs=1e-12)
    assert figures.brier == pytest.approx(labels.mean() * (1 - labels.mean()))


def test_calibration_error_is_the_weighted_gap_of_ten_bins() -> None:
    labels = [0, 1, 1, 1, 0, 1]
    scores = [0.12, 0.18, 0.55, 1.0, 0.95, 0.9]
    gaps = 2 * abs(0.5 - 0.15) + 1 * abs(1 - 0.55) + 3 * abs(2 / 3 - 0.95)
    assert binary_metrics(labels, scores, 0.5).ece == pytest.approx(gaps / 6)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_is_undefined_with_a_reason_not_a_half(label: int) -> None:
    figures = binary_metrics([label] * 5, [0.1, 0.4, 0.6, 0.7, 0.9], 0.5)
    assert math.isnan(figures.auc)
    assert f"no row has label {1 - label}" in figures.undefined["auc"]
    assert figures.accuracy == pytest.approx(0.6 if label else 0.4)
    plain = figures.to_dict()
    assert plain["auc"] is None
    json.dumps(plain, allow_nan=False)


def test_precision_without_a_positive_call_is_undefined() -> None:
    figures = binary_metrics([0, 1, 1], [0.1, 0.2, 0.3], 0.9)
    assert figures.undefined == {"precision": "no row was called positive"}
    assert figures.f1 == 0


def test_vectors_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="two vectors of one length"):
        binary_metrics([0, 1], [0.5], 0.5)


def test_every_regression_figure_equals_scikit_learn_and_scipy() -> None:
    rng = np.random.default_rng(2)
    truth = rng.normal(55, 12, 200)
    predicted = truth + rng.normal(1.5, 5, 200)
    ours = regression_metrics(truth, predicted)
    errors = predicted - truth
    sd = errors.std(ddof=1)
    expected = {
        "mae": sk.mean_absolute_error(truth, predicted),
        "rmse": sk.root_mean_squared_error(truth, predicted),
        "r2": sk.r2_score(truth, predicted),
        "bias": errors.mean(),
        "sd": sd,
        "limits_low": errors.mean() - 1.96 * sd,
        "limits_high": errors.mean() + 1.96 * sd,
        "pearson_r": stats.pearsonr(truth, predicted)[0],
        "icc": icc_by_variances(np.stack([truth, predicted], axis=1)),
    }
    assert set(expected) == set(ours.to_dict()) - {"n", "undefined"}
    for name, value in expected.items():
        assert getattr(ours, name) == pytest.approx(value, abs=1e-10), name


def icc_by_variances(ratings: NDArray[np.float64]) -> float:
    """ICC(2,1) from the mean squares of a two-way analysis of variance, subjects by raters."""
    n, k = ratings.shape
    rows, columns = ratings.mean(axis=1), ratings.mean(axis=0)
    rest = ratings - rows[:, None] - columns + ratings.mean()
    of_rows = k * rows.var(ddof=1)
    of_raters = n * columns.var(ddof=1)
    residual = (rest**2).sum() / ((n - 1) * (k - 1))
    scale = of_rows + (k - 1) * residual + k * (of_raters - residual) / n
    return float((of_rows - residual) / scale)


def test_the_coefficient_of_four_published_raters() -> None:
    # Table 2 and 4 of Shrout and Fleiss 1979.
    judges = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    assert icc_by_variances(np.array(judges, float)) == pytest.approx(0.29, abs=0.005)


def test_agreement_suffers_from_bias_and_correlation_does_not() -> None:
    truth = np.arange(30.0, 70.0)
    near, far = (regression_metrics(truth, truth + shift) for shift in (0.0, 15.0))
    assert near.icc == pytest.approx(1)
    assert far.pearson_r == pytest.approx(1)
    assert far.icc < 0.6


def test_regression_weights_act_as_repetition() -> None:
    rng = np.random.default_rng(3)
    truth, predicted = rng.normal(size=(2, 40))
    weights = rng.integers(0, 4, size=(4, 40)).astype(float)
    ours = regression_statistics(truth, predicted, weights)
    for row, weight in enumerate(weights.astype(int)):
        repeated = regression_metrics(np.repeat(truth, weight), np.repeat(predicted, weight))
        for name, values in ours.items():
            assert values[row] == pytest.approx(getattr(repeated, name), abs=1e-10), name


def test_a_constant_prediction_has_no_correlation_and_says_so() -> None:
    figures = regression_metrics([50.0, 60.0, 70.0], [60.0, 60.0, 60.0])
    assert math.isnan(figures.pearson_r)
    assert "equal" in figures.undefined["pearson_r"]
    assert figures.r2 == pytest.approx(0.0, abs=1e-12)
    single = regression_metrics([50.0], [52.0])
    assert single.mae == 2
    assert set(single.undefined) == {"r2", "sd", "limits_low", "limits_high", "pearson_r", "icc"}
    json.dumps(single.to_dict(), allow_nan=False)
