"""The twelve leads, the arrangements that printers give them, and signals with their times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cardioray.registry import Registry

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
# Printers show ten seconds from left to right, whatever the arrangement.
PAGE_SECONDS = 10.0


@dataclass(frozen=True)
class EcgLayout:
    """Where a printer puts each lead.

    Attributes:
        name: as it is called ("3x4+1").
        columns: leads from top to bottom, for each column from left to right. A name that begins
            with "-" is printed upside down, as -aVR is in Cabrera's order.
        rhythm: leads of the rows beneath that go over all columns, from top to bottom; "" for one
            that is not known.
    """

    name: str
    columns: tuple[tuple[str, ...], ...]
    rhythm: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shown = [name.removeprefix("-") for column in self.columns for name in column]
        assert sorted(shown) == sorted(LEADS), shown
        assert len({len(column) for column in self.columns}) == 1

    @property
    def rows(self) -> int:
        """Rows of leads, those for the rhythm left out."""
        return len(self.columns[0])

    @property
    def column_seconds(self) -> float:
        """How long each lead is shown."""
        return PAGE_SECONDS / len(self.columns)

    @property
    def is_cabrera(self) -> bool:
        """Whether limb leads stand in Cabrera's order, with -aVR."""
        return any("-aVR" in column for column in self.columns)

    def place(self, lead: str) -> tuple[int, int]:
        """Row and column of a lead."""
        for number, column in enumerate(self.columns):
            for row, name in enumerate(column):
                if name.removeprefix("-") == lead:
                    return row, number
        raise KeyError(lead)

    def sign(self, lead: str) -> int:
        """-1 for a lead that is printed upside down, else 1."""
        row, column = self.place(lead)
        return -1 if self.columns[column][row].startswith("-") else 1


_LIMB, _CHEST = LEADS[:6], LEADS[6:]
_BY_THREE = (LEADS[:3], LEADS[3:6], LEADS[6:9], LEADS[9:])
_CABRERA = ("aVL", "I", "-aVR", "II", "aVF", "III")

LAYOUTS: Registry[EcgLayout] = Registry("ECG layout")
for _layout in (
    EcgLayout("3x4", _BY_THREE),
    EcgLayout("3x4+1", _BY_THREE, ("II",)),
    EcgLayout("3x4+2", _BY_THREE, ("II", "")),
    EcgLayout("3x4+3", _BY_THREE, ("V1", "II", "V5")),
    EcgLayout("6x2", (_LIMB, _CHEST)),
    EcgLayout("6x2+1", (_LIMB, _CHEST), ("II",)),
    EcgLayout("12x1", (LEADS,)),
    EcgLayout("3x4-cabrera", (_CABRERA[:3], _CABRERA[3:], *_BY_THREE[2:])),
    EcgLayout("3x4-cabrera+1", (_CABRERA[:3], _CABRERA[3:], *_BY_THREE[2:]), ("II",)),
    EcgLayout("6x2-cabrera", (_CABRERA, _CHEST)),
    EcgLayout("6x2-cabrera+1", (_CABRERA, _CHEST), ("II",)),
    EcgLayout("12x1-cabrera", ((*_CABRERA, *_CHEST),)),
):
    LAYOUTS.add(_layout.name, _layout)


@dataclass(frozen=True, eq=False)
class EcgSignals:
    """Twelve leads as they were recorded, or as far as paper shows them.

    Attributes:
        millivolts: in the order of `LEADS`, each from its own beginning, (12, N) float32; NaN
            where a lead is not known.
        rate_hz: samples a second.
        starts_s: when the first sample of each lead was recorded, in s after the first of all,
            (12,): on paper of four columns, V1 begins 5 s after I.
    """

    millivolts: NDArray[np.float32]
    rate_hz: float
    starts_s: NDArray[np.float64]

    def __post_init__(self) -> None:
        assert self.millivolts.ndim == 2, self.millivolts.shape
        assert len(self.millivolts) == len(self.starts_s) == len(LEADS)

    @property
    def seconds(self) -> float:
        """How long each lead is."""
        return float(self.millivolts.shape[1] / self.rate_hz)

    def cut(self, layout: EcgLayout) -> EcgSignals:
        """What a layout shows of signals that all begin at once.

        Raises:
            ValueError: when they do not, or are shorter than a page.
        """
        if self.starts_s.any():
            raise ValueError("The leads begin at different times; a page needs them from the same.")
        if self.seconds < PAGE_SECONDS - 1e-6:
            raise ValueError(
                f"The record is {self.seconds:.1f} s long; a page shows {PAGE_SECONDS:.0f} s."
            )
        length = round(layout.column_seconds * self.rate_hz)
        starts = np.array([layout.place(lead)[1] * layout.column_seconds for lead in LEADS])
        firsts = np.round(starts * self.rate_hz).astype(int)
        parts = [self.millivolts[k, first : first + length] for k, first in enumerate(firsts)]
        return EcgSignals(np.stack(parts), self.rate_hz, starts)
