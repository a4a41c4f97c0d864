"""One trial: one backbone on one fold; what the process of a trial loads.

There are dozens of them in a comparison, so that this module imports nothing that draws, exports
or searches.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from ray import tune
from ray.actor import ActorHandle
from ray.train._internal.session import get_session
from ray.tune.integration.ray_train import TuneReportCallback

from cardioray import config, storage
from cardioray.data.shards import ShardSet
from cardioray.tasks.base import STANDING
from cardioray.training.outcome import WEIGHTS_CACHE
from cardioray.training.run import train
from cardioray.training.settings import RunConfig, StageConfig
from cardioray.training.trainer import CalledOff
from cardioray.tuning.settings import Candidate

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrialContext:
    """What all trials share; small enough to travel with each of them."""

    run: dict[str, Any]
    shards_path: str
    folds: list[pd.Series[str]]
    out: str
    progress: ActorHandle[Any] | None
    candidates: Mapping[str, Candidate] = field(default_factory=dict)

    def trial(self, name: str, overrides: Sequence[str]) -> RunConfig:
        """The run of one candidate, by its name, or of a backbone."""
        written = dict(self.run)
        task = written.pop("task")
        chosen = self.candidates.get(name, Candidate(name))
        own = (f"model.backbone={chosen.backbone}", *chosen.settings)
        return RunConfig.build(task, written, [*own, *overrides])

    def stages(self, backbones: Sequence[str]) -> tuple[StageConfig, ...]:
        """The stages of the backbone whose run is the shortest.

        Runs differ in length where only some backbones have weights to start from, and a warning
        then says which do not. The cache is the one that the trials will look into.
        """
        cache = storage.join(self.out, WEIGHTS_CACHE)
        plans: list[tuple[StageConfig, ...]] = []
        random: list[str] = []
        for name in backbones:
            run = self.trial(name, ())
            given = run.task.pretraining() is not None
            given = given or run.task.starting_weights(cache) is not None
            if not given:
                random.append(name)
            plans.append(run.train.resolved_stages(given))
        if 0 < len(random) < len(backbones):
            log.warning(
                "%s start from random weights and the other backbones from given ones: what tells "
                "them apart may be the start. model.pretrained=none gives all the same.",
                ", ".join(random),
            )
        return min(plans, key=lambda stages: sum(stage.epochs for stage in stages))

    def tell(self, step: str, runs: Sequence[str] = ()) -> None:
        """Say on the board what is being done, and by which runs."""
        if self.progress is not None:
            self.progress.begin.remote(step, list(runs))


def run_trial(settings: dict[str, Any], context: TrialContext) -> None:
    """Drive one run of Ray Train; its workers report to Tune.

    Args:
        settings: what Tune drew.
        context: what all trials share.
    """
    asked = asked_settings(settings)
    overrides = overrides_of(asked)
    session = get_session()
    assert session is not None
    # How long Tune waits for a trial that it stopped before it gives up the process.
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "60"
    with contextlib.suppress(CalledOff):
        outcome = train(
            context.trial(asked["backbone"], overrides),
            ShardSet.open(context.shards_path),
            context.folds[asked["fold"]],
            context.out,
            name=trial_name(asked["backbone"], asked["fold"], overrides),
            progress=context.progress,
            callbacks=[TuneReportCallback()],
            called_off=session.stop_event.is_set,
        )
        # Tune wants a word of every trial; one that is taken up at its end has no epoch to report.
        tune.report({"epoch": outcome.epochs, STANDING: outcome.standing})


def trial_name(backbone: str, fold: int, overrides: Sequence[str]) -> str:
    """A trial's folder; searched settings are told apart by a hash."""
    suffix = f"-{config.digest(list(overrides), 6)}" if overrides else ""
    return f"{backbone}-fold{fold}{suffix}"


def search_overrides(settings: dict[str, Any]) -> list[str]:
    """What Optuna drew, as settings: of what it was told, the keys with a section."""
    drawn = {key: value for key, value in settings.items() if "." in key}
    numbers = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in drawn.items()}
    return [f"{key}={value}" for key, value in numbers.items()]


def asked_settings(settings: dict[str, Any] | None) -> dict[str, Any]:
    """Backbone, fold and more of a trial, from what Tune gives it."""
    settings = settings or {}
    asked = settings.get("trial", settings)
    assert isinstance(asked, dict)
    return asked


def overrides_of(asked: dict[str, Any]) -> list[str]:
    """The settings that were given to a trial, and those that were drawn for it."""
    return [*asked.get("overrides", ()), *search_overrides(asked)]


def name_of(settings: dict[str, Any] | None) -> str:
    """The folder of a trial, from what Tune gives it."""
    asked = asked_settings(settings)
    return trial_name(asked["backbone"], asked["fold"], overrides_of(asked))
