"""Pictures from shards with what a model said of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cardioray.data.reading import take_rows
from cardioray.data.sampling import split, stacked
from cardioray.data.segment import IMAGE, REFERENCE
from cardioray.data.shards import ShardSet
from cardioray.evaluation import plots
from cardioray.evaluation.segment_panels import Lookup, Picture
from cardioray.targets import BinaryTarget
from cardioray.tasks.base import Task


def prediction_picture(
    frames: pd.DataFrame,
    shards: ShardSet,
    task: Task,
    target: BinaryTarget,
    *,
    seed: int = 0,
) -> Figure:
    """A grid of pictures drawn by chance, as the network sees them, with its answer on each.

    Every study gives one picture before any gives a second, so that a long study does not fill
    the grid.

    Args:
        frames: decided rows, as `evaluation.figures.decide` gives them.
        shards: holds the pictures.
        task: shows its samples as pictures.
        target: what the label means.
        seed: of the draw; models scored on the same rows are shown on the same pictures.
    """
    shuffled = frames.sample(frac=1, random_state=seed)
    turn = shuffled.groupby("study_id").cumcount()
    chosen = shuffled.iloc[turn.argsort(kind="stable")].head(plots.GRID_PICTURES)
    row_of = shards.samples.set_index("sample_id")["row"]
    chosen = chosen.assign(row=row_of[chosen["sample_id"]].to_numpy()).sort_values("row")
    stored = take_rows(shards, chosen["row"].to_numpy(), task.decoder.columns)
    windows = [task.sampler.windows(sample, thorough=False)[0] for sample in split(stored)]
    images = task.pictures(stacked(windows))
    return plots.prediction_grid(
        list(images),
        chosen["label"],
        chosen["probability"],
        chosen["positive"],
        target.classes,
        drawn_from=len(frames),
    )


def stored_outlines(shards: ShardSet) -> Lookup:
    """Finds the pictures of shards with their reference label maps, by the rows of `parts`."""

    def look_up(frames: pd.DataFrame) -> list[tuple[Picture, Picture]]:
        rows = frames["row"].to_numpy(np.int64)
        order = np.argsort(rows)
        found = take_rows(shards, rows[order], (IMAGE, REFERENCE))
        back = np.argsort(order)
        return [(found[IMAGE][i], found[REFERENCE][i]) for i in back]

    return look_up
