"""Pictures of the studies that are drawn worst."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import tiny_segments as tiny
from matplotlib.colors import to_rgb
from PIL import Image

from cardioray.data.label_maps import CAVITY
from cardioray.evaluation import plots
from cardioray.evaluation.plots.style import ORANGE, SKY
from cardioray.evaluation.segment_panels import panel_title, worst_studies, write_panels
from cardioray.evaluation.segmentation import pack_labels

PHASES = {"ED": (82.0, 46.0), "ES": (72.0, 34.0)}


def frame(view: str, phase: str, spacing: tuple[float, float] | None = tiny.SPACING) -> Any:
    reference = tiny.heart(*PHASES[phase])
    picture = tiny.echo(reference, np.random.default_rng(0))[:64, :64, None]
    predicted = np.roll(reference, 4, axis=1)
    return plots.PanelFrame(view, phase, picture, reference, predicted, 0.875, spacing)


def texts(figure: Any) -> str:
    return " | ".join(text.get_text() for text in figure.findobj(mpl.text.Text))


def colours(axes: Any) -> list[tuple[float, ...]]:
    sets = [c for c in axes.collections if isinstance(c, mpl.contour.ContourSet)]
    return [tuple(np.round(found.get_edgecolor()[0][:3], 3)) for found in sets]


def test_each_view_and_phase_is_shown_with_both_outlines() -> None:
    frames = [frame(view, phase) for view in ("A2C", "A4C") for phase in PHASES]
    figure = plots.outline_panel(frames, "somebody: EF 50 %")
    grid = figure.axes
    assert len(grid) == 8
    found = texts(figure)
    assert "somebody: EF 50 %" in found
    assert [axes.get_title() for axes in grid[::2]] == [
        *("A4C ED, reference", "A4C ES, reference", "A2C ED, reference", "A2C ES, reference"),
    ]
    assert "predicted, Dice 0.88" in found
    sky, orange = (tuple(np.round(to_rgb(name), 3)) for name in (SKY, ORANGE))
    for reference, predicted in zip(grid[::2], grid[1::2], strict=True):
        assert set(colours(reference)) == {sky}
        assert set(colours(predicted)) == {sky, orange}
    with Image.open(io.BytesIO(plots.png_bytes(figure))) as picture:
        assert picture.width > 700


def test_pictures_keep_the_proportions_of_the_heart() -> None:
    [axes, _] = plots.outline_panel([frame("A4C", "ED", (2.0, 1.0))], "").axes
    left, right, bottom, top = axes.images[0].get_extent()
    assert (right - left, bottom - top) == (tiny.SHAPE[1], 2 * tiny.SHAPE[0])
    assert axes.get_aspect() == 1
    [axes, _] = plots.outline_panel([frame("A4C", "ED", None)], "").axes
    assert axes.images[0].get_extent()[1] == tiny.SHAPE[1]


def test_what_is_not_there_is_left_empty() -> None:
    figure = plots.outline_panel([frame("A4C", "ED"), frame("A2C", "ES")], "")
    assert "A4C ES: none" in texts(figure)
    assert "A2C ED: none" in texts(figure)
    nothing = plots.PanelFrame(
        "A4C", "ED", *(np.zeros((9, 9), np.uint8) for _ in range(3)), np.nan, None
    )
    assert "Dice nan" in texts(plots.outline_panel([nothing], ""))


def tables(studies: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Parts and decided studies; the later a study the better its Dice, and the worse its EF."""
    labels = tiny.heart(*PHASES["ED"])
    rows = [
        {
            **{"study_id": f"s{n:02d}", "patient_id": f"p{n:02d}", "view": "A4C", "phase": phase},
            **{"dice_cavity": 0.5 + 0.02 * n + 0.008 * (phase == "ES"), "row": 2 * n},
            **{"spacing_row_mm": 1.6, "spacing_column_mm": 1.3},
            "predicted_png": pack_labels(np.roll(labels, n, axis=0)),
        }
        for n in range(studies)
        for phase in ("ED", "ES")
    ]
    decided = [
        {"study_id": f"s{n:02d}", "label": 50.0, "score": 52.0 + n, "value": 50.0 - n}
        for n in range(studies)
    ]
    return pd.DataFrame(rows), pd.DataFrame(decided)


def test_the_worst_come_first_by_either_figure() -> None:
    parts, studies = tables(14)
    found = worst_studies(parts.sample(frac=1, random_state=0), studies.sample(frac=1))
    assert found["ef"] == [f"s{n:02d}" for n in range(13, 3, -1)]
    assert found["dice"] == [f"s{n:02d}" for n in range(10)]
    none = worst_studies(parts, studies.iloc[:0])
    assert none["ef"] == []
    assert none["dice"] == found["dice"]


def test_pictures_are_looked_up_once_and_written_in_order(tmp_path: Path) -> None:
    parts, studies = tables(12)
    asked = []

    def lookup(frames: pd.DataFrame) -> list[tuple[Any, Any]]:
        asked.append(frames)
        labels = tiny.heart(*PHASES["ED"])
        return [(tiny.echo(labels, np.random.default_rng(0)), labels)] * len(frames)

    paths = write_panels(parts, studies, {}, lookup, str(tmp_path))
    assert [Path(path).name for path in paths] == [
        f"worst_{kind}_{number:02d}.png" for kind in ("ef", "dice") for number in range(1, 11)
    ]
    [frames] = asked
    assert len(frames) == 24
    # The third worst ejection fraction is the tenth worst Dice: one picture.
    drawn = {path: Path(path).read_bytes() for path in paths}
    assert drawn[paths[2]] == drawn[paths[19]]
    assert len(set(drawn.values())) == 12


def test_titles_say_what_is_known() -> None:
    parts, studies = tables(12)
    mine = parts[parts["study_id"] == "s11"]
    assert panel_title(mine, studies.iloc[11], 48.0) == (
        "p11, study s11: EF 50 % (its outlines give 48 %), predicted 63 %, calibrated 39 %\n"
        "Dice of the cavity 0.72"
    )
    alone = mine.assign(patient_id="s11")
    plain = studies.iloc[11].copy()
    plain["value"] = plain["score"]
    assert panel_title(alone, plain, np.nan).startswith("s11: EF 50 %, predicted 63 %\n")
    assert "no ejection fraction" in panel_title(alone, None, np.nan)


def test_of_several_frames_of_a_phase_the_worst_is_shown(tmp_path: Path) -> None:
    parts, studies = tables(1)
    twice = pd.concat([parts, parts.assign(dice_cavity=0.1)], ignore_index=True)
    asked = []

    def lookup(frames: pd.DataFrame) -> list[tuple[Any, Any]]:
        asked.append(frames["dice_cavity"].tolist())
        labels = tiny.heart(*PHASES["ED"])
        assert (labels == CAVITY).any()
        return [(labels, labels)] * len(frames)

    write_panels(twice, studies.iloc[:0], {}, lookup, str(tmp_path))
    assert asked == [[0.1, 0.1]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["worst_dice_01.png"]
