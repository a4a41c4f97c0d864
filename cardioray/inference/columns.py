"""Predictions of videos in the columns that other projects write and read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cardioray.answers import ModelOutputs
from cardioray.data.clip import CLIP
from cardioray.data.decoding import DecodedSample
from cardioray.registry import Registry
from cardioray.tasks.base import Task
from cardioray.tasks.video import VideoTask

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Columns:
    """How another project writes its predictions.

    Attributes:
        rows: makes the rows of one video from its name, its split ("" where nothing says it), its
            sample and the network's outputs.
        header: whether its CSV file has a header.
    """

    rows: Callable[[str, str, DecodedSample, ModelOutputs, str], Rows]
    header: bool


COLUMNS: Registry[Columns] = Registry("columns")


def _echonet(
    name: str, split: str, sample: DecodedSample, outputs: ModelOutputs, target: str
) -> Rows:
    """EchoNet-Dynamic's `test_predictions.csv`: one row a window."""
    [windows] = outputs.windows[target]
    return [
        {"filename": name, "clip": number, "value": round(float(value), 4)}
        for number, value in enumerate(windows)
    ]


def _cardiac_mri(
    name: str, split: str, sample: DecodedSample, outputs: ModelOutputs, target: str
) -> Rows:
    """The `Prediction_<VIEW>_<LABEL>.csv` of the study of CMR findings: one row a video.

    A video of which nothing says the split is a new one: "test".
    """
    frames = int(sample.facts.get("source_frames", len(sample.arrays[CLIP])))
    score = float(outputs.scores[target][0])
    return [{"filename": name, "split": split or "test", "frames": frames, "preds": score}]


COLUMNS.add("echonet", Columns(_echonet, header=False))
COLUMNS.add("cardiac_mri", Columns(_cardiac_mri, header=True))


def require_videos(task: Task, columns: str) -> None:
    """Refuse columns that are unknown, or of another kind than the task's predictions.

    Raises:
        ValueError: lists the known ones.
    """
    COLUMNS.get(columns)
    if not isinstance(task, VideoTask):
        raise ValueError(f"--columns {columns}: {task.name} does not predict from videos.")


def video_rows(
    columns: str,
    names: Sequence[str],
    samples: Sequence[DecodedSample],
    outputs: ModelOutputs,
    target: str,
    splits: Sequence[str] | None = None,
) -> Rows:
    """The rows of some videos.

    Args:
        columns: a name of `COLUMNS`.
        names: of their files.
        samples: the videos.
        outputs: what the network says of them; uncalibrated, as those projects write it.
        target: the head.
        splits: of the videos, "" where nothing says it; None where it does of none.
    """
    make = COLUMNS.get(columns).rows
    said = [""] * len(names) if splits is None else splits
    return [
        row
        for number, (name, split, sample) in enumerate(zip(names, said, samples, strict=True))
        for row in make(name, split, sample, outputs[number : number + 1], target)
    ]


def as_csv(columns: str, table: pd.DataFrame) -> bytes:
    """The table as that project's CSV file."""
    return table.to_csv(index=False, header=COLUMNS.get(columns).header).encode()
