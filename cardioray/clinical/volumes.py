"""Volumes and ejection fraction of a study from the cavity in its views and phases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from cardioray.clinical.simpson import (
    Cavity,
    biplane_area_length_ml,
    biplane_discs_ml,
    ef_percent,
)

FOUR, TWO = "A4C", "A2C"
ED, ES = "ED", "ES"
MethodName = Literal["discs", "area_length"]

# What hearts of adults have, with room on both sides: beyond it a mask is more likely wrong than
# the heart is so. Normal is an EDV of 46 to 150 ml and an ESV of 14 to 61 ml; severely enlarged is
# from 200 and 103 ml on (Lang 2015, table 2).
EDV_ML = (30.0, 400.0)
ESV_ML = (5.0, 350.0)
EF_PERCENT = (5.0, 85.0)
# Lengths in both views of one phase, from which on one of them is likely foreshortened (Lang 2015).
_LENGTHS_DIFFER = 0.10

_METHODS: dict[MethodName, Callable[[Cavity, Cavity], float]] = {
    "discs": biplane_discs_ml,
    "area_length": biplane_area_length_ml,
}


@dataclass(frozen=True)
class Volumes:
    """What a study's cavities amount to.

    Attributes:
        edv_ml: end-diastolic volume.
        esv_ml: end-systolic volume.
        ef_percent: ejection fraction.
        views: those that both volumes rest on, one or two.
        doubts: what speaks against them, as sentences.
    """

    edv_ml: float
    esv_ml: float
    ef_percent: float
    views: tuple[str, ...]
    doubts: tuple[str, ...]


def volumes_of(
    cavities: Mapping[tuple[str, str], Cavity],
    method: MethodName = "discs",
) -> Volumes | None:
    """Volumes of both phases: of two views where both have both phases, else of the one that does.

    Args:
        cavities: by view ("A4C", "A2C") and phase ("ED", "ES").
        method: discs, or area and length.

    Returns:
        None where no view has both phases, or the cavity at end diastole has no volume.
    """
    complete = [view for view in (FOUR, TWO) if {(view, ED), (view, ES)} <= set(cavities)]
    if not complete:
        return None
    first, second = complete[0], complete[-1]
    formula = _METHODS[method]
    edv, esv = (formula(cavities[first, phase], cavities[second, phase]) for phase in (ED, ES))
    if not edv > 0:
        return None
    ef = ef_percent(edv, esv)
    doubts = _doubts(edv, esv, ef)
    if len(complete) == 2:
        doubts += _different_lengths(cavities)
    return Volumes(edv, esv, ef, tuple(complete), tuple(doubts))


def _doubts(edv: float, esv: float, ef: float) -> list[str]:
    doubts = []
    if esv >= edv:
        doubts.append(
            "The cavity is not smaller at end systole than at end diastole: the phases may be "
            "exchanged, or an outline wrong."
        )
    elif not EF_PERCENT[0] <= ef <= EF_PERCENT[1]:
        doubts.append(
            f"An ejection fraction of {ef:.0f} % is outside {EF_PERCENT[0]:.0f} to "
            f"{EF_PERCENT[1]:.0f} %: an outline is likely wrong."
        )
    for name, volume, (low, high) in (
        ("end-diastolic", edv, EDV_ML),
        ("end-systolic", esv, ESV_ML),
    ):
        if not low <= volume <= high:
            doubts.append(
                f"An {name} volume of {volume:.0f} ml is outside {low:.0f} to {high:.0f} ml: an "
                "outline or the pixel size is likely wrong."
            )
    return doubts


def _different_lengths(cavities: Mapping[tuple[str, str], Cavity]) -> list[str]:
    doubts = []
    for phase in (ED, ES):
        lengths = [cavities[view, phase].length_mm for view in (FOUR, TWO)]
        if max(lengths) > (1 + _LENGTHS_DIFFER) * min(lengths):
            more = 100 * (max(lengths) / min(lengths) - 1)
            doubts.append(
                f"At {phase} the ventricle is {more:.0f} % longer in one view than in the other: "
                "one of them may be foreshortened."
            )
    return doubts
