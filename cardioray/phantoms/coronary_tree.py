"""A schematic left coronary tree in three dimensions, with one lesion in the LAD.

Vessels run over an ellipsoidal heart. Heart coordinates, in mm: the origin is the centre of the
atrioventricular plane, z points from the apex to the base, y to the anterior groove in which the
LAD runs, x to the lateral wall. On the surface a point has the polar angle psi (90 degrees at the
base, 0 at the apex) and the azimuth phi (90 degrees in the anterior groove, 0 at the lateral
wall).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STEP_MM = 0.25
"""Distance between two points of a centre line."""
THROAT_SHARE = 0.6
"""Part of a lesion's length along which it is narrowest."""


@dataclass(frozen=True)
class Lesion:
    """A narrowing of the LAD.

    Attributes:
        percent_diameter_stenosis: 100 * (1 - throat diameter / reference diameter).
        length_mm: length of the narrowed stretch, shoulders included.
        reference_diameter_mm: diameter of the LAD there without the lesion.
        position_mm: distance of the throat from the beginning of the LAD.
        eccentricity: 0 for a concentric lesion, 1 for a plaque on one side only.
    """

    percent_diameter_stenosis: float
    length_mm: float
    reference_diameter_mm: float
    position_mm: float
    eccentricity: float


@dataclass(frozen=True, eq=False)
class Vessel:
    """A tube along a centre line.

    Attributes:
        name: "LM", "LAD", "LCx", "D1", "S1", "OM1" ...
        points_mm: centre line in heart coordinates, shape (points, 3).
        radius_mm: lumen radius, shape (points,).
        travel_mm: way that contrast travels from the ostium to each point, shape (points,).
    """

    name: str
    points_mm: Floats
    radius_mm: Floats
    travel_mm: Floats


@dataclass(frozen=True, eq=False)
class CoronaryTree:
    """The vessels of one patient.

    Attributes:
        vessels: left main first, then the LAD, then the branches.
        heart_axes_mm: semi-axes (x, y, z) of the heart, z from the base to the apex.
        throat_index: point of the LAD's centre line at the throat of the lesion.
        throat_mm: where the healthy vessel would run there, shape (3,).
        throat_direction: unit vector along the healthy vessel there, shape (3,).
    """

    vessels: tuple[Vessel, ...]
    heart_axes_mm: tuple[float, float, float]
    throat_index: int
    throat_mm: Floats
    throat_direction: Floats

    @property
    def lad(self) -> Vessel:
        """The left anterior descending artery."""
        return self.vessels[1]


def lesion_profile(distance_mm: Floats, length_mm: float) -> Floats:
    """Relative depth of a narrowing: 1 along its throat, 0 from half the length on.

    A throat of even width between shoulders of raised cosines. With this share of throat and a
    stenosis of 30 to 80 %, Poiseuille's loss along the lesion is that of a throat of 0.66 to 0.82
    times its length, where `cardioray.clinical.pressure_drop` has 0.83: a picture shows what its
    FFR is made of. Steeper shoulders would come closer and look like a pipe.
    """
    outside = np.clip(2 * np.abs(distance_mm) / length_mm, THROAT_SHARE, 1) - THROAT_SHARE
    return np.asarray(0.5 + 0.5 * np.cos(np.pi * outside / (1 - THROAT_SHARE)))


def draw_tree(
    rng: np.random.Generator,
    lesion: Lesion,
    *,
    diagonals: int,
    septals: int,
    circumflex: bool,
    branch_stenosis_percent: float,
    wall_irregularity: float,
) -> CoronaryTree:
    """Draw the anatomy around a given lesion.

    Args:
        rng: source of the anatomy; what is drawn does not depend on the lesion's severity.
        lesion: the narrowing of the LAD.
        diagonals: number of diagonal branches.
        septals: number of septal branches.
        circumflex: whether the circumflex artery with its marginal branches is drawn.
        branch_stenosis_percent: largest narrowing of side branches, which does not touch the FFR
            of the LAD.
        wall_irregularity: relative standard deviation of the radius outside the lesion.
    """
    heart = _Heart((rng.uniform(34, 40), rng.uniform(34, 40), rng.uniform(78, 92)))
    path = heart.path(rng, (98, 88), (rng.uniform(4, 10), rng.uniform(86, 104)), wiggle_deg=14)
    ostium = np.array([-0.2 * heart.axes[0], 0.68 * heart.axes[1], rng.uniform(12, 17)])
    left_main_path = _bezier(ostium, path[0], -_tangents(path)[0], bend_mm=5)
    travel = _distances(len(left_main_path))

    distance = _distances(len(path)) - lesion.position_mm
    # Tapers to half its diameter at the apex; the reference diameter holds at the throat.
    healthy = lesion.reference_diameter_mm / 2 * np.clip(1 - 0.0055 * distance, 0.35, None)
    trunk = Vessel("LAD", path, healthy, travel[-1] + _distances(len(path)))
    branches = _lad_branches(rng, heart, trunk, lesion.position_mm, diagonals, septals)
    if circumflex:
        branches += _circumflex(rng, heart, trunk)
    branches = [
        _diseased(rng, branch, branch_stenosis_percent, wall_irregularity) for branch in branches
    ]
    left_main = Vessel(
        "LM", left_main_path, np.linspace(1.15, 1.05, len(travel)) * healthy[0], travel
    )
    lad = _with_lesion(rng, trunk, distance, lesion, wall_irregularity)
    throat = int(np.argmin(np.abs(distance)))
    return CoronaryTree(
        vessels=(left_main, lad, *branches),
        heart_axes_mm=heart.axes,
        throat_index=throat,
        throat_mm=path[throat],
        throat_direction=_tangents(path)[throat],
    )


def beat(points_mm: Floats, axes_mm: tuple[float, float, float], contraction: float) -> Floats:
    """Move points of the heart to a phase of the beat.

    The base descends towards the apex, the walls move inwards, the apex twists.

    Args:
        points_mm: heart coordinates at end-diastole, shape (points, 3).
        axes_mm: semi-axes of the heart.
        contraction: 0 at end-diastole, 1 at end-systole.
    """
    depth = np.clip(-points_mm[:, 2] / axes_mm[2], 0, 1)
    twist = np.deg2rad(8.0) * contraction * depth
    inward = 1 - 0.10 * contraction
    x, y = points_mm[:, 0] * inward, points_mm[:, 1] * inward
    z = (points_mm[:, 2] + axes_mm[2]) * (1 - 0.08 * contraction) - axes_mm[2]
    cos, sin = np.cos(twist), np.sin(twist)
    return np.stack([cos * x - sin * y, sin * x + cos * y, z], axis=1)


def _with_lesion(
    rng: np.random.Generator,
    trunk: Vessel,
    distance_mm: Floats,
    lesion: Lesion,
    wall_irregularity: float,
) -> Vessel:
    """The healthy LAD with its lesion and an uneven wall elsewhere."""
    depth = lesion_profile(distance_mm, lesion.length_mm)
    noise = _smooth_noise(rng, len(distance_mm), scale_mm=4)
    outer = trunk.radius_mm * (1 + wall_irregularity * noise * (1 - depth))
    radius = outer * (1 - lesion.percent_diameter_stenosis / 100 * depth)
    # An eccentric plaque pushes the lumen to the opposite wall.
    sideways = np.cross(_tangents(trunk.points_mm), rng.normal(size=3))
    sideways /= np.linalg.norm(sideways, axis=1, keepdims=True)
    points = trunk.points_mm + sideways * (lesion.eccentricity * (outer - radius))[:, None]
    return Vessel(trunk.name, points, radius, trunk.travel_mm)


def _lad_branches(
    rng: np.random.Generator,
    heart: _Heart,
    lad: Vessel,
    lesion_mm: float,
    diagonals: int,
    septals: int,
) -> list[Vessel]:
    length = STEP_MM * len(lad.points_mm)
    branches = []
    for number in range(1, diagonals + 1):
        at = _beside(rng.uniform(8, 0.55 * length), lesion_mm)
        share, span, turn = rng.uniform((0.4, 0.4, -60), (0.7, 0.75, -30))
        branch = _branch(rng, heart, lad, f"D{number}", at, share, span, turn)
        branches += [branch, *_twigs(rng, heart, branch)]
    for number in range(1, septals + 1):
        at = _beside(rng.uniform(8, 0.7 * length), lesion_mm)
        share, span, turn = rng.uniform((0.18, 0.15, 30), (0.36, 0.35, 65))
        branches.append(_branch(rng, heart, lad, f"S{number}", at, share, span, turn))
    return branches


def _circumflex(rng: np.random.Generator, heart: _Heart, lad: Vessel) -> list[Vessel]:
    path = heart.path(rng, (98, 88), (rng.uniform(88, 96), rng.uniform(-80, -30)), wiggle_deg=9)
    path = path + (lad.points_mm[0] - path[0])
    radius = rng.uniform(0.75, 0.98) * lad.radius_mm[0] * np.linspace(1, 0.5, len(path))
    trunk = Vessel("LCx", path, radius, lad.travel_mm[0] + _distances(len(path)))
    branches = [trunk]
    for number, start in ((1, 0.2), (2, 0.6)):
        at = rng.uniform(start, start + 0.25) * STEP_MM * len(path)
        share, span, turn = rng.uniform((0.55, 0.5, -25), (0.8, 0.75, 15))
        branch = _branch(rng, heart, trunk, f"OM{number}", at, share, span, turn)
        branches += [branch, *_twigs(rng, heart, branch)]
    return branches


def _twigs(rng: np.random.Generator, heart: _Heart, parent: Vessel) -> list[Vessel]:
    """Second-order branches of a diagonal or marginal branch."""
    length = STEP_MM * len(parent.points_mm)
    twigs = []
    for number in range(1, int(rng.integers(1, 4))):
        share, span, turn = rng.uniform((0.4, 0.25, 15), (0.7, 0.5, 35))
        side, at = rng.choice((-1, 1)), rng.uniform(0.2, 0.75) * length
        name = f"{parent.name}{'abc'[number - 1]}"
        twigs.append(_branch(rng, heart, parent, name, at, share, span, side * turn))
    return twigs


def _beside(at_mm: float, lesion_mm: float) -> float:
    """A place for a branch that keeps 4 mm off the throat of the lesion."""
    return at_mm if abs(at_mm - lesion_mm) >= 4 else lesion_mm + (4 if at_mm > lesion_mm else -4)


def _branch(
    rng: np.random.Generator,
    heart: _Heart,
    parent: Vessel,
    name: str,
    at_mm: float,
    share: float,
    span: float,
    turn_deg: float,
) -> Vessel:
    """A side branch that leaves its parent.

    Args:
        rng: source of its meandering.
        heart: surface it runs on.
        parent: vessel it leaves.
        name: its name.
        at_mm: distance from the beginning of the parent.
        share: its radius at the origin as a share of the parent's.
        span: share of the way to the apex that it covers.
        turn_deg: azimuth that it gains.
    """
    index = min(int(at_mm / STEP_MM), len(parent.points_mm) - 2)
    psi, phi = heart.angles(parent.points_mm[index])
    end = (max(psi * (1 - span), 5), phi + turn_deg)
    path = heart.path(rng, (psi, phi), end, wiggle_deg=9)
    path = path + (parent.points_mm[index] - path[0])
    radius = share * parent.radius_mm[index] * np.linspace(1, 0.35, len(path))
    return Vessel(name, path, radius, parent.travel_mm[index] + _distances(len(path)))


def _diseased(
    rng: np.random.Generator, vessel: Vessel, stenosis_percent: float, irregularity: float
) -> Vessel:
    """A side branch with an uneven wall and, half of the time, a lesion of its own."""
    count = len(vessel.radius_mm)
    radius = vessel.radius_mm * (1 + irregularity * _smooth_noise(rng, count, scale_mm=4))
    depth, centre, length = rng.uniform(0, 1), rng.uniform(0.15, 0.7), rng.uniform(5, 14)
    if rng.uniform() < 0.5:
        distance = _distances(count) - centre * count * STEP_MM
        radius = radius * (1 - stenosis_percent / 100 * depth * lesion_profile(distance, length))
    return Vessel(vessel.name, vessel.points_mm, radius, vessel.travel_mm)


@dataclass(frozen=True)
class _Heart:
    """The ellipsoid on which vessels run; places on it are (psi, phi) in degrees."""

    axes: tuple[float, float, float]

    def path(
        self,
        rng: np.random.Generator,
        start: tuple[float, float],
        end: tuple[float, float],
        wiggle_deg: float,
    ) -> Floats:
        """A meandering way between two places, shape (points, 3), in steps of STEP_MM."""
        way = np.linspace(0, 1, 300)
        waves = np.zeros_like(way)
        for cycles in (1, 2, 3, 5, 8):
            phase = rng.uniform(0, np.pi)
            waves += rng.uniform(-1, 1) / cycles * np.sin(np.pi * cycles * way + phase)
        psi = np.deg2rad(start[0] + (end[0] - start[0]) * way)
        # Branches leave at an angle and then turn to the apex. Wiggles begin gently.
        turned = np.sqrt(way * (0.4 + 0.6 * way))
        swing = wiggle_deg * waves * np.minimum(4 * way, 1) * np.sin(psi)
        phi = np.deg2rad(start[1] + (end[1] - start[1]) * turned + swing)
        across, down = np.sin(psi), -np.cos(psi)
        sphere = np.stack([across * np.cos(phi), across * np.sin(phi), down], axis=1)
        return _resampled(sphere * np.array(self.axes))

    def angles(self, point_mm: Floats) -> tuple[float, float]:
        """The place of a point near the surface."""
        x, y, z = point_mm / np.array(self.axes)
        return float(np.rad2deg(np.arctan2(np.hypot(x, y), -z))), float(
            np.rad2deg(np.arctan2(y, x))
        )


def _bezier(start: Floats, end: Floats, end_direction: Floats, bend_mm: float) -> Floats:
    way = np.linspace(0, 1, 60)[:, None]
    control = end + bend_mm * end_direction
    return _resampled((1 - way) ** 2 * start + 2 * way * (1 - way) * control + way**2 * end)


def _distances(count: int) -> Floats:
    """Distance of each of `count` points from the first, in mm."""
    return STEP_MM * np.arange(count, dtype=np.float64)


def _resampled(points: Floats) -> Floats:
    lengths = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    stations = np.arange(0, lengths[-1], STEP_MM)
    return np.stack([np.interp(stations, lengths, axis) for axis in points.T], axis=1)


def _tangents(points: Floats) -> Floats:
    slope = np.gradient(points, axis=0)
    return np.asarray(slope / np.linalg.norm(slope, axis=1, keepdims=True))


def _smooth_noise(rng: np.random.Generator, count: int, scale_mm: float) -> Floats:
    """Noise of standard deviation near 1 along a centre line."""
    knots = rng.normal(size=max(int(count * STEP_MM / scale_mm), 2) + 1)
    stations = np.linspace(0, len(knots) - 1, count)
    return np.asarray(np.interp(stations, np.arange(len(knots)), knots), dtype=np.float64)
