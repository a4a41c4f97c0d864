"""Plots of an evaluation and of a training. Each function returns a figure; nothing is global.

Colours are those of Okabe and Ito, which people with colour-vision deficiency can tell apart
(M. Okabe, K. Ito, "Color Universal Design", 2008, https://jfly.uni-koeln.de/color/).
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score, roc_curve

from cardioray.clinical.calibration import reliability_curve
from cardioray.evaluation.intervals import Interval, patient_bootstrap
from cardioray.evaluation.metrics import sensitivity_at

Floats = NDArray[np.float64]

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, BLACK, GREY = "#56B4E9", "#CC79A7", "#000000", "#999999"
_CYCLE = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY, BLACK)
_Z_95 = 1.959964


@dataclass(frozen=True)
class ScoredModel:
    """A model's scores on studies, for a ROC plot.

    Attributes:
        name: as the legend says it.
        labels: 0 or 1, shape (studies,).
        scores: shape (studies,).
        patient_ids: shape (studies,).
        auc: with its interval, for the legend.
    """

    name: str
    labels: Floats
    scores: Floats
    patient_ids: Sequence[str]
    auc: Interval | None = None


def png_bytes(figure: Figure, limit_bytes: int = 100_000) -> bytes:
    """A figure as a PNG with a palette: of 128 colours, or of fewer where noise would fill it."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    # Median cut would spend the palette on grey pictures and lose the colours of their frames.
    method = Image.Quantize.MAXCOVERAGE
    for colours in (128, 64, 32):
        stream = io.BytesIO()
        small = picture.quantize(colours, method, dither=Image.Dither.NONE)
        small.save(stream, "PNG", optimize=True)
        if stream.tell() <= limit_bytes:
            break
    return stream.getvalue()


def roc_plot(models: Sequence[ScoredModel], *, zoom: bool = False, seed: int = 0) -> Figure:
    """ROC curves of one or many models; one alone gets a 95 % band resampled by patient.

    Args:
        models: at least one; a model whose labels are of one class is named in the legend only.
        zoom: show the upper left quarter.
        seed: of the band.
    """
    many = len(models) > 3
    figure, axes = _figure(8.8 if many else 6.4, 5.2)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="chance")
    for model, (colour, style) in zip(models, _line_styles(), strict=False):
        if len(np.unique(model.labels)) < 2:
            axes.plot([], [], color=colour, linestyle=style, label=f"{model.name}: one class only")
            continue
        fpr, tpr, _ = roc_curve(model.labels, model.scores, drop_intermediate=False)
        axes.plot(fpr, tpr, color=colour, linestyle=style, linewidth=1.6, label=_auc_label(model))
        if len(models) == 1:
            _add_band(axes, model, colour, seed)
    first = models[0]
    counted = f"{len(first.labels)} studies, {int(first.labels.sum())} positive"
    if len(models) > 1:
        counted = f"{len(models)} models, up to {max(len(m.labels) for m in models)} studies"
    limits = ((-0.01, 0.5), (0.5, 1.01)) if zoom else ((-0.01, 1.01), (-0.01, 1.01))
    axes.set(
        title=f"ROC{', zoomed' if zoom else ''} ({counted})",
        xlabel="1 - specificity",
        ylabel="Sensitivity",
        xlim=limits[0],
        ylim=limits[1],
    )
    if many:
        figure.legend(loc="outside right center", fontsize=7.5)
    else:
        axes.legend(loc="lower right", fontsize=8)
    return figure


def confusion_plot(labels: ArrayLike, decisions: ArrayLike, classes: tuple[str, str]) -> Figure:
    """Confusion matrix in counts and, beside it, in shares of each true class."""
    truth, called = np.asarray(labels).astype(int), np.asarray(decisions).astype(int)
    counts = np.zeros((2, 2))
    np.add.at(counts, (truth, called), 1)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    figure = Figure(figsize=(8.4, 4.0), dpi=100, layout="constrained")
    for axes, values, form, title in zip(
        figure.subplots(1, 2),
        (counts, shares),
        ("{:.0f}", "{:.1%}"),
        (f"Studies (n = {len(truth)})", "Share of each true class"),
        strict=True,
    ):
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for row, column in itertools.product(range(2), range(2)):
            colour = "white" if shares[row, column] > 0.5 else BLACK
            text = form.format(values[row, column])
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=14)
        axes.set(title=title, xlabel="Predicted", ylabel="True")
        axes.set_xticks([0, 1], classes)
        axes.set_yticks([0, 1], classes, rotation=90, va="center")
    return figure


def reliability_plot(labels: ArrayLike, scores: ArrayLike, probabilities: ArrayLike) -> Figure:
    """Observed against predicted share of positives, before and after calibration.

    Bars are 95 % Wilson intervals of bins with equal numbers of studies.
    """
    truth = np.asarray(labels, dtype=float)
    figure, axes = _figure(5.6, 5.2)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="perfect")
    for values, colour, name, marker in (
        (scores, ORANGE, "model's score", "s"),
        (probabilities, BLUE, "calibrated", "o"),
    ):
        curve = reliability_curve(truth, values, num_bins=max(2, min(10, len(truth) // 10)))
        low, high = _wilson(curve.observed, curve.counts)
        errors = np.stack([curve.observed - low, high - curve.observed]).clip(0)
        axes.errorbar(
            curve.predicted,
            curve.observed,
            errors,
            color=colour,
            marker=marker,
            markersize=5,
            linewidth=1.4,
            elinewidth=0.8,
            capsize=2,
            label=name,
        )
    axes.set(
        title=f"Reliability ({len(truth)} studies, {int(truth.sum())} positive)",
        xlabel="Predicted probability (mean of bin)",
        ylabel="Observed share of positives",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
    )
    axes.legend(loc="upper left", fontsize=8)
    return figure


def probability_histogram(
    labels: ArrayLike, probabilities: ArrayLike, threshold: float, classes: tuple[str, str]
) -> Figure:
    """Calibrated probabilities of the studies of each class, with the threshold."""
    truth, values = np.asarray(labels), np.asarray(probabilities, dtype=float)
    figure, axes = _figure(6.4, 4.2)
    for label, colour, hatch in ((0, BLUE, ""), (1, RED, "//")):
        rows = values[truth == label]
        axes.hist(
            rows,
            bins=np.linspace(0, 1, 21).tolist(),
            color=colour,
            alpha=0.55,
            edgecolor=colour,
            hatch=hatch,
            label=f"true {classes[label]} (n = {len(rows)})",
        )
    axes.axvline(threshold, color=BLACK, linestyle="--", label=f"threshold {threshold:.2f}")
    axes.set(
        title=f"Probabilities by true class ({len(truth)} studies)",
        xlabel=f"Calibrated probability of {classes[1]}",
        ylabel="Studies",
        xlim=(0, 1),
    )
    axes.legend(fontsize=8)
    return figure


def threshold_plot(labels: ArrayLike, probabilities: ArrayLike, threshold: float) -> Figure:
    """Sensitivity and specificity against the threshold, with 95 % Wilson bands."""
    truth, values = np.asarray(labels) == 1, np.asarray(probabilities, dtype=float)
    cuts = np.linspace(0, 1, 201)
    figure, axes = _figure(6.4, 4.6)
    for name, rows, colour, style in (
        ("sensitivity", truth, RED, "-"),
        ("specificity", ~truth, BLUE, "--"),
    ):
        ranked = np.sort(values[rows])
        if not len(ranked):
            continue
        below = np.searchsorted(ranked, cuts) / len(ranked)
        share = 1 - below if name == "sensitivity" else below
        low, high = _wilson(share, np.full(len(cuts), len(ranked)))
        axes.plot(cuts, share, color=colour, linestyle=style, label=f"{name} (n = {len(ranked)})")
        axes.fill_between(cuts, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.axvline(threshold, color=BLACK, linewidth=1, linestyle=":", label=f"used: {threshold:.2f}")
    axes.set(
        title=f"Sensitivity and specificity by threshold ({len(truth)} studies)",
        xlabel="Threshold on the calibrated probability",
        ylabel="Share",
        xlim=(0, 1),
        ylim=(-0.02, 1.02),
    )
    figure.legend(fontsize=8, loc="outside lower center", ncols=3)
    return figure


def class_counts_plot(splits: ArrayLike, labels: ArrayLike, classes: tuple[str, str]) -> Figure:
    """Studies of each class in each split."""
    table = pd.crosstab(np.asarray(splits), np.asarray(labels).astype(int))
    order = [name for name in ("train", "validation", "calibration", "test") if name in table.index]
    table = table.reindex(index=order, columns=[0, 1], fill_value=0)
    figure, axes = _figure(6.4, 4.0)
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


def latency_plot(table: pd.DataFrame, figure_name: str = "auc") -> Figure:
    """A figure with its interval against latency, one point a model.

    Args:
        table: columns `name`, `latency_ms`, and the figure with `_low` and `_high`; rows without
            a latency or a figure are left out. Colours go by row, as in a ROC plot of the rows.
        figure_name: name of the figure.
    """
    figure, axes = _figure(8.2, 4.6)
    shown = table[["latency_ms", figure_name]].notna().all(axis=1)
    for (_, row), (colour, style), known in zip(
        table.iterrows(), _line_styles(), shown, strict=False
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


def scatter_plot(labels: ArrayLike, predictions: ArrayLike, name: str, unit: str) -> Figure:
    """Predicted against true values of the studies, with the line of identity."""
    truth, values = np.asarray(labels, dtype=float), np.asarray(predictions, dtype=float)
    figure, axes = _figure(5.4, 5.2)
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
    figure, axes = _figure(6.4, 4.6)
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
        axes.set(title=f"{title} ({len(log)} epochs)", xlabel="Epoch", ylabel=title)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    return figure


def prediction_grid(
    images: Sequence[NDArray[Any]],
    labels: ArrayLike,
    probabilities: ArrayLike,
    threshold: float,
    classes: tuple[str, str],
    *,
    limit: int = 25,
) -> Figure:
    """Pictures with what was predicted: green and "right", or red and "wrong".

    Args:
        images: uint8 or floats in [0, 1], shape (H, W) or (H, W, 3).
        labels: 0 or 1, one an image.
        probabilities: calibrated, of class 1.
        threshold: probability from which an image is called positive.
        classes: names of class 0 and 1.
        limit: images shown at most.
    """
    truth, values = np.asarray(labels).astype(int), np.asarray(probabilities, dtype=float)
    shown = min(len(images), limit)
    columns = max(1, min(5, shown))
    rows = max(1, -(-shown // columns))
    figure = Figure(figsize=(1.75 * columns, 2.05 * rows + 0.4), dpi=80, layout="constrained")
    grid = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes in grid[shown:]:
        axes.set_axis_off()
    for axes, image, label, value in zip(grid, images[:shown], truth, values, strict=False):
        called = int(value >= threshold)
        colour = GREEN if called == label else RED
        top = 255 if np.asarray(image).dtype == np.uint8 else 1
        axes.imshow(image, cmap="gray", vmin=0, vmax=top)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(color=colour, linewidth=2.5)
        verdict = "right" if called == label else f"wrong, is {classes[label]}"
        text = f"{classes[called]} ({value:.2f})\n{verdict}"
        axes.set_title(text, fontsize=7, color=colour)
    figure.suptitle(f"Predictions ({shown} of {len(images)} pictures)", fontsize=9)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    return figure, axes


def _line_styles() -> Iterator[tuple[str, str]]:
    for style in itertools.cycle(("-", "--", "-.", ":")):
        for colour in _CYCLE:
            yield colour, style


def _auc_label(model: ScoredModel) -> str:
    if model.auc is None:
        return f"{model.name}: AUC {roc_auc_score(model.labels, model.scores):.3f}"
    return f"{model.name}: AUC {model.auc}"


def _add_band(axes: Any, model: ScoredModel, colour: str, seed: int) -> None:
    places = np.linspace(0, 1, 101)

    def statistic(weights: Floats) -> dict[str, Floats]:
        heights = sensitivity_at(model.labels, model.scores, weights, places)
        return {f"{place:.2f}": heights[:, i] for i, place in enumerate(places)}

    table = pd.DataFrame({"patient_id": list(model.patient_ids)})
    intervals = patient_bootstrap(table, statistic, num_resamples=500, seed=seed).values()
    low, high = [i.low for i in intervals], [i.high for i in intervals]
    axes.fill_between(places, low, high, color=colour, alpha=0.18, linewidth=0, label="95 % band")


def _wilson(shares: Floats, counts: ArrayLike) -> tuple[Floats, Floats]:
    """95 % interval of a share (E. B. Wilson, J Am Stat Assoc 22:209-212, 1927)."""
    n = np.asarray(counts, dtype=float)
    centre = (shares + _Z_95**2 / (2 * n)) / (1 + _Z_95**2 / n)
    reach = np.sqrt(shares * (1 - shares) / n + _Z_95**2 / (4 * n**2))
    reach = reach * _Z_95 / (1 + _Z_95**2 / n)
    return centre - reach, centre + reach


def _stage_changes(log: pd.DataFrame) -> list[float]:
    if "stage" not in log:
        return []
    changed = log["stage"].ne(log["stage"].shift())
    return [float(epoch) - 0.5 for epoch in log["epoch"][changed].iloc[1:]]
