"""Comparing backbones: division of patients, stopping, resuming, bundles, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import tiny_training as tiny
from drivers import driver, interrupted

import cardioray
from cardioray.bundle import open_bundle
from cardioray.data.shards import ShardSet
from cardioray.model_store import ranked_bundles
from cardioray.training.settings import RunConfig
from cardioray.tuning.compare import Comparison, compare, fit_cluster, out_of_fold
from cardioray.tuning.division import divide
from cardioray.tuning.settings import AshaConfig, CompareConfig, SearchConfig

pytestmark = [pytest.mark.ray, pytest.mark.slow]

BACKBONES = ("test_resnet", "resnet14t")
# With this seed, the search draws the backbones in turn.
SETTINGS = CompareConfig(
    backbones=BACKBONES,
    folds=2,
    asha=AshaConfig(grace_epochs=1, reduction_factor=8),
    search=SearchConfig(num_samples=2, learning_rate=(1e-3, 2e-3)),
    seed=4,
)

DRIVER = """
import sys
import test_tuning as here
from rich.console import Console
from cardioray.data.shards import ShardSet
from cardioray.training.progress import Shown
from cardioray.tuning.compare import compare

shards, out, log = sys.argv[1:]
shown = Shown("Running", "val_auc", Console(file=open(log, "w", buffering=1), width=80))
compare(here.run_of(), ShardSet.open(shards), here.SETTINGS, out, shown=shown)
"""


def run_of(*overrides: str) -> RunConfig:
    """A run that needs most of the cluster's 4 CPUs, so that two never run at once.

    Its epochs take as long as it takes to stop one.
    """
    return tiny.tiny_run(
        "preprocess.image_size=96",
        "train.epochs=4",
        "split.min_calibration_patients=2",
        "scale.gpus_per_worker=0",
        "scale.cpus_per_worker=3",
        *overrides,
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> ShardSet:
    return tiny.tiny_shards(tmp_path_factory.mktemp("tuning"), run_of())


@pytest.fixture(scope="module")
def comparison(
    shards: ShardSet, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Comparison, Path]:
    """A comparison that was interrupted in its first trial, and went on."""
    folder = tmp_path_factory.mktemp("tuning")
    out = folder / "compare"
    log = folder / "log"
    started = driver(DRIVER, shards.path, out, log)

    def an_epoch_is_kept() -> bool:
        return any(tiny.registered(str(trial), 1) for trial in out.glob("trials/*-fold0-*"))

    assert interrupted(started, an_epoch_is_kept) != 0
    assert "The same command goes on" in log.read_text()
    assert json.loads((out / "compare.json").read_text())["trials"] is None
    [first] = (out / "trials").glob("*-fold0-*/timing.csv")
    begun = first.read_text().splitlines()[:2]
    with tiny.training_here():  # the winner's bundle
        result = compare(run_of(), shards, SETTINGS, str(out))
    assert first.read_text().splitlines()[:2] == begun  # the epoch was not trained again
    return result, out


def test_final_test_patients_are_in_no_fold(shards: ShardSet) -> None:
    division = divide(run_of(), shards, SETTINGS)
    test = (division.final == "test").to_numpy()
    assert test.any()
    for fold in division.folds:
        assert (fold[test] == "").all()
        assert (fold[~test] != "").all()
    held_out = pd.concat(
        [shards.samples["patient_id"][(fold == "test").to_numpy()] for fold in division.folds]
    )
    development = shards.samples["patient_id"][~test]
    assert sorted(held_out) == sorted(development)


def test_weak_trials_are_stopped_and_the_other_fold_starts(
    comparison: tuple[Comparison, Path],
) -> None:
    leaderboard, out = comparison[0].leaderboard, comparison[1]
    begun = sorted(
        (out / "trials").glob("*-fold0-*/started.json"), key=lambda file: file.stat().st_mtime
    )
    stopped = [not (file.parent / "outcome.json").exists() for file in begun]
    # One at a time: the other fold could not have begun with what the second took.
    assert stopped == [False, True]
    timing = pd.read_csv(begun[1].parent / "timing.csv")
    assert len(timing) < 4
    # Of those that came to the end, one goes on to the other fold.
    assert {row.entry.name for row in leaderboard.rows} == set(BACKBONES)
    marks = {row.entry.stopped_early: row.entry for row in leaderboard.rows}
    assert (marks[False].folds, marks[False].epochs) == (2, 8)
    assert marks[True].folds == 1
    # It is scored from the last epoch that was kept.
    [trial] = (
        t for t in json.loads((out / "compare.json").read_text())["trials"] if t["stopped_early"]
    )
    assert trial["checkpoint"] == f"checkpoint_{marks[True].epochs:05d}"
    assert (out / "trials" / begun[1].parent.name / trial["checkpoint"]).is_dir()


def test_a_survivor_goes_on_with_what_was_drawn_for_it(
    comparison: tuple[Comparison, Path],
) -> None:
    result, out = comparison
    trials = json.loads((out / "compare.json").read_text())["trials"]
    first, second = (t for t in trials if t["backbone"] == result.leaderboard.winner.name)
    assert [first["fold"], second["fold"]] == [0, 1]
    assert first["overrides"] == second["overrides"]
    name, rate = first["overrides"][0].split("=")
    assert name == "train.learning_rate"
    assert 1e-3 <= float(rate) <= 2e-3


def test_the_winner_becomes_a_bundle_scored_on_patients_of_no_fold(
    comparison: tuple[Comparison, Path], shards: ShardSet
) -> None:
    result, out = comparison
    bundle = result.bundles[0]
    assert bundle.name == result.leaderboard.winner.name
    assert ranked_bundles(str(out)) == [str(bundle.path)]
    assert cardioray.load(out).bundle.identity == bundle.identity
    assert "| mean brightness |" in (bundle.path / "README.md").read_text()
    metrics = open_bundle(str(bundle.path)).json("metrics.json")
    division = divide(run_of(), shards, SETTINGS)
    test = shards.samples["patient_id"][(division.final == "test").to_numpy()]
    assert metrics["targets"]["ffr"]["patients"] == test.nunique()
    assert metrics["comparison"]["name"] == bundle.name
    pooled = metrics["comparison"]["evaluation"]["patients"]
    assert pooled == shards.samples["patient_id"].nunique() - test.nunique()
    for name in ("leaderboard.csv", "leaderboard.json", "leaderboard.html", "plots/roc.png"):
        assert (out / name).stat().st_size > 0


def test_what_a_winner_said_out_of_fold_is_read_wherever_the_comparison_lies(
    comparison: tuple[Comparison, Path], tmp_path: Path
) -> None:
    result, out = comparison
    moved = tmp_path / "moved"
    for name in ("compare.json", "leaderboard.json"):
        moved.mkdir(exist_ok=True)
        (moved / name).write_bytes((out / name).read_bytes())
    (moved / "trials").symlink_to(out / "trials")
    table = out_of_fold(str(moved))
    tested = table[table["split"] == "test"]
    scored = result.leaderboard.rows[0].entry.predictions
    scored = scored[scored["split"] == "test"]
    assert sorted(tested["sample_id"]) == sorted(scored["sample_id"])
    # None of them a final test patient, whom the bundle's own predictions are of.
    final = pd.read_parquet(result.bundles[0].path / "predictions.parquet")
    final = final[final["split"] == "test"]
    assert not set(tested["patient_id"]) & set(final["patient_id"])
    record = json.loads((moved / "compare.json").read_text())
    (moved / "compare.json").write_text(json.dumps(record | {"trials": None}))
    with pytest.raises(ValueError, match="not finished"):
        out_of_fold(str(moved))


def test_a_second_call_trains_nothing(
    comparison: tuple[Comparison, Path], shards: ShardSet
) -> None:
    result, out = comparison
    trained = {p: p.stat().st_mtime_ns for p in out.rglob("model.safetensors")}
    again = compare(run_of(), shards, SETTINGS, str(out))
    assert {p: p.stat().st_mtime_ns for p in out.rglob("model.safetensors")} == trained
    tables = [found.leaderboard.table for found in (again, result)]
    pd.testing.assert_frame_equal(*(table.drop(columns="latency_ms") for table in tables))


def test_a_folder_of_another_comparison_is_refused(
    comparison: tuple[Comparison, Path], shards: ShardSet
) -> None:
    with pytest.raises(ValueError, match="comparison of other settings or data"):
        compare(run_of("train.seed=5"), shards, SETTINGS, str(comparison[1]))


def test_trials_leave_room_for_ray_data(shards: ShardSet) -> None:
    import ray

    total = ray.cluster_resources()["CPU"]
    fitted, concurrent = fit_cluster(run_of(), CompareConfig(backbones=BACKBONES, folds=5))
    assert concurrent >= 1
    assert concurrent * float(fitted.scale.cpus_per_worker) <= 0.9 * total
    with pytest.raises(ValueError, match="does not fit this cluster"):
        fit_cluster(run_of("scale.cpus_per_worker=64"), CompareConfig(backbones=BACKBONES))
