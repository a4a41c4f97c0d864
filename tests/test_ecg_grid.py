"""The grid of ECG paper: found whatever its colour, its angle and its resolution."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from cardioray.data.ecg_flat import jacobian, rectify, transform
from cardioray.data.ecg_grid import find_grid
from cardioray.data.image import read_frames

_FINE, _COARSE = (250, 205, 200), (220, 130, 120)


def paper(
    px_per_mm: float = 6.0,
    width_mm: int = 200,
    height_mm: int = 140,
    fine: tuple[int, int, int] = _FINE,
    coarse: tuple[int, int, int] = _COARSE,
) -> NDArray[np.uint8]:
    """Paper with lines at each millimetre and each fifth one."""
    height, width = round(height_mm * px_per_mm), round(width_mm * px_per_mm)
    picture = np.full((height, width, 3), 250, np.uint8)
    for colour, every in ((fine, 1), (coarse, 5)):
        for mm in range(0, width_mm, every):
            picture[:, round(mm * px_per_mm)] = colour
        for mm in range(0, height_mm, every):
            picture[round(mm * px_per_mm)] = colour
    return picture


def scale_at(homography: NDArray[np.float64], x: float, y: float) -> float:
    local = jacobian(homography, np.array([x, y]))
    return float(1 / np.sqrt(abs(np.linalg.det(local))))


@pytest.mark.parametrize("px_per_mm", [3.0, 4.5, 8.0, 11.811, 20.0])
def test_the_scale_of_a_scan(px_per_mm: float) -> None:
    grid = find_grid(paper(px_per_mm))
    assert grid is not None
    assert grid.px_per_mm == pytest.approx(px_per_mm, rel=0.01)
    assert grid.tilt_deg == pytest.approx(0, abs=0.2)


@pytest.mark.parametrize(
    ("fine", "coarse"),
    [
        ((252, 219, 180), (240, 170, 100)),
        ((205, 232, 208), (140, 196, 150)),
        ((208, 222, 246), (148, 178, 230)),
        ((216, 216, 216), (172, 172, 172)),
        ((250, 250, 250), (216, 111, 98)),  # no lines at millimetres
    ],
)
def test_any_colour(fine: tuple[int, int, int], coarse: tuple[int, int, int]) -> None:
    grid = find_grid(paper(5.0, fine=fine, coarse=coarse))
    assert grid is not None
    assert grid.px_per_mm == pytest.approx(5.0, rel=0.01)


@pytest.mark.parametrize("angle", [-8.0, 3.0, 8.0])
def test_a_tilted_page_is_laid_level(angle: float) -> None:
    flat = paper()
    height, width = flat.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1)
    grid = find_grid(cv2.warpAffine(flat, turn, (width, height), borderValue=(120, 120, 120)))
    assert grid is not None
    assert grid.tilt_deg == pytest.approx(angle, abs=0.3)
    assert grid.px_per_mm == pytest.approx(6.0, rel=0.01)


def test_perspective_is_undone() -> None:
    flat = paper()
    height, width = flat.shape[:2]
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    seen = np.array([[60, 20], [width - 30, 0], [width, height], [0, height - 40]], np.float32)
    tilt = cv2.getPerspectiveTransform(corners, seen)
    picture = cv2.warpPerspective(flat, tilt, (width, height), borderValue=(90, 90, 90))
    grid = find_grid(picture)
    assert grid is not None
    # Squares of 20 mm come out as squares of 20 mm, wherever they are.
    for x, y in ((20, 20), (160, 20), (90, 60), (160, 100), (20, 100)):
        square = np.array([[x, y], [x + 20, y], [x + 20, y + 20], [x, y + 20]], float) * 6
        found = transform(grid.homography, transform(tilt, square))
        sides = np.linalg.norm(found - np.roll(found, -1, axis=0), axis=1)
        np.testing.assert_allclose(sides, 20, rtol=0.015)


def test_bent_paper_is_laid_flat() -> None:
    flat = paper()
    height, width = flat.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    # Where each px of the picture is on the paper: bowed by 4 mm, as paper that lies on a book is.
    bowed = y + 24 * ((x - width / 2) / (width / 2)) ** 2
    picture = cv2.remap(flat, x, bowed, cv2.INTER_LINEAR, borderValue=(200, 200, 200))
    grid = find_grid(picture)
    assert grid is not None
    assert grid.bend is not None
    places = np.array([[200.0, 300.0], [600.0, 300.0], [1000.0, 300.0], [600.0, 600.0]])
    real = places.copy()
    real[:, 1] += 24 * ((places[:, 0] - width / 2) / (width / 2)) ** 2
    _, _, mapped = rectify(picture, grid.homography, 6.0, grid.bend)
    found = mapped.to_page(places)
    # The origin of a page is not that of the paper: distances are compared.
    for a, b in ((0, 1), (0, 2), (1, 2), (1, 3)):
        np.testing.assert_allclose(found[a] - found[b], real[a] - real[b], atol=4.0)
    np.testing.assert_allclose(mapped.to_picture(found), places, atol=0.01)
    straight = find_grid(flat)
    assert straight is not None
    assert straight.bend is None


def test_noise_and_compression() -> None:
    rng = np.random.default_rng(0)
    picture = np.clip(paper() + rng.normal(0, 12, (840, 1200, 3)), 0, 255).astype(np.uint8)
    _, coded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 40])
    grid = find_grid(cv2.imdecode(coded, cv2.IMREAD_COLOR))
    assert grid is not None
    assert grid.px_per_mm == pytest.approx(6.0, rel=0.01)


def test_a_rectified_page_has_the_resolution_asked_for() -> None:
    flat = paper(6.0)
    grid = find_grid(flat)
    assert grid is not None
    for wanted in (3.0, 8.0):
        page, valid, mapped = rectify(flat, grid.homography, wanted)
        to_page = mapped.as_homography
        assert valid[5:-5, 5:-5].all()
        assert page.shape[0] == pytest.approx(140 * wanted, abs=3)
        assert page.shape[1] == pytest.approx(200 * wanted, abs=3)
        assert scale_at(to_page, 600, 420) == pytest.approx(6.0 / wanted, rel=0.01)
        again = find_grid(page)
        assert again is not None
        assert again.px_per_mm == pytest.approx(wanted, rel=0.01)


def test_a_page_seen_along_its_surface_is_refused() -> None:
    steep = np.array([[0.2, 0, 0], [0, 0.2, 0], [-0.0009, 0, 1.0]])
    with pytest.raises(ValueError, match="flat an angle"):
        rectify(paper(), steep, 4.0)


def test_other_pictures_have_no_grid() -> None:
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 255, (600, 800, 3)).astype(np.uint8)
    blank = np.full((600, 800), 255, np.uint8)
    stripes = blank.copy()
    stripes[::12] = 0
    text = blank.copy()
    for line in range(12):
        cv2.putText(text, "The quick brown fox", (20, 40 + 45 * line), 0, 1.2, 0, 2)
    tiny = np.full((40, 60), 255, np.uint8)
    for picture in (noise, blank, stripes, text, tiny):
        assert find_grid(picture) is None


@pytest.mark.samples
def test_angiograms_have_no_grid(samples: Path) -> None:
    pictures = sorted((samples / "angio_danilov" / "image_dir").glob("*.bmp"))[:3]
    assert pictures
    for path in pictures:
        assert find_grid(read_frames(path.read_bytes())[0]) is None
