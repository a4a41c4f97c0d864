"""How phantoms are drawn: a random stream for every purpose, and ranges to draw from."""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

import numpy as np
from pydantic import AfterValidator


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if not bounds[0] <= bounds[1]:
        raise ValueError("a range is written low, high.")
    return bounds


Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
"""Bounds between which a value is drawn uniformly for each patient."""


class Stream(IntEnum):
    """One random stream a purpose, so that nuisance cannot depend on the label."""

    TRUTH = 0
    ANATOMY = 1
    VIEW = 2
    MOTION = 3
    SCENE = 4
    NOISE = 5
    SPLIT = 6


def stream(seed: int, index: int, *purpose: int) -> np.random.Generator:
    """The random stream of one patient (or class) for one purpose."""
    return np.random.default_rng([seed, index, *purpose])


def draw(rng: np.random.Generator, bounds: Range) -> float:
    """A uniform draw from a range of the config."""
    return float(rng.uniform(*bounds))
