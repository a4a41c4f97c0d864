"""Tables of ECGs: what a page is a picture of, and what the chart says of the patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cardioray import storage
from cardioray.data.layouts import find_table, read_table, shown
from cardioray.data.manifest import Manifest, finish_manifest, read_manifest
from cardioray.registry import unknown_name
from cardioray.targets import Target

# What the chart says, in the order in which a network takes it. Age is in years.
CHART = ("age", "female", "dm", "ht", "smoke", "dlp")
# Other names of these columns, and of the labels, in small letters.
_ALIASES = {
    **{"female_gender": "female", "sex": "female", "gender": "female"},
    **{"diabetes": "dm", "diabetes_mellitus": "dm", "hypertension": "ht"},
    **{"smoking": "smoke", "dyslipidemia": "dlp", "dyslipidaemia": "dlp", "hyperlipidemia": "dlp"},
    **{"scar_cad": "scar", "ef": "lvef", "ecg_path": "path"},
}
# Further columns of the hospital's table.
_HOSPITAL = ("file_name", "run_num", "path", "new_cut", "impute", "year", "month", "hn")
_YES = {"1", "1.0", "yes", "y", "true", "t", "f", "female", "woman"}
_NO = {"0", "0.0", "no", "n", "false", "m", "male", "man"}
_OLDEST = 120.0
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".pdf")
# The table of a hospital beside the folders of its years.
HOSPITAL_TABLE = "ecg"


def read_ecg_manifest(
    data: str,
    targets: Sequence[Target],
    *,
    patient_from: str | None = None,
    drop_imputed: bool = False,
) -> Manifest:
    """Read a manifest of ECGs, or the hospital's table of the multi-task ECG system.

    - A manifest as of other tasks (`source`, the labels, and optionally `patient_id`, `split`).
    - The hospital's table: `file_name` and `run_num`, and `path` or files called
      `<file_name>_<run_num>.jpg`; `scar_cad`, `lvef`; rows with `new_cut` 1 are left out, those
      with `impute` 1 on request. The split is by `train_80_percent` and `develop_10_percent`, the
      others are test patients; a column `split` wins over them.

    Clinical features are found by their usual names ("female_gender", "diabetes", "sex"), and
    become the columns age, female, dm, ht, smoke and dlp, NaN where they are not known.

    Args:
        data: folder or table; local or s3://.
        targets: labels.
        patient_from: regular expression that finds the patient in a file name.
        drop_imputed: leave out rows whose labels were guessed (`impute` 1).

    Raises:
        ValueError: when the data are none of these, or a row is wrong; names it.
    """
    data = storage.absolute(data)
    path = _table_of(data)
    if path is None:
        return _with_chart(read_manifest(data, targets, patient_from=patient_from))
    table = _renamed(read_table(path, targets), targets)
    warnings: list[str] = []
    base = path.rsplit("/", 1)[0] or "/"
    if "source" not in table:
        table = _from_hospital(table, base, drop_imputed, warnings)
    return _with_chart(finish_manifest(table, base, targets, patient_from, warnings))


def read_chart(clinical_features: Mapping[str, Any]) -> dict[str, float]:
    """Clinical features of one patient as numbers, by the names of `CHART`.

    Args:
        clinical_features: by their usual names; None for what is not known.

    Raises:
        ValueError: for an unknown name or an impossible value.
    """
    found: dict[str, float] = {}
    for name, value in clinical_features.items():
        small = str(name).strip().lower().replace(" ", "_")
        wanted = _ALIASES.get(small, small)
        if wanted not in CHART:
            raise unknown_name("clinical feature", str(name), CHART)
        if wanted in found:
            raise ValueError(f"{wanted} is given twice.")
        if value is None or str(value).strip() == "":
            continue
        column = pd.Series([value], name=wanted, dtype=object)
        read = _ages(column) if wanted == "age" else _flags(column)
        found[wanted] = float(read[0])
    return found


def chart_of_row(row: Mapping[str, Any]) -> dict[str, float]:
    """What a row of a table says of the patient, by the names of `CHART`.

    Raises:
        ValueError: for an impossible value.
    """
    plain = {str(name).strip().lower().replace(" ", "_"): name for name in row}
    own = {_ALIASES.get(small, small): name for small, name in plain.items()}
    known = {name: row[own[name]] for name in CHART if name in own}
    return read_chart({name: value for name, value in known.items() if not pd.isna(value)})


def _table_of(data: str) -> str | None:
    """The table to read, None for a folder of classes."""
    if storage.exists(data) and data.rpartition(".")[2].lower() in ("csv", "xlsx", "parquet"):
        return data
    return next(
        (
            found
            for name in ("manifest", HOSPITAL_TABLE, "labels")
            if (found := find_table(data, name)) is not None
        ),
        None,
    )


def _renamed(table: pd.DataFrame, targets: Sequence[Target]) -> pd.DataFrame:
    """Columns by the names used here; a name that is there already is not taken again."""
    plain = {str(name): str(name).strip().lower().replace(" ", "_") for name in table}
    own = {column for target in targets for column in _label_columns(target)}
    names: dict[str, str] = {}
    for name, small in plain.items():
        wanted = _ALIASES.get(small, small)
        known = wanted in CHART or wanted in own or wanted in _HOSPITAL
        taken = wanted in table.columns or wanted in names.values()
        if known and not taken:
            names[name] = wanted
    return table.rename(columns=names)


def _label_columns(target: Target) -> list[str]:
    found = [getattr(target, "label_column", None), target.value_column]
    return [column for column in found if column is not None]


def _from_hospital(
    table: pd.DataFrame, base: str, drop_imputed: bool, warnings: list[str]
) -> pd.DataFrame:
    """Sources, and splits of the hospital's table, without the rows that it says to leave out."""
    if "path" not in table and "file_name" not in table:
        raise ValueError(
            "The table has none of the columns source, path and file_name, only "
            f"{', '.join(map(str, table.columns))}."
        )
    for column, why, wanted in (
        ("new_cut", "were cut wrongly (new_cut)", True),
        ("impute", "have labels that were guessed (impute)", drop_imputed),
    ):
        if column in table and wanted:
            marked = (table[column].map(_flag) == 1).to_numpy(bool)
            if marked.any():
                warnings.append(f"{marked.sum()} row(s) {why} and are left out.")
                table = table[~marked].reset_index(drop=True)
    sources = _paths(table) if "path" in table else _found_names(table, base)
    table = table.assign(source=sources)
    if "patient_id" not in table and "hn" in table:
        table = table.assign(patient_id=table["hn"].astype(str))
    if "split" not in table and "train_80_percent" in table:
        split = np.where(table["train_80_percent"].map(_flag) == 1, "train", "test").astype(object)
        if "develop_10_percent" in table:
            split[(table["develop_10_percent"].map(_flag) == 1).to_numpy(bool)] = "validation"
        table = table.assign(split=split)
    return table


def _paths(table: pd.DataFrame) -> list[str]:
    return [str(path).replace("\\", "/") for path in table["path"]]


def _found_names(table: pd.DataFrame, base: str) -> list[str]:
    """The files that `file_name` and `run_num` mean, wherever below the table they lie."""
    there: dict[str, list[str]] = {}
    for path in storage.list_files(base):
        if path.lower().endswith(_IMAGE_ENDINGS):
            there.setdefault(PurePosixPath(path).stem.lower(), []).append(path)
    runs = table["run_num"] if "run_num" in table else pd.Series(1, index=table.index)
    sources, missing = [], []
    for name, run in zip(table["file_name"].astype(str), runs, strict=True):
        stem = PurePosixPath(name).stem
        fitting = there.get(f"{stem}_{run}".lower(), there.get(stem.lower(), []))
        if len(fitting) == 1:
            sources.append(fitting[0].removeprefix(base.rstrip("/") + "/"))
        else:
            missing.append(f"{stem}_{run} ({len(fitting)} files)")
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(table)} rows name no file, or several, below {base}: "
            f"{shown(missing)}. Give a column `path`."
        )
    return sources


def _with_chart(manifest: Manifest) -> Manifest:
    table = _renamed(manifest.table, ())
    for name in CHART:
        if name not in table:
            table[name] = np.nan
        elif name == "age":
            table[name] = _ages(table[name])
        else:
            table[name] = _flags(table[name])
    return replace(manifest, table=table)


def _ages(column: pd.Series) -> NDArray[np.float64]:
    """Years, NaN where they are not known."""
    ages = pd.to_numeric(column, errors="coerce").to_numpy(float, na_value=np.nan)
    given = column.notna() & (column.astype(str).str.strip() != "")
    wrong = given.to_numpy(bool) & ~((ages > 0) & (ages <= _OLDEST))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"row {row + 1}: age={str(column.iloc[row])!r} is no age in years between 0 and "
            f"{_OLDEST:.0f}."
        )
    return ages


def _flags(column: pd.Series) -> NDArray[np.float64]:
    flags = np.asarray(column.map(_flag), np.float64)
    given = column.notna() & ~column.astype(str).str.strip().str.lower().isin(["", "nan"])
    wrong = given.to_numpy(bool) & np.isnan(flags)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        said = str(column.iloc[row])
        raise ValueError(f"row {row + 1}: {column.name}={said!r} is neither 0 or no nor 1 or yes.")
    return flags


def _flag(value: object) -> float:
    """1.0, 0.0, or NaN for what is neither."""
    text = str(value).strip().lower()
    return 1.0 if text in _YES else 0.0 if text in _NO else np.nan
