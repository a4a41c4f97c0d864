"""How a scanner shows a heart: speckle, shadows, haze, noise and grey levels.

Scatterers are one complex random field that is fixed to the tissue. For every frame the field is
looked up where each point of the scan lay at end diastole, weighted by how strongly that tissue
reflects, and blurred along and across the beams, whose magnitude is speckle with Rayleigh
statistics that moves with the tissue (J. C. Bamber and R. J. Dickinson, Phys. Med. Biol. 1980,
doi:10.1088/0031-9155/25/3/006).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cardioray.phantoms.drawing import draw
from cardioray.phantoms.echo_config import EchoPhantomConfig

Floats = NDArray[np.float32]

# Amplitude of blood; whatever reflects less is taken for blood, too.
BLOOD = 0.008

# The scan: samples along a beam, and beams.
_SAMPLES, _BEAMS = 150, 100
_FIELD_PX_PER_CM = 24
_FIELD_CM = 24.0
# Noise is drawn once for this many scans, and every frame takes a stretch of it.
_BANK = 12

# Blur along (samples) and across (beams) of the scan; it takes the field's amplitude down by
# sqrt(4 pi * product), which is given back.
_AXIAL, _LATERAL = 0.8, 1.4
_BLUR_GAIN = np.float32(np.sqrt(4 * np.pi * _AXIAL * _LATERAL) / np.sqrt(2))
# What scanners smooth the detected picture by, in px.
_SMOOTH = 0.6
# Scanners show mid levels darker than the logarithm does.
_GREY_MAP = 1.6
# Reflectivity of tissue varies from place to place: correlation in cm, and SD of its logarithm.
_PATCH_CM, _PATCH_SD = 0.9, 0.45


@dataclass(frozen=True)
class Scan:
    """A scanner with its settings, and where its samples are.

    Arrays are (samples along a beam, beams), or (size, size) where they are about the picture.

    Attributes:
        x: of each sample in cm, to the right of the probe.
        y: of each sample in cm, away from the probe.
        cm_per_px: of the picture.
        size: side of the picture in px.
        gain: amplitude that attenuation and shadows leave.
        haze: what the chest wall adds, as a complex signal in two channels.
        noise: SD of what the receiver adds.
        dynamic_range_db: from black to white.
        gain_db: added to the signal before that.
        field: the scatterers, as a complex signal in two channels.
        bank: normal noise that frames take stretches of.
        to_beam: the beam that each pixel is on.
        to_sample: the sample that each pixel is on.
        inside: pixels of the sector.
    """

    x: Floats
    y: Floats
    cm_per_px: float
    size: int
    gain: Floats
    haze: Floats
    noise: float
    dynamic_range_db: float
    gain_db: float
    field: Floats
    bank: Floats
    to_beam: Floats
    to_sample: Floats
    inside: NDArray[np.bool_]

    @classmethod
    def draw(cls, rng: np.random.Generator, config: EchoPhantomConfig) -> Scan:
        """A scanner with settings drawn for one cine."""
        depth = draw(rng, config.depth_cm)
        half = np.deg2rad(draw(rng, config.half_angle_deg))
        radius = (np.arange(_SAMPLES, dtype=np.float32) + 0.5) * np.float32(depth / _SAMPLES)
        angle = np.linspace(-half, half, _BEAMS, dtype=np.float32)
        x = radius[:, None] * np.sin(angle)
        y = radius[:, None] * np.cos(angle)
        field_px = int(_FIELD_CM * _FIELD_PX_PER_CM)
        field = rng.standard_normal((field_px, field_px, 2), dtype=np.float32)
        field *= _patches(rng, field_px)[..., None]
        decay = 10 ** (-draw(rng, config.attenuation_db_per_cm) * radius / 20)
        gain = (decay[:, None] * _beam_losses(rng, draw(rng, config.dropout))).astype(np.float32)
        near = np.exp(-radius / np.float32(1.3))[:, None] * np.float32(draw(rng, config.haze))
        haze = rng.standard_normal((_SAMPLES, _BEAMS, 2), dtype=np.float32) * near[..., None]
        size = config.image_size_px
        step = max(2 * depth * np.sin(half), depth) / size
        px = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(step)
        across, down = np.meshgrid(px - np.float32(size * step / 2), px)
        distance, towards = np.hypot(across, down), np.arctan2(across, down)
        return cls(
            x=x,
            y=y,
            cm_per_px=float(step),
            size=size,
            gain=gain,
            haze=haze,
            noise=draw(rng, config.noise),
            dynamic_range_db=draw(rng, config.dynamic_range_db),
            gain_db=draw(rng, config.gain_db),
            field=field,
            bank=rng.standard_normal(_BANK * _SAMPLES * _BEAMS, dtype=np.float32),
            to_beam=((towards + half) / (2 * half) * (_BEAMS - 1)).astype(np.float32),
            to_sample=(distance / depth * _SAMPLES - 0.5).astype(np.float32),
            inside=(distance < depth) & (np.abs(towards) < half),
        )

    def show(
        self, amplitude: Floats, x: Floats, y: Floats, noise: np.random.Generator
    ) -> NDArray[np.uint8]:
        """The picture of one moment."""
        scale = np.float32(_FIELD_PX_PER_CM)
        columns, rows = (x + np.float32(_FIELD_CM / 2)) * scale, (y + np.float32(2)) * scale
        scatterers = cv2.remap(
            self.field, columns, rows, cv2.INTER_NEAREST, borderMode=cv2.BORDER_WRAP
        )
        # Blood is new in every frame: it flows through the plane.
        blood = amplitude <= BLOOD
        fresh = self._fresh(noise)
        scatterers[blood] = fresh[blood]
        signal = scatterers * (amplitude * self.gain * _BLUR_GAIN)[..., None] + self.haze
        signal = cv2.GaussianBlur(signal, (0, 0), sigmaX=_LATERAL, sigmaY=_AXIAL)
        signal += self._fresh(noise) * np.float32(self.noise)
        magnitude = cv2.magnitude(signal[..., 0], signal[..., 1])
        decibel = np.float32(20 / np.log(10)) * cv2.log(magnitude + np.float32(1e-6))
        level = (decibel + np.float32(self.gain_db + self.dynamic_range_db)) / np.float32(
            self.dynamic_range_db
        )
        shown = np.float32(255) * cv2.pow(np.clip(level, 0, 1), _GREY_MAP)
        grey = cv2.GaussianBlur(shown, (0, 0), _SMOOTH)
        picture = cv2.remap(grey, self.to_beam, self.to_sample, cv2.INTER_LINEAR)
        picture[~self.inside] = 0
        shown_uint8: NDArray[np.uint8] = np.rint(picture).astype(np.uint8)
        return shown_uint8

    def _fresh(self, noise: np.random.Generator) -> Floats:
        """Normal noise (_SAMPLES, _BEAMS, 2): a random stretch of a long list of it."""
        wanted = _SAMPLES * _BEAMS * 2
        start = int(noise.integers(len(self.bank) - wanted))
        return self.bank[start : start + wanted].reshape(_SAMPLES, _BEAMS, 2)

    def to_px(self, points_cm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points (..., 2) of the picture in px, counted from the middle of the first pixel."""
        shift = np.array([self.size / 2 - 0.5, -0.5])
        return np.asarray(points_cm / self.cm_per_px + shift)


def _patches(rng: np.random.Generator, size: int) -> Floats:
    """Log-normal reflectivity (size, size) around 1, smooth over `_PATCH_CM`."""
    step = 6
    coarse = rng.standard_normal((size // step, size // step), dtype=np.float32)
    coarse = cv2.GaussianBlur(coarse, (0, 0), _PATCH_CM * _FIELD_PX_PER_CM / step)
    coarse *= np.float32(_PATCH_SD) / coarse.std()
    fine: Floats = np.exp(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC))
    return fine


def _beam_losses(rng: np.random.Generator, largest: float) -> NDArray[np.float64]:
    """Amplitude that is left along each beam: shadows of ribs and lung."""
    angle = np.linspace(-1, 1, _BEAMS)
    left = np.ones(_BEAMS)
    for _ in range(rng.integers(1, 4)):
        middle, width = rng.uniform(-1, 1), rng.uniform(0.06, 0.25)
        left *= 1 - largest * rng.random() * np.exp(-(((angle - middle) / width) ** 2))
    return left
