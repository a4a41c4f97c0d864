"""Scoring of a predictions table: every figure with its interval, per study and per frame."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from cardioray import storage
from cardioray.evaluation import plots
from cardioray.evaluation.figures import (
    RAW,
    Figures,
    Resampling,
    binary_figures,
    conformal_figures,
    decide,
    regression_figures,
)
from cardioray.evaluation.intervals import Interval, patient_bootstrap
from cardioray.evaluation.metrics import auc_statistic
from cardioray.evaluation.operating_point import BinaryOperatingPoint, RegressionOperatingPoint
from cardioray.evaluation.out_of_fold import FittingSettings, OutOfFold, decide_out_of_fold
from cardioray.evaluation.predictions import (
    ONE_WINDOW,
    check_predictions,
    per_study,
    select_split,
)
from cardioray.targets import BinaryTarget, RegressionTarget

Floats = NDArray[np.float64]

# Below this many patients a percentile bootstrap is known to be too narrow.
_FEW_PATIENTS = 30
_AUC_BELOW = "auc_below_"
_TITLES = {
    "auc": "AUC",
    "auc_delong": "AUC, DeLong interval",
    "average_precision": "Average precision",
    "npv": "NPV",
    "f1": "F1",
    "brier": "Brier score",
    "ece": "Calibration error (ECE)",
    "mae": "MAE",
    "mae_of_mean": "MAE of always saying the mean",
    "rmse": "RMSE",
    "r2": "R2",
    "sd": "SD of errors",
    "limits_low": "Limit of agreement, low",
    "limits_high": "Limit of agreement, high",
    "pearson_r": "Pearson r",
    "icc": "ICC(2,1)",
    "coverage": "Truth in the conformal set",
    "coverage_positive": "  of positive studies",
    "coverage_negative": "  of negative studies",
    "uncertain": "Share called uncertain",
    "accuracy_certain": "Accuracy where certain",
    "width": "Width of the interval",
}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a predictions table shows about a model.

    Attributes:
        target: name of the target.
        kind: "binary" or "regression".
        split: split that was scored.
        patients: patients scored; `studies` and `frames` likewise.
        positive_studies: studies with label 1; None for a regression target.
        per_study: the headline figures, on mean scores of studies.
        per_frame: the same on single frames.
        one_window: as `per_study`, of cines each seen by its middle window alone; None for
            anything else.
        conformal: coverage of the conformal set or interval, per study, and what it costs.
        confidence: coverage aimed at by the intervals.
        num_resamples: patient resamples behind each interval.
        seed: of the resampling.
        notes: what a reader has to know about these figures.
    """

    target: str
    kind: str
    split: str
    patients: int
    studies: int
    frames: int
    positive_studies: int | None
    per_study: Figures
    per_frame: Figures
    one_window: Figures | None
    conformal: Mapping[str, Interval]
    confidence: float
    num_resamples: int
    seed: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The content of metrics.json; the names are kept from version to version."""
        return {
            "target": self.target,
            "kind": self.kind,
            "split": self.split,
            "patients": self.patients,
            "studies": self.studies,
            "frames": self.frames,
            "positive_studies": self.positive_studies,
            "per_study": self.per_study.to_dict(),
            "per_frame": self.per_frame.to_dict(),
            "one_window": None if self.one_window is None else self.one_window.to_dict(),
            "conformal": {name: value.to_dict() for name, value in self.conformal.items()},
            "interval": {
                "method": "patient bootstrap, percentile",
                "confidence": self.confidence,
                "num_resamples": self.num_resamples,
                "seed": self.seed,
            },
            "notes": list(self.notes),
        }


def evaluate(
    predictions: pd.DataFrame,
    target: BinaryTarget | RegressionTarget,
    operating_point: BinaryOperatingPoint | RegressionOperatingPoint,
    *,
    seed: int = 0,
    num_resamples: int = 2000,
    confidence: float = 0.95,
    split: str = "test",
) -> Evaluation:
    """Score one split of a predictions table.

    `auc` and `average_precision` rank by the model's own score; decisions, `brier` and `ece` use
    the calibrated probability. A study's score is the mean over its frames; single frames are
    judged by the calibration and threshold of studies.

    Args:
        predictions: see `check_predictions`; without a column `split` every row is scored.
        target: what the label means.
        operating_point: fitted on other patients (`fit_operating_point`).
        seed: of the patient bootstrap.
        num_resamples: of the patient bootstrap.
        confidence: of the intervals.
        split: split that is scored.

    Raises:
        ValueError: when the table is at fault, has no rows of the split, or the operating point
            belongs to another target.
    """
    if operating_point.target != target.name:
        raise ValueError(
            f"The operating point belongs to target {operating_point.target!r}, the predictions "
            f"are scored for {target.name!r}."
        )
    frames = select_split(check_predictions(predictions, target, default_split=split), split)
    frames, studies = decide(frames, operating_point), decide(per_study(frames), operating_point)
    notes = []
    conformal = operating_point.conformal
    if conformal.promises_nothing:
        notes.append(
            f"{conformal.n} calibration studies are too few for conformal answers at "
            f"{1 - conformal.alpha:.0%}: every answer is uncertain."
        )
    resampling = Resampling(num_resamples, seed, confidence)
    found = evaluate_decisions(frames, studies, target, resampling, split=split, notes=notes)
    if ONE_WINDOW not in studies:
        return found
    single = decide(studies.assign(score=studies[ONE_WINDOW]), operating_point)
    return replace(found, one_window=_figures(single, target, resampling))


def evaluate_out_of_fold(
    predictions: pd.DataFrame,
    target: BinaryTarget | RegressionTarget,
    fitting: FittingSettings,
    *,
    seed: int = 0,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> tuple[Evaluation, OutOfFold]:
    """Score the test rows of several folds, each decided by an operating point of other patients.

    Args:
        predictions: with columns `split` and `fold`; see `decide_out_of_fold`.
        target: what the label means.
        fitting: how operating points are fitted.
        seed: of the patient bootstrap; `num_resamples` and `confidence` likewise.
        num_resamples: see there.
        confidence: see there.

    Returns:
        The figures, and the decided rows that they were counted from.

    Raises:
        ValueError: when the table is at fault.
    """
    decided = decide_out_of_fold(predictions, target, fitting)
    found = evaluate_decisions(
        decided.frames,
        decided.studies,
        target,
        Resampling(num_resamples, seed, confidence),
        notes=[
            "Cross-validated: every patient is scored by a network that has not seen them, trained "
            "like the one in this bundle, which has seen all of them. Operating points: "
            f"{decided.thresholds_from}."
        ],
    )
    return found, decided


def evaluate_decisions(
    frames: pd.DataFrame,
    studies: pd.DataFrame,
    target: BinaryTarget | RegressionTarget,
    resampling: Resampling,
    *,
    split: str = "test",
    notes: list[str] | tuple[str, ...] = (),
) -> Evaluation:
    """Score tables in which each row is decided already (`decide`), by one model or by several.

    Args:
        frames: decided rows, one per frame.
        studies: decided rows, one per study.
        target: what the label means.
        resampling: how intervals are made.
        split: named in the result.
        notes: put before the notes that arise here.
    """
    binary = isinstance(target, BinaryTarget)
    study_figures = _figures(studies, target, resampling)
    frame_figures = _figures(frames, target, resampling)
    conformal = conformal_figures(studies, resampling, binary)
    patients = studies["patient_id"].nunique()
    return Evaluation(
        target=target.name,
        kind=target.kind,
        split=split,
        patients=patients,
        studies=len(studies),
        frames=len(frames),
        positive_studies=int(studies["label"].sum()) if binary else None,
        per_study=study_figures,
        per_frame=frame_figures,
        one_window=None,
        conformal=conformal,
        confidence=resampling.confidence,
        num_resamples=resampling.num_resamples,
        seed=resampling.seed,
        notes=(*notes, *_notes(patients, study_figures)),
    )


def _figures(
    table: pd.DataFrame, target: BinaryTarget | RegressionTarget, resampling: Resampling
) -> Figures:
    if isinstance(target, BinaryTarget):
        return binary_figures(table, resampling)
    return regression_figures(table, resampling, target.cutoffs)


def print_evaluation(evaluation: Evaluation, console: Console | None = None) -> None:
    """Print the figures as a table, per study and, where studies have several frames, per frame."""
    console = console or Console()
    several = evaluation.frames > evaluation.studies
    positive = evaluation.positive_studies
    counted = f"{evaluation.studies} studies" + (f" ({positive} positive)" if positive else "")
    table = Table(
        title=f"{evaluation.target}, {evaluation.split}: {evaluation.patients} patients, "
        f"{counted}, {evaluation.frames} frames",
        caption=f"{evaluation.confidence:.0%} intervals, {evaluation.num_resamples} resamples of "
        "patients. Not for clinical use.",
        min_width=76,
    )
    table.add_column("Figure")
    table.add_column("Per study", justify="right")
    beside: list[tuple[str, Figures]] = []
    if several:
        beside.append(("Per frame", evaluation.per_frame))
    if evaluation.one_window is not None:
        beside.append(("One window", evaluation.one_window))
    for title, _ in beside:
        table.add_column(title, justify="right")
    for name, interval in evaluation.per_study.values.items():
        others = [figures.values.get(name) for _, figures in beside]
        cells = [f"{other}" if other else "" for other in others]
        table.add_row(title_of(name), f"{interval}", *cells)
    table.add_section()
    for name, interval in evaluation.conformal.items():
        table.add_row(title_of(name), f"{interval}")
    console.print(table)
    for note in evaluation.notes:
        console.print(f"Note: {note}", markup=False)


def write_plots(
    predictions: pd.DataFrame,
    target: BinaryTarget | RegressionTarget,
    operating_point: BinaryOperatingPoint | RegressionOperatingPoint,
    folder: str,
    *,
    split: str = "test",
    seed: int = 0,
    decided: pd.DataFrame | None = None,
) -> list[str]:
    """Draw what `evaluate` counts, per study, as PNG files.

    Args:
        predictions: as in `evaluate`; all its splits are in the plot of class counts.
        target: what the label means.
        operating_point: as in `evaluate`.
        folder: local or s3:// folder, made where it is absent.
        split: split that is drawn.
        seed: of the band around the ROC curve.
        decided: the studies with what was decided of each, where that was not by this operating
            point.

    Returns:
        Paths of the files.

    Raises:
        ValueError: as `evaluate`.
    """
    everything = check_predictions(predictions, target, default_split=split)
    studies = decided
    if studies is None:
        studies = decide(per_study(select_split(everything, split)), operating_point)
    labels, scores = studies["label"].to_numpy(), studies["score"].to_numpy()
    if isinstance(target, RegressionTarget):
        figures = number_plots(studies, target)
    else:
        assert isinstance(operating_point, BinaryOperatingPoint)
        probability, threshold = studies["probability"].to_numpy(), operating_point.threshold
        auc = patient_bootstrap(
            studies, lambda weights: {"auc": auc_statistic(labels, scores, weights)}, seed=seed
        )["auc"]
        patients = studies["patient_id"].tolist()
        model = plots.ScoredModel(target.name, labels, scores, patients, auc)
        known = per_study(everything)
        figures = {
            "roc": plots.roc_plot([model], seed=seed),
            "roc_zoom": plots.roc_plot([model], zoom=True, seed=seed),
            "confusion": plots.confusion_plot(labels, studies["positive"], target.classes),
            "reliability": plots.reliability_plot(labels, scores, probability),
            "probabilities": plots.probability_histogram(
                labels, probability, threshold, target.classes
            ),
            "thresholds": plots.threshold_plot(labels, probability, threshold),
            "class_counts": plots.class_counts_plot(known["split"], known["label"], target.classes),
        }
    paths = []
    for name, figure in figures.items():
        paths.append(storage.join(folder, f"{name}.png"))
        storage.write_bytes(paths[-1], plots.png_bytes(figure))
    return paths


def number_plots(studies: pd.DataFrame, target: RegressionTarget) -> dict[str, Any]:
    """Plots of decided studies; where numbers are calibrated, of both."""
    labels, values = studies["label"].to_numpy(), studies["value"].to_numpy()
    raw = studies["score"].to_numpy()
    name, unit = target.name, target.unit
    figures = {
        "scatter": plots.scatter_plot(labels, values, name, unit),
        "bland_altman": plots.bland_altman_plot(labels, values, name, unit),
    }
    if target.cutoffs:
        figures["error_by_band"] = plots.error_by_band_plot(
            labels, values, target.cutoffs, name, unit
        )
    if not np.array_equal(values, raw):
        before = f"{name}, not calibrated"
        figures["scatter_raw"] = plots.scatter_plot(labels, raw, before, unit)
        figures["bland_altman_raw"] = plots.bland_altman_plot(labels, raw, before, unit)
    return figures


def title_of(name: str) -> str:
    """How a figure is named where people read it."""
    if name.startswith(RAW):
        return f"{title_of(name.removeprefix(RAW))}, not calibrated"
    if name.startswith(_AUC_BELOW):
        return f"AUC for below {name.removeprefix(_AUC_BELOW)}"
    return _TITLES.get(name, name.replace("_", " ").capitalize())


def _notes(patients: int, figures: Figures) -> list[str]:
    notes = []
    if patients < _FEW_PATIENTS:
        notes.append(
            f"{patients} patients were scored; with fewer than {_FEW_PATIENTS} the intervals are "
            "too narrow."
        )
    flat = [
        title_of(name)
        for name, interval in figures.values.items()
        if not math.isnan(interval.low) and interval.low == interval.high
    ]
    if flat:
        notes.append(
            f"No resample differs in {', '.join(flat)}: an interval without width shows how few "
            "the patients are, not how sure the figure is."
        )
    reasons: dict[str, list[str]] = {}
    for name, reason in figures.undefined.items():
        reasons.setdefault(reason, []).append(title_of(name))
    notes.extend(f"{', '.join(names)}: undefined, {reason}." for reason, names in reasons.items())
    return notes
