"""The table of samples that everything starts from.

A manifest is read from a table (CSV, Excel, Parquet), a folder per class, or a folder of DICOM
files with a table of labels. Reading it touches no pixel; `cardioray.data.check` does.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cardioray import storage
from cardioray.data.frames import RASTER_SUFFIXES, FrameSelection
from cardioray.data.layouts import (
    SPLIT_NAMES,
    TABLE_SUFFIXES,
    TEXT_COLUMNS,
    as_text,
    find_table,
    join_dicom_labels,
    read_class_folders,
    read_identities,
    read_table,
    shown,
)
from cardioray.registry import unknown_name
from cardioray.targets import Target


@dataclass(frozen=True)
class Manifest:
    """The samples of a data set, one row a file or a selection of its frames.

    Attributes:
        table: columns sample_id, patient_id, source, frame (all text), the target's columns,
            where given study_id, view and split, and whatever else the user keeps there. `frame`
            is "" where the row leaves the choice to the settings. A row that selects several
            frames stands for several samples, which decoding yields.
        base: folder or prefix that relative sources start from.
        patients_known: False when studies or files had to be taken for patients.
        warnings: what the reader noticed, as sentences for the user.
    """

    table: pd.DataFrame
    base: str
    patients_known: bool
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.table)

    @property
    def paths(self) -> list[str]:
        """Full path of every row's source."""
        return [resolve(self.base, source) for source in self.table["source"]]

    @property
    def masks(self) -> list[str]:
        """Label map of every row: full path of its file, or outlines in px as JSON ("{...}")."""
        return [m if m.startswith("{") else resolve(self.base, m) for m in self.table["mask"]]

    @functools.cached_property
    def content_hash(self) -> str:
        """Hash of the rows, whatever their order: 16 hex digits.

        Moving a data set with relative sources keeps it. The files are not looked at.
        """
        rows = json.loads(self.table.to_json(orient="records", date_format="iso"))
        lines = sorted(json.dumps(row, sort_keys=True) for row in rows)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def resolve(base: str, source: str) -> str:
    """Full path of a source: relative ones start from `base`; absolute and s3:// ones stay."""
    if storage.is_remote(source) or source.startswith("/"):
        return source
    return storage.join(base, source)


def read_manifest(
    data: str,
    targets: Sequence[Target],
    *,
    patient_from: str | None = None,
    needs_label: bool = True,
) -> Manifest:
    """Read a table of samples, a folder per class, or DICOM files with a table of labels.

    Args:
        data: a .csv, .xlsx or .parquet file, or a folder; local or s3://. A folder is read by the
            `manifest.*` in it, else by the `labels.*` in it, else by its class folders, with or
            without train and test folders above them. A table without a column `source` labels
            the DICOM files of its folder, by study_id or patient_id.
        targets: name the columns of the labels; folders are classes of the first one. A row is
            kept where it has a label of any of them.
        patient_from: regular expression searched in each file name; its group "patient", or its
            first group, is the patient. For data that do not name the patient otherwise.
        needs_label: leave out rows without a label of any target, and refuse data that lack one.

    Raises:
        ValueError: when the data are none of these, or a row is wrong; names the rows.
    """
    data = storage.absolute(data)  # workers of a cluster start elsewhere
    path: str | None = data
    if not data.lower().endswith(TABLE_SUFFIXES):
        path = find_table(data, "manifest") or find_table(data, "labels")
    if path is None:
        table, warnings = read_class_folders(data, targets[0])
        return finish_manifest(table, data, targets, patient_from, warnings)
    base = path.rsplit("/", 1)[0] or "/"
    table, warnings = read_table(path, targets), []
    if "source" not in table:
        find_patients = None
        if patient_from is not None:
            find_patients = functools.partial(_match_patients, pattern=patient_from)
            patient_from = None
        table, warnings = join_dicom_labels(table, base, find_patients)
    return finish_manifest(table, base, targets, patient_from, warnings, needs_label=needs_label)


def study_ids(table: pd.DataFrame) -> pd.Series[str]:
    """What gets one answer: the study of each row, or the patient where no study is known."""
    return table["study_id" if "study_id" in table else "patient_id"]


def check_studies(
    table: pd.DataFrame,
    labels: Mapping[str, NDArray[np.float32]],
    studies: pd.Series[str] | None = None,
) -> None:
    """Refuse rows that one answer cannot serve: a study with two labels or of two patients.

    Args:
        table: rows of a manifest or of shards.
        labels: per target one number a row, NaN where unknown.
        studies: the study of each row; by default `study_ids`.

    Raises:
        ValueError: names the studies, and says what to add where the table has no studies.
    """
    studies = study_ids(table) if studies is None else studies
    if (nameless := int((studies == "").sum())) > 0:
        raise ValueError(f"{nameless} row(s) have no study_id, while other rows have one.")
    patients = table["patient_id"].groupby(studies).nunique()
    if shared := patients.index[patients > 1].tolist():
        raise ValueError(
            f"{len(shared)} study_id(s) stand under two patients: {shown(shared)}. Make them "
            "unique, as patient and vessel together are."
        )
    for target, values in labels.items():
        grouped = pd.Series(values, index=table.index, dtype=float).groupby(studies)
        spread = grouped.max() - grouped.min()
        torn = spread.index[spread > 1e-6 * np.nanmax(np.abs(values), initial=0)].tolist()
        if torn and "study_id" in table:
            raise ValueError(
                f"{len(torn)} study_id(s) have rows with different labels of {target!r}: "
                f"{shown(torn)}. A study gets one answer; give each label its own study_id."
            )
        if torn:
            raise ValueError(
                f"{len(torn)} patient(s) have rows with different labels of {target!r}: "
                f"{shown(torn)}. Without a column study_id a patient gets one answer. Add "
                "study_id, which names what gets one: patient and vessel, such as P07-LAD."
            )


def finish_manifest(
    table: pd.DataFrame,
    base: str,
    targets: Sequence[Target],
    patient_from: str | None,
    warnings: list[str],
    *,
    needs_label: bool = True,
) -> Manifest:
    """Check and complete the columns of a table however it was read; see `read_manifest`.

    Args:
        table: has a column `source`.
        base: folder or prefix that relative sources start from.
        targets: the labels.
        patient_from: regular expression that finds the patient in a file name.
        warnings: what its reader noticed; more may be added.
        needs_label: as for `read_manifest`.

    Raises:
        ValueError: when a row is wrong; names it.
    """
    table = table.reset_index(drop=True)
    for column in TEXT_COLUMNS:
        if column in table:
            table[column] = [as_text(value) for value in table[column]]
    _refuse_rows(table["source"] == "", "no source")
    table["frame"] = _frames(table)
    _normalise_splits(table)
    if "study_id" in table and (table["study_id"] == "").all():
        del table["study_id"]
    labelled = _labelled(table, targets) if needs_label else np.ones(len(table), bool)
    nameless = _fill_patients(table, base, patient_from)
    if nameless:
        warnings.append(
            f"No patient is known for {nameless} of {len(table)} row(s), so each of their studies, "
            "or files where no study is known, counts as a patient of its own, and leakage between "
            "splits cannot be excluded. Give patient ids, or a pattern that finds them in file "
            "names."
        )
    if not labelled.all():
        warnings.append(f"{int((~labelled).sum())} row(s) without label and value are left out.")
        table = table[labelled].reset_index(drop=True)
    _fill_sample_ids(table)
    first = [column for column in TEXT_COLUMNS if column in table]
    table = table[[*first, *(column for column in table if column not in first)]]
    return Manifest(table=table, base=base, patients_known=not nameless, warnings=tuple(warnings))


def _labelled(table: pd.DataFrame, targets: Sequence[Target]) -> NDArray[np.bool_]:
    """Which rows have a label of any target; refuses a target that no row has one of."""
    labels = {target.name: np.isfinite(target.encode(table)) for target in targets}
    for name, known in labels.items():
        if not known.any():
            raise ValueError(f"No row of the manifest has a label or value for {name!r}.")
    return np.asarray(np.any(list(labels.values()), axis=0))


def _refuse_rows(wrong: Iterable[bool], what: str) -> None:
    """Raise when rows are wrong, naming the first; rows are counted from 1 below the header."""
    rows = [index + 1 for index, is_wrong in enumerate(wrong) if is_wrong]
    if rows:
        raise ValueError(f"Manifest row(s) {shown(rows)}: {what}.")


def _frames(table: pd.DataFrame) -> list[str]:
    if "frame" not in table:
        return [""] * len(table)
    frames = []
    for index, text in enumerate(table["frame"]):
        try:
            frames.append(str(FrameSelection.parse(text)) if text else "")
        except ValueError as error:
            raise ValueError(f"Manifest row {index + 1}: {error}") from None
    return frames


def _normalise_splits(table: pd.DataFrame) -> None:
    if "split" not in table:
        return
    if (table["split"] == "").all():
        del table["split"]
        return
    _refuse_rows(table["split"] == "", "no split, while other rows have one")
    for name in table["split"].unique():
        if name.lower() not in SPLIT_NAMES:
            rows = [int(index) + 1 for index in np.flatnonzero(table["split"] == name)]
            unknown = unknown_name("split", name, SPLIT_NAMES)
            raise ValueError(f"Manifest row(s) {shown(rows)}: {unknown}")
    table["split"] = [SPLIT_NAMES[name.lower()] for name in table["split"]]


def _fill_patients(table: pd.DataFrame, base: str, patient_from: str | None) -> int:
    """Complete patient_id; returns the number of rows whose patient nothing names."""
    if "patient_id" in table and (table["patient_id"] != "").any():
        if patient_from is not None:
            raise ValueError("The manifest has patient ids; leave out the patient pattern.")
        _refuse_rows(table["patient_id"] == "", "no patient_id, while other rows have one")
        return 0
    if patient_from is not None:
        table["patient_id"] = _match_patients(table["source"].tolist(), patient_from)
        return 0
    patients, studies = _tagged_patients(table["source"].tolist(), base)
    if "study_id" in table:
        studies = [study or tag for study, tag in zip(table["study_id"], studies, strict=True)]
    table["patient_id"] = [
        patient or study or source
        for patient, study, source in zip(patients, studies, table["source"], strict=True)
    ]
    return patients.count("")


def _tagged_patients(sources: list[str], base: str) -> tuple[list[str], list[str]]:
    """Patient and study of each source by its DICOM tags, "" where it has none."""
    looked_at = sorted({s for s in sources if not s.lower().endswith(RASTER_SUFFIXES)})
    # What is missing or damaged is for the check and for quarantine to tell.
    identities, _ = read_identities([resolve(base, source) for source in looked_at])
    named = {s: i for s, i in zip(looked_at, identities, strict=True) if i is not None}
    patients = [named[s].patient_id if s in named else "" for s in sources]
    return patients, [named[s].study_uid if s in named else "" for s in sources]


def _match_patients(sources: list[str], pattern: str) -> list[str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"Patient pattern {pattern!r} is no regular expression: {error}."
        ) from None
    if not expression.groups:
        raise ValueError(
            f"Patient pattern {pattern!r} needs a group, such as (?P<patient>P[0-9]+)_."
        )
    group: int | str = "patient" if "patient" in expression.groupindex else 1
    names = [PurePosixPath(source).name for source in sources]
    matches = [expression.search(name) for name in names]
    failed = [n for n, m in zip(names, matches, strict=True) if m is None or not m[group]]
    if failed:
        raise ValueError(
            f"Patient pattern {pattern!r} finds no patient in {len(failed)} of {len(names)} file "
            f"names: {shown(failed)}."
        )
    return [match[group] for match in matches if match is not None]


def _fill_sample_ids(table: pd.DataFrame) -> None:
    """Complete sample_id from source and frame, and refuse one that two rows share."""
    given = table["sample_id"] if "sample_id" in table else [""] * len(table)
    table["sample_id"] = [
        sample or _derived_id(source, frame)
        for sample, source, frame in zip(given, table["source"], table["frame"], strict=True)
    ]
    shared = table["sample_id"].duplicated(keep=False)
    if shared.any():
        name = table["sample_id"][shared].iloc[0]
        rows = [int(index) + 1 for index in np.flatnonzero(table["sample_id"] == name)]
        source = table["source"].iloc[rows[0] - 1]
        raise ValueError(
            f"Manifest rows {shown(rows)} share the sample_id {name!r} (source {source!r})."
        )


def _derived_id(source: str, frame: str) -> str:
    digest = hashlib.sha256(f"{source}|{frame}".encode()).hexdigest()[:10]
    return f"{PurePosixPath(source).stem}-{digest}"
