"""Discs and area-length against solids whose volume is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cardioray.clinical import simpson
from cardioray.clinical.simpson import Cavity, measure_cavity

AXES = st.tuples(
    st.floats(70, 110),  # length of the whole spheroid in mm
    st.floats(0.45, 0.75),  # its widths, as a share of the length
    st.floats(0.45, 0.75),
)
PIXEL = st.tuples(st.floats(0.25, 0.6), st.floats(0.25, 0.6))


def grid(
    spacing: tuple[float, float], angle: float, size_mm: float = 150
) -> tuple[NDArray, NDArray]:
    """Distance along and across an axis through the middle of a picture, in mm."""
    height, width = (int(size_mm / step) for step in spacing)
    rows = (np.arange(height) - height / 2 + 0.37)[:, None] * spacing[0]
    columns = (np.arange(width) - width / 2 - 0.21)[None] * spacing[1]
    along = np.cos(angle) * rows + np.sin(angle) * columns
    across = -np.sin(angle) * rows + np.cos(angle) * columns
    return along, across


def ellipse(length: float, width: float, spacing: tuple[float, float], angle: float) -> NDArray:
    along, across = grid(spacing, angle)
    return (2 * along / length) ** 2 + (2 * across / width) ** 2 <= 1


def ventricle(
    length: float, width: float, spacing: tuple[float, float], angle: float, wall: float = 9
) -> tuple[NDArray, NDArray]:
    """Half a spheroid and more, cut at the mitral plane, and the wall around it."""
    along, across = grid(spacing, angle)
    above = along <= 0.2 * length
    inner = (2 * along / length) ** 2 + (2 * across / width) ** 2 <= 1
    outer = (2 * along / (length + 2 * wall)) ** 2 + (2 * across / (width + 2 * wall)) ** 2 <= 1
    return inner & above, outer & ~inner & above


@given(AXES, PIXEL, PIXEL, st.floats(0, 2 * np.pi), st.floats(0, 2 * np.pi))
def test_discs_of_an_ellipsoid_are_right_to_a_hundredth(
    axes: tuple[float, float, float],
    first_mm: tuple[float, float],
    second_mm: tuple[float, float],
    first_angle: float,
    second_angle: float,
) -> None:
    length, *shares = axes
    first, second = (
        measure_cavity(ellipse(length, share * length, spacing, angle), spacing)
        for share, spacing, angle in zip(
            shares, (first_mm, second_mm), (first_angle, second_angle), strict=True
        )
    )
    volume = np.pi / 6 * length**3 * shares[0] * shares[1] * 1e-3
    assert simpson.biplane_discs_ml(first, second) == pytest.approx(volume, rel=0.01)
    assert simpson.biplane_area_length_ml(first, second) == pytest.approx(volume, rel=0.02)
    assert first.annulus is None


@given(AXES, PIXEL, st.floats(0, 2 * np.pi))
def test_the_wall_shows_base_and_apex(
    axes: tuple[float, float, float], spacing: tuple[float, float], angle: float
) -> None:
    length, share, _ = axes
    cavity, wall = ventricle(length, share * length, spacing, angle)
    found = measure_cavity(cavity, spacing, wall)
    assert found.annulus is not None
    assert found.length_mm == pytest.approx(0.7 * length, abs=1.5)
    # The direction from base to apex is that of the ventricle, not the opposite one.
    way = (found.apex - found.base) * spacing / found.length_mm
    assert way @ np.array([np.cos(angle), np.sin(angle)]) == pytest.approx(-1, abs=0.01)
    # Integral of the round discs from the apex (-1/2) to the plane at +0.2 of the length.
    part = 0.7 - 4 / 3 * (0.2**3 + 0.5**3)
    volume = np.pi / 4 * share**2 * length**3 * part * 1e-3
    # The plane may lie anywhere in a row of pixels, of which the shortest ventricle has eighty.
    assert simpson.single_plane_discs_ml(found) == pytest.approx(volume, rel=0.02)


@given(AXES, PIXEL, st.floats(0, 2 * np.pi))
def test_without_a_wall_the_wider_end_is_the_base(
    axes: tuple[float, float, float], spacing: tuple[float, float], angle: float
) -> None:
    length, share, _ = axes
    cavity, _ = ventricle(length, 0.6 * share * length, spacing, angle)
    found = measure_cavity(cavity, spacing)
    way = (found.apex - found.base) * spacing / found.length_mm
    assert way @ np.array([np.cos(angle), np.sin(angle)]) == pytest.approx(-1, abs=0.02)


def test_a_gap_in_the_wall_is_not_taken_for_the_mitral_plane() -> None:
    cavity, wall = ventricle(90, 50, (0.4, 0.4), 0.3)
    whole = measure_cavity(cavity, (0.4, 0.4), wall)
    apex = whole.apex.round().astype(int)
    wall[apex[0] - 12 : apex[0] + 12, apex[1] - 12 : apex[1] + 12] = False
    gap = measure_cavity(cavity, (0.4, 0.4), wall)
    assert np.allclose(gap.base, whole.base)
    assert gap.length_mm == pytest.approx(whole.length_mm)


def test_a_volume_grows_with_the_cube_of_the_pixel() -> None:
    mask = ellipse(90, 50, (0.5, 0.5), 0.7)
    small, large = (measure_cavity(mask, (step, step)) for step in (0.5, 1.0))
    for formula in (simpson.single_plane_discs_ml, simpson.area_length_ml):
        assert formula(large) == pytest.approx(8 * formula(small), rel=1e-3)


@pytest.mark.parametrize(("edv", "esv", "ef"), [(100, 40, 60), (80, 80, 0), (50, 60, -20)])
def test_ejection_fraction(edv: float, esv: float, ef: float) -> None:
    assert simpson.ef_percent(edv, esv) == pytest.approx(ef)


def test_what_cannot_be_measured_is_refused() -> None:
    mask = ellipse(90, 50, (0.5, 0.5), 0)
    with pytest.raises(ValueError, match="mask is empty"):
        measure_cavity(np.zeros((8, 8), bool), (1, 1))
    for spacing in ((0, 1), (1, -1), (1, np.nan), (1,), (np.inf, 1)):
        with pytest.raises(ValueError, match="two numbers above 0"):
            measure_cavity(mask, spacing)
    with pytest.raises(ValueError, match=r"\(H, W\)"):
        measure_cavity(np.zeros((2, 2, 2), bool), (1, 1))
    with pytest.raises(ValueError, match="no ejection fraction"):
        simpson.ef_percent(0, 0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_the_smallest_masks_have_a_volume(shape: tuple[int, int]) -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[5 : 5 + shape[0], 6 : 6 + shape[1]] = 1
    found = measure_cavity(mask, (1, 1))
    assert isinstance(found, Cavity)
    assert 0 < simpson.single_plane_discs_ml(found) < 1
