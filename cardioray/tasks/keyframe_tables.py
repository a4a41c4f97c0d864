"""What heads on key frames say of studies, as a table of predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from cardioray.tasks.keyframe_ef import EF_TARGET, KeyframeEfTask
from cardioray.tasks.keyframe_heads import Answers, classes_of


def answers_table(
    task: KeyframeEfTask, studies: pd.DataFrame, answers: Answers, split: str
) -> pd.DataFrame:
    """What the ensemble says of some studies; see `cardioray.evaluation.predictions`.

    Args:
        task: whose targets they are.
        studies: `study_id`, `patient_id`, `label`, and `sample_id`, `row` and `source` of its first
            key frame, one row a study.
        answers: for these studies, in their order.
        split: of all of them.

    Returns:
        One row a study and target.
    """
    own = studies.reset_index(drop=True)
    question = task.settings.target
    labels = own["label"].to_numpy(float)
    said: Mapping[str, tuple[Any, Any]] = {
        EF_TARGET.name: (labels, answers.value),
        question.name: (classes_of(labels, question), answers.probability),
    }
    pieces = []
    for head, (label, score) in said.items():
        piece = own[["sample_id", "study_id", "patient_id", "source", "row"]].copy()
        piece["split"], piece["head"] = split, head
        piece["label"], piece["score"] = label, score
        pieces.append(piece)
    table: pd.DataFrame = pd.concat(pieces, ignore_index=True)
    return table
