"""Echo pictures of a study with the outlines of a reference and of a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from cardioray.evaluation.plots.style import ORANGE, SKY

_VIEWS, _PHASES = ("A4C", "A2C"), ("ED", "ES")
# Around what is outlined, as a share of its size.
_MARGIN = 0.15
# Told apart by colour and by stroke, on black as on white.
_REFERENCE: dict[str, Any] = {"colors": SKY, "linewidths": 1.8}
_BEHIND: dict[str, Any] = {"colors": SKY, "linewidths": 1.4, "linestyles": "dashed"}
_PREDICTED: dict[str, Any] = {"colors": ORANGE, "linewidths": 1.4}


@dataclass(frozen=True, eq=False)
class PanelFrame:
    """One frame of a panel.

    Attributes:
        view: "A4C" or "A2C".
        phase: "ED" or "ES".
        picture: grey, of any size that covers the whole frame, (S, S) or (S, S, 1).
        reference: its label map at the source's size, (H, W).
        predicted: likewise.
        dice: of the cavity.
        spacing_mm: height and width of a pixel of the source; None where they are not known.
    """

    view: str
    phase: str
    picture: NDArray[np.uint8]
    reference: NDArray[np.uint8]
    predicted: NDArray[np.uint8]
    dice: float
    spacing_mm: tuple[float, float] | None


def outline_panel(frames: Sequence[PanelFrame], title: str) -> Figure:
    """A row for each view, and for each phase the reference and the prediction side by side.

    The reference is drawn behind the prediction once more, dashed. Pictures are cut to what is
    outlined.

    Args:
        frames: at most one of each view and phase.
        title: above all of them.
    """
    views = [view for view in _VIEWS if any(frame.view == view for frame in frames)]
    phases = [phase for phase in _PHASES if any(frame.phase == phase for frame in frames)]
    by_place = {(frame.view, frame.phase): frame for frame in frames}
    size = (4.0 * len(phases), 2.7 * len(views) + 0.8)
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    grid = figure.subplots(len(views), 2 * len(phases), squeeze=False)
    for row, view in zip(grid, views, strict=True):
        for number, phase in enumerate(phases):
            pair = row[2 * number : 2 * number + 2]
            frame = by_place.get((view, phase))
            for axes in pair:
                axes.set_axis_off()
            if frame is None:
                pair[0].set_title(f"{view} {phase}: none", fontsize=8)
                continue
            for axes in pair:
                _show(axes, frame)
            _draw(pair[0], frame.reference, frame, _REFERENCE)
            _draw(pair[1], frame.reference, frame, _BEHIND)
            _draw(pair[1], frame.predicted, frame, _PREDICTED)
            pair[0].set_title(f"{view} {phase}, reference", fontsize=8)
            pair[1].set_title(f"predicted, Dice {frame.dice:.2f}", fontsize=8)
    figure.suptitle(title, fontsize=9)
    lines = [
        Line2D([], [], color=SKY, linewidth=1.8, label="reference"),
        Line2D([], [], color=ORANGE, linewidth=1.4, label="predicted"),
    ]
    figure.legend(handles=lines, fontsize=8, loc="outside lower center", ncols=2)
    return figure


def _spacing(frame: PanelFrame) -> tuple[float, float]:
    return frame.spacing_mm or (1.0, 1.0)


def _show(axes: Any, frame: PanelFrame) -> None:
    """The picture where its frame lies in mm, cut to both label maps."""
    height, width = np.array(frame.reference.shape) * _spacing(frame)
    axes.imshow(
        frame.picture.reshape(frame.picture.shape[:2]),
        **{"cmap": "gray", "vmin": 0, "vmax": 255},
        extent=(0, width, height, 0),
    )
    outlined = (frame.reference > 0) | (frame.predicted > 0)
    if outlined.any():
        rows, columns = (np.flatnonzero(outlined.any(axis=axis)) for axis in (1, 0))
        margin = _MARGIN * max(np.ptp(rows), np.ptp(columns))
        tall, wide = _spacing(frame)
        axes.set_xlim((columns[0] - margin) * wide, (columns[-1] + 1 + margin) * wide)
        axes.set_ylim((rows[-1] + 1 + margin) * tall, (rows[0] - margin) * tall)


def _draw(axes: Any, labels: NDArray[np.uint8], frame: PanelFrame, style: dict[str, Any]) -> None:
    """The outline of every structure of a label map."""
    tall, wide = _spacing(frame)
    down = (np.arange(labels.shape[0]) + 0.5) * tall
    right = (np.arange(labels.shape[1]) + 0.5) * wide
    for number in np.unique(labels[labels > 0]):
        mask = labels == number
        if not mask.all():
            axes.contour(right, down, mask.astype(float), levels=[0.5], **style)
