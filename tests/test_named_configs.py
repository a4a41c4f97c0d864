"""The settings files in configs/ are read, and say what their headings say."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from cardioray.config import read_yaml
from cardioray.training.settings import RunConfig

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
TASKS = {
    "ecg_cpu": "ecg",
    "echonet_dynamic": "echo-ef",
    "echo_ef_cpu": "echo-ef",
    "echo_cmr_adamw": "echo-cmr",
    "echo_cmr_cpu": "echo-cmr",
    "keyframe_ef_cpu": "keyframe-ef",
    "lv_seg_cpu": "lv-seg",
}


def build(name: str, *overrides: str) -> RunConfig:
    values = read_yaml((CONFIGS / f"{name}.yaml").read_text(), name)
    return RunConfig.build(TASKS[name], values, overrides)


def test_every_file_is_known() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_a_named_config_builds_a_run_and_names_itself(name: str) -> None:
    run = build(name)
    stages = run.train.resolved_stages(has_weights=False)
    assert stages
    text = (CONFIGS / f"{name}.yaml").read_text()
    assert f"--config configs/{name}.yaml" in text
    assert any(f"cardioray {verb} {TASKS[name]}" in text for verb in ("train", "compare"))
    assert set(run.task.input_shapes(dict.fromkeys(run.task.columns, (1,)))) == set(
        run.task.columns
    )


def test_echonets_numbers() -> None:
    run = build("echonet_dynamic")
    (stage,) = run.train.resolved_stages(has_weights=True)
    assert (stage.epochs, stage.learning_rate, stage.step_epochs) == (45, 1e-4, 15)
    assert (run.train.batch_size, run.train.optimizer.kind) == (20, "sgd")
    assert run.train.optimizer.weight_decay == 1e-4
    sampling = run.task.settings.sampling
    assert (sampling.frames, sampling.stride, sampling.step) == (32, 2, 1)
    assert not run.task.settings.loss.in_deviations


def test_what_is_of_the_study_of_cmr_findings_and_what_is_ours() -> None:
    run = build("echo_cmr_adamw")
    (stage,) = run.train.resolved_stages(has_weights=True)
    sampling = run.task.settings.sampling
    assert (sampling.frames, sampling.stride) == (16, 2)
    assert (run.task.settings.model.backbone, run.train.optimizer.kind) == ("r2plus1d_18", "adamw")
    assert (run.task.monitor.name, run.task.monitor.mode, stage.patience) == ("val_auc", "max", 10)

    heading, _, _ = (CONFIGS / "echo_cmr_adamw.yaml").read_text().partition("\nsampling:")
    words = " ".join(heading.replace("#", " ").split())
    assert "not the published training" in words
    assert f"here the rate is {stage.learning_rate} and falls by a {stage.schedule}" in words
    assert f"Batches of {run.train.batch_size} and at most {stage.epochs} epochs are ours" in words
    assert "default is a learning rate of 0.01 without a schedule" in words
    # The setting that the heading gives for it is that.
    (line,) = [line for line in heading.splitlines() if line.startswith("#   --set")]
    _, setting = shlex.split(line.removeprefix("#"))
    (published,) = build("echo_cmr_adamw", setting).train.resolved_stages(has_weights=True)
    assert (published.learning_rate, published.schedule) == (0.01, "constant")
    assert (published.epochs, published.patience) == (stage.epochs, stage.patience)
