"""Numbers to be predicted, and what the features of a backbone know of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from cardioray.evaluation.plots.style import BLACK, BLUE, line_styles, new_figure

_SPLITS = ("train", "validation", "calibration", "test")


def value_histogram(
    values: ArrayLike,
    name: str,
    unit: str,
    *,
    splits: ArrayLike | None = None,
    cutoffs: Sequence[float] = (),
) -> Figure:
    """How a true number is distributed, by split where splits are given.

    Args:
        values: one a study, shape (studies,).
        name: of the target.
        unit: "" for none.
        splits: of each study, shape (studies,).
        cutoffs: marked by lines.
    """
    numbers = np.asarray(values, dtype=float)
    owners = np.asarray(["all"] * len(numbers) if splits is None else splits).astype(str)
    order = [split for split in (*_SPLITS, "all") if split in owners]
    figure, axes = new_figure(6.4, 4.2)
    bins = np.histogram_bin_edges(numbers, bins=min(30, max(5, len(numbers) // 5)))
    parts = [numbers[owners == split] for split in order]
    axes.hist(
        parts,
        bins=bins.tolist(),
        stacked=True,
        color=[colour for _, (colour, _) in zip(order, line_styles(), strict=False)],
        alpha=0.75,
        label=[f"{split} (n = {len(part)})" for split, part in zip(order, parts, strict=True)],
    )
    for cutoff in cutoffs:
        axes.axvline(cutoff, color=BLACK, linestyle="--", linewidth=1, label=f"cut-off {cutoff:g}")
    spread = numbers.std(ddof=1) if len(numbers) > 1 else np.nan
    axes.set(
        title=f"{name}: {numbers.mean():.3g} ± {spread:.2g} (mean ± SD, {len(numbers)} studies)",
        xlabel=f"{name}, {unit}" if unit else name,
        ylabel="Studies",
    )
    axes.legend(fontsize=8)
    return figure


def feature_map_plot(
    coordinates: ArrayLike, values: ArrayLike, name: str, unit: str, explained: Sequence[float]
) -> Figure:
    """The first two principal components of features, coloured by a true number.

    Args:
        coordinates: (studies, 2).
        values: shape (studies,).
        name: of the number.
        unit: "" for none.
        explained: share of the variance that each of the two explains.
    """
    places, numbers = np.asarray(coordinates, dtype=float), np.asarray(values, dtype=float)
    assert places.shape == (len(numbers), 2), places.shape
    figure, axes = new_figure(6.2, 4.8)
    drawn = axes.scatter(places[:, 0], places[:, 1], c=numbers, s=16, cmap="cividis", linewidths=0)
    figure.colorbar(drawn, ax=axes, label=f"{name}, {unit}" if unit else name)
    axes.set(
        title=f"Principal components of the features ({len(numbers)} studies)",
        xlabel=f"First component ({explained[0]:.0%} of the variance)",
        ylabel=f"Second component ({explained[1]:.0%})",
    )
    return figure


def feature_correlation_plot(correlations: ArrayLike, name: str) -> Figure:
    """How strongly single features go with a number.

    Args:
        correlations: of each feature, shape (D,); NaN for one that never changes, which is left
            out.
        name: of the number.
    """
    found = np.asarray(correlations, dtype=float)
    found = found[np.isfinite(found)]
    figure, axes = new_figure(6.4, 4.2)
    largest = float(np.abs(found).max(initial=0.0))
    reach = max(largest, 0.1)
    axes.hist(found, bins=np.linspace(-reach, reach, 41).tolist(), color=BLUE, alpha=0.75)
    axes.set(
        title=f"Correlation of {len(found)} features with {name}; largest ± {largest:.2f}",
        xlabel="Pearson correlation",
        ylabel="Features",
    )
    return figure
