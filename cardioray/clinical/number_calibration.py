"""Calibration of predicted numbers, as records that JSON can hold.

A method that measures with a bias, as discs on outlines do, is brought to the reference by a map
that is fitted on calibration patients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from cardioray.clinical.calibration import IsotonicCalibration, NoCalibration, patient_folds
from cardioray.config import config
from cardioray.registry import Registry

Floats = NDArray[np.float64]

# A map must not turn the order of the numbers round, whatever a small calibration set suggests.
_SMALLEST_SLOPE = 1e-2
# With fewer rows a line has nothing to say about how far it is off.
_LEAST_ROWS = 3
# So many remain of one more patient, whoever is left out.
_LEAST_PATIENTS = _LEAST_ROWS + 1


@config
class LinearCalibration:
    """x -> slope * x + intercept, strictly rising."""

    kind: Literal["linear"] = "linear"
    slope: float = Field(gt=0)
    intercept: float

    def apply(self, numbers: ArrayLike) -> Floats:
        """Calibrated numbers, of the same shape."""
        return self.slope * np.asarray(numbers, dtype=float) + self.intercept


NumberCalibration = Annotated[
    NoCalibration | LinearCalibration | IsotonicCalibration, Field(discriminator="kind")
]
NUMBER_CALIBRATIONS: Registry[Callable[[Floats, Floats], NumberCalibration]] = Registry(
    "calibration of numbers"
)


def least_patients(method: str) -> int:
    """How many patients are enough for `calibrate_numbers_out_of_fold`, with a study each."""
    return 1 if method == "none" else _LEAST_PATIENTS


def fit_number_calibration(method: str, labels: ArrayLike, numbers: ArrayLike) -> NumberCalibration:
    """Fit a map from predicted numbers to true ones.

    Args:
        method: "none", "linear" (least squares) or "isotonic".
        labels: the truth, shape (rows,), one row per study of the calibration patients.
        numbers: the predictions, shape (rows,).

    Raises:
        ValueError: when the method is unknown, or there are fewer than three rows for it.
    """
    fit = NUMBER_CALIBRATIONS.get(method)
    truth, predicted = np.asarray(labels, dtype=float), np.asarray(numbers, dtype=float)
    if method != "none" and len(truth) < _LEAST_ROWS:
        raise ValueError(
            f"Calibration {method!r} needs {_LEAST_ROWS} studies, there are {len(truth)}. Use "
            "calibration 'none', or more calibration patients."
        )
    return fit(truth, predicted)


def calibrate_numbers_out_of_fold(
    method: str,
    labels: ArrayLike,
    numbers: ArrayLike,
    patient_ids: ArrayLike,
    *,
    num_folds: int = 5,
    seed: int = 0,
) -> Floats:
    """Each number calibrated by a map that was fitted on other patients.

    Args:
        method: as in `fit_number_calibration`.
        labels: the truth, shape (rows,).
        numbers: the predictions, shape (rows,).
        patient_ids: patient of each row, shape (rows,).
        num_folds: folds at most; fewer where there are fewer patients.
        seed: of the assignment of patients to folds.

    Raises:
        ValueError: when the method is unknown, or there are too few patients (`least_patients`).
    """
    truth, predicted = np.asarray(labels, dtype=float), np.asarray(numbers, dtype=float)
    if method == "none":
        return predicted
    patients = len(np.unique(np.asarray(patient_ids, dtype=str)))
    folds: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    if patients > 1:
        folds = list(patient_folds(None, patient_ids, num_folds=num_folds, seed=seed))
    if not folds or min(len(fitted) for fitted, _ in folds) < _LEAST_ROWS:
        raise ValueError(
            f"Calibration {method!r} of numbers needs at least {_LEAST_PATIENTS} patients, so that "
            f"{_LEAST_ROWS} remain whoever is left out; there are {patients}, with "
            f"{len(predicted)} studies. Use calibration 'none', or more calibration patients."
        )
    calibrated = np.empty(len(predicted))
    for fitted, held_out in folds:
        fold_map = fit_number_calibration(method, truth[fitted], predicted[fitted])
        calibrated[held_out] = fold_map.apply(predicted[held_out])
    return calibrated


def _fit_linear(labels: Floats, numbers: Floats) -> LinearCalibration:
    centred = numbers - numbers.mean()
    spread = float((centred**2).sum())
    slope = float((centred * labels).sum()) / spread if spread > 0 else _SMALLEST_SLOPE
    slope = max(slope, _SMALLEST_SLOPE)
    return LinearCalibration(slope=slope, intercept=float(labels.mean() - slope * numbers.mean()))


def _fit_isotonic(labels: Floats, numbers: Floats) -> IsotonicCalibration:
    from sklearn.isotonic import IsotonicRegression  # answers need no sklearn

    model = IsotonicRegression(out_of_bounds="clip").fit(numbers, labels)
    return IsotonicCalibration(
        knots=tuple(float(knot) for knot in model.X_thresholds_),
        values=tuple(float(value) for value in model.y_thresholds_),
    )


NUMBER_CALIBRATIONS.add("none", lambda labels, numbers: NoCalibration())
NUMBER_CALIBRATIONS.add("linear", _fit_linear)
NUMBER_CALIBRATIONS.add("isotonic", _fit_isotonic)
