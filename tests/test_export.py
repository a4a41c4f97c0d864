"""From a run to a bundle: what is checked on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_bundles import tiny_source

import cardioray
from cardioray.models.runtime import export_openvino
from cardioray.training import export

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


def test_without_git_the_bundle_is_written_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert export._git_revision() in ("unknown", "not a git checkout")
