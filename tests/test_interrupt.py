"""Runs that end before their time: by Ctrl-C, and by an error that would only come again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
import tiny_training as tiny
from ray.train import UserCallback
from ray_cluster import end_tree, heed_interrupts
from safetensors.torch import save_file

from cardioray.tasks.base import Task
from cardioray.training.run import train
from cardioray.tuning.compare import compare
from cardioray.tuning.settings import AshaConfig, CompareConfig, SearchConfig

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SETTINGS = CompareConfig(
    backbones=("test_resnet",),
    folds=2,
    asha=AshaConfig(enabled=False),
    search=SearchConfig(num_samples=1, learning_rate=(1e-3, 2e-3)),
)
OVERRIDES = ("split.min_calibration_patients=2", "scale.gpus_per_worker=0", "train.epochs=2")

DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from rich.console import Console
import test_interrupt as here
import tiny_training as tiny
from ray_cluster import local_cluster
from cardioray.data.shards import ShardSet
from cardioray.training.progress import Shown
from cardioray.training.run import train
from cardioray.training.progress import shown_progress
from cardioray.tuning.compare import compare

shown = Shown("Running", "val_auc", Console(file=open(sys.argv[4], "w", buffering=1), width=80))
with local_cluster(num_cpus=3):
    shards = ShardSet.open(sys.argv[2])
    if sys.argv[5] == "compare":
        compare(tiny.tiny_run(*here.OVERRIDES), shards, here.SETTINGS, sys.argv[3], shown=shown)
    else:
        run = tiny.tiny_run("scale.gpus_per_worker=0", "train.epochs=500")
        with shown_progress(shown) as board:
            train(run, shards, tiny.tiny_split(shards), sys.argv[3], name="run", progress=board)
"""


def interrupted(what: str, when: str, shards: Path, out: Path, log: Path) -> tuple[int, str]:
    """Exit status and log of a driver that gets SIGINT as soon as its log says `when`."""
    arguments = [str(Path(__file__).parent), str(shards), str(out), str(log), what]
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, *arguments], env=os.environ, preexec_fn=heed_interrupts
    )
    try:
        tiny.wait_for(lambda: log.exists() and when in log.read_text())
        driver.send_signal(signal.SIGINT)
        status = driver.wait(timeout=120)
    finally:
        end_tree(driver.pid)
        driver.wait()
    return status, log.read_text()


def test_an_interrupted_search_is_not_taken_for_a_finished_one_and_goes_on(
    ray_local: None, tmp_path: Path
) -> None:
    shards = tiny.tiny_shards(tmp_path)
    out = tmp_path / "compare"
    status, log = interrupted("compare", "other folds", tmp_path / "shards", out, tmp_path / "log")
    assert status == -signal.SIGINT  # what Python makes of a KeyboardInterrupt
    assert "The same command goes on" in log
    assert json.loads((out / "compare.json").read_text())["trials"] is None

    result = compare(tiny.tiny_run(*OVERRIDES), shards, SETTINGS, str(out))
    [row] = result.leaderboard.rows
    assert row.entry.folds == 2
    assert not row.entry.stopped_early
    # What was drawn on the first fold is what the second one is trained with.
    first, second = json.loads((out / "compare.json").read_text())["trials"]
    assert first["overrides"] == second["overrides"]
    name, rate = first["overrides"][0].split("=")
    assert name == "train.learning_rate"
    assert 1e-3 <= float(rate) <= 2e-3


def test_an_interrupted_training_says_so_and_keeps_its_checkpoints(
    ray_local: None, tmp_path: Path
) -> None:
    tiny.tiny_shards(tmp_path)
    out = tmp_path / "runs"
    status, log = interrupted("train", "running run", tmp_path / "shards", out, tmp_path / "log")
    assert status == -signal.SIGINT
    assert "The same command goes on" in log
    assert not (out / "run" / "outcome.json").exists()


class CountingExceptions(UserCallback):  # type: ignore[misc]
    """Notes each time that workers raised."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        with self.file.open("a") as stream:
            stream.write("raised\n")


def test_a_value_error_of_a_worker_ends_the_run_at_once(ray_local: None, tmp_path: Path) -> None:
    shards = tiny.tiny_shards(tmp_path)
    weights, raised = tmp_path / "other.safetensors", tmp_path / "raised"
    other: Task = tiny.tiny_run("model.backbone=resnet10t").task
    save_file(dict(other.build_model().backbone.net.state_dict()), weights)
    run = tiny.tiny_run(f"model.weights={weights}", "train.recipe=auto", "scale.gpus_per_worker=0")
    assert run.train.max_failures > 0
    with pytest.raises(ValueError, match="tensors missing"):
        train(
            run,
            shards,
            tiny.tiny_split(shards),
            str(tmp_path / "runs"),
            callbacks=[CountingExceptions(raised)],
        )
    assert raised.read_text() == "raised\n"


# Workers do not find the tests' folder; what they get from here travels whole.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
