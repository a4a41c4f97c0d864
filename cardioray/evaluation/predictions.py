"""The predictions table: the one thing evaluation reads, so that anyone's model can be scored.

One row is one sample (frame, clip, picture) and one head. Only `patient_id`, `label` and `score`
have to be there.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cardioray.registry import unknown_name
from cardioray.storage import read_bytes
from cardioray.targets import BinaryTarget, RegressionTarget

REQUIRED_COLUMNS = ("patient_id", "label", "score")
# In the order of a checked table.
PREDICTION_COLUMNS = (
    "head",
    "fold",
    "split",
    "patient_id",
    "study_id",
    "sample_id",
    "source",
    "label",
    "score",
)
# Of cines: what a single window of them, the middle one, says. Not every table has it.
ONE_WINDOW = "score_one_window"
# Of outlined studies: the views that a number was measured in, "A4C+A2C". Not every table has it.
MEASURED_VIEWS = "measured_views"
SPLITS = ("train", "validation", "calibration", "test")
_TEXT_COLUMNS = ("head", "split", "patient_id", "study_id", "sample_id", "source")
_STUDY_KEYS = ["fold", "split", "patient_id", "study_id"]


def read_predictions(path: str) -> pd.DataFrame:
    """Read a predictions table as it is written; `check_predictions` checks and types it.

    Args:
        path: a .csv, .csv.gz or .parquet file, local or s3://.

    Raises:
        ValueError: when the ending is none of these.
    """
    name = path.lower()
    if name.endswith((".parquet", ".pq")):
        return pd.read_parquet(io.BytesIO(read_bytes(path)))
    if name.endswith((".csv", ".csv.gz")):
        # Identifiers such as "007" are texts; pandas would make them numbers.
        texts = dict.fromkeys(_TEXT_COLUMNS, str)
        packing: Any = "gzip" if name.endswith(".gz") else None
        return pd.read_csv(io.BytesIO(read_bytes(path)), dtype=texts, compression=packing)
    raise ValueError(f"{path}: a predictions table is a .csv, .csv.gz or .parquet file.")


def check_predictions(
    table: pd.DataFrame, target: BinaryTarget | RegressionTarget, *, default_split: str = "test"
) -> pd.DataFrame:
    """Check a predictions table and bring it into one form.

    Args:
        table: columns as in `PREDICTION_COLUMNS`; `patient_id`, `label` and `score` are required.
            A binary label is 0, 1 or one of the target's class names; its score is the
            uncalibrated probability of class 1. `study_id` defaults to `patient_id`.
        target: what the label means; where the table has a column `head`, only the rows of the
            target's name are kept.
        default_split: split of all rows where the table has no column `split`.

    Returns:
        All `PREDICTION_COLUMNS`, typed, sorted by them, with a fresh index, and `score_one_window`
        where the table has it. The order of the rows given does not matter to the result.

    Raises:
        ValueError: when a column is missing, a value is missing or out of range, a row appears
            twice, a study has two labels or two patients, or a patient is in two splits of one
            fold. The text names what is at fault.
    """
    missing = [name for name in REQUIRED_COLUMNS if name not in table]
    if missing:
        raise ValueError(
            f"The predictions table has no column {', '.join(missing)}; it has "
            f"{', '.join(map(str, table.columns)) or 'none'}. Required: "
            f"{', '.join(REQUIRED_COLUMNS)}."
        )
    rows = _rows_of_head(table, target.name).reset_index(drop=True)
    if rows.empty:
        raise ValueError("The predictions table has no rows.")
    checked = pd.DataFrame(
        {
            "head": target.name,
            "fold": _folds(rows),
            "split": _text(rows, "split", default_split).str.lower(),
            "patient_id": _text(rows, "patient_id"),
            "study_id": _text(rows, "study_id")
            if "study_id" in rows
            else _text(rows, "patient_id"),
            "source": _text(rows, "source", ""),
            "label": _labels(rows, target),
            "score": _scores(rows, "score", target),
        }
    )
    more = [ONE_WINDOW] if ONE_WINDOW in rows else []
    for name in more:
        checked[name] = _scores(rows, name, target)
    if "sample_id" in rows:
        checked["sample_id"] = _text(rows, "sample_id")
    order = [name for name in PREDICTION_COLUMNS if name in checked]
    checked = checked.sort_values(order, kind="stable", ignore_index=True)
    if "sample_id" not in rows:
        number = checked.groupby(_STUDY_KEYS).cumcount().astype(str)
        checked["sample_id"] = checked["study_id"] + "#" + number
    checked = checked[[*PREDICTION_COLUMNS, *more]]
    _check_groups(checked)
    return checked


def select_split(table: pd.DataFrame, split: str) -> pd.DataFrame:
    """The rows of one split of a checked table.

    Raises:
        ValueError: when there are none; the text lists the splits that are there.
    """
    rows = table[table["split"] == split].reset_index(drop=True)
    if rows.empty:
        present = ", ".join(f"{name} ({n})" for name, n in table["split"].value_counts().items())
        raise ValueError(
            f"The predictions table has no rows of split {split!r}; it has {present}. Leave the "
            f"column out to score every row."
        )
    return rows


def per_study(table: pd.DataFrame) -> pd.DataFrame:
    """One row per study of a checked table: the mean score over the study's frames.

    Returns:
        Columns `fold, split, patient_id, study_id, label, score, frames`, sorted by the first
        four; a study that was scored in two folds has a row for each. `score_one_window`, where
        the table has it.
    """
    mean = {name: (name, "mean") for name in (ONE_WINDOW,) if name in table}
    return table.groupby(_STUDY_KEYS, as_index=False, sort=True).agg(
        label=("label", "first"), score=("score", "mean"), frames=("score", "size"), **mean
    )


def views_side_by_side(
    table: pd.DataFrame, views: Sequence[str]
) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    """Studies, and what the network of each view says of them.

    Args:
        table: predictions of one target by cine, with a column `view`.
        views: the views, in the order of the scores.

    Returns:
        One row a study with `sample_id` (the study's), `patient_id`, `study_id`, `split` and
        `label`, and scores (studies, views): means over a study's cines of a view, NaN where it
        has none.
    """
    keys = ["split", "patient_id", "study_id"]
    table = table if "split" in table else table.assign(split="test")
    wide = table.pivot_table(index=keys, columns="view", values="score", aggfunc="mean")
    studies = table.groupby(keys, sort=True)["label"].first().reset_index()
    assert len(studies) == len(wide)
    studies.insert(0, "sample_id", studies["study_id"])
    return studies, wide.reindex(columns=list(views)).to_numpy(float)


def _rows_of_head(table: pd.DataFrame, head: str) -> pd.DataFrame:
    if "head" not in table:
        return table
    rows = table[table["head"].astype(str) == head]
    if rows.empty:
        raise unknown_name("head of the predictions table", head, set(table["head"].astype(str)))
    return rows


def _text(rows: pd.DataFrame, name: str, default: str | None = None) -> pd.Series[str]:
    if name not in rows and default is not None:
        return pd.Series(default, index=rows.index, dtype=str)
    column = rows[name]
    filled = column.notna() & (column.astype(str).str.strip() != "")
    if name == "source":
        return column.astype(str).where(filled, "")
    if not filled.all():
        raise ValueError(f"{name} is empty in {_row_list(~filled)}.")
    values = column.astype(str).str.strip()
    if name == "split":
        for value in values.str.lower().unique():
            if value not in SPLITS:
                raise unknown_name("split", value, SPLITS)
    return values


def _folds(rows: pd.DataFrame) -> pd.Series[int]:
    if "fold" not in rows:
        return pd.Series(0, index=rows.index)
    numbers = pd.to_numeric(rows["fold"], errors="coerce")
    bad = numbers.isna() | (numbers % 1 != 0)
    if bad.any():
        raise ValueError(f"fold is no whole number in {_row_list(bad)}.")
    return numbers.astype(int)


def _labels(rows: pd.DataFrame, target: BinaryTarget | RegressionTarget) -> pd.Series[float]:
    column = rows["label"]
    empty = column.isna() | (column.astype(str).str.strip() == "")
    if empty.any():
        raise ValueError(
            f"label is empty in {_row_list(empty)}; only rows with a known label can be scored, "
            "leave the others out."
        )
    numbers = pd.to_numeric(column, errors="coerce")
    if isinstance(target, RegressionTarget):
        bad = ~numbers.abs().lt(np.inf)
        if bad.any():
            raise ValueError(f"label is no number in {_row_list(bad)}.")
        return numbers.astype(float)
    if numbers.isin([0, 1]).all():
        return numbers.astype(float)
    # Class names are understood as in a manifest, and the error for an unknown one is the same.
    plain = dataclasses.replace(target, label_column="label", value_column=None, cutoff=None)
    return pd.Series(plain.encode(rows[["label"]]), index=rows.index, dtype=float)


def _scores(
    rows: pd.DataFrame, name: str, target: BinaryTarget | RegressionTarget
) -> pd.Series[float]:
    scores = pd.to_numeric(rows[name], errors="coerce").astype(float)
    bad = ~scores.abs().lt(np.inf)
    if bad.any():
        raise ValueError(f"{name} is no number in {_row_list(bad)}.")
    if isinstance(target, BinaryTarget):
        rounding = 1e-6
        outside = (scores < -rounding) | (scores > 1 + rounding)
        if outside.any():
            raise ValueError(
                f"{name} is outside [0, 1] in {_row_list(outside)} (first: "
                f"{scores[outside].iloc[0]:g}); it must be the probability of class 1 "
                f"({target.positive}), not a logit or a percentage."
            )
        scores = scores.clip(0, 1)
    return scores


def _check_groups(table: pd.DataFrame) -> None:
    """Refuse rows that appear twice and studies or patients that contradict themselves."""
    twice = table.duplicated(["fold", "split", "sample_id", "study_id", "patient_id"])
    if twice.any():
        raise ValueError(
            f"{int(twice.sum())} rows repeat a sample of the same fold, the first is "
            f"sample_id {table['sample_id'][twice].iloc[0]!r}; each sample counts once."
        )
    by_study = table.groupby("study_id")
    _refuse(by_study["patient_id"].nunique() > 1, "study", "belongs to more than one patient")
    spread = by_study["label"].max() - by_study["label"].min()
    _refuse(spread > 1e-6 * table["label"].abs().max(), "study", "has more than one label")
    splits = table.groupby(["fold", "patient_id"])["split"].nunique().groupby("patient_id").max()
    _refuse(splits > 1, "patient", "is in more than one split of the same fold (a leak)")


def _refuse(faulty: pd.Series[bool], kind: str, what: str) -> None:
    if faulty.any():
        names = faulty.index[faulty].astype(str).tolist()
        raise ValueError(f"{kind} {_shortened(names)} {what}.")


def _row_list(faulty: pd.Series[bool]) -> str:
    numbers = [str(number + 1) for number in np.flatnonzero(faulty.to_numpy())]
    return f"row{'s' if len(numbers) > 1 else ''} {_shortened(numbers)}"


def _shortened(names: Sequence[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
