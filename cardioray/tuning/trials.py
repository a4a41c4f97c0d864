"""Many trials under Ray Tune: every backbone on the first fold, survivors on the others."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import optuna
import pandas as pd
import torch
from ray import tune
from ray.train import Result
from ray.tune import FailureConfig, ResultGrid, TuneConfig, Tuner
from ray.tune import RunConfig as TuneRunConfig
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from torch import Tensor

from cardioray import config, storage
from cardioray.data.shards import ShardIndex, ShardSet
from cardioray.models.cost import count_gflops
from cardioray.scratch import remove_abandoned
from cardioray.tasks.base import STANDING
from cardioray.training.outcome import TIMING, read_outcome
from cardioray.training.progress import DONE, FAILED, STARTING, STOPPED, WAITING
from cardioray.training.settings import RunConfig, StageConfig
from cardioray.training.state import RECORD, Progress, parse_progress
from cardioray.tuning.settings import AshaConfig, CompareConfig, SearchConfig
from cardioray.tuning.trial import (
    TrialContext,
    asked_settings,
    name_of,
    overrides_of,
    run_trial,
    trial_name,
)

log = logging.getLogger(__name__)


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
        seconds: time of these epochs, validation included.
        folder: the run's folder.
        checkpoint: folder of the last checkpoint of a stopped trial, within `folder`, or None.
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


@dataclass(frozen=True, kw_only=True)
class TrialFailure:
    """A trial that ended with an error, and its retry, too.

    Attributes:
        backbone: name.
        fold: number of the fold.
        name: of the trial.
        reason: the last line of the error.
    """

    backbone: str
    fold: int
    name: str
    reason: str


@dataclass(frozen=True)
class Round:
    """What a number of trials gave."""

    results: list[TrialResult]
    failures: list[TrialFailure]


def asha_scheduler(settings: AshaConfig, stages: Sequence[int]) -> ASHAScheduler | None:
    """The scheduler that stops weak trials before the last of their epochs.

    The grace is counted from the beginning of the last stage: while a backbone is frozen, it is not
    yet known what it can learn. The last epoch is no place to stop: what is left after it is to
    score and keep the model.

    Args:
        settings: grace and share.
        stages: most epochs of each stage of the shortest run.

    Returns:
        None where the grace lasts as long as the training.
    """
    grace = sum(stages[:-1]) + settings.grace_epochs
    if grace >= sum(stages):
        return None
    return ASHAScheduler(
        # Tune's own count of reports begins anew when a trial is taken up again.
        time_attr="epoch",
        max_t=sum(stages) - 1,
        grace_period=grace,
        reduction_factor=settings.reduction_factor,
        stop_last_trials=False,
    )


def first_fold(
    context: TrialContext, settings: CompareConfig, stages: Sequence[StageConfig], concurrent: int
) -> Round:
    """Every backbone on the first fold, the weak ones stopped.

    Args:
        context: what all trials share.
        settings: backbones, stopping, search.
        stages: those of the shortest run.
        concurrent: trials at a time.
    """
    scheduler = None
    if settings.asha.enabled:
        scheduler = asha_scheduler(settings.asha, [stage.epochs for stage in stages])
    search = settings.search
    candidates = list(settings.candidates)
    backbones = cheapest_first(context, candidates)
    space: dict[str, Any] = {"backbone": tune.grid_search(backbones), "fold": 0}
    algorithm, samples = None, 1
    if search.num_samples:
        # That it keeps its draws in memory is no news; a resumed search reads them from Tune's.
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        algorithm = OptunaSearch(
            OptunaSearch.convert_search_space(
                _space(search, context, candidates, stages[-1].learning_rate)
            ),
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
    found = _collect(results, context)
    return Round(_best_of_each(found.results), found.failures)


def cheapest_first(context: TrialContext, backbones: Sequence[str]) -> list[str]:
    """Backbones by the arithmetic of one sample.

    Stopping compares with those that came before, so that the first ones always go on and the last
    ones have the most to compare with: the cheap set the standard, the costly have to beat it.
    """
    index = ShardSet.open(context.shards_path).index

    def gflops(name: str) -> float:
        run = context.trial(name, ())
        with torch.device("meta"):
            return count_gflops(run.task.build_model().eval(), example_inputs(run, index))

    return sorted(backbones, key=gflops)


def example_inputs(run: RunConfig, index: ShardIndex) -> tuple[Tensor, ...]:
    """One black sample of a task's shapes, on the device in force."""
    shapes = run.task.input_shapes(index.columns)
    return tuple(torch.zeros((1, *shapes[name]), dtype=torch.uint8) for name in run.task.columns)


def other_folds(
    context: TrialContext,
    survivors: Sequence[TrialResult],
    num_folds: int,
    concurrent: int,
) -> Round:
    """The survivors on every other fold, to the end."""
    wanted: list[dict[str, Any]] = [
        {"backbone": trial.backbone, "fold": fold, "overrides": trial.overrides}
        for fold in range(1, num_folds)
        for trial in survivors
    ]
    if not wanted:
        return Round([], [])
    context.tell(
        "other folds", [trial_name(w["backbone"], w["fold"], w["overrides"]) for w in wanted]
    )
    results = _tune(
        context,
        # Others may survive when trials that failed are tried again.
        f"other_folds-{config.digest(wanted, 6)}",
        {"trial": tune.grid_search(wanted)},
        TuneConfig(
            metric=STANDING, mode="max", reuse_actors=True, max_concurrent_trials=concurrent
        ),
    )
    return _collect(results, context)


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


def _space(
    search: SearchConfig, context: TrialContext, backbones: Sequence[str], rate: float
) -> dict[str, Any]:
    """What is drawn from, settings by their keys; `rate` is the recipe's learning rate."""
    drawn: dict[str, Any] = {
        "dropout": tune.uniform(*search.dropout),
        # As text: Optuna keeps choices in a database, and warns of others.
        "hidden": tune.choice([str(list(widths)) for widths in search.hidden]),
        "rotation_degrees": tune.uniform(*search.rotation_degrees),
        "contrast": tune.uniform(*search.contrast),
    }
    keys = context.trial(backbones[0], ()).task.searched
    return {
        "backbone": tune.choice(list(backbones)),
        "train.learning_rate": tune.loguniform(*search.learning_rates(rate)),
        **{keys[name]: domain for name, domain in drawn.items() if name in keys},
    }


def _collect(results: ResultGrid, context: TrialContext) -> Round:
    """Read what trials left."""
    found = Round([], [])
    for result in results:
        if result.error is None:
            found.results.append(_trial_result(result, context))
            continue
        asked = asked_settings(result.config)
        found.failures.append(
            TrialFailure(
                backbone=asked["backbone"],
                fold=asked["fold"],
                name=name_of(result.config),
                reason=_reason(result.error),
            )
        )
    return found


def _reason(error: Exception) -> str:
    """The last line that says something; before it stand the traces of other processes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _trial_result(result: Any, context: TrialContext) -> TrialResult:
    asked = asked_settings(result.config)
    folder = storage.join(context.out, name_of(result.config))
    outcome = read_outcome(folder)
    checkpoint = None
    if outcome is not None:
        score, standing, epochs = outcome.best, outcome.standing, outcome.epochs
        for note in outcome.notes:
            log.warning("%s: %s", name_of(result.config), note)
    else:
        checkpoint, progress = _last_checkpoint(folder)
        assert progress.best is not None
        assert progress.standing is not None
        score, standing, epochs = progress.best, progress.standing, progress.epoch
    timing = pd.read_csv(io.BytesIO(storage.read_bytes(storage.join(folder, TIMING))))
    return TrialResult(
        backbone=asked["backbone"],
        fold=asked["fold"],
        overrides=overrides_of(asked),
        stopped_early=outcome is None,
        validation_score=score,
        standing=standing,
        epochs=epochs,
        seconds=float(timing["epoch_seconds"].iloc[:epochs].sum()),
        folder=folder,
        checkpoint=checkpoint,
    )


def _last_checkpoint(folder: str) -> tuple[str, Progress]:
    """The last complete checkpoint of a stopped run, and what it knows.

    Until Tune's word arrived the run went on, and may have replaced the checkpoint of the epoch at
    which it was stopped.
    """
    filesystem, path = storage.filesystem(folder)
    checkpoint = Result.from_path(path, storage_filesystem=filesystem).checkpoint
    assert checkpoint is not None  # every epoch leaves one
    name = PurePosixPath(checkpoint.path).name
    record = storage.read_bytes(storage.join(folder, name, RECORD))
    return name, parse_progress(record)


def _best_of_each(trials: Sequence[TrialResult]) -> list[TrialResult]:
    """Of several searched settings of a backbone the best; finished ones before stopped ones."""
    best: dict[str, TrialResult] = {}
    for trial in trials:
        held = best.get(trial.backbone)
        if held is None or _place(trial) > _place(held):
            best[trial.backbone] = trial
    return list(best.values())


def choose_survivors(
    trials: Sequence[TrialResult], asha: AshaConfig, refits: int = 1
) -> list[TrialResult]:
    """Those that the other folds are for: the best of all that came to the end of the first.

    Args:
        trials: one of each backbone.
        asha: which share of them goes on.
        refits: how many are wanted at least, since each will be made a bundle.
    """
    finished = [trial for trial in trials if not trial.stopped_early]
    number = max(asha.survivors(len(trials)), refits)
    return sorted(finished, key=_place, reverse=True)[:number]


def _place(trial: TrialResult) -> tuple[bool, float]:
    return not trial.stopped_early, trial.standing
