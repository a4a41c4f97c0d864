"""Settings of phantom ECGs, and named difficulties."""

from __future__ import annotations

from pydantic import Field

from cardioray.config import config
from cardioray.phantoms.drawing import Range
from cardioray.registry import Registry


@config
class EcgPhantomConfig:
    """Who is drawn, what their hearts do to the ECG, and how the page reaches a computer.

    Attributes:
        preset: name of the difficulty, as the manifest shows it.
        scar_share: share of patients with a scar of an infarction.
        cardiomyopathy_share: share of patients whose EF is low for another reason.
        effect: how strongly a scar and a low EF change the ECG; 0 leaves no trace of either.
        missing_share: share of clinical features that nobody has written down.
        new_share: share of ECGs that are printed in the new format, on red paper in 3 rows and
            4 columns; the others are old ones, without a grid in 6 rows and 2 columns.
        px_per_mm: resolution of pages; 300 dpi are 11.8.
        scanned_share: share of pages that were printed and scanned.
        photographed_share: share of pages that were photographed.
        noise_mv: standard deviation of muscle noise.
        wander_mv: amplitude of the wandering baseline.
    """

    preset: str = "standard"
    scar_share: float = Field(default=0.27, gt=0, lt=1)
    cardiomyopathy_share: float = Field(default=0.075, ge=0, lt=1)
    effect: float = Field(default=1.0, ge=0, le=2)
    missing_share: float = Field(default=0.08, ge=0, lt=1)
    new_share: float = Field(default=0.5, ge=0, le=1)
    px_per_mm: float = Field(default=6.0, ge=2, le=20)
    scanned_share: float = Field(default=0.3, ge=0, le=1)
    photographed_share: float = Field(default=0.1, ge=0, le=1)
    noise_mv: Range = (0.004, 0.02)
    wander_mv: Range = (0.0, 0.12)

    def __post_init__(self) -> None:
        if self.scanned_share + self.photographed_share > 1:
            raise ValueError("scanned_share and photographed_share are more than 1 together.")


ECG_PRESETS: Registry[EcgPhantomConfig] = Registry("ECG phantom preset")
ECG_PRESETS.add(
    "clear",
    EcgPhantomConfig(
        preset="clear",
        effect=1.4,
        scanned_share=0.0,
        photographed_share=0.0,
        noise_mv=(0.002, 0.006),
        wander_mv=(0.0, 0.03),
    ),
)
ECG_PRESETS.add("standard", EcgPhantomConfig())
ECG_PRESETS.add(
    "hard",
    EcgPhantomConfig(
        preset="hard",
        effect=0.7,
        scanned_share=0.4,
        photographed_share=0.4,
        noise_mv=(0.01, 0.04),
        wander_mv=(0.05, 0.25),
    ),
)
