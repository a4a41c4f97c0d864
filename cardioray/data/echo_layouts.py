"""The layouts that people keep echo videos in: EchoNet's, and manifests of videos with findings."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

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
_TRACING_COLUMNS = ("filename", "x1", "y1", "x2", "y2", "frame")
_SUFFIXES = (*VIDEO_SUFFIXES, ".dcm")


def read_echo_manifest(
    data: str, targets: Sequence[Target], *, patient_from: str | None = None
) -> Manifest:
    """Read EchoNet's layout, a table of videos, or what `read_manifest` reads.

    - EchoNet: a folder with `FileList.csv` (FileName, Split, EF, ...), or that file. Names with and
      without ".avi", splits in any case; fold numbers, as the paediatric release has them, become
      test (the highest), validation (the next) and train. `VolumeTracings.csv` beside it gives
      `ed_frame` and `es_frame`.
    - A table: .csv, .xlsx or .parquet with `Video_Unique_ID` or `filename` or `source`, and
      optionally `Study_Unique_ID`, `mrn` or `patient_id`, `split`, `view`. A column `TARGET` or
      `LABEL` is the first target's.

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
    table = _with_headline(table, targets[0])
    base = path.rsplit("/", 1)[0] or "/"
    warnings: list[str] = []
    is_list = path.rsplit("/", 1)[-1].lower() == _FILE_LIST
    if is_list and patient_from is None and "patient_id" not in table:
        table["patient_id"] = [PurePosixPath(as_text(name)).stem for name in table["source"]]
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


def read_tracings(path: str) -> pd.DataFrame:
    """EchoNet's tracings of the left ventricle.

    Returns:
        One row a line, in the order of the file: `name` (the video's, without ending), `frame`,
        `x1, y1, x2, y2` in px. The first line of a frame is the long axis, the others are chords.

    Raises:
        ValueError: when a column is missing or holds no numbers.
    """
    table = pd.read_csv(io.BytesIO(storage.read_bytes(path)))
    table = table.rename(columns=lambda name: str(name).strip().lower())
    if missing := [name for name in _TRACING_COLUMNS if name not in table]:
        raise ValueError(f"{path} has no column {', '.join(missing)}.")
    for column in _TRACING_COLUMNS[1:]:
        numbers = pd.to_numeric(table[column], errors="coerce")
        if (wrong := np.flatnonzero(numbers.isna())).size:
            value = table[column].iloc[wrong[0]]
            raise ValueError(f"{path}, row {wrong[0] + 1}: {column}={value!r} is no number.")
        table[column] = numbers
    table["name"] = [PurePosixPath(str(name)).stem for name in table["filename"]]
    return table[["name", "frame", "x1", "y1", "x2", "y2"]].astype({"frame": int})


def traced_area(lines: pd.DataFrame) -> float:
    """Area in px^2 inside the tracing of one frame, by its chords' ends in order."""
    chords = lines.iloc[1:]
    left, right = chords[["x1", "y1"]].to_numpy(float), chords[["x2", "y2"]].to_numpy(float)
    outline = np.concatenate([left, right[::-1]])
    x, y = outline.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


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
            by_name[PurePosixPath(name).stem] = file
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
    tracings = [file for file in relative_files(base) if file.lower() == _TRACINGS]
    if not tracings:
        return table
    lines = read_tracings(storage.join(base, tracings[0]))
    frames: dict[str, tuple[int, int]] = {}
    for name, own in lines.groupby("name", sort=False):
        areas = {
            frame: traced_area(own[own["frame"] == frame])
            for frame in own["frame"].unique().tolist()
        }
        if len(areas) >= 2:
            frames[str(name)] = (
                max(areas, key=lambda f: areas[f]),
                min(areas, key=lambda f: areas[f]),
            )
    stems = [PurePosixPath(source).stem for source in table["source"]]
    untraced = sum(stem not in frames for stem in stems)
    if untraced:
        warnings.append(f"{untraced} of {len(stems)} videos have no tracing of two frames.")
    traced = [frames.get(stem, (-1, -1)) for stem in stems]
    return table.assign(ed_frame=[ed for ed, _ in traced], es_frame=[es for _, es in traced])
