"""What an MLflow store is told of a run: real files of MLflow's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_training as tiny
from mlflow import MlflowClient

from cardioray.training.tracking import (
    EXPERIMENT,
    RUN_ID,
    TRACKING_URI,
    TrackedRun,
    Tracking,
    end_tracked,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tracking:
    monkeypatch.setenv(TRACKING_URI, f"file://{tmp_path / 'mlruns'}")
    monkeypatch.setenv(EXPERIMENT, "tests")
    # Files are enough here; MLflow would rather have a database.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    found = Tracking.from_environment()
    assert found is not None
    return found


def only_run(tracking: Tracking) -> Any:
    client = MlflowClient(tracking_uri=tracking.uri)
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id])
    return run


def test_a_run_is_logged_epoch_by_epoch(
    ray_local: None, tmp_path: Path, tracking: Tracking
) -> None:
    shards = tiny.tiny_shards(tmp_path)
    outcome = tiny.train_here(tiny.tiny_run(), shards, tmp_path / "run")
    run = only_run(tracking)
    assert run.info.status == "FINISHED"
    client = MlflowClient(tracking_uri=tracking.uri)
    logged = client.get_metric_history(run.info.run_id, "train_loss")
    assert [metric.step for metric in logged] == [1, 2, 3]
    assert [metric.value for metric in logged] == outcome.log()["train_loss"].tolist()


def test_a_run_that_goes_on_repeats_nothing(tmp_path: Path, tracking: Tracking) -> None:
    folder = str(tmp_path / "run")
    run = TrackedRun.open(tracking, folder, "run", {"seed": 1})
    for epoch in (1, 2):
        run.log(epoch, {"train_loss": 1 / epoch})
    end_tracked(folder, "KILLED")
    assert only_run(tracking).info.status == "KILLED"
    again = TrackedRun.open(tracking, folder, "run", {"seed": 1})
    assert only_run(tracking).info.status == "RUNNING"
    for epoch in (2, 3):
        again.log(epoch, {"train_loss": 1 / epoch})
    again.end()
    client = MlflowClient(tracking_uri=tracking.uri)
    logged = client.get_metric_history(run.run_id, "train_loss")
    assert [metric.step for metric in logged] == [1, 2, 3]
    assert only_run(tracking).info.status == "FINISHED"


def test_a_server_that_is_away_does_not_hide_why_a_run_ended(
    tmp_path: Path, tracking: Tracking, caplog: pytest.LogCaptureFixture
) -> None:
    folder = str(tmp_path / "run")
    TrackedRun.open(tracking, folder, "run", {})
    (tmp_path / "run" / RUN_ID).write_text("a run that the store has lost")
    end_tracked(folder, "FAILED")
    assert "MLflow was not told" in caplog.text


def test_without_a_server_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TRACKING_URI, raising=False)
    assert Tracking.from_environment() is None
    end_tracked(str(tmp_path), "FAILED")
    assert not list(tmp_path.iterdir())
