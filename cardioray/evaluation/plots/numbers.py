"""Predicted numbers against true ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from cardioray.evaluation.intervals import Interval
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
    figure.legend(fontsize=8, loc="outside lower center", ncols=3)
    return figure


def error_by_band_plot(
    labels: ArrayLike, predictions: ArrayLike, cutoffs: Sequence[float], name: str, unit: str
) -> Figure:
    """Errors of the studies between cut-offs of the true value, with their means and numbers.

    Networks trained on squared errors pull rare values towards the mean: what an overall mean of
    errors hides shows here.
    """
    truth, values = np.asarray(labels, dtype=float), np.asarray(predictions, dtype=float)
    band = np.digitize(truth, cutoffs)
    figure, axes = new_figure(6.4, 4.4)
    axes.axhline(0, color=GREY, linestyle=":", linewidth=1)
    ticks = []
    for number in range(len(cutoffs) + 1):
        errors = (values - truth)[band == number]
        low = f"{cutoffs[number - 1]:g}" if number else ""
        high = f"{cutoffs[number]:g}" if number < len(cutoffs) else ""
        words = f"{low} to {high}" if low and high else f"below {high}" if high else f"from {low}"
        mae = f"MAE {np.abs(errors).mean():.2g}" if len(errors) else "none"
        ticks.append(f"{words}\n{len(errors)} studies\n{mae}")
        spread = np.random.default_rng(number).uniform(-0.18, 0.18, len(errors))
        axes.scatter(number + spread, errors, s=12, color=BLUE, alpha=0.5, linewidths=0)
        if len(errors):
            axes.hlines(errors.mean(), number - 0.3, number + 0.3, color=RED)
    axes.set_xticks(range(len(ticks)), ticks, fontsize=8)
    axes.set_xlim(-0.5, len(ticks) - 0.5)
    suffix = f", {unit}" if unit else ""
    axes.set(
        title=f"{name}: errors by the true value; lines are means",
        ylabel=f"Predicted - true{suffix}",
    )
    return figure


def noise_plot(shares: Sequence[float], figures: Sequence[Interval], title: str) -> Figure:
    """A figure with its intervals against the share of pixels that were made black."""
    figure, axes = new_figure(6.0, 4.2)
    middle = np.array([each.value for each in figures])
    ends = np.array([[each.low, each.high] for each in figures]).T
    # Percentile intervals need not hold the value itself.
    reach = np.maximum(np.array([middle - ends[0], ends[1] - middle]), 0)
    axes.errorbar(shares, middle, yerr=reach, color=BLUE, marker="o", markersize=4, capsize=3)
    axes.set(title=title, xlabel="Share of pixels made black", ylabel=title.partition(" ")[0])
    return figure
