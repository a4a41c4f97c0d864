"""Settings of phantom angiograms, and named difficulties."""

from __future__ import annotations

from pydantic import Field

from cardioray.config import config
from cardioray.phantoms.drawing import Range
from cardioray.registry import Registry


@config
class AngiogramPhantomConfig:
    """What is drawn for a patient, and how it is seen.

    Only the first group has to do with the FFR. Everything below it is drawn from other random
    streams, so that it cannot tell the label.

    Attributes:
        preset: name of the difficulty, as the manifest shows it.
        percent_diameter_stenosis: severity of the lesion.
        lesion_length_mm: length of the lesion.
        reference_diameter_mm: diameter of the LAD without the lesion.
        hyperaemic_flow_log_sd: standard deviation of the logarithm of the hyperaemic flow around
            what the diameter suggests. It is not visible: it bounds what a picture can tell. 0.3
            is about the spread measured in the LAD (228 +- 71 ml/min, S. Fournier et al.,
            EuroIntervention 17:e309-e316, 2021, doi:10.4244/EIJ-D-20-00684).
        excluded_ffr: patients with an FFR strictly inside this range are drawn again, as a study
            does that leaves out the grey zone around 0.80; None excludes nobody.
        lesion_position_mm: distance of the throat from the beginning of the LAD.
        eccentricity: 0 for a concentric lesion, 1 for a plaque on one side.
        wall_irregularity: relative standard deviation of the radius outside the lesion.
        diagonals: number of diagonal branches.
        septals: number of septal branches.
        circumflex: whether the circumflex and its marginal branches are drawn.
        branch_stenosis_percent: largest narrowing of side branches, a distractor.
        image_size_px: side of the square frames.
        frames_per_patient: frames of one run, spread over about a heart beat.
        field_of_view_mm: side of the picture at the isocentre.
        centring: 0 centres the picture on the heart, 1 on the lesion.
        centre_jitter_mm: standard deviation of the picture's centre.
        view_candidates: number of C-arm angulations tried; the one with the least foreshortened
            lesion is kept, as an operator does.
        view_jitter_deg: standard deviation of both C-arm angles.
        roll_deg: standard deviation of the rotation in the plane of the picture.
        contraction: strength of the heart beat, 1 for normal.
        breathing_mm: range of the respiratory shift between frames.
        first_fill: share of the LAD that contrast has filled in the first frame; at 1 the front
            has just reached the apex.
        iodine_per_mm: absorbance of undiluted contrast per mm of lumen.
        background: scale of the absorbance of heart, bones, diaphragm and lung.
        photons: quanta a pixel of 0.4 mm would receive without the patient.
        scatter_ratio: scattered over primary intensity.
        blur_mm: standard deviation of focal spot and motion blur.
        black_level: grey level of the darkest pixels of a frame, in [0, 1].
        white_level: grey level of its brightest pixels, in [0, 1].
        collimator_mm: how far collimator blades reach into the picture at most.
    """

    preset: str = "standard"

    percent_diameter_stenosis: Range = (30.0, 80.0)
    lesion_length_mm: Range = (5.0, 35.0)
    reference_diameter_mm: Range = (2.3, 4.2)
    hyperaemic_flow_log_sd: float = Field(default=0.3, ge=0, le=1)
    excluded_ffr: Range | None = None

    lesion_position_mm: Range = (15.0, 45.0)
    eccentricity: Range = (0.0, 1.0)
    wall_irregularity: float = Field(default=0.04, ge=0, le=0.2)
    diagonals: tuple[int, int] = (1, 3)
    septals: tuple[int, int] = (3, 6)
    circumflex: bool = True
    branch_stenosis_percent: float = Field(default=40.0, ge=0, le=90)

    image_size_px: int = Field(default=256, ge=32, le=2048)
    frames_per_patient: int = Field(default=4, ge=1, le=200)
    field_of_view_mm: Range = (95.0, 125.0)
    centring: float = Field(default=0.3, ge=0, le=1)
    centre_jitter_mm: float = Field(default=5.0, ge=0)
    view_candidates: int = Field(default=3, ge=1, le=20)
    view_jitter_deg: float = Field(default=6.0, ge=0)
    roll_deg: float = Field(default=4.0, ge=0)
    contraction: Range = (0.7, 1.1)
    breathing_mm: float = Field(default=3.0, ge=0)
    first_fill: Range = (0.55, 1.2)

    iodine_per_mm: Range = (0.16, 0.26)
    background: Range = (0.7, 1.2)
    photons: Range = (1500.0, 5000.0)
    scatter_ratio: Range = (0.2, 0.6)
    blur_mm: Range = (0.2, 0.4)
    black_level: Range = (0.08, 0.2)
    white_level: Range = (0.7, 0.95)
    collimator_mm: float = Field(default=6.0, ge=0)

    def __post_init__(self) -> None:
        low, high = self.percent_diameter_stenosis
        if not (low >= 0 and high < 95):
            raise ValueError("percent_diameter_stenosis must lie in [0, 95).")
        for name in ("lesion_length_mm", "reference_diameter_mm", "field_of_view_mm", "photons"):
            if getattr(self, name)[0] <= 0:
                raise ValueError(f"{name} must be positive.")


PRESETS: Registry[AngiogramPhantomConfig] = Registry("angiogram preset")

PRESETS.add(
    "clear",
    AngiogramPhantomConfig(
        preset="clear",
        lesion_length_mm=(10.0, 25.0),
        reference_diameter_mm=(2.6, 3.8),
        hyperaemic_flow_log_sd=0.0,
        excluded_ffr=(0.75, 0.85),
        diagonals=(0, 1),
        septals=(0, 2),
        circumflex=False,
        branch_stenosis_percent=0.0,
        wall_irregularity=0.02,
        eccentricity=(0.0, 0.6),
        image_size_px=128,
        field_of_view_mm=(18.0, 22.0),
        centring=1.0,
        centre_jitter_mm=1.0,
        view_candidates=12,
        contraction=(0.1, 0.4),
        breathing_mm=1.0,
        first_fill=(1.2, 1.6),
        iodine_per_mm=(0.22, 0.30),
        background=(0.25, 0.45),
        photons=(40000.0, 80000.0),
        scatter_ratio=(0.1, 0.3),
        blur_mm=(0.12, 0.2),
        black_level=(0.15, 0.22),
        white_level=(0.75, 0.85),
        collimator_mm=0.0,
    ),
)
PRESETS.add("standard", AngiogramPhantomConfig(preset="standard"))
PRESETS.add(
    "hard",
    AngiogramPhantomConfig(
        preset="hard",
        percent_diameter_stenosis=(45.0, 72.0),
        wall_irregularity=0.07,
        branch_stenosis_percent=70.0,
        field_of_view_mm=(100.0, 150.0),
        view_candidates=1,
        view_jitter_deg=10.0,
        roll_deg=8.0,
        breathing_mm=6.0,
        first_fill=(0.35, 1.1),
        iodine_per_mm=(0.10, 0.22),
        background=(1.0, 1.6),
        photons=(500.0, 2000.0),
        scatter_ratio=(0.4, 1.2),
        blur_mm=(0.25, 0.6),
        collimator_mm=12.0,
    ),
)
