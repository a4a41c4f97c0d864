"""A leaderboard as files, as a page and on the terminal."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

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


def write_leaderboard(
    leaderboard: Leaderboard, folder: str, pictures: Mapping[str, bytes] | None = None
) -> list[str]:
    """Write the files of `Leaderboard.write`, which says more."""
    drawn = _draw(leaderboard)
    page = _render(leaderboard, {**dict(drawn.values()), **(pictures or {})})
    text = json.dumps(leaderboard.to_dict(), indent=2, allow_nan=False)
    files = {
        "leaderboard.csv": leaderboard.table.to_csv(index=False).encode(),
        "leaderboard.json": text.encode(),
        "leaderboard.html": page.encode(),
        **{f"plots/{name}.png": png for name, (_, png) in drawn.items()},
    }
    paths = []
    for name, data in files.items():
        paths.append(storage.join(folder, *name.split("/")))
        storage.write_bytes(paths[-1], data)
    return paths


def print_leaderboard(leaderboard: Leaderboard, console: Console | None = None) -> None:
    """Print the leaderboard, figures per study with their intervals below, in 100 columns."""
    binary = isinstance(leaderboard.target, BinaryTarget)
    names = ("auc", "sensitivity", "specificity", "f1") if binary else ("mae", "rmse", "r2", "bias")
    table = Table(
        title=escape(_title(leaderboard)),
        caption="Per study, 95% intervals by patient. p: against the winner, Holm-corrected.\n"
        "M: million parameters. ms: CPU latency. Not for clinical use.",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("Model", no_wrap=True)
    validation = f"Val.\n{_head(leaderboard.validation_metric)}"
    for name in (validation, *map(_head, names), "p", "M", "ms"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in leaderboard.rows:
        figures = [row.evaluation.per_study.values[name] for name in names]
        mark = "winner" if row.versus_winner is None else ""
        mark = "stopped early" if row.entry.stopped_early else mark
        table.add_row(
            escape(row.entry.name) + (f"\n[bold]{mark}[/bold]" if mark else ""),
            _number(row.entry.validation_score, ".3f"),
            *(f"{_number(i.value, '.3f')}\n[dim]{_narrow(i)}[/dim]" for i in figures),
            _p_value(row.p_holm),
            _number(row.entry.parameters_millions, ".1f"),
            _number(row.entry.latency_ms, ".1f"),
        )
    (console or Console()).print(table)


def _draw(leaderboard: Leaderboard) -> dict[str, tuple[str, bytes]]:
    """Title and PNG by file name."""
    figures: dict[str, tuple[str, Any]] = {}
    if isinstance(leaderboard.target, BinaryTarget):
        models = [_scored(row) for row in leaderboard.rows]
        figures["roc"] = ("ROC curves, per study", plots.roc_plot(models))
        figures["roc_zoom"] = ("ROC curves, upper left quarter", plots.roc_plot(models, zoom=True))
    table = leaderboard.table
    if table["latency_ms"].notna().any():
        plot = plots.latency_plot(table, leaderboard.headline)
        figures["latency"] = ("Quality and CPU latency", plot)
    for row in leaderboard.rows:
        labels, name = row.studies["label"], row.entry.name
        if isinstance(leaderboard.target, BinaryTarget):
            called = row.studies["positive"]
            plot = plots.confusion_plot(labels, called, leaderboard.target.classes)
            figures[f"confusion_{name}"] = (f"{name}: confusion matrix", plot)
        else:
            plot = plots.scatter_plot(labels, row.studies["score"], name, leaderboard.target.unit)
            figures[f"scatter_{name}"] = (f"{name}: predicted and true", plot)
    return {
        name.replace("/", "_"): (title, plots.png_bytes(figure))
        for name, (title, figure) in figures.items()
    }


def _scored(row: LeaderboardRow) -> plots.ScoredModel:
    studies = row.studies
    return plots.ScoredModel(
        row.entry.name,
        studies["label"].to_numpy(),
        studies["score"].to_numpy(),
        studies["patient_id"].tolist(),
        row.evaluation.per_study.values["auc"],
    )


def _render(leaderboard: Leaderboard, pictures: Mapping[str, bytes]) -> str:
    environment = Environment(
        loader=PackageLoader("cardioray.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
    )
    columns = _columns(leaderboard)
    return environment.get_template("leaderboard.html").render(
        title=_title(leaderboard),
        lead=_lead(leaderboard),
        columns=columns,
        rows=[_cells(row, leaderboard) for row in leaderboard.rows],
        notes=_notes(leaderboard),
        pictures=[
            {"title": title, "base64": base64.b64encode(png).decode()}
            for title, png in pictures.items()
        ],
    )


def _columns(leaderboard: Leaderboard) -> list[_Column]:
    names = _BINARY if isinstance(leaderboard.target, BinaryTarget) else _REGRESSION
    metric = leaderboard.validation_metric
    return [
        _Column("Model", "with its marks"),
        _Column(f"Val. {_head(metric)}", "on validation patients; it chose the winner"),
        *(_Column(title_of(name), "per study, out of fold") for name in names),
        _Column("p", "paired test against the winner, corrected after Holm"),
        _Column(f"Frame {_head(leaderboard.headline)}", "the same figure on single frames"),
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
        *(
            _figure_cell(evaluation.per_study.values[n])
            for n in (_BINARY if binary else _REGRESSION)
        ),
        _Cell(_p_value(row.p_holm), _sortable(row.p_holm)),
        _figure_cell(evaluation.per_frame.values[leaderboard.headline]),
        _figure_cell(evaluation.conformal["uncertain" if binary else "width"]),
        _cell(entry.parameters_millions, ".1f"),
        _cell(entry.gflops, ".2f"),
        _Cell(_duration(entry.train_seconds), _sortable(entry.train_seconds)),
        _cell(entry.latency_ms, ".1f"),
    ]


def _notes(leaderboard: Leaderboard) -> list[str]:
    """What holds for the whole page, then the notes of the evaluations, each once."""
    tests = sorted({row.versus_winner.method for row in leaderboard.rows if row.versus_winner})
    sources = sorted({row.thresholds_from for row in leaderboard.rows})
    notes = [
        f"The winner has the best {_head(leaderboard.validation_metric)} on validation patients; "
        "the other figures, from test rows out of fold, played no part in the choice.",
        f"Intervals: {leaderboard.resampling.confidence:.0%}, percentiles of "
        f"{leaderboard.resampling.num_resamples} resamples of patients.",
        f"Thresholds, calibration and conformal sets: {'; '.join(sources)}.",
    ]
    if tests:
        notes.append(f"p: {' or '.join(tests)} on the studies both models were scored on.")
    if any(row.auc_within_folds for row in leaderboard.rows):
        notes.append(
            "AUC ranks all studies together, also those that networks of different folds scored; "
            "auc_within_folds in leaderboard.csv compares studies of the same fold only."
        )
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


def _title(leaderboard: Leaderboard) -> str:
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


def _head(name: str) -> str:
    return _SHORT.get(name, title_of(name))


def _figure_cell(interval: Interval) -> _Cell:
    return _Cell(_number(interval.value, ".3f"), _sortable(interval.value), _range(interval))


def _cell(value: float | None, spec: str) -> _Cell:
    return _Cell(_number(value, spec), _sortable(value))


def _number(value: float | None, spec: str) -> str:
    return "" if value is None or pd.isna(value) else f"{value:{spec}}"


def _range(interval: Interval) -> str:
    if math.isnan(interval.low):
        return "no interval"
    return f"{interval.low:.3f} to {interval.high:.3f}"


def _narrow(interval: Interval) -> str:
    """A range for the terminal; a hyphen would be misread beside a negative number."""
    if math.isnan(interval.low):
        return ""
    joint = "-" if interval.low >= 0 else " to "
    return f"{interval.low:.2f}{joint}{interval.high:.2f}"


def _p_value(value: float) -> str:
    return "<.001" if value < 0.001 else _number(value, ".3f")


def _sortable(value: float | None) -> str:
    return "" if value is None or pd.isna(value) else repr(float(value))


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
