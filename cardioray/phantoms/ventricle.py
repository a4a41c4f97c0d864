"""A beating left ventricle whose volume is known at every moment.

The cavity is a prolate spheroid, truncated at the mitral plane, with an elliptical short axis. Its
apex rests; its base comes down to it in systole. Distances are in cm, volumes in ml, angles in
radians. Directions are given from the centre of the spheroid: `theta` from the apex, `phi` around
the long axis.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Where the mitral plane cuts the spheroid: this share of the long semi-axis beyond the centre.
TRUNCATION = 0.5

# Share of the radial shortening that the long axis shortens by. With 0.55, an ejection fraction of
# 60 % shortens it by 17 %, as annular excursions of 14 mm on 8.5 cm do (Simonson and Schiller,
# J. Am. Soc. Echocardiogr. 1989, doi:10.1016/S0894-7317(89)80023-0, found them in normal hearts).
_LONG_SHARE = 0.55

# Steps of the volume integral; their error is below 1e-5 of the volume (see the tests).
_THETA_STEPS = 400
_PHI_STEPS = 120


@dataclass(frozen=True, kw_only=True)
class Territory:
    """A part of the wall that moves less: that of a coronary artery.

    Attributes:
        phi: its middle around the long axis.
        phi_width: its half width; the loss falls off smoothly to nothing at twice that.
        theta: its middle from the apex.
        theta_width: its half width.
        loss: share of the contraction that is lost in its middle: 1 is akinetic.
    """

    phi: float
    phi_width: float
    theta: float
    theta_width: float
    loss: float

    def weight(self, theta: Floats, phi: Floats) -> Floats:
        """How much each direction belongs to it, in [0, 1]."""
        around = np.abs(np.angle(np.exp(1j * (phi - self.phi))))
        along = np.abs(theta - self.theta)
        return _fade(around / self.phi_width) * _fade(along / self.theta_width)


@dataclass(frozen=True, kw_only=True)
class Ventricle:
    """The shape at end diastole, and how it contracts.

    Attributes:
        long_axis_cm: from apex to mitral plane at end diastole.
        radius_cm: semi-axes of the short axis at end diastole: in the four-chamber plane
            (phi = 0), and across it.
        wall_cm: thickness of the wall at end diastole; a third thinner at the apex.
        radial_shortening: by which share of itself a radius shortens at full contraction.
        territories: parts that move less.
        scarred: which of them are thinned to 60 %.
    """

    long_axis_cm: float
    radius_cm: tuple[float, float]
    wall_cm: float
    radial_shortening: float
    territories: tuple[Territory, ...] = ()
    scarred: tuple[bool, ...] = ()

    def long_semi_axis_cm(self, contraction: float) -> float:
        """The long semi-axis; the mitral plane is `TRUNCATION` times as far beyond the centre."""
        shortening = _LONG_SHARE * self.radial_shortening * contraction
        return self.long_axis_cm / (1 + TRUNCATION) * (1 - shortening)

    def relaxed_radius(self, phi: Floats) -> Floats:
        """Short semi-axis of the cavity around the long axis at end diastole."""
        return 1 / np.hypot(np.cos(phi) / self.radius_cm[0], np.sin(phi) / self.radius_cm[1])

    def shortening(self, theta: Floats, phi: Floats) -> Floats:
        """Radial shortening at full contraction towards each direction."""
        kept = np.ones(np.broadcast_shapes(np.shape(theta), np.shape(phi)))
        for territory in self.territories:
            kept = kept * (1 - territory.loss * territory.weight(theta, phi))
        return self.radial_shortening * kept

    def cavity(self, theta: Floats, phi: Floats, contraction: float) -> Floats:
        """Distance of the endocardium from the centre, without regard to the mitral plane."""
        radius = self.relaxed_radius(phi) * (1 - self.shortening(theta, phi) * contraction)
        along = np.cos(theta) / self.long_semi_axis_cm(contraction)
        return np.asarray(1 / np.hypot(along, np.sin(theta) / radius))

    def wall(self, theta: Floats, phi: Floats) -> Floats:
        """Thickness at end diastole towards each direction."""
        thickness = self.wall_cm * (1 - 0.33 * _fade(np.asarray(theta) / 0.5))
        for territory, scarred in zip(self.territories, self.scarred, strict=True):
            if scarred:
                thickness = thickness * (1 - 0.4 * territory.weight(theta, phi))
        return np.asarray(thickness)

    def volume_ml(self, contraction: float) -> float:
        """Volume of the cavity above the mitral plane.

        The integral of rho^3 / 3 over all directions, where rho ends at the endocardium or at the
        mitral plane, whichever comes first; trapezoids in phi, which is periodic, and
        Gauss-Legendre in theta on both sides of the edge between the two.
        """
        phi, nodes, weights = _grid()
        semi = self.long_semi_axis_cm(contraction)
        edge = self._edge(phi, contraction)
        total = np.zeros(len(phi))
        for low, high in ((np.zeros_like(edge), edge), (edge, np.full_like(edge, np.pi))):
            theta = low[:, None] + (high - low)[:, None] * nodes
            rho = self.cavity(theta, phi[:, None], contraction)
            if high is not edge:
                rho = TRUNCATION * semi / -np.cos(theta)
            part = rho**3 / 3 * np.sin(theta) * weights
            total += (high - low) * part.sum(axis=1)
        return float(total.mean() * 2 * np.pi)

    def _edge(self, phi: Floats, contraction: float) -> Floats:
        """theta at which the endocardium meets the mitral plane, by bisection."""
        plane = TRUNCATION * self.long_semi_axis_cm(contraction)
        low, high = np.full_like(phi, np.pi / 2), np.full_like(phi, np.pi)
        for _ in range(36):  # to 1e-10 of a turn
            middle = (low + high) / 2
            beyond = -self.cavity(middle, phi, contraction) * np.cos(middle) > plane
            low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
        return low


@dataclass(frozen=True)
class Beat:
    """One cycle of the heart.

    Attributes:
        start_s: end diastole that begins it.
        length_s: until the next one.
        strength: contraction at its end of systole; 1 is full.
    """

    start_s: float
    length_s: float
    strength: float

    @property
    def systole_s(self) -> float:
        """Length of systole, by 0.33 times the square root of the length of the beat."""
        return float(min(0.33 * self.length_s**0.5, 0.6 * self.length_s))

    @property
    def end_systole_s(self) -> float:
        """When the cavity is smallest."""
        return self.start_s + self.systole_s


def contraction_at(beats: tuple[Beat, ...], time_s: float) -> float:
    """How far the ventricle is contracted, 0 at end diastole, 1 at full contraction.

    Ejection along half a cosine; then early filling to a quarter, a plateau, and the atrial kick.
    """
    beat = next((b for b in reversed(beats) if b.start_s <= time_s), beats[0])
    since = time_s - beat.start_s
    if since < beat.systole_s:
        return float(beat.strength * (1 - np.cos(np.pi * max(since, 0.0) / beat.systole_s)) / 2)
    left = min((since - beat.systole_s) / max(beat.length_s - beat.systole_s, 1e-6), 1.0)
    early, kick = min(left / 0.45, 1.0), max((left - 0.75) / 0.25, 0.0)
    filled = 0.75 * (1 - np.cos(np.pi * early)) / 2 + 0.25 * (1 - np.cos(np.pi * kick)) / 2
    return float(beat.strength * (1 - filled))


def ef_percent(ventricle: Ventricle, strength: float = 1.0, edv_ml: float | None = None) -> float:
    """Ejection fraction of a beat: 100 (EDV - ESV) / EDV.

    Args:
        ventricle: whose.
        strength: contraction at the end of systole.
        edv_ml: volume at end diastole, where it is known already.
    """
    diastole = ventricle.volume_ml(0.0) if edv_ml is None else edv_ml
    return 100 * (diastole - ventricle.volume_ml(strength)) / diastole


def _fade(distance: Floats) -> Floats:
    """1 up to half a width, 0 from one and a half on, half a cosine between."""
    return np.asarray((1 + np.cos(np.pi * np.clip(distance - 0.5, 0, 1))) / 2)


@functools.cache
def _grid() -> tuple[Floats, Floats, Floats]:
    """phi, and nodes and weights of Gauss-Legendre on [0, 1]."""
    phi = np.linspace(0, 2 * np.pi, _PHI_STEPS, endpoint=False)
    nodes, weights = np.polynomial.legendre.leggauss(_THETA_STEPS // 10)
    return phi, np.asarray((nodes + 1) / 2, float), np.asarray(weights / 2, float)
