"""A phantom patient with a ventricle, findings of a cardiac MRI, and beats for every view."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.optimize import brentq

from cardioray.phantoms.drawing import Stream, draw, stream
from cardioray.phantoms.echo_config import EchoPhantomConfig
from cardioray.phantoms.ventricle import Beat, Territory, Ventricle, ef_percent

ViewName = Literal["A4C", "A2C", "PLAX"]
VIEWS: tuple[ViewName, ...] = ("A4C", "A2C", "PLAX")

# Around the long axis, where the plane of each view meets the wall that is on the right of the
# picture (lateral, anterior) or towards the probe (anteroseptal). The planes of a standard study
# stand about 60 degrees apart.
VIEW_PHI = {"A4C": 0.0, "A2C": np.deg2rad(60.0), "PLAX": np.deg2rad(120.0)}

# Middles of the territories around the long axis: the anterior descending artery supplies the
# anterior and septal wall, the circumflex the lateral, the right coronary the inferior one
# (Cerqueira et al., Circulation 2002, doi:10.1161/hc0402.102975).
_ARTERIES = {
    "LAD": (np.deg2rad(120.0), 0.7),
    "LCX": (np.deg2rad(-25.0), 1.3),
    "RCA": (np.deg2rad(-115.0), 1.4),
}
_HIGHEST_SHORTENING = 0.62


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a cardiac MRI of the patient says.

    Attributes:
        wall_motion_abnormality: a part of the wall moves less.
        scar: a part of it is thin, bright and does not move.
        t1_ms: native T1.
        t2_ms: T2.
        ecv_percent: extracellular volume.
    """

    wall_motion_abnormality: bool
    scar: bool
    t1_ms: float
    t2_ms: float
    ecv_percent: float


@dataclass(frozen=True, kw_only=True)
class EchoPatient:
    """A patient.

    Attributes:
        seed: of the data set.
        index: number of the patient in it.
        ventricle: shape and contraction.
        findings: of the MRI.
        irregular: beats vary as in atrial fibrillation.
        edv_ml: volume at end diastole.
        esv_ml: volume at the end of a systole of full strength.
        ef_percent: ejection fraction of such a beat.
    """

    seed: int
    index: int
    ventricle: Ventricle
    findings: Findings
    irregular: bool
    edv_ml: float
    esv_ml: float
    ef_percent: float

    @property
    def patient_id(self) -> str:
        """Unique within a data set."""
        return f"E{self.index:05d}"


@dataclass(frozen=True, kw_only=True)
class Rhythm:
    """The beats of one clip.

    Attributes:
        fps: frames a second.
        num_frames: of the clip.
        beats: from before its first frame to after its last one; one that lies whole in the clip
            has full strength, and is the one that is traced.
        traced: its position in `beats`.
    """

    fps: float
    num_frames: int
    beats: tuple[Beat, ...]
    traced: int

    def frame_of(self, time_s: float) -> int:
        """The frame nearest to a time."""
        return min(max(round(time_s * self.fps), 0), self.num_frames - 1)


def draw_echo_patient(seed: int, index: int, config: EchoPhantomConfig) -> EchoPatient:
    """The patient of a data set with this number; the same for every config that draws alike."""
    rng = stream(seed, index, Stream.TRUTH)
    if rng.random() < config.reduced_share:
        wanted = draw(rng, config.reduced_ef_percent)
    else:
        wanted = float(np.clip(rng.normal(*config.normal_ef_percent), 42, 76))
    abnormal = rng.random() < 0.06 + 0.84 / (1 + np.exp((wanted - 46) / 5))
    # A small scar under the endocardium may leave the motion normal.
    scar = rng.random() < (0.6 if abnormal else 0.05)
    territories, scarred = _territories(rng, abnormal=abnormal, scar=scar)
    edv = float(np.clip(rng.normal(100, 18) + 1.3 * max(0.0, 60 - wanted), 55, 260))
    ventricle = _ventricle(rng, edv, territories, scarred)
    diastole = ventricle.volume_ml(0.0)
    ventricle = _contracting(ventricle, wanted, diastole)
    found = ef_percent(ventricle, edv_ml=diastole)
    findings = Findings(
        wall_motion_abnormality=abnormal,
        scar=scar,
        t1_ms=float(rng.normal(1000 + 12 * scar + 0.4 * max(0.0, 55 - found), 45)),
        t2_ms=float(rng.normal(48 + 0.8 * abnormal, 4)),
        ecv_percent=float(rng.normal(27 + 1.2 * scar + 0.03 * max(0.0, 55 - found), 3.5)),
    )
    return EchoPatient(
        seed=seed,
        index=index,
        ventricle=ventricle,
        findings=findings,
        irregular=rng.random() < config.irregular_share,
        edv_ml=diastole,
        esv_ml=diastole * (1 - found / 100),
        ef_percent=found,
    )


def draw_rhythm(rng: np.random.Generator, config: EchoPhantomConfig, *, irregular: bool) -> Rhythm:
    """Beats and frames of one clip."""
    fps = round(draw(rng, config.fps))
    length = 60.0 / draw(rng, config.heart_rate)
    seconds = max(draw(rng, config.seconds), 2.2 * length)
    spread, weaker = (0.18, 0.12) if irregular else (0.025, 0.02)
    start = -rng.uniform(0.05, 1.0) * length
    beats: list[Beat] = []
    while start < seconds + length:
        this = float(length * np.clip(rng.normal(1, spread), 0.55, 1.6))
        # After a short beat the ventricle has filled less and ejects less.
        strength = float(np.clip(1 + weaker * rng.normal() + (this / length - 1) * 0.2, 0.7, 1.1))
        beats.append(Beat(start, this, strength))
        start += this
    inside = [i for i, b in enumerate(beats) if b.start_s >= 0 and b.start_s + b.length_s < seconds]
    # Three irregular beats may each be long: the clip then holds a whole systole at least.
    traced = inside[0] if inside else 1
    beats[traced] = Beat(beats[traced].start_s, beats[traced].length_s, 1.0)
    frames = max(round(seconds * fps), round((beats[traced].end_systole_s + 0.1) * fps) + 1)
    return Rhythm(fps=float(fps), num_frames=frames, beats=tuple(beats), traced=traced)


def _territories(
    rng: np.random.Generator, *, abnormal: bool, scar: bool
) -> tuple[tuple[Territory, ...], tuple[bool, ...]]:
    if not abnormal and not scar:
        return (), ()
    names = rng.permutation(list(_ARTERIES))[: 1 + int(abnormal and rng.random() < 0.3)]
    found, scarred = [], []
    for number, name in enumerate(names):
        phi, theta = _ARTERIES[name]
        thin = scar and number == 0
        loss = rng.uniform(0.55, 0.95) if abnormal else 0.15
        found.append(
            Territory(
                phi=phi + rng.normal(0, 0.15),
                phi_width=rng.uniform(0.6, 1.0),
                theta=theta + rng.normal(0, 0.1),
                theta_width=rng.uniform(0.5, 0.9),
                loss=float(max(loss, 0.9) if thin and abnormal else loss),
            )
        )
        scarred.append(thin)
    return tuple(found), tuple(scarred)


def _ventricle(
    rng: np.random.Generator,
    edv_ml: float,
    territories: tuple[Territory, ...],
    scarred: tuple[bool, ...],
) -> Ventricle:
    """A ventricle of that volume at end diastole; larger ones are rounder."""
    long_axis = 8.3 * (edv_ml / 110) ** 0.28 * rng.normal(1, 0.04)
    unequal = rng.normal(1, 0.06)
    trial = Ventricle(
        long_axis_cm=long_axis,
        radius_cm=(unequal, 1 / unequal),
        wall_cm=float(np.clip(rng.normal(0.88, 0.1), 0.65, 1.2)),
        radial_shortening=0.0,
        territories=territories,
        scarred=scarred,
    )
    radius = np.sqrt(edv_ml / trial.volume_ml(0.0))
    return Ventricle(
        long_axis_cm=long_axis,
        radius_cm=(radius * unequal, radius / unequal),
        wall_cm=trial.wall_cm,
        radial_shortening=0.0,
        territories=territories,
        scarred=scarred,
    )


def _contracting(ventricle: Ventricle, wanted_ef: float, edv_ml: float) -> Ventricle:
    """The ventricle with the shortening that gives an EF, or the nearest to it that it can give."""

    def excess(shortening: float) -> float:
        moving = replace(ventricle, radial_shortening=shortening)
        return ef_percent(moving, edv_ml=edv_ml) - wanted_ef

    if excess(_HIGHEST_SHORTENING) <= 0:
        return replace(ventricle, radial_shortening=_HIGHEST_SHORTENING)
    # To a thousandth of the EF: what is drawn is what was measured, not what was wanted.
    found = brentq(excess, 0.0, _HIGHEST_SHORTENING, xtol=1e-3)
    return replace(ventricle, radial_shortening=float(found))
