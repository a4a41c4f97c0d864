"""Predicted numbers against true ones."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from cardioray.evaluation.plots.style import BLUE, GREY, RED, new_figure


def scatter_plot(labels: ArrayLike, predictions: ArrayLike, name: str, unit: str) -> Figure:
    """Predicted against true values of the studies, with the line of identity."""
    truth, values = np.asarray(labels, dtype=float), np.asarray(predictions, dtype=float)
    figure, axes = new_figure(5.4, 5.2)
    ends = [min(truth.min(), values.min()), max(truth.max(), values.max())]
    axes.plot(ends, ends, color=GREY, linestyle=":", linewidth=1)
    axes.set_aspect("equal")
    axes.scatter(truth, values, s=14, color=BLUE, alpha=0.6, linewidths=0)
    suffix = f", {unit}" if unit else ""
    axes.set(
        title=f"{name}: predicted and true ({len(truth)} studies)",
        xlabel=f"True{suffix}",
        ylabel=f"Predicted{suffix}",
    )
    return figure


def bland_altman_plot(labels: ArrayLike, predictions: ArrayLike, name: str, unit: str) -> Figure:
    """Error against the mean of prediction and truth, with bias and limits of agreement."""
    truth, values = np.asarray(labels, dtype=float), np.asarray(predictions, dtype=float)
    errors, middle = values - truth, (values + truth) / 2
    bias, reach = errors.mean(), 1.96 * errors.std(ddof=1) if len(errors) > 1 else np.nan
    figure, axes = new_figure(6.4, 4.6)
    axes.scatter(middle, errors, s=14, color=BLUE, alpha=0.6, linewidths=0)
    axes.axhline(bias, color=RED, label=f"bias {bias:+.3g}")
    for line in (bias - reach, bias + reach):
        axes.axhline(line, color=RED, linestyle="--", label=f"limit of agreement {line:+.3g}")
    suffix = f", {unit}" if unit else ""
    axes.set(
        title=f"{name}: Bland-Altman ({len(truth)} studies)",
        xlabel=f"Mean of predicted and true{suffix}",
        ylabel=f"Predicted - true{suffix}",
    )
    axes.legend(fontsize=8)
    return figure
