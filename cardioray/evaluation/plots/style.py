"""Colours, canvas and PNG of every plot.

Colours are those of Okabe and Ito, which people with colour-vision deficiency can tell apart
(M. Okabe, K. Ito, "Color Universal Design", 2008, https://jfly.uni-koeln.de/color/).
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, BLACK, GREY = "#56B4E9", "#CC79A7", "#000000", "#999999"
CYCLE = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY, BLACK)


def png_bytes(figure: Figure, limit_bytes: int = 100_000) -> bytes:
    """A figure as a PNG with a palette: of 128 colours, or of fewer where noise would fill it."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    # Median cut would spend the palette on grey pictures and lose the colours of their frames.
    method = Image.Quantize.MAXCOVERAGE
    for colours in (128, 64, 32):
        stream = io.BytesIO()
        small = picture.quantize(colours, method, dither=Image.Dither.NONE)
        small.save(stream, "PNG")
        if stream.tell() <= limit_bytes:
            break
    return stream.getvalue()


def new_figure(width: float, height: float) -> tuple[Figure, Any]:
    """A figure of this size in inches with one panel and a quiet grid."""
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    return figure, axes


def line_styles() -> Iterator[tuple[str, str]]:
    """Colours and line styles, all different for the first 28 models."""
    for style in itertools.cycle(("-", "--", "-.", ":")):
        for colour in CYCLE:
            yield colour, style
