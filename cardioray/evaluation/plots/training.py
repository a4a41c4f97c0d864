"""What a model was trained on, and how its training went."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from cardioray.evaluation.plots.style import BLUE, GREY, ORANGE, RED, new_figure


def class_counts_plot(splits: ArrayLike, labels: ArrayLike, classes: tuple[str, str]) -> Figure:
    """Studies of each class in each split."""
    table = pd.crosstab(np.asarray(splits), np.asarray(labels).astype(int))
    order = [name for name in ("train", "validation", "calibration", "test") if name in table.index]
    table = table.reindex(index=order, columns=[0, 1], fill_value=0)
    figure, axes = new_figure(6.4, 4.0)
    places = np.arange(len(order))
    for label, colour, hatch in ((0, BLUE, ""), (1, RED, "//")):
        bars = axes.bar(
            places + 0.4 * label - 0.2,
            table[label],
            width=0.38,
            color=colour,
            alpha=0.75,
            edgecolor="white",
            hatch=hatch,
            label=classes[label],
        )
        axes.bar_label(bars, fontsize=9)
    axes.set_xticks(places, order)
    axes.set(title=f"Studies by split and class (n = {int(table.sum().sum())})", ylabel="Studies")
    axes.margins(y=0.15)
    axes.legend(fontsize=8)
    return figure


def learning_curves(log: pd.DataFrame, metric: str | None = None) -> Figure:
    """Loss, and a validation figure where the log has one, over the epochs of a training.

    Args:
        log: one row an epoch: `epoch`, `train_loss`, `val_loss`, further `val_*` figures (with
            `train_*` beside them where known) and `stage`, whose change is marked.
        metric: column of the second panel; by default the first `val_*` that is no loss.

    Raises:
        ValueError: when `epoch` or the metric asked for is no column.
    """
    for name in ("epoch", *([metric] if metric else [])):
        if name not in log:
            raise ValueError(f"The training log has no column {name!r}: {', '.join(log.columns)}.")
    if metric is None:
        names = [str(name) for name in log.columns]
        metric = next((c for c in names if c.startswith("val_") and c != "val_loss"), None)
    panels = [("loss", ("train_loss", "val_loss"))]
    if metric:
        panels.append((metric.removeprefix("val_"), (metric.replace("val_", "train_", 1), metric)))
    figure = Figure(figsize=(4.6 * len(panels), 3.8), dpi=100, layout="constrained")
    for axes, (name, columns) in zip(
        np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True
    ):
        for column, colour, style in zip(columns, (ORANGE, BLUE), ("--", "-"), strict=True):
            if column in log:
                rows = log[["epoch", column]].dropna()
                part = "training" if column.startswith("train_") else "validation"
                axes.plot(rows["epoch"], rows[column], style, color=colour, marker=".", label=part)
        for number, epoch in enumerate(_stage_changes(log)):
            once = "next stage" if number == 0 else None
            axes.axvline(epoch, color=GREY, linestyle=":", label=once)
        title = name.upper() if len(name) == 3 else name.capitalize()
        epochs = f"{len(log)} epoch{'s' if len(log) > 1 else ''}"
        axes.set(title=f"{title} ({epochs})", xlabel="Epoch", ylabel=title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    return figure


def _stage_changes(log: pd.DataFrame) -> list[float]:
    if "stage" not in log:
        return []
    changed = log["stage"].ne(log["stage"].shift())
    return [float(epoch) - 0.5 for epoch in log["epoch"][changed].iloc[1:]]
