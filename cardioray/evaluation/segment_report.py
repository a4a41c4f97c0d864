"""How well outlines fit, by structure and by group of frames, with intervals by patient."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from cardioray.evaluation.intervals import Interval, patient_bootstrap

Floats = NDArray[np.float64]

FIGURES = ("dice", "iou", "hd95_mm", "msd_mm")
# Beginning of the columns that hold the figures of outlines that were not tidied.
UNTIDIED = "raw_"
# The column that holds the tidied label map of each frame, see `pack_labels`.
PREDICTED_MAP = "predicted_png"
GROUPS = ("phase", "view", "image_quality")


@dataclass(frozen=True)
class OutlineFigures:
    """One structure in some frames.

    Attributes:
        structure: "cavity", "myocardium" or "atrium".
        group: "all", or a column and its value: "phase ED", "image_quality Poor".
        frames: how many frames.
        patients: of how many patients.
        values: mean of each figure over the frames, those where it is not defined left out.
        gained: by tidying, in the same figures.
    """

    structure: str
    group: str
    frames: int
    patients: int
    values: dict[str, Interval]
    gained: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "structure": self.structure,
            "group": self.group,
            "frames": self.frames,
            "patients": self.patients,
            **{name: interval.to_dict() for name, interval in self.values.items()},
            "gained_by_tidying": {
                name: None if np.isnan(value) else value for name, value in self.gained.items()
            },
        }


def outline_figures(
    parts: pd.DataFrame, structures: Sequence[str], *, split: str = "test", seed: int = 0
) -> list[OutlineFigures]:
    """Figures of outlines of one split: of all frames, and by phase, view and image quality.

    Args:
        parts: one row a frame with `patient_id`, `split` and `<figure>_<structure>`, beside
            `raw_<figure>_<structure>`; `phase`, `view` and `image_quality` where they are known.
        structures: which ones.
        split: which frames.
        seed: of the bootstrap.

    Raises:
        ValueError: when there is no frame of the split.
    """
    frames = parts[parts["split"] == split].reset_index(drop=True)
    if frames.empty:
        raise ValueError(f"There is no frame of split {split!r}.")
    return [
        _figures(frames[chosen].reset_index(drop=True), structure, group, seed)
        for structure in structures
        for group, chosen in _groups(frames)
    ]


def print_outlines(figures: Sequence[OutlineFigures], console: Console) -> None:
    """Print the figures as a table."""
    table = Table(
        title="Outlines: means over frames",
        caption="95 % intervals, resamples of patients. MSD is the mean surface distance. Not for "
        "clinical use.",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for heading in ("Frames", "Number", "Dice", "HD95 in mm", "MSD in mm"):
        table.add_column(heading)
    for structure, own in itertools.groupby(figures, lambda found: found.structure):
        table.add_section()
        table.add_row(structure)
        for found in own:
            values = found.values
            shown = (f"{values['dice']:.3f}", f"{values['hd95_mm']:.1f}", f"{values['msd_mm']:.2f}")
            table.add_row(f"  {found.group}", str(found.frames), *shown)
    console.print(table)


def _groups(frames: pd.DataFrame) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    yield "all", np.ones(len(frames), bool)
    for column in GROUPS:
        if column not in frames:
            continue
        values = frames[column].fillna("").astype(str)
        names = sorted(set(values) - {""})
        if len(names) > 1:
            for name in names:
                yield f"{column} {name}", (values == name).to_numpy()


def _figures(frames: pd.DataFrame, structure: str, group: str, seed: int) -> OutlineFigures:
    columns = {name: frames[f"{name}_{structure}"].to_numpy(float) for name in FIGURES}

    def statistic(weights: Floats) -> dict[str, Floats]:
        return {name: _weighted(weights, values) for name, values in columns.items()}

    values = patient_bootstrap(frames, statistic, seed=seed)
    untidied = {name: frames[f"{UNTIDIED}{name}_{structure}"].to_numpy(float) for name in FIGURES}
    return OutlineFigures(
        structure=structure,
        group=group,
        frames=len(frames),
        patients=frames["patient_id"].nunique(),
        values=values,
        gained={name: _mean(columns[name] - untidied[name]) for name in FIGURES},
    )


def _weighted(weights: Floats, values: Floats) -> Floats:
    """Means over the rows that have a value, (resamples,)."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):  # no row with a value was drawn: 0 / 0 is NaN
        return np.asarray(weights[:, known] @ values[known] / weights[:, known].sum(axis=1))


def _mean(values: Floats) -> float:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        return float(np.nanmean(values))
