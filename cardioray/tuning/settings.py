"""Settings of a comparison."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from cardioray import config
from cardioray.models.backbones import BACKBONES, backbone_info
from cardioray.registry import unknown_name


@config.config
class AshaConfig:
    """Asynchronous successive halving (Li et al., MLSys 2020) on the first fold.

    Attributes:
        enabled: False trains every backbone to its end.
        grace_epochs: epochs of the last stage that every backbone gets.
        reduction_factor: of those that reached a rung, one in this many goes on; of all backbones,
            one in this many (rounded up) goes on to the other folds.
    """

    enabled: bool = True
    grace_epochs: int = Field(default=4, ge=1)
    reduction_factor: float = Field(default=3.0, gt=1)

    def survivors(self, backbones: int) -> int:
        """Most backbones that the other folds are for.

        Asynchronous halving lets the first trials go on for want of others to compare them with,
        so that more reach the end of the fold than one in `reduction_factor`.
        """
        return math.ceil(backbones / self.reduction_factor) if self.enabled else backbones


@config.config
class SearchConfig:
    """Optuna search over learning rate, head and augmentation on the first fold.

    Attributes:
        num_samples: draws in all, over all backbones; 0 searches nothing.
        learning_rate: lower and upper bound, drawn on a log scale; by default from an eighth to
            four times the rate of the recipe's last stage, whose rate it is.
        dropout: lower and upper bound.
        hidden: widths of the head to choose from.
        rotation_degrees: lower and upper bound of `augment.rotation_degrees`.
        contrast: lower and upper bound of `augment.contrast`.
    """

    num_samples: int = Field(default=0, ge=0)
    learning_rate: tuple[float, float] | None = None
    dropout: tuple[float, float] = (0.0, 0.5)
    hidden: tuple[tuple[int, int], ...] = ((512, 256), (256, 128))
    rotation_degrees: tuple[float, float] = (0.0, 30.0)
    contrast: tuple[float, float] = (0.0, 0.4)

    def __post_init__(self) -> None:
        for name in ("learning_rate", "dropout", "rotation_degrees", "contrast"):
            bounds = getattr(self, name)
            if bounds is not None and not bounds[0] < bounds[1]:
                raise ValueError(f"{name}: the lower bound {bounds[0]:g} is not below the upper.")

    def learning_rates(self, recipe: float) -> tuple[float, float]:
        """The bounds, given the rate of the recipe's last stage."""
        return self.learning_rate or (recipe / 8, recipe * 4)


@config.config
class CompareConfig:
    """How backbones are compared.

    Attributes:
        backbones: names.
        folds: folds by patient over the development patients; survivors run them all.
        asha: stopping of weak backbones.
        search: search of settings.
        refits: how many of the best are trained again and made into bundles.
        max_concurrent: trials at a time; "auto" is what the cluster holds.
        seed: of folds and search.
    """

    backbones: tuple[str, ...]
    folds: int = Field(default=3, ge=2)
    asha: AshaConfig = AshaConfig()
    search: SearchConfig = SearchConfig()
    refits: int = Field(default=1, ge=1)
    max_concurrent: int | Literal["auto"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.backbones:
            raise ValueError("at least one backbone is needed.")
        for name in self.backbones:
            backbone_info(name)


def select_backbones(patterns: str) -> tuple[str, ...]:
    """Names for "all", a comma-separated list, or wildcards over the ten; other timm names pass.

    Raises:
        ValueError: when a pattern or name is unknown.
    """
    chosen: list[str] = []
    for pattern in (part.strip() for part in patterns.split(",") if part.strip()):
        if pattern == "all" or any(sign in pattern for sign in "*?["):
            found = BACKBONES.names("*" if pattern == "all" else pattern.lower())
            if not found:
                raise unknown_name("backbone", pattern, BACKBONES)
        else:
            found = [backbone_info(pattern).name]
        chosen.extend(name for name in found if name not in chosen)
    return tuple(chosen)
