"""Pictures with what a model said of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from cardioray.evaluation.plots.style import GREEN, RED

GRID_PICTURES = 25


def prediction_grid(
    images: Sequence[NDArray[Any]],
    labels: ArrayLike,
    probabilities: ArrayLike,
    decisions: ArrayLike,
    classes: tuple[str, str],
    *,
    drawn_from: int | None = None,
) -> Figure:
    """Pictures with what was predicted: green and "right", or red and "wrong".

    Args:
        images: uint8 or floats in [0, 1], shape (H, W), (H, W, 1) or (H, W, 3); the first
            `GRID_PICTURES` of them are shown.
        labels: 0 or 1, one an image.
        probabilities: calibrated, of class 1.
        decisions: what each image was called, 0 or 1; folds may have thresholds of their own.
        classes: names of class 0 and 1.
        drawn_from: pictures that the images were drawn from, for the title.
    """
    truth, called = np.asarray(labels).astype(int), np.asarray(decisions).astype(int)
    values = np.asarray(probabilities, dtype=float)
    shown = min(len(images), GRID_PICTURES)
    columns = max(1, min(5, shown))
    rows = max(1, -(-shown // columns))
    figure = Figure(figsize=(1.75 * columns, 2.05 * rows + 0.4), dpi=80, layout="constrained")
    grid = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes in grid[shown:]:
        axes.set_axis_off()
    for i, axes in enumerate(grid[:shown]):
        right = called[i] == truth[i]
        colour = GREEN if right else RED
        top = 255 if np.asarray(images[i]).dtype == np.uint8 else 1
        axes.imshow(images[i], cmap="gray", vmin=0, vmax=top)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(color=colour, linewidth=2.5)
        verdict = "right" if right else f"wrong, is {classes[truth[i]]}"
        text = f"{classes[called[i]]} ({values[i]:.2f})\n{verdict}"
        axes.set_title(text, fontsize=7, color=colour)
    counted = f"{shown} of {drawn_from or len(images)} pictures"
    brackets = f"in brackets the probability of {classes[1]}"
    figure.suptitle(f"Predictions ({counted})\n{brackets}", fontsize=9)
    return figure
