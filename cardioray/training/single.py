"""One run from shards to bundle."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from ray.actor import ActorHandle

from cardioray import storage
from cardioray.bundle import SUMS, Bundle, open_bundle
from cardioray.clinical.number_calibration import least_patients
from cardioray.data import cluster
from cardioray.data.shards import ShardSet
from cardioray.data.splits import Splits, assign_splits, folds_within
from cardioray.evaluation.operating_point import calibration_method
from cardioray.evaluation.out_of_fold import FittingSettings
from cardioray.targets import RegressionTarget
from cardioray.tasks.base import Tables, Task, encode_labels
from cardioray.training.description import BundleSource
from cardioray.training.export import write_bundle
from cardioray.training.outcome import WEIGHTS_CACHE, Outcome
from cardioray.training.progress import Shown, shown_progress
from cardioray.training.run import make_plan, run_name, train
from cardioray.training.settings import RunConfig

log = logging.getLogger(__name__)

BUNDLE = "bundle"
# What makes calibration come from other patients than those of a split.
_ELSEWHERE = {
    "calibration": "no calibration rows in the split column",
    "validation": "split.cross_fit_folds=2",  # there are neither calibration patients nor folds
}
CROSS_FIT = "cross_fit"


@dataclass(frozen=True)
class Trained:
    """A finished run and its bundle.

    Attributes:
        bundle: the model.
        predictions: the predictions table of the run.
        calibration: the predictions that threshold and calibration were fitted on.
    """

    bundle: Bundle
    predictions: pd.DataFrame
    calibration: pd.DataFrame


def train_bundle(
    run: RunConfig,
    shards: ShardSet,
    out: str,
    *,
    name: str | None = None,
    shown: Shown | None = None,
) -> Bundle:
    """Divide the patients, train one model, and make a bundle of it at `<out>/<name>/bundle`.

    Where patients are too few for calibration patients of their own, models of
    `split.cross_fit_folds` folds are trained too: what they say of patients they have not seen
    sets threshold, calibration and conformal set.

    The same call resumes a run that was killed, and returns the bundle of a finished one.

    Args:
        run: settings.
        shards: prepared data.
        out: folder or prefix that holds runs.
        name: the run's folder; by default a name that depends on all settings and data.
        shown: how progress is shown; None for not at all.

    Raises:
        ValueError: for settings that cannot work with this data or cluster.
    """
    cluster.connect()
    with shown_progress(shown) as board:
        return train_run(run, shards, out, name=name, board=board).bundle


def train_run(
    run: RunConfig,
    shards: ShardSet,
    out: str,
    *,
    name: str | None,
    board: ActorHandle[Any] | None,
    division: Splits | None = None,
) -> Trained:
    """As `train_bundle`, for a caller of several runs.

    Args:
        run: settings.
        shards: prepared data.
        out: folder or prefix that holds runs.
        name: the run's folder.
        board: where all of them are shown, or None.
        division: of the patients; by default that of the run's own headline.
    """
    out = storage.absolute(out)
    run = replace(run, task=run.task.suited(shards.samples))
    division = division or divide(run, shards)
    split, folds = division.split, None
    if division.calibration == "cross-fitted":
        folds = _cross_fit_folds(run, shards, split)
    fallback = "validation" if folds is None else None
    fitted_on = "calibration" if division.calibration == "held-out" else fallback
    require_patients(run.task, shards.samples, split, fitted_on)
    name = name or run_name(run, shards, split)
    place = storage.join(out, name, BUNDLE)
    outcome = train(run, shards, split, out, name=name, progress=board)
    crossed = None
    if folds is not None:
        crossed = _out_of_fold(run, shards, folds, storage.join(out, name, CROSS_FIT), board)
    predictions = outcome.predictions()
    calibration = crossed
    if calibration is None:
        calibration = predictions[predictions["split"] == fitted_on]
    if storage.exists(storage.join(place, SUMS)):
        return Trained(open_bundle(place), predictions, calibration)
    bundle = bundle_of_run(
        run, shards, split, outcome, place, name=name, calibration_predictions=crossed
    )
    return Trained(bundle, predictions, calibration)


def divide(run: RunConfig, shards: ShardSet) -> Splits:
    """The division of the patients, stratified by the headline."""
    labels = encode_labels(run.task, shards.samples)[run.task.targets[0].name]
    return assign_splits(shards.samples, labels, run.task.split)


def require_patients(
    task: Task, samples: pd.DataFrame, split: pd.Series[str], fitted_on: str | None
) -> None:
    """Refuse, before anything is trained, a division of which no bundle could be made.

    Args:
        task: its targets and how scores become answers.
        samples: the samples of the shards.
        split: split of every sample.
        fitted_on: the split whose patients set thresholds and calibration, or None where
            predictions made out of fold do.

    Raises:
        ValueError: when a target has no test patient, or too few of those it is fitted on.
    """
    if not task.learns_from_labels:
        if not (split == "test").any():
            raise ValueError(
                "no patient is in the test split, so that the model could not be scored: a larger "
                "split.test, or `cardioray compare`, whose folds score every patient."
            )
        task.require(samples, split)
    free = task.operating.calibration == "none" and task.operating.rule.startswith("fixed")
    for target in task.targets:
        judged = pd.Series(task.judged(samples, target), index=samples.index)
        if not (judged & (split == "test")).any():
            raise ValueError(
                f"no test patient has a label of {target.name!r}, so that the model could not be "
                "scored: more patients, or a larger split.test."
            )
        if isinstance(target, RegressionTarget):
            _require_for_number(task, target, samples["patient_id"], judged, split, fitted_on)
            continue
        calibration_method(target, task.operating.calibration)
        if fitted_on is None or free:
            continue
        known = pd.Series(target.encode(samples), index=samples.index)
        chosen = known[(split == fitted_on) & known.notna()]
        patients = samples["patient_id"].loc[chosen.index]
        # A patient counts for every class that one of their studies is of.
        studies = chosen.groupby([patients, task.studies(samples).loc[chosen.index]]).max() > 0
        of_class = [studies[studies == bool(code)].index.get_level_values(0) for code in (0, 1)]
        counts = (of_class[0].nunique(), of_class[1].nunique())
        if min(counts) < 2:
            shown = " and ".join(
                f"{n} of {name!r}" for n, name in zip(counts, target.classes, strict=True)
            )
            raise ValueError(
                f"threshold and calibration of {target.name!r} need at least 2 {fitted_on} "
                f"patients of each class; there are {shown}. More patients, a larger "
                f"split.{fitted_on}, or {_ELSEWHERE[fitted_on]}."
            )


def _require_for_number(
    task: Task,
    target: RegressionTarget,
    patients: pd.Series[str],
    judged: pd.Series[bool],
    split: pd.Series[str],
    fitted_on: str | None,
) -> None:
    """Refuse a division with too few patients to calibrate a number on.

    Args:
        task: how it is calibrated.
        target: the number.
        patients: patient of every sample.
        judged: which samples are of studies whose number can be judged.
        split: split of every sample.
        fitted_on: as in `require_patients`.
    """
    method = calibration_method(target, task.operating.calibration)
    chosen = split == fitted_on if fitted_on is not None else ~split.isin(["test", ""])
    there, least = patients[chosen & judged].nunique(), least_patients(method)
    if there >= least:
        return
    advice = ["more patients"]
    if fitted_on is not None:
        advice += [f"a larger split.{fitted_on}", _ELSEWHERE[fitted_on]]
    if method != "none":
        advice.append("operating.calibration=none")
    raise ValueError(
        f"calibration {method!r} and interval of {target.name!r} need at least {least} "
        f"{fitted_on or 'development'} patients whose {target.name!r} can be judged; there are "
        f"{there}. What helps: {'; '.join(advice)}."
    )


def require_scored(task: Task, samples: pd.DataFrame) -> None:
    """Refuse, before anything is trained, patients too few for figures that folds give of them all.

    Args:
        task: its targets and how scores become answers.
        samples: the samples of the shards.

    Raises:
        ValueError: when the numbers of too few patients can be judged.
    """
    fitting = FittingSettings(calibration=task.operating.calibration)
    for target in task.targets:
        if not isinstance(target, RegressionTarget):
            continue
        there = samples["patient_id"][task.judged(samples, target)].nunique()
        if there <= (least := fitting.least(target)):
            raise ValueError(
                f"figures of {target.name!r} out of fold need at least {least + 1} patients whose "
                f"{target.name!r} can be judged; there are {there}. What helps: more patients; "
                "operating.calibration=none."
            )


def _cross_fit_folds(
    run: RunConfig, shards: ShardSet, split: pd.Series[str]
) -> list[pd.Series[str]] | None:
    """Folds over all patients but the test ones, whose models calibrate.

    None where the settings want none, or where there are too few patients for two folds.
    """
    if not run.task.split.cross_fit_folds:
        return None
    labels = encode_labels(run.task, shards.samples)[run.task.targets[0].name]
    development = (split != "test").to_numpy()
    folded = replace(run.task.split, folds=run.task.split.cross_fit_folds)
    try:
        return folds_within(shards.samples, labels, development, folded)
    except ValueError as error:
        log.warning("Calibration is not cross-fitted: %s", error)
        return None


def _out_of_fold(
    run: RunConfig,
    shards: ShardSet,
    folds: Sequence[pd.Series[str]],
    out: str,
    board: ActorHandle[Any] | None,
) -> pd.DataFrame:
    """Predictions for all patients but the test ones, each by a model that has not seen them."""
    log.info("Few patients: %d more models are trained to cross-fit calibration.", len(folds))
    tables = []
    for number, fold in enumerate(folds):
        outcome = train(run, shards, fold, out, name=f"fold{number}", progress=board)
        table = outcome.predictions()
        tables.append(table[table["split"] == "test"])
    return pd.concat(tables, ignore_index=True)


def bundle_of_run(
    run: RunConfig,
    shards: ShardSet,
    split: pd.Series[str],
    outcome: Outcome,
    out: str,
    *,
    name: str,
    calibration_predictions: pd.DataFrame | None = None,
    cross_validated: Tables | None = None,
    comparison: Mapping[str, Any] | None = None,
) -> Bundle:
    """Make the bundle of a finished run.

    Args:
        run: its settings.
        shards: its data.
        split: split of every sample.
        outcome: what it left.
        out: where the bundle goes.
        name: the model's name.
        calibration_predictions: see `BundleSource`.
        cross_validated: what the networks of all folds say, where the model has no test patients.
        comparison: see `BundleSource`.
    """
    cache = storage.join(outcome.folder.rsplit("/", 1)[0], WEIGHTS_CACHE)
    plan = make_plan(run, shards, split, outcome.folder, cache, None, name)
    tables = cross_validated or outcome.tables()
    return write_bundle(
        BundleSource(
            run=run,
            shards=shards,
            split=split,
            weights=outcome.weights(),
            statistics=plan.statistics,
            predictions=tables.predictions,
            parts=tables.parts,
            calibration_predictions=calibration_predictions,
            log=outcome.log(),
            name=name,
            comparison=comparison,
            starting_weights=_named(plan.weights),
            notes=outcome.notes,
            cross_validated=cross_validated is not None,
        ),
        out,
    )


def _named(weights: str | None) -> str:
    """Starting weights by name and content: a path would mean nothing on another machine."""
    if weights is None:
        return "random weights"
    content = hashlib.sha256(storage.read_bytes(weights)).hexdigest()
    return f"{weights.rsplit('/', 1)[-1]}, SHA-256 {content}"
