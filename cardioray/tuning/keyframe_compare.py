"""`cardioray compare keyframe-ef`: heads on features over patient folds, beside other models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cardioray import storage
from cardioray.data import cluster
from cardioray.data.shards import ShardSet
from cardioray.evaluation.keyframe_report import (
    KeyframeReport,
    joined,
    keyframe_report,
)
from cardioray.evaluation.predictions import (
    check_predictions,
    per_study,
    read_predictions,
    select_split,
)
from cardioray.model_store import bundle_place
from cardioray.targets import BinaryTarget
from cardioray.tasks.keyframe_ef import EF_TARGET, KeyframeEfTask
from cardioray.training.outcome import PREDICTIONS
from cardioray.training.progress import Shown, shown_progress
from cardioray.training.settings import RunConfig
from cardioray.tuning.compare import RECORD, out_of_fold
from cardioray.tuning.division import divide
from cardioray.tuning.keyframe_heat import heat_in_structures, summary
from cardioray.tuning.keyframe_plots import write_feature_plots
from cardioray.tuning.keyframe_predictions import predictions_of, write_predictions
from cardioray.tuning.keyframes import (
    find_studies,
    fit_divisions,
)
from cardioray.tuning.settings import CompareConfig


@dataclass(frozen=True)
class KeyframeComparison:
    """A finished comparison of heads.

    Attributes:
        out: folder or prefix with tables, plots, features and encoders.
        report: every head, their ensemble, a constant, and what was put beside them.
    """

    out: str
    report: KeyframeReport


def compare_keyframes(
    run: RunConfig,
    shards: ShardSet,
    settings: CompareConfig,
    out: str,
    *,
    beside: Sequence[str] = (),
    shown: Shown | None = None,
) -> KeyframeComparison:
    """Score heads on each frame and their ensemble by patient folds.

    The same call after a kill goes on: features, encoders and kernels that are there are read.

    Args:
        run: settings, with `method` "features".
        shards: prepared data.
        settings: `folds` and `seed` count; the backbone is that of `run`.
        out: folder or prefix for everything the comparison leaves.
        beside: other models of the same patients: predictions tables (.parquet, .csv), bundles, or
            comparisons for what their winners say out of fold; as `name=place`, or the place alone.
        shown: how progress is shown; None for not at all.

    Raises:
        ValueError: for settings or data that cannot work, and for models of other patients.
    """
    task = run.task
    assert isinstance(task, KeyframeEfTask)
    others = [read_beside(text, task.settings.target) for text in beside]
    cluster.connect(dashboard=True)
    out = storage.absolute(out)
    cluster.require_shared(out, run.scale.shared_storage)
    studies = find_studies(task, shards)
    division = divide(run, shards, settings)
    splits = {f"fold{number}": split for number, split in enumerate(division.folds)}
    with shown_progress(shown) as board:
        fitted = fit_divisions(run, shards, studies, splits, out, board)
    own = predictions_of(task, studies, fitted)
    table = joined([own, *(_by_our_studies(other, studies.table) for other in others)])
    write_predictions(table, out)
    report = keyframe_report(table, EF_TARGET, task.settings.target, seed=settings.seed)
    report.write(out)
    write_feature_plots(studies, next(iter(fitted.values())), out)
    shares = heat_in_structures(run, shards, studies, fitted)
    if len(shares):
        text = summary(shares, settings.seed).to_csv(index=False)
        storage.write_bytes(storage.join(out, "heat_shares.csv"), text.encode())
    return KeyframeComparison(out, report)


def read_beside(text: str, question: BinaryTarget) -> pd.DataFrame:
    """Predictions of another model, one row a study.

    Args:
        text: `name=place`, or the place alone; see `compare_keyframes`.
        question: the class, whose probability is taken along where the model tells it.

    Returns:
        `model`, `study_id`, `patient_id`, `label`, `value` and `probability` (NaN where unknown).

    Raises:
        ValueError: when there are no test predictions of the ejection fraction.
    """
    name, equals, place = text.partition("=")
    if not equals:
        name, place = storage.absolute(text).rstrip("/").rsplit("/", 1)[-1], text
    place = storage.absolute(place)
    if storage.exists(storage.join(place, RECORD)):
        table = out_of_fold(place)
    elif place.endswith((".parquet", ".csv")):
        table = read_predictions(place)
    else:
        table = read_predictions(storage.join(storage.absolute(bundle_place(place)), PREDICTIONS))
    found = per_study(select_split(check_predictions(table, EF_TARGET), "test"))
    found = found.assign(model=name, value=found["score"], probability=np.nan)
    if "head" in table and (table["head"] == question.name).any():
        classes = per_study(select_split(check_predictions(table, question), "test"))
        said = classes.set_index("study_id")["score"]
        found["probability"] = found["study_id"].map(said)
    return found[["model", "study_id", "patient_id", "label", "value", "probability"]]


def _by_our_studies(other: pd.DataFrame, ours: pd.DataFrame) -> pd.DataFrame:
    """Another model's studies under the ids of these, where only patients are called alike.

    A video is a study here and may be one by another name there; where every patient has one, the
    patient tells which.
    """
    if set(other["study_id"]) & set(ours["study_id"]):
        return other
    alone = ours["patient_id"].is_unique and other["patient_id"].is_unique
    if not alone:
        return other
    ids = ours.set_index("patient_id")["study_id"]
    known = other[other["patient_id"].isin(ids.index)]
    return known.assign(study_id=ids[known["patient_id"]].to_numpy())
