"""The learning rate of a stage, step by step and epoch by epoch."""

from __future__ import annotations

import math
from typing import Any

from cardioray.training.settings import StageConfig


def scheduled_rate(stage: StageConfig, done: float, plateau: dict[str, Any]) -> float:
    """The learning rate of a stage.

    "one_cycle" rises linearly over the first tenth and falls as a cosine to a hundredth of the
    peak; "cosine" falls from the peak to `final_learning_rate`; "step" falls at the beginning of
    every `step_epochs`-th epoch.

    Args:
        stage: the stage.
        done: share of the stage's steps already taken, in [0, 1).
        plateau: state of the plateau schedule.
    """
    peak = stage.learning_rate
    if stage.schedule == "plateau":
        return float(plateau.get("rate", peak))
    if stage.schedule == "constant":
        return peak
    if stage.schedule == "step":
        epoch = int(done * stage.epochs + 1e-9)  # a product that rounding leaves below a whole one
        return peak * stage.step_factor ** (epoch // stage.step_epochs)
    warm = 0.1 if stage.schedule == "one_cycle" else 0.0
    low = peak / 100 if stage.schedule == "one_cycle" else stage.final_learning_rate
    if done < warm:
        return low + (peak - low) * (done / warm)
    fall = (done - warm) / (1 - warm)
    return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * fall))


def note_plateau(stage: StageConfig, plateau: dict[str, Any], val_loss: float) -> None:
    """Lower the rate of the plateau schedule when the validation loss stands still.

    Args:
        stage: the stage.
        plateau: state of the schedule, changed in place; empty when a stage begins.
        val_loss: of the epoch that just ended.
    """
    if val_loss < plateau.get("best", math.inf) - 1e-4:
        plateau.update(best=val_loss, waited=0)
        return
    plateau["waited"] = plateau.get("waited", 0) + 1
    if plateau["waited"] > stage.plateau_patience:
        rate = plateau.get("rate", stage.learning_rate) * stage.plateau_factor
        plateau.update(rate=max(rate, stage.final_learning_rate), waited=0)
