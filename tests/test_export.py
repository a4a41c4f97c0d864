"""From a run to a bundle: what is checked on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_training as tiny
import torch
from PIL import Image
from tiny_bundles import run_example, tiny_source

import cardioray
from cardioray.data.pipeline import PrepareConfig, prepare
from cardioray.data.shards import ShardSet
from cardioray.models.runtime import export_openvino
from cardioray.training import description, export, single
from cardioray.training.outcome import Outcome
from cardioray.training.run import make_plan
from cardioray.training.settings import RunConfig

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_an_export_that_computes_something_else_is_left_out(
    ray_local: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def wrong(model: Any, *arguments: Any) -> None:
        state = {name: value.clone() for name, value in model.state_dict().items()}
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        export_openvino(model, *arguments)
        model.load_state_dict(state)

    monkeypatch.setattr(export, "export_openvino", wrong)
    bundle = export.write_bundle(tiny_source(tmp_path), str(tmp_path / "bundle"))
    tolerance = bundle.json("tolerance.json")
    [difference] = tolerance["largest_absolute_difference_of_scores"]["openvino_fp32"].values()
    assert difference > export.FP32_TOLERANCE
    assert not tolerance["openvino_kept"]
    assert not (bundle.path / "openvino").exists()
    assert "CPUs run PyTorch" in caplog.text
    assert "is not in this bundle" in (bundle.path / "README.md").read_text()
    predictor = cardioray.load(bundle.path, precision="fp32")
    assert predictor.runtime == "torch"
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "frame.png")
    assert run_example(bundle.path, tmp_path)["frames"] == 1


@pytest.mark.parametrize("folds", [2, 0])
def test_few_patients_are_calibrated_on_what_folds_say_of_them(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folds: int
) -> None:
    trained = []

    def here(run: RunConfig, shards: ShardSet, split: Any, out: str, **named: Any) -> Outcome:
        trained.append((named["name"], split))
        folder = Path(out) / named["name"]
        plan = make_plan(run, shards, split, str(folder), str(tmp_path / "weights"), None, "run")
        return tiny.train_plan_here(plan)

    monkeypatch.setattr(single, "train", here)
    monkeypatch.setattr(export, "_write_plots", lambda *_: None)
    shards = tiny.tiny_shards(tmp_path)
    run = tiny.tiny_run(f"split.cross_fit_folds={folds}", "train.epochs=1")
    bundle = single.train_bundle(run, shards, str(tmp_path / "runs"), name="few")
    (_, split), *others = trained
    assert len(others) == folds
    assert "calibration" not in set(split)
    seen: list[str] = []
    for _, fold in others:
        assert (fold[split == "test"] == "").all()
        seen += list(shards.samples["patient_id"][fold == "test"].unique())
    development = shards.samples["patient_id"][split != "test"].unique()
    assert sorted(seen) == (sorted(development) if folds else [])
    warned = any("early stopping has seen" in text for text in bundle.metadata["warnings"])
    assert warned == (folds == 0)
    assert bundle.json("thresholds.json")["ffr"]["threshold"] is not None


def test_a_second_head_learns_from_the_patients_that_have_its_number(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def here(run: RunConfig, shards: ShardSet, split: Any, out: str, **named: Any) -> Outcome:
        folder = Path(out) / named["name"]
        plan = make_plan(run, shards, split, str(folder), str(tmp_path / "weights"), None, "run")
        return tiny.train_plan_here(plan)

    monkeypatch.setattr(single, "train", here)
    monkeypatch.setattr(export, "_write_plots", lambda *_: None)
    task = tiny.tiny_run().task
    table = pd.read_csv(tiny.write_pictures(tmp_path / "pictures") / "manifest.csv")
    number = table["patient_id"].str.removeprefix("p").astype(int)
    table["pressure"] = table["ffr"].where(number % 5 > 0)
    table["split"] = number.map(dict(enumerate(tiny.SPLITS)))
    table.to_csv(tmp_path / "pictures" / "manifest.csv", index=False)
    manifest = task.read_manifest(str(tmp_path / "pictures"), None)
    shards = prepare(task, manifest, str(tmp_path / "shards"), PrepareConfig())
    head = {"name": "pressure", "value_column": "pressure", "low": 0, "high": 1}
    run = tiny.tiny_run("train.epochs=1", values={"value_target": head})
    bundle = single.train_bundle(run, shards, str(tmp_path / "runs"), name="two")
    targets = bundle.json("metrics.json")["targets"]
    test = table[table["split"] == "test"]
    assert targets["ffr"]["frames"] == len(test)
    assert targets["pressure"]["frames"] == test["pressure"].notna().sum() < len(test)
    assert "calibration patients" in bundle.metadata["operating_point_fitted_on"]


@pytest.mark.parametrize(
    ("moved", "text"),
    [
        ({"test": "train"}, "no test patient has a label of 'ffr'"),
        ({"calibration": "train"}, None),
        (
            {"p25": "train", "p27": "train"},
            "at least 2 calibration patients of each class; there are 2 of 'FFR>0.80' and 0 of",
        ),
    ],
)
def test_a_division_without_a_bundle_is_refused_before_training(
    moved: dict[str, str], text: str | None
) -> None:
    patients = [f"p{number:02d}" for number in range(32)]
    samples = pd.DataFrame({"patient_id": patients, "ffr": [0.9, 0.7] * 16})
    split = pd.Series(tiny.SPLITS).replace(moved)
    for patient in moved:
        split[samples["patient_id"] == patient] = moved[patient]
    fitted_on = "calibration" if (split == "calibration").any() else None
    task = tiny.tiny_run().task
    if text is None:
        single.require_patients(task, samples, split, fitted_on)
        return
    with pytest.raises(ValueError, match=text):
        single.require_patients(task, samples, split, fitted_on)


def test_a_fixed_threshold_needs_no_calibration_patients() -> None:
    samples = pd.DataFrame({"patient_id": ["a", "b", "c"], "ffr": [0.7, 0.7, 0.9]})
    split = pd.Series(["train", "calibration", "test"])
    task = tiny.tiny_run("operating.calibration=none", "operating.rule=fixed:0.5").task
    single.require_patients(task, samples, split, "calibration")


def test_without_git_the_bundle_is_written_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert description._git_revision() in ("unknown", "not a git checkout")
