"""Decisions on out-of-fold test rows, each from an operating point of other patients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from cardioray.clinical.calibration import ConformalBinary, NoCalibration, patient_folds
from cardioray.clinical.number_calibration import least_patients
from cardioray.evaluation.figures import decide
from cardioray.evaluation.operating_point import (
    BinaryOperatingPoint,
    RegressionOperatingPoint,
    calibration_method,
    fit_operating_point,
)
from cardioray.evaluation.predictions import check_predictions, per_study, select_split
from cardioray.targets import BinaryTarget, RegressionTarget

# Of a class, for the cross-fit that each fit makes of its own.
_LEAST_TO_FIT = 2


@dataclass(frozen=True)
class FittingSettings:
    """How operating points are fitted.

    Attributes:
        rule: threshold rule, binary targets only.
        calibration: calibration method; see `fit_operating_point`.
        alpha: of the conformal sets.
        seed: of cross-fitting.
    """

    rule: str = "youden"
    calibration: str = "platt"
    alpha: float = 0.1
    seed: int = 0

    def least(self, target: BinaryTarget | RegressionTarget) -> int:
        """How many patients are enough to fit on; of a yes/no question, in each class."""
        if isinstance(target, BinaryTarget):
            return _LEAST_TO_FIT
        return max(_LEAST_TO_FIT, least_patients(calibration_method(target, self.calibration)))

    def fit(
        self, rows: pd.DataFrame, target: BinaryTarget | RegressionTarget
    ) -> BinaryOperatingPoint | RegressionOperatingPoint:
        """Fit on all rows given, whatever their split."""
        return fit_operating_point(
            rows.assign(split="calibration"),
            target,
            rule=self.rule,
            calibration=self.calibration,
            alpha=self.alpha,
            seed=self.seed,
        )


@dataclass(frozen=True)
class OutOfFold:
    """Decided test rows, pooled over folds.

    Attributes:
        frames: one row per frame, columns as `decide` gives them.
        studies: one row per study.
        thresholds_from: which patients the operating points were fitted on.
    """

    frames: pd.DataFrame
    studies: pd.DataFrame
    thresholds_from: str


def decide_out_of_fold(
    predictions: pd.DataFrame,
    target: BinaryTarget | RegressionTarget,
    settings: FittingSettings,
) -> OutOfFold:
    """Decide the test rows of a table of one or several folds.

    A fold's operating point comes from its rows of split "calibration" when each fold has enough
    calibration patients (`FittingSettings.least`): two of each class, or four for a calibration of
    numbers. Otherwise it is cross-fitted over the test patients, never on the patient that is
    decided, which takes one more. With fewer of a class nothing is fitted: the threshold is 0.5
    and every answer is uncertain.

    Raises:
        ValueError: when the table is at fault, or there are too few patients for numbers.
    """
    table = check_predictions(predictions, target)
    test = select_split(table, "test")
    source, pieces = _operating_points(table, test, target, settings)
    frames, studies = [], []
    for rows, point in pieces:
        frames.append(decide(test.loc[rows], point))
        studies.append(decide(per_study(test.loc[rows]), point))
    keys = ["fold", "patient_id", "study_id"]
    by_study = pd.concat(studies).sort_values(keys, ignore_index=True)
    return OutOfFold(pd.concat(frames).sort_index(), by_study, source)


_Pieces = Iterator[tuple["pd.Index[int]", BinaryOperatingPoint | RegressionOperatingPoint]]


def _operating_points(
    table: pd.DataFrame,
    test: pd.DataFrame,
    target: BinaryTarget | RegressionTarget,
    settings: FittingSettings,
) -> tuple[str, _Pieces]:
    """Rows of the test table, piece by piece, with the operating point that decides them."""
    calibration = table[table["split"] == "calibration"]
    by_fold = {fold: calibration[calibration["fold"] == fold] for fold in test["fold"].unique()}
    least = settings.least(target)
    if all(_patients_of_smaller_class(rows, target) >= least for rows in by_fold.values()):
        return "calibration patients of the same fold", (
            (test.index[test["fold"] == fold], settings.fit(rows, target))
            for fold, rows in by_fold.items()
        )
    there = _patients_of_smaller_class(test, target)
    if there > least:
        labels = test["label"] if isinstance(target, BinaryTarget) else None
        folds = patient_folds(labels, test["patient_id"], seed=settings.seed)
        return "cross-fitted over test patients", (
            (test.index[held_out], settings.fit(test.iloc[fitted], target))
            for fitted, held_out in folds
        )
    if isinstance(target, RegressionTarget):
        raise ValueError(
            f"target {target.name!r}: calibration {settings.calibration!r} is fitted on at least "
            f"{least} calibration patients, or across at least {least + 1} that are scored; there "
            f"are {there}."
        )
    unfitted = BinaryOperatingPoint(
        target=target.name,
        threshold=0.5,
        rule="fixed:0.5",
        calibration=NoCalibration(),
        conformal=ConformalBinary(alpha=settings.alpha, quantile=None, n=0),
        patients=0,
        studies=0,
    )
    return "fixed:0.5 (too few patients of a class)", iter([(test.index, unfitted)])


def _patients_of_smaller_class(rows: pd.DataFrame, target: BinaryTarget | RegressionTarget) -> int:
    if isinstance(target, RegressionTarget):
        return rows["patient_id"].nunique()
    positive = rows.groupby("patient_id")["label"].max() == 1
    return int(min(positive.sum(), (~positive).sum()))
