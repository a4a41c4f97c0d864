"""The layouts that people keep labelled files in, each read into a table of sources.

A table of samples, a folder per class, or DICOM files with a table of labels. What the columns
must hold is checked in `cardioray.data.manifest`, the same for all of them.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pandas as pd

from cardioray import storage
from cardioray.data.dicom import DicomIdentity, read_identity
from cardioray.data.frames import LOST_FILES
from cardioray.targets import BinaryTarget, Target

TABLE_SUFFIXES = (".csv", ".xlsx", ".parquet")
# Text, whatever it looks like: "007" and "7" are two patients.
TEXT_COLUMNS = ("sample_id", "patient_id", "study_id", "view", "source", "split", "frame")
# What the tables of other projects call them.
_OTHERS_TEXT = ("filename", "video_unique_id", "study_unique_id")
SPLITS = ("train", "validation", "calibration", "test")
SPLIT_NAMES = {
    **{name: name for name in SPLITS},
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "calib": "calibration",
}
PHANTOM_REQUEST = "request.json"
_SHOWN = 5


def shown(names: Sequence[object]) -> str:
    """The first few of some names, and how many more there are, for a message."""
    listed = ", ".join(str(name) for name in names[:_SHOWN])
    more = len(names) - _SHOWN
    return f"{listed} and {more} more" if more > 0 else listed


def find_table(folder: str, stem: str) -> str | None:
    """The table of a name in a folder, None when there is none.

    Raises:
        ValueError: when it is there in several formats.
    """
    names = [storage.join(folder, stem + suffix) for suffix in TABLE_SUFFIXES]
    found = [name for name in names if storage.exists(name)]
    if len(found) > 1:
        raise ValueError(f"Several tables in one folder: {', '.join(found)}. Name the one to read.")
    return found[0] if found else None


def read_table(path: str, targets: Sequence[Target]) -> pd.DataFrame:
    """Read CSV, Excel or Parquet; the columns used here are found in any case.

    Raises:
        ValueError: when the file does not exist, cannot be read, or has a column twice.
    """
    try:
        data = storage.read_bytes(path)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist.") from None
    known = {name: name for name in TEXT_COLUMNS}
    for target in targets:
        for column in (getattr(target, "label_column", None), target.value_column):
            if column is not None:
                known[_plain(column)] = column
    try:
        if path.lower().endswith(".parquet"):
            table = pd.read_parquet(io.BytesIO(data))
        elif path.lower().endswith(".xlsx"):
            table = pd.read_excel(io.BytesIO(data), dtype=object).infer_objects()
        else:
            table = _read_csv(data)
    except Exception as error:  # each format's reader has its own family of errors
        raise ValueError(f"{path} cannot be read as a table: {error}") from error
    table = table.rename(columns=lambda name: known.get(_plain(name), str(name)))
    if table.columns.has_duplicates:
        twice = table.columns[table.columns.duplicated()][0]
        raise ValueError(f"{path} has the column {twice!r} twice.")
    return table


def _read_csv(data: bytes) -> pd.DataFrame:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text; save it as CSV UTF-8") from None
    header = text.split("\n", 1)[0]
    separator = max(",;\t", key=header.count)
    names = pd.read_csv(io.StringIO(text), sep=separator, nrows=0).columns
    # A name of digits keeps its zeros.
    as_text = {name: str for name in names if _plain(name) in (*TEXT_COLUMNS, *_OTHERS_TEXT)}
    decimal = _decimal_mark(text) if separator != "," else "."
    return pd.read_csv(io.StringIO(text), sep=separator, decimal=decimal, dtype=as_text)


def _decimal_mark(text: str) -> str:
    """The comma where a table that is not separated by commas has numbers with one, else a dot."""
    cells = re.findall(r"(?<=[;\t\n\"])-?\d*([.,])\d+(?=[;\t\r\n\"]|$)", text)
    return "," if cells and set(cells) == {","} else "."


def _plain(name: object) -> str:
    return str(name).strip().lower().replace(" ", "_")


def read_class_folders(root: str, target: Target) -> tuple[pd.DataFrame, list[str]]:
    """One row for each file below `<root>/[<split>/]<class>/`, and warnings.

    Raises:
        ValueError: when `root` does not exist, holds other folders, or the target has no classes.
    """
    if not storage.exists(root):
        raise ValueError(f"{root} does not exist.")
    if not isinstance(target, BinaryTarget):
        raise ValueError(
            f"{root} holds no manifest.csv, .xlsx or .parquet; a folder per class is read for "
            f"yes/no targets only, and {target.name!r} is a number."
        )
    classes = {n.lower(): target.positive for n in (target.positive, *target.positive_aliases)}
    for name in (target.negative, *target.negative_aliases):
        classes[name.lower()] = target.negative
    rows, strange, loose = [], set(), []
    for source in relative_files(root):
        folders = source.split("/")[:-1]
        split = SPLIT_NAMES.get(folders[0].lower(), "") if folders else ""
        below = folders[1:] if split else folders
        if not below:
            loose.append(source)
        elif below[0].lower() not in classes:
            strange.add(below[0])
        else:
            rows.append((source, classes[below[0].lower()], split))
    if strange or not rows:
        found = f"other folders ({shown(sorted(strange))})" if strange else "no class folder"
        raise ValueError(
            f"{root} holds {found}. Expected are manifest.csv, .xlsx or .parquet, or one folder "
            "per class, with or without train and test folders above: "
            f"{', '.join(sorted(classes))}."
        )
    table = pd.DataFrame(rows, columns=["source", target.label_column, "split"])
    if PHANTOM_REQUEST in loose and is_phantom(root):
        loose.remove(PHANTOM_REQUEST)
        table["phantom"] = True  # as its manifest would say
    ignored = f"{len(loose)} file(s) outside the class folders are ignored: {shown(loose)}."
    return table, [ignored] if loose else []


def read_phantom_request(folder: str) -> dict[str, Any] | None:
    """What a phantom data set was written for: its `request` and whether it is `complete`.

    None where the folder's `PHANTOM_REQUEST` is somebody else's.
    """
    try:
        content = json.loads(storage.read_bytes(storage.join(folder, PHANTOM_REQUEST)))
    except ValueError:
        return None
    match content:
        case {"request": {"phantom": str()}, "complete": bool()}:
            return dict(content)
    return None


def is_phantom(folder: str) -> bool:
    """Whether a folder is what one of the phantom commands wrote."""
    request = storage.join(folder, PHANTOM_REQUEST)
    return storage.exists(request) and read_phantom_request(folder) is not None


def join_dicom_labels(
    labels: pd.DataFrame, folder: str, find_patients: Callable[[list[str]], list[str]] | None
) -> tuple[pd.DataFrame, list[str]]:
    """Give every DICOM picture in a folder the labels of its study or patient, and warnings.

    Files are matched by `study_id` (Study Instance UID) where the table has that column, else by
    `patient_id` (Patient ID of the file, or what `find_patients` says).

    Args:
        labels: one row a study or patient, no column `source`.
        folder: searched with all folders below it.
        find_patients: patients of a list of files, where their names tell it.

    Raises:
        ValueError: when the table has neither column, a key twice, or matches no file.
    """
    key = next((name for name in ("study_id", "patient_id") if name in labels), None)
    if key is None:
        raise ValueError(
            "The table has none of the columns source, study_id and patient_id, only "
            f"{', '.join(labels.columns)}."
        )
    labels = labels.assign(**{key: [as_text(value) for value in labels[key]]})
    twice = labels[key][labels[key].duplicated()]
    if len(twice):
        raise ValueError(f"The table has {key} {twice.iloc[0]!r} twice.")
    files, unread = _dicom_files(folder)
    if find_patients is not None:
        files["patient_id"] = find_patients(files["source"].tolist())
    carried = [name for name in ("patient_id", "study_id") if name == key or name not in labels]
    table = files[["source", *carried]].merge(labels, on=key, how="left", indicator=True)
    orphans = table["source"][table["_merge"] == "left_only"].tolist()
    table = table[table["_merge"] == "both"].drop(columns="_merge")
    if table.empty:
        raise ValueError(
            f"None of the {len(files)} DICOM pictures in {folder} has a {key} of the table."
        )
    if key == "study_id" and (table["patient_id"] == "").any() and "patient_id" not in labels:
        del table["patient_id"]  # not known for all: completed as for any other files
    warnings = []
    if unread:
        warnings.append(
            f"{len(unread)} file(s) that cannot be read are left out: {shown(sorted(unread))}."
        )
    if orphans:
        warnings.append(
            f"{len(orphans)} DICOM picture(s) without a row in the table: {shown(orphans)}."
        )
    absent = sorted(set(labels[key]) - set(table[key]))
    if absent:
        warnings.append(f"{len(absent)} {key}(s) of the table without a picture: {shown(absent)}.")
    return table, warnings


def _dicom_files(folder: str) -> tuple[pd.DataFrame, list[str]]:
    """The DICOM pictures of a folder with patient and study, and what cannot be read."""
    sources = [s for s in relative_files(folder) if not s.lower().endswith(TABLE_SUFFIXES)]
    identities, unread = read_identities([storage.join(folder, source) for source in sources])
    found = [(s, i) for s, i in zip(sources, identities, strict=True) if i is not None]
    rows = [(source, identity.patient_id, identity.study_uid) for source, identity in found]
    table = pd.DataFrame(rows, columns=["source", "patient_id", "study_id"])
    return table, [path[len(folder) :].lstrip("/") for path in unread]


def read_identities(paths: list[str]) -> tuple[list[DicomIdentity | None], list[str]]:
    """Whose picture each file is, None where no DICOM tag tells, and which cannot be read."""

    def identify(path: str) -> tuple[DicomIdentity | None, bool]:
        system, inner = storage.filesystem(path)
        try:
            with system.open_input_file(inner) as stream:
                return read_identity(stream), True
        except LOST_FILES:
            return None, False

    with ThreadPoolExecutor(max_workers=16) as pool:
        found = list(pool.map(identify, paths))
    unread = [path for path, (_, readable) in zip(paths, found, strict=True) if not readable]
    return [identity for identity, _ in found], unread


def relative_files(root: str) -> list[str]:
    """Files below a folder, as paths relative to it."""
    return [path[len(root.rstrip("/")) :].lstrip("/") for path in storage.list_files(root)]


def files_of(data: str) -> list[str]:
    """Files below a folder, relative to it; none of a table, and of a folder that is not there."""
    is_table = data.lower().endswith(TABLE_SUFFIXES)
    return relative_files(data) if not is_table and storage.exists(data) else []


def as_text(value: object) -> str:
    """A cell as an identifier: "" where it is empty, "7" for a spreadsheet's 7.0."""
    if value is None or value is pd.NA or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()
