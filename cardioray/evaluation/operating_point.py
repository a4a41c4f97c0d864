"""What turns a model's score into an answer: calibration, threshold and conformal set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from cardioray.clinical.calibration import (
    CALIBRATIONS,
    Calibration,
    ConformalBinary,
    ConformalInterval,
    NoCalibration,
    calibrate_out_of_fold,
    fit_calibration,
)
from cardioray.clinical.number_calibration import (
    NUMBER_CALIBRATIONS,
    NumberCalibration,
    calibrate_numbers_out_of_fold,
    fit_number_calibration,
)
from cardioray.config import config, parse, to_dict
from cardioray.evaluation.predictions import check_predictions, per_study, select_split
from cardioray.evaluation.thresholds import choose_threshold
from cardioray.targets import BinaryTarget, RegressionTarget

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Decisions:
    """Answers to a yes/no question; every array has the shape of the scores decided on.

    Attributes:
        probability: calibrated probability of class 1.
        positive: whether the probability reaches the threshold.
        uncertain: whether the conformal set is anything but the predicted class alone: both
            classes, none, or (where a threshold far from 0.5 decides against the likelier class)
            only the other one.
        in_set_negative: whether the conformal set holds class 0.
        in_set_positive: whether the conformal set holds class 1.
    """

    probability: Floats
    positive: NDArray[np.bool_]
    uncertain: NDArray[np.bool_]
    in_set_negative: NDArray[np.bool_]
    in_set_positive: NDArray[np.bool_]


class OperatingPoint:
    """What the two kinds of operating point share: their form in a file."""

    def to_dict(self) -> dict[str, Any]:
        """The record ready for JSON."""
        return to_dict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> BinaryOperatingPoint | RegressionOperatingPoint:
        """Read a record.

        Raises:
            ValueError: when a key is unknown or missing, or a value is of the wrong kind.
        """
        if values.get("kind") == "regression":
            return parse(RegressionOperatingPoint, values)
        return parse(BinaryOperatingPoint, values)


@config
class BinaryOperatingPoint(OperatingPoint):
    """How a score becomes the answer to a yes/no question; fitted on calibration patients.

    Attributes:
        target: name of the target.
        threshold: calibrated probability from which an answer is positive.
        rule: rule that chose the threshold.
        calibration: map from score to calibrated probability.
        conformal: split-conformal set of the calibrated probability.
        patients: calibration patients.
        studies: calibration studies.
    """

    kind: Literal["binary"] = "binary"
    target: str
    threshold: float = Field(ge=0, le=1)
    rule: str
    calibration: Calibration
    conformal: ConformalBinary
    patients: int
    studies: int

    def decide(self, scores: ArrayLike) -> Decisions:
        """Answers for a model's uncalibrated probabilities of class 1, of any shape."""
        probability = self.calibration.apply(scores)
        positive = np.asarray(probability >= self.threshold)
        in_negative, in_positive = self.conformal.prediction_set(probability)
        alone = (in_positive == positive) & (in_negative == ~positive)
        return Decisions(probability, positive, ~alone, in_negative, in_positive)


@config
class RegressionOperatingPoint(OperatingPoint):
    """How a predicted number becomes an answer; fitted on calibration patients.

    Attributes:
        target: name of the target.
        calibration: map from the predicted number to the answer.
        conformal: split-conformal interval around the answer.
        low: lowest possible value of the target; None where there is none.
        high: highest possible value of the target; None where there is none.
        patients: calibration patients.
        studies: calibration studies.
    """

    kind: Literal["regression"] = "regression"
    target: str
    calibration: NumberCalibration = NoCalibration()
    conformal: ConformalInterval
    low: float | None = None
    high: float | None = None
    patients: int
    studies: int

    def value(self, predictions: ArrayLike) -> Floats:
        """The calibrated number for each prediction, within the target's range if it is changed."""
        raw = np.asarray(predictions, dtype=float)
        if self.calibration.kind == "none":
            return raw
        return np.clip(self.calibration.apply(raw), *self._range)

    def bounds(self, predictions: ArrayLike) -> tuple[Floats, Floats]:
        """Lower and upper bound of the answer for each prediction, within the target's range."""
        return self.conformal.interval(self.value(predictions), *self._range)

    @property
    def _range(self) -> tuple[float, float]:
        low = -np.inf if self.low is None else self.low
        return low, np.inf if self.high is None else self.high


def calibration_method(target: BinaryTarget | RegressionTarget, name: str) -> str:
    """The calibration that a target gets where a task asks for one by its name.

    Numbers beside probabilities are left as they are by a calibration of probabilities alone.

    Args:
        target: what is calibrated.
        name: of probabilities "none", "platt", "temperature" or "isotonic"; of numbers "none",
            "linear" or "isotonic".

    Raises:
        ValueError: when the name is unknown, or one of numbers is asked for a probability.
    """
    if isinstance(target, BinaryTarget):
        CALIBRATIONS.get(name)
        return name
    if name in CALIBRATIONS and name not in NUMBER_CALIBRATIONS:
        return "none"
    NUMBER_CALIBRATIONS.get(name)
    return name


@overload
def fit_operating_point(
    calibration_predictions: pd.DataFrame,
    target: BinaryTarget,
    *,
    rule: str = ...,
    calibration: str = ...,
    alpha: float = ...,
    seed: int = ...,
) -> BinaryOperatingPoint: ...


@overload
def fit_operating_point(
    calibration_predictions: pd.DataFrame,
    target: RegressionTarget,
    *,
    rule: str = ...,
    calibration: str = ...,
    alpha: float = ...,
    seed: int = ...,
) -> RegressionOperatingPoint: ...


def fit_operating_point(
    calibration_predictions: pd.DataFrame,
    target: BinaryTarget | RegressionTarget,
    *,
    rule: str = "youden",
    calibration: str = "platt",
    alpha: float = 0.1,
    seed: int = 0,
) -> BinaryOperatingPoint | RegressionOperatingPoint:
    """Fit calibration, threshold and conformal set, per study, on calibration patients only.

    The conformal set is fitted on probabilities that were calibrated without the patient at hand,
    so that a small calibration set does not promise more than it can keep.

    Args:
        calibration_predictions: a predictions table; where it has a column `split`, its rows of
            split "calibration" are used and the others ignored.
        target: what the label means.
        rule: threshold rule, such as "youden" or "sensitivity:0.90"; binary targets only.
        calibration: as of `calibration_method`.
        alpha: share of patients whose truth may be outside the conformal set or interval.
        seed: of the cross-fitting.

    Raises:
        ValueError: when the table is at fault, a name is unknown, or there are too few patients
            of a class for what is asked (rule "fixed:0.5" with calibration "none" needs none).
    """
    table = check_predictions(calibration_predictions, target, default_split="calibration")
    studies = per_study(select_split(table, "calibration"))
    labels, scores = studies["label"].to_numpy(), studies["score"].to_numpy()
    patients = studies["patient_id"].nunique()
    method = calibration_method(target, calibration)
    if isinstance(target, RegressionTarget):
        owners = studies["patient_id"]
        held_out = calibrate_numbers_out_of_fold(method, labels, scores, owners, seed=seed)
        return RegressionOperatingPoint(
            target=target.name,
            calibration=fit_number_calibration(method, labels, scores),
            conformal=ConformalInterval.fit(labels, held_out, alpha),
            low=target.low,
            high=target.high,
            patients=patients,
            studies=len(studies),
        )
    fitted = fit_calibration(method, labels, scores)
    honest = calibrate_out_of_fold(method, labels, scores, studies["patient_id"], seed=seed)
    return BinaryOperatingPoint(
        target=target.name,
        threshold=choose_threshold(labels, fitted.apply(scores), rule),
        rule=rule,
        calibration=fitted,
        conformal=ConformalBinary.fit(labels, honest, alpha),
        patients=patients,
        studies=len(studies),
    )
