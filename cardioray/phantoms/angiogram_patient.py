"""Patients of the angiogram phantom: a lesion with its FFR, an anatomy, a view, a motion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cardioray.clinical.pressure_drop import (
    fractional_flow_reserve,
    typical_hyperaemic_flow_ml_s,
)
from cardioray.phantoms.angiogram_config import AngiogramPhantomConfig
from cardioray.phantoms.coronary_tree import CoronaryTree, Lesion, beat, draw_tree
from cardioray.phantoms.drawing import Stream, draw, stream
from cardioray.phantoms.fluoroscopy import View, view_axes

Floats = NDArray[np.float64]

FFR_CUTOFF = 0.80

# (RAO, cranial) angles in which operators look at the LAD; negative is LAO, caudal.
_ANGULATIONS = ((30, 25), (5, 38), (-40, 25), (25, -22), (-5, 30))


@dataclass(frozen=True, eq=False)
class AngiogramPatient:
    """The truth about one patient and everything the frames are rendered from.

    Attributes:
        seed: seed of the data set.
        index: number of the patient in it.
        percent_diameter_stenosis: severity of the LAD lesion.
        lesion_length_mm: its length.
        reference_diameter_mm: diameter of the LAD without it.
        hyperaemic_flow_ml_s: hyperaemic flow the LAD would carry without it.
        ffr: fractional flow reserve, from `cardioray.clinical.pressure_drop`.
        tree: vessels in heart coordinates.
        view: projection.
        contraction: phase of the beat of each frame, 0 to about 1, shape (frames,).
        shift_px: displacement by breathing of each frame, x and y, shape (frames, 2).
        fill_mm: way the contrast has travelled from the ostium, shape (frames,).
    """

    seed: int
    index: int
    percent_diameter_stenosis: float
    lesion_length_mm: float
    reference_diameter_mm: float
    hyperaemic_flow_ml_s: float
    ffr: float
    tree: CoronaryTree
    view: View
    contraction: Floats
    shift_px: Floats
    fill_mm: Floats

    @property
    def patient_id(self) -> str:
        """Identifier that is unique over data sets of different seeds."""
        return f"P{self.seed}-{self.index:05d}"

    @property
    def label(self) -> str:
        """FFRL for an FFR of at most 0.80, else FFRH."""
        return "FFRL" if self.ffr <= FFR_CUTOFF else "FFRH"

    def to_pixels(self, points_mm: Floats, frame: int) -> Floats:
        """Heart coordinates as x, y and depth in the pixels of a frame, shape (points, 3)."""
        moved = beat(points_mm, self.tree.heart_axes_mm, float(self.contraction[frame]))
        pixels = self.view.to_pixels(moved)
        pixels[:, :2] += self.shift_px[frame]
        return pixels

    def centerline_px(self, frame: int, points: int = 64) -> Floats:
        """Centre line of the LAD from its beginning to the apex, x and y, shape (points, 2)."""
        line = self.tree.lad.points_mm
        chosen = np.linspace(0, len(line) - 1, points).round().astype(int)
        return self.to_pixels(line[chosen], frame)[:, :2]

    def throat_px(self, frame: int) -> Floats:
        """Where the lesion is narrowest, x and y, shape (2,)."""
        throat = self.tree.lad.points_mm[self.tree.throat_index]
        return np.asarray(self.to_pixels(throat[None], frame)[0, :2])


def draw_patient(index: int, seed: int, config: AngiogramPhantomConfig) -> AngiogramPatient:
    """Draw a patient: the lesion and its FFR, the anatomy, the view and the motion.

    The same arguments give the same patient in any process.

    Args:
        index: number of the patient in the data set, from 0.
        seed: seed of the data set, from 0.
        config: ranges to draw from.
    """
    lesion, flow, ffr = draw_truth(index, seed, config)
    anatomy = stream(seed, index, Stream.ANATOMY)
    tree = draw_tree(
        anatomy,
        lesion,
        diagonals=int(anatomy.integers(*config.diagonals, endpoint=True)),
        septals=int(anatomy.integers(*config.septals, endpoint=True)),
        circumflex=config.circumflex,
        branch_stenosis_percent=config.branch_stenosis_percent,
        wall_irregularity=config.wall_irregularity,
    )
    view = _draw_view(stream(seed, index, Stream.VIEW), tree, config)
    motion = stream(seed, index, Stream.MOTION)
    frames = config.frames_per_patient
    phase = motion.uniform() + np.arange(frames) / frames
    contraction = draw(motion, config.contraction) * 0.5 * (1 - np.cos(2 * np.pi * phase))
    breathing = motion.uniform(-0.5, 0.5, (frames, 2)) * np.array([0.4, 1.0]) * config.breathing_mm
    # Contrast runs down the LAD within the run; the branches fill at the same speed.
    first = draw(motion, config.first_fill) * tree.lad.travel_mm[-1]
    speed = motion.uniform(60, 110) / max(frames - 1, 1)
    return AngiogramPatient(
        seed=seed,
        index=index,
        percent_diameter_stenosis=lesion.percent_diameter_stenosis,
        lesion_length_mm=lesion.length_mm,
        reference_diameter_mm=lesion.reference_diameter_mm,
        hyperaemic_flow_ml_s=flow,
        ffr=ffr,
        tree=tree,
        view=view,
        contraction=contraction,
        shift_px=breathing / view.spacing_mm,
        fill_mm=first + speed * np.arange(frames),
    )


def draw_truth(
    index: int, seed: int, config: AngiogramPhantomConfig
) -> tuple[Lesion, float, float]:
    """Draw the lesion, the hyperaemic flow in ml/s and the FFR of a patient.

    Raises:
        ValueError: when `excluded_ffr` leaves nobody.
    """
    rng = stream(seed, index, Stream.TRUTH)
    for _ in range(1000):
        lesion = Lesion(
            percent_diameter_stenosis=draw(rng, config.percent_diameter_stenosis),
            length_mm=draw(rng, config.lesion_length_mm),
            reference_diameter_mm=draw(rng, config.reference_diameter_mm),
            position_mm=draw(rng, config.lesion_position_mm),
            eccentricity=draw(rng, config.eccentricity),
        )
        typical = typical_hyperaemic_flow_ml_s(lesion.reference_diameter_mm)
        flow = float(typical * np.exp(config.hyperaemic_flow_log_sd * rng.normal()))
        exact = fractional_flow_reserve(
            percent_diameter_stenosis=lesion.percent_diameter_stenosis,
            lesion_length_mm=lesion.length_mm,
            reference_diameter_mm=lesion.reference_diameter_mm,
            hyperaemic_flow_ml_s=flow,
        )
        # Rounded here, so that the manifest's number and its label cannot contradict each other.
        ffr = round(float(exact), 4)
        excluded = config.excluded_ffr
        if excluded is None or not excluded[0] < ffr < excluded[1]:
            return lesion, flow, ffr
    raise ValueError(
        f"excluded_ffr={config.excluded_ffr} excludes every patient of these lesions; narrow it or "
        "widen percent_diameter_stenosis."
    )


def _draw_view(
    rng: np.random.Generator, tree: CoronaryTree, config: AngiogramPhantomConfig
) -> View:
    tilt = rng.normal(scale=0.08, size=3)
    roll = float(rng.normal(scale=config.roll_deg))
    chosen = []
    for _ in range(config.view_candidates):
        angles = _ANGULATIONS[rng.integers(len(_ANGULATIONS))]
        rao, cranial = rng.normal(angles, config.view_jitter_deg)
        axes, spine_mm = view_axes(rao, cranial, roll, tilt)
        foreshortening = abs(float(axes[2] @ tree.throat_direction))
        chosen.append((foreshortening, rao, cranial, axes, spine_mm))
    _, rao, cranial, axes, spine_mm = min(chosen, key=lambda item: item[0])
    heart = np.array([0.0, 0.0, -0.4 * tree.heart_axes_mm[2]])
    target = axes[:2] @ (heart + config.centring * (tree.throat_mm - heart))
    target += rng.normal(scale=config.centre_jitter_mm, size=2)
    field_mm = draw(rng, config.field_of_view_mm)
    return View(
        axes=axes,
        rao_deg=float(rao),
        cranial_deg=float(cranial),
        centre_mm=(float(target[0]), float(target[1])),
        spacing_mm=field_mm / config.image_size_px,
        size_px=config.image_size_px,
        spine_mm=spine_mm,
    )
