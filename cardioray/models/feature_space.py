"""Features of a network brought to a common scale and to few dimensions, kept as arrays.

Pooled features of a backbone are many, alike and of unequal scale. What learns from few patients by
distances, as a Gaussian process does, needs them standardised and reduced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cardioray.config import config

Floats = NDArray[np.float64]
Features = NDArray[np.floating[Any]]

# A feature whose SD is at most this share of its mean is constant but for float32's rounding.
_CONSTANT = 1e-7
# Directions with less than this share of the first one's variance hold rounding, no picture.
_EMPTY = 1e-12


@config
class FeatureSpaceConfig:
    """How features become the inputs of a head.

    Attributes:
        components: a whole number keeps so many principal components (or as many as the training
            rows span), a share between 0 and 1 as many as explain it of the variance, and None
            keeps all features, standardised.
        whiten: whether every component is brought to variance 1; without that, components along
            which pictures differ most count most.
    """

    components: Annotated[int, Field(strict=True)] | float | None = 0.95
    whiten: bool = False

    def __post_init__(self) -> None:
        wanted = self.components
        if isinstance(wanted, int) and wanted < 1:
            raise ValueError("components is a whole number above 0, a share below 1, or None.")
        if isinstance(wanted, float) and not 0 < wanted < 1:
            raise ValueError(
                "components is a share of the variance between 0 and 1, a whole number, or None."
            )
        if wanted is None and self.whiten:
            raise ValueError("whiten needs principal components; set components.")


@dataclass(frozen=True, eq=False)
class FeatureSpace:
    """Standardised features, turned to their principal components.

    Attributes:
        mean: of the training features, (D,).
        scale: their standard deviations, (D,); infinite for a feature that never changes, which
            then counts for nothing.
        components: orthonormal directions of the standardised features, (K, D); (0, D) where all
            features are kept.
        factors: what each component is multiplied by, (K,): 1, or 1 / SD where whitened.
        explained: share of the variance that each component explains, (K,).
    """

    mean: Floats
    scale: Floats
    components: Floats
    factors: Floats
    explained: Floats

    @classmethod
    def fit(cls, features: Features, settings: FeatureSpaceConfig | None = None) -> FeatureSpace:
        """Fit to features (N, D) of training rows, N at least 2.

        Raises:
            ValueError: when the features are no finite table, or no feature changes.
        """
        settings = settings or FeatureSpaceConfig()
        table = finite_table(features)
        if len(table) < 2:
            raise ValueError(f"Features are standardised on two rows or more, not {len(table)}.")
        mean, scale = table.mean(axis=0), table.std(axis=0)
        constant = scale <= _CONSTANT * np.abs(mean)
        if constant.all():
            raise ValueError(
                "No feature differs between the training rows: the backbone says the same of every "
                "picture. Use other weights."
            )
        scale = np.where(constant, np.inf, scale)
        if settings.components is None:
            return cls(mean, scale, np.empty((0, len(mean))), np.empty(0), np.empty(0))
        components, variances = _principal((table - mean) / scale)
        explained = variances / variances.sum()
        if isinstance(settings.components, int):
            count = min(settings.components, len(variances))
        else:
            count = 1 + int(np.searchsorted(np.cumsum(explained), settings.components))
            count = min(count, len(variances))
        factors = 1 / np.sqrt(variances) if settings.whiten else np.ones(len(variances))
        return cls(mean, scale, components[:count], factors[:count], explained[:count])

    @property
    def width(self) -> int:
        """Number of features, D."""
        return len(self.mean)

    @property
    def dimensions(self) -> int:
        """Number of inputs that features become, K."""
        return len(self.components) or self.width

    def apply(self, features: Features) -> Floats:
        """Inputs (N, K) for features (N, D).

        Raises:
            ValueError: when the features are no finite table of D columns.
        """
        table = finite_table(features)
        if table.shape[1] != self.width:
            raise ValueError(
                f"There are {table.shape[1]} features a row, the head was fitted to {self.width}; "
                "compute them by the same backbone."
            )
        standard = (table - self.mean) / self.scale
        if not len(self.components):
            return standard
        return np.asarray(standard @ self.components.T * self.factors)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The space as named arrays, for a safetensors file."""
        return {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> FeatureSpace:
        """The space that `to_arrays` wrote.

        Raises:
            ValueError: when an array is missing or is not known.
        """
        check_names(arrays, _ARRAYS, "a space of features")
        return cls(**{name: np.asarray(arrays[name], np.float64) for name in _ARRAYS})


_ARRAYS = ("mean", "scale", "components", "factors", "explained")


def finite_table(features: Features) -> Floats:
    """Features as (N, D) float64.

    Raises:
        ValueError: when they are of another shape or a value is not finite.
    """
    table = np.asarray(features, np.float64)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"Features are a table of rows and columns, given {table.shape}.")
    if not np.isfinite(table).all():
        row = int(np.flatnonzero(~np.isfinite(table).all(axis=1))[0])
        raise ValueError(f"Features are not finite, first in row {row + 1}.")
    return table


def canonical_order(inputs: Floats, targets: Floats) -> NDArray[np.intp]:
    """An order of rows that depends on what they hold, not on the order they come in.

    Seeded draws over rows in this order give the same head for the same rows.

    Args:
        inputs: (N, K).
        targets: (N,).
    """
    return np.lexsort((inputs.sum(axis=1), targets))


def check_names(arrays: Mapping[str, Any], wanted: Iterable[str], what: str) -> None:
    """Refuse arrays that are not exactly the wanted ones.

    Raises:
        ValueError: names what is missing or not known.
    """
    wrong = sorted(set(wanted) ^ set(arrays))
    if wrong:
        raise ValueError(
            f"These are not the arrays of {what} of this version; missing or not known: "
            f"{', '.join(wrong)}."
        )


def below(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    """The arrays whose names begin with a prefix, without it."""
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _principal(table: Floats) -> tuple[Floats, Floats]:
    """All principal directions (R, D) of a centred table that hold variance, and it, (R,)."""
    from sklearn.decomposition import PCA  # answers need no sklearn

    rows, columns = table.shape
    # With many rows the eigenvectors of the (D, D) covariance cost a fraction of the table's own.
    solver = "covariance_eigh" if rows > columns else "full"
    pca = PCA(min(rows - 1, columns), svd_solver=solver).fit(table)
    variances = pca.explained_variance_
    kept = variances > _EMPTY * variances[0]
    return pca.components_[kept], variances[kept]
