"""Many trials under Ray Tune: every backbone on the first fold, survivors on the others."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import optuna
from ray import tune
from ray.tune import FailureConfig, ResultGrid, TuneConfig, Tuner
from ray.tune import RunConfig as TuneRunConfig
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from cardioray import config, storage
from cardioray.models.backbones import backbone_info
from cardioray.scratch import remove_abandoned
from cardioray.tasks.base import STANDING, Monitor
from cardioray.training.outcome import read_outcome
from cardioray.training.progress import DONE, FAILED, STARTING, STOPPED, WAITING
from cardioray.tuning.settings import AshaConfig, CompareConfig, SearchConfig
from cardioray.tuning.trial import (
    TrialContext,
    asked_settings,
    name_of,
    overrides_of,
    run_trial,
    trial_name,
)


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What one backbone did on one fold.

    Attributes:
        backbone: name.
        fold: number of the fold.
        overrides: settings the search chose for it, as `section.key=value`.
        stopped_early: ASHA stopped it.
        validation_score: best monitored figure on validation patients.
        standing: what it is compared by (`Monitor.standing`); more is better.
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
    standing: float
    epochs: int
    seconds: float
    folder: str
    checkpoint: str | None


def asha_scheduler(settings: AshaConfig, epochs: int) -> ASHAScheduler | None:
    """The scheduler that stops weak trials before the last of their epochs.

    The last epoch is no place to stop: what is left after it is to score and keep the model.

    Returns:
        None where the grace lasts as long as the training.
    """
    if settings.grace_epochs >= epochs:
        return None
    return ASHAScheduler(
        time_attr="training_iteration",
        max_t=epochs - 1,
        grace_period=settings.grace_epochs,
        reduction_factor=settings.reduction_factor,
        stop_last_trials=False,
    )


def first_fold(
    context: TrialContext, settings: CompareConfig, monitor: Monitor, concurrent: int
) -> list[TrialResult]:
    """Every backbone on the first fold, the weak ones stopped."""
    scheduler = None
    if settings.asha.enabled:
        scheduler = asha_scheduler(settings.asha, context.fewest_epochs(settings.backbones))
    search = settings.search
    backbones = _in_order(settings.backbones, concurrent)
    space: dict[str, Any] = {"backbone": tune.grid_search(backbones), "fold": 0}
    algorithm, samples = None, 1
    if search.num_samples:
        # That it keeps its draws in memory is no news; a resumed search reads them from Tune's.
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        algorithm = OptunaSearch(
            OptunaSearch.convert_search_space(_space(search, settings.backbones)),
            metric=STANDING,
            mode="max",
            seed=settings.seed,
        )
        space, samples = {"fold": 0}, search.num_samples
    if not search.num_samples:  # what a search will draw is not known beforehand
        context.tell("first fold", [trial_name(name, 0, ()) for name in backbones])
    else:
        context.tell(f"{search.num_samples} draws on the first fold")
    results = _tune(
        context,
        "first_fold",
        space,
        TuneConfig(
            metric=STANDING,
            mode="max",
            reuse_actors=True,
            scheduler=scheduler,
            search_alg=algorithm,
            num_samples=samples,
            max_concurrent_trials=concurrent,
        ),
    )
    return _best_of_each(_collect(results, context, monitor))


def _in_order(backbones: Sequence[str], concurrent: int) -> list[str]:
    """The smallest set the standard, then from the largest down.

    Stopping compares with those that came before, and the very first ones always go on. The
    largest of the others come first, so that none of them is left to run alone in the end.
    """
    ordered = sorted(backbones, key=lambda name: backbone_info(name).parameters_millions)
    return ordered[:concurrent] + ordered[concurrent:][::-1]


def other_folds(
    context: TrialContext,
    survivors: Sequence[TrialResult],
    num_folds: int,
    concurrent: int,
    monitor: Monitor,
) -> list[TrialResult]:
    """The survivors on every other fold, to the end."""
    wanted: list[dict[str, Any]] = [
        {"backbone": trial.backbone, "fold": fold, "overrides": trial.overrides}
        for fold in range(1, num_folds)
        for trial in survivors
    ]
    if not wanted:
        return []
    context.tell(
        "other folds", [trial_name(w["backbone"], w["fold"], w["overrides"]) for w in wanted]
    )
    results = _tune(
        context,
        "other_folds",
        {"trial": tune.grid_search(wanted)},
        TuneConfig(
            metric=STANDING, mode="max", reuse_actors=True, max_concurrent_trials=concurrent
        ),
    )
    return _collect(results, context, monitor)


def _tune(
    context: TrialContext, name: str, space: dict[str, Any], tune_config: TuneConfig
) -> ResultGrid:
    """Run trials, or go on with those of a driver that was killed.

    Raises:
        KeyboardInterrupt: when the user stopped it; the next call goes on.
    """
    # Tune's first output engine is silent at verbosity 0; the second prints all the same.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Tune's own answer to Ctrl-C is to return, as though the trials had ended.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    trainable = tune.with_resources(tune.with_parameters(run_trial, context=context), {"cpu": 0.01})
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
                callbacks=[_Watch()],
                verbose=0,
            ),
        )
    watched = _Watched(context, {})
    _WATCHED.set(watched)
    try:
        results = tuner.fit()
    finally:
        remove_abandoned()
    if watched.unfinished:  # SIGUSR1 makes Tune return early, too
        raise KeyboardInterrupt
    return results


@dataclass
class _Watched:
    """The trials of the `fit` that runs in this process.

    Tune brings a callback back from a file when it resumes; what belongs to this process, above
    all the board, is therefore kept here and not in the callback.
    """

    context: TrialContext
    statuses: dict[str, str]

    def note(self, trial: Trial) -> None:
        """Tell the board where Tune has begun or ended a trial."""
        name = name_of(trial.config)
        before = self.statuses.get(name)
        self.statuses[name] = trial.status
        if trial.status == before or self.context.progress is None:
            return
        told: dict[str, Any] = {"status": _STATUS_WORDS.get(trial.status, WAITING)}
        if trial.status == Trial.TERMINATED:
            outcome = read_outcome(storage.join(self.context.out, name))
            told = {"status": STOPPED}
            if outcome is not None:
                told = {"status": DONE, "best": outcome.best}
        self.context.progress.update.remote(name, told)

    @property
    def unfinished(self) -> list[str]:
        """Trials that neither ended nor failed."""
        ended = (Trial.TERMINATED, Trial.ERROR)
        return [name for name, status in self.statuses.items() if status not in ended]


_WATCHED: ContextVar[_Watched] = ContextVar("watched")
_STATUS_WORDS = {Trial.RUNNING: STARTING, Trial.ERROR: FAILED}


class _Watch(tune.Callback):  # type: ignore[misc]
    """Looks at all trials after every step of Tune."""

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Called by Tune."""
        for trial in trials:
            _WATCHED.get().note(trial)


def _space(search: SearchConfig, backbones: Sequence[str]) -> dict[str, Any]:
    return {
        "backbone": tune.choice(list(backbones)),
        "learning_rate": tune.loguniform(*search.learning_rate),
        "dropout": tune.uniform(*search.dropout),
        # As text: Optuna keeps choices in a database, and warns of others.
        "hidden": tune.choice([str(list(widths)) for widths in search.hidden]),
        "rotation_degrees": tune.uniform(*search.rotation_degrees),
        "contrast": tune.uniform(*search.contrast),
    }


def _collect(results: ResultGrid, context: TrialContext, monitor: Monitor) -> list[TrialResult]:
    """Read what trials left.

    Raises:
        RuntimeError: when trials failed; names them and the first reason.
    """
    if results.errors:
        failed = [result for result in results if result.error]
        names = sorted(str(asked_settings(result.config)["backbone"]) for result in failed)
        raise config.Failed(
            f"{len(failed)} trials failed ({', '.join(names)}); the same command resumes. First "
            f"error: {failed[0].error}"
        )
    return [_trial_result(result, context, monitor) for result in results]


def _trial_result(result: Any, context: TrialContext, monitor: Monitor) -> TrialResult:
    asked = asked_settings(result.config)
    overrides = overrides_of(asked)
    folder = storage.join(context.out, name_of(result.config))
    outcome = read_outcome(folder)
    metrics = result.metrics or {}
    if outcome is not None:
        score, standing, epochs = outcome.best, outcome.standing, outcome.epochs
    else:
        reported = result.metrics_dataframe
        best = reported.loc[reported[STANDING].fillna(-math.inf).idxmax()]
        score, standing = float(best[monitor.name]), float(best[STANDING])
        epochs = int(metrics["training_iteration"])
    return TrialResult(
        backbone=asked["backbone"],
        fold=asked["fold"],
        overrides=overrides,
        stopped_early=outcome is None,
        validation_score=score,
        standing=standing,
        epochs=epochs,
        seconds=float(metrics.get("time_total_s", 0.0)),
        folder=folder,
        checkpoint=None if outcome else metrics["checkpoint_path"],
    )


def _best_of_each(trials: Sequence[TrialResult]) -> list[TrialResult]:
    """Of several searched settings of a backbone the best; finished ones before stopped ones."""
    best: dict[str, TrialResult] = {}
    for trial in trials:
        held = best.get(trial.backbone)
        if held is None or _place(trial) > _place(held):
            best[trial.backbone] = trial
    return list(best.values())


def choose_survivors(trials: Sequence[TrialResult], asha: AshaConfig) -> list[TrialResult]:
    """Those that the other folds are for: the best of all that came to the end of the first."""
    finished = [trial for trial in trials if not trial.stopped_early]
    return sorted(finished, key=_place, reverse=True)[: asha.survivors(len(trials))]


def _place(trial: TrialResult) -> tuple[bool, float]:
    return not trial.stopped_early, trial.standing
