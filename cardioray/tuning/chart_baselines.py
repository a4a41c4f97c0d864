"""What a chart alone tells, and what telling everybody no would: what every ECG has to beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from cardioray.data.ecg_layouts import CHART
from cardioray.targets import BinaryTarget
from cardioray.tasks.base import ScoredRows, Tables, Task, encode_labels
from cardioray.training.plan import SCORED_SPLITS

BOOSTED = "chart alone (boosted trees)"
ALL_NEGATIVE = "all negative"


def baseline_tables(
    task: Task, samples: pd.DataFrame, folds: Sequence[pd.Series[str]], *, seed: int
) -> dict[str, Tables]:
    """Predictions of both baselines, fold by fold, as networks leave them.

    Gradient-boosted trees see age and risk factors, with what is missing left missing. The other
    one gives everybody the share of positives among training patients, which no threshold divides.

    Args:
        task: its targets.
        samples: of the shards.
        folds: split of every sample in each fold.
        seed: of the trees.

    Returns:
        By name of the baseline; where nobody has a chart, there are no trees.
    """
    labels = encode_labels(task, samples)
    taking = task.takes_part(samples)
    chart = samples[list(CHART)].to_numpy(float)
    found: dict[str, list[Tables]] = {ALL_NEGATIVE: []}
    charted = bool(np.isfinite(chart).any())
    if charted:
        found[BOOSTED] = []
    for number, fold in enumerate(folds):
        split = fold.to_numpy(object)
        scores: dict[str, dict[str, NDArray[np.float64]]] = {name: {} for name in found}
        for target in task.targets:
            assert isinstance(target, BinaryTarget)
            known = np.isfinite(labels[target.name])
            training = taking & known & (split == "train")
            wanted = labels[target.name][training].astype(int)
            scores[ALL_NEGATIVE][target.name] = np.full(len(samples), wanted.mean())
            if charted:
                trees = HistGradientBoostingClassifier(
                    max_depth=3, learning_rate=0.05, max_iter=100, random_state=seed
                ).fit(chart[training], wanted)
                scores[BOOSTED][target.name] = trees.predict_proba(chart)[:, 1]
        for name, own in scores.items():
            found[name].append(_tables(task, samples, split, taking, labels, own, number))
    return {name: Tables.joined(tables) for name, tables in found.items()}


def _tables(
    task: Task,
    samples: pd.DataFrame,
    split: NDArray[np.object_],
    taking: NDArray[np.bool_],
    labels: Mapping[str, NDArray[np.float32]],
    scores: Mapping[str, NDArray[np.float64]],
    fold: int,
) -> Tables:
    tables = []
    for part in SCORED_SPLITS:
        rows = np.flatnonzero(taking & (split == part))
        if not len(rows):
            continue
        scored = ScoredRows(
            samples=samples.iloc[rows].reset_index(drop=True),
            split=part,
            labels={name: values[rows] for name, values in labels.items()},
            measures={name: values[rows] for name, values in scores.items()},
            one_window={},
        )
        tables.append(task.tables(scored))
    joined = Tables.joined(tables)
    return Tables(joined.predictions.assign(fold=fold), joined.parts)
