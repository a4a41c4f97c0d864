"""Gaussian processes on features: parity with two libraries, invariances, and honest spreads."""

from __future__ import annotations

import math
from typing import Any

import gpytorch
import numpy as np
import pytest
import torch
from safetensors.numpy import load, save
from scipy import stats
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Matern, RationalQuadratic
from sklearn.gaussian_process.kernels import WhiteKernel as White

from cardioray.models.feature_space import FeatureSpaceConfig
from cardioray.models.gaussian_process import (
    GaussianProcess,
    GaussianProcessConfig,
    predict_out_of_fold,
    score_candidate,
)
from cardioray.models.gaussian_process_fitting import log_likelihood, make_model
from cardioray.models.kernels import KERNELS, Hyperparameters

CHOICES = [(kernel, ard) for kernel in KERNELS for ard in (False, True)]
QUICK = GaussianProcessConfig(restarts=0, space=FeatureSpaceConfig(components=3))
SPARSE = GaussianProcessConfig(
    restarts=0, exact_rows=2, inducing=25, space=FeatureSpaceConfig(components=3)
)


def table(
    rows: int = 80, noise: float = 3.0, seed: int = 0, width: int = 12
) -> tuple[np.ndarray, np.ndarray]:
    """Features of three causes, and an ejection fraction that bends with the first."""
    rng = np.random.default_rng(seed)
    causes = rng.uniform(-2, 2, size=(rows, 3))
    mixing = np.random.default_rng(99).normal(size=(3, width))
    ef = 50 + 12 * np.sin(causes[:, 0]) + 3 * causes[:, 1] + noise * rng.normal(size=rows)
    return (causes @ mixing).astype(np.float32), ef


def of_sklearn(hyper: Hyperparameters, scales: Any) -> Any:
    """The same kernel with the same numbers."""
    base = {
        "rbf": lambda: RBF(scales),
        "matern32": lambda: Matern(scales, nu=1.5),
        "matern52": lambda: Matern(scales, nu=2.5),
        "rational_quadratic": lambda: RationalQuadratic(scales, alpha=hyper.mixture),
    }[hyper.kernel]()
    return ConstantKernel(hyper.variance) * base + White(hyper.noise)


@pytest.mark.parametrize(("kernel", "ard"), CHOICES)
def test_predictions_equal_those_of_scikit_learn(kernel: str, ard: bool) -> None:
    features, ef = table(40)
    settings = GaussianProcessConfig(kernel=kernel, ard=ard, restarts=0, space=QUICK.space)
    process = GaussianProcess.fit(features, ef, settings)
    assert len(process.hyper.length_scales) == (3 if ard else 1)
    # Scikit-learn's rational quadratic kernel has one length scale: inputs are divided before.
    scales = process.hyper.length_scales
    inputs, new = process.space.apply(features) / scales, process.space.apply(table(9, seed=1)[0])
    peer = GaussianProcessRegressor(of_sklearn(process.hyper, 1.0), optimizer=None)
    peer.fit(inputs, (ef - ef.mean()) / ef.std())
    mean, sd = peer.predict(new / scales, return_std=True)
    found_mean, found_sd = process.predict(table(9, seed=1)[0])
    np.testing.assert_allclose(found_mean, ef.mean() + ef.std() * mean, atol=1e-6)
    np.testing.assert_allclose(found_sd, ef.std() * sd, atol=1e-6)


@pytest.mark.parametrize("kernel", list(KERNELS))
def test_hyperparameters_are_as_likely_as_those_of_scikit_learn(kernel: str) -> None:
    features, ef = table(50)
    settings = GaussianProcessConfig(kernel=kernel, restarts=2, space=QUICK.space)
    process = GaussianProcess.fit(features, ef, settings)
    inputs, standard = process.space.apply(features), (ef - ef.mean()) / ef.std()
    ours = of_sklearn(process.hyper, float(process.hyper.length_scales[0]))
    peer = GaussianProcessRegressor(ours, n_restarts_optimizer=2, random_state=0)
    peer.fit(inputs, standard)
    reached = peer.log_marginal_likelihood(ours.theta)
    assert reached > peer.log_marginal_likelihood_value_ - 0.05
    model = make_model(kernel, False, inputs, standard, None)
    _give(model, process.hyper)
    assert float(log_likelihood(model)) == pytest.approx(reached, abs=1e-6)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("kernel", "ard"), CHOICES)
def test_predictions_equal_those_of_gpytorch(kernel: str, ard: bool, sparse: bool) -> None:
    features, ef = table(60)
    settings = GaussianProcessConfig(
        kernel=kernel,
        ard=ard,
        restarts=0,
        exact_rows=2 if sparse else 100,
        inducing=15,
        space=QUICK.space,
    )
    process = GaussianProcess.fit(features, ef, settings)
    assert process.exact is not sparse
    inputs, new = process.space.apply(features), process.space.apply(table(9, seed=1)[0])
    standard = (ef - ef.mean()) / ef.std()
    model = make_model(kernel, ard, inputs, standard, process.points if sparse else None)
    _give(model, process.hyper)
    model.eval()
    rows = torch.from_numpy(new)
    # The correction would give the training rows another posterior than Titsias'.
    with torch.no_grad(), gpytorch.settings.sgpr_diagonal_correction(False):
        answer = model.likelihood(model(rows))
        variance = answer.variance
        if sparse:  # of new rows GPyTorch then takes what the points explain, Titsias all
            kernel = model.covar_module
            variance = variance + kernel.base_kernel(rows, diag=True) - kernel(rows).diagonal()
    mean, sd = process.predict(table(9, seed=1)[0])
    np.testing.assert_allclose(mean, ef.mean() + ef.std() * answer.mean.numpy(), atol=1e-5)
    np.testing.assert_allclose(sd, ef.std() * variance.sqrt().numpy(), atol=1e-5)


def _give(model: Any, hyper: Hyperparameters) -> None:
    kernel = model.covar_module
    kernel = kernel.base_kernel if hasattr(kernel, "inducing_points") else kernel
    model.likelihood.noise = hyper.noise
    kernel.outputscale = hyper.variance
    kernel.base_kernel.lengthscale = torch.from_numpy(hyper.length_scales)
    if hyper.kernel == "rational_quadratic":
        kernel.base_kernel.alpha = hyper.mixture
    model.train()


def test_a_sparse_process_on_all_rows_is_the_exact_one() -> None:
    features, ef = table(50)
    new = table(20, seed=1)[0]
    exact = GaussianProcess.fit(features, ef, QUICK)
    errors = []
    for inducing in (3, 12, 50):
        settings = GaussianProcessConfig(
            restarts=0, exact_rows=2, inducing=inducing, space=QUICK.space
        )
        sparse = GaussianProcess.fit(features, ef, settings)
        assert len(sparse.points) == inducing
        pair = zip(sparse.predict(new), exact.predict(new), strict=True)
        errors.append([float(np.abs(ours - theirs).max()) for ours, theirs in pair])
    assert errors[0][0] > errors[1][0] > errors[2][0]
    assert max(errors[2]) < 1e-3
    # Few points know less: they are less certain, not falsely certain.
    few = GaussianProcess.fit(
        features,
        ef,
        GaussianProcessConfig(restarts=0, exact_rows=2, inducing=3, space=QUICK.space),
    )
    assert few.predict(features)[1].mean() > exact.predict(features)[1].mean()


@pytest.mark.parametrize("settings", [QUICK, SPARSE])
def test_neither_order_of_rows_nor_units_matter(settings: GaussianProcessConfig) -> None:
    features, ef = table(60)
    new = table(9, seed=1)[0]
    mean, sd = GaussianProcess.fit(features, ef, settings).predict(new)
    order = np.random.default_rng(0).permutation(len(ef))
    shuffled = GaussianProcess.fit(features[order], ef[order], settings).predict(new)
    np.testing.assert_allclose(shuffled[0], mean, atol=1e-3)
    np.testing.assert_allclose(shuffled[1], sd, atol=1e-3)
    other = GaussianProcess.fit(1000 * features + 7, ef / 100 + 1, settings)
    found = other.predict(1000 * new + 7)
    np.testing.assert_allclose(100 * (found[0] - 1), mean, atol=0.02)
    np.testing.assert_allclose(100 * found[1], sd, atol=0.02)


@pytest.mark.parametrize("settings", [QUICK, SPARSE])
def test_more_noise_and_more_distance_mean_a_larger_sd(settings: GaussianProcessConfig) -> None:
    new = table(30, seed=1)[0]
    spreads = []
    for noise in (1.0, 4.0, 10.0):
        process = GaussianProcess.fit(*table(80, noise=noise), settings)
        spreads.append(process.predict(new)[1].mean())
        assert 0.6 * noise < process.summary()["noise_sd"] < 1.6 * noise
    assert spreads[0] < spreads[1] < spreads[2]
    far = [process.predict(reach * new)[1].mean() for reach in (1, 3, 20)]
    assert far[0] < far[1] < far[2]


@pytest.mark.parametrize("settings", [QUICK, SPARSE])
def test_intervals_cover_what_they_say(settings: GaussianProcessConfig) -> None:
    process = GaussianProcess.fit(*table(150), settings)
    features, ef = table(2000, seed=5)
    mean, sd = process.predict(features)
    # Bounds of 99.9 % for 2,000 rows, and 4 points for what 150 rows leave unknown of the noise.
    for share in (0.5, 0.8, 0.95):
        inside = np.abs(ef - mean) <= stats.norm.ppf(0.5 + share / 2) * sd
        low, high = stats.binom.interval(0.999, len(ef), share)
        assert low / len(ef) - 0.04 < inside.mean() < high / len(ef) + 0.04
    assert np.sqrt(((ef - mean) ** 2).mean()) < 4.0 < ef.std() / 2


@pytest.mark.parametrize("settings", [QUICK, SPARSE])
def test_arrays_bring_the_same_process_back(settings: GaussianProcessConfig) -> None:
    features, ef = table(40)
    process = GaussianProcess.fit(features, ef, settings)
    again = GaussianProcess.from_arrays(load(save(process.to_arrays())))
    for ours, theirs in zip(again.predict(features), process.predict(features), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert again.summary() == process.summary()
    assert again.summary()["rows"] == 40
    one = process.predict(features[:1])
    np.testing.assert_allclose(
        [one[0][0], one[1][0]], [each[0] for each in process.predict(features)]
    )


def test_arrays_that_are_not_of_a_process_are_refused() -> None:
    arrays = GaussianProcess.fit(*table(20), QUICK).to_arrays()
    with pytest.raises(ValueError, match="missing or not known: points"):
        GaussianProcess.from_arrays({k: v for k, v in arrays.items() if k != "points"})
    with pytest.raises(ValueError, match=r"missing or not known: mean"):
        GaussianProcess.from_arrays({k: v for k, v in arrays.items() if k != "space.mean"})
    arrays["kernel"] = np.frombuffer(b"periodic", np.uint8)
    with pytest.raises(ValueError, match="Unknown kernel 'periodic'"):
        GaussianProcess.from_arrays(arrays)


def test_an_unknown_kernel_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'matern'.*matern32, matern52, rational_quadratic, rbf"):
        GaussianProcessConfig(kernel="matern")


def test_rows_that_lie_together_are_no_harm() -> None:
    features, ef = table(30)
    twice = np.concatenate([features, features]), np.concatenate([ef, ef + 1])
    for settings in (QUICK, SPARSE):
        mean, sd = GaussianProcess.fit(*twice, settings).predict(features)
        assert np.isfinite(mean).all()
        assert (sd > 0).all()


def test_what_cannot_be_fitted_is_refused() -> None:
    features, ef = table(20)
    with pytest.raises(ValueError, match="targets that differ"):
        GaussianProcess.fit(features, np.full(20, 50.0))
    with pytest.raises(ValueError, match=r"\(19,\) targets for 20 rows"):
        GaussianProcess.fit(features, ef[:-1])
    with pytest.raises(ValueError, match="Targets are not finite"):
        GaussianProcess.fit(features, np.where(ef > 50, np.nan, ef))


def test_a_patient_has_no_part_in_their_own_prediction() -> None:
    features, ef = table(40)
    patients = np.repeat([f"p{number}" for number in range(20)], 2)
    mean, sd = predict_out_of_fold(features, ef, patients, QUICK)
    changed = ef.copy()
    changed[6:8] += 30
    other, _ = predict_out_of_fold(features, changed, patients, QUICK)
    np.testing.assert_array_equal(other[6:8], mean[6:8])
    assert not np.allclose(other, mean)
    order = np.random.default_rng(0).permutation(40)
    again, _ = predict_out_of_fold(features[order], ef[order], patients[order], QUICK)
    np.testing.assert_allclose(again, mean[order], atol=1e-3)
    assert np.corrcoef(mean, ef)[0, 1] > 0.9
    assert (sd > 0).all()


def test_a_better_candidate_has_higher_scores() -> None:
    features, ef = table(60, width=6)
    patients = [f"p{number // 2}" for number in range(60)]
    good = score_candidate(features, ef, patients, QUICK, num_folds=3)
    one = GaussianProcessConfig(restarts=0, space=FeatureSpaceConfig(components=1))
    poor = score_candidate(features, ef, patients, one, num_folds=3)
    assert good.keys() == poor.keys() == {"negative_mean_squared_error", "mean_log_density"}
    assert all(good[name] > poor[name] for name in good)
    mean, sd = predict_out_of_fold(features, ef, patients, QUICK, num_folds=3)
    assert good["negative_mean_squared_error"] == pytest.approx(-((ef - mean) ** 2).mean())
    assert good["mean_log_density"] == pytest.approx(stats.norm.logpdf(ef, mean, sd).mean())
    with pytest.raises(ValueError, match="two patients"):
        score_candidate(features, ef, ["p"] * 60, QUICK)


def test_more_starts_are_never_less_likely() -> None:
    features, ef = table(30, noise=6.0)
    reached = []
    for restarts in (0, 4):
        settings = GaussianProcessConfig(
            kernel="rbf", restarts=restarts, ard=True, space=QUICK.space
        )
        process = GaussianProcess.fit(features, ef, settings)
        standard = (ef - ef.mean()) / ef.std()
        model = make_model("rbf", True, process.space.apply(features), standard, None)
        _give(model, process.hyper)
        reached.append(float(log_likelihood(model)))
    assert reached[1] >= reached[0] - 1e-9
    assert all(math.isfinite(value) for value in reached)
