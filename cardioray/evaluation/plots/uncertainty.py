"""Predictive standard deviations: intervals and the truth, coverage, what referring buys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike

from cardioray.evaluation.plots.style import BLUE, GREY, RED, line_styles, new_figure
from cardioray.evaluation.uncertainty import CoverageCurve, RiskCoverageCurve

_REACH = 1.96


def interval_plot(
    labels: ArrayLike, values: ArrayLike, sds: ArrayLike, name: str, unit: str
) -> Figure:
    """Predicted against true values with bars of 1.96 predictive standard deviations either way.

    Args:
        labels: the truth, shape (studies,).
        values: predicted means, shape (studies,).
        sds: predictive standard deviations, shape (studies,).
        name: of the target.
        unit: of all three; "" for none.
    """
    truth, means, spreads = (np.asarray(each, dtype=float) for each in (labels, values, sds))
    inside = np.abs(truth - means) <= _REACH * spreads
    figure, axes = new_figure(6.0, 5.6)
    low, high = (means - _REACH * spreads).min(), (means + _REACH * spreads).max()
    ends = [min(truth.min(), low), max(truth.max(), high)]
    axes.plot(ends, ends, color=GREY, linestyle=":", linewidth=1)
    for rows, colour, words in ((inside, BLUE, "holds the truth"), (~inside, RED, "does not")):
        axes.errorbar(
            truth[rows],
            means[rows],
            _REACH * spreads[rows],
            fmt="o",
            markersize=3.5,
            color=colour,
            ecolor=colour,
            elinewidth=0.6,
            alpha=0.6,
            label=f"{words} ({int(rows.sum())})",
        )
    suffix = f", {unit}" if unit else ""
    axes.set(
        title=f"{name}: predicted ± 1.96 SD and true ({len(truth)} studies)",
        xlabel=f"True{suffix}",
        ylabel=f"Predicted{suffix}",
    )
    axes.legend(fontsize=8, loc="upper left")
    return figure


def coverage_plot(curves: Mapping[str, CoverageCurve]) -> Figure:
    """Observed against nominal coverage of central intervals.

    Below the diagonal predicted standard deviations are too small, above it too large. The band
    holds 95 % of what chance makes of true ones with the fewest studies that are shown.

    Args:
        curves: by name, at least one.
    """
    figure, axes = new_figure(5.8, 5.4)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="true")
    fewest = min(curve.n for curve in curves.values())
    nominal = np.linspace(0, 1, 101)
    reach = _REACH * np.sqrt(nominal * (1 - nominal) / fewest)
    axes.fill_between(
        nominal,
        np.clip(nominal - reach, 0, 1),
        np.clip(nominal + reach, 0, 1),
        color=GREY,
        alpha=0.2,
        linewidth=0,
        label=f"chance, {fewest} studies",
    )
    for (name, curve), (colour, style) in zip(curves.items(), line_styles(), strict=False):
        axes.plot(
            curve.nominal, curve.observed, style, color=colour, marker="o", markersize=3, label=name
        )
    axes.set(
        title=f"Coverage of predictive intervals ({_counted(c.n for c in curves.values())})",
        xlabel="Nominal coverage",
        ylabel="Share of studies inside",
        xlim=(0, 1),
        ylim=(-0.02, 1.02),
    )
    axes.legend(fontsize=8, loc="upper left")
    return figure


def risk_coverage_plot(curves: Mapping[str, RiskCoverageCurve], error: str) -> Figure:
    """Error of the studies that are kept against the share that is referred to a person.

    Args:
        curves: by name ("by SD", "oracle", "chance"), at least one.
        error: what the error is, for the axis ("MAE, %").
    """
    figure, axes = new_figure(6.4, 4.6)
    for (name, curve), (colour, style) in zip(curves.items(), line_styles(), strict=False):
        label = f"{name}: area {curve.area:.3g}"
        axes.plot(curve.referred, curve.risk, style, color=colour, linewidth=1.6, label=label)
    axes.set(
        title=f"Risk and coverage ({_counted(len(c.risk) for c in curves.values())})",
        xlabel="Share of studies referred, the most doubtful first",
        ylabel=f"{error} of the others",
        xlim=(0, 1),
    )
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    return figure


def _counted(numbers: Iterable[int]) -> str:
    counts = sorted(set(numbers))
    return f"{counts[0]} studies" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} studies"
