"""Heads on features of key frames: from CAMUS's layout to a bundle, a table and answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_segments as tiny
import torch

import cardioray
from cardioray.data.image import UnreadableImage
from cardioray.data.pipeline import prepare
from cardioray.data.reading import take_rows
from cardioray.data.segment import IMAGE
from cardioray.keyframes import KeyframePredictor
from cardioray.storage import list_files
from cardioray.tasks.keyframe_ef import KeyframeEfTask
from cardioray.training.features import compute_features
from cardioray.training.outcome import read_outcome
from cardioray.training.settings import RunConfig
from cardioray.tuning.keyframe_bundle import train_keyframes
from cardioray.tuning.keyframe_compare import compare_keyframes
from cardioray.tuning.settings import CompareConfig

SETTINGS = (
    "preprocess.image_size=64",
    "model.backbone=unet-tu-resnet10t",
    "model.pretrained=outlines",
    "heads.inner_folds=3",
    "heads.search=2",
    "heads.gp.restarts=1",
    "heads.mlp.epochs=20",
    "cut_off.value=45",
    "train.recipe=scratch",
    "train.epochs=3",
    "train.learning_rate=0.003",
    "train.batch_size=8",
    "train.precision=fp32",
    "scale.gpus_per_worker=0",
)
FOLDS = CompareConfig(backbones=("unet-tu-resnet10t",), folds=2, seed=3)


def built(*overrides: str) -> RunConfig:
    return RunConfig.build("keyframe-ef", None, (*SETTINGS, *overrides))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Any:
    folder = tmp_path_factory.mktemp("keyframes")
    run = built()
    manifest = run.task.read_manifest(str(tiny.write_camus(folder / "camus", 28)), None)
    return folder, prepare(run.task, manifest, str(folder / "shards"))


@pytest.fixture(scope="module")
def trained(prepared: Any) -> Any:
    folder, shards = prepared
    return train_keyframes(built(), shards, str(folder / "runs"), name="heads")


@pytest.fixture(scope="module")
def predictor(trained: Any) -> KeyframePredictor:
    found = cardioray.load(trained.place, precision="fp32")
    assert isinstance(found, KeyframePredictor)
    return found


def frames(shrunk: float = 0.7, seed: int = 5) -> list[bytes]:
    """Frames at end diastole and end systole."""
    rng = np.random.default_rng(seed)
    return [tiny.nifti(tiny.echo(tiny.heart(80.0, 44.0 * share), rng)) for share in (1.0, shrunk)]


@pytest.mark.ray
@pytest.mark.slow
class TestFeatures:
    def test_they_are_those_of_a_plain_loop_and_are_computed_once(
        self, prepared: Any, tmp_path: Path
    ) -> None:
        _, shards = prepared
        task = built("model.pretrained=none").task
        assert isinstance(task, KeyframeEfTask)
        torch.manual_seed(0)
        model = task.build_model().eval()
        rows = np.sort(shards.samples["row"].to_numpy(np.int64))[:21]
        found = compute_features(
            task, model.state_dict(), shards, rows, str(tmp_path), precision="fp32"
        )
        pictures = torch.from_numpy(take_rows(shards, rows, (IMAGE,))[IMAGE])
        with torch.inference_mode():
            plain = model.features(pictures).numpy()
        np.testing.assert_allclose(found.values, plain, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(found.of(rows[::-1]), found.values[::-1])

        before = {path: Path(path).stat().st_mtime_ns for path in list_files(str(tmp_path))}
        again = compute_features(
            task, model.state_dict(), shards, rows, str(tmp_path), precision="fp32"
        )
        assert {p: Path(p).stat().st_mtime_ns for p in list_files(str(tmp_path))} == before
        np.testing.assert_array_equal(again.values, found.values)

    def test_other_weights_are_other_features(self, prepared: Any, tmp_path: Path) -> None:
        _, shards = prepared
        task = built("model.pretrained=none").task
        rows = np.sort(shards.samples["row"].to_numpy(np.int64))[:4]
        values = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            state = task.build_model().state_dict()
            values.append(compute_features(task, state, shards, rows, str(tmp_path)).values)
        assert np.abs(values[0] - values[1]).max() > 1e-3

    def test_random_weights_are_to_be_asked_for(self, prepared: Any, tmp_path: Path) -> None:
        _, shards = prepared
        run = built("model.pretrained=hub", "model.backbone=resnet18")
        with pytest.raises(ValueError, match=r"model\.pretrained=none") as caught:
            train_keyframes(run, shards, str(tmp_path))
        assert "model.backbone=unet-resnet18" in str(caught.value)


@pytest.mark.ray
@pytest.mark.slow
def test_a_class_that_hardly_anyone_is_of_is_named(prepared: Any, tmp_path: Path) -> None:
    _, shards = prepared
    run = built("model.pretrained=none", "cut_off.value=5", "heads.search=0")
    with pytest.raises(ValueError, match="0 of 'EF<=5'"):
        train_keyframes(run, shards, str(tmp_path))


@pytest.mark.ray
@pytest.mark.slow
class TestBundle:
    def test_the_same_call_again_gives_the_finished_bundle(
        self, trained: Any, prepared: Any
    ) -> None:
        folder, shards = prepared
        again = train_keyframes(built(), shards, str(folder / "runs"), name="heads")
        assert again.identity == trained.identity

    def test_what_the_report_counts_is_in_the_bundle(self, trained: Any) -> None:
        models = trained.json("metrics.json")["keyframes"]["models"]
        heads = {f"{f}/{h}" for f in ("ED", "ES", "together") for h in ("gp", "mlp", "mlp_class")}
        assert set(models) == {"ensemble", "constant mean", *heads}
        ensemble = models["ensemble"]["number"]["mae"]["value"]
        assert ensemble == pytest.approx(
            trained.json("metrics.json")["targets"]["ef"]["per_study"]["mae"]["value"], abs=1e-6
        )

    def test_an_answer_is_that_of_the_table(
        self, predictor: KeyframePredictor, trained: Any, prepared: Any
    ) -> None:
        folder, _ = prepared
        table = pd.read_parquet(trained.path / "predictions.parquet")
        row = table[(table["head"] == "ef") & (table["split"] == "test")].iloc[0]
        place = folder / "camus" / row["patient_id"]
        files = [place / f"{row['patient_id']}_4CH_{phase}.nii.gz" for phase in ("ED", "ES")]
        answer = predictor.predict(files, views=["ED", "ES"])
        assert answer["ef"]["value"] == pytest.approx(row["score"], abs=0.05)
        low, high = answer["ef"]["intervals"]["80"]
        assert low < answer["ef"]["value"] < high
        assert answer["ef"]["sd"] > 0
        assert 0 <= answer["ef_le_45"]["probability"] <= 1

    def test_the_order_of_frames_does_not_matter(self, predictor: KeyframePredictor) -> None:
        ed, es = frames()
        first = predictor.predict([ed, es], views=["ED", "A4C-ES"])
        second = predictor.predict([es, ed], views=["es", "4CH-ED"])
        assert first["ef"] == second["ef"]

    def test_a_frame_alone_is_answered_by_its_heads_with_a_warning(
        self, predictor: KeyframePredictor
    ) -> None:
        answer = predictor.predict(frames()[:1], views=["ED"])
        assert answer["heads"]["ES/gp"]["value"] is None
        assert answer["heads"]["ED/gp"]["value"] is not None
        assert any("No frame ES was given" in text for text in answer["warnings"])

    def test_a_cine_is_answered_by_its_key_frames(self, predictor: KeyframePredictor) -> None:
        rng = np.random.default_rng(1)
        widths = np.linspace(44.0, 31.0, 9)
        cine = np.stack([tiny.echo(tiny.heart(80.0, width), rng) for width in widths])
        answer = predictor.predict(tiny.nifti(cine), key_frames=(0, 8))
        single = predictor.predict([tiny.nifti(cine[0]), tiny.nifti(cine[8])], views=["ED", "ES"])
        assert answer["ef"]["value"] == pytest.approx(single["ef"]["value"], abs=0.5)

    @pytest.mark.parametrize(
        ("views", "said"),
        [
            (["ED", "ED"], "Several frames were sent as ED"),
            (["late", "ES"], "'late' is none of these"),
            (None, "Say which frame each file shows"),
            (["MID", "MID"], "Several"),
        ],
    )
    def test_frames_that_are_not_known_are_refused(
        self, predictor: KeyframePredictor, views: list[str] | None, said: str
    ) -> None:
        with pytest.raises(UnreadableImage, match=said):
            predictor.predict(frames(), views=views)

    def test_a_cine_in_the_place_of_a_frame_is_refused(self, predictor: KeyframePredictor) -> None:
        cine = np.stack([tiny.echo(tiny.heart(80.0, 40.0), np.random.default_rng(0))] * 3)
        with pytest.raises(UnreadableImage, match="axis of time"):
            predictor.predict(tiny.nifti(cine), views=["ED"] * 1)
        with pytest.raises(UnreadableImage, match="no frame 7"):
            predictor.predict(tiny.nifti(cine), key_frames=(0, 7))

    def test_heads_that_do_not_belong_together_are_refused(self, predictor: Any) -> None:
        from cardioray.tasks.keyframe_heads import FittedHeads

        record = predictor.bundle.json("heads.json")
        with pytest.raises(ValueError, match="gaussian process|Gaussian process|misses|missing"):
            FittedHeads.read(record, {})


@pytest.mark.ray
@pytest.mark.slow
def test_every_patient_is_scored_once_by_what_has_not_seen_them(
    prepared: Any, tmp_path: Path
) -> None:
    _, shards = prepared
    run = built("split.test=0", "split.train=0.75", "heads.search=0", "heads.members=[gp,mlp]")
    found = compare_keyframes(run, shards, FOLDS, str(tmp_path / "heads"))
    table = pd.read_parquet(tmp_path / "heads" / "keyframes.parquet")
    own = table[table["model"] == "ensemble"]
    assert sorted(own["patient_id"]) == sorted(shards.samples["patient_id"].unique())
    for fold, scored in own.groupby("fold"):
        outcome = read_outcome(str(tmp_path / "heads" / "encoders" / str(fold)))
        assert outcome is not None
        parts = outcome.tables().parts
        assert parts is not None
        assert not set(parts["patient_id"]) & set(scored["patient_id"])
    names = [row.model for row in found.report.rows]
    assert names[0] == "ensemble"
    assert names[-1] == "constant mean"
    assert (tmp_path / "heads" / "plots" / "risk_coverage.png").is_file()

    # The same table beside itself: no difference, and no patient is lost.
    beside = own.drop(columns="fold").rename(columns={"value": "score"})
    beside = beside.assign(split="test", head="ef")
    beside.to_parquet(tmp_path / "other.parquet")
    again = compare_keyframes(
        run, shards, FOLDS, str(tmp_path / "heads"), beside=[f"twin={tmp_path / 'other.parquet'}"]
    )
    [twin] = [row for row in again.report.rows if row.model == "twin"]
    assert twin.against is not None
    assert twin.against.difference.value == pytest.approx(0, abs=1e-9)
    assert twin.studies == len(own)
