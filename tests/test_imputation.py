"""Missing numbers of a chart: as scikit-learn fills them in, and as common as they are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cardioray.models.imputation import ROUNDS, Imputer, fit_imputation

FLAGS = np.array([False, True, True, True])


def chart(rows: int, missing: float, seed: int) -> NDArray[np.float64]:
    """Age and three flags that become likelier with it, with gaps."""
    rng = np.random.default_rng(seed)
    age = rng.normal(0.7, 0.14, rows)
    table = np.column_stack(
        [age, *(rng.random((3, rows)) < 1 / (1 + np.exp(-6 * (age - 0.65))))]
    ).astype(float)
    table[rng.random(table.shape) < missing] = np.nan
    return table


def fitted(table: NDArray[np.float64]) -> Imputer:
    filler = Imputer(table.shape[1])
    filler.load(fit_imputation(table, FLAGS, seed=0))
    return filler


def test_numbers_are_those_of_scikit_learn() -> None:
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    table, other = chart(300, 0.15, seed=1), chart(60, 0.3, seed=2)
    peer = IterativeImputer(
        max_iter=ROUNDS,
        tol=0,
        min_value=np.nanmin(table, axis=0),
        max_value=np.nanmax(table, axis=0),
        random_state=0,
    ).fit(table)
    found = fitted(table)
    found.is_flag.zero_()
    ours = found(torch.tensor(other, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(ours, peer.transform(other), atol=2e-4)


def test_what_is_known_stays_and_flags_are_filled_in_as_often_as_they_are_true() -> None:
    table, other = chart(600, 0.1, seed=3), chart(600, 0.5, seed=4)
    filled = fitted(table)(torch.tensor(other, dtype=torch.float32)).numpy()
    known = np.isfinite(other)
    np.testing.assert_allclose(filled[known], other[known], rtol=1e-6)
    assert np.isfinite(filled).all()
    assert set(np.unique(filled[:, 1:])) <= {0.0, 1.0}
    for flag in (1, 2, 3):
        guessed = filled[~known[:, flag], flag].mean()
        assert guessed == pytest.approx(np.nanmean(table[:, flag]), abs=0.12)


def test_a_chart_of_which_nothing_is_known_is_filled_in() -> None:
    filled = fitted(chart(300, 0.1, seed=5))(torch.full((2, 4), torch.nan))
    assert torch.isfinite(filled).all()
    assert 0.4 < float(filled[0, 0]) < 1.0


def test_it_travels_with_the_weights_of_its_network() -> None:
    table = chart(200, 0.2, seed=6)
    found, other = fitted(table), Imputer(4)
    other.load_state_dict(found.state_dict())
    rows = torch.tensor(chart(20, 0.4, seed=7), dtype=torch.float32)
    torch.testing.assert_close(other(rows), found(rows))


def test_a_feature_that_nobody_has_is_named() -> None:
    table = chart(50, 0.0, seed=8)
    table[:, 2] = np.nan
    with pytest.raises(ValueError, match=r"\[2\] are known of no training patient"):
        fit_imputation(table, FLAGS, seed=0)
