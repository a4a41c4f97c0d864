"""Comparing backbones: ASHA on the first fold, survivors on all folds, the best made bundles.

The test patients of the final models take no part in any fold, so that nothing about them enters
the choice of the winner. Where there are none (`split.test=0`), the figures of a bundle are those
of the folds.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from ray.actor import ActorHandle

from cardioray import config, storage
from cardioray.bundle import SUMS, Bundle, open_bundle
from cardioray.data import cluster
from cardioray.data.shards import ShardSet
from cardioray.evaluation import plots
from cardioray.evaluation.leaderboard import Leaderboard, LeaderboardEntry, build_leaderboard
from cardioray.evaluation.leaderboard_page import Picture
from cardioray.models.cost import ModelCost, measure_cost
from cardioray.models.runtime import use_bf16
from cardioray.scratch import process_folder
from cardioray.targets import BinaryTarget, RegressionTarget
from cardioray.tasks.base import Tables
from cardioray.training.outcome import LOG, WEIGHTS_CACHE, read_outcome
from cardioray.training.pictures import prediction_picture
from cardioray.training.progress import Shown, shown_progress
from cardioray.training.resources import (
    cpus_per_worker,
    gpus_per_worker,
    threads_per_worker,
)
from cardioray.training.run import check_data, make_plan, train
from cardioray.training.scoring import score_plan
from cardioray.training.settings import RunConfig, ScaleConfig
from cardioray.training.single import bundle_of_run, require_patients, require_scored
from cardioray.training.state import read_best_weights
from cardioray.tuning.division import divide
from cardioray.tuning.settings import CompareConfig
from cardioray.tuning.trial import TrialContext
from cardioray.tuning.trials import (
    Round,
    TrialFailure,
    TrialResult,
    choose_survivors,
    example_inputs,
    first_fold,
    other_folds,
)

log = logging.getLogger(__name__)

RECORD = "compare.json"
TRIALS = "trials"
FINAL = "final"
BUNDLES = "bundles"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A finished comparison.

    Attributes:
        out: folder or prefix with leaderboard, plots, trials and bundles.
        leaderboard: all backbones.
        bundles: the refitted best, the winner first.
    """

    out: str
    leaderboard: Leaderboard
    bundles: tuple[Bundle, ...]


def compare(
    run: RunConfig,
    shards: ShardSet,
    settings: CompareConfig,
    out: str,
    *,
    shown: Shown | None = None,
) -> Comparison:
    """Compare backbones and make bundles of the best.

    The same call after a kill goes on; after a finished comparison it trains nothing. A backbone
    whose trial fails twice is left out and named; the same call tries it again.

    Args:
        run: settings every backbone is trained with.
        shards: prepared data.
        settings: backbones, grid, folds, stopping, search.
        out: folder or prefix for everything the comparison leaves.
        shown: how progress is shown; None for not at all.

    Raises:
        ValueError: for settings that cannot work, or a folder of another comparison.
        Failed: when no backbone came to its end; the same call resumes.
    """
    if settings.asha.enabled and run.train.checkpoint_every > 1:
        raise ValueError(
            "ASHA needs train.checkpoint_every=1, since a trial that it stops is scored from the "
            f"checkpoint of its last epoch; it is {run.train.checkpoint_every}. Or pass --no-asha."
        )
    for name in settings.backbones:
        run.task.backbones(name)
    cluster.connect(dashboard=True)
    out = storage.absolute(out)
    cluster.require_shared(out, run.scale.shared_storage)
    asked = run.scale
    run = dataclasses.replace(run, task=run.task.suited(shards.samples))
    run, concurrent = fit_cluster(run, settings)
    with shown_progress(shown) as board:
        return Comparing(run, asked, shards, settings, out, concurrent, board).run_all()


def fit_cluster(run: RunConfig, settings: CompareConfig) -> tuple[RunConfig, int]:
    """How many trials run at a time on the connected cluster, and what their workers take.

    Trials are not to hold every CPU: Ray Data reads beside them, and drivers and controllers need
    a little. A cluster that starts nodes on demand takes all trials at once, unless
    `max_concurrent` says otherwise.

    Raises:
        ValueError: when not even one trial fits.
    """
    scale, offered = run.scale, cluster.capacity()
    gpus = gpus_per_worker(scale, offered)
    limits = [len(settings.candidates) * settings.folds]
    if settings.max_concurrent != "auto":
        limits.append(settings.max_concurrent)
    if not offered.grows:
        room = offered.cpus
        if scale.cpus_per_worker != "auto":
            room = 0.9 * offered.cpus / scale.cpus_per_worker
        limits.append(int(room / scale.workers))
        if gpus:
            limits.append(offered.places(0, gpus) // scale.workers)
    concurrent = min(limits)
    if concurrent < 1:
        raise ValueError(
            f"a trial of {scale.workers} workers with {gpus:g} GPU and {scale.cpus_per_worker} CPU "
            f"each does not fit this cluster ({offered.cpus:g} CPU, {offered.gpus:g} GPU); lower "
            "scale.workers, scale.gpus_per_worker or scale.cpus_per_worker."
        )
    fitted = dataclasses.replace(
        scale,
        cpus_per_worker=cpus_per_worker(scale, offered, concurrent),
        gpus_per_worker=gpus,
        threads_per_worker=threads_per_worker(scale, offered, concurrent),
    )
    return dataclasses.replace(run, scale=fitted), concurrent


@dataclass
class Comparing:
    """One comparison while it runs."""

    run: RunConfig
    asked: ScaleConfig
    shards: ShardSet
    settings: CompareConfig
    out: str
    concurrent: int
    board: ActorHandle[Any] | None

    def __post_init__(self) -> None:
        self.division = divide(self.run, self.shards, self.settings)
        self.context = TrialContext(
            run=self.run.to_dict(),
            shards_path=self.shards.path,
            folds=self.division.folds,
            out=storage.join(self.out, TRIALS),
            progress=self.board,
            candidates=self.settings.candidates,
        )

    def run_all(self) -> Comparison:
        """Trials, leaderboard and bundles."""
        trials, failed = self.trials()
        self.context.tell("scoring, and measuring what each backbone costs")
        entries = [self.entry(name, own) for name, own in by_backbone(trials).items()]
        ranked = dataclasses.replace(
            self.leaderboard(entries, self.run.task.targets[0]), failed=failed
        )
        bundles = {}
        for name in self.chosen(ranked):
            bundles[name] = self.refit(name, by_backbone(trials)[name], ranked)
        self.context.tell("writing the leaderboard")
        leaderboard = ranked.with_bundles({name: f"{BUNDLES}/{name}" for name in bundles})
        leaderboard.write(self.out, self._pictures(leaderboard, trials))
        return Comparison(out=self.out, leaderboard=leaderboard, bundles=tuple(bundles.values()))

    # Trials

    def trials(self) -> tuple[list[TrialResult], dict[str, str]]:
        """All trials, from the record of a finished comparison or by running them.

        Returns:
            The trials of all backbones but those that failed; and why these did.
        """
        request = trials_digest(
            self.run, self.settings, self.shards.index.dataset_hash, self.division.folds
        )
        path = storage.join(self.out, RECORD)
        if storage.exists(path):
            record = json.loads(storage.read_bytes(path))
            if record["request"] != request:
                raise ValueError(
                    f"{self.out} holds a comparison of other settings or data; give another --out."
                )
            if record["trials"] is not None:
                return [TrialResult(**trial) for trial in record["trials"]], {}
        self._check()
        self._write_record(request, None)
        stages = self.context.stages(list(self.settings.candidates))
        first = first_fold(self.context, self.settings, stages, self.concurrent)
        survivors = choose_survivors(first.results, self.settings.asha, self.settings.refits)
        others = other_folds(self.context, survivors, self.settings.folds, self.concurrent)
        failed = _failed_backbones(first, others)
        trials = [t for t in first.results + others.results if t.backbone not in failed]
        if not any(len(own) == self.settings.folds for own in by_backbone(trials).values()):
            raise config.Failed(_all_failed(first.failures + others.failures))
        for name, reason in failed.items():
            log.warning("%s failed and is left out; the same command tries again: %s", name, reason)
        if not failed:
            self._write_record(request, trials)
        return trials, failed

    def _check(self) -> None:
        """Refuse before anything is trained what every trial, or a bundle, would refuse."""
        fitted_on = "calibration" if self.division.calibration == "held-out" else None
        final = self.division.final
        if (final == "test").any():
            require_patients(self.run.task, self.shards.samples, final, fitted_on)
        else:
            require_scored(self.run.task, self.shards.samples)
        for name in self.settings.candidates:
            run = self.context.trial(name, ())
            for split in (*self.division.folds, final):
                check_data(run, self.shards, split)

    def _write_record(self, request: str, trials: Sequence[TrialResult] | None) -> None:
        record = {
            "request": request,
            "settings": config.to_dict(self.settings),
            "run": self.run.to_dict(),
            "trials": None if trials is None else [asdict(trial) for trial in trials],
        }
        storage.write_bytes(storage.join(self.out, RECORD), json.dumps(record, indent=2).encode())

    # The leaderboard

    def entry(self, name: str, trials: Sequence[TrialResult]) -> LeaderboardEntry:
        """What a leaderboard knows of a candidate that has done its folds."""
        cost = self._cost(trials[0])
        return LeaderboardEntry(
            name=name,
            predictions=Tables.joined([self._tables(trial) for trial in trials]).predictions,
            validation_score=float(np.mean([trial.validation_score for trial in trials])),
            standing=float(np.mean([trial.standing for trial in trials])),
            # By ASHA, or because better ones came to the end of the first fold.
            stopped_early=len(trials) < self.settings.folds,
            epochs=sum(trial.epochs for trial in trials),
            folds=len(trials),
            parameters_millions=cost.parameters_millions,
            gflops=cost.gflops,
            train_seconds=sum(trial.seconds for trial in trials),
            latency_ms=cost.latency_ms,
        )

    def _tables(self, trial: TrialResult) -> Tables:
        """What a fold's network says; a stopped trial is scored from its last checkpoint."""
        outcome = read_outcome(trial.folder)
        tables = outcome.tables() if outcome is not None else self._scored(trial)
        parts = None if tables.parts is None else tables.parts.assign(fold=trial.fold)
        return Tables(tables.predictions.assign(fold=trial.fold), parts)

    def _scored(self, trial: TrialResult) -> Tables:
        assert trial.checkpoint is not None
        run = self.context.trial(trial.backbone, trial.overrides)
        plan = make_plan(
            run,
            self.shards,
            self.division.folds[trial.fold],
            trial.folder,
            storage.join(self.context.out, WEIGHTS_CACHE),
            None,
            trial.backbone,
        )
        checkpoint = storage.join(trial.folder, trial.checkpoint)
        with tempfile.TemporaryDirectory(dir=process_folder()) as scratch:
            storage.copy_folder(checkpoint, scratch)
            weights = read_best_weights(Path(scratch))
        return score_plan(plan, weights)

    def _cost(self, trial: TrialResult) -> ModelCost:
        run = self.context.trial(trial.backbone, trial.overrides)
        bf16 = use_bf16(run.train.precision, torch.device("cpu"))
        return measure_cost(
            run.task.build_model(), example_inputs(run, self.shards.index), bf16=bf16
        )

    def leaderboard(
        self, entries: Sequence[LeaderboardEntry], target: BinaryTarget | RegressionTarget
    ) -> Leaderboard:
        """The candidates in the order of their validation score."""
        operating = self.run.task.operating
        return build_leaderboard(
            entries,
            target,
            validation_metric=self.run.task.monitor.name.removeprefix("val_"),
            rule=operating.rule,
            calibration=operating.calibration,
            alpha=operating.alpha,
            seed=self.settings.seed,
        )

    # The final models

    def chosen(self, ranked: Leaderboard) -> list[str]:
        """The best, as many as wanted, of those that did all folds.

        The operating point of a final model may come from what its folds' models say: models that
        were given up after a few epochs would set one that is not its own.
        """
        names = [row.entry.name for row in ranked.rows if not row.entry.stopped_early]
        if len(names) < self.settings.refits:
            log.warning(
                "%d backbones did all folds, and become bundles; %d were asked for.",
                len(names),
                self.settings.refits,
            )
        return names[: self.settings.refits]

    def refit(self, name: str, trials: Sequence[TrialResult], ranked: Leaderboard) -> Bundle:
        """Train once more, on development patients only, and score the held-out test patients."""
        out = storage.join(self.out, BUNDLES, name)
        if storage.exists(storage.join(out, SUMS)):
            return open_bundle(out)
        # It has the cluster to itself, which the trials shared.
        run = self.context.trial(name, trials[0].overrides)
        run = dataclasses.replace(run, scale=self.asked)
        final = self.division.final
        folder = storage.join(self.out, FINAL)
        self.context.tell(f"final training of {name}", [name])
        outcome = train(run, self.shards, final, folder, name=name, progress=self.board)
        row = next(row for row in ranked.rows if row.entry.name == name)
        out_of_fold = row.entry.predictions
        self.context.tell(f"bundle of {name}")
        # Without calibration patients of its own, the operating point comes from predictions made
        # out of fold: of patients the models had not seen, none of them a final test patient.
        crossed = out_of_fold[out_of_fold["split"] == "test"]
        cross_validated = None
        if not (final == "test").any():
            cross_validated = Tables.joined([self._tables(trial) for trial in trials]).of("test")
        return bundle_of_run(
            run,
            self.shards,
            final,
            outcome,
            out,
            name=name,
            calibration_predictions=None if self.division.calibration == "held-out" else crossed,
            cross_validated=cross_validated,
            comparison=row.to_dict(),
        )

    def _pictures(self, leaderboard: Leaderboard, trials: Sequence[TrialResult]) -> list[Picture]:
        """Predictions of every backbone, and learning curves of its first fold."""
        pictures = []
        target = self.run.task.targets[0]
        for row in leaderboard.rows:
            if not isinstance(target, BinaryTarget):
                break
            name = row.entry.name
            figure = prediction_picture(
                row.frames, self.shards, self.run.task, target, seed=self.settings.seed
            )
            title = f"{name}: predictions of pictures drawn by chance"
            png = plots.png_bytes(figure)
            pictures.append(Picture("Predictions, out of fold", title, f"predictions_{name}", png))
        for trial in trials:
            log = storage.join(trial.folder, LOG)
            if trial.fold == 0 and storage.exists(log):
                curves = plots.learning_curves(pd.read_csv(io.BytesIO(storage.read_bytes(log))))
                name = trial.backbone
                title = f"{name}: learning curves" + ", stopped early" * trial.stopped_early
                png = plots.png_bytes(curves)
                pictures.append(Picture("Training, first fold", title, f"learning_{name}", png))
        return pictures


def out_of_fold(place: str) -> pd.DataFrame:
    """What the winner of a finished comparison says of the test patients of its folds.

    Args:
        place: folder or prefix of the comparison.

    Raises:
        ValueError: when it has not come to its end.
    """
    record = json.loads(storage.read_bytes(storage.join(place, RECORD)))
    board = storage.join(place, "leaderboard.json")
    if record["trials"] is None or not storage.exists(board):
        raise ValueError(f"{place} holds a comparison that is not finished; run it to its end.")
    winner = json.loads(storage.read_bytes(board))["winner"]
    tables = []
    for trial in (TrialResult(**each) for each in record["trials"]):
        if trial.backbone != winner:
            continue
        # By its name: the comparison may have been moved.
        folder = storage.join(place, TRIALS, trial.folder.rstrip("/").rsplit("/", 1)[-1])
        outcome = read_outcome(folder)
        if outcome is None:
            raise ValueError(f"{folder} has no predictions; run the comparison to its end.")
        tables.append(outcome.tables().predictions.assign(fold=trial.fold))
    return pd.concat(tables, ignore_index=True)


def trials_digest(
    run: RunConfig, settings: CompareConfig, dataset_hash: str, folds: Sequence[pd.Series[str]]
) -> str:
    """A hash of everything that changes what trials compute, and of nothing else.

    Another number of refits, of trials at a time or of restarts goes on with the trials that are
    there.
    """
    searching = config.to_dict(settings)
    for name in ("refits", "max_concurrent"):
        del searching[name]
    return config.digest(
        [
            run.decisive(),
            searching,
            dataset_hash,
            [int(pd.util.hash_pandas_object(fold).sum()) for fold in folds],
        ]
    )


def _failed_backbones(first: Round, others: Round) -> dict[str, str]:
    """Why backbones cannot be ranked; of several draws of a search one is enough."""
    found = {trial.backbone for trial in first.results}
    failures = [failure for failure in first.failures if failure.backbone not in found]
    for failure in first.failures:
        if failure.backbone in found:
            log.warning("%s failed, and other draws of it count: %s", failure.name, failure.reason)
    return {failure.backbone: failure.reason for failure in failures + others.failures}


def _all_failed(failures: Sequence[TrialFailure]) -> str:
    shown = "\n".join(f"  {failure.name}: {failure.reason}" for failure in failures[:10])
    return f"no backbone came to its end; the same command tries again. What failed:\n{shown}"


def by_backbone(trials: Sequence[TrialResult]) -> dict[str, list[TrialResult]]:
    """Trials of each backbone, first fold first."""
    grouped: dict[str, list[TrialResult]] = {}
    for trial in sorted(trials, key=lambda trial: trial.fold):
        grouped.setdefault(trial.backbone, []).append(trial)
    return grouped
