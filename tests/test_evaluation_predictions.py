"""The predictions table: what is accepted, what is refused and how it is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cardioray.evaluation.predictions import (
    PREDICTION_COLUMNS,
    check_predictions,
    per_study,
    read_predictions,
    select_split,
)
from cardioray.targets import BinaryTarget, RegressionTarget

FFR = BinaryTarget(
    name="ffr", positive="FFR<=0.80", negative="FFR>0.80", positive_aliases=("FFRL",)
)
EF = RegressionTarget(name="ef", value_column="ef_percent", unit="%", low=0, high=100)


def frames() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "patient_id": ["b", "a", "a", "b"],
            "label": [1, 0, 0, 1],
            "score": [0.9, 0.2, 0.4, 0.6],
        }
    )


def test_three_columns_are_enough_and_come_back_typed_and_sorted() -> None:
    table = check_predictions(frames(), FFR)
    assert tuple(table.columns) == PREDICTION_COLUMNS
    assert table["patient_id"].tolist() == ["a", "a", "b", "b"]
    assert table["study_id"].tolist() == table["patient_id"].tolist()
    assert table["score"].tolist() == [0.2, 0.4, 0.6, 0.9]
    assert table["sample_id"].is_unique
    assert set(table["split"]) == {"test"}
    assert table["label"].dtype == table["score"].dtype == np.float64


def test_row_order_does_not_matter() -> None:
    table = frames().assign(sample_id=["1", "2", "3", "4"])
    expected = check_predictions(table, FFR)
    for seed in range(5):
        shuffled = table.sample(frac=1, random_state=seed)
        pd.testing.assert_frame_equal(check_predictions(shuffled, FFR), expected)


def test_study_score_is_the_mean_of_its_frames() -> None:
    studies = per_study(check_predictions(frames(), FFR))
    assert studies["patient_id"].tolist() == ["a", "b"]
    assert studies["score"].to_numpy() == pytest.approx([0.3, 0.75])
    assert studies["frames"].tolist() == [2, 2]


def test_class_names_are_labels_too() -> None:
    named = frames().assign(label=["FFRL", "FFR>0.80", "ffr>0.80", "FFR<=0.80"])
    expected = check_predictions(frames(), FFR)
    pd.testing.assert_frame_equal(check_predictions(named, FFR), expected)


def test_head_column_selects_rows() -> None:
    both = pd.concat([frames().assign(head="ffr"), frames().assign(head="scar", score=0.5)])
    table = check_predictions(both, FFR)
    assert len(table) == 4
    assert 0.5 not in set(table["score"])
    with pytest.raises(ValueError, match=r"Unknown head.*'ef'.*Known: ffr, scar"):
        check_predictions(both, EF)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": None}, "no column score"),
        ({"score": [0.9, np.nan, 0.4, 0.6]}, "score is no number in row 2"),
        ({"score": [0.9, 0.2, 0.4, 1.5]}, r"outside \[0, 1\] in row 4 .*not a logit"),
        ({"score": ["high", 0.2, 0.4, 0.6]}, "score is no number in row 1"),
        ({"label": [1, 0, None, 1]}, "label is empty in row 3"),
        ({"label": [1, 0, "maybe", 1]}, "row 3.*'maybe' is none of the classes"),
        ({"label": [1, 0, 1, 1]}, "study a has more than one label"),
        ({"patient_id": ["b", "", "a", "b"]}, "patient_id is empty in row 2"),
        (
            {"study_id": ["s", "s", "t", "s"], "label": 1},
            "study s belongs to more than one patient",
        ),
        ({"split": ["test", "train", "test", "test"]}, "patient a is in more than one split.*leak"),
        ({"split": ["test", "test", "tset", "test"]}, "Unknown split 'tset'. Did you mean 'test'"),
        ({"fold": [0, 0, 0.5, 0]}, "fold is no whole number in row 3"),
        ({"sample_id": ["x", "y", "y", "z"]}, "sample_id 'y'; each sample counts once"),
    ],
)
def test_faults_are_named(change: dict[str, object], message: str) -> None:
    table = frames()
    for name, values in change.items():
        if values is None:
            table = table.drop(columns=name)
        else:
            table[name] = values
    with pytest.raises(ValueError, match=message):
        check_predictions(table, FFR)


def test_a_patient_may_change_split_between_folds() -> None:
    table = pd.concat(
        [frames().assign(fold=0, split="test"), frames().assign(fold=1, split="calibration")]
    )
    checked = check_predictions(table, FFR)
    assert len(per_study(checked)) == 4
    assert len(select_split(checked, "test")) == 4
    with pytest.raises(ValueError, match=r"no rows of split 'train'; it has .*test \(4\)"):
        select_split(checked, "train")


def test_regression_labels_are_numbers_of_any_size() -> None:
    table = frames().assign(label=[61.5, 30, 30, 61.5], score=[70, 20.0, 35, 55])
    assert check_predictions(table, EF)["label"].tolist() == [30, 30, 61.5, 61.5]
    with pytest.raises(ValueError, match="label is no number in row 1"):
        check_predictions(table.assign(label=["low", "30", "30", "61.5"]), EF)


def test_csv_and_parquet_read_alike_and_keep_leading_zeros(tmp_path: Path) -> None:
    table = frames().assign(patient_id=["007", "01", "01", "007"])
    table.to_csv(tmp_path / "p.csv", index=False)
    table.to_csv(tmp_path / "p.csv.gz", index=False)
    table.to_parquet(tmp_path / "p.parquet")
    expected = check_predictions(table, FFR)
    for name in ("p.csv", "p.csv.gz", "p.parquet"):
        read = read_predictions(str(tmp_path / name))
        pd.testing.assert_frame_equal(check_predictions(read, FFR), expected)
    with pytest.raises(ValueError, match=r"\.csv, \.csv\.gz or \.parquet"):
        read_predictions("table.xlsx")
