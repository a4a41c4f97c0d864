"""Settings of a comparison."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import yaml
from pydantic import Field

from cardioray import config
from cardioray.registry import Registry
from cardioray.tasks.base import Task


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


@dataclass(frozen=True)
class Candidate:
    """What is compared with others.

    Attributes:
        backbone: name of the network.
        settings: what it is trained with beside the run's settings, as `section.key=value`.
    """

    backbone: str
    settings: tuple[str, ...] = ()


# EchoNet-Dynamic's sweeps over the input and over the number of videos.
GRIDS: Registry[dict[str, tuple[str, ...]]] = Registry("grid")
GRIDS.add(
    "echonet_input",
    {
        "sampling.frames": ("1", "4", "8", "16", "32", "64", "96"),
        "sampling.stride": ("1", "2", "4", "6", "8"),
        "model.pretrained": ("hub", "none"),
    },
)
GRIDS.add(
    "echonet_size",
    {"train.max_patients": ("16", "32", "64", "128", "256", "512", "1024", "2048", "4096", "7460")},
)


@config.config
class CompareConfig:
    """How backbones are compared.

    Attributes:
        backbones: names.
        grid: settings that are gone through with each backbone, as `section.key` -> values; all
            their combinations are compared as backbones are.
        variants: named settings, as `section.key=value`, each of which is tried with each backbone.
        folds: folds by patient over the development patients; survivors run them all.
        asha: stopping of weak backbones.
        search: search of settings.
        refits: how many of the best are trained again and made into bundles.
        max_concurrent: trials at a time; "auto" is what the cluster holds.
        seed: of folds and search.
    """

    backbones: tuple[str, ...]
    grid: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    variants: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    folds: int = Field(default=3, ge=2)
    asha: AshaConfig = AshaConfig()
    search: SearchConfig = SearchConfig()
    refits: int = Field(default=1, ge=1)
    max_concurrent: int | Literal["auto"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.backbones:
            raise ValueError("at least one backbone is needed.")
        if self.grid and self.search.num_samples:
            raise ValueError("a grid and a search are two ways to choose settings; give one.")
        for key, values in self.grid.items():
            if not values or any(set(value) & set("/ ,") for value in values):
                raise ValueError(f"grid {key}: one value or more, without blanks, commas and /.")

    @property
    def candidates(self) -> dict[str, Candidate]:
        """What is compared, by the name it has on the leaderboard."""
        last = [key.rsplit(".", 1)[-1] for key in self.grid]
        short = dict(zip(self.grid, last, strict=True))
        if len(set(last)) < len(last):
            short = {key: key for key in self.grid}
        found = {}
        for variant, backbone in itertools.product(self.variants or {"": ()}, self.backbones):
            # One backbone needs no name where variants are compared.
            names = [name for name in (variant, backbone) if name]
            if variant and len(self.backbones) == 1:
                names = [variant]
            for values in itertools.product(*self.grid.values()):
                chosen = dict(zip(self.grid, values, strict=True))
                words = [f"{short[key]}{value}" for key, value in chosen.items()]
                settings = tuple(f"{key}={value}" for key, value in chosen.items())
                own = (*self.variants.get(variant, ()), *settings)
                found["-".join([*names, *words])] = Candidate(backbone, own)
        return found


def select_backbones(patterns: str, task: Task) -> tuple[str, ...]:
    """Names for "all", a comma-separated list, or wildcards over a task's networks.

    Raises:
        ValueError: when a pattern or name is unknown.
    """
    chosen: list[str] = []
    for pattern in (part.strip() for part in patterns.split(",") if part.strip()):
        found = task.backbones("*" if pattern == "all" else pattern)
        chosen.extend(name for name in found if name not in chosen)
    return tuple(chosen)


def select_variants(patterns: str | None, task: Task) -> dict[str, tuple[str, ...]]:
    """Settings of variants by name, for "all", a comma-separated list, or wildcards.

    Raises:
        ValueError: when a name is unknown, or the task has no variants.
    """
    if patterns is None:
        return {}
    if not len(task.variants):
        raise ValueError(f"{task.name} has no variants; leave out --variants.")
    chosen: dict[str, tuple[str, ...]] = {}
    for pattern in (part.strip() for part in patterns.split(",") if part.strip()):
        for name in task.variants.matching("*" if pattern == "all" else pattern):
            chosen[name] = task.variants.get(name)
    return chosen


def read_grid(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """A grid from names of `GRIDS` and `section.key=[value,value]`; later ones win.

    Raises:
        ValueError: for an unknown name, or a text that is no list of values.
    """
    grid: dict[str, tuple[str, ...]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not equals:
            grid |= GRIDS.get(text.strip())
            continue
        listed = yaml.safe_load(values)
        if not isinstance(listed, list) or not listed:
            raise ValueError(f"--grid {text}: values are written as {key}=[1,2].")
        grid[key.strip()] = tuple(str(value) for value in listed)
    return grid
