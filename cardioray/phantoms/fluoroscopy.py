"""Schematic X-ray projection: a C-arm view, absorbance of vessels and thorax, an exposure.

Absorbances add along a ray and the detector sees exp(-absorbance) (Beer and Lambert). Rays are
parallel; distances in the picture are those at the isocentre, the middle of the heart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float64]

# Directions of the heart's axes in the patient (left, anterior, superior), before the draw of
# individual tilt: the apex points to the left, to the front and down.
_BASE = -np.array([0.62, 0.55, -0.56])
_GROOVE = np.array([0.25, 0.55, 0.80])


@dataclass(frozen=True, eq=False)
class View:
    """How the heart is looked at.

    Attributes:
        axes: rows are the picture's right, up, and towards the detector, in heart coordinates.
        rao_deg: right anterior oblique angle, negative for left anterior oblique.
        cranial_deg: cranial angle, negative for caudal.
        centre_mm: picture coordinates (right, up) of the middle of the picture.
        spacing_mm: side of a pixel at the isocentre.
        size_px: side of the square picture.
        spine_mm: picture coordinate (right) of the spine.
    """

    axes: Floats
    rao_deg: float
    cranial_deg: float
    centre_mm: tuple[float, float]
    spacing_mm: float
    size_px: int
    spine_mm: float

    def to_pixels(self, points_mm: Floats) -> Floats:
        """Project heart coordinates to x, y and depth, all in pixels, shape (points, 3)."""
        right, up, depth = (points_mm @ self.axes.T).T
        x = (right - self.centre_mm[0]) / self.spacing_mm + self.size_px / 2 - 0.5
        y = (self.centre_mm[1] - up) / self.spacing_mm + self.size_px / 2 - 0.5
        return np.stack([x, y, depth / self.spacing_mm], axis=1)


def view_axes(
    rao_deg: float, cranial_deg: float, roll_deg: float, heart_tilt: Floats
) -> tuple[Floats, float]:
    """Picture axes of a C-arm angulation in heart coordinates, and where the spine falls.

    Args:
        rao_deg: right anterior oblique angle, negative for left.
        cranial_deg: cranial angle, negative for caudal.
        roll_deg: rotation of the picture in its plane.
        heart_tilt: small rotation of this patient's heart as a rotation vector in rad, shape (3,).

    Returns:
        Rows right, up, towards the detector, shape (3, 3), and the spine's coordinate in mm along
        the picture's right.
    """
    rao, cranial, roll = np.deg2rad([rao_deg, cranial_deg, roll_deg])
    detector = np.array(
        [-np.sin(rao) * np.cos(cranial), np.cos(rao) * np.cos(cranial), np.sin(cranial)]
    )
    right = np.array([np.cos(rao), np.sin(rao), 0.0])
    up = np.cross(right, detector)
    rolled_right = np.cos(roll) * right + np.sin(roll) * up
    rolled_up = np.cos(roll) * up - np.sin(roll) * right
    picture = np.stack([rolled_right, rolled_up, detector])

    base = _rotated(_BASE / np.linalg.norm(_BASE), heart_tilt)
    groove = _rotated(_GROOVE, heart_tilt)
    groove -= (groove @ base) * base
    groove /= np.linalg.norm(groove)
    heart = np.stack([np.cross(groove, base), groove, base])
    spine = np.array([-25.0, -75.0, 0.0])
    return picture @ heart.T, float(spine @ right)


def add_lumen(
    chord_mm: Floats, points_px: Floats, radius_mm: Floats, density: Floats, spacing_mm: float
) -> None:
    """Raise a picture to the chord lengths of a ray through a tube.

    The tube is the union of balls along its centre line, so the chord of a ray at distance d from
    a centre is 2 sqrt(r^2 - d^2), longer where the tube runs along the beam.

    Args:
        chord_mm: picture that is raised in place, shape (height, width).
        points_px: x, y and depth in pixels along the centre line, shape (points, 3).
        radius_mm: lumen radius, shape (points,).
        density: share of undiluted contrast in [0, 1], shape (points,).
        spacing_mm: side of a pixel.
    """
    if len(points_px) < 2:
        return
    points, radius, density, slant = _stations(points_px, radius_mm / spacing_mm, density)
    height, width = chord_mm.shape
    reach = radius.max(initial=0) + 1
    seen = (
        (points[:, 0] > -reach)
        & (points[:, 0] < width + reach)
        & (points[:, 1] > -reach)
        & (points[:, 1] < height + reach)
        & (density > 0.01)
    )
    if not seen.any():
        return
    points, radius, density, slant = points[seen], radius[seen], density[seen], slant[seen]
    # A tube thinner than a pixel would slip between pixel centres: draw it wider and fainter.
    drawn = np.maximum(radius, 0.8)
    strength = 2 * spacing_mm * density * slant * (radius / drawn) ** 2
    offsets = np.arange(-int(np.ceil(drawn.max())), int(np.ceil(drawn.max())) + 1)
    columns = np.round(points[:, 0]).astype(int)[:, None] + offsets
    rows = np.round(points[:, 1]).astype(int)[:, None] + offsets
    across = (columns - points[:, :1]) ** 2
    down = (rows - points[:, 1:2]) ** 2
    squared = drawn[:, None, None] ** 2 - across[:, None, :] - down[:, :, None]
    inside = (
        (squared > 0)
        & ((columns >= 0) & (columns < width))[:, None, :]
        & ((rows >= 0) & (rows < height))[:, :, None]
    )
    chords = (np.sqrt(np.where(inside, squared, 0)) * strength[:, None, None])[inside]
    flat = (rows[:, :, None] * width + columns[:, None, :])[inside]
    np.maximum.at(chord_mm.reshape(-1), flat, chords)


def thorax_absorbance(rng: np.random.Generator, view: View, heart_mm: float) -> Floats:
    """Absorbance of heart, spine, ribs, diaphragm and lung texture, shape (size, size).

    Args:
        rng: source of the anatomy.
        view: the projection.
        heart_mm: radius of the heart's shadow.
    """
    right, up = _picture_coordinates(view)
    absorbance = 0.22 * _cloud(rng, view, scale_mm=45) + 0.07 * _cloud(rng, view, scale_mm=14)
    absorbance += 0.04 * _cloud(rng, view, scale_mm=4)
    absorbance += _heart_shadow(rng, right, up, heart_mm)
    absorbance += _spine(rng, right, up, view.spine_mm)
    for _ in range(2):
        absorbance += _ribs(rng, right, up)
    absorbance += _diaphragm(rng, right, up)
    return absorbance + _lung_vessels(rng, view)


def collimation(rng: np.random.Generator, view: View, depth_mm: float) -> Floats:
    """Transmission in [0, 1] of the collimator blades, shape (size, size).

    Args:
        rng: source of the blades' positions.
        view: the projection.
        depth_mm: how far the blades reach into the picture at most.
    """
    half = view.size_px * view.spacing_mm / 2
    edge = (np.arange(view.size_px) + 0.5) * view.spacing_mm
    blades = rng.uniform(-depth_mm, depth_mm, 4)
    softness = 0.6 + 0.01 * half
    ramps = [1 / (1 + np.exp(-(edge - blade) / softness)) for blade in blades]
    return np.asarray(np.outer(ramps[0] * ramps[1][::-1], ramps[2] * ramps[3][::-1]))


def expose(
    rng: np.random.Generator,
    absorbance: Floats,
    *,
    photons: float,
    scatter_ratio: float,
    blur_px: float,
) -> Floats:
    """Logarithm of the detected intensity, relative to an unattenuated ray.

    Args:
        rng: source of the quantum noise.
        absorbance: line integrals, shape (height, width).
        photons: quanta a pixel would receive without the patient.
        scatter_ratio: scattered over primary intensity, which veils the contrast.
        blur_px: standard deviation of the focal spot and of motion within a frame.
    """
    primary = ndimage.gaussian_filter(np.exp(-absorbance), blur_px, mode="nearest")
    veil = ndimage.uniform_filter(primary, absorbance.shape[0] // 4, mode="nearest")
    intensity = (primary + scatter_ratio * veil) / (1 + scatter_ratio)
    quanta = rng.poisson(photons * intensity).astype(np.float64)
    # The scintillator spreads light, so neighbouring pixels share some of their noise.
    detected = ndimage.gaussian_filter(quanta, 0.5, mode="nearest")
    return np.asarray(np.log(np.maximum(detected, 1.0) / photons))


def _stations(
    points_px: Floats, radius_px: Floats, density: Floats
) -> tuple[Floats, Floats, Floats, Floats]:
    """Resample a projected centre line to half a pixel; last: 1 / sin(angle to the beam)."""
    steps = np.hypot(*np.diff(points_px[:, :2], axis=0).T)
    sine = steps / np.maximum(np.linalg.norm(np.diff(points_px, axis=0), axis=1), 1e-9)
    # A vessel seen end-on is as deep as it is long; the bound keeps a bend from turning black.
    slant = 1 / np.maximum(np.append(sine, sine[-1]), 0.7)
    way = np.concatenate([[0], np.cumsum(steps)])
    count = max(int(way[-1] / 0.5), 2)
    at = np.linspace(0, way[-1], count)
    points = np.stack([np.interp(at, way, axis) for axis in points_px[:, :2].T], axis=1)
    return (
        points,
        np.interp(at, way, radius_px),
        np.interp(at, way, density),
        np.interp(at, way, slant),
    )


def _picture_coordinates(view: View) -> tuple[Floats, Floats]:
    along = (np.arange(view.size_px) + 0.5 - view.size_px / 2) * view.spacing_mm
    return np.asarray(view.centre_mm[0] + along)[None, :], np.asarray(view.centre_mm[1] - along)[
        :, None
    ]


def _cloud(rng: np.random.Generator, view: View, scale_mm: float) -> Floats:
    """Smooth noise of mean 0 and standard deviation near 1, with blobs of a given size."""
    extent = view.size_px * view.spacing_mm
    knots = int(np.ceil(extent / scale_mm)) + 4
    coarse = rng.normal(size=(knots, knots))
    at = 1.5 + np.linspace(0, extent / scale_mm, view.size_px)
    grid = np.meshgrid(at, at, indexing="ij")
    return np.asarray(ndimage.map_coordinates(coarse, grid, order=3, mode="nearest"))


def _heart_shadow(rng: np.random.Generator, right: Floats, up: Floats, radius_mm: float) -> Floats:
    tilt = rng.uniform(-0.7, -0.2)
    x, y = right - rng.uniform(-4, 4), up + rng.uniform(15, 30)
    along, across = np.cos(tilt) * x + np.sin(tilt) * y, np.cos(tilt) * y - np.sin(tilt) * x
    inside = 1 - (along / (1.25 * radius_mm)) ** 2 - (across / radius_mm) ** 2
    return np.asarray(0.45 * np.sqrt(np.clip(inside, 0, None)))


def _spine(rng: np.random.Generator, right: Floats, up: Floats, spine_mm: float) -> Floats:
    lean, height, phase = rng.uniform(-0.1, 0.1), rng.uniform(23, 28), rng.uniform(0, 30)
    x = (right - spine_mm - lean * up) / 17
    body = 1 / (1 + np.exp((np.abs(x) - 1) * 10))
    place = (up + phase) / height
    disc = np.exp(-(((place - np.round(place)) * height / 2.6) ** 2))
    cortex = np.exp(-(((np.abs(x) - 0.93) / 0.09) ** 2))
    pedicle = np.exp(-(((np.abs(x) - 0.6) / 0.22) ** 2) - ((place % 1 - 0.35) / 0.16) ** 2)
    return np.asarray(body * (0.42 - 0.16 * disc) + 0.08 * cortex + 0.10 * pedicle * body)


def _ribs(rng: np.random.Generator, right: Floats, up: Floats) -> Floats:
    slope, bend = rng.uniform(-0.6, 0.6), rng.uniform(-0.004, 0.004)
    height, width, phase = rng.uniform(26, 34), rng.uniform(4.5, 7), rng.uniform(0, 30)
    place = (up - slope * right - bend * right**2 + phase) / height
    distance = (place - np.round(place)) * height / width
    inside = np.clip(1 - distance**2, 0, None)
    cortex = np.exp(-(((np.abs(distance) - 0.88) / 0.14) ** 2))
    return np.asarray(rng.uniform(0.04, 0.12) * (np.sqrt(inside) + 0.5 * cortex))


def _diaphragm(rng: np.random.Generator, right: Floats, up: Floats) -> Floats:
    top, middle = rng.uniform(-75, -42), rng.uniform(-30, 30)
    dome = top - (right - middle) ** 2 / rng.uniform(150, 260)
    edge = 1 / (1 + np.exp(np.clip((up - dome) / 0.8, -60, 60)))
    return np.asarray(rng.uniform(0.3, 0.6) * edge)


def _lung_vessels(rng: np.random.Generator, view: View) -> Floats:
    """Fine branching shadows: the ridges where smooth noise crosses zero."""
    ridges = sum(
        np.exp(-((_cloud(rng, view, scale_mm=scale) / 0.12) ** 2)) for scale in (9.0, 16.0)
    )
    fading = 1 / (1 + np.exp(-2 * _cloud(rng, view, scale_mm=25)))
    return np.asarray(0.05 * ndimage.gaussian_filter(ridges * fading, 1.2))


def _rotated(vector: Floats, rotation: Floats) -> Floats:
    """Rodrigues rotation of a vector by a rotation vector."""
    angle = float(np.linalg.norm(rotation))
    if angle == 0:
        return vector.copy()
    axis = rotation / angle
    return np.asarray(
        np.cos(angle) * vector
        + np.sin(angle) * np.cross(axis, vector)
        + (1 - np.cos(angle)) * (axis @ vector) * axis
    )
