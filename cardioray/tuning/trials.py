"""Trials: one backbone on one fold, each driving one `TorchTrainer` under Ray Tune."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from ray import tune
from ray.actor import ActorHandle
from ray.tune import FailureConfig, ResultGrid, TuneConfig, Tuner
from ray.tune import RunConfig as TuneRunConfig
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from cardioray import config, storage
from cardioray.data.shards import ShardSet
from cardioray.tasks.base import Monitor
from cardioray.training.outcome import read_outcome
from cardioray.training.run import train
from cardioray.training.settings import RunConfig
from cardioray.tuning.settings import CompareConfig, SearchConfig


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What one backbone did on one fold.

    Attributes:
        backbone: name.
        fold: number of the fold.
        overrides: settings the search chose for it, as `section.key=value`.
        stopped_early: ASHA stopped it.
        validation_score: best monitored figure on validation patients.
        epochs: epochs trained.
        seconds: wall time of the trial.
        folder: the run's folder.
        checkpoint: last checkpoint of a stopped trial, or None.
    """

    backbone: str
    fold: int
    overrides: list[str]
    stopped_early: bool
    validation_score: float
    epochs: int
    seconds: float
    folder: str
    checkpoint: str | None


@dataclass(frozen=True)
class TrialContext:
    """What all trials share; small enough to travel with each of them."""

    run: dict[str, Any]
    shards_path: str
    folds: list[pd.Series[str]]
    out: str
    progress: ActorHandle[Any] | None
    max_epochs: int

    def trial(self, backbone: str, overrides: Sequence[str]) -> RunConfig:
        """The run of one backbone."""
        written = dict(self.run)
        name = written.pop("task")
        return RunConfig.build(name, written, [f"model.backbone={backbone}", *overrides])


def run_trial(settings: dict[str, Any], context: TrialContext) -> None:
    """One trial: drive one Ray Train run; its workers report to Tune."""
    overrides = list(settings.get("overrides", ())) + search_overrides(settings)
    run = context.trial(settings["backbone"], overrides)
    fold = settings["fold"]
    train(
        run,
        ShardSet.open(context.shards_path),
        context.folds[fold],
        context.out,
        name=trial_name(settings["backbone"], fold, overrides),
        progress=context.progress,
        callbacks=[TuneReportCallback()],
    )


def trial_name(backbone: str, fold: int, overrides: Sequence[str]) -> str:
    """A trial's folder; searched settings are told apart by a hash."""
    suffix = f"-{config.digest(list(overrides), 6)}" if overrides else ""
    return f"{backbone}-fold{fold}{suffix}"


def search_overrides(settings: dict[str, Any]) -> list[str]:
    """What Optuna drew, as settings."""
    keys = {
        "learning_rate": "train.learning_rate",
        "dropout": "model.head.dropout",
    }
    drawn = [f"{keys[key]}={settings[key]:.6g}" for key in keys if key in settings]
    if "hidden" in settings:
        drawn.append(f"model.head.hidden={list(settings['hidden'])}")
    return drawn


def first_fold(
    context: TrialContext, settings: CompareConfig, monitor: Monitor, concurrent: int
) -> list[TrialResult]:
    """Every backbone on the first fold, the weak ones stopped."""
    scheduler = None
    if settings.asha.enabled:
        scheduler = ASHAScheduler(
            time_attr="training_iteration",
            max_t=context.max_epochs,
            grace_period=min(settings.asha.grace_epochs, context.max_epochs),
            reduction_factor=settings.asha.reduction_factor,
        )
    search = settings.search
    space: dict[str, Any] = {"backbone": tune.grid_search(list(settings.backbones)), "fold": 0}
    algorithm, samples = None, 1
    if search.num_samples:
        algorithm = OptunaSearch(
            _space(search, settings.backbones),
            metric=monitor.name,
            mode=monitor.mode,
            seed=settings.seed,
        )
        space, samples = {"fold": 0}, search.num_samples
    results = _tune(
        context,
        "first_fold",
        space,
        TuneConfig(
            metric=monitor.name,
            mode=monitor.mode,
            scheduler=scheduler,
            search_alg=algorithm,
            num_samples=samples,
            max_concurrent_trials=concurrent,
        ),
    )
    return _best_of_each(_collect(results, context, monitor), monitor)


def other_folds(
    context: TrialContext,
    survivors: Sequence[TrialResult],
    num_folds: int,
    concurrent: int,
    monitor: Monitor,
) -> list[TrialResult]:
    """The survivors on every other fold, to the end."""
    wanted = [
        {"backbone": trial.backbone, "fold": fold, "overrides": trial.overrides}
        for fold in range(1, num_folds)
        for trial in survivors
    ]
    if not wanted:
        return []
    results = _tune(
        context,
        "other_folds",
        {"trial": tune.grid_search(wanted)},
        TuneConfig(metric=monitor.name, mode=monitor.mode, max_concurrent_trials=concurrent),
    )
    return _collect(results, context, monitor)


def _tune(
    context: TrialContext, name: str, space: dict[str, Any], tune_config: TuneConfig
) -> ResultGrid:
    """Run trials, or go on with those of a driver that was killed."""
    trainable = tune.with_resources(
        tune.with_parameters(_trainable, context=context), {"cpu": 0.01}
    )
    filesystem, path = storage.filesystem(context.out)
    place = storage.join(context.out, name)
    remote = filesystem if storage.is_remote(context.out) else None
    if Tuner.can_restore(storage.filesystem(place)[1], storage_filesystem=remote):
        tuner = Tuner.restore(
            storage.filesystem(place)[1],
            trainable=trainable,
            resume_unfinished=True,
            resume_errored=True,
            storage_filesystem=remote,
            param_space=space,
        )
    else:
        tuner = Tuner(
            trainable,
            param_space=space,
            tune_config=tune_config,
            run_config=TuneRunConfig(
                name=name,
                storage_path=path,
                storage_filesystem=remote,
                failure_config=FailureConfig(max_failures=1),
                callbacks=[] if context.progress is None else [_TellEnded(context.progress)],
                verbose=0,
            ),
        )
    return tuner.fit()


class _TellEnded(tune.Callback):  # type: ignore[misc]
    """Tells the progress board of trials that ended, those that ASHA stopped among them."""

    def __init__(self, board: ActorHandle[Any]) -> None:
        self._board = board

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Tune."""
        asked = _asked(trial.config)
        overrides = list(asked.get("overrides", ())) + search_overrides(asked)
        name = trial_name(asked["backbone"], asked["fold"], overrides)
        self._board.update.remote(name, {"done": True})


def _trainable(settings: dict[str, Any], context: TrialContext) -> None:
    run_trial(settings.get("trial", settings), context)


def _space(search: SearchConfig, backbones: Sequence[str]) -> dict[str, Any]:
    return {
        "backbone": tune.choice(list(backbones)),
        "learning_rate": tune.loguniform(*search.learning_rate),
        "dropout": tune.uniform(*search.dropout),
        "hidden": tune.choice([list(widths) for widths in search.hidden]),
    }


def _collect(results: ResultGrid, context: TrialContext, monitor: Monitor) -> list[TrialResult]:
    """Read what trials left.

    Raises:
        RuntimeError: when trials failed; names them and the first reason.
    """
    if results.errors:
        failed = [result for result in results if result.error]
        names = sorted(str(_asked(result.config)["backbone"]) for result in failed)
        raise RuntimeError(
            f"{len(failed)} trials failed ({', '.join(names)}); the same command resumes. First "
            f"error: {failed[0].error}"
        )
    return [_trial_result(result, context, monitor) for result in results]


def _asked(settings: dict[str, Any] | None) -> dict[str, Any]:
    settings = settings or {}
    asked = settings.get("trial", settings)
    assert isinstance(asked, dict)
    return asked


def _trial_result(result: Any, context: TrialContext, monitor: Monitor) -> TrialResult:
    asked = _asked(result.config)
    overrides = list(asked.get("overrides", ())) + search_overrides(asked)
    folder = storage.join(context.out, trial_name(asked["backbone"], asked["fold"], overrides))
    outcome = read_outcome(folder)
    metrics = result.metrics or {}
    if outcome is not None:
        score, epochs = outcome.best, outcome.epochs
    else:
        values = result.metrics_dataframe[monitor.name]
        score = float(values.max() if monitor.mode == "max" else values.min())
        epochs = int(metrics["training_iteration"])
    return TrialResult(
        backbone=asked["backbone"],
        fold=asked["fold"],
        overrides=overrides,
        stopped_early=outcome is None,
        validation_score=score,
        epochs=epochs,
        seconds=float(metrics.get("time_total_s", 0.0)),
        folder=folder,
        checkpoint=None if outcome else metrics["checkpoint_path"],
    )


def _best_of_each(trials: Sequence[TrialResult], monitor: Monitor) -> list[TrialResult]:
    """Of several searched settings of a backbone the best; finished ones before stopped ones."""
    best: dict[str, TrialResult] = {}
    for trial in trials:
        held = best.get(trial.backbone)
        better = held is None or (held.stopped_early and not trial.stopped_early)
        if held is not None and held.stopped_early == trial.stopped_early:
            better = monitor.better(trial.validation_score, held.validation_score)
        if better:
            best[trial.backbone] = trial
    return list(best.values())
