"""Splits and folds by patient."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cardioray.data.splits import SplitConfig, Splits, assign_folds, assign_splits


def cohort(
    negative: int, positive: int, rows_each: int = 3, mixed: int = 0
) -> tuple[pd.DataFrame, np.ndarray]:
    """A table of patients, each with one label; the first `mixed` have one row of the other."""
    classes = [0.0] * negative + [1.0] * positive
    rows = [
        (f"P{index:03d}", 1 - label if row == 0 and index < mixed else label)
        for index, label in enumerate(classes)
        for row in range(rows_each)
    ]
    table = pd.DataFrame(rows, columns=["patient_id", "label"])
    return table, table.pop("label").to_numpy(np.float32)


def patients_of(result: Splits, table: pd.DataFrame) -> pd.Series:
    """Split of each patient, after making sure that there is one."""
    by_patient = result.split.groupby(table["patient_id"])
    assert (by_patient.nunique() == 1).all(), "a patient is in two splits"
    return by_patient.first()


def of_class(table: pd.DataFrame, labels: np.ndarray, value: float) -> pd.Index:
    means = pd.Series(labels).groupby(table["patient_id"]).mean()
    return means.index[(means >= 0.5) == (value == 1.0)]


shares = st.tuples(*[st.integers(1, 20)] * 4).map(lambda parts: [p / sum(parts) for p in parts])


@given(
    negative=st.integers(1, 60),
    positive=st.integers(1, 60),
    rows=st.integers(2, 5),
    mixed=st.integers(0, 10),
    parts=shares,
    seed=st.integers(0, 5),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=30, deadline=None)
def test_splits_by_patient(negative, positive, rows, mixed, parts, seed, order) -> None:
    table, labels = cohort(negative, positive, rows, mixed)
    train, validation, calibration, test = parts
    config = SplitConfig(
        train=train, validation=validation, calibration=calibration, test=test, seed=seed,
        min_calibration_patients=3,
    )  # fmt: skip
    result = assign_splits(table, labels, config)
    assert list(result.split.index) == list(table.index)
    by_patient = patients_of(result, table)

    wanted = {"train": train, "validation": validation, "calibration": calibration, "test": test}
    if result.calibration == "cross-fitted":
        wanted["train"] += wanted.pop("calibration")
    assert set(by_patient) <= set(wanted)
    for value in (0.0, 1.0):
        members = of_class(table, labels, value)
        counts = by_patient[members].value_counts()
        for name, share in wanted.items():
            assert abs(counts.get(name, 0) - share * len(members)) < 1 + 1e-6

    shuffled = list(range(len(table)))
    order.shuffle(shuffled)
    again = assign_splits(table.iloc[shuffled], labels[shuffled], config)
    pd.testing.assert_series_equal(again.split.sort_index(), result.split)
    assert again.calibration == result.calibration


@given(
    negative=st.integers(5, 20),
    positive=st.integers(5, 20),
    folds=st.integers(2, 5),
    seed=st.integers(0, 5),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=30, deadline=None)
def test_folds_by_patient(negative, positive, folds, seed, order) -> None:
    table, labels = cohort(negative, positive, 2)
    config = SplitConfig(folds=folds, seed=seed)
    results = assign_folds(table, labels, config)
    assert len(results) == folds
    tested = []
    for result in results:
        by_patient = patients_of(result, table)
        held_out = by_patient.index[by_patient == "test"]
        tested.extend(held_out)
        for value, size in ((0.0, negative), (1.0, positive)):
            members = of_class(table, labels, value)
            assert len(held_out.intersection(members)) in (size // folds, -(-size // folds))
        assert abs(len(held_out) - (negative + positive) / folds) < 1
        assert (by_patient == "train").any()
    assert sorted(tested) == sorted(table["patient_id"].unique()), "each patient is tested once"

    shuffled = list(range(len(table)))
    order.shuffle(shuffled)
    again = assign_folds(table.iloc[shuffled], labels[shuffled], config)
    for first, second in zip(results, again, strict=True):
        pd.testing.assert_series_equal(second.split.sort_index(), first.split)


def test_another_seed_is_another_division() -> None:
    table, labels = cohort(50, 50)
    splits = [assign_splits(table, labels, SplitConfig(seed=seed)).split for seed in (0, 0, 1)]
    assert splits[0].equals(splits[1])
    assert not splits[0].equals(splits[2])


def test_small_cohorts_do_not_lose_a_split() -> None:
    """Three and three patients: every class alone would round validation down to nothing."""
    table, labels = cohort(3, 3)
    counts = patients_of(assign_splits(table, labels, SplitConfig()), table).value_counts()
    assert counts["train"] >= 3
    assert counts["validation"] == counts["test"] == 1


def test_calibration_is_cross_fitted_where_patients_are_few() -> None:
    few = assign_splits(*cohort(90, 200), SplitConfig())
    assert few.calibration == "cross-fitted"
    assert "calibration" not in set(few.split)
    enough = assign_splits(*cohort(110, 200), SplitConfig())
    assert enough.calibration == "held-out"
    table, labels = cohort(110, 200)
    by_patient = patients_of(assign_splits(table, labels, SplitConfig()), table)
    for value in (0.0, 1.0):
        members = of_class(table, labels, value)
        assert (by_patient[members] == "calibration").sum() >= 10
    none = SplitConfig(train=0.7, calibration=0.0)
    assert assign_splits(*cohort(110, 200), none).calibration == "cross-fitted"


def test_a_split_column_wins() -> None:
    table, labels = cohort(30, 30)
    given_test = table["patient_id"].isin(["P001", "P035"])
    table["split"] = np.where(given_test, "test", "train")
    result = assign_splits(table, labels, SplitConfig())
    assert (result.split[given_test] == "test").all()
    assert (result.split == "test").sum() == given_test.sum()
    by_patient = patients_of(result, table)
    # .15 of .6 + .15 + .1, with calibration cross-fitted, of the 29 patients of each class
    assert (by_patient == "validation").sum() == pytest.approx(0.15 / 0.85 * 58, abs=1.5)

    table["split"] = ["train", "validation", "calibration", "test"] * 45
    table["patient_id"] = [f"{index % 4}-{index // 12}" for index in range(180)]
    complete = assign_splits(table, labels, SplitConfig())
    assert complete.split.tolist() == table["split"].tolist()
    assert complete.calibration == "held-out"


def test_only_train_rows_get_every_other_split() -> None:
    table, labels = cohort(30, 30)
    plain = assign_splits(table, labels, SplitConfig())
    table["split"] = "train"
    assert assign_splits(table, labels, SplitConfig()).split.equals(plain.split)


def test_a_patient_in_two_splits_is_named() -> None:
    table, labels = cohort(5, 5)
    table["split"] = "train"
    table.loc[table["patient_id"] == "P004", "split"] = ["train", "test", "test"]
    with pytest.raises(ValueError, match="Patient 'P004' is in several splits: test, train"):
        assign_splits(table, labels, SplitConfig())
    table["split"] = "test"
    with pytest.raises(ValueError, match="no train rows"):
        assign_splits(table, labels, SplitConfig())


def test_numbers_are_stratified_by_quarters() -> None:
    table, _ = cohort(40, 40)
    values = np.repeat(np.linspace(0.4, 1.0, 80), 3).astype(np.float32)
    by_patient = patients_of(assign_splits(table, values, SplitConfig()), table)
    for quarter in range(4):
        part = by_patient.sort_index().iloc[20 * quarter : 20 * quarter + 20]
        assert (part == "test").sum() == 3
        assert (part == "validation").sum() == 3


def test_patients_without_label_are_assigned_too() -> None:
    table, labels = cohort(20, 20)
    labels[:9] = np.nan
    result = assign_splits(table, labels, SplitConfig())
    assert result.split.notna().all()
    assert len(assign_folds(table, labels, SplitConfig(folds=4))) == 4


def test_too_few_patients_for_the_folds() -> None:
    with pytest.raises(
        ValueError, match="5 folds need at least 5 patients .* smallest class has 4"
    ):
        assign_folds(*cohort(4, 40), SplitConfig(folds=5))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"train": 0.7}, "add up to 1.1"),
        ({"train": -0.1, "test": 0.85}, "train"),
        ({"folds": 1}, "folds"),
    ],
)
def test_config_is_validated(values: dict[str, float], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        SplitConfig(**values)
