"""Weighted ensembles: weights, mixtures of predictive distributions, calibrated spreads."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import optimize

from cardioray.clinical.ensemble import (
    CRITERIA,
    EnsembleWeights,
    SdCalibration,
    fit_ensemble,
    fit_sd_calibration,
)
from cardioray.config import parse, to_dict

NAMES = ("ed_gp", "es_gp", "mid_mlp")


def studies(
    count: int = 200, noise: tuple[float, ...] = (2.0, 5.0, 20.0), seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, and what three members with errors of their own predict, with their true SDs."""
    rng = np.random.default_rng(seed)
    labels = rng.normal(55, 12, count)
    sds = np.tile(noise, (count, 1))
    return labels, labels[:, None] + sds * rng.normal(size=sds.shape), sds


def probabilities(count: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % 2).astype(float)
    logits = (2 * labels - 1)[:, None] * np.array([2.0, 0.5, 0.0])
    return labels, 1 / (1 + np.exp(-logits - rng.normal(size=(count, 3))))


def fit(criterion: str, shrinkage: float = 0.0, drop: float = 0.0) -> EnsembleWeights:
    rng = np.random.default_rng(3)
    labels, values = probabilities() if criterion == "log_loss" else studies()[:2]
    missing = rng.random(values.shape) < drop
    missing[:, 0] &= ~missing.all(axis=1)
    values = np.where(missing, np.nan, values)
    return fit_ensemble(criterion, NAMES, values, labels, shrinkage=shrinkage)  # type: ignore[arg-type]


@pytest.mark.parametrize("drop", [0.0, 0.3])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_weights_are_shares_and_follow_quality(criterion: str, drop: float) -> None:
    found = fit(criterion, drop=drop)
    assert sum(found.weights) == pytest.approx(1)
    assert min(found.weights) >= 0
    assert found.weights[0] > 0.5
    assert found.weights[0] > found.weights[1] >= found.weights[2]


def test_least_squares_weights_are_those_of_nnls() -> None:
    labels, values, _ = studies(60)
    found = fit_ensemble("squared_error", NAMES, values, labels, shrinkage=0)
    # A heavy row makes the plain solver keep the sum.
    heavy = 1e6
    rows = np.vstack([values - labels[:, None], np.full((1, 3), heavy)])
    expected, _ = optimize.nnls(rows, np.append(np.zeros(60), heavy))
    np.testing.assert_allclose(found.weights, expected, atol=1e-4)


def test_no_other_weights_are_better() -> None:
    found = np.array(fit("log_loss").weights)
    labels, values = probabilities()

    def loss(weights: np.ndarray) -> float:
        p = values @ weights
        return float(-np.log(np.where(labels == 1, p, 1 - p)).mean())

    others = np.random.default_rng(0).dirichlet(np.ones(3), 300)
    near = 0.98 * found + 0.02 * others
    assert loss(found) <= min(map(loss, [*others, *near])) + 1e-9


def test_few_studies_draw_weights_to_equal_ones() -> None:
    labels, values, _ = studies(400)

    def weights(count: int, shrinkage: float) -> np.ndarray:
        found = fit_ensemble(
            "squared_error", NAMES, values[:count], labels[:count], shrinkage=shrinkage
        )
        return np.array(found.weights)

    np.testing.assert_allclose(weights(4, 0.25), 1 / 3)
    np.testing.assert_allclose(weights(4, 0.0), weights(4, 0.0))
    best = weights(20, 0.0)
    assert best[0] > 0.6
    kept = 1 - 0.25 * 3 / (20 - 1 - 3)
    np.testing.assert_allclose(weights(20, 0.25), kept * best + (1 - kept) / 3)
    assert np.abs(weights(400, 0.25) - weights(400, 0.0)).max() < 0.002


def test_order_of_studies_and_members_does_not_matter() -> None:
    labels, values, _ = studies(50)
    found = fit_ensemble("squared_error", NAMES, values, labels)
    order = np.random.default_rng(0).permutation(50)
    again = fit_ensemble("squared_error", NAMES, values[order], labels[order])
    np.testing.assert_allclose(again.weights, found.weights, atol=1e-5)
    turned = fit_ensemble("squared_error", NAMES[::-1], values[:, ::-1], labels)
    np.testing.assert_allclose(turned.weights[::-1], found.weights, atol=1e-5)


def test_weights_of_members_that_are_there_are_rescaled() -> None:
    ensemble = EnsembleWeights(members=NAMES, weights=(0.6, 0.2, 0.2))
    values = np.array([[1.0, 2.0, 3.0], [np.nan, 2.0, 3.0], [np.nan] * 3])
    np.testing.assert_allclose(ensemble.mean(values), [1.6, 2.5, np.nan])
    mean, sd = ensemble.mixture(values, np.ones((3, 3)))
    np.testing.assert_allclose(mean, [1.6, 2.5, np.nan])
    np.testing.assert_allclose(sd[1], np.sqrt(1 + 0.25))
    assert np.isnan(sd[2])
    # Where only members without weight are there, they are all there is to say.
    idle = EnsembleWeights(members=NAMES, weights=(1.0, 0.0, 0.0))
    np.testing.assert_allclose(idle.mean([[np.nan, 2.0, 4.0]]), [3.0])


def test_a_mixture_has_the_mean_and_sd_of_its_draws() -> None:
    ensemble = EnsembleWeights(members=NAMES, weights=(0.5, 0.3, 0.2))
    means, sds = np.array([[50.0, 55.0, 40.0]]), np.array([[2.0, 4.0, 8.0]])
    rng = np.random.default_rng(0)
    chosen = rng.choice(3, size=400_000, p=ensemble.weights)
    draws = rng.normal(means[0][chosen], sds[0][chosen])
    mean, sd = ensemble.mixture(means, sds)
    assert mean[0] == pytest.approx(draws.mean(), abs=0.05)
    assert sd[0] == pytest.approx(draws.std(), abs=0.05)


def test_members_that_disagree_are_less_certain_than_each() -> None:
    ensemble = EnsembleWeights(members=("a", "b"), weights=(0.5, 0.5))
    spread = [ensemble.mixture([[50 - gap, 50 + gap]], [[3.0, 3.0]])[1][0] for gap in (0, 2, 8)]
    assert spread[0] == pytest.approx(3)
    assert spread[0] < spread[1] < spread[2]


def test_wrong_ensembles_are_refused() -> None:
    labels, values, sds = studies(20)
    with pytest.raises(ValueError, match="add up to 1"):
        EnsembleWeights(members=("a", "b"), weights=(0.5, 0.6))
    with pytest.raises(ValueError, match="name of its own"):
        EnsembleWeights(members=("a", "a"), weights=(0.5, 0.5))
    with pytest.raises(ValueError, match="squared_error"):
        fit_ensemble("mse", NAMES, values, labels)  # type: ignore[arg-type]
    absent = values.copy()
    absent[:, 1] = np.nan
    with pytest.raises(ValueError, match="the member es_gp"):
        fit_ensemble("squared_error", NAMES, absent, labels)
    absent = values.copy()
    absent[4] = np.nan
    with pytest.raises(ValueError, match="Study 5 has no member"):
        fit_ensemble("squared_error", NAMES, absent, labels)
    with pytest.raises(ValueError, match="needs a label"):
        fit_ensemble("squared_error", NAMES, values, labels * np.nan)
    with pytest.raises(ValueError, match="Every mean needs a standard deviation"):
        EnsembleWeights(members=NAMES, weights=(1.0, 0.0, 0.0)).mixture(values, sds * np.nan)


def test_records_survive_json() -> None:
    for record in (fit("squared_error"), SdCalibration(factor=1.3, floor=0.5)):
        assert parse(type(record), json.loads(json.dumps(to_dict(record)))) == record


def test_a_factor_brings_spreads_to_the_errors() -> None:
    rng = np.random.default_rng(0)
    sds = rng.uniform(1, 6, 4000)
    labels = rng.normal(55, 12, 4000)
    means = labels + 2.5 * sds * rng.normal(size=4000)
    found = fit_sd_calibration(labels, means, sds)
    assert found.factor == pytest.approx(2.5, rel=0.05)
    again = fit_sd_calibration(labels, means, found.apply(sds))
    assert again.factor == pytest.approx(1)

    def density(factor: float) -> float:
        return float((((labels - means) / (factor * sds)) ** 2 / 2 + np.log(factor)).mean())

    best = optimize.minimize_scalar(density, bounds=(0.1, 10), method="bounded").x
    assert found.factor == pytest.approx(best, rel=1e-4)


def test_a_floor_is_what_the_smallest_spread_counts_as() -> None:
    labels, means = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 1.0, 4.0, 3.0])
    found = fit_sd_calibration(labels, means, [0.0, 1.0, 2.0, 2.0], floor=1.0)
    np.testing.assert_allclose(
        found.apply([0.0, 0.5, 1.0, 2.0]),
        np.maximum(found.factor * np.array([1, 1, 1, 2]), 1.0),
    )
    assert found.factor == pytest.approx(np.sqrt((1 + 1 + 0.25 + 0.25) / 4))
    # Nor does scaling go below it.
    near = fit_sd_calibration(labels, labels + 0.1, [1.0, 1.0, 2.0, 2.0], floor=1.0)
    assert near.factor < 1
    assert near.apply([1.0, 0.2]).tolist() == [1.0, 1.0]


def test_what_cannot_be_calibrated_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 3 studies, there are 2"):
        fit_sd_calibration([1, 2], [1, 2], [1, 1])
    with pytest.raises(ValueError, match="set a floor"):
        fit_sd_calibration([1, 2, 3], [1, 3, 3], [1, 0, 1])
    with pytest.raises(ValueError, match="were learned from"):
        fit_sd_calibration([1, 2, 3], [1, 2, 3], [1, 1, 1])
