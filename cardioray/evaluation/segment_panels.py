"""The studies that a segmentation network draws worst, as pictures with both outlines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cardioray import storage
from cardioray.evaluation import plots
from cardioray.evaluation.segment_report import PREDICTED_MAP
from cardioray.evaluation.segmentation import unpack_labels

Picture = NDArray[np.uint8]
# Of some rows of parts, the picture and the reference label map of each, in their order.
Lookup = Callable[[pd.DataFrame], Sequence[tuple[Picture, Picture]]]

# Folder of the pictures among the plots.
OUTLINES = "outlines"
PANELS = 10
BY_EF, BY_DICE = "ef", "dice"
_DICE = "dice_cavity"


def worst_studies(
    parts: pd.DataFrame, studies: pd.DataFrame, most: int = PANELS
) -> dict[str, list[str]]:
    """The studies that are worst by each of two figures, the worst first.

    Both are looked at, since either hides the other's faults: outlines of ED and ES that are wrong
    alike give a right ejection fraction, and small errors of opposite sign a wrong one.

    Args:
        parts: one row a frame with `study_id` and `dice_cavity`.
        studies: one row a study with `study_id`, `label` and `value`; may have none.
        most: of each kind.

    Returns:
        Of "ef", those with the largest errors of the ejection fraction as it is answered; of
        "dice", those with the lowest mean Dice of the cavity.
    """
    dice = parts.groupby("study_id")[_DICE].mean().dropna().sort_values(kind="stable")
    worst = {BY_EF: [], BY_DICE: dice.index[:most].astype(str).tolist()}
    if len(studies):
        errors = (studies["value"] - studies["label"]).abs()
        order = errors.sort_values(ascending=False, kind="stable").index[:most]
        worst[BY_EF] = studies.loc[order, "study_id"].astype(str).tolist()
    return worst


def write_panels(
    parts: pd.DataFrame,
    studies: pd.DataFrame,
    of_reference: Mapping[str, float],
    lookup: Lookup,
    folder: str,
) -> list[str]:
    """Draw the worst studies, each as one picture.

    Args:
        parts: one row a frame of the studies that were scored, with their predicted label maps.
        studies: what was decided of the ejection fraction of each: `label`, `score`, `value`.
        of_reference: by study, the ejection fraction that the reference outlines give.
        lookup: finds pictures and reference label maps.
        folder: local or s3://; files are `worst_ef_01.png` and so on, the worst one first.

    Returns:
        Paths of the files.
    """
    worst = worst_studies(parts, studies)
    wanted = sorted({study for names in worst.values() for study in names})
    chosen = _one_of_each(parts[parts["study_id"].astype(str).isin(wanted)])
    pictures = dict(zip(chosen.index, lookup(chosen), strict=True))
    decided = {str(row["study_id"]): row for _, row in studies.iterrows()}
    drawn: dict[str, bytes] = {}
    for study in wanted:
        frames = chosen[chosen["study_id"].astype(str) == study]
        title = panel_title(frames, decided.get(study), of_reference.get(study, np.nan))
        panel = [_frame(row, *pictures[place]) for place, row in frames.iterrows()]
        drawn[study] = plots.png_bytes(plots.outline_panel(panel, title))
    paths = []
    for kind, names in worst.items():
        for number, study in enumerate(names, 1):
            paths.append(storage.join(folder, f"worst_{kind}_{number:02d}.png"))
            storage.write_bytes(paths[-1], drawn[study])
    return paths


def _one_of_each(frames: pd.DataFrame) -> pd.DataFrame:
    """Of several frames of one view and phase of a study, the one that is drawn worst."""
    keys = ["study_id", "view", "phase"]
    order = frames.sort_values([*keys, _DICE], na_position="first", kind="stable")
    return order.drop_duplicates(keys)


def panel_title(frames: pd.DataFrame, values: pd.Series | None, of_reference: float) -> str:
    """Who it is, the ejection fraction, and the mean Dice of the cavity.

    Args:
        frames: of one study.
        values: its `label`, `score` (before calibration) and `value`; None where it has none.
        of_reference: the ejection fraction that its reference outlines give, NaN for none.
    """
    patient, study = str(frames["patient_id"].iloc[0]), str(frames["study_id"].iloc[0])
    who = patient if patient == study else f"{patient}, study {study}"
    dice = f"Dice of the cavity {frames[_DICE].mean():.2f}"
    if values is None:
        return f"{who}: no ejection fraction\n{dice}"
    truth = f"EF {values['label']:.0f} %"
    if np.isfinite(of_reference):
        truth += f" (its outlines give {of_reference:.0f} %)"
    said = f"predicted {values['score']:.0f} %"
    if values["value"] != values["score"]:
        said += f", calibrated {values['value']:.0f} %"
    return f"{who}: {truth}, {said}\n{dice}"


def _frame(row: pd.Series, picture: Picture, reference: Picture) -> plots.PanelFrame:
    sides = (float(row["spacing_row_mm"]), float(row["spacing_column_mm"]))
    known = all(np.isfinite(side) and side > 0 for side in sides)
    return plots.PanelFrame(
        view=str(row["view"]),
        phase=str(row["phase"]),
        picture=picture,
        reference=reference,
        predicted=unpack_labels(row[PREDICTED_MAP]),
        dice=float(row[_DICE]),
        spacing_mm=sides if known else None,
    )
