"""The settings files in configs/ are read, and say what their headings say."""

from __future__ import annotations

from pathlib import Path

import pytest

from cardioray.config import read_yaml
from cardioray.training.settings import RunConfig

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
TASKS = {
    "echonet_dynamic": "echo-ef",
    "echo_ef_cpu": "echo-ef",
    "echo_cmr_adamw": "echo-cmr",
    "echo_cmr_cpu": "echo-cmr",
}


def build(name: str) -> RunConfig:
    return RunConfig.build(TASKS[name], read_yaml((CONFIGS / f"{name}.yaml").read_text(), name))


def test_every_file_is_known() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_a_named_config_builds_a_run_and_names_itself(name: str) -> None:
    run = build(name)
    stages = run.train.resolved_stages(has_weights=False)
    assert stages
    text = (CONFIGS / f"{name}.yaml").read_text()
    assert f"cardioray train {TASKS[name]} --config configs/{name}.yaml" in text
    assert set(run.task.input_shapes({})) == set(run.task.columns)


def test_echonets_numbers() -> None:
    run = build("echonet_dynamic")
    (stage,) = run.train.resolved_stages(has_weights=True)
    assert (stage.epochs, stage.learning_rate, stage.step_epochs) == (45, 1e-4, 15)
    assert (run.train.batch_size, run.train.optimizer.kind) == (20, "sgd")
    assert run.train.optimizer.weight_decay == 1e-4
    sampling = run.task.settings.sampling
    assert (sampling.frames, sampling.stride, sampling.step) == (32, 2, 1)
    assert not run.task.settings.loss.in_deviations
