"""The network for ECGs: signals as bytes, charts with gaps, heads, and what training changes."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cardioray.data.ecg_layouts import CHART
from cardioray.models.ecg import (
    EcgModel,
    chart_of,
    coded_millivolts,
    millivolts_of,
    signals_changed,
)
from cardioray.models.imputation import MISSING
from cardioray.models.runtime import NotExportableError, export_openvino
from cardioray.tasks.base import ScoredRows
from cardioray.tasks.ecg import VARIANTS, EcgTask, coded_chart
from cardioray.training.settings import RunConfig

SMALL = (
    *("model.backbone=resnet10t", "model.pretrained=none", "model.latent=16"),
    *("model.recurrent=8", "preprocess.image_size=96"),
)


def task_of(*overrides: str) -> EcgTask:
    task = RunConfig.build("ecg", None, (*SMALL, *overrides)).task
    assert isinstance(task, EcgTask)
    return task


def batch(size: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    signals = torch.randn(size, 12, 250, generator=generator) * 0.4
    ages = torch.tensor([70.0, float("nan"), 45.0, 90.0])[:size]
    flags = {name: torch.tensor([1.0, 0.0, float("nan"), 1.0])[:size] for name in CHART[1:]}
    return {
        "page": torch.randint(0, 256, (size, 96, 96, 1), generator=generator, dtype=torch.uint8),
        "signals": coded_millivolts(signals),
        "age": ages,
        **flags,
        "scar": torch.tensor([1.0, 0.0, float("nan"), 1.0])[:size],
        "lvef": torch.tensor([0.0, 1.0, 1.0, float("nan")])[:size],
    }


class TestSignals:
    def test_bytes_hold_microvolts_and_what_is_not_known(self) -> None:
        values = torch.tensor([[[0.0, 1.2345, -3.2, 40.0, float("nan")]]])
        read = millivolts_of(coded_millivolts(values))
        torch.testing.assert_close(
            read, torch.tensor([[[0.0, 1.234, -3.2, 32.767, 0.0]]]), atol=1e-3, rtol=0
        )
        assert coded_millivolts(values)[0, 0, 4].tolist() == [0, 0]

    def test_no_change_is_none_and_changes_are_those_of_the_seed(self) -> None:
        coded = batch()["signals"]
        still: dict[str, Any] = {"gain": 0.0, "shift": 0, "noise_mv": 0.0, "lead_dropout": 0.0}
        assert torch.equal(signals_changed(coded, (1, 2), **still), coded)
        moving: dict[str, Any] = {"gain": 0.1, "shift": 8, "noise_mv": 0.02, "lead_dropout": 0.2}
        once, again = (signals_changed(coded, (1, 2), **moving) for _ in range(2))
        assert torch.equal(once, again)
        assert not torch.equal(once, signals_changed(coded, (1, 3), **moving))

    def test_a_shift_moves_all_leads_alike(self) -> None:
        ramp = torch.arange(250.0).expand(1, 12, 250) / 100 + 1
        moved = signals_changed(
            coded_millivolts(ramp), (5,), gain=0.0, shift=10, noise_mv=0.0, lead_dropout=0.0
        )
        values = millivolts_of(moved)
        assert torch.equal(values[:, :1].expand(-1, 12, -1), values)
        known = values[0, 0] != 0
        steps = (values[0, 0] - ramp[0, 0])[known]
        assert steps.std() < 1e-4


class TestChart:
    def test_age_flags_and_gaps_become_bytes_and_numbers_again(self) -> None:
        numbers = [torch.tensor([70.4, float("nan")]), *[torch.tensor([1.0, 0.0])] * 5]
        coded = coded_chart(numbers)
        assert coded.tolist() == [[70, 1, 1, 1, 1, 1], [MISSING, 0, 0, 0, 0, 0]]
        np.testing.assert_array_equal(coded, coded_chart([n.numpy() for n in numbers]))
        read = chart_of(coded)
        assert read[0].tolist() == pytest.approx([0.70, 1, 1, 1, 1, 1])
        assert read[1].tolist() == pytest.approx([MISSING / 100, 0, 0, 0, 0, 0])

    def test_gaps_are_filled_in_as_training_patients_tell(self) -> None:
        task = task_of("model.chart=birnn")
        rng = np.random.default_rng(0)
        carried = {name: (rng.random(200) < 0.5).astype(np.float32) for name in CHART}
        carried["age"] = rng.normal(70, 10, 200).astype(np.float32)
        labels = {name: (rng.random(200) < 0.3).astype(np.float32) for name in ("scar", "lvef")}
        statistics = task.label_statistics(labels, carried)
        model = task.build_model().eval()
        task.initialise(model, replace(statistics, pixel_mean=(200.0,), pixel_std=(60.0,)))
        answers = model(*task.inputs(batch()))
        assert all(torch.isfinite(value).all() for value in answers.values())

    def test_a_column_that_nobody_has_is_named(self) -> None:
        task = task_of("model.chart=mlp")
        carried = {name: np.ones(20, np.float32) for name in CHART}
        carried["smoke"] = np.full(20, np.nan, np.float32)
        labels = {name: np.array([0, 1] * 10, np.float32) for name in ("scar", "lvef")}
        with pytest.raises(ValueError, match="of no training patient there is smoke"):
            task.label_statistics(labels, carried)


@pytest.mark.parametrize("variant", list(VARIANTS))
class TestVariants:
    def test_a_variant_answers_its_questions_and_learns_them(self, variant: str) -> None:
        task = task_of(*VARIANTS.get(variant))
        model = task.build_model()
        assert isinstance(model, EcgModel)
        names = [target.name for target in task.targets]
        statistics = task.label_statistics(
            {name: np.array([0, 0, 0, 1], np.float32) for name in names},
            {name: np.array([0.0, 1.0, 0.0, 1.0], np.float32) for name in task.carried},
        )
        if model.imputer is not None:
            assert statistics.imputation is not None
            model.imputer.load(statistics.imputation)
        given = task.augment(batch(), (0, 1))
        outputs = model(*task.inputs(given))
        assert list(outputs) == names
        loss = task.loss(outputs, given, statistics)
        loss.backward()
        unused = [name for name, p in model.named_parameters() if p.grad is None]
        assert not unused
        assert all(((s >= 0) & (s <= 1)).all() for s in task.scores(outputs, statistics).values())

    def test_missing_labels_have_no_part_in_the_loss(self, variant: str) -> None:
        task = task_of(*VARIANTS.get(variant))
        names = [target.name for target in task.targets]
        statistics = task.label_statistics(
            {name: np.array([0, 1], np.float32) for name in names},
            {name: np.array([0.0, 1.0], np.float32) for name in task.carried},
        )
        given = batch()
        outputs = {name: torch.randn(4, generator=torch.manual_seed(1)) for name in names}
        loss = task.loss(outputs, given, statistics)
        for name in names:
            gap = int(torch.isnan(given[name]).nonzero()[0])
            outputs[name][gap] += 5
        assert torch.equal(task.loss(outputs, given, statistics), loss)


def test_the_loss_is_seven_parts_scar_and_three_parts_lvef() -> None:
    task, alone = task_of(), [task_of("heads=[scar]"), task_of("heads=[lvef]")]
    labels = {name: np.array([0, 1], np.float32) for name in ("scar", "lvef")}
    statistics = task.label_statistics(labels, {})
    outputs = {name: torch.randn(4, generator=torch.manual_seed(2)) for name in labels}
    given = batch()
    parts = [each.loss(outputs, given, statistics) for each in alone]
    assert task.loss(outputs, given, statistics) == pytest.approx(
        float(0.7 * parts[0] + 0.3 * parts[1])
    )


def test_training_follows_the_mean_auc_of_the_heads() -> None:
    task = task_of()
    rows = 40
    rng = np.random.default_rng(0)
    labels = {name: (np.arange(rows) % 2).astype(np.float32) for name in ("scar", "lvef")}
    names = [f"p{number}" for number in range(rows)]
    samples = pd.DataFrame(
        {
            **dict.fromkeys(("sample_id", "patient_id", "source"), names),
            "row": np.arange(rows),
        }
    )
    scores = {"scar": labels["scar"] * 0.5 + 0.25, "lvef": rng.random(rows)}
    tables = task.tables(
        ScoredRows(
            samples=samples, split="validation", labels=labels, measures=scores, one_window={}
        )
    )
    figures = task.validation_figures(tables)
    alone = task_of("heads=[lvef]")
    own = alone.validation_figures(
        alone.tables(
            ScoredRows(
                samples=samples, split="validation", labels=labels, measures=scores, one_window={}
            )
        )
    )
    assert figures["val_auc"] == pytest.approx((1 + own["val_auc"]) / 2)
    assert task.monitor.name == "val_auc"


def test_formats_that_are_not_chosen_take_no_part() -> None:
    samples = pd.DataFrame({"ecg_format": ["old", "new", "New"], "patient_id": ["1", "2", "3"]})
    assert task_of().takes_part(samples).tolist() == [True] * 3
    assert task_of("formats=[new]").takes_part(samples).tolist() == [False, True, True]
    assert task_of("formats=[new]").takes_part(samples.drop(columns="ecg_format")).all()


def test_a_cut_off_is_part_of_the_question() -> None:
    target = task_of("lvef.value=40", "lvef.operator=<").targets[1]
    assert (target.name, target.classes) == ("lvef", ("EF>=40", "EF<40"))  # type: ignore[union-attr]
    table = pd.DataFrame({"lvef": [39.9, 40.0, np.nan]})
    np.testing.assert_array_equal(target.encode(table), [1, 0, np.nan])


def test_what_openvino_cannot_express_is_said_and_silences_nothing(tmp_path: Path) -> None:
    # A network for pictures that halves the only row of signals.
    task = task_of("model.sees=signals")
    signals = np.zeros((2, 12, 250, 2), np.uint8)
    level = logging.root.level
    with pytest.raises(NotExportableError, match="avg_pool2d"):
        export_openvino(task.build_model(), ("scar", "lvef"), (signals,), tmp_path)
    assert logging.root.level == level
