"""Splits and folds by patient: stratified, seeded, and the same whatever the order of the rows."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from cardioray.config import config
from cardioray.data.layouts import SPLITS

# Seats that stratification leaves over go to the splits in this order.
_SEATING = ("train", "test", "validation", "calibration")
_STRATA_OF_NUMBERS = 4
_UNLABELLED = -1


@config
class SplitConfig:
    """How patients are divided.

    Attributes:
        train: share of patients a model is fitted on.
        validation: share for early stopping and search.
        calibration: share for thresholds, calibration of probabilities and conformal sets.
        test: share that is scored once; with 0, every patient is in a fold of a comparison, and
            what folds' models say of patients they have not seen is what is scored.
        seed: another seed is another division.
        folds: number of folds where a comparison is cross-validated.
        min_calibration_patients: fewest calibration patients a class needs; with fewer there is no
            calibration split, its share is trained on, and calibration is cross-fitted.
        cross_fit_folds: models trained beside a single one to cross-fit its calibration; 0
            calibrates on validation patients instead, which early stopping has seen.
    """

    train: float = Field(default=0.6, gt=0, lt=1)
    validation: float = Field(default=0.15, gt=0, lt=1)
    calibration: float = Field(default=0.1, ge=0, lt=1)
    test: float = Field(default=0.15, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)
    folds: int = Field(default=5, ge=2)
    min_calibration_patients: int = Field(default=10, ge=1)
    cross_fit_folds: int = Field(default=3, ge=0)

    def __post_init__(self) -> None:
        total = self.train + self.validation + self.calibration + self.test
        if self.cross_fit_folds == 1:
            raise ValueError("cross_fit_folds is 0 or at least 2.")
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train, validation, calibration and test add up to {total:g}, not 1.")


@dataclass(frozen=True)
class Splits:
    """A division of the rows of a manifest.

    Attributes:
        split: "train", "validation", "calibration" or "test" for each row, with its index.
        calibration: "held-out" when there are calibration patients, "cross-fitted" when they are
            too few, so that calibration has to use predictions made out of fold.
    """

    split: pd.Series
    calibration: Literal["held-out", "cross-fitted"]


def assign_splits(table: pd.DataFrame, labels: NDArray[np.float32], config: SplitConfig) -> Splits:
    """Divide patients into splits, each class in the same shares to within one patient.

    A patient's stratum is the class nearest to the mean of their labels (a quarter of the range
    of means where labels are numbers). A `split` column wins: what it assigns stays, and splits
    that it lacks are drawn from its train patients.

    Args:
        table: manifest rows with patient_id and perhaps split.
        labels: one number a row, NaN where unknown.
        config: shares and seed.

    Raises:
        ValueError: when the split column puts one patient into two splits (names the patient), or
            has no train patients.
    """
    patients = _patients(table, labels)
    if "split" in table:
        given = _given_splits(table)
        present = set(given)
        if "train" not in present:
            raise ValueError("The split column has no train rows.")
        drawable = [name for name in SPLITS if name == "train" or name not in present]
        drawn, calibration = _draw(patients[given == "train"], drawable, config)
        if "calibration" in present:
            calibration = "held-out"
        assigned = given.where(given != "train", drawn.reindex(given.index))
    else:
        assigned, calibration = _draw(patients, list(SPLITS), config)
    split = table["patient_id"].map(assigned).rename("split")
    assert split.notna().all()
    return Splits(split=split, calibration=calibration)


def assign_folds(
    table: pd.DataFrame, labels: NDArray[np.float32], config: SplitConfig
) -> list[Splits]:
    """Cross-validation by patient: fold f is the test split of the f-th result.

    Validation and calibration patients are drawn from the other folds in the shares of `config`.
    A `split` column is not looked at: pass the rows that take part.

    Raises:
        ValueError: when a class has fewer patients than there are folds.
    """
    patients = _patients(table, labels)
    smallest = patients[patients != _UNLABELLED].value_counts().min()
    if smallest < config.folds:
        raise ValueError(
            f"{config.folds} folds need at least {config.folds} patients in every class; the "
            f"smallest class has {smallest}."
        )
    fold = pd.Series(0, index=patients.index)
    offset = 0
    for _, members in patients.groupby(patients):
        order = _shuffled(members.index, f"folds:{config.seed}")
        fold[order] = (np.arange(len(order)) + offset) % config.folds
        offset += len(order)
    results = []
    for held_out in range(config.folds):
        rest = patients[fold != held_out]
        drawn, calibration = _draw(rest, ["train", "validation", "calibration"], config)
        assigned = drawn.reindex(patients.index, fill_value="test")
        split = table["patient_id"].map(assigned).rename("split")
        results.append(Splits(split=split, calibration=calibration))
    return results


def folds_within(
    table: pd.DataFrame, labels: NDArray[np.float32], part: NDArray[np.bool_], config: SplitConfig
) -> list[pd.Series]:
    """Folds over some of the rows; the others are in no split ("").

    Args:
        table: manifest rows; a `split` column is not looked at.
        labels: one number a row, NaN where unknown.
        part: which rows take part; all or none of a patient's.
        config: number of folds, shares and seed.

    Returns:
        The split of every row in each fold.
    """
    results = []
    for fold in assign_folds(table[part], labels[part], config):
        split = pd.Series("", index=table.index, name="split")
        split[part] = fold.split.to_numpy()
        results.append(split)
    return results


def training_within(
    table: pd.DataFrame, labels: NDArray[np.float32], part: NDArray[np.bool_], config: SplitConfig
) -> pd.Series:
    """Train and validation patients among some of the rows; the others are in no split ("").

    The same patients are divided alike, whatever else is in the table.

    Args:
        table: manifest rows; a `split` column is not looked at.
        labels: one number a row, NaN where unknown.
        part: which rows take part; all or none of a patient's.
        config: shares of train and validation, and seed.
    """
    drawn, _ = _draw(_patients(table[part], labels[part]), ["train", "validation"], config)
    split = table["patient_id"].map(drawn).fillna("").rename("split")
    assert (split.eq("") == ~part).all()
    return split


def _patients(table: pd.DataFrame, labels: NDArray[np.float32]) -> pd.Series:
    """Stratum of every patient, in the order of their ids; `_UNLABELLED` without a label."""
    assert len(table) == len(labels)
    by_patient = pd.Series(labels, index=table.index, dtype=float).groupby(table["patient_id"])
    means = by_patient.mean().sort_index()
    known = means.dropna()
    strata = pd.Series(_UNLABELLED, index=means.index)
    if np.isin(labels[np.isfinite(labels)], (0.0, 1.0)).all():
        strata[known.index] = (known >= 0.5).astype(int)
    else:
        ranks = known.rank(method="first") - 1
        strata[known.index] = (ranks * _STRATA_OF_NUMBERS // max(len(known), 1)).astype(int)
    return strata


def _given_splits(table: pd.DataFrame) -> pd.Series:
    by_patient = table.groupby("patient_id")["split"]
    torn = by_patient.nunique()
    torn = torn[torn > 1]
    if len(torn):
        patient = torn.index[0]
        names = ", ".join(sorted(by_patient.get_group(patient).unique()))
        more = f" ({len(torn) - 1} more patient(s) likewise)" if len(torn) > 1 else ""
        raise ValueError(f"Patient {patient!r} is in several splits: {names}{more}.")
    return by_patient.first()


def _draw(
    patients: pd.Series, names: list[str], config: SplitConfig
) -> tuple[pd.Series, Literal["held-out", "cross-fitted"]]:
    """Divide patients among the named splits in their shares, stratum by stratum."""
    shares = {name: getattr(config, name) for name in _SEATING if name in names}
    total = sum(shares.values())
    shares = {name: share / total for name, share in shares.items()}
    labelled = patients[patients != _UNLABELLED]
    smallest = labelled.value_counts().min() * shares.get("calibration", 0.0)
    calibration: Literal["held-out", "cross-fitted"] = "held-out"
    if smallest < config.min_calibration_patients:
        shares["train"] += shares.pop("calibration", 0.0)
        calibration = "cross-fitted"
    assigned = pd.Series("", index=patients.index)
    owed = dict.fromkeys(shares, 0.0)
    for _, members in patients.groupby(patients):
        seats = _apportion(len(members), shares, owed)
        order = _shuffled(members.index, f"splits:{config.seed}")
        assigned[order] = np.repeat(list(seats), list(seats.values()))
    return assigned, calibration


def _apportion(count: int, shares: dict[str, float], owed: dict[str, float]) -> dict[str, int]:
    """Whole seats for each split: its quota rounded down or up.

    The largest remainder is rounded up first, counting what earlier strata rounded away (`owed`,
    updated), so that small strata do not all round the same split down to nothing.
    """
    quotas = {name: round(count * share, 9) for name, share in shares.items()}
    seats = {name: math.floor(quota) for name, quota in quotas.items()}
    fractional = [name for name in shares if quotas[name] > seats[name]]
    fractional.sort(key=lambda name: -round(quotas[name] - seats[name] + owed[name], 9))
    for name in fractional[: count - sum(seats.values())]:
        seats[name] += 1
    for name in shares:
        owed[name] += quotas[name] - seats[name]
    assert sum(seats.values()) == count
    return seats


def _shuffled(patients: pd.Index, key: str) -> list[str]:
    """Patients in an order that depends on the key and their ids only."""
    return sorted(patients, key=lambda name: hashlib.sha256(f"{key}:{name}".encode()).digest())
