"""Who is in which split of a comparison: folds, and patients whom no fold sees."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cardioray import config
from cardioray.data.shards import ShardSet
from cardioray.data.splits import SplitConfig, assign_splits, folds_within
from cardioray.targets import BinaryTarget, RegressionTarget
from cardioray.tasks.base import encode_labels
from cardioray.training.settings import RunConfig
from cardioray.tuning.settings import CompareConfig

log = logging.getLogger(__name__)

# Of either class: below, the AUC takes at most two dozen values.
FEW_PATIENTS = 5


@dataclass(frozen=True, kw_only=True)
class Division:
    """Who is in which split.

    Attributes:
        final: split of every sample for the final models.
        folds: split of every sample in each fold; "" for the final models' test patients.
        calibration: whether the final models have calibration patients of their own.
    """

    final: pd.Series[str]
    folds: list[pd.Series[str]]
    calibration: str


def divide(run: RunConfig, shards: ShardSet, settings: CompareConfig) -> Division:
    """Hold out the final test patients, and divide all others into folds.

    Of a `split` column the final models keep everything, the folds only who is a test patient.

    Raises:
        ValueError: when there are too few patients for that many folds.
    """
    target, configured = run.task.targets[0], run.task.split
    labels = encode_labels(run.task, shards.samples)[target.name]
    final = assign_splits(shards.samples, labels, configured)
    development = (final.split != "test").to_numpy()
    _warn_of_unused(shards.samples[development], configured, settings)
    folded = config.replace(configured, [f"folds={settings.folds}", f"seed={settings.seed}"])
    folds = folds_within(shards.samples, labels, development, folded)
    _require_both_classes(folds, labels, target)
    _warn_of_few(folds, shards.samples["patient_id"], labels, target)
    return Division(final=final.split, folds=folds, calibration=final.calibration)


def _warn_of_unused(
    development: pd.DataFrame, configured: SplitConfig, settings: CompareConfig
) -> None:
    """Say which wishes about splits the folds cannot follow."""
    given = set(development.get("split", ())) & {"validation", "calibration"}
    if given:
        log.warning(
            "The %s patients of the split column are so for the final models only: in the folds "
            "they are divided anew, with the train patients.",
            " and ".join(sorted(given, reverse=True)),
        )
    if configured.folds not in (settings.folds, SplitConfig().folds):
        log.warning(
            "split.folds=%d is not used: --folds says %d.", configured.folds, settings.folds
        )


def _warn_of_few(
    folds: Sequence[pd.Series[str]],
    patients: pd.Series[str],
    labels: NDArray[np.float32],
    target: BinaryTarget | RegressionTarget,
) -> None:
    """Say where validation patients are too few to tell backbones apart."""
    if not isinstance(target, BinaryTarget):
        return
    counts = []
    for fold in folds:
        chosen = (fold == "validation").to_numpy()
        counts.append([patients[chosen & (labels == code)].nunique() for code in (0, 1)])
    fewest = min(counts, key=min)
    if min(fewest) < FEW_PATIENTS:
        shown = " and ".join(
            f"{count} of {name!r}" for count, name in zip(fewest, target.classes, strict=True)
        )
        log.warning(
            "A fold has %s among its validation patients: which backbones go on and which one wins "
            "is little better than chance. More patients or a larger split.validation help.",
            shown,
        )


def _require_both_classes(
    folds: Sequence[pd.Series[str]],
    labels: NDArray[np.float32],
    target: BinaryTarget | RegressionTarget,
) -> None:
    """Refuse folds that cannot be scored, before anything is trained for them."""
    if not isinstance(target, BinaryTarget):
        return
    for number, fold in enumerate(folds, 1):
        for split in ("validation", "test"):
            found = labels[(fold == split).to_numpy()]
            for code, name in enumerate(target.classes):
                if not (found == code).any():
                    raise ValueError(
                        f"fold {number} of {len(folds)} has no {split} patient who is {name!r}, so "
                        "that no AUC can choose a winner: ask for fewer folds, more patients or a "
                        "larger split.validation."
                    )
