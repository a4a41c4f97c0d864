"""What a run is going to do, as every worker is told it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from ray.actor import ActorHandle

from cardioray.data.ranks import Rows
from cardioray.data.shards import ShardSet
from cardioray.tasks.base import LabelStatistics, Task
from cardioray.training.settings import StageConfig
from cardioray.training.tracking import Tracking

SCORED_SPLITS = ("validation", "calibration", "test")


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """What the driver decided before any worker started; the same on every rank.

    Attributes:
        run: the run's settings, in their written form.
        folder: the run's folder or prefix.
        shards: prepared data.
        rows: per split the rows that take part, ascending.
        labels: per target the labels of every sample of the shards.
        statistics: of the training labels.
        weights: where the first weights come from, or None.
        stages: the stages to go through.
        threads: CPU threads of each worker.
        progress: actor that is told how far the run is, or None.
        label: name of the run in progress displays.
        tracking: MLflow server that is told, or None.
    """

    run: dict[str, Any]
    folder: str
    shards: ShardSet
    rows: dict[str, Rows]
    labels: dict[str, NDArray[np.float32]]
    statistics: LabelStatistics
    weights: str | None
    stages: tuple[StageConfig, ...]
    threads: int
    progress: ActorHandle[Any] | None
    label: str
    tracking: Tracking | None


def predictions_table(
    plan: TrainPlan,
    task: Task,
    split: str,
    rows: Rows,
    scores: Mapping[str, NDArray[np.float32]],
    one_window: Mapping[str, NDArray[np.float32]],
) -> pd.DataFrame:
    """Scores of some rows as a predictions table, by row number.

    One row a sample and target that has a label: a second head learns from fewer samples.

    Args:
        plan: of the run.
        task: of the run.
        split: of the rows.
        rows: row numbers.
        scores: per target the score of each row, the mean over its windows.
        one_window: the same of the middle window alone, for tasks that cut windows.
    """
    samples = plan.shards.samples
    positions = np.searchsorted(samples["row"].to_numpy(), rows)
    ids = samples.iloc[positions]
    pieces = []
    for target in task.targets:
        piece = pd.DataFrame(
            {
                "sample_id": ids["sample_id"].to_numpy(),
                "patient_id": ids["patient_id"].to_numpy(),
                "study_id": task.studies(ids).to_numpy(),
                "source": ids["source"].to_numpy(),
                "split": split,
                "head": target.name,
                "label": plan.labels[target.name][positions],
                "score": scores[target.name],
                "row": rows,
            }
        )
        if task.sampler.cuts:
            piece["score_one_window"] = one_window[target.name]
        pieces.append(piece[piece["label"].notna()].sort_values("row"))
    return pd.concat(pieces, ignore_index=True)
