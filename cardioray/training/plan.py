"""What a run is going to do, as every worker is told it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.actor import ActorHandle

from cardioray.data.ranks import Rows
from cardioray.data.shards import ShardSet
from cardioray.tasks.base import LabelStatistics, ScoredRows
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
        carried: by name a number of every sample, which batches bring along.
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
    carried: dict[str, NDArray[np.float32]]
    statistics: LabelStatistics
    weights: str | None
    stages: tuple[StageConfig, ...]
    threads: int
    progress: ActorHandle[Any] | None
    label: str
    tracking: Tracking | None

    def labels_of(self, rows: Rows) -> dict[str, NDArray[np.float32]]:
        """Labels and carried numbers of some rows."""
        places = np.searchsorted(self.shards.samples["row"].to_numpy(), rows)
        return {name: values[places] for name, values in (self.labels | self.carried).items()}

    def scored(
        self,
        split: str,
        rows: Rows,
        measures: Mapping[str, NDArray[Any]],
        one_window: Mapping[str, NDArray[Any]],
    ) -> ScoredRows:
        """Rows with what a network says of them; see `ScoredRows`."""
        samples = self.shards.samples
        places = np.searchsorted(samples["row"].to_numpy(), rows)
        return ScoredRows(
            samples=samples.iloc[places].reset_index(drop=True),
            split=split,
            labels={name: values[places] for name, values in self.labels.items()},
            measures=measures,
            one_window=one_window,
        )
