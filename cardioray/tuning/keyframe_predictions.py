"""What heads on key frames, their ensemble and a constant say of test studies, as one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cardioray import storage
from cardioray.data.shards import write_table
from cardioray.evaluation.keyframe_report import CONSTANT, ENSEMBLE
from cardioray.evaluation.operating_point import fit_operating_point
from cardioray.evaluation.uncertainty import REVIEW_SHARE
from cardioray.tasks.keyframe_ef import KeyframeEfTask
from cardioray.tasks.keyframe_heads import Answers, classes_of
from cardioray.tuning.keyframes import Fitted, Studies


def predictions_of(
    task: KeyframeEfTask,
    studies: Studies,
    fitted: Mapping[str, Fitted],
) -> pd.DataFrame:
    """What every member, the ensemble and a constant say of the test studies of each division.

    The constant is the mean of the development studies, with their SD.

    Args:
        task: its class and how that is decided.
        studies: all of them.
        fitted: by the name of the division.

    Returns:
        One row a study and model: `fold`, `model`, `study_id`, `patient_id`, `label`, `value`,
        `sd`, `probability`, `positive`, what is decided by a threshold from the development
        studies, and of the ensemble `sd_limit`, above which a person should look; NaN of what a
        model does not tell, or cannot for want of a frame.
    """
    pieces = []
    for fold, own in fitted.items():
        table = studies.table[own.test].assign(fold=fold)
        learned = studies.table[own.development]
        labels = learned["label"]
        before = own.fit.out_of_fold
        said: dict[str, tuple[Any, Any, Any, Any]] = {
            ENSEMBLE: (
                own.answers.value,
                own.answers.sd,
                own.answers.probability,
                before.probability,
            ),
            CONSTANT: (labels.mean(), labels.std(), np.nan, None),
        }
        for place, member in enumerate(own.answers.members):
            said[member] = (
                own.answers.values[:, place],
                own.answers.sds[:, place],
                own.answers.probabilities[:, place],
                before.probabilities[:, place],
            )
        for model, (value, sd, probability, earlier) in said.items():
            positive: Any = np.nan
            if earlier is not None:
                positive = _decided(task, learned, earlier, probability)
            piece = table.assign(
                model=model, value=value, sd=sd, probability=probability, positive=positive
            )
            if model == ENSEMBLE:
                piece["sd_limit"] = review_limit(before)
            pieces.append(piece)
    return pd.concat(pieces, ignore_index=True)


def review_limit(out_of_fold: Answers) -> float:
    """The SD above which a person should look: that of most development studies is below."""
    return float(np.quantile(out_of_fold.sd, REVIEW_SHARE))


def _decided(
    task: KeyframeEfTask,
    learned: pd.DataFrame,
    earlier: NDArray[np.float64],
    probability: NDArray[np.float64],
) -> NDArray[np.float64]:
    """What a model calls the test studies, by what it said of the others out of fold."""
    question, operating = task.settings.target, task.operating
    known = learned.assign(
        label=classes_of(learned["label"].to_numpy(float), question), score=earlier
    )
    point = fit_operating_point(
        known[np.isfinite(earlier)][["study_id", "patient_id", "label", "score"]],
        question,
        rule=operating.rule,
        calibration=operating.calibration,
        alpha=operating.alpha,
    )
    decided = np.full(len(probability), np.nan)
    there = np.isfinite(probability)
    decided[there] = point.decide(probability[there]).positive
    return decided


def write_predictions(table: pd.DataFrame, out: str) -> None:
    """Keep what a report was counted from."""
    write_table(storage.join(out, "keyframes.parquet"), table)
