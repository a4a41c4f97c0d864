"""Calibration maps, cross-fitting and conformal coverage."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from cardioray.clinical.calibration import (
    CALIBRATIONS,
    ConformalBinary,
    ConformalInterval,
    IsotonicCalibration,
    calibrate_out_of_fold,
    conformal_quantile,
    fit_calibration,
    patient_folds,
    reliability_curve,
)
from cardioray.config import parse, to_dict

METHODS = ["none", "platt", "temperature", "isotonic"]


def overconfident(n: int, seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities whose logit is three times too large and shifted."""
    rng = np.random.default_rng(seed)
    true_logit = rng.normal(0, 1.2, n)
    labels = (rng.random(n) < expit(true_logit)).astype(float)
    return labels, expit(3 * true_logit + shift)


def entropy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    clipped = np.clip(probabilities, 1e-7, 1 - 1e-7)
    return float(-(labels * np.log(clipped) + (1 - labels) * np.log(1 - clipped)).mean())


@pytest.mark.parametrize("method", METHODS)
def test_every_map_rises_stays_in_range_and_survives_json(method: str) -> None:
    labels, scores = overconfident(150, seed=1)
    fitted = fit_calibration(method, labels, scores)
    grid = np.linspace(0, 1, 501)
    mapped = fitted.apply(grid)
    assert (np.diff(mapped) >= 0).all()
    assert mapped.min() >= 0
    assert mapped.max() <= 1
    text = json.dumps(to_dict(fitted), allow_nan=False)
    again = parse(type(fitted), json.loads(text))
    assert again == fitted
    np.testing.assert_array_equal(again.apply(grid), mapped)
    assert fitted.apply(grid.reshape(3, 167)).shape == (3, 167)


@pytest.mark.parametrize("method", ["platt", "temperature", "isotonic"])
def test_calibration_helps_on_other_patients(method: str) -> None:
    fitted = fit_calibration(method, *overconfident(400, seed=2))
    labels, scores = overconfident(4000, seed=3)
    assert entropy(labels, fitted.apply(scores)) < entropy(labels, scores) - 0.05


def test_platt_finds_slope_and_shift_and_temperature_the_scale() -> None:
    labels, scores = overconfident(20_000, seed=4, shift=1.5)
    platt = fit_calibration("platt", labels, scores)
    assert platt.slope == pytest.approx(1 / 3, abs=0.03)
    assert platt.intercept == pytest.approx(-0.5, abs=0.06)
    labels, scores = overconfident(20_000, seed=5)
    assert fit_calibration("temperature", labels, scores).temperature == pytest.approx(3, abs=0.2)


def test_platt_equals_logistic_regression_on_smoothed_targets() -> None:
    labels, scores = overconfident(60, seed=6)
    positives, negatives = labels.sum(), (1 - labels).sum()
    target = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    twice = np.tile(logit(scores), 2)[:, None]
    classes = np.repeat([1, 0], len(labels))
    reference = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    reference.fit(twice, classes, sample_weight=np.concatenate([target, 1 - target]))
    ours = fit_calibration("platt", labels, scores)
    assert ours.slope == pytest.approx(reference.coef_[0, 0], rel=1e-3)
    assert ours.intercept == pytest.approx(reference.intercept_[0], abs=1e-3)


@pytest.mark.parametrize("method", ["platt", "temperature", "isotonic"])
def test_a_small_separable_set_does_not_make_anyone_certain(method: str) -> None:
    labels, scores = np.array([0, 0, 0, 1, 1, 1.0]), np.array([0, 0.01, 0.1, 0.9, 0.99, 1.0])
    mapped = fit_calibration(method, labels, scores).apply(np.array([0.0, 1.0]))
    assert mapped[0] > 0.01
    assert mapped[1] < 0.99


def test_scores_that_point_the_wrong_way_keep_their_order() -> None:
    labels, scores = overconfident(100, seed=7)
    mapped = fit_calibration("platt", labels, 1 - scores).apply(np.array([0.1, 0.5, 0.9]))
    assert (np.diff(mapped) > 0).all()
    assert mapped == pytest.approx(np.full(3, labels.mean()), abs=0.05)


def test_errors_of_calibration() -> None:
    with pytest.raises(ValueError, match=r"Unknown calibration 'plat'\. Did you mean 'platt'"):
        fit_calibration("plat", [0, 1], [0.1, 0.9])
    with pytest.raises(
        ValueError, match=r"rows of both classes, all 2 have label 0\. Use .*'none'"
    ):
        fit_calibration("platt", [0, 0], [0.1, 0.9])
    assert fit_calibration("none", [0, 0], [0.1, 0.9]).apply([0.3]) == pytest.approx([0.3])
    with pytest.raises(ValueError, match="must rise"):
        IsotonicCalibration(knots=(0.1, 0.5), values=(0.7, 0.2))
    assert CALIBRATIONS.names() == METHODS


def test_folds_are_by_patient_cover_all_rows_and_ignore_their_order() -> None:
    rng = np.random.default_rng(0)
    owner = rng.integers(0, 20, 100)
    labels = (owner % 3 == 0).astype(float)
    names = np.array([f"p{o:02d}" for o in owner])
    held_out_of = {}
    for fitted, held_out in patient_folds(labels, names, seed=3):
        assert not set(names[fitted]) & set(names[held_out])
        assert set(labels[fitted]) == set(labels[held_out]) == {0, 1}
        held_out_of[frozenset(names[held_out])] = len(held_out)
    assert sum(held_out_of.values()) == 100
    shuffle = rng.permutation(100)
    again = {
        frozenset(names[shuffle][held_out])
        for _, held_out in patient_folds(labels[shuffle], names[shuffle], seed=3)
    }
    assert again == set(held_out_of)


@pytest.mark.parametrize("single", [0, 1])
def test_patients_with_rows_of_both_classes_are_cut_into_folds(single: int) -> None:
    names = np.repeat([f"p{number}" for number in range(10)], 2)
    labels = np.tile([0.0, 1.0], 10)
    labels[: 2 * single] = 0
    held = [held_out for _, held_out in patient_folds(labels, names)]
    assert sorted(np.concatenate(held)) == list(range(20))
    assert len(held) == 5


def test_cross_fitting_uses_other_patients_only() -> None:
    labels, scores = overconfident(40, seed=8)
    patients = [f"p{i // 2}" for i in range(40)]
    first = calibrate_out_of_fold("platt", labels, scores, patients)
    changed = scores.copy()
    changed[0] = 1 - changed[0]
    second = calibrate_out_of_fold("platt", labels, changed, patients)
    # Of its own fold only the row itself moves; at least one patient's rows stay put.
    assert first[0] != second[0]
    assert (first[1:] == second[1:]).sum() >= 1
    with pytest.raises(ValueError, match="at least 2 patients of each class, there are 1 positive"):
        calibrate_out_of_fold("platt", [1, 0, 0], [0.9, 0.2, 0.1], ["a", "b", "c"])


def test_conformal_quantile_is_the_finite_sample_one() -> None:
    scores = np.arange(1, 20) / 20
    # ceil(20 * 0.9) = 18: the 18th smallest of 19.
    assert conformal_quantile(scores, 0.1) == pytest.approx(18 / 20)
    assert conformal_quantile(scores[:9], 0.1) == pytest.approx(9 / 20)
    assert conformal_quantile(scores[:8], 0.1) is None
    assert conformal_quantile(np.array([]), 0.1) is None


def test_too_few_calibration_rows_make_everything_uncertain() -> None:
    fitted = ConformalBinary.fit([0, 1, 0], [0.1, 0.9, 0.2])
    assert fitted.quantile is None
    negative, positive = fitted.prediction_set([0.0, 0.5, 1.0])
    assert negative.all()
    assert positive.all()
    assert fitted.uncertain([0.0, 0.5, 1.0]).all()
    json.dumps(to_dict(fitted), allow_nan=False)


def test_sets_hold_both_one_or_no_class() -> None:
    doubtful = ConformalBinary(alpha=0.1, quantile=0.7, n=50)
    assert doubtful.uncertain([0.2, 0.5, 0.8]).tolist() == [False, True, False]
    negative, positive = doubtful.prediction_set([0.2, 0.5, 0.8])
    assert negative.tolist() == [True, True, False]
    assert positive.tolist() == [False, True, True]
    sure = ConformalBinary(alpha=0.1, quantile=0.1, n=50)
    negative, positive = sure.prediction_set([0.05, 0.5, 0.95])
    assert negative.tolist() == [True, False, False]
    assert positive.tolist() == [False, False, True]
    assert sure.uncertain([0.05, 0.5, 0.95]).tolist() == [False, True, False]


@pytest.mark.parametrize(("n", "alpha"), [(20, 0.1), (60, 0.3)])
def test_coverage_on_new_patients_is_as_promised(n: int, alpha: float) -> None:
    covered = []
    for seed in range(50):
        labels, scores = overconfident(n, seed=seed)
        if min(labels.sum(), n - labels.sum()) < 2:
            continue
        honest = calibrate_out_of_fold("platt", labels, scores, np.arange(n))
        fitted = ConformalBinary.fit(labels, honest, alpha)
        platt = fit_calibration("platt", labels, scores)
        new_labels, new_scores = overconfident(200, seed=10_000 + seed)
        negative, positive = fitted.prediction_set(platt.apply(new_scores))
        covered.append(np.where(new_labels == 1, positive, negative).mean())
    # At least 1 - alpha, and at most 1 / (n + 1) more, up to the noise of the simulation.
    assert 1 - alpha - 0.025 < np.mean(covered) < 1 - alpha + 1 / (n + 1) + 0.025


def test_regression_interval_covers_as_promised_and_respects_the_range() -> None:
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(150):
        truth = rng.normal(55, 10, 230)
        predicted = truth + rng.standard_t(4, 230) * 4
        fitted = ConformalInterval.fit(truth[:30], predicted[:30])
        low, high = fitted.interval(predicted[30:])
        covered.append(((low <= truth[30:]) & (truth[30:] <= high)).mean())
    assert 0.885 < np.mean(covered) < 0.95
    low, high = ConformalInterval(alpha=0.1, half_width=12.0, n=30).interval([5.0, 95.0], 0, 100)
    assert low.tolist() == [0, 83]
    assert high.tolist() == [17, 100]
    low, high = ConformalInterval.fit([50.0], [51.0]).interval([55.0], 0, 100)
    assert (low[0], high[0]) == (0, 100)


def test_reliability_curve_counts_every_row_once() -> None:
    labels, scores = overconfident(103, seed=9)
    curve = reliability_curve(labels, scores, num_bins=10)
    assert curve.counts.sum() == 103
    assert curve.counts.min() >= 10
    assert (np.diff(curve.predicted) > 0).all()
    assert (curve.counts * curve.observed).sum() == pytest.approx(labels.sum())
    assert len(reliability_curve([0, 1], [0.2, 0.8]).counts) == 2
