"""The frames at end diastole, at end systole and between them, as people's data name them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import pandas as pd

from cardioray import storage
from cardioray.data.camus import is_camus, read_camus
from cardioray.data.echo_layouts import find_tracings, read_echo_manifest
from cardioray.data.layouts import (
    as_text,
    files_of,
    is_phantom,
)
from cardioray.data.manifest import Manifest
from cardioray.data.segment_layouts import VIEW_WORDS, read_segment_manifest
from cardioray.targets import Target

FrameName = Literal["ED", "ES", "MID"]
ED: FrameName = "ED"
ES: FrameName = "ES"
MID: FrameName = "MID"
FRAMES: tuple[FrameName, ...] = (ED, ES, MID)
# Whether a label map stands beside the frame, so that a segmentation can learn from it.
OUTLINED = "outlined"

_WORDS = {
    **{"ed": ED, "diastole": ED, "es": ES, "systole": ES},
    **{"mid": MID, "mf": MID, "middle": MID},
}
# A label map without a structure.
_NO_OUTLINES = "{}"


def read_keyframe_manifest(
    data: str, targets: Sequence[Target], *, patient_from: str | None = None
) -> Manifest:
    """Read CAMUS, EchoNet with its tracings, or a table that names the key frames.

    - CAMUS: the frames at end diastole and end systole of each view; there is no middle one.
    - EchoNet: the two traced frames of each video, and the frame half-way between them.
    - A table of pictures: `source`, `phase` (ED, ES or MID), `study_id`, and optionally `view`,
      `frame`, `mask`, `patient_id`, `split` and the numbers of the targets.
    - A table of cines: `source` or `filename`, `ed_frame`, `es_frame` and optionally `mid_frame`,
      counted from 0, and the same others; `cardioray data keyframes` writes one. Without
      `mid_frame`, it is half-way.

    Columns beside the usual ones: `phase`, `view` ("" where it is not said), `mask` and `outlined`.

    Args:
        data: folder or table; local or s3://.
        targets: numbers and classes of a study; their columns are added where they are missing.
        patient_from: regular expression that finds the patient in a file name.

    Raises:
        ValueError: when the data name no key frames, or a row is wrong; names it.
    """
    data = storage.absolute(data)
    files = files_of(data)
    if is_camus(files):
        manifest = read_camus(data, patient_from)
    elif find_tracings(files) is not None:
        numbers = [target for target in targets if target.kind == "regression"]
        manifest = read_segment_manifest(data, numbers, patient_from=patient_from)
        manifest = replace(manifest, table=_with_middle(manifest.table))
    else:
        manifest = _from_table(data, targets, patient_from)
    table = manifest.table.copy()
    if "phantom" not in table and files and is_phantom(data):
        table["phantom"] = True
    masks = table.get("mask", pd.Series("", index=table.index)).map(as_text)
    table[OUTLINED] = (masks != "") & (masks != _NO_OUTLINES)
    table["mask"] = masks.where(masks != "", _NO_OUTLINES)
    for target in targets:
        column = target.value_column
        if column is not None and column not in table:
            table[column] = np.nan
    return replace(manifest, table=table.reset_index(drop=True))


def _from_table(data: str, targets: Sequence[Target], patient_from: str | None) -> Manifest:
    manifest = read_echo_manifest(data, targets, patient_from=patient_from)
    table = manifest.table
    if "view" in table:
        said = [as_text(value) for value in table["view"]]
        table["view"] = [VIEW_WORDS.get(view.lower(), view) for view in said]
    else:
        table["view"] = ""
    if "phase" in table:
        return replace(manifest, table=_named_phases(table))
    if {"ed_frame", "es_frame"} <= set(table):
        table, lost = phases_of_cines(table)
        warnings = [*manifest.warnings]
        if lost:
            warnings.append(f"{lost} cine(s) without key frames are left out.")
        return replace(manifest, table=table, warnings=tuple(warnings))
    raise ValueError(
        f"{data} does not say which frames are at end diastole and end systole: a column phase "
        "(ED, ES, MID), or ed_frame and es_frame. `cardioray data keyframes` finds them in cines, "
        "by the area of the cavity that a segmentation bundle outlines."
    )


def _named_phases(table: pd.DataFrame) -> pd.DataFrame:
    said = [_WORDS.get(as_text(value).lower(), "") for value in table["phase"]]
    if "" in said:
        row = said.index("")
        raise ValueError(
            f"Manifest row {row + 1}: phase={table['phase'].iloc[row]!r} is none of "
            f"{', '.join(FRAMES)}."
        )
    return table.assign(phase=said)


def phases_of_cines(table: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """A row for each key frame of each cine that has both, and how many cines have not.

    Args:
        table: cines with `sample_id`, `ed_frame`, `es_frame` and perhaps `mid_frame`.

    Returns:
        The rows with `phase`, `frame` and `study_id`, which is the cine's own where the table has
        none.

    Raises:
        ValueError: when no cine has both.
    """
    rows: list[pd.Series] = []
    numbers = {
        name: pd.to_numeric(table[name], errors="coerce")
        for name in ("ed_frame", "es_frame", "mid_frame")
        if name in table
    }
    lost = 0
    for position, (_, row) in enumerate(table.iterrows()):
        found = {name: values.iloc[position] for name, values in numbers.items()}
        ed, es = found["ed_frame"], found["es_frame"]
        if not (ed >= 0 and es >= 0):
            lost += 1
            continue
        middle = found.get("mid_frame", np.nan)
        if not middle >= 0:
            middle = half_way(int(ed), int(es))
        for phase, number in ((ED, ed), (ES, es), (MID, middle)):
            rows.append(_key_frame(row, phase, int(number)))
    if not rows:
        raise ValueError("No row has both ed_frame and es_frame, counted from 0.")
    return pd.DataFrame(rows).reset_index(drop=True), lost


def _with_middle(table: pd.DataFrame) -> pd.DataFrame:
    """EchoNet's traced frames, and the one half-way between those of each video."""
    rows = []
    for _, own in table.groupby("source", sort=False):
        rows.append(own)
        numbers = dict(zip(own["phase"], own["frame"].astype(int), strict=True))
        if {ED, ES} <= set(numbers):
            first = own[own["phase"] == ED].iloc[0].copy()
            first["sample_id"] = first["sample_id"].removesuffix(f"_{ED}")
            middle = _key_frame(first, MID, half_way(numbers[ED], numbers[ES]))
            rows.append(middle.to_frame().T)
    return pd.concat(rows, ignore_index=True)


def _key_frame(row: pd.Series, phase: str, number: int) -> pd.Series:
    """The row of a cine as that of one of its frames."""
    found = row.copy()
    found["study_id"] = as_text(row.get("study_id")) or row["sample_id"]
    found["sample_id"] = f"{row['sample_id']}_{phase}"
    found["phase"], found["frame"], found["mask"] = phase, str(number), ""
    return found


def half_way(first: int, last: int) -> int:
    """The frame in the middle between two, the earlier one of two that are as near."""
    return (first + last) // 2
