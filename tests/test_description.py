"""What metadata and card of a bundle say, and what of it answers repeat."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from cardioray.data.shards import ShardIndex, ShardSet
from cardioray.tasks.base import LabelStatistics
from cardioray.tasks.lv_seg import LvSegTask
from cardioray.training.description import (
    PHANTOM_WARNING,
    BundleSource,
    bundle_metadata,
    render_card,
)
from cardioray.training.settings import RunConfig

PATIENTS = ("a", "b", "c")


def source() -> BundleSource:
    """Outlines of phantoms whose two views have pixels of other proportions."""
    samples = pd.DataFrame(
        [
            {
                **{"patient_id": patient, "study_id": patient, "view": view, "phase": phase},
                **{"spacing_row_mm": 0.3, "spacing_column_mm": 0.3 if view == "A4C" else 0.4},
                "phantom": "True",
            }
            for patient in PATIENTS
            for view in ("A4C", "A2C")
            for phase in ("ED", "ES")
        ]
    )
    index = ShardIndex(
        format_version=1,
        task="lv-seg",
        request_hash="0",
        dataset_hash="0",
        decode_settings={},
        columns={"image": [64, 64, 1]},
        parts=[],
        num_samples=len(samples),
        num_bad=0,
        array_bytes=0,
        patients_known=True,
        warnings=[],
    )
    predictions = pd.DataFrame(
        {
            "sample_id": [*PATIENTS, *PATIENTS],
            "patient_id": [*PATIENTS, *PATIENTS],
            "study_id": [*PATIENTS, *PATIENTS],
            "split": ["calibration", "calibration", "test"] * 2,
            "head": ["ef"] * 3 + ["edv"] * 3,
            "measured_views": ["A4C+A2C", "A4C", "A4C"] * 2,
            "label": 50.0,
            "score": 51.0,
        }
    )
    return BundleSource(
        run=RunConfig.build("lv-seg", {}),
        shards=ShardSet(path="nowhere", index=index, samples=samples),
        split=pd.Series(np.repeat(["calibration", "calibration", "test"], 4)),
        weights={},
        statistics=LabelStatistics(class_weights={}, means={}, deviations={}),
        predictions=predictions,
        calibration_predictions=None,
        log=None,
        name="tiny",
        comparison=None,
        starting_weights="random weights",
        notes=("Training took another way.",),
    )


def test_what_is_wrong_with_training_data_is_told_by_the_card_alone(tmp_path: Path) -> None:
    metadata = bundle_metadata(source())
    assert metadata["warnings"] == [PHANTOM_WARNING]
    pixels, note = metadata["training_warnings"]
    assert "Pixels have other proportions in one view than in the other" in pixels
    assert note == "Training took another way."
    card = render_card(
        "model_card.md.jinja",
        tmp_path,
        meta=metadata,
        evaluations={},
        tolerance={"largest_absolute_difference_of_scores": {}, "openvino_kept": True},
        inputs={"longer_side_px": (1, 2), "aspect": (1, 2), "pixels": {}, "feature_distance": 1},
        outlines=(),
        example=LvSegTask.example,
    )
    for text in (PHANTOM_WARNING, pixels, note):
        assert f"> {text}" in card
    assert f"print({LvSegTask.example})" in card


def test_views_of_calibration_studies_are_counted() -> None:
    assert bundle_metadata(source())["calibration_views"] == {"A4C+A2C": 1, "A4C": 1}
    own = source()
    bare = own.predictions.drop(columns="measured_views")
    assert "calibration_views" not in bundle_metadata(replace(own, predictions=bare))
