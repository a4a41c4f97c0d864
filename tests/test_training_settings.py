"""Stages, schedules, losses and starting weights, without a cluster."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tiny_training as tiny
import torch
from torch import nn

from cardioray.config import to_dict
from cardioray.data.ranks import rows_of_rank
from cardioray.tasks.base import LabelStatistics
from cardioray.tasks.ffr import FFR_VALUE
from cardioray.training.feed import epoch_order
from cardioray.training.schedule import note_plateau, scheduled_rate
from cardioray.training.settings import RECIPES, RunConfig, StageConfig, TrainConfig

SHARES = np.linspace(0, 1, 101)[:-1]


def rates(schedule: str) -> np.ndarray:
    stage = StageConfig(schedule=schedule, learning_rate=0.1, final_learning_rate=0.001)
    return np.array([scheduled_rate(stage, share, {}) for share in SHARES])


def test_one_cycle_rises_over_a_tenth_and_falls() -> None:
    values = rates("one_cycle")
    assert values[0] == pytest.approx(0.001)
    assert values[10] == pytest.approx(0.1)
    assert (np.diff(values[:11]) > 0).all()
    assert (np.diff(values[10:]) < 0).all()
    assert values[-1] < 0.0011


def test_cosine_falls_to_its_end_and_constant_stays() -> None:
    values = rates("cosine")
    expected = 0.001 + 0.099 * (1 + np.cos(np.pi * SHARES)) / 2
    np.testing.assert_allclose(values, expected)
    assert set(rates("constant")) == {0.1}


def test_step_falls_at_whole_epochs() -> None:
    (stage,) = RECIPES.get("echonet_dynamic")
    steps = 7
    rates = [
        scheduled_rate(stage, (epoch * steps + step) / (stage.epochs * steps), {})
        for epoch in range(stage.epochs)
        for step in range(steps)
    ]
    by_epoch = np.reshape(rates, (stage.epochs, steps))
    assert (by_epoch == by_epoch[:, :1]).all()
    assert by_epoch[:, 0].tolist() == pytest.approx([1e-4] * 15 + [1e-5] * 15 + [1e-6] * 15)


def test_plateau_waits_then_falls_to_its_end() -> None:
    stage = StageConfig(
        schedule="plateau",
        learning_rate=0.1,
        final_learning_rate=0.03,
        plateau_factor=0.5,
        plateau_patience=1,
    )
    state: dict[str, float] = {}
    seen = []
    for loss in (1.0, 0.9, 0.95, 0.9, 0.9, 0.9, 0.9, 0.5):
        note_plateau(stage, state, loss)
        seen.append(scheduled_rate(stage, 0.5, state))
    assert seen == pytest.approx([0.1, 0.1, 0.1, 0.05, 0.05, 0.03, 0.03, 0.03])


def test_auto_takes_the_frozen_stage_only_where_there_are_weights() -> None:
    settings = TrainConfig(recipe="auto", epochs=7)
    names = [stage.name for stage in settings.resolved_stages(has_weights=True)]
    assert names == ["head", "fine_tune"]
    assert settings.resolved_stages(has_weights=True)[-1].epochs == 7
    assert [s.name for s in settings.resolved_stages(has_weights=False)] == ["scratch"]


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_no_recipe_freezes_random_weights(recipe: str) -> None:
    stages = TrainConfig(recipe=recipe).resolved_stages(has_weights=False)
    assert stages
    assert all(stage.frozen != "backbone" for stage in stages)


def test_unusable_recipes_are_refused() -> None:
    with pytest.raises(ValueError, match="fine_tune"):
        TrainConfig(recipe="fine-tune")
    frozen = TrainConfig(stages=(StageConfig(frozen="backbone"),))
    with pytest.raises(ValueError, match="there are no weights"):
        frozen.resolved_stages(has_weights=False)


def test_written_form_reads_back() -> None:
    run = tiny.tiny_run("train.optimizer.ema_decay=0.9", "scale.workers=2")
    written = run.to_dict()
    again = RunConfig.build(written["task"], written)
    assert again.to_dict() == written
    assert again.train == run.train


def test_training_rows_are_shared_equally_and_scored_rows_completely() -> None:
    rows = np.arange(41) * 3
    for world in (1, 2, 3, 60):
        scored = [rows_of_rank(rows, r, world, equal=False, seed=1) for r in range(world)]
        np.testing.assert_array_equal(np.sort(np.concatenate(scored)), rows)
        trained = [rows_of_rank(rows, r, world, equal=True, seed=1) for r in range(world)]
        assert {len(share) for share in trained} == {41 // world}
        assert len(np.unique(np.concatenate(trained))) == 41 // world * world
    orders = [tuple(epoch_order(20, seed=1, epoch=e, rank=r)) for e in range(2) for r in range(2)]
    assert len(set(orders)) == 4
    assert all(sorted(order) == list(range(20)) for order in orders)


@pytest.mark.parametrize("weighted", [True, False])
def test_the_loss_is_weighted_smoothed_cross_entropy(weighted: bool) -> None:
    task = tiny.tiny_run(f"loss.class_weights={weighted}").task
    logits, labels = [0.3, -1.2, 2.0, 0.1], [1.0, 0.0, 0.0, math.nan]
    statistics = LabelStatistics(class_weights={"ffr": (0.75, 1.5)}, means={}, deviations={})
    given = {"ffr": torch.tensor(labels)}
    loss = task.loss({"ffr": torch.tensor(logits)}, given, statistics)
    total = 0.0
    for logit, label in list(zip(logits, labels, strict=True))[:3]:
        probability = 1 / (1 + math.exp(-logit))
        smoothed = 0.9 if label else 0.1
        weight = (1.5 if label else 0.75) if weighted else 1.0
        entropy = smoothed * math.log(probability) + (1 - smoothed) * math.log(1 - probability)
        total -= weight * entropy
    assert float(loss) == pytest.approx(total / 3, rel=1e-6)


def test_class_weights_are_total_over_twice_the_class() -> None:
    labels = {"ffr": np.array([1, 0, 0, 0, np.nan], np.float32)}
    weights = tiny.tiny_run().task.label_statistics(labels).class_weights["ffr"]
    assert weights == pytest.approx((4 / 6, 4 / 2))


def test_the_number_beside_adds_its_squared_error() -> None:
    task = tiny.tiny_run(values={"value_target": to_dict(FFR_VALUE)}).task
    statistics = LabelStatistics(
        class_weights={"ffr": (1.0, 1.0)}, means={"ffr_value": 0.8}, deviations={"ffr_value": 0.1}
    )
    outputs = {"ffr": torch.zeros(2), "ffr_value": torch.tensor([1.0, -3.0])}
    labels = {"ffr": torch.tensor([1.0, 0.0]), "ffr_value": torch.tensor([0.7, math.nan])}
    loss = float(task.loss(outputs, labels, statistics))
    assert loss == pytest.approx(math.log(2) + 0.3 * (1.0 - -1.0) ** 2)
    assert task.scores(outputs, statistics)["ffr_value"].tolist() == pytest.approx([0.9, 0.5])


def test_freezing_and_freeing_again() -> None:
    task = tiny.tiny_run().task
    model = task.build_model()

    def learning(part: nn.Module) -> int:
        return sum(p.requires_grad for p in part.parameters())

    whole = len(list(model.backbone.parameters()))
    task.freeze(model, "backbone")
    assert learning(model.backbone) == 0
    assert learning(model.head) > 0
    task.freeze(model, "first_blocks")
    assert 0 < learning(model.backbone) < whole
    task.freeze(model, "none")
    assert learning(model.backbone) == whole
