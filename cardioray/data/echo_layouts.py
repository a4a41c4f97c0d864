"""The layouts that people keep echo videos in: EchoNet's, and manifests of videos with findings."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cardioray import storage
from cardioray.data.frames import VIDEO_SUFFIXES
from cardioray.data.layouts import (
    SPLIT_NAMES,
    TABLE_SUFFIXES,
    as_text,
    find_table,
    is_phantom,
    read_table,
    relative_files,
    shown,
)
from cardioray.data.manifest import Manifest, finish_manifest, read_manifest
from cardioray.targets import Target

# Names that other projects give to columns used here.
_COLUMNS = {
    "study_unique_id": "study_id",
    "video_unique_id": "source",
    "filename": "source",
    "file_name": "source",
    "mrn": "patient_id",
    # Findings of a cardiac MRI.
    "wall_motion": "wma",
    "t1": "t1_ms",
    "t2": "t2_ms",
    "ecv": "ecv_percent",
}
_FILE_LIST = "filelist.csv"
_TRACINGS = "volumetracings.csv"
_LINE_COLUMNS = ("filename", "x1", "y1", "x2", "y2", "frame")
_CONTOUR_COLUMNS = ("filename", "x", "y", "frame")
_SUFFIXES = (*VIDEO_SUFFIXES, ".dcm")
# Views of a transthoracic study; two or more columns of these names are confidences.
_VIEWS = (
    "A2C", "A3C", "A4C", "A5C", "APLAX", "PLAX", "PSAX", "SC4C", "SUBCOSTAL", "SUPRASTERNAL",
)  # fmt: skip


def read_echo_manifest(
    data: str, targets: Sequence[Target], *, patient_from: str | None = None
) -> Manifest:
    """Read EchoNet's layout, a table of videos, or what `read_manifest` reads.

    - EchoNet: a folder with `FileList.csv` (FileName, Split, EF, ...), or that file. Names with and
      without ".avi", splits in any case; fold numbers, as the paediatric release has them, become
      test (the highest), validation (the next) and train. `VolumeTracings.csv` beside it, of lines
      or of contours, gives `ed_frame` and `es_frame`.
    - A table: .csv, .xlsx or .parquet with `Video_Unique_ID` or `filename` or `source`, and
      optionally `Study_Unique_ID`, `mrn` or `patient_id`, `split`, `view`. A column `TARGET` or
      `LABEL` is the first target's. Where no view is given, columns named after views hold
      confidences, of which the highest tells the view.

    Videos lie beside the table or in its folder `Videos`; a name without ending is completed.

    Args:
        data: folder or table; local or s3://.
        targets: the heads; the names of their columns are found in any case.
        patient_from: regular expression that finds the patient in a file name.

    Raises:
        ValueError: when the data are none of these, no video is found, or a row is wrong; names
            file, row and column.
    """
    data = storage.absolute(data)
    path = data if data.lower().endswith(TABLE_SUFFIXES) else _table_of(data, targets)
    if path is None:
        return read_manifest(data, targets, patient_from=patient_from)
    table = _in_our_words(read_table(path, targets), targets)
    if "source" not in table:
        return read_manifest(data, targets, patient_from=patient_from)
    warnings: list[str] = []
    table = _with_view(table, targets, warnings)
    table = _with_headline(table, targets[0])
    base = path.rsplit("/", 1)[0] or "/"
    is_list = path.rsplit("/", 1)[-1].lower() == _FILE_LIST
    if is_list and patient_from is None and "patient_id" not in table:
        table["patient_id"] = [video_stem(as_text(name)) for name in table["source"]]
        warnings.append(
            "Every video counts as a patient of its own, as they are in EchoNet-Dynamic. Where "
            "that is not so, add a column patient_id to FileList.csv."
        )
    if "split" in table:
        table["split"] = _splits(table["split"], warnings)
    table["source"] = _found_videos(table["source"], base, path)
    if "phantom" not in table and is_phantom(base):
        table["phantom"] = True  # which lists of other projects have no column for
    if is_list:
        table = _with_tracings(table, base, warnings)
    return finish_manifest(table, base, targets, patient_from, warnings)


def find_tracings(files: Sequence[str]) -> str | None:
    """VolumeTracings.csv, in any case, of the files of a folder."""
    return next((file for file in files if file.lower() == _TRACINGS), None)


def read_tracings(path: str, warnings: list[str] | None = None) -> pd.DataFrame:
    """EchoNet's tracings of the left ventricle.

    EchoNet-Dynamic traces lines: the first of a frame is the long axis, the others are chords.
    EchoNet-Pediatric traces contours, one row a point, and notes in the column of the frame that
    a phase is missing ("No Systolic"); rows without a frame number are left out.

    Args:
        path: the table; its columns are found in any case.
        warnings: gets a sentence about rows that were left out.

    Returns:
        One row a line or a point, in the order of the file: `name` (the video's, without ending),
        `frame` as the file counts it, and `x1, y1, x2, y2` or `x, y` in px.

    Raises:
        ValueError: when a column is missing or holds no numbers; names row and column.
    """
    data = storage.read_bytes(path)
    names = pd.read_csv(io.BytesIO(data), index_col=False, nrows=0).columns
    text = {name: str for name in names if str(name).strip().lower() == "filename"}
    table = pd.read_csv(io.BytesIO(data), index_col=False, low_memory=False, dtype=text)
    table = table.rename(columns=lambda name: str(name).strip().lower())
    is_contour = "x" in table and "x1" not in table
    columns = _CONTOUR_COLUMNS if is_contour else _LINE_COLUMNS
    if missing := [name for name in columns if name not in table]:
        raise ValueError(
            f"{path} has no column {', '.join(missing)}. Tracings are lines (FileName, X1, Y1, X2, "
            "Y2, Frame) or contours (FileName, X, Y, Frame)."
        )
    untraced = pd.to_numeric(table["frame"], errors="coerce").isna()
    if is_contour and untraced.any():
        notes = sorted({as_text(note) or "empty" for note in table["frame"][untraced]})
        if warnings is not None:
            warnings.append(
                f"{int(untraced.sum())} row(s) of {path.rsplit('/', 1)[-1]} have no frame number "
                f"({shown(notes)}) and are left out."
            )
        table = table[~untraced]
    for column in columns[1:]:
        numbers = pd.to_numeric(table[column], errors="coerce").to_numpy(float)
        wrong, what = ~np.isfinite(numbers), "number"
        if column == "frame" and not wrong.any():
            wrong, what = numbers % 1 != 0, "whole number"
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            value = as_text(table[column].iloc[first])
            raise ValueError(
                f"{path}, row {table.index[first] + 1}: {column}={value!r} is no {what}."
            )
        table = table.assign(**{column: numbers})
    table = table.assign(name=[video_stem(as_text(name)) for name in table["filename"]])
    return table[["name", "frame", *columns[1:-1]]].astype({"frame": int}).reset_index(drop=True)


def traced_outline(rows: pd.DataFrame) -> NDArray[np.float64]:
    """Outline of the cavity in the tracing of one frame, its contour or the ends of its chords.

    Returns:
        (N, 2) in px, x before y.
    """
    if "x" in rows:
        return rows[["x", "y"]].to_numpy(float)
    chords = rows.iloc[1:]  # the first line is the long axis
    left, right = chords[["x1", "y1"]].to_numpy(float), chords[["x2", "y2"]].to_numpy(float)
    return np.concatenate([left, right[::-1]])


def traced_area(rows: pd.DataFrame) -> float:
    """Area in px^2 inside the tracing of one frame."""
    x, y = traced_outline(rows).T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def video_stem(name: str) -> str:
    """File name without folder and video ending; dots of another meaning, as in a UID, stay."""
    name = PurePosixPath(name).name
    ending = next((suffix for suffix in _SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(ending)]


def _table_of(folder: str, targets: Sequence[Target]) -> str | None:
    """FileList.csv of a folder, in any case, else its manifest.

    Where both are there, the list is passed over if it says nothing of the first target.
    """
    files = relative_files(folder) if storage.exists(folder) else []
    lists = [storage.join(folder, file) for file in files if file.lower() == _FILE_LIST]
    manifest = find_table(folder, "manifest")
    if not lists or manifest is None:
        return lists[0] if lists else manifest
    table = _with_headline(read_table(lists[0], targets), targets[0])
    return lists[0] if set(_columns_of(targets[0])) & set(table.columns) else manifest


def _columns_of(target: Target) -> list[str]:
    """Columns that a target looks for, the number before the class."""
    found = (target.value_column, getattr(target, "label_column", None))
    return [column for column in found if column is not None]


def _in_our_words(table: pd.DataFrame, targets: Sequence[Target]) -> pd.DataFrame:
    """Rename what other projects call otherwise; what a target looks for keeps its name."""
    wanted = {column for target in targets for column in _columns_of(target)}
    names = {}
    for column in table.columns:
        ours = _COLUMNS.get(str(column).strip().lower().replace(" ", "_"))
        if ours is not None and column not in wanted and ours not in table:
            names[column] = ours
    return table.rename(columns=names)


def _with_view(table: pd.DataFrame, targets: Sequence[Target], warnings: list[str]) -> pd.DataFrame:
    """Add `view` where columns named after views hold confidences: the view of the highest one.

    The columns are known by their names, in any case, where there are two or more of them; a
    table that names views, and a column that a target looks for, stay as they are. A row whose
    highest confidence is 0 or shared gets no view.

    Raises:
        ValueError: when a view has two columns or a confidence is not between 0 and 1.
    """
    if "view" in table and any(as_text(value) for value in table["view"]):
        return table
    wanted = {column for target in targets for column in _columns_of(target)}
    columns: dict[str, str] = {}
    for column in table.columns:
        view = str(column).strip().upper()
        if view not in _VIEWS or column in wanted:
            continue
        if view in columns:
            raise ValueError(f"The columns {columns[view]!r} and {column!r} are of one view.")
        columns[view] = column
    if len(columns) < 2:
        for column in columns.values():
            warnings.append(
                f"The column {column} is not read as the confidence of a view, since there is no "
                "column of another view to compare it with."
            )
        return table
    given = np.column_stack([_confidences(table[column]) for column in columns.values()])
    best = given.max(axis=1)
    told = (best > 0) & ((given == best[:, None]).sum(axis=1) == 1)
    views = np.where(told, np.array(list(columns))[given.argmax(axis=1)], "")
    least = f"; the least sure row has {best[told].min():.2g}" if told.any() else ""
    warnings.append(
        f"The view of a row is that of the highest confidence of {', '.join(columns)}{least}."
    )
    if not told.all():
        warnings.append(
            f"{int((~told).sum())} row(s) have no single highest confidence, so their view is "
            "unknown."
        )
    return table.assign(view=views.tolist())


def _confidences(column: pd.Series) -> NDArray[np.float64]:
    """A column of confidences, 0 where it is empty."""
    empty = column.isna() | (column.astype(str).str.strip() == "")
    numbers = pd.to_numeric(column.where(~empty), errors="coerce").to_numpy(float, na_value=np.nan)
    # A probability in 32 bit may be a little above 1. Negated, since NaN compares as False.
    wrong = ~((numbers >= 0) & (numbers <= 1 + 1e-6)) & ~empty.to_numpy(bool)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        value = as_text(column.iloc[row])
        raise ValueError(
            f"row {row + 1}: {column.name}={value!r} is no confidence between 0 and 1. "
            "Columns named after views are read as confidences where the table has no column "
            "view; add that column, or rename those that hold something else."
        )
    return np.where(empty, 0.0, numbers)


def _with_headline(table: pd.DataFrame, target: Target) -> pd.DataFrame:
    """Give a column TARGET or LABEL the name that the first target looks for."""
    wanted = _columns_of(target)
    if set(wanted) & set(table.columns):
        return table
    for column in table.columns:
        if str(column).strip().lower() in ("target", "label"):
            return table.rename(columns={column: wanted[0]})
    return table


def _splits(column: pd.Series, warnings: list[str]) -> list[str]:
    """Splits by name; fold numbers become names."""
    texts = [as_text(value) for value in column]
    numbers = [int(text) for text in texts if text.isdigit()]
    if len(numbers) < len(texts) or any(text.lower() in SPLIT_NAMES for text in texts):
        return texts
    folds = sorted(set(numbers))
    if len(folds) < 3:
        raise ValueError(f"Split holds fold numbers, but only {len(folds)} of them.")
    test, validation = folds[-1], folds[-2]
    warnings.append(
        f"Split holds fold numbers: fold {test} is taken as test, fold {validation} as validation, "
        "the others as train."
    )
    named = {test: "test", validation: "validation"}
    return [named.get(number, "train") for number in numbers]


def _found_videos(column: pd.Series, base: str, path: str) -> list[str]:
    """Paths of the videos below the table's folder; a name that is not found stays."""
    names = [as_text(value) for value in column]
    if all(storage.is_remote(name) or name.startswith("/") for name in names if name):
        return names
    files = [file for file in relative_files(base) if not file.lower().endswith(TABLE_SUFFIXES)]
    known = set(files)
    by_name: dict[str, str] = {}
    # What lies nearest to the table wins.
    for file in sorted(files, key=lambda file: (file.count("/"), file), reverse=True):
        name = file.rsplit("/", 1)[-1]
        by_name[name] = file
        if name.lower().endswith(_SUFFIXES):
            by_name[video_stem(name)] = file
    found = [
        name
        if not name or name in known or storage.is_remote(name) or name.startswith("/")
        else by_name.get(name, by_name.get(PurePosixPath(name).name, ""))
        for name in names
    ]
    missing = [name for name, place in zip(names, found, strict=True) if name and not place]
    if missing and len(missing) == sum(bool(name) for name in names):
        raise ValueError(
            f"{path} names {len(missing)} videos ({shown(missing)}), and none of them is below "
            f"{base}. They belong beside the table or in {storage.join(base, 'Videos')}."
        )
    return [place or name for name, place in zip(names, found, strict=True)]


def _with_tracings(table: pd.DataFrame, base: str, warnings: list[str]) -> pd.DataFrame:
    """Add the traced frames: of the two, end diastole is the one with the larger area."""
    tracings = find_tracings(relative_files(base))
    if tracings is None:
        return table
    lines = read_tracings(storage.join(base, tracings), warnings)
    frames: dict[str, tuple[int, int]] = {}
    for name, own in lines.groupby("name", sort=False):
        areas = {
            frame: traced_area(own[own["frame"] == frame])
            for frame in own["frame"].unique().tolist()
        }
        # What encloses nothing, such as a point, would pass for the smaller one.
        areas = {frame: area for frame, area in areas.items() if area > 0}
        if len(areas) >= 2:
            frames[str(name)] = (
                max(areas, key=lambda f: areas[f]),
                min(areas, key=lambda f: areas[f]),
            )
    stems = [video_stem(source) for source in table["source"]]
    untraced = sum(stem not in frames for stem in stems)
    if untraced:
        warnings.append(f"{untraced} of {len(stems)} videos have no tracing of two frames.")
    traced = [frames.get(stem, (-1, -1)) for stem in stems]
    return table.assign(ed_frame=[ed for ed, _ in traced], es_frame=[es for _, es in traced])
