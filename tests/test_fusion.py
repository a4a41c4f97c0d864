"""One answer from several views."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from cardioray.clinical.fusion import ViewFusion, fit_fusion, fuse_out_of_fold
from cardioray.config import parse, to_dict
from cardioray.evaluation.metrics import auc_statistic

VIEWS = ("A4C", "A2C", "PLAX")


def studies(count: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, and what three networks of different worth say."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < 0.4).astype(float)
    worth = np.array([1.6, 1.0, 0.4])
    logits = (labels[:, None] - 0.5) * 2 * worth + rng.normal(0, 1.2, (count, 3))
    return 1 / (1 + np.exp(-logits)), labels, np.arange(count).astype(str).astype(object)


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    return float(auc_statistic(labels, scores, np.ones((1, len(labels))))[0])


def test_fused_is_better_than_the_best_view_and_weights_follow_worth() -> None:
    scores, labels, _ = studies()
    fusion = fit_fusion("logistic", VIEWS, scores, labels)
    other, truth, _ = studies(seed=1)
    fused = fusion.apply(other)
    assert auc(truth, fused) > max(auc(truth, other[:, view]) for view in range(3))
    assert fusion.weights[0] > fusion.weights[1] > fusion.weights[2] > 0
    assert np.abs(fused.mean() - truth.mean()) < 0.05


def test_missing_views_are_left_out_and_none_at_all_is_no_answer() -> None:
    scores, labels, _ = studies()
    rng = np.random.default_rng(2)
    scores[rng.random(scores.shape) < 0.3] = np.nan
    fusion = fit_fusion("logistic", VIEWS, scores, labels)
    fused = fusion.apply(scores)
    none = np.isnan(scores).all(axis=1)
    assert np.isnan(fused[none]).all()
    assert np.isfinite(fused[~none]).all()
    one = np.array([[0.9, np.nan, np.nan], [0.1, np.nan, np.nan]])
    high, low = fusion.apply(one)
    assert high > 0.5 > low


@pytest.mark.parametrize("kind", ["logistic", "linear"])
def test_a_view_that_would_count_against_itself_is_left_out(kind: Literal["logistic"]) -> None:
    scores, labels, _ = studies()
    rng = np.random.default_rng(3)
    scores[:, 1] = 1 - scores[:, 0]  # says the opposite of the first
    scores[:, 1] += rng.normal(0, 0.01, len(scores))
    scores[rng.random(scores.shape) < 0.1] = np.nan
    fusion = fit_fusion(kind, VIEWS, scores, labels)
    assert fusion.weights[1] == 0
    assert min(fusion.weights[0], fusion.weights[2]) > 0
    higher, lower = scores.copy(), scores.copy()
    higher[:, 0] += 0.05
    lower[:, 1] = 0.5
    there = np.isfinite(scores[:, 0])
    assert (fusion.apply(higher)[there] >= fusion.apply(scores)[there]).all()
    both = np.isfinite(scores[:, 1])
    assert np.allclose(fusion.apply(lower)[both], fusion.apply(scores)[both])


def test_numbers_are_fused_too() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(1000, 50, 300)
    values = truth[:, None] + rng.normal(0, [20, 40, 80], (300, 3))
    fusion = fit_fusion("linear", VIEWS, values, truth)
    errors = np.abs(fusion.apply(values) - truth).mean()
    assert errors < np.abs(values[:, 0] - truth).mean()


def test_out_of_fold_scores_are_not_better_than_they_should_be() -> None:
    rng = np.random.default_rng(0)
    noise = rng.random((60, 3))
    labels = (rng.random(60) < 0.5).astype(float)
    patients = np.repeat(np.arange(30), 2).astype(str).astype(object)
    inside = fit_fusion("logistic", VIEWS, noise, labels).apply(noise)
    outside = fuse_out_of_fold("logistic", VIEWS, noise, labels, patients)
    assert np.isfinite(outside).all()
    assert auc(labels, outside) < auc(labels, inside)


def test_the_record_is_read_back() -> None:
    scores, labels, _ = studies(100)
    fusion = fit_fusion("logistic", VIEWS, scores, labels)
    again = parse(ViewFusion, to_dict(fusion))
    assert np.array_equal(again.apply(scores), fusion.apply(scores))


def test_what_cannot_be_fused_is_said() -> None:
    scores, labels, _ = studies(50)
    scores[:, 2] = np.nan
    with pytest.raises(ValueError, match="No study to fuse has the view PLAX"):
        fit_fusion("logistic", VIEWS, scores, labels)
    with pytest.raises(ValueError, match="both classes"):
        fit_fusion("logistic", VIEWS[:2], scores[:, :2], np.ones(50))
