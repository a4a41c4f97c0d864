"""A leaderboard as files and as a page."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from cardioray import storage
from cardioray.evaluation import plots
from cardioray.evaluation.intervals import Interval
from cardioray.evaluation.report import title_of
from cardioray.targets import BinaryTarget

if TYPE_CHECKING:
    from cardioray.evaluation.leaderboard import Leaderboard, LeaderboardRow

_BINARY = ("auc", "accuracy", "sensitivity", "specificity", "precision", "f1")
_REGRESSION = ("mae", "rmse", "r2", "bias", "pearson_r")
_SHORT = {
    "accuracy": "Acc.",
    "sensitivity": "Sens.",
    "specificity": "Spec.",
    "precision": "Prec.",
    "pearson_r": "r",
}


@dataclass(frozen=True)
class _Cell:
    text: str
    sort: str = ""
    small: str = ""


@dataclass(frozen=True)
class _Column:
    title: str
    meaning: str


@dataclass(frozen=True)
class Picture:
    """A picture of the page, which is also a file.

    Attributes:
        section: heading that it stands under; sections come in the order of their first pictures.
        title: below the picture.
        name: of the file, without ending.
        png: the file's content.
    """

    section: str
    title: str
    name: str
    png: bytes


def write_leaderboard(
    leaderboard: Leaderboard, folder: str, pictures: Sequence[Picture] = ()
) -> list[str]:
    """Write the files of `Leaderboard.write`, which says more."""
    shown = [*_draw(leaderboard), *pictures]
    page = _render(leaderboard, shown)
    text = json.dumps(leaderboard.to_dict(), indent=2, allow_nan=False)
    files = {
        "leaderboard.csv": leaderboard.table.to_csv(index=False).encode(),
        "leaderboard.json": text.encode(),
        "leaderboard.html": page.encode(),
        **{f"plots/{each.name.replace('/', '_')}.png": each.png for each in shown},
    }
    paths = []
    for name, data in files.items():
        paths.append(storage.join(folder, *name.split("/")))
        storage.write_bytes(paths[-1], data)
    return paths


def _draw(leaderboard: Leaderboard) -> list[Picture]:
    """The plots that a leaderboard has by itself."""
    pictures: list[Picture] = []

    def add(section: str, title: str, name: str, figure: Figure) -> None:
        pictures.append(Picture(section, title, name, plots.png_bytes(figure)))

    binary = isinstance(leaderboard.target, BinaryTarget)
    section = "Models beside each other"
    if binary:
        models = [_scored(row) for row in leaderboard.rows]
        add(section, "ROC curves, per study", "roc", plots.roc_plot(models))
        zoomed = plots.roc_plot(models, zoom=True)
        add(section, "ROC curves, upper left quarter", "roc_zoom", zoomed)
    table = leaderboard.table
    if table["latency_ms"].notna().any():
        figure = plots.latency_plot(table, leaderboard.headline)
        add(section, "Quality and CPU latency", "latency", figure)
    for row in leaderboard.rows:
        labels, name = row.studies["label"], row.entry.name
        if isinstance(leaderboard.target, BinaryTarget):
            called = row.studies["positive"]
            figure = plots.confusion_plot(labels, called, leaderboard.target.classes)
            title = f"{name}: confusion matrix"
            add("Confusion matrices, per study", title, f"confusion_{name}", figure)
        else:
            values, unit = row.studies["value"], leaderboard.target.unit
            figure = plots.scatter_plot(labels, values, name, unit)
            title = f"{name}: predicted and true"
            add("Predicted and true, per study", title, f"scatter_{name}", figure)
    return pictures


def _scored(row: LeaderboardRow) -> plots.ScoredModel:
    studies = row.studies
    return plots.ScoredModel(
        row.entry.name,
        studies["label"].to_numpy(),
        studies["score"].to_numpy(),
        studies["patient_id"].tolist(),
        row.evaluation.per_study.values["auc"],
    )


def _render(leaderboard: Leaderboard, pictures: Sequence[Picture]) -> str:
    environment = Environment(
        loader=PackageLoader("cardioray.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
    )
    columns = _columns(leaderboard)
    return environment.get_template("leaderboard.html").render(
        title=page_title(leaderboard),
        lead=_lead(leaderboard),
        columns=columns,
        rows=[_cells(row, leaderboard) for row in leaderboard.rows],
        notes=_notes(leaderboard),
        sections=_sections(pictures),
    )


def _sections(pictures: Sequence[Picture]) -> dict[str, list[dict[str, str]]]:
    """Title and data of the pictures of each section."""
    sections: dict[str, list[dict[str, str]]] = {}
    for each in pictures:
        shown = {"title": each.title, "base64": base64.b64encode(each.png).decode()}
        sections.setdefault(each.section, []).append(shown)
    return sections


def _columns(leaderboard: Leaderboard) -> list[_Column]:
    names = figure_names(leaderboard)
    metric = leaderboard.validation_metric
    return [
        _Column("Model", "with its marks"),
        _Column(f"Val. {short_title(metric)}", "on validation patients; it chose the winner"),
        *(_Column(title_of(name), "per study, out of fold") for name in names),
        _Column("p", "paired test against the winner, corrected after Holm"),
        _Column(f"Frame {short_title(leaderboard.headline)}", "the same figure on single frames"),
        _Column("Uncertain", "share of studies without a certain answer")
        if isinstance(leaderboard.target, BinaryTarget)
        else _Column("Width", "of the conformal interval"),
        _Column("Params, M", "parameters in millions"),
        _Column("GFLOPs", "of one forward pass"),
        _Column("Training", "wall time of all trainings"),
        _Column("Latency, ms", "of one picture on the CPU"),
    ]


def _cells(row: LeaderboardRow, leaderboard: Leaderboard) -> list[_Cell]:
    binary = isinstance(leaderboard.target, BinaryTarget)
    evaluation, entry = row.evaluation, row.entry
    folds = f"{entry.folds} fold{'s' if entry.folds != 1 else ''}" if entry.folds else ""
    below = ", ".join(part for part in (row.marks, folds) if part)
    return [
        _Cell(entry.name, entry.name, below),
        _cell(entry.validation_score, ".3f"),
        *(_figure_cell(evaluation.per_study.values[n]) for n in figure_names(leaderboard)),
        _Cell(p_value(row.p_holm), _sortable(row.p_holm)),
        _figure_cell(evaluation.per_frame.values[leaderboard.headline]),
        _figure_cell(evaluation.conformal["uncertain" if binary else "width"]),
        _cell(entry.parameters_millions, ".1f"),
        _cell(entry.gflops, ".2f"),
        _Cell(duration(entry.train_seconds), _sortable(entry.train_seconds)),
        _cell(entry.latency_ms, ".1f"),
    ]


def _notes(leaderboard: Leaderboard) -> list[str]:
    """What holds for the whole page, then the notes of the evaluations, each once."""
    tests = sorted({row.versus_winner.method for row in leaderboard.rows if row.versus_winner})
    sources = sorted({row.thresholds_from for row in leaderboard.rows})
    notes = [
        f"The winner has the best {short_title(leaderboard.validation_metric)} on validation "
        "patients; a model's test rows out of fold played no part in its own choice. Validation "
        "patients of one fold are test patients of another, so that the figures are slightly "
        "flattering: those of a final model on held-out patients are not.",
        f"Intervals: {leaderboard.resampling.confidence:.0%}, percentiles of "
        f"{leaderboard.resampling.num_resamples} resamples of patients.",
        f"Thresholds, calibration and conformal sets: {'; '.join(sources)}.",
    ]
    if tests:
        notes.append(f"p: {' or '.join(tests)} on the studies both models were scored on.")
    if any(row.auc_within_folds for row in leaderboard.rows):
        notes.append(
            "AUC ranks all studies together, also those that networks of different folds scored; "
            "p and auc_within_folds in leaderboard.csv compare studies of the same fold only."
        )
    notes += [f"{name} failed: {reason}" for name, reason in leaderboard.failed.items()]
    if any(row.entry.stopped_early for row in leaderboard.rows):
        notes.append(
            "Models stopped early have fewer epochs and folds than the others and come last; "
            "their figures do not rank them."
        )
    seen: dict[str, list[str]] = {}
    for row in leaderboard.rows:
        for note in row.evaluation.notes:
            seen.setdefault(note, []).append(row.entry.name)
    everyone = len(leaderboard.rows)
    for note, names in seen.items():
        notes.append(note if len(names) == everyone else f"{', '.join(names)}: {note}")
    return notes


def figure_names(leaderboard: Leaderboard) -> tuple[str, ...]:
    """The figures that are shown, by their names in `metrics`."""
    return _BINARY if isinstance(leaderboard.target, BinaryTarget) else _REGRESSION


def page_title(leaderboard: Leaderboard) -> str:
    """The heading."""
    return f"Leaderboard: {leaderboard.target.name}"


def _lead(leaderboard: Leaderboard) -> str:
    first = leaderboard.rows[0].evaluation
    question = leaderboard.target.name
    if isinstance(leaderboard.target, BinaryTarget):
        question = f"{leaderboard.target.positive} against {leaderboard.target.negative}"
    return (
        f"{question}; {len(leaderboard.rows)} models; the winner, {leaderboard.winner.name}, was "
        f"scored on {first.patients} patients, {first.studies} studies, {first.frames} frames."
    )


def short_title(name: str) -> str:
    """How a figure is named where there is little room."""
    return _SHORT.get(name, title_of(name))


def _figure_cell(interval: Interval) -> _Cell:
    return _Cell(number(interval.value, ".3f"), _sortable(interval.value), _range(interval))


def _cell(value: float | None, spec: str) -> _Cell:
    return _Cell(number(value, spec), _sortable(value))


def number(value: float | None, spec: str) -> str:
    """A number in this format; nothing for None and NaN."""
    return "" if value is None or pd.isna(value) else f"{value:{spec}}"


def _range(interval: Interval) -> str:
    if math.isnan(interval.low):
        return "no interval"
    return f"{interval.low:.3f} to {interval.high:.3f}"


def p_value(value: float) -> str:
    """As journals write it."""
    return "<.001" if value < 0.001 else number(value, ".3f")


def _sortable(value: float | None) -> str:
    return "" if value is None or pd.isna(value) else repr(float(value))


def duration(seconds: float | None) -> str:
    """Hours and minutes, or minutes and seconds."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
