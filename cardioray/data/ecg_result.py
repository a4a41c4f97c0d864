"""What is known of a page of ECG paper once it was read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cardioray.data.ecg_flat import Floats, PageMap
from cardioray.data.ecg_leads import EcgLayout, EcgSignals
from cardioray.data.ecg_paper import LeadBox
from cardioray.data.ecg_rows import Curve
from cardioray.data.ecg_scale import Source
from cardioray.data.frames import UInt8Image

GainSource = Literal["pulse", "setting", "assumed"]


@dataclass(frozen=True, eq=False)
class EcgPage:
    """A page that was read. Px are those of the rectified picture if nothing else is said.

    Attributes:
        layout: its arrangement; None for one that is not known and was let through.
        picture: the page laid flat, (H, W) or (H, W, 3).
        ink: darkness of curves and letters with the grid gone, (H, W).
        mapped: what of the picture that was read lies where.
        px_per_mm: resolution.
        scale_source: what told how large the page is.
        mm_per_mv: gain.
        gain_source: what told it.
        mm_per_s: paper speed, as set.
        boxes: place of each lead.
        rhythm: places of the rows for the rhythm.
        curves: all rows, from top to bottom.
        agreement: how far the limb leads obey Einthoven and Goldberger, up to 1; None where that
            cannot be told.
        signals: what the leads say.
        notes: what was assumed or is doubtful, as sentences.
    """

    layout: EcgLayout | None
    picture: UInt8Image
    ink: UInt8Image
    mapped: PageMap
    px_per_mm: float
    scale_source: Source
    mm_per_mv: float
    gain_source: GainSource
    mm_per_s: float
    boxes: dict[str, LeadBox]
    rhythm: tuple[LeadBox, ...]
    curves: tuple[Curve, ...]
    agreement: float | None
    signals: EcgSignals
    notes: tuple[str, ...]

    @property
    def homography(self) -> Floats:
        """From px of the picture that was read to px of this one, as if the paper were flat."""
        return self.mapped.as_homography

    @property
    def known_layout(self) -> EcgLayout:
        """The arrangement.

        Raises:
            ValueError: when it is not known.
        """
        if self.layout is None:
            raise ValueError("The arrangement of the page is not known, so that it has no leads.")
        return self.layout
