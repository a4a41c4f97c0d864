"""Features on a common scale and in few dimensions: what is kept, and what must not matter."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from cardioray.config import parse
from cardioray.models.feature_space import FeatureSpace, FeatureSpaceConfig


def features(rows: int = 60, width: int = 20, rank: int = 6, seed: int = 0) -> np.ndarray:
    """A few causes behind many features of unequal scale, as pooled features are."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, width))
    mixed += 0.05 * rng.normal(size=mixed.shape)
    return (mixed * np.logspace(-3, 3, width) + 5).astype(np.float32)


@pytest.mark.parametrize("rows", [12, 200])
@pytest.mark.parametrize("whiten", [False, True])
def test_it_equals_scaler_and_pca_of_scikit_learn(rows: int, whiten: bool) -> None:
    table = features(rows)
    space = FeatureSpace.fit(table, FeatureSpaceConfig(components=5, whiten=whiten))
    scaler = StandardScaler().fit(table.astype(np.float64))
    pca = PCA(5, svd_solver="full", whiten=whiten).fit(scaler.transform(table.astype(np.float64)))
    new = features(7, seed=1)
    expected = pca.transform(scaler.transform(new.astype(np.float64)))
    np.testing.assert_allclose(np.abs(space.apply(new)), np.abs(expected), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(space.explained, pca.explained_variance_ratio_, rtol=1e-6)


@pytest.mark.parametrize("rows", [40, 200])
def test_a_share_takes_as_few_components_as_explain_it(rows: int) -> None:
    table = features(rows)
    for share in (0.3, 0.6, 0.9, 0.99):
        space = FeatureSpace.fit(table, FeatureSpaceConfig(components=share))
        assert space.explained.sum() >= share > space.explained[:-1].sum()
    assert space.dimensions <= 7


def test_a_count_beyond_what_the_rows_span_takes_all_they_span() -> None:
    space = FeatureSpace.fit(features(10), FeatureSpaceConfig(components=15))
    assert space.dimensions == 9
    assert space.apply(features(3)).shape == (3, 9)


def test_inputs_depend_neither_on_units_nor_on_the_order_of_rows() -> None:
    table, new = features(), features(9, seed=1)
    space = FeatureSpace.fit(table)
    scale = np.random.default_rng(0).uniform(0.1, 10, table.shape[1])
    other = FeatureSpace.fit(table * scale + 3)
    np.testing.assert_allclose(other.apply(new * scale + 3), space.apply(new), atol=1e-3)
    shuffled = FeatureSpace.fit(table[np.random.default_rng(1).permutation(len(table))])
    np.testing.assert_allclose(shuffled.apply(new), space.apply(new), atol=1e-9)


def test_whitened_components_have_variance_one() -> None:
    table = features(300)
    inputs = FeatureSpace.fit(table, FeatureSpaceConfig(components=6, whiten=True)).apply(table)
    np.testing.assert_allclose(np.cov(inputs.T), np.eye(6), atol=1e-6)


@pytest.mark.parametrize("components", [None, 4])
def test_a_feature_that_never_changed_counts_for_nothing(components: int | None) -> None:
    table = features()
    table[:, 3] = 0.1
    space = FeatureSpace.fit(table, FeatureSpaceConfig(components=components))
    other = table.copy()
    other[:, 3] = 1e6
    np.testing.assert_array_equal(space.apply(other), space.apply(table))


@pytest.mark.parametrize("components", [None, 4, 0.5])
def test_arrays_bring_the_same_space_back(components: float | None) -> None:
    space = FeatureSpace.fit(features(), FeatureSpaceConfig(components=components))
    again = FeatureSpace.from_arrays(space.to_arrays())
    np.testing.assert_array_equal(again.apply(features(5)), space.apply(features(5)))
    assert again.dimensions == space.dimensions


def test_arrays_that_are_not_of_a_space_are_refused() -> None:
    arrays = FeatureSpace.fit(features()).to_arrays()
    del arrays["mean"]
    with pytest.raises(ValueError, match="missing or not known: mean"):
        FeatureSpace.from_arrays(arrays)


def test_what_cannot_be_fitted_or_applied_is_refused() -> None:
    table = features()
    space = FeatureSpace.fit(table)
    with pytest.raises(ValueError, match="20"):
        space.apply(table[:, :5])
    broken = table.copy()
    broken[2, 1] = np.nan
    with pytest.raises(ValueError, match="row 3"):
        FeatureSpace.fit(broken)
    with pytest.raises(ValueError, match="two rows"):
        FeatureSpace.fit(table[:1])
    with pytest.raises(ValueError, match="No feature differs"):
        FeatureSpace.fit(np.ones((5, 3)))


def test_components_are_a_count_a_share_or_none() -> None:
    assert parse(FeatureSpaceConfig, {}, ["components=8"]).components == 8
    assert parse(FeatureSpaceConfig, {}, ["components=0.5"]).components == 0.5
    assert parse(FeatureSpaceConfig, {}, ["components=null"]).components is None
    for wrong in ("0", "-1", "1.5", "true"):
        with pytest.raises(ValueError, match="components"):
            parse(FeatureSpaceConfig, {}, [f"components={wrong}"])
    with pytest.raises(ValueError, match="whiten"):
        FeatureSpaceConfig(components=None, whiten=True)
