"""Runs that end before their time: by Ctrl-C, and by an error that would only come again."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
import tiny_training as tiny
from drivers import driver, interrupted
from ray.exceptions import ActorDiedError
from ray.train import UserCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from safetensors.torch import save_file

from cardioray.tasks.base import Task
from cardioray.training import controller
from cardioray.training.controller import EndWhenWrittenOff
from cardioray.training.run import train

pytestmark = [pytest.mark.ray, pytest.mark.slow]

DRIVER = """
import sys
import tiny_training as tiny
from rich.console import Console
from cardioray.data.shards import ShardSet
from cardioray.training.progress import Shown, shown_progress
from cardioray.training.run import train

shards, out, log = sys.argv[1:]
shown = Shown("Running", "val_auc", Console(file=open(log, "w", buffering=1), width=80))
shards = ShardSet.open(shards)
run = tiny.tiny_run("scale.gpus_per_worker=0", "train.epochs=500")
with shown_progress(shown) as board:
    train(run, shards, tiny.tiny_split(shards), out, name="run", progress=board)
"""


def test_an_interrupted_training_says_so_and_keeps_its_checkpoints(
    ray_local: None, tmp_path: Path
) -> None:
    shards, log, out = tiny.tiny_shards(tmp_path), tmp_path / "log", tmp_path / "runs"

    def kept() -> list[Path]:
        return sorted((out / "run").glob("checkpoint_*/state.json"))

    status = interrupted(driver(DRIVER, shards.path, out, log), lambda: bool(kept()))
    assert status != 0
    assert "The same command goes on" in log.read_text()
    assert not (out / "run" / "outcome.json").exists()
    assert kept()


@ray.remote(num_cpus=0)
class Controller:
    """What Ray Train tells of workers that raised."""

    def hear_of_an_error(self, taken_for_dead: bool) -> str:
        if taken_for_dead:
            controller.is_dead = lambda actor_id: actor_id == self.id()
        EndWhenWrittenOff().after_exception(None, {0: RuntimeError("gone")})
        return "goes on"

    def id(self) -> str:
        return str(ray.get_runtime_context().get_actor_id())


def test_a_controller_that_counts_as_dead_starts_no_workers(ray_local: None) -> None:
    alive = Controller.remote()
    assert ray.get(alive.hear_of_an_error.remote(taken_for_dead=False)) == "goes on"
    number = ray.get(alive.id.remote())
    assert not controller.is_dead(number)
    ray.kill(alive)
    tiny.wait_for(lambda: controller.is_dead(number))
    doomed = Controller.remote()
    with pytest.raises(ActorDiedError):
        ray.get(doomed.hear_of_an_error.remote(taken_for_dead=True))
    assert not controller.is_dead(None)


class CountingExceptions(UserCallback):  # type: ignore[misc]
    """Notes each time that workers raised."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        with self.file.open("a") as stream:
            stream.write("raised\n")


class SwapFile(WorkerGroupCallback):  # type: ignore[misc]
    """Puts another file in the place of one, when workers are there and have not begun."""

    def __init__(self, file: Path, other: Path) -> None:
        self.file, self.other = file, other

    def after_worker_group_start(self, worker_group: Any) -> None:
        shutil.copy(self.other, self.file)


def test_a_value_error_of_a_worker_ends_the_run_at_once(ray_local: None, tmp_path: Path) -> None:
    shards = tiny.tiny_shards(tmp_path)
    fitting, other = tmp_path / "fitting.safetensors", tmp_path / "other.safetensors"
    for file, backbone in {fitting: "test_resnet", other: "resnet10t"}.items():
        task: Task = tiny.tiny_run(f"model.backbone={backbone}").task
        save_file(dict(task.build_model().backbone.net.state_dict()), file)
    run = tiny.tiny_run(f"model.weights={fitting}", "train.recipe=auto", "scale.gpus_per_worker=0")
    assert run.train.max_failures > 0
    raised = tmp_path / "raised"
    with pytest.raises(ValueError, match="does not fit"):
        train(
            run,
            shards,
            tiny.tiny_split(shards),
            str(tmp_path / "runs"),
            callbacks=[CountingExceptions(raised), SwapFile(fitting, other)],
        )
    assert raised.read_text() == "raised\n"


# Workers do not find the tests' folder; what they get from here travels whole.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
