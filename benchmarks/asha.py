"""Ten backbones with early stopping beside ten full trainings: what it saves, what it costs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from benchmarks.report import Cell, Ratio, Report
from cardioray.config import config
from cardioray.data import cluster
from cardioray.data.pipeline import PrepareConfig, prepare
from cardioray.data.shards import ShardSet
from cardioray.evaluation.intervals import delong_test
from cardioray.evaluation.predictions import check_predictions, per_study, select_split
from cardioray.phantoms.angiogram import PRESETS, write_angiograms
from cardioray.targets import BinaryTarget, RegressionTarget
from cardioray.training.outcome import read_outcome
from cardioray.training.settings import RunConfig
from cardioray.tuning.compare import fit_cluster
from cardioray.tuning.division import divide
from cardioray.tuning.settings import AshaConfig, CompareConfig, select_backbones
from cardioray.tuning.trial import TrialContext
from cardioray.tuning.trials import TrialResult, first_fold

QUESTION = """\
All backbones on one fold, once with ASHA and once each to its end, with the same seed, data and
settings. Compute is the time the workers spent in epochs, validation included; start-up, which
stopping cannot save, is left out. Each winner is the backbone with the best validation AUC; both
are scored on the same test patients of the fold, which took no part in the choice, and compared by
DeLong's paired test."""


@config
class AshaSettings:
    """Size of the run.

    Attributes:
        patients: phantom patients, four frames each.
        preset: of the phantoms.
        image_size: side in px; Inception networks need 75.
        epochs: most epochs a training.
        grace_epochs: epochs every backbone gets.
        reduction_factor: of those that reached a rung, one in this many goes on.
        batch_size: pictures a step.
        backbones: which of the ten.
        seed: of everything.
    """

    patients: int = 160
    preset: str = "clear"
    image_size: int = 80
    epochs: int = 16
    grace_epochs: int = 2
    reduction_factor: float = 4.0
    batch_size: int = 16
    backbones: str = "all"
    seed: int = 7


def run(settings: AshaSettings) -> Report:
    """Run both comparisons and score their winners."""
    with tempfile.TemporaryDirectory(prefix="cr-bench-") as name:
        folder = Path(name)
        run_config = _run_config(settings)
        phantoms = str(folder / "phantoms")
        write_angiograms(
            phantoms, settings.patients, seed=settings.seed, config=PRESETS.get(settings.preset)
        )
        cluster.connect(dashboard=True)
        manifest = run_config.task.read_manifest(phantoms, None)
        shards = prepare(run_config.task, manifest, str(folder / "shards"), PrepareConfig())
        stopped = _first_fold(settings, run_config, shards, str(folder / "asha"), enabled=True)
        full = _first_fold(settings, run_config, shards, str(folder / "full"), enabled=False)
        return _report(settings, run_config.task.targets[0], stopped, full)


def _run_config(settings: AshaSettings) -> RunConfig:
    values = {
        "preprocess": {"image_size": settings.image_size},
        "model": {"pretrained": "none"},
        "train": {
            "epochs": settings.epochs,
            "batch_size": settings.batch_size,
            "learning_rate": 1e-3,
            "seed": settings.seed,
        },
    }
    return RunConfig.build("ffr", values)


def _first_fold(
    settings: AshaSettings, run_config: RunConfig, shards: ShardSet, out: str, *, enabled: bool
) -> list[TrialResult]:
    comparing = CompareConfig(
        backbones=select_backbones(settings.backbones, run_config.task),
        folds=2,
        asha=AshaConfig(
            enabled=enabled,
            grace_epochs=settings.grace_epochs,
            reduction_factor=settings.reduction_factor,
        ),
        seed=settings.seed,
    )
    run_config, concurrent = fit_cluster(run_config, comparing)
    context = TrialContext(
        run=run_config.to_dict(),
        shards_path=shards.path,
        folds=divide(run_config, shards, comparing).folds,
        out=out,
        progress=None,
    )
    stages = context.stages(comparing.backbones)
    return first_fold(context, comparing, stages, concurrent).results


def _winner(trials: Sequence[TrialResult]) -> TrialResult:
    """The best on validation patients; of those that ASHA stopped none can win."""
    return max((t for t in trials if not t.stopped_early), key=lambda t: t.standing)


def _test_patients(trial: TrialResult, target: BinaryTarget | RegressionTarget) -> pd.DataFrame:
    outcome = read_outcome(trial.folder)
    assert outcome is not None
    checked = check_predictions(outcome.predictions(), target)
    return per_study(select_split(checked, "test")).sort_values("study_id")


def _report(
    settings: AshaSettings,
    target: BinaryTarget | RegressionTarget,
    stopped: Sequence[TrialResult],
    full: Sequence[TrialResult],
) -> Report:
    full_of = {trial.backbone: trial for trial in full}
    rows: list[dict[str, Cell]] = [
        {
            "backbone": trial.backbone,
            "epochs": trial.epochs,
            "seconds": trial.seconds,
            "validation": trial.validation_score,
            "full_epochs": full_of[trial.backbone].epochs,
            "full_seconds": full_of[trial.backbone].seconds,
            "full_validation": full_of[trial.backbone].validation_score,
        }
        for trial in stopped
    ]
    share = sum(trial.seconds for trial in stopped) / sum(trial.seconds for trial in full)
    ours, best = _winner(stopped), _winner(full)
    own_scores, best_scores = _test_patients(ours, target), _test_patients(best, target)
    assert (own_scores["study_id"].to_numpy() == best_scores["study_id"].to_numpy()).all()
    paired = delong_test(own_scores["label"], own_scores["score"], best_scores["score"])
    return Report(
        name="asha",
        title="Comparison: early stopping beside ten full trainings",
        question=QUESTION,
        columns={
            "backbone": "backbone",
            "epochs": "epochs, ASHA",
            "seconds": "compute s, ASHA",
            "validation": "validation AUC, ASHA",
            "full_epochs": "epochs, full",
            "full_seconds": "compute s, full",
            "full_validation": "validation AUC, full",
        },
        rows=rows,
        ratios=[
            Ratio(
                name="compute with ASHA / compute of full trainings", value=share, goal="<= 0.35"
            ),
            Ratio(
                name=f"test AUC of ASHA's winner {ours.backbone} minus that of the full winner "
                f"{best.backbone}",
                value=paired.difference.value,
            ),
            Ratio(
                name="paired p-value of that difference (not significantly worse from 0.05 on)",
                value=paired.p_value,
                goal=None if paired.difference.value > 0 else ">= 0.05",
            ),
        ],
        settings=asdict(settings) | {"test_patients": len(own_scores)},
    )
