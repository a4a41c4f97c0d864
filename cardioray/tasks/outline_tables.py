"""What is measured of outlines: frame by frame, and as volumes of a study.

Where a file does not state the size of a pixel, nothing is in mm or ml. The ejection fraction is a
ratio of volumes and needs no unit: such pixels are taken for squares of side 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from cardioray.clinical.simpson import DISCS, Cavity, measure_cavity
from cardioray.clinical.volumes import MethodName, Volumes, volumes_of
from cardioray.data.label_maps import CAVITY, MYOCARDIUM, STRUCTURES
from cardioray.evaluation.segment_report import PREDICTED_MAP, UNTIDIED
from cardioray.evaluation.segmentation import mask_figures, pack_labels

Labels = NDArray[np.uint8]

GEOMETRY = ("height_px", "width_px", "spacing_row_mm", "spacing_column_mm")
SPACING = GEOMETRY[2:]
# Of a cavity, by the beginning of its columns: the predicted one, and the reference.
PREDICTED, REFERENCE = "predicted", "reference"
# Key of a bundle's metadata; see `view_doubts`.
CALIBRATION_VIEWS = "calibration_views"
# What is measured of a cavity, and what it is called where its unit is known.
_LENGTHS = {"widths": "widths_mm", "length": "length_mm", "area": "area_mm2"}
# What is kept of a frame in the table of parts.
FRAME_COLUMNS = (
    *("sample_id", "patient_id", "study_id", "source", "row", "frame"),
    *("view", "phase", "image_quality"),
    *GEOMETRY,
)
# Proportions of pixels that differ by more are of pictures that were resampled.
_PROPORTIONS_DIFFER = 0.05


def stated_spacing(row_mm: float, column_mm: float) -> tuple[float, float] | None:
    """Height and width of a pixel in mm; None where they are not both known and above 0."""
    known = all(math.isfinite(side) and side > 0 for side in (row_mm, column_mm))
    return (row_mm, column_mm) if known else None


def cavity_of(labels: Labels, spacing_mm: tuple[float, float]) -> Cavity | None:
    """The cavity of a label map; None where there is none."""
    cavity = labels == CAVITY
    if not cavity.any():
        return None
    return measure_cavity(cavity, spacing_mm, labels == MYOCARDIUM)


def measure_frame(
    raw: Labels,
    tidied: Labels,
    reference: Labels,
    spacing_mm: tuple[float, float] | None,
    structures: Sequence[str],
) -> dict[str, Any]:
    """All that is measured of one frame at its source's size.

    Args:
        raw: the predicted label map, (H, W).
        tidied: the same, tidied.
        reference: the one to compare with.
        spacing_mm: height and width of a pixel; None where they are not known.
        structures: which ones are compared.

    Returns:
        The figures of each structure, `<figure>_<structure>` and `raw_<figure>_<structure>`; of
        each cavity its `widths` (20,), `length` and `area`, in px where the size of a pixel is not
        known; and the tidied map as PNG.
    """
    row: dict[str, Any] = {}
    for name in structures:
        number = STRUCTURES[name]
        for beginning, labels in (("", tidied), (UNTIDIED, raw)):
            figures = mask_figures(labels == number, reference == number, spacing_mm)
            row |= {f"{beginning}{key}_{name}": v for key, v in figures.to_dict().items()}
    for prefix, labels in ((PREDICTED, tidied), (REFERENCE, reference)):
        cavity = cavity_of(labels, spacing_mm or (1.0, 1.0))
        row[f"{prefix}_widths"] = np.full(DISCS, np.nan) if cavity is None else cavity.widths_mm
        row[f"{prefix}_length"] = np.nan if cavity is None else cavity.length_mm
        row[f"{prefix}_area"] = np.nan if cavity is None else cavity.area_mm2
    row[PREDICTED_MAP] = pack_labels(tidied)
    return row


def frame_table(
    samples: pd.DataFrame, split: str, measures: Mapping[str, NDArray[Any]]
) -> pd.DataFrame:
    """One row a frame, of what `measure_frame` gave; lengths in mm, NaN where they are not known.

    Args:
        samples: the frames' rows of the table of the shards.
        split: the split that they are of.
        measures: by name, each (N, ...).
    """
    names = [name for name in FRAME_COLUMNS if name in samples]
    parts = samples[names].assign(split=split)
    units = {
        f"{p}_{key}": f"{p}_{v}" for p in (PREDICTED, REFERENCE) for key, v in _LENGTHS.items()
    }
    for name, values in measures.items():
        if name in units:
            values = values.astype(float)
            values[~in_mm(samples)] = np.nan
        parts[units.get(name, name)] = list(values) if values.ndim > 1 else values
    return parts


def study_volumes(
    frames: pd.DataFrame, measures: Mapping[str, NDArray[Any]], prefix: str, method: MethodName
) -> tuple[Volumes | None, bool]:
    """Volumes of one study, and whether they are in ml.

    Frames in mm and frames in px make no volume together; those in mm count where they are enough.

    Args:
        frames: its rows of the table of the shards.
        measures: what was measured of them.
        prefix: `PREDICTED` or `REFERENCE`.
        method: discs, or area and length.
    """
    known = in_mm(frames)
    for wanted in (True, False):
        mine = np.flatnonzero(known == wanted)
        volumes = volumes_of(_cavities(frames.iloc[mine], measures, mine, prefix), method)
        if volumes is not None:
            return volumes, wanted
    return None, False


def _cavities(
    frames: pd.DataFrame,
    measures: Mapping[str, NDArray[Any]],
    places: NDArray[np.int64],
    prefix: str,
) -> dict[tuple[str, str], Cavity]:
    """The cavity of each view and phase that has one in all of its frames, as their mean."""
    widths, lengths, areas = (measures[f"{prefix}_{name}"][places] for name in _LENGTHS)
    cavities = {}
    for (view, phase), own in frames.reset_index(drop=True).groupby(["view", "phase"]):
        if np.isfinite(lengths[own.index]).all():
            cavities[str(view), str(phase)] = Cavity(
                widths_mm=widths[own.index].mean(axis=0),
                length_mm=float(lengths[own.index].mean()),
                area_mm2=float(areas[own.index].mean()),
                base=np.full(2, np.nan),
                apex=np.full(2, np.nan),
                annulus=None,
            )
    return cavities


def in_mm(frames: pd.DataFrame) -> NDArray[np.bool_]:
    """Which frames have pixels of a known size."""
    return _known(frames[list(SPACING)].to_numpy(float))


def joined_views(views: Sequence[str]) -> str:
    """Views that a number rests on, as tables name them: "A4C+A2C"."""
    return "+".join(views)


def view_doubts(calibrated: Mapping[str, int], views: Sequence[str]) -> list[str]:
    """What is to be said of numbers that rest on other views than those of calibration studies.

    Args:
        calibrated: calibration studies by the views they were measured in (`joined_views`); empty
            where that is not known.
        views: those of the study at hand.
    """
    everyone = sum(calibrated.values())
    if 2 * calibrated.get(joined_views(views), 0) >= everyone:
        return []
    shown = ", ".join(
        f"{names.replace('+', ' and ')} ({count} of {everyone})"
        for names, count in sorted(calibrated.items(), key=lambda item: -item[1])
    )
    return [
        f"Calibration and intervals of the numbers were fitted on studies measured in {shown}; "
        f"this one is measured in {' and '.join(views)}, and they may not hold for it."
    ]


def pixel_doubts(views: Sequence[str], sides: ArrayLike) -> list[str]:
    """What is to be said of the sizes of pixels of some frames, as sentences.

    Args:
        views: of each frame.
        sides: height and width of a pixel of each, (N, 2); NaN or 0 where they are not known.
    """
    doubts = []
    stated = np.asarray(sides, float)
    known = _known(stated)
    if not known.all():
        doubts.append(
            f"{int((~known).sum())} of {len(known)} frames do not state the size of a pixel: "
            "volumes in ml and distances in mm are without them, and their ejection fractions "
            "take pixels for squares."
        )
    ratios = pd.Series(stated[known, 0] / stated[known, 1])
    proportions = ratios.groupby(np.asarray(views, object)[known]).median()
    if len(proportions) > 1 and proportions.max() > (1 + _PROPORTIONS_DIFFER) * proportions.min():
        shown = " and ".join(f"{value:.2f} in {view}" for view, value in proportions.items())
        doubts.append(
            f"Pixels have other proportions in one view than in the other (height over width "
            f"{shown}): pictures of one were resampled, and millilitres and millimetres are only "
            "as good as the pixel size that its files state. An ejection fraction is a ratio and "
            "does not need it."
        )
    return doubts


def _known(sides: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.array([stated_spacing(row, column) is not None for row, column in sides], bool)
