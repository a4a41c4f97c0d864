"""Figures of a bundle from the files alone, and figures of anyone's predictions table."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from cardioray import storage
from cardioray.bundle import dump_json, open_bundle
from cardioray.data import cluster
from cardioray.data.shards import write_quarantine, write_table
from cardioray.evaluation import plots
from cardioray.evaluation.figures import Resampling, decide
from cardioray.evaluation.intervals import Interval, patient_bootstrap
from cardioray.evaluation.metrics import auc_statistic
from cardioray.evaluation.out_of_fold import FittingSettings, OutOfFold, decide_out_of_fold
from cardioray.evaluation.predictions import (
    check_predictions,
    per_study,
    read_predictions,
    select_split,
)
from cardioray.evaluation.report import (
    Evaluation,
    evaluate,
    evaluate_decisions,
    number_plots,
    print_evaluation,
    title_of,
    write_plots,
)
from cardioray.evaluation.segment_panels import OUTLINES, write_panels
from cardioray.evaluation.segment_report import outline_figures, print_outlines
from cardioray.inference.actors import Loading, Precision, RuntimeName
from cardioray.inference.further import Further, report_further
from cardioray.inference.keyframe_scoring import score_heads
from cardioray.inference.scoring import Scored, score_files
from cardioray.inference.segment_scoring import PARTS, score_outlines
from cardioray.keyframes import HeadsPredictor
from cardioray.model_store import bundle_place
from cardioray.predictor import Predictor
from cardioray.studies import open_predictor
from cardioray.targets import BinaryTarget, RegressionTarget
from cardioray.tasks.base import Task
from cardioray.tasks.lv_seg import LvSegTask, ef_of_references

PREDICTIONS = "predictions.parquet"
METRICS = "metrics.json"


def evaluate_bundle(
    bundle_path: str,
    data: str,
    *,
    split: str = "test",
    out: str | None = None,
    patient_from: str | None = None,
    console: Console | None = None,
    shared_storage: bool = False,
    runtime: RuntimeName = "torch",
    precision: Precision = "auto",
    noise: Sequence[float] = (),
    further: Further | None = None,
) -> dict[str, Evaluation]:
    """Score a bundle on files, with its own operating point.

    On the data it was made from, a bundle is scored on its own `split`, so that its figures come
    out again; the largest difference of a score is printed. Other data are scored by their
    `split` column, or on all rows where there is none. A bundle that outlines is scored by its
    outlines, too, on data with label maps.

    Args:
        bundle_path: local directory or s3:// prefix of a bundle, or of a comparison for its winner.
        data: a data set as `prepare` takes it, with labels.
        split: split to score.
        out: folder or prefix for metrics.json, predictions.parquet, plots, and of outlines
            parts.parquet; None writes nothing.
        patient_from: regular expression that finds the patient in a file name.
        console: where figures are printed.
        shared_storage: every node of the cluster mounts the local folders.
        runtime: "torch" as in training; "openvino" for what a CPU server answers.
        precision: "auto" is what the training was set to.
        noise: shares of the pixels that are made black; the headline's AUC or MAE is given for each
            of them beside that of the pictures as they are, as EchoNet-Dynamic does.
        further: what else is asked; subgroups ask about the columns of the data where they have
            no table of their own.

    Returns:
        Figures by target, of the pictures as they are.

    Raises:
        ValueError: when the data are at fault, a share is not between 0 and 1, none of the files
            can be read, or the split has no rows or, of outlines, no ejection fraction.
    """
    console = console or Console()
    if any(not 0 < share < 1 for share in noise):
        raise ValueError(f"--noise: shares are between 0 and 1, not {list(noise)}.")
    cluster.connect()
    bundle_path, data = storage.absolute(bundle_place(bundle_path)), storage.absolute(data)
    for path in (bundle_path, data):
        cluster.require_shared(path, shared_storage)
    with tempfile.TemporaryDirectory(prefix="cardioray-evaluate-") as scratch:
        bundle = open_bundle(bundle_path, Path(scratch))
        settings = bundle.config()["train"]
        precision = settings["precision"] if precision == "auto" else precision
        predictor = open_predictor(bundle, network=False)
        loading = Loading(bundle_path, runtime, precision)
        score = _scorer(predictor)
        scored = score(predictor, loading, data, split, patient_from, console)
        evaluations = {}
        for target in _present(predictor.task, scored, console):
            point = predictor.operating_points[target.name]
            found = evaluate(scored.table, target, point, seed=settings["seed"], split=split)
            evaluations[target.name] = dataclasses.replace(
                found, notes=(*found.notes, *scored.notes)
            )
            print_evaluation(evaluations[target.name], console)
            if out is not None:
                place = storage.join(out, "plots", target.name)
                write_plots(scored.table, target, point, place, split=split)
        if noise:
            target = predictor.task.targets[0]
            headline = "auc" if target.kind == "binary" else "mae"
            rows = [(0.0, evaluations[target.name].per_study.values[headline])]
            for share in sorted(noise):
                noisy = score(
                    predictor, loading, data, split, patient_from, console, noise=share
                ).table
                point = predictor.operating_points[target.name]
                found = evaluate(noisy, target, point, seed=settings["seed"], split=split)
                rows.append((share, found.per_study.values[headline]))
            _report_noise(rows, target, headline, console, out)
        outlines = _report_outlines(predictor, scored, split, settings["seed"], console, out)
        if further is not None and further.asked:
            decided = {
                target.name: decide(
                    per_study(select_split(check_predictions(scored.table, target), split)),
                    predictor.operating_points[target.name],
                )
                for target in _present(predictor.task, scored, Console(quiet=True))
                if target.kind == "binary"
            }
            facts = predictor.task.read_manifest(data, patient_from).table
            facts = facts.assign(study_id=predictor.task.studies(facts))
            outlines |= _report_further(further, decided, predictor.task, facts, console, out)
    if out is not None:
        about = {
            "model": predictor.bundle.name,
            "bundle": predictor.bundle.identity,
            "computed_with": scored.computed_with,
            "largest_score_difference_from_the_bundle": scored.differences,
            **outlines,
        }
        _write(out, evaluations, about, scored.table)
        write_quarantine(storage.join(out, "quarantine.csv"), scored.unread)
    return evaluations


def _scorer(predictor: Predictor) -> Callable[..., Scored]:
    """What makes a predictions table of files, by what answers are made of."""
    if isinstance(predictor, HeadsPredictor):
        return score_heads
    return score_outlines if isinstance(predictor.task, LvSegTask) else score_files


def evaluate_table(
    predictions_path: str,
    task: Task,
    *,
    split: str = "test",
    out: str | None = None,
    console: Console | None = None,
    further: Further | None = None,
) -> dict[str, Evaluation]:
    """Score a predictions table of any model.

    Threshold, calibration and conformal set are fitted on the table's calibration rows where
    every fold has enough of them, else cross-fitted over the patients that are scored, never on
    the patient that is decided.

    Args:
        predictions_path: .csv, .csv.gz or .parquet; see docs/evaluation.md.
        task: says what the labels mean; targets that the table's column `head` lacks are left out.
        split: split to score.
        out: folder or prefix for metrics.json, predictions.parquet (with decisions) and plots.
        console: where figures are printed.
        further: what else is asked.

    Returns:
        Figures by target.

    Raises:
        ValueError: when the table is at fault or has no rows of the split.
    """
    console = console or Console()
    table = read_predictions(predictions_path)
    heads = set(table["head"].astype(str)) if "head" in table else {task.targets[0].name}
    targets = [target for target in task.targets if target.name in heads] or [task.targets[0]]
    operating = task.operating
    fitting = FittingSettings(operating.rule, operating.calibration, operating.alpha)
    evaluations, decided = {}, []
    studies: dict[str, pd.DataFrame] = {}
    for target in targets:
        rows = _as_test(check_predictions(table, target, default_split=split), split)
        result = decide_out_of_fold(rows, target, fitting)
        found = evaluate_decisions(
            result.frames,
            result.studies,
            target,
            Resampling(),
            split=split,
            notes=[f"Threshold and calibration: {result.thresholds_from}."],
        )
        evaluations[target.name] = found
        decided.append(result.frames.assign(split=split))
        if target.kind == "binary":
            studies[target.name] = result.studies
        print_evaluation(found, console)
        if out is not None:
            _write_table_plots(result, target, storage.join(out, "plots", target.name))
    about: dict[str, Any] = {"predictions": predictions_path}
    if further is not None and further.asked:
        about |= _report_further(further, studies, task, None, console, out)
    if out is not None:
        _write(out, evaluations, about, pd.concat(decided))
    return evaluations


def _report_further(
    further: Further,
    studies: Mapping[str, pd.DataFrame],
    task: Task,
    facts: pd.DataFrame | None,
    console: Console,
    out: str | None,
) -> dict[str, Any]:
    """What else was asked of yes/no questions; what metrics.json says of it."""
    if not studies:
        raise ValueError(
            f"--prevalence, --subgroup and --readers are about yes/no questions; {task.name} has "
            "none here."
        )
    targets = {target.name: target for target in task.targets if isinstance(target, BinaryTarget)}
    return {"further": report_further(further, studies, targets, facts, console, out)}


def _present(task: Task, scored: Scored, console: Console) -> list[BinaryTarget | RegressionTarget]:
    """The targets to score; volumes of frames whose pixels have no known size are none.

    Raises:
        ValueError: when no ejection fraction can be scored.
    """
    targets = list(task.targets)
    if scored.parts is None:
        return targets
    heads = set(scored.table.get("head", []))
    if targets[0].name not in heads:
        raise ValueError(
            f"no study has both phases of a view with a cavity, so that {targets[0].name!r} "
            "cannot be scored."
        )
    for target in targets:
        if target.name not in heads:
            console.print(
                f"Note: {target.name} is not scored: no file states the size of a pixel.",
                markup=False,
            )
    return [target for target in targets if target.name in heads]


def _report_outlines(
    predictor: Predictor, scored: Scored, split: str, seed: int, console: Console, out: str | None
) -> dict[str, Any]:
    """Print the figures of outlines where there are any, and write what is known of each frame.

    Returns:
        What metrics.json says of them.
    """
    task, parts = predictor.task, scored.parts
    if parts is None or not isinstance(task, LvSegTask):
        return {}
    found = outline_figures(parts, task.settings.structures, split=split, seed=seed)
    print_outlines(found, console)
    if out is not None:
        target = task.targets[0]
        rows = select_split(check_predictions(scored.table, target), split)
        studies = decide(per_study(rows), predictor.operating_points[target.name])
        assert scored.lookup is not None
        place = storage.join(out, "plots", OUTLINES)
        write_panels(parts, studies, ef_of_references(scored.table), scored.lookup, place)
        write_table(storage.join(out, PARTS), parts)
    return {"outlines": [figures.to_dict() for figures in found]}


def _report_noise(
    rows: Sequence[tuple[float, Interval]],
    target: BinaryTarget | RegressionTarget,
    headline: str,
    console: Console,
    out: str | None,
) -> None:
    """Print the headline figure by share of black pixels, and write it as a table and a plot."""
    title = f"{title_of(headline)} of {target.name}, with pixels made black"
    table = Table("Share of pixels", title_of(headline), title=title)
    for share, figure in rows:
        table.add_row(f"{share:g}", f"{figure}")
    console.print(table)
    if out is None:
        return
    written = pd.DataFrame([{"share": share, **figure.to_dict()} for share, figure in rows])
    storage.write_bytes(storage.join(out, "noise.csv"), written.to_csv(index=False).encode())
    drawn = plots.noise_plot([share for share, _ in rows], [figure for _, figure in rows], title)
    storage.write_bytes(storage.join(out, "plots", "noise.png"), plots.png_bytes(drawn))


def _write(
    out: str, evaluations: Mapping[str, Evaluation], about: Mapping[str, Any], table: pd.DataFrame
) -> None:
    targets = {name: value.to_dict() for name, value in evaluations.items()}
    storage.write_bytes(storage.join(out, METRICS), dump_json({**about, "targets": targets}))
    write_table(storage.join(out, PREDICTIONS), table)


def _as_test(table: pd.DataFrame, split: str) -> pd.DataFrame:
    """A checked table in which the rows to score are called "test", beside calibration rows."""
    if not (table["split"] == split).any():
        present = ", ".join(f"{name} ({n})" for name, n in table["split"].value_counts().items())
        raise ValueError(f"The predictions table has no rows of split {split!r}; it has {present}.")
    rows = table[table["split"].isin([split, "calibration"])]
    return rows.assign(split=rows["split"].where(rows["split"] != split, "test"))


def _write_table_plots(
    decided: OutOfFold, target: BinaryTarget | RegressionTarget, folder: str
) -> None:
    """What can be drawn where studies were decided by several operating points."""
    studies = decided.studies
    labels, scores = studies["label"].to_numpy(), studies["score"].to_numpy()
    if isinstance(target, RegressionTarget):
        figures = number_plots(studies, target)
    else:
        auc = patient_bootstrap(
            studies, lambda weights: {"auc": auc_statistic(labels, scores, weights)}
        )["auc"]
        patients = studies["patient_id"].tolist()
        model = plots.ScoredModel(target.name, labels, scores, patients, auc)
        figures = {
            "roc": plots.roc_plot([model]),
            "confusion": plots.confusion_plot(labels, studies["positive"], target.classes),
            "reliability": plots.reliability_plot(labels, scores, studies["probability"]),
        }
    for name, figure in figures.items():
        storage.write_bytes(storage.join(folder, f"{name}.png"), plots.png_bytes(figure))
