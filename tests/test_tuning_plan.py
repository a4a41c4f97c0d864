"""What a comparison decides before it trains: when to stop, what makes it another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny_training as tiny
import torch
from ray.tune.schedulers import ASHAScheduler
from safetensors.torch import save_file

from cardioray.training.settings import RunConfig
from cardioray.tuning.compare import trials_digest
from cardioray.tuning.settings import AshaConfig, CompareConfig
from cardioray.tuning.trials import TrialContext, asha_scheduler

BACKBONES = ("test_resnet", "resnet10t", "resnet14t")


def run_of(*overrides: str) -> RunConfig:
    return tiny.tiny_run("train.recipe=auto", "train.epochs=6", *overrides)


def context_of(run: RunConfig, out: Path) -> TrialContext:
    return TrialContext(run.to_dict(), "shards", [], str(out), None)


def rungs(scheduler: ASHAScheduler | None) -> list[int]:
    assert scheduler is not None
    return sorted(int(epoch) for bracket in scheduler._brackets for epoch, _ in bracket._rungs)


def test_no_rung_is_on_the_last_epoch_of_a_run_without_weights(tmp_path: Path) -> None:
    epochs = context_of(run_of(), tmp_path).fewest_epochs(BACKBONES)
    assert epochs == 6  # the stage of the head is left out
    assert rungs(asha_scheduler(AshaConfig(grace_epochs=2), epochs)) == [2]
    assert rungs(asha_scheduler(AshaConfig(grace_epochs=2), 16)) == [2, 6]
    assert asha_scheduler(AshaConfig(grace_epochs=6), epochs) is None


def test_the_stage_of_the_head_counts_where_there_are_weights(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file({"any": torch.zeros(1)}, weights)
    run = run_of(f"model.weights={weights}")
    assert context_of(run, tmp_path).fewest_epochs(BACKBONES) == 10 + 6


def digest_of(*overrides: str, folds: tuple[str, ...] = ("train", "test"), **changes: Any) -> str:
    settings = CompareConfig(backbones=BACKBONES, **changes)
    return trials_digest(run_of(*overrides), settings, "data", [pd.Series(folds)])


def test_more_bundles_of_a_comparison_are_no_other_comparison() -> None:
    assert digest_of(refits=2) == digest_of()
    assert digest_of(max_concurrent=3) == digest_of()
    assert digest_of("scale.cpus_per_worker=0.5", "scale.spread=true") == digest_of()


@pytest.mark.parametrize(
    ("overrides", "changes"),
    [
        (["scale.workers=2"], {}),
        (["train.seed=5"], {}),
        ([], {"folds": ("test", "train")}),
        ([], {"seed": 1}),
        ([], {"asha": AshaConfig(grace_epochs=3)}),
    ],
)
def test_what_changes_trials_is_another_comparison(
    overrides: list[str], changes: dict[str, Any]
) -> None:
    assert digest_of(*overrides, **changes) != digest_of()
