"""Segmentation from CAMUS's layout to a bundle, and to answers about frames and cines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_segments as tiny

import cardioray
from cardioray.bundle import open_bundle
from cardioray.clinical.simpson import measure_cavity
from cardioray.clinical.volumes import volumes_of
from cardioray.data.image import UnreadableImage
from cardioray.data.label_maps import CAVITY, MYOCARDIUM
from cardioray.data.pipeline import prepare
from cardioray.evaluation.metrics import regression_metrics
from cardioray.segments import SegmentPredictor
from cardioray.tasks import make_task
from cardioray.training.settings import RunConfig
from cardioray.training.single import train_bundle

SETTINGS = (
    "preprocess.image_size=64",
    "model.backbone=unet:tu-resnet10t",
    "model.pretrained=none",
    "train.recipe=scratch",
    "train.epochs=12",
    "train.learning_rate=0.003",
    "train.batch_size=8",
    "train.precision=fp32",
    "split.cross_fit_folds=0",
    "scale.gpus_per_worker=0",
    "operating.calibration=none",
)
VIEWS = ["A4C-ED", "A4C-ES", "A2C-ED", "A2C-ES"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Any:
    folder = tmp_path_factory.mktemp("lv_seg")
    run = RunConfig.build("lv-seg", None, SETTINGS)
    manifest = run.task.read_manifest(str(tiny.write_camus(folder / "camus", 24)), None)
    shards = prepare(run.task, manifest, str(folder / "shards"))
    bundle = train_bundle(run, shards, str(folder / "runs"))
    return folder, bundle


@pytest.fixture(scope="module")
def predictor(trained: Any) -> SegmentPredictor:
    found = cardioray.load(trained[1].place, precision="fp32")
    assert isinstance(found, SegmentPredictor)
    return found


def patient(shrunk: float = 0.75, seed: int = 5) -> tuple[list[bytes], float]:
    """Four frames in the order of VIEWS, and their EF."""
    rng = np.random.default_rng(seed)
    ed, es = (80.0, 44.0), (80.0 * (0.5 + 0.5 * shrunk), 44.0 * shrunk)
    files = []
    for share in (tiny.VIEWS["4CH"], tiny.VIEWS["2CH"]):
        for length, width in (ed, es):
            files.append(tiny.nifti(tiny.echo(tiny.heart(length, width * share), rng)))
    return files, tiny.true_ef(ed, es)


def cine(beats: int = 2, frames: int = 20, seed: int = 3) -> tuple[Any, float]:
    """Frames of a four-chamber cine, and the EF of each of its beats by one view."""
    rng = np.random.default_rng(seed)
    widths = 37 + 7 * np.cos(2 * np.pi * np.arange(beats * frames) / frames)
    maps = [tiny.heart(76 + 0.4 * (width - 37), width) for width in widths]
    cavities = {
        ("A4C", phase): measure_cavity(m == CAVITY, tiny.SPACING, m == MYOCARDIUM)
        for phase, m in (("ED", maps[0]), ("ES", maps[frames // 2]))
    }
    volumes = volumes_of(cavities)
    assert volumes is not None
    return np.stack([tiny.echo(labels, rng) for labels in maps]), volumes.ef_percent


@pytest.mark.ray
@pytest.mark.slow
class TestBundle:
    def test_it_holds_what_was_measured(self, trained: Any) -> None:
        _, bundle = trained
        parts = pd.read_parquet(bundle.path / "parts.parquet")
        test = parts[parts["split"] == "test"]
        assert len(test) >= 4
        assert set(test["phase"]) == {"ED", "ES"}
        assert test["dice_cavity"].mean() > 0.85
        assert test["hd95_mm_cavity"].between(0, 20).all()
        predictions = pd.read_parquet(bundle.path / "predictions.parquet")
        assert set(predictions["head"]) == {"ef", "ef_of_reference"}
        own = predictions[(predictions["head"] == "ef") & (predictions["split"] == "test")]
        assert own["study_id"].is_unique
        assert regression_metrics(own["label"], own["score"]).mae < 8
        reference = predictions[predictions["head"] == "ef_of_reference"]
        assert regression_metrics(reference["label"], reference["score"]).mae < 2.5

    def test_the_export_computes_the_same(self, trained: Any) -> None:
        tolerance = trained[1].json("tolerance.json")
        assert tolerance["openvino_kept"]
        assert tolerance["largest_absolute_difference_of_scores"]["openvino_fp32"]["masks"] < 1e-3

    def test_it_verifies_itself(self, trained: Any) -> None:
        assert open_bundle(trained[1].place).task == "lv-seg"


@pytest.mark.ray
@pytest.mark.slow
class TestAnswers:
    def test_four_frames_give_volumes_of_two_views(self, predictor: SegmentPredictor) -> None:
        files, ef = patient()
        answer = predictor.predict(files, views=VIEWS)
        assert answer["ef"]["uncalibrated"] == pytest.approx(ef, abs=10)
        assert answer["volumes"]["views"] == ["A4C", "A2C"]
        assert answer["volumes"]["edv_ml"] > answer["volumes"]["esv_ml"] > 0
        assert [(o["view"], o["phase"]) for o in answer["outlines"]] == [
            tuple(view.split("-")) for view in VIEWS
        ]

    def test_the_order_of_the_files_does_not_matter(self, predictor: SegmentPredictor) -> None:
        files, _ = patient()
        first = predictor.predict(files, views=VIEWS)
        again = predictor.predict(files[::-1], views=VIEWS[::-1])
        assert first["ef"] == again["ef"]

    def test_one_view_is_enough(self, predictor: SegmentPredictor) -> None:
        files, _ = patient()
        answer = predictor.predict(files[:2], views=["4CH ED", "4ch_es"])
        assert answer["volumes"]["views"] == ["A4C"]

    def test_phases_of_a_cine_are_found_beat_by_beat(self, predictor: SegmentPredictor) -> None:
        frames, ef = cine()
        answer = predictor.predict(tiny.nifti(frames), views=["A4C"])
        assert answer["ef"]["uncalibrated"] == pytest.approx(ef, abs=12)
        [beat] = answer["beats"]  # NIfTI does not state a rate
        assert beat["ed_frame"] % 20 in (18, 19, 0, 1, 2)
        assert beat["es_frame"] % 20 in (8, 9, 10, 11, 12)
        assert any("how many frames a second" in text for text in answer["warnings"])

    def test_a_picture_without_a_pixel_size_needs_one(self, predictor: SegmentPredictor) -> None:
        files, _ = patient()
        bare = [tiny.nifti(np.asarray(predictor.decode(f)[0].picture), (0.0, 0.0)) for f in files]
        with pytest.raises(UnreadableImage, match="size of a pixel.*spacing_mm"):
            predictor.predict(bare, views=VIEWS)
        stated = predictor.predict(bare, views=VIEWS, spacing_mm=tiny.SPACING)
        whole = predictor.predict(files, views=VIEWS)
        assert stated["ef"]["value"] == pytest.approx(whole["ef"]["value"], abs=1e-4)

    @pytest.mark.parametrize(
        ("views", "reason"),
        [
            (None, "A4C-ED, A4C-ES"),
            (["A4C-ED", "PLAX-ES"], "'PLAX-ES' is none of these"),
            (["A4C-ED", "A4C-ED"], "Several files were sent as A4C-ED"),
            (["A4C-ED", "A4C"], "sent as the cine A4C is a single frame"),
            (["A4C-ED", "A2C-ES"], "No view has an outline"),
        ],
    )
    def test_views_that_make_no_study_are_refused(
        self, predictor: SegmentPredictor, views: list[str] | None, reason: str
    ) -> None:
        files, _ = patient()
        with pytest.raises(UnreadableImage, match=reason):
            predictor.predict(files[:2], views=views)

    def test_a_cine_is_no_frame_and_a_label_map_no_picture(
        self, predictor: SegmentPredictor
    ) -> None:
        files, _ = patient()
        frames, _ = cine(1, 6)
        with pytest.raises(UnreadableImage, match="axis of time"):
            predictor.predict([tiny.nifti(frames), files[1]], views=VIEWS[:2])
        with pytest.raises(UnreadableImage, match="label map"):
            predictor.predict([tiny.nifti(tiny.heart(80, 44)), files[1]], views=VIEWS[:2])
        other = tiny.nifti(predictor.decode(files[1])[0].picture, (0.5, 0.5))
        with pytest.raises(UnreadableImage, match="not of one cine"):
            predictor.predict([files[0], other], views=VIEWS[:2])

    def test_outlines_are_drawn_on_the_picture(self, predictor: SegmentPredictor) -> None:
        files, _ = patient()
        [sample] = predictor.decode(files[0])
        found = predictor.overlay(sample)
        assert found.media_type == "image/png"
        assert found.content[:4] == b"\x89PNG"
        with pytest.raises(ValueError, match="no gradcam of a segmentation"):
            predictor.overlay(sample, "gradcam")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"structures": ["atrium"]}, "the cavity among them"),
        ({"structures": ["cavity", "cavity"]}, "different ones"),
        ({"preprocess": {"image_size": 100}}, "multiple"),
        ({"model": {"backbone": "resnet18"}}, "architecture:encoder"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make_task("lv-seg", settings)


def test_known_names_of_networks(tmp_path: Path) -> None:
    task = make_task("lv-seg")
    assert "unet:resnet34" in task.backbones("unet:*")
    assert task.backbones("FPN:resnet18") == ["fpn:resnet18"]
