import math

import numpy as np
import pytest

from cardioray.clinical.pressure_drop import (
    fractional_flow_reserve,
    typical_hyperaemic_flow_ml_s,
)

LESION = {
    "percent_diameter_stenosis": 55.0,
    "lesion_length_mm": 12.0,
    "reference_diameter_mm": 3.0,
}


def _plain_drop_mmhg(flow_ml_s: float, percent: float, length_mm: float, diameter_mm: float):
    """Young and Tsai in CGS units, one lesion at a time, as a textbook would write it."""
    viscosity, density = 0.035, 1.06  # poise, g/cm^3
    healthy_cm = diameter_mm / 10
    throat_cm = healthy_cm * (1 - percent / 100)
    healthy_area = math.pi * healthy_cm**2 / 4
    throat_area = math.pi * throat_cm**2 / 4
    kv = 32 * (0.83 * length_mm / 10 + 1.64 * throat_cm) / healthy_cm
    kv *= (healthy_area / throat_area) ** 2
    velocity = flow_ml_s / healthy_area
    dyn_cm2 = kv * viscosity / healthy_cm * velocity
    dyn_cm2 += 1.52 * density / 2 * (healthy_area / throat_area - 1) ** 2 * velocity**2
    return dyn_cm2 / 1333.22


def _plain_ffr(percent: float, length_mm: float, diameter_mm: float, free_flow: float):
    """The same balance of pressures, solved by bisection."""
    aortic, venous = 93.0, 5.0
    low, high = 0.0, free_flow
    for _ in range(200):
        flow = (low + high) / 2
        used = flow * (aortic - venous) / free_flow
        used += _plain_drop_mmhg(flow, percent, length_mm, diameter_mm)
        low, high = (flow, high) if used < aortic - venous else (low, flow)
    return 1 - _plain_drop_mmhg(flow, percent, length_mm, diameter_mm) / aortic


@pytest.mark.parametrize("percent", [0.0, 35.0, 60.0, 80.0])
@pytest.mark.parametrize(("length_mm", "diameter_mm", "flow"), [(8, 2.6, 1.2), (25, 3.8, 3.5)])
def test_agrees_with_a_plain_scalar_implementation(percent, length_mm, diameter_mm, flow):
    lesion = {
        "percent_diameter_stenosis": percent,
        "lesion_length_mm": length_mm,
        "reference_diameter_mm": diameter_mm,
    }
    ffr = fractional_flow_reserve(**lesion, hyperaemic_flow_ml_s=flow)
    assert ffr == pytest.approx(_plain_ffr(percent, length_mm, diameter_mm, flow), abs=1e-9)


@pytest.mark.parametrize(
    ("name", "values", "direction"),
    [
        ("percent_diameter_stenosis", np.linspace(0, 90, 40), -1),
        ("lesion_length_mm", np.linspace(2, 40, 40), -1),
        ("reference_diameter_mm", np.linspace(2, 4.5, 40), 1),
        ("hyperaemic_flow_ml_s", np.linspace(0.5, 5, 40), -1),
        ("aortic_pressure_mmhg", np.linspace(60, 140, 40), 1),
    ],
)
def test_ffr_is_monotone_in_each_argument(name, values, direction):
    settings = {**LESION, "hyperaemic_flow_ml_s": 2.0, name: values}
    assert (direction * np.diff(fractional_flow_reserve(**settings)) > 0).all()


def test_a_healthy_vessel_loses_almost_nothing_and_a_subtotal_lesion_almost_everything():
    healthy = fractional_flow_reserve(**{**LESION, "percent_diameter_stenosis": 0.0})
    assert 0.99 < healthy < 1
    subtotal = fractional_flow_reserve(**{**LESION, "percent_diameter_stenosis": 99.0})
    assert subtotal == pytest.approx(5 / 93, abs=1e-3)  # only venous pressure is left


def test_sixty_percent_in_a_three_millimetre_lad_lies_in_the_grey_zone():
    lesion = {**LESION, "percent_diameter_stenosis": 60.0}
    assert 0.75 < fractional_flow_reserve(**lesion) < 0.85


def test_share_of_positives_rises_over_the_bands_of_severity():
    rng = np.random.default_rng(0)
    shares = []
    for low, high in ((30, 50), (50, 70), (71, 90)):
        ffr = fractional_flow_reserve(
            percent_diameter_stenosis=rng.uniform(low, high, 2000),
            lesion_length_mm=rng.uniform(6, 25, 2000),
            reference_diameter_mm=rng.uniform(2.5, 4, 2000),
        )
        shares.append((ffr <= 0.80).mean())
    mild, intermediate, severe = shares
    assert mild < 0.05
    assert 0.3 < intermediate < 0.7  # the band in which a picture alone leaves the question open
    assert severe > 0.95


def test_typical_flow_follows_the_diameter_and_the_measured_level():
    assert typical_hyperaemic_flow_ml_s(3.0) == pytest.approx(2.0)
    assert 60 * typical_hyperaemic_flow_ml_s(3.9) == pytest.approx(228, abs=20)


def test_arguments_broadcast():
    ffr = fractional_flow_reserve(
        percent_diameter_stenosis=np.array([[40.0], [70.0]]),
        lesion_length_mm=np.array([5.0, 10.0, 20.0]),
        reference_diameter_mm=3.0,
    )
    assert ffr.shape == (2, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"percent_diameter_stenosis": 100.0}, r"percent_diameter_stenosis must be in \[0, 100\)"),
        ({"percent_diameter_stenosis": np.nan}, "percent_diameter_stenosis"),
        ({"lesion_length_mm": 0.0}, "lesion_length_mm must be positive"),
        ({"reference_diameter_mm": -3.0}, "reference_diameter_mm must be positive"),
        ({"venous_pressure_mmhg": 95.0}, "venous_pressure_mmhg must be below"),
    ],
)
def test_values_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        fractional_flow_reserve(**{**LESION, **changes})
