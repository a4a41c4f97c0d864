"""The demo's labels that nothing can be learned from, and what it demands of those that can.

`make demo` runs the demo itself. What a pipeline finds in shuffled labels, it has let in itself:
patients in two splits, a threshold or a calibration fitted on test patients.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import tiny_training as tiny
from rich.console import Console

from cardioray import demo
from cardioray.config import Failed
from cardioray.demo import DemoConfig, require_learned, shuffle_labels

pytestmark = pytest.mark.ray


@pytest.mark.slow
def test_nothing_is_found_in_shuffled_labels(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = DemoConfig(
        patients=64,
        image_size=32,
        epochs=2,
        backbones="test_resnet",
        grace_epochs=2,
        shuffle_labels=True,
    )
    written = demo._run_config(small)
    run = replace(written, scale=replace(written.scale, gpus_per_worker=0))
    monkeypatch.setattr(demo, "_run_config", lambda _: run)  # the cluster's GPUs are made up
    console = Console(quiet=True)
    with tiny.training_here():  # the winner's bundle
        found = demo.compare_on_phantoms(tmp_path, small, console, console.print)
    [row] = found.leaderboard.rows
    final = found.bundles[0].json("metrics.json")["targets"]["ffr"]["per_study"]["auc"]
    auc = row.evaluation.per_study.values["auc"]
    assert 50 <= row.evaluation.patients <= 58  # the others are held out for the final figures
    for low, high in ((auc.low, auc.high), (final["low"], final["high"])):
        assert low < 0.5 < high


def test_shuffling_keeps_the_classes_and_gives_patients_another_ones_label() -> None:
    ffr = [0.5 + number / 100 for number in range(50)]
    truth = pd.DataFrame({"patient_id": [f"P{n}" for n in range(50)], "ffr": ffr, "label": "x"})
    truth = pd.concat([truth, truth])  # two frames a patient
    shuffled = shuffle_labels(truth, seed=7)
    by_patient = shuffled.groupby("patient_id")["ffr"]
    assert (by_patient.nunique() == 1).all()
    assert sorted(by_patient.first()) == ffr
    assert (by_patient.first() != truth.groupby("patient_id")["ffr"].first()).mean() > 0.8


@pytest.mark.parametrize(
    ("value", "low", "learned"), [(0.95, 0.9, True), (0.79, 0.6, False), (0.9, 0.5, False)]
)
def test_a_demo_that_learned_too_little_fails(value: float, low: float, learned: bool) -> None:
    auc = {"value": value, "low": low, "high": 1.0}
    require_learned(DemoConfig(epochs=1), auc)  # which is not the demo as it stands
    with nullcontext() if learned else pytest.raises(Failed, match=f"it is {value:.3f}"):
        require_learned(DemoConfig(), auc)
