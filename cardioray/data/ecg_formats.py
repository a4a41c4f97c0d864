"""Pages of known printers, whose leads stand at known places of a scan."""

from __future__ import annotations

from dataclasses import dataclass

from cardioray.data.ecg_leads import LAYOUTS, EcgLayout
from cardioray.data.sector import Box
from cardioray.registry import Registry


@dataclass(frozen=True)
class PageFormat:
    """Where the leads of a printer's page are, in px of a scan.

    Attributes:
        name: as settings call it.
        layout: name of its arrangement.
        dpi: resolution of a scan for which the numbers hold.
        box: part of the page that has leads.
        row_height: of each row.
        lefts: where each column of leads begins, from the left of the box; the last ends with it.
        grid: whether it is printed on a grid.
    """

    name: str
    layout: str
    dpi: float
    box: Box
    row_height: int
    lefts: tuple[int, ...]
    grid: bool

    @property
    def arrangement(self) -> EcgLayout:
        """Its layout."""
        return LAYOUTS.get(self.layout)


FORMATS: Registry[PageFormat] = Registry("ECG page format")
for _format in (
    # The two of Boribalburephan et al. 2024: pages until 2017 have no grid, later ones a red one.
    PageFormat("mtecg-old", "6x2", 300, Box(280, 180, 1320, 2820), 220, (0, 1410), grid=False),
    PageFormat(
        "mtecg-new", "3x4", 300, Box(950, 82, 1050, 2918), 350, (0, 740, 1478, 2217), grid=True
    ),
):
    FORMATS.add(_format.name, _format)
