"""How well decided studies were decided: ROC, confusion, reliability, probabilities, thresholds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_auc_score, roc_curve

from cardioray.clinical.calibration import reliability_curve
from cardioray.evaluation.intervals import Interval, patient_bootstrap
from cardioray.evaluation.metrics import sensitivity_at
from cardioray.evaluation.plots.style import BLACK, BLUE, GREY, ORANGE, RED, line_styles, new_figure
from cardioray.evaluation.readers import DecisionCurve

Floats = NDArray[np.float64]

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


def roc_plot(models: Sequence[ScoredModel], *, zoom: bool = False, seed: int = 0) -> Figure:
    """ROC curves of one or many models; one alone gets a 95 % band resampled by patient.

    Args:
        models: at least one; a model whose labels are of one class is named in the legend only.
        zoom: show the upper left quarter.
        seed: of the band.
    """
    many = len(models) > 3
    figure, axes = new_figure(8.8 if many else 6.4, 5.2)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="chance")
    for model, (colour, style) in zip(models, line_styles(), strict=False):
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
    figure, axes = new_figure(5.6, 5.2)
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
    figure, axes = new_figure(6.4, 4.2)
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
    figure, axes = new_figure(6.4, 4.6)
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


def decision_plot(curve: DecisionCurve, positive: str) -> Figure:
    """Net benefit by threshold probability, beside acting on everybody and on nobody."""
    figure, axes = new_figure(6.4, 4.6)
    axes.plot(curve.thresholds, curve.model, color=BLUE, label="by the model")
    axes.plot(
        curve.thresholds, curve.everybody, color=RED, linestyle="--", label="acting on everybody"
    )
    axes.axhline(0, color=BLACK, linewidth=1, linestyle=":", label="acting on nobody")
    top = max(float(curve.model.max()), float(curve.everybody.max()), 0.01)
    axes.set(
        title="Decision curve",
        xlabel=f"Probability of {positive} from which one acts",
        ylabel="Net benefit a study",
        xlim=(0, 1),
        ylim=(-0.25 * top, 1.1 * top),
    )
    axes.legend(fontsize=8)
    return figure


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
