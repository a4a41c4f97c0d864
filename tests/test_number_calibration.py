"""Maps from measured numbers to true ones: what they mend, and on whom they are fitted."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cardioray.clinical.number_calibration import (
    NUMBER_CALIBRATIONS,
    calibrate_numbers_out_of_fold,
    fit_number_calibration,
)
from cardioray.evaluation.operating_point import (
    OperatingPoint,
    calibration_method,
    fit_operating_point,
)
from cardioray.evaluation.out_of_fold import FittingSettings, decide_out_of_fold
from cardioray.evaluation.report import evaluate
from cardioray.targets import BinaryTarget, RegressionTarget
from cardioray.tasks import make_task

EF = RegressionTarget(name="ef", value_column="ef", unit="%", high=100.0)


def biased(patients: int = 80, seed: int = 0) -> pd.DataFrame:
    """Predictions with a bias, a slope and some noise; one study a patient."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(20, 70, patients)
    score = 1.25 * truth + 4 + rng.normal(0, 2, patients)
    names = [f"P{number}" for number in range(patients)]
    split = np.where(np.arange(patients) % 2, "calibration", "test")
    return pd.DataFrame({"patient_id": names, "label": truth, "score": score, "split": split})


def test_a_line_is_that_of_least_squares() -> None:
    table = biased()
    fitted = fit_number_calibration("linear", table["label"], table["score"])
    expected = stats.linregress(table["score"], table["label"])
    assert fitted.apply(0.0) == pytest.approx(expected.intercept)
    assert fitted.apply(1.0) - fitted.apply(0.0) == pytest.approx(expected.slope)


@pytest.mark.parametrize("method", list(NUMBER_CALIBRATIONS))
def test_every_map_keeps_the_order(method: str) -> None:
    table = biased()
    for labels in (table["label"], -table["label"]):
        fitted = fit_number_calibration(method, labels, table["score"])
        assert (np.diff(fitted.apply(np.linspace(0, 120, 300))) >= 0).all()


@pytest.mark.parametrize("method", ["linear", "isotonic"])
def test_what_is_off_is_mended_and_both_are_reported(method: str) -> None:
    table = biased()
    point = fit_operating_point(table, EF, calibration=method)
    again = OperatingPoint.from_dict(json.loads(json.dumps(point.to_dict())))
    assert again == point
    found = evaluate(table, EF, point, num_resamples=200).per_study.values
    assert abs(found["bias"].value) < 1 < 10 < found["raw_bias"].value
    assert found["mae"].value < found["raw_mae"].value / 3
    plain = fit_operating_point(table, EF, calibration="none")
    raw = evaluate(table, EF, plain, num_resamples=200).per_study.values
    assert raw["mae"].value == pytest.approx(found["raw_mae"].value)
    assert not any(name.startswith("raw_") for name in raw)
    # Intervals are made around calibrated numbers, and narrower for it.
    assert point.conformal.half_width is not None
    assert plain.conformal.half_width is not None
    assert point.conformal.half_width < plain.conformal.half_width / 2


def test_a_patient_has_no_part_in_their_own_map() -> None:
    table = biased(12)
    labels, numbers, patients = (table[n].to_numpy() for n in ("label", "score", "patient_id"))
    before = calibrate_numbers_out_of_fold("linear", labels, numbers, patients)
    changed = labels.copy()
    changed[3] += 1000
    after = calibrate_numbers_out_of_fold("linear", changed, numbers, patients)
    assert after[3] == pytest.approx(before[3])
    assert not np.allclose(after, before)


def test_answers_stay_within_the_range_of_the_target() -> None:
    table = biased()
    point = fit_operating_point(table, EF, calibration="linear")
    low, high = point.bounds([300.0, 50.0])
    assert point.value([300.0])[0] == 100
    assert high[0] == 100
    assert low[1] < point.value([50.0])[0] < high[1]


def test_methods_for_probabilities_leave_numbers_alone() -> None:
    point = fit_operating_point(biased(), EF, calibration="platt")
    assert point.calibration.kind == "none"
    assert point.value([12.0])[0] == 12


def test_too_few_studies_are_refused() -> None:
    with pytest.raises(ValueError, match="needs 3 studies, there are 2"):
        fit_number_calibration("linear", [1, 2], [1, 2])
    with pytest.raises(ValueError, match="linear"):
        fit_number_calibration("line", [1, 2, 3], [1, 2, 3])
    rows = biased(4).assign(split="calibration")
    with pytest.raises(ValueError, match="at least 4 patients.* there are 3, with 3 studies"):
        fit_operating_point(rows.head(3), EF, calibration="linear")
    assert fit_operating_point(rows, EF, calibration="linear").patients == 4
    assert fit_operating_point(rows.head(1), EF, calibration="none").conformal.promises_nothing


def test_few_scored_patients_are_refused_with_how_many_are_enough() -> None:
    settings = FittingSettings(calibration="linear")
    rows = biased(5).assign(split="test")
    with pytest.raises(ValueError, match="at least 4 calibration .* at least 5 .* there are 4"):
        decide_out_of_fold(rows.head(4), EF, settings)
    found = decide_out_of_fold(rows, EF, settings)
    assert found.thresholds_from == "cross-fitted over test patients"
    plain = decide_out_of_fold(rows.head(3), EF, FittingSettings(calibration="none"))
    assert len(plain.studies) == 3
    # Three calibration patients are too few for a line, and do not stand in the way.
    three = biased(3, seed=1).assign(split="calibration")
    three["patient_id"] = "C" + three["patient_id"]
    found = decide_out_of_fold(pd.concat([rows, three]), EF, settings)
    assert found.thresholds_from == "cross-fitted over test patients"


def test_unknown_calibrations_are_refused_with_the_known_names() -> None:
    known = "Known: isotonic, linear, none"
    with pytest.raises(ValueError, match=f"'liner'. Did you mean 'linear'. {known}"):
        fit_operating_point(biased(), EF, calibration="liner")
    for name in ("liner", "platt"):
        with pytest.raises(ValueError, match=known):
            make_task("lv-seg", {"operating": {"calibration": name}})
    with pytest.raises(ValueError, match="'plat'. Did you mean 'platt'.*linear"):
        make_task("keyframe-ef", {"operating": {"calibration": "plat"}})
    question = BinaryTarget(name="low", positive="low", negative="high", label_column="low")
    with pytest.raises(ValueError, match="Known: isotonic, none, platt, temperature"):
        calibration_method(question, "linear")
