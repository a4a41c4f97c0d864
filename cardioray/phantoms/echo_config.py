"""Settings of phantom echocardiograms, and named difficulties."""

from __future__ import annotations

from pydantic import Field

from cardioray.config import config
from cardioray.phantoms.drawing import Range
from cardioray.registry import Registry


@config
class EchoPhantomConfig:
    """What is drawn for a patient, and how it is seen; ranges are drawn from uniformly.

    Attributes:
        preset: name of the difficulty, as the manifest shows it.
        reduced_share: share of patients whose EF is drawn from `reduced_ef_percent`.
        normal_ef_percent: mean and standard deviation of the others.
        reduced_ef_percent: range of the reduced ones.
        heart_rate: beats a minute.
        irregular_share: share of patients whose beats vary as in atrial fibrillation.
        seconds: length of a clip.
        fps: frames a second.
        image_size_px: side of the square frames.
        depth_cm: depth of the sector.
        half_angle_deg: half of its opening.
        pose_jitter_cm: standard deviation of where the apex is.
        tilt_jitter_deg: standard deviation of the long axis in the plane of the picture.
        foreshortening: largest share that a plane beside the apex shortens the long axis by.
        dynamic_range_db: of the log compression.
        gain_db: added before it.
        attenuation_db_per_cm: that depth compensation has left.
        noise: amplitude of electronic noise, where muscle has 0.3.
        dropout: largest share of amplitude that is lost along some beams.
        haze: amplitude of near-field clutter.
    """

    preset: str = "standard"
    reduced_share: float = Field(default=0.35, ge=0, le=1)
    normal_ef_percent: tuple[float, float] = (60.0, 6.0)
    reduced_ef_percent: Range = (15.0, 52.0)
    heart_rate: Range = (55.0, 100.0)
    irregular_share: float = Field(default=0.12, ge=0, le=1)
    seconds: Range = (2.0, 3.4)
    fps: Range = (30.0, 50.0)
    image_size_px: int = Field(default=112, ge=48, le=512)
    depth_cm: Range = (14.5, 17.5)
    half_angle_deg: Range = (36.0, 43.0)
    pose_jitter_cm: float = Field(default=0.35, ge=0)
    tilt_jitter_deg: float = Field(default=6.0, ge=0)
    foreshortening: float = Field(default=0.08, ge=0, lt=0.5)
    dynamic_range_db: Range = (44.0, 56.0)
    gain_db: Range = (-4.0, 4.0)
    attenuation_db_per_cm: Range = (0.2, 0.8)
    noise: Range = (0.002, 0.012)
    dropout: Range = (0.0, 0.6)
    haze: Range = (0.03, 0.2)


ECHO_PRESETS: Registry[EchoPhantomConfig] = Registry("echo phantom preset")
ECHO_PRESETS.add(
    "clear",
    EchoPhantomConfig(
        preset="clear",
        pose_jitter_cm=0.15,
        tilt_jitter_deg=3.0,
        foreshortening=0.0,
        irregular_share=0.0,
        dynamic_range_db=(50.0, 56.0),
        gain_db=(-1.0, 1.0),
        noise=(0.002, 0.004),
        dropout=(0.0, 0.2),
        haze=(0.02, 0.06),
    ),
)
ECHO_PRESETS.add("standard", EchoPhantomConfig())
ECHO_PRESETS.add(
    "hard",
    EchoPhantomConfig(
        preset="hard",
        pose_jitter_cm=0.6,
        tilt_jitter_deg=9.0,
        foreshortening=0.2,
        irregular_share=0.25,
        dynamic_range_db=(40.0, 62.0),
        gain_db=(-8.0, 8.0),
        noise=(0.005, 0.04),
        dropout=(0.2, 0.9),
        haze=(0.05, 0.5),
    ),
)
