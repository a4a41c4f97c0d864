"""An echo cine of a phantom patient: where tissue is at every moment, and how strongly it reflects.

`echo_scan` shows it as a scanner does.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cardioray.data.label_maps import ATRIUM, BACKGROUND, CAVITY, MYOCARDIUM
from cardioray.phantoms.drawing import Stream, stream
from cardioray.phantoms.echo_config import EchoPhantomConfig
from cardioray.phantoms.echo_patient import (
    VIEW_PHI,
    VIEWS,
    EchoPatient,
    Rhythm,
    ViewName,
    draw_rhythm,
)
from cardioray.phantoms.echo_scan import BLOOD, Scan
from cardioray.phantoms.ventricle import TRUNCATION, Ventricle, contraction_at

Floats = NDArray[np.float32]

_THETAS = 512

# By which share of itself the atrium is wider while the ventricle is contracted.
_ATRIUM_SWELLS = 0.14

# Amplitudes of tissue.
_MUSCLE, _BORDER, _PERICARDIUM, _SCAR, _VALVE, _OTHER = 0.3, 0.5, 1.0, 0.9, 0.8, 0.22


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Where the ventricle is in the picture; x to the right and y away from the probe, in cm.

    Attributes:
        apex: its apex.
        axis: unit vector from apex to base.
        aside: unit vector across it, towards the right of the axis.
        shortening: share of the long axis that the plane does not show.
    """

    apex: tuple[float, float]
    axis: tuple[float, float]
    aside: tuple[float, float]
    shortening: float


@dataclass(frozen=True, kw_only=True)
class EchoClip:
    """A rendered cine with its truth.

    Attributes:
        view: "A4C", "A2C" or "PLAX".
        frames: grey, (T, size, size).
        fps: frames a second.
        rhythm: its beats.
        cm_per_px: size of a pixel.
        outlines: per phase ("ED", "ES") the frame and the endocardial outline in px: apex and
            mitral centre as (2, 2), and left and right ends of 20 chords as (20, 2, 2), x before y.
    """

    view: ViewName
    frames: NDArray[np.uint8]
    fps: float
    rhythm: Rhythm
    cm_per_px: float
    outlines: dict[str, tuple[int, NDArray[np.float64], NDArray[np.float64]]]


def render_view(patient: EchoPatient, view: ViewName, config: EchoPhantomConfig) -> EchoClip:
    """Render one view of a patient; the same for the same patient, view and config."""
    rhythm, heart, scan, noise = _scene(patient, view, config)
    frames = np.empty((rhythm.num_frames, config.image_size_px, config.image_size_px), np.uint8)
    for frame in range(rhythm.num_frames):
        contraction = contraction_at(rhythm.beats, frame / rhythm.fps)
        opening = _valve_opening(rhythm, frame / rhythm.fps)
        amplitude, x, y = heart.at(contraction, opening)
        frames[frame] = scan.show(amplitude, x, y, noise)
    beat = rhythm.beats[rhythm.traced]
    outlines = {}
    for phase, moment, contraction in (("ED", beat.start_s, 0.0), ("ES", beat.end_systole_s, 1.0)):
        axis, chords = heart.outline(contraction)
        outlines[phase] = (rhythm.frame_of(moment), scan.to_px(axis), scan.to_px(chords))
    return EchoClip(
        view=view,
        frames=frames,
        fps=rhythm.fps,
        rhythm=rhythm,
        cm_per_px=scan.cm_per_px,
        outlines=outlines,
    )


@dataclass(frozen=True, kw_only=True)
class Systole:
    """The frames from end diastole to end systole, with their truth.

    Attributes:
        frames: grey, (T, size, size).
        labels: label maps, (T, size, size).
        fps: frames a second.
        spacing_mm: height and width of a pixel.
    """

    frames: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    fps: float
    spacing_mm: float


def render_systole(patient: EchoPatient, view: ViewName, config: EchoPhantomConfig) -> Systole:
    """Render half a beat of a view, whose label maps are known; the scanner of `render_view`."""
    rhythm, heart, scan, noise = _scene(patient, view, config)
    beat = rhythm.beats[rhythm.traced]
    count = max(2, 1 + round((beat.end_systole_s - beat.start_s) * rhythm.fps))
    moments = np.linspace(beat.start_s, beat.end_systole_s, count)
    contractions = [contraction_at(rhythm.beats, float(moment)) for moment in moments]
    contractions[0], contractions[-1] = 0.0, 1.0  # which the volumes are known of
    frames = [scan.show(*heart.at(contraction, 0.0), noise) for contraction in contractions]
    return Systole(
        frames=np.stack(frames),
        labels=np.stack([heart.label_map(scan, contraction) for contraction in contractions]),
        fps=rhythm.fps,
        spacing_mm=10 * scan.cm_per_px,
    )


def _scene(
    patient: EchoPatient, view: ViewName, config: EchoPhantomConfig
) -> tuple[Rhythm, _Heart, Scan, np.random.Generator]:
    """A view of a patient before any frame is drawn; the same for the same arguments."""
    number = VIEWS.index(view)
    rhythm = draw_rhythm(
        stream(patient.seed, patient.index, Stream.MOTION, number),
        config,
        irregular=patient.irregular,
    )
    pose = _draw_pose(stream(patient.seed, patient.index, Stream.VIEW, number), view, config)
    scan = Scan.draw(stream(patient.seed, patient.index, Stream.SCENE, number), config)
    noise = stream(patient.seed, patient.index, Stream.NOISE, number)
    heart = _Heart.of(patient.ventricle, view, pose, scan)
    return rhythm, heart, scan, noise


def _draw_pose(rng: np.random.Generator, view: ViewName, config: EchoPhantomConfig) -> Pose:
    jitter = rng.normal(0, 1, 3)
    shortening = config.foreshortening * rng.random()
    if view == "PLAX":
        # Probe beside the sternum: the axis lies across the picture, apex to the left.
        angle = np.deg2rad(97.0 + config.tilt_jitter_deg * jitter[2])
        apex = (-4.4 + config.pose_jitter_cm * jitter[0], 6.6 + config.pose_jitter_cm * jitter[1])
    else:
        angle = np.deg2rad(-6.0 + config.tilt_jitter_deg * jitter[2])
        depth = 2.6 + config.pose_jitter_cm * float(np.clip(jitter[1], -2, 2))
        # The apex stays in the picture: a plane that misses it is no apical view.
        reach = 0.55 * depth
        apex = (float(np.clip(1.0 + config.pose_jitter_cm * jitter[0], -reach, reach)), depth)
    axis = (float(np.sin(angle)), float(np.cos(angle)))
    aside = (axis[1], -axis[0])
    return Pose(apex=apex, axis=axis, aside=aside, shortening=float(shortening))


def _valve_opening(rhythm: Rhythm, time_s: float) -> float:
    """How far the mitral valve is open: by how fast the ventricle fills."""
    step = 0.02
    before = contraction_at(rhythm.beats, time_s - step)
    after = contraction_at(rhythm.beats, time_s + step)
    return float(np.clip((before - after) / step / 6.0, 0.0, 1.0))


@dataclass(frozen=True)
class _Heart:
    """One plane through the ventricle and what is around it."""

    ventricle: Ventricle
    view: ViewName
    pose: Pose
    x: Floats
    y: Floats
    plane: _Plane
    outside: Floats

    @classmethod
    def of(cls, ventricle: Ventricle, view: ViewName, pose: Pose, scan: Scan) -> _Heart:
        plane = _Plane.of(ventricle, VIEW_PHI[view])
        return cls(ventricle, view, pose, scan.x, scan.y, plane, _outside(scan, pose))

    def at(self, contraction: float, opening: float) -> tuple[Floats, Floats, Floats]:
        """Reflecting amplitude of every point of the scan, and where it lay at end diastole."""
        pose, heart = self.pose, self.ventricle
        scale = np.float32(1 - pose.shortening)
        dx, dy = self.x - np.float32(pose.apex[0]), self.y - np.float32(pose.apex[1])
        # Along and across the axis, in the ventricle's own cm.
        along: Floats = np.asarray(
            (dx * np.float32(pose.axis[0]) + dy * np.float32(pose.axis[1])) / scale, np.float32
        )
        aside: Floats = dx * np.float32(pose.aside[0]) + dy * np.float32(pose.aside[1])
        semi = np.float32(heart.long_semi_axis_cm(contraction))
        base = float(semi) * (1 + TRUNCATION)
        ahead = semi - along
        rho, theta = cv2.cartToPolar(ahead, np.abs(aside))
        bins = np.minimum((theta * np.float32((_THETAS - 1) / np.pi)).astype(np.int32), _THETAS - 1)
        bins += _THETAS * (aside < 0)
        now = self.plane.cavity(contraction)
        # Muscle keeps its volume: along each direction rho^3 is shifted by the same amount.
        shifts = self.plane.start**3 - now**3
        outers = np.cbrt((self.plane.start + self.plane.wall) ** 3 - shifts)
        cavity, outer = now.astype(np.float32)[bins], outers.astype(np.float32)[bins]
        shift = shifts.astype(np.float32)[bins]
        rest = np.cbrt(np.maximum(rho * rho * rho + shift, np.float32(1e-3)))
        distance = rho - outer
        amplitude = self._amplitudes(along, aside, rho, cavity, outer, bins, base, contraction)
        self._add_valves(amplitude, along, aside, base, now, float(semi), opening)
        # Where the point lay at end diastole; what is far from the heart rests.
        near = cv2.exp(np.maximum(distance, 0) * np.float32(-1 / 1.5))
        stretch = rest / np.maximum(rho, np.float32(0.1))
        first = np.float32(heart.long_semi_axis_cm(0.0))
        moved_along = (first - ahead * stretch - along) * near
        moved_aside = (aside * stretch - aside) * near
        moved_along *= scale
        x = (
            self.x
            + moved_along * np.float32(pose.axis[0])
            + moved_aside * np.float32(pose.aside[0])
        )
        y = (
            self.y
            + moved_along * np.float32(pose.axis[1])
            + moved_aside * np.float32(pose.aside[1])
        )
        return amplitude, x, y

    def _amplitudes(
        self,
        along: Floats,
        aside: Floats,
        rho: Floats,
        cavity: Floats,
        outer: Floats,
        bins: NDArray[np.int32],
        base: float,
        contraction: float,
    ) -> Floats:
        above = along < base
        amplitude = self.outside.copy()
        self._add_neighbours(amplitude, along, aside, rho - outer, base, contraction)
        muscle = above & (rho < outer)
        scar = self.plane.scar[bins]
        tissue = np.float32(_MUSCLE) + np.float32(_SCAR - _MUSCLE) * np.minimum(scar, 1)
        amplitude[muscle] = tissue[muscle]
        amplitude[above & (np.abs(rho - outer) < 0.12)] = _PERICARDIUM * 0.6
        amplitude[above & (np.abs(rho - cavity - 0.08) < 0.1)] = _BORDER
        blood = above & (rho < cavity)
        amplitude[blood] = BLOOD
        if self.view != "PLAX":
            # A papillary muscle that leans on the wall.
            side = aside > 0
            angle = bins % _THETAS
            leaning = (angle > 0.42 * _THETAS) & (angle < 0.54 * _THETAS)
            amplitude[blood & side & leaning & (rho > 0.74 * cavity)] = _MUSCLE * 0.9
        return amplitude

    def _add_neighbours(
        self,
        amplitude: Floats,
        along: Floats,
        aside: Floats,
        distance: Floats,
        base: float,
        contraction: float,
    ) -> None:
        """Atria, the right ventricle, the aorta: dark, with thin walls."""
        swelling = np.float32(1 + _ATRIUM_SWELLS * contraction)
        below = along - base
        if self.view == "PLAX":
            # The septum is on the side of the probe, that is, aside < 0 is below... see the pose.
            atrium = np.hypot((below - 2.0) / (2.1 * swelling), (aside + 1.9) / (1.9 * swelling))
            self._chamber(amplitude, atrium, 2.0)
            root = np.where(below > -0.2, np.abs(aside - 1.25) / np.float32(1.25), np.float32(9))
            self._chamber(amplitude, root.astype(np.float32), 1.25)
            right = (distance > 0) & (distance < 2.0 * (1 - 0.2 * contraction)) & (aside > 0)
            amplitude[right & (along > 0.3 * base) & (below < 2.5)] = BLOOD
            return
        atrium = np.hypot((below - 2.2) / (2.3 * swelling), (aside - 0.1) / (2.0 * swelling))
        self._chamber(amplitude, atrium, 2.1)
        if self.view == "A4C":
            second = np.hypot((below - 2.0) / (2.1 * swelling), (aside + 4.6) / (2.0 * swelling))
            self._chamber(amplitude, second, 2.0)
            share = np.clip((along / base - 0.22) / 0.78, 0, 1)
            width = 2.7 * np.sqrt(share) * (1 - 0.22 * contraction)
            right = (aside < 0) & (along < base) & (distance > 0) & (distance < width)
            border = (aside < 0) & (along < base) & (np.abs(distance - width - 0.15) < 0.2)
            amplitude[border & (share > 0)] = _BORDER
            amplitude[right] = BLOOD

    def _chamber(self, amplitude: Floats, level: Floats, radius_cm: float) -> None:
        """A dark room where `level` is below 1, with a bright thin wall."""
        amplitude[np.abs(level - 1 - 0.08 / radius_cm) < 0.13 / radius_cm] = _BORDER
        amplitude[level < 1] = BLOOD

    def _add_valves(
        self,
        amplitude: Floats,
        along: Floats,
        aside: Floats,
        base: float,
        now: NDArray[np.float64],
        semi: float,
        opening: float,
    ) -> None:
        """Two leaflets between the hinges of the mitral ring and its middle."""
        near = np.flatnonzero((np.abs(along - base) < 4) & (np.abs(aside) < 4.5))
        flat, along, aside = amplitude.reshape(-1), along.ravel()[near], aside.ravel()[near]
        for side in (0, 1):
            sign = 1.0 if side == 0 else -1.0
            hinge = sign * self.plane.half_width(float(base) - 1e-3, now, semi, side)
            # Closed they meet in the middle; open they hang into the ventricle.
            swing = np.deg2rad(12 + 62 * opening)
            length = abs(hinge) * 1.05
            tip = (
                float(base) - length * np.sin(swing),
                hinge - sign * length * np.cos(swing),
            )
            line = _distance(along, aside, (float(base), hinge), tip)
            flat[near[line < 0.1]] = _VALVE
            ring = np.hypot(along - base, aside - np.float32(hinge)) < 0.22
            flat[near[ring]] = _PERICARDIUM

    def label_map(self, scan: Scan, contraction: float) -> NDArray[np.uint8]:
        """Which structure each pixel of the picture shows, (size, size); see `label_maps`."""
        px = (np.arange(scan.size) + 0.5) * scan.cm_per_px
        dx = (px - scan.size * scan.cm_per_px / 2)[None] - self.pose.apex[0]
        dy = px[:, None] - self.pose.apex[1]
        axis, across = self.pose.axis, self.pose.aside
        along = (dx * axis[0] + dy * axis[1]) / (1 - self.pose.shortening)
        aside = dx * across[0] + dy * across[1]
        semi = self.ventricle.long_semi_axis_cm(contraction)
        below = along - semi * (1 + TRUNCATION)
        rho = np.hypot(semi - along, aside)
        theta = np.arctan2(np.abs(aside), semi - along)
        now = self.plane.cavity(contraction)
        outer = np.cbrt((self.plane.start + self.plane.wall) ** 3 - self.plane.start**3 + now**3)
        cavity, wall = (
            np.where(
                aside < 0,
                np.interp(theta, self.plane.thetas[_THETAS:], reach[_THETAS:]),
                np.interp(theta, self.plane.thetas[:_THETAS], reach[:_THETAS]),
            )
            for reach in (now, outer)
        )
        swelling = 1 + _ATRIUM_SWELLS * contraction
        atrium = np.hypot((below - 2.2) / (2.3 * swelling), (aside - 0.1) / (2.0 * swelling))
        labels = np.zeros((scan.size, scan.size), np.uint8)
        labels[(below > 0) & (atrium < 1)] = ATRIUM
        labels[(below <= 0) & (rho < wall)] = MYOCARDIUM
        labels[(below <= 0) & (rho < cavity)] = CAVITY
        labels[~scan.inside] = BACKGROUND
        return labels

    def outline(self, contraction: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Long axis (2, 2) and 20 chords across it (20, 2, 2), in cm of the picture."""
        semi, now = self.ventricle.long_semi_axis_cm(contraction), self.plane.cavity(contraction)
        length = semi * (1 + TRUNCATION)
        apex, axis = np.array(self.pose.apex), np.array(self.pose.axis)
        aside = np.array(self.pose.aside)
        scale = 1 - self.pose.shortening
        ends = np.stack([apex, apex + axis * length * scale])
        chords = []
        for along in (np.arange(20) + 0.5) / 20 * length:
            middle = apex + axis * along * scale
            right = self.plane.half_width(along, now, semi, 0)
            left = self.plane.half_width(along, now, semi, 1)
            chords.append([middle - aside * left, middle + aside * right])
        return ends, np.array(chords)


@dataclass(frozen=True)
class _Plane:
    """The ventricle in the plane of a view, by direction from its centre.

    All arrays are (2 * _THETAS,): theta from the apex to the base on the side of `aside` > 0, then
    on the other side.
    """

    ventricle: Ventricle
    thetas: NDArray[np.float64]
    radius: NDArray[np.float64]
    shortening: NDArray[np.float64]
    wall: NDArray[np.float64]
    scar: Floats
    start: NDArray[np.float64]

    @classmethod
    def of(cls, ventricle: Ventricle, phi: float) -> _Plane:
        thetas = np.tile(np.linspace(0, np.pi, _THETAS), 2)
        phis = np.repeat([phi, phi + np.pi], _THETAS)
        scar = np.zeros(len(thetas), np.float32)
        for territory, scarred in zip(ventricle.territories, ventricle.scarred, strict=True):
            if scarred:
                scar += territory.weight(thetas, phis).astype(np.float32)
        return cls(
            ventricle,
            thetas,
            ventricle.relaxed_radius(phis),
            ventricle.shortening(thetas, phis),
            ventricle.wall(thetas, phis),
            scar,
            ventricle.cavity(thetas, phis, 0.0),
        )

    def cavity(self, contraction: float) -> NDArray[np.float64]:
        """`Ventricle.cavity` towards every direction of the plane."""
        radius = self.radius * (1 - self.shortening * contraction)
        along = np.cos(self.thetas) / self.ventricle.long_semi_axis_cm(contraction)
        return np.asarray(1 / np.hypot(along, np.sin(self.thetas) / radius))

    def half_width(
        self, along: float, cavity: NDArray[np.float64], semi: float, side: int
    ) -> float:
        """How far the endocardium is from the axis, at a distance from the apex."""
        own = slice(side * _THETAS, (side + 1) * _THETAS)
        thetas, rho = self.thetas[own], cavity[own]
        distances = semi - rho * np.cos(thetas)  # grows with theta
        return float(np.interp(along, distances, rho * np.sin(thetas)))


def _distance(
    along: Floats, aside: Floats, start: tuple[float, float], end: tuple[float, float]
) -> Floats:
    """Distance of every point from a line segment."""
    da, db = end[0] - start[0], end[1] - start[1]
    share = ((along - start[0]) * da + (aside - start[1]) * db) / (da * da + db * db)
    share = np.clip(share, 0, 1)
    found: Floats = np.hypot(along - start[0] - share * da, aside - start[1] - share * db)
    return found


def _outside(scan: Scan, pose: Pose) -> Floats:
    """Reflectivity around the heart: soft tissue near the probe and behind it, lung at the sides.

    Lung reflects nearly all sound at its surface, and is dark behind it.
    """
    middle = (
        np.float32(pose.apex[0] + pose.axis[0] * 6),
        np.float32(pose.apex[1] + pose.axis[1] * 6),
    )
    away = np.hypot((scan.x - middle[0]) / 6.5, (scan.y - middle[1]) / 8.5)
    fading: Floats = _OTHER * (0.12 + 0.88 / (1 + np.exp((away - 1.0) * 7)))
    return fading.astype(np.float32)
