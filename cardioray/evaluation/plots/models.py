"""Models beside each other."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from cardioray.evaluation.plots.style import line_styles, new_figure


def latency_plot(table: pd.DataFrame, figure_name: str = "auc") -> Figure:
    """A figure with its interval against latency, one point a model.

    Args:
        table: columns `name`, `latency_ms`, and the figure with `_low` and `_high`; rows without
            a latency or a figure are left out. Colours go by row, as in a ROC plot of the rows.
        figure_name: name of the figure.
    """
    figure, axes = new_figure(8.2, 4.6)
    shown = table[["latency_ms", figure_name]].notna().all(axis=1)
    for (_, row), (colour, style), known in zip(
        table.iterrows(), line_styles(), shown, strict=False
    ):
        if not known:
            continue
        bounds = np.array([row[f"{figure_name}_low"], row[f"{figure_name}_high"]], dtype=float)
        errors = np.abs(np.nan_to_num(bounds - row[figure_name]))[:, None]
        axes.errorbar(
            [row["latency_ms"]],
            [row[figure_name]],
            errors,
            fmt="o" if style == "-" else "s",
            color=colour,
            elinewidth=0.8,
            capsize=2,
            label=f"{row['name']}: {row['latency_ms']:.3g} ms",
        )
    latency = table["latency_ms"][shown]
    if len(latency) and latency.max() > 4 * latency.min():
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(
        title=f"{figure_name.upper()} and latency ({shown.sum()} models, 95 % intervals)",
        xlabel="CPU latency of one picture, ms",
        ylabel=f"{figure_name.upper()} per study",
    )
    if len(latency):
        figure.legend(loc="outside right center", fontsize=8)
    return figure
