"""The electrical side of a phantom heart: a moving dipole, and twelve leads that look at it.

Each part of the ventricle contributes a vector for as long as it is activated. A scar takes its
part away, so that forces of the wall opposite are left alone: Q waves appear in the leads above it
and R waves are lost. A wide QRS comes from late activation, a left bundle branch block from a
septum that is activated from the right.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from cardioray.data.ecg_leads import LEADS, PAGE_SECONDS, EcgSignals

RATE_HZ = 500.0

# Leads as projections of a dipole with x to the left, y down and z to the back (Dower et al.,
# J Electrocardiol 1980, doi:10.1016/s0022-0736(80)80047-0); the limb leads III, aVR, aVL and aVF
# follow from I and II.
_DOWER = {
    "I": (0.632, -0.235, 0.059),
    "II": (0.235, 1.066, -0.132),
    "V1": (-0.515, 0.157, -0.917),
    "V2": (0.044, 0.164, -1.387),
    "V3": (0.882, 0.098, -1.277),
    "V4": (1.213, 0.127, -0.601),
    "V5": (1.125, 0.127, -0.086),
    "V6": (0.831, 0.076, 0.230),
}


@dataclass(frozen=True)
class _Part:
    """A part of the ventricle: where its dipole points, when and how strongly it is activated."""

    direction: tuple[float, float, float]
    time_s: float
    width_s: float
    millivolts: float


# In the order of activation.
_PARTS = {
    "septum": _Part((-0.62, 0.08, -0.78), 0.014, 0.009, 0.32),
    "anterior": _Part((0.60, 0.58, -0.55), 0.032, 0.010, 0.85),
    "inferior": _Part((0.10, 0.94, 0.32), 0.036, 0.012, 0.60),
    "lateral": _Part((0.86, 0.22, 0.46), 0.044, 0.012, 0.95),
    "base": _Part((-0.22, -0.58, 0.78), 0.064, 0.010, 0.42),
}
# What an infarction of each artery's territory takes, from 0 to 1.
TERRITORIES = {
    "LAD": {"septum": 0.8, "anterior": 1.0},
    "LCX": {"lateral": 1.0, "base": 0.4},
    "RCA": {"inferior": 1.0, "base": 0.6},
}
# With a whole scar, the wall opposite stands for the part with the opposite sign.
_UNOPPOSED = 1.5


@dataclass(frozen=True, kw_only=True)
class Heart:
    """What the ECG of a patient depends on.

    Attributes:
        scar: share of each part of the ventricle that is scar, in [0, 1].
        lbbb: left bundle branch block.
        qrs_scale: how much longer activation takes than normally.
        voltage: factor of the ventricle's forces.
        lateral_strain: share by which the T wave turns against the QRS complex, in [0, 1].
        left_atrium: factor of the late part of the P wave.
        turn_deg: rotation of the heart around the axes x, y and z.
        rate_bpm: beats a minute.
        fibrillation: no P waves and beats at any time.
        ectopic_share: share of beats that begin in the ventricle.
        pr_s: from the P wave to the QRS complex.
        t_factor: of the height of T waves.
    """

    scar: dict[str, float] = field(default_factory=dict)
    lbbb: bool = False
    qrs_scale: float = 1.0
    voltage: float = 1.0
    lateral_strain: float = 0.0
    left_atrium: float = 1.0
    turn_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rate_bpm: float = 72.0
    fibrillation: bool = False
    ectopic_share: float = 0.0
    pr_s: float = 0.16
    t_factor: float = 1.0

    @property
    def qrs_ms(self) -> float:
        """From the first to the last force of the ventricle that can be seen."""
        parts = self.activation()
        return 1000 * (
            max(part.time_s + 2.2 * part.width_s for part in parts)
            - min(part.time_s - 1.6 * part.width_s for part in parts)
        )

    def activation(self) -> list[_Part]:
        """The parts of the ventricle as this heart activates them."""
        found = []
        for name, part in _PARTS.items():
            time, width, direction = part.time_s, part.width_s, part.direction
            strength = part.millivolts * (1 - _UNOPPOSED * self.scar.get(name, 0.0))
            if self.lbbb:
                late = {"septum": 0.022, "anterior": 0.050, "inferior": 0.066, "lateral": 0.092}
                time, width = late.get(name, 0.104), 1.75 * width
                if name == "septum":
                    direction = (0.66, 0.20, 0.55)
            scale = self.qrs_scale
            found.append(_Part(direction, time * scale, width * scale, strength * self.voltage))
        return found


def record(
    heart: Heart, rng: np.random.Generator, *, noise_mv: float, wander_mv: float
) -> EcgSignals:
    """Ten seconds of twelve leads.

    Args:
        heart: whose.
        rng: of the times of beats and of the noise.
        noise_mv: standard deviation of muscle noise in each lead.
        wander_mv: amplitude of the wandering baseline.
    """
    times = np.arange(round(PAGE_SECONDS * RATE_HZ)) / RATE_HZ
    dipole = np.zeros((len(times), 3))
    onsets = _onsets(heart, rng)
    gaps = np.diff(onsets, append=onsets[-1] + 60 / heart.rate_bpm)
    for onset, gap in zip(onsets, gaps, strict=True):
        ectopic = rng.random() < heart.ectopic_share
        near = np.abs(times - onset) < 1.2
        beat = _ectopic if ectopic else _beat
        dipole[near] += beat(heart, times[near] - onset, float(np.clip(gap, 0.4, 1.2)))
    if heart.fibrillation:
        dipole += _flutter(times, rng)
    leads = _project(_turned(dipole, heart.turn_deg))
    leads += rng.normal(0, noise_mv, leads.shape)
    for row in leads:
        rates = rng.uniform(0.08, 0.45, 2)
        phases = rng.uniform(0, 2 * np.pi, 2)
        row += wander_mv * np.sin(2 * np.pi * rates[:, None] * times + phases[:, None]).mean(0)
    return EcgSignals(leads.astype(np.float32), RATE_HZ, np.zeros(len(LEADS)))


def _onsets(heart: Heart, rng: np.random.Generator) -> NDArray[np.float64]:
    """When QRS complexes begin, from before the first second to after the last."""
    mean = 60 / heart.rate_bpm
    spread = 0.22 if heart.fibrillation else 0.025
    now, found = -mean * rng.random() - mean, []
    while now < PAGE_SECONDS + 1:
        found.append(now)
        now += mean * max(0.5, 1 + spread * rng.standard_normal())
    return np.array(found)


def _bump(times: NDArray[np.float64], middle: float, width: float) -> NDArray[np.float64]:
    bump: NDArray[np.float64] = np.exp(-0.5 * ((times - middle) / width) ** 2)
    return bump


def _beat(heart: Heart, times: NDArray[np.float64], gap_s: float) -> NDArray[np.float64]:
    """Dipole of a beat at times after the onset of its QRS complex, (T, 3)."""
    found = np.zeros((len(times), 3))
    parts = heart.activation()
    for part in parts:
        shape = _bump(times, part.time_s, part.width_s)
        found += part.millivolts * shape[:, None] * np.array(part.direction)
    # Bazett's relation, for the end of the T wave.
    qt = (0.39 + 0.5 * (heart.qrs_ms / 1000 - 0.09)) * np.sqrt(gap_s)
    peak = qt - 0.085
    # The rise is slower than the fall.
    shape = np.where(times < peak, _bump(times, peak, 0.062), _bump(times, peak, 0.042))
    found += shape[:, None] * _t_vector(heart, parts)
    elevated = _bump(times, 0.5 * peak, 0.25 * peak)
    found += elevated[:, None] * _injury(heart)
    if not heart.fibrillation:
        middle = -heart.pr_s + 0.05
        right = 0.10 * _bump(times, middle - 0.018, 0.017)
        left = 0.09 * heart.left_atrium * _bump(times, middle + 0.018, 0.019)
        found += right[:, None] * np.array((0.35, 0.85, -0.35))
        found += left[:, None] * np.array((0.70, 0.55, 0.50))
    return found


def _t_vector(heart: Heart, parts: list[_Part]) -> NDArray[np.float64]:
    """Height and direction of the T wave, (3,)."""
    whole = sum(np.array(p.direction) * p.millivolts * p.width_s / 0.01 for p in parts)
    assert isinstance(whole, np.ndarray)
    if heart.lbbb:
        return -0.16 * heart.t_factor * whole
    vector = np.zeros(3)
    for name, part in _PARTS.items():
        towards = 0.26 * (1 - 2.2 * heart.scar.get(name, 0.0))
        vector += towards * part.millivolts * np.array(part.direction)
    # From the front, as repolarisation of a healthy heart is.
    vector += np.array((0.02, 0.02, -0.12))
    turned = -0.12 * whole
    strain = heart.lateral_strain
    result: NDArray[np.float64] = heart.t_factor * ((1 - strain) * vector + strain * turned)
    return result


def _injury(heart: Heart) -> NDArray[np.float64]:
    """Lasting elevation of the ST segment above a large scar, (3,)."""
    found = np.zeros(3)
    for name, share in heart.scar.items():
        found += 0.10 * max(0.0, share - 0.3) * np.array(_PARTS[name].direction)
    return found


def _ectopic(heart: Heart, times: NDArray[np.float64], gap_s: float) -> NDArray[np.float64]:
    """A wide beat from the right ventricle, with its T wave against it."""
    towards = np.array((0.75, 0.45, 0.55))
    shape = _bump(times, 0.06, 0.028) - 0.4 * _bump(times, 0.3 * np.sqrt(gap_s) + 0.05, 0.06)
    result: NDArray[np.float64] = 1.5 * heart.voltage * shape[:, None] * towards
    return result


def _flutter(times: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """The restless baseline of atrial fibrillation, (T, 3)."""
    rates = rng.uniform(4.5, 8.0, 4)
    phases = rng.uniform(0, 2 * np.pi, 4)
    waves = np.sin(2 * np.pi * rates[:, None] * times + phases[:, None]).sum(0) / 2
    result: NDArray[np.float64] = 0.03 * waves[:, None] * np.array((0.3, 0.6, -0.7))
    return result


def _turned(
    dipole: NDArray[np.float64], degrees: tuple[float, float, float]
) -> NDArray[np.float64]:
    turned: NDArray[np.float64] = Rotation.from_euler("xyz", degrees, degrees=True).apply(dipole)
    return turned


def _project(dipole: NDArray[np.float64]) -> NDArray[np.float64]:
    """The twelve leads of a dipole (T, 3), (12, T) in mV."""
    seen = {name: dipole @ np.array(weights) for name, weights in _DOWER.items()}
    first, second = seen["I"], seen["II"]
    seen |= {
        "III": second - first,
        "aVR": -(first + second) / 2,
        "aVL": first - second / 2,
        "aVF": second - first / 2,
    }
    return np.stack([seen[name] for name in LEADS])
