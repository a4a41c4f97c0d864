"""Bootstrap by patient and DeLong, against plain implementations and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from cardioray.evaluation.intervals import (
    Interval,
    delong_covariance,
    delong_interval,
    delong_test,
    paired_patient_bootstrap,
    patient_bootstrap,
)
from cardioray.evaluation.metrics import auc_statistic


def draw(seed: int, n: int = 60, effect: float = 1.0, ties: bool = False) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) < n // 3).astype(float)
    shared = rng.normal(size=n)
    scores = [shared + 0.7 * rng.normal(size=n) + effect * labels for _ in range(2)]
    return labels, *(np.round(score, 0 if ties else 9) for score in scores)


def plain_delong(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The definition, pair by pair (DeLong et al. 1988, equations 3 to 6)."""
    placed_positive, placed_negative = [], []
    for row in scores:
        x, y = row[labels == 1][:, None], row[labels == 0][None, :]
        wins = (x > y) + 0.5 * (x == y)
        placed_positive.append(wins.mean(axis=1))
        placed_negative.append(wins.mean(axis=0))
    v10, v01 = np.array(placed_positive), np.array(placed_negative)
    covariance = np.cov(v10) / v10.shape[1] + np.cov(v01) / v01.shape[1]
    return v10.mean(axis=1), covariance


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_fast_delong_equals_the_definition(seed: int, ties: bool) -> None:
    labels, a, b = draw(seed, ties=ties)
    auc, covariance = delong_covariance(labels, np.stack([a, b]))
    plain_auc, plain_covariance = plain_delong(labels, np.stack([a, b]))
    np.testing.assert_allclose(auc, plain_auc, atol=1e-12)
    np.testing.assert_allclose(covariance, plain_covariance, atol=1e-12)
    assert auc[0] == pytest.approx(roc_auc_score(labels, a))


def test_delong_ignores_order_of_rows_and_monotone_transforms() -> None:
    labels, a, b = draw(4)
    expected = delong_test(labels, a, b)
    shuffle = np.random.default_rng(0).permutation(len(labels))
    again = delong_test(labels[shuffle], np.exp(a[shuffle]), b[shuffle])
    assert again.p_value == pytest.approx(expected.p_value, rel=1e-9)
    swapped = delong_test(labels, b, a)
    assert swapped.p_value == pytest.approx(expected.p_value, rel=1e-9)
    assert swapped.difference.value == pytest.approx(-expected.difference.value)


def test_delong_of_a_model_with_itself_is_one() -> None:
    labels, a, _ = draw(5)
    test = delong_test(labels, a, a)
    assert test.p_value == 1.0
    assert test.difference == Interval(0.0, 0.0, 0.0)


def test_delong_sees_a_large_difference_and_undefined_cases() -> None:
    labels, a, _ = draw(6, n=90, effect=3.0)
    noise = np.random.default_rng(1).normal(size=len(labels))
    assert delong_test(labels, a, noise).p_value < 1e-4
    assert math.isnan(delong_interval(np.ones(5), np.arange(5)).value)
    lone = delong_interval([1, 0, 0, 0], [0.4, 0.1, 0.5, 0.2])
    assert lone.value == pytest.approx(2 / 3)
    assert math.isnan(lone.low)
    assert math.isnan(delong_test([1, 0, 0], [0.4, 0.1, 0.5], [0.1, 0.2, 0.3]).p_value)
    # Neither a perfect nor a constant model varies: what tells them apart cannot be measured so.
    apart = delong_test([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], [0.5] * 4)
    assert apart.difference.value == 0.5
    assert math.isnan(apart.p_value)


def test_delong_p_is_uniform_under_no_difference() -> None:
    tests = [delong_test(*draw(seed)) for seed in range(400)]
    p_values = np.array([test.p_value for test in tests])
    # 400 tests at 5 %: the rate is within three standard errors (0.011 each).
    assert 0.02 < (p_values < 0.05).mean() < 0.083
    covered = [test.difference.low <= 0 <= test.difference.high for test in tests]
    assert np.mean(covered) == pytest.approx(1 - (p_values < 0.05).mean())


def frame_table(seed: int, patients: int = 30, frames: int = 8) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(patients), frames)
    value = rng.normal(size=patients)[owner] + 0.3 * rng.normal(size=len(owner))
    label = (rng.random(patients) < 0.5).astype(float)[owner]
    return pd.DataFrame({"patient_id": [f"p{o}" for o in owner], "value": value, "label": label})


def mean_of(table: pd.DataFrame):  # noqa: ANN201
    values = table["value"].to_numpy()
    return lambda weights: {"mean": weights @ values / weights.sum(axis=1)}


def test_bootstrap_resamples_patients_not_rows() -> None:
    covered_patients, covered_rows = [], []
    for seed in range(120):
        table = frame_table(seed)
        for rows, covered in ((table, covered_patients), (by_row(table), covered_rows)):
            interval = patient_bootstrap(rows, mean_of(rows), num_resamples=400)["mean"]
            covered.append(interval.low <= 0 <= interval.high)
    # By patient close to the 95 % aimed at; frame by frame far below, which is the mistake.
    assert np.mean(covered_patients) > 0.88
    assert np.mean(covered_rows) < 0.70


def by_row(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(patient_id=[str(row) for row in range(len(table))])


def test_bootstrap_is_deterministic_and_ignores_row_order() -> None:
    table = frame_table(0)
    first = patient_bootstrap(table, mean_of(table), num_resamples=300, seed=7)["mean"]
    shuffled = table.sample(frac=1, random_state=1).reset_index(drop=True)
    again = patient_bootstrap(shuffled, mean_of(shuffled), num_resamples=300, seed=7)["mean"]
    assert again.low == pytest.approx(first.low, abs=1e-12)
    assert again.high == pytest.approx(first.high, abs=1e-12)
    other = patient_bootstrap(table, mean_of(table), num_resamples=300, seed=8)["mean"]
    assert other != first


def test_bootstrap_draws_do_not_depend_on_the_size_of_its_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = frame_table(1)
    whole = patient_bootstrap(table, mean_of(table), num_resamples=100)
    monkeypatch.setattr("cardioray.evaluation.intervals._PIECE", 7 * len(table))
    pieces = patient_bootstrap(table, mean_of(table), num_resamples=100)
    assert pieces["mean"].low == pytest.approx(whole["mean"].low, abs=1e-12)


def test_resamples_of_one_class_are_left_out_or_leave_no_interval() -> None:
    table = pd.DataFrame({"patient_id": ["a", "b", "c"]})
    labels, scores = np.array([0.0, 0.0, 1.0]), np.array([0.2, 0.6, 0.5])
    interval = patient_bootstrap(table, lambda w: {"auc": auc_statistic(labels, scores, w)})["auc"]
    assert interval.value == 0.5
    assert (interval.low, interval.high) == (0.0, 1.0)
    one_class = np.zeros(3)
    interval = patient_bootstrap(table, lambda w: {"auc": auc_statistic(one_class, scores, w)})[
        "auc"
    ]
    assert math.isnan(interval.value)
    assert math.isnan(interval.low)
    assert interval.to_dict() == {"value": None, "low": None, "high": None}


def test_paired_bootstrap_agrees_with_delong_where_both_apply() -> None:
    labels, a, b = draw(8, n=120, effect=1.0)
    b = b - 0.6 * labels
    table = pd.DataFrame({"patient_id": [f"p{i}" for i in range(len(labels))]})
    paired = paired_patient_bootstrap(
        table,
        lambda w: {"auc": auc_statistic(labels, a, w)},
        lambda w: {"auc": auc_statistic(labels, b, w)},
        num_resamples=4000,
    )["auc"]
    delong = delong_test(labels, a, b)
    assert paired.difference.value == pytest.approx(delong.difference.value)
    assert paired.difference.low == pytest.approx(delong.difference.low, abs=0.02)
    assert paired.difference.high == pytest.approx(delong.difference.high, abs=0.02)
    assert paired.p_value == pytest.approx(delong.p_value, abs=0.03)


def test_paired_bootstrap_of_equal_models_is_one() -> None:
    table = frame_table(2)
    test = paired_patient_bootstrap(table, mean_of(table), mean_of(table), num_resamples=200)[
        "mean"
    ]
    assert test.p_value == 1.0
    assert test.difference == Interval(0.0, 0.0, 0.0)


def test_number_of_resamples_must_be_positive() -> None:
    table = frame_table(3)
    with pytest.raises(ValueError, match="num_resamples must be at least 1"):
        patient_bootstrap(table, mean_of(table), num_resamples=0)


def test_interval_prints_itself() -> None:
    assert f"{Interval(0.8, 0.7, 0.9):.2f}" == "0.80 (0.70 to 0.90)"
    assert f"{Interval(0.8, math.nan, math.nan)}" == "0.800 (no interval)"
    assert f"{Interval(math.nan, math.nan, math.nan)}" == "undefined"
