"""Discs and area-length against solids whose volume is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from plain_simpson import plain_axis, plain_widths

from cardioray.clinical import simpson
from cardioray.clinical.simpson import Cavity, measure_cavities, measure_cavity

AXES = st.tuples(
    st.floats(70, 110),  # length of the whole spheroid in mm
    st.floats(0.45, 0.75),  # its widths, as a share of the length
    st.floats(0.45, 0.75),
)
PIXEL = st.tuples(st.floats(0.25, 0.6), st.floats(0.25, 0.6))
COARSE = st.tuples(st.floats(1.5, 3.5), st.floats(1.5, 3.5))
ANGLE = st.one_of(st.floats(0, 2 * np.pi), st.sampled_from([0.0, 0.5, 1.0, 1.5]).map(np.pi.__mul__))


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


@given(AXES, COARSE, ANGLE, st.booleans(), st.booleans())
def test_measured_as_pixel_by_pixel(
    axes: tuple[float, float, float],
    spacing: tuple[float, float],
    angle: float,
    cut: bool,
    walled: bool,
) -> None:
    length, share, _ = axes
    wall: NDArray | None = None
    if cut:
        mask, wall = ventricle(length, 0.7 * share * length, spacing, angle)
    else:
        mask = ellipse(length, 0.8 * share * length, spacing, angle)
    wall = wall if walled else None
    found = measure_cavity(mask, spacing, wall)
    assert found.area_mm2 == pytest.approx(mask.sum() * np.prod(spacing))
    ends = [found.base * spacing, found.apex * spacing]
    widths = found.widths_mm
    base, apex = plain_axis(mask, spacing, wall)
    if not cut and np.hypot(*(ends[0] - base)) > np.hypot(*(ends[1] - base)):
        # Both ends of an ellipse are equally wide, but for rounding.
        ends, widths = ends[::-1], widths[::-1]
    assert np.allclose(ends, [base, apex], rtol=0, atol=1e-6)
    assert found.length_mm == pytest.approx(np.hypot(*np.subtract(apex, base)))
    assert np.allclose(widths, plain_widths(mask, spacing, base, apex), rtol=0, atol=1e-4)
    # What lies between both planes is divided among the discs, and nothing of it is lost.
    if found.annulus is None:
        assert widths.mean() * found.length_mm == pytest.approx(found.area_mm2, rel=1e-5)


def test_many_are_measured_as_one_by_one() -> None:
    rng = np.random.default_rng(4)
    masks, walls, spacings = [], [], []
    for number in range(70):
        spacing = tuple(rng.uniform(0.8, 2.0, 2))
        length = rng.uniform(70, 100)
        mask, wall = ventricle(
            length, rng.uniform(0.4, 0.7) * length, spacing, rng.uniform(0, 2 * np.pi)
        )
        if number % 5 == 0:  # in holes and in pieces
            mask = mask & (rng.random(mask.shape) > 0.2)
        if number % 7 == 0:
            wall[:] = False
        masks.append(mask)
        walls.append(wall)
        spacings.append(spacing)
    for beside in (walls, None):
        together = measure_cavities((mask for mask in masks), spacings, beside)
        for number, found in enumerate(together):
            own = None if beside is None else beside[number]
            alone = measure_cavity(masks[number], spacings[number], own)
            assert (found.annulus is None) == (alone.annulus is None)
            for name, value in vars(alone).items():
                if value is not None:
                    assert np.allclose(getattr(found, name), value, rtol=1e-9, atol=1e-9)
    assert sum(found.annulus is not None for found in measure_cavities(masks, spacings, walls)) > 40
    # Masks of one size may come as one array, of numbers as well as of flags.
    array = np.stack([masks[1]] * 3)
    for same in (array, array * np.uint8(7)):
        [*found] = measure_cavities(same, [spacings[1]] * 3, np.stack([walls[1]] * 3))
        assert {one.length_mm for one in found} == {
            measure_cavity(masks[1], spacings[1], walls[1]).length_mm
        }
    for view in (np.asfortranarray(masks[1]), np.repeat(masks[1], 2, axis=1)[:, ::2]):
        assert measure_cavity(view, spacings[1]).area_mm2 == pytest.approx(
            masks[1].sum() * np.prod(spacings[1])
        )
    assert measure_cavities([], np.zeros((0, 2))) == []


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
    for count in (1, 3):
        with pytest.raises(ValueError, match=f"as many cavities as sizes of pixels, {count}"):
            measure_cavities([mask, mask], [(1, 1)] * count)
        with pytest.raises(ValueError, match="as many walls"):
            measure_cavities([mask, mask], [(1, 1)] * 2, [mask] * count)
    with pytest.raises(ValueError, match="in size"):
        measure_cavity(mask, (1, 1), mask[1:])
    with pytest.raises(ValueError, match="no ejection fraction"):
        simpson.ef_percent(0, 0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_the_smallest_masks_have_a_volume(shape: tuple[int, int]) -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[5 : 5 + shape[0], 6 : 6 + shape[1]] = 1
    found = measure_cavity(mask, (1, 1))
    assert isinstance(found, Cavity)
    assert 0 < simpson.single_plane_discs_ml(found) < 1
