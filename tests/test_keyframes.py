"""Heads on features of key frames: from CAMUS's layout to a bundle, a table and answers."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
import tiny_segments as tiny
import torch
from numpy.typing import NDArray
from PIL import Image
from ray import serve
from rich.console import Console
from safetensors.torch import load_file
from served import encoded
from tiny_bundles import run_example
from tiny_dicom import echo_dicom
from tiny_outlines import beating, outlining_bundle
from tiny_training import training_here, untrained_bundle
from typer.testing import CliRunner

import cardioray
from cardioray.bundle import Bundle
from cardioray.cli import app
from cardioray.data.image import UnreadableImage
from cardioray.data.pipeline import prepare
from cardioray.data.reading import take_rows
from cardioray.data.segment import IMAGE
from cardioray.data.video_writing import encode_video
from cardioray.evaluation.uncertainty import REVIEW_WRONG_SIDE, wrong_side_probability
from cardioray.inference.batch import predict_files
from cardioray.inference.evaluate import evaluate_bundle
from cardioray.keyframes import HeadsPredictor, KeyframePredictor
from cardioray.machine import free_port
from cardioray.models.backbones import NoFeatureMap
from cardioray.models.keyframes import KeyframeModel
from cardioray.serve.deploy import application_settings, serve_bundles
from cardioray.serve.settings import ServerSettings
from cardioray.storage import list_files
from cardioray.tasks.keyframe_ef import KeyframeEfTask
from cardioray.tasks.keyframe_heads import Answers, Fit
from cardioray.tasks.keyframe_heat import trained_heat
from cardioray.training.features import Features, compute_features
from cardioray.training.outcome import read_outcome
from cardioray.training.run import make_plan, train
from cardioray.training.settings import RunConfig
from cardioray.training.single import divide
from cardioray.tuning.division import divide as divide_in_folds
from cardioray.tuning.keyframe_bundle import train_keyframes
from cardioray.tuning.keyframe_compare import compare_keyframes
from cardioray.tuning.keyframe_heat import heat_in_structures, summary
from cardioray.tuning.keyframes import Backbones, Fitted, divisions, find_studies
from cardioray.tuning.settings import CompareConfig

SETTINGS = (
    # The deepest map then has 3 x 3 positions, the fewest that heat is made of.
    "preprocess.image_size=96",
    "model.backbone=unet-tu-resnet10t",
    # Where a backbone comes from is the matter of a few tests; random features suit the others.
    "model.pretrained=none",
    "heads.inner_folds=3",
    "heads.search=2",
    "heads.gp.restarts=1",
    "heads.mlp.epochs=20",
    "cut_off.value=45",
    "outlines.epochs=1",
    "outlines.batch_size=8",
    "train.precision=fp32",
    "scale.gpus_per_worker=0",
)
QUIET = Console(quiet=True)
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


def first_layer(state: dict[str, torch.Tensor]) -> torch.Tensor:
    """The weights of an encoder's first convolution, in a network of either task."""
    return state[min(k for k, v in state.items() if "encoder." in k and v.ndim == 4)]


def dicoms(**tags: str) -> list[bytes]:
    """The same two as DICOM files; the second one with other tags."""
    rng = np.random.default_rng(5)
    maps = [tiny.heart(80.0, 44.0 * share) for share in (1.0, 0.7)]
    own: list[dict[str, str]] = [{}, tags]
    return [echo_dicom(tiny.echo(m, rng), **t) for m, t in zip(maps, own, strict=True)]


@pytest.mark.ray
@pytest.mark.slow
class TestFeatures:
    def test_they_are_those_of_a_plain_loop_and_are_computed_once(
        self, prepared: Any, tmp_path: Path
    ) -> None:
        _, shards = prepared
        task = built().task
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
        task = built().task
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
    run = built("model.pretrained=outlines", "cut_off.value=5")
    with pytest.raises(ValueError, match="0 of 'EF<=5'"):
        train_keyframes(run, shards, str(tmp_path))
    # Before anything was trained or computed.
    assert list_files(str(tmp_path)) == []


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

    def test_the_example_of_its_card_runs(self, trained: Any, tmp_path: Path) -> None:
        rng = np.random.default_rng(5)
        for name, width in (("ed", 44.0), ("es", 32.0)):
            Image.fromarray(tiny.echo(tiny.heart(80.0, width), rng)).save(tmp_path / f"{name}.png")
        assert run_example(trained.path, tmp_path)["frames"] == 2

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

    def test_a_table_of_cines_is_answered_by_the_key_frames_that_it_names(
        self, trained: Any, predictor: KeyframePredictor, tmp_path: Path
    ) -> None:
        rng = np.random.default_rng(1)
        widths = np.linspace(44.0, 31.0, 9)
        cine = tiny.nifti(np.stack([tiny.echo(tiny.heart(80.0, width), rng) for width in widths]))
        (tmp_path / "cine.nii.gz").write_bytes(cine)
        table = tmp_path / "keyframes.csv"
        table.write_text("source,ed_frame,es_frame\ncine.nii.gz,0,8\n")
        out = str(tmp_path / "answers.csv")
        found = predict_files(
            str(trained.place), [str(table)], out, console=Console(quiet=True), precision="fp32"
        )
        expected = predictor.predict(cine, key_frames=(0, 8))
        assert found["ef_value"].tolist() == pytest.approx([expected["ef"]["value"]], abs=1e-3)
        assert found["frames"].tolist() == [3]

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
        with pytest.raises(UnreadableImage, match=r"the file has 3 frame\(s\)"):
            predictor.predict(tiny.nifti(cine), key_frames=(0, 7))
        with pytest.raises(UnreadableImage, match="file is a single frame"):
            predictor.predict(encoded(cine[0]), key_frames=(0, 2))
        with pytest.raises(UnreadableImage, match="sent as the frame ED"):
            predictor.predict(tiny.nifti(cine), views=["ED"], key_frames=(0, 2))
        with pytest.raises(ValueError, match="one cine, and there are 2 items"):
            predictor.predict([tiny.nifti(cine)] * 2, key_frames=(0, 2))

    @pytest.mark.parametrize(
        ("views", "tags", "said"),
        [
            (["A2C-ED", "A2C-ES"], {}, "sent as one of A2C, and the model has learned from A4C"),
            (["A4C-ED", "2CH-ES"], {}, "sent as one of A2C"),
            (["ED", "ES"], {"PatientID": "P2"}, "several patients"),
            (["ED", "ES"], {"StudyInstanceUID": "1.2.3"}, "several examinations"),
            (["MID"], {}, "None of the frames MID"),
        ],
    )
    def test_frames_that_do_not_belong_together_are_refused_before_the_network_runs(
        self, predictor: KeyframePredictor, views: list[str], tags: dict[str, str], said: str
    ) -> None:
        files = dicoms(**tags)[: len(views)]
        samples = predictor.read(files, views)
        with pytest.raises(UnreadableImage, match=said):
            predictor.check(samples)
        with pytest.raises(UnreadableImage, match=said):
            predictor.predict(files, views=views)
        predictor.check(predictor.read(dicoms(), ["4ch ED", "A4C_ES"]))

    def test_intervals_and_review_are_of_the_number_that_is_answered(
        self, predictor: KeyframePredictor
    ) -> None:
        answer = predictor.predict(frames(), views=["ED", "ES"])
        for low, high in answer["ef"]["intervals"].values():
            assert 0 <= low <= answer["ef"]["value"] <= high <= 100
        [doubt] = wrong_side_probability([answer["ef"]["value"]], [answer["ef"]["sd"]], 45.0)
        assert answer["review"]["probability_wrong_side"] == pytest.approx(doubt)
        near = any("near the cut-off 45" in reason for reason in answer["review"]["reasons"])
        assert near == (doubt > REVIEW_WRONG_SIDE)

    def test_heads_that_do_not_belong_together_are_refused(self, predictor: Any) -> None:
        from cardioray.tasks.keyframe_heads import FittedHeads

        record = predictor.bundle.json("heads.json")
        with pytest.raises(ValueError, match="gaussian process|Gaussian process|misses|missing"):
            FittedHeads.read(record, {})


@pytest.mark.ray
@pytest.mark.slow
class TestOutlines:
    """A backbone that learns outlines of the very patients whom heads are fitted to."""

    def test_what_heads_are_weighed_by_is_new_to_the_backbone_too(
        self, prepared: Any, tmp_path: Path
    ) -> None:
        _, shards = prepared
        run = built("model.pretrained=outlines", "heads.search=0", "heads.members=[gp]")
        with training_here():
            bundle = train_keyframes(run, shards, str(tmp_path), name="heads")
        outcomes = [
            outcome
            for folder in sorted((tmp_path / "heads" / "encoders").iterdir())
            if (outcome := read_outcome(str(folder))) is not None
        ]
        # One backbone for the bundle, and one for each inner fold, which leaves patients out.
        assert len(outcomes) == 1 + 3
        weights = [first_layer(outcome.weights()) for outcome in outcomes]
        kept = first_layer(load_file(bundle.path / "model.safetensors"))
        assert sum(bool(torch.equal(kept, each)) for each in weights) == 1
        assert len({each.numpy().tobytes() for each in weights}) == len(weights)
        patients, split = shards.samples["patient_id"], divide(run, shards).split
        for outcome in outcomes:
            parts = outcome.tables().parts
            assert parts is not None
            assert not set(parts["patient_id"]) & set(patients[split == "test"])

        # Whoever asks for a backbone of the same patients gets the same one.
        assert isinstance(run.task, KeyframeEfTask)
        studies = find_studies(run.task, shards)
        backbones = Backbones(run, shards, studies, str(tmp_path / "heads"), None)
        again = backbones.weights(set(patients[split != "test"]), "another division")
        assert torch.equal(first_layer(again), kept)
        assert len(list((tmp_path / "heads" / "encoders").glob("lv-seg-*"))) == len(outcomes)

    def test_inner_folds_of_a_comparison_are_its_other_folds(self, prepared: Any) -> None:
        # So that the backbone without folds 1 and 2 is that of both.
        _, shards = prepared
        run = built("split.test=0", "split.train=0.75")
        assert isinstance(run.task, KeyframeEfTask)
        studies = find_studies(run.task, shards)
        settings = CompareConfig(backbones=FOLDS.backbones, folds=4, seed=3)
        folds = dict(enumerate(divide_in_folds(run, shards, settings).folds))
        parts = divisions(
            run.task, shards, studies, {f"fold{k}": fold for k, fold in folds.items()}, seed=0
        )
        patients = studies.table["patient_id"].to_numpy()
        tested = [frozenset(patients[part.test]) for part in parts]
        assert frozenset().union(*tested) == set(patients)
        for part, own in zip(parts, tested, strict=True):
            mine = patients[part.development]
            held = [frozenset(mine[rows]) for _, rows in part.folds]
            assert sorted(held, key=sorted) == sorted(set(tested) - {own}, key=sorted)
            for fitted, rows in part.folds:
                assert not set(mine[fitted]) & set(mine[rows])

    def test_end_to_end_starts_from_outlines_of_its_own_patients(
        self, prepared: Any, tmp_path: Path
    ) -> None:
        _, shards = prepared
        run = built(
            "model.pretrained=outlines", "method=end_to_end", "train.epochs=1", "train.batch_size=8"
        )
        split = divide(run, shards).split
        with training_here():  # all but the training that is asked for
            outcome = train(run, shards, split, str(tmp_path), name="all")
        started = json.loads((tmp_path / "all" / "started.json").read_text())
        assert started["starting_weights"] == str(tmp_path / "all-start" / "model.safetensors")
        before = first_layer(load_file(started["starting_weights"]))
        after = first_layer(outcome.weights())
        drawn = first_layer(run.task.build_model().state_dict())
        assert (after - before).abs().mean() < 0.5 * (drawn - before).abs().mean()

    def test_weights_that_have_seen_the_patients_are_refused(
        self, trained: Any, prepared: Any, tmp_path: Path
    ) -> None:
        _, shards = prepared
        run = built(f"model.weights={trained.path / 'model.safetensors'}", "split.seed=5")
        with pytest.raises(ValueError, match="of the test patients: their scores would be too"):
            train_keyframes(run, shards, str(tmp_path))
        same = built(f"model.weights={trained.path / 'model.safetensors'}")
        with pytest.raises(ValueError, match="patients heads learn from"):
            train_keyframes(same, shards, str(tmp_path))


@pytest.mark.ray
@pytest.mark.slow
def test_every_patient_is_scored_once_by_what_has_not_seen_them(
    prepared: Any, tmp_path: Path
) -> None:
    _, shards = prepared
    run = built("split.test=0", "split.train=0.75", "heads.search=0", "heads.members=[gp]")
    # Another model, which is off by a point.
    rival = shards.samples.drop_duplicates("study_id")[["study_id", "patient_id", "ef"]]
    rival = rival.rename(columns={"ef": "label"}).assign(split="test", head="ef")
    rival.assign(score=rival["label"] + 1).to_parquet(tmp_path / "other.parquet")
    beside = [f"rival={tmp_path / 'other.parquet'}"]
    found = compare_keyframes(run, shards, FOLDS, str(tmp_path / "heads"), beside=beside)
    table = pd.read_parquet(tmp_path / "heads" / "keyframes.parquet")
    own = table[table["model"] == "ensemble"]
    assert sorted(own["patient_id"]) == sorted(shards.samples["patient_id"].unique())
    assert own["fold"].nunique() == FOLDS.folds
    queue = pd.read_csv(tmp_path / "heads" / "review_queue.csv")
    assert queue["flagged"].any()
    assert not queue["flagged"].all()
    names = [row.model for row in found.report.rows]
    assert names[0] == "ensemble"
    assert names[-1] == "constant mean"
    assert (tmp_path / "heads" / "plots" / "risk_coverage.png").is_file()
    heat = pd.read_csv(tmp_path / "heads" / "heat_shares.csv").set_index(["frame", "place"])
    for frame in ("ED", "ES"):
        whole = heat.loc[frame].loc[["cavity", "myocardium", "atrium", "elsewhere"]]
        assert whole["value"].sum() == pytest.approx(1, abs=1e-6)
        assert (whole["frames"] > 0).all()

    [other] = [row for row in found.report.rows if row.model == "rival"]
    assert other.number["mae"].value == pytest.approx(1, abs=1e-4)
    assert other.studies == len(own)
    assert other.against is not None
    mae = found.report.rows[0].number["mae"].value
    assert other.against.difference.value == pytest.approx(mae - 1, abs=1e-4)


@pytest.fixture(scope="module")
def end_to_end(prepared: Any) -> Bundle:
    """A network that says the number itself, untrained."""
    folder, shards = prepared
    run = built("method=end_to_end", "operating.calibration=none")
    split = divide(run, shards).split
    place = str(folder / "network")
    plan = make_plan(run, shards, split, place, f"{place}-weights", None, "network")
    torch.manual_seed(0)
    model = run.task.build_model()
    run.task.initialise(model, plan.statistics)
    weights = model.eval().state_dict()
    with training_here():  # draws no plots
        return untrained_bundle(run, plan, split, weights, folder / "network-bundle")


@pytest.fixture(scope="module")
def network(end_to_end: Bundle) -> KeyframePredictor:
    found = cardioray.load(end_to_end.path, precision="fp32", num_threads=1)
    assert isinstance(found, KeyframePredictor)
    return found


def cine(count: int, seed: int = 1) -> NDArray[np.uint8]:
    """A heart that contracts from the first frame to the last, (T, H, W)."""
    rng = np.random.default_rng(seed)
    widths = np.linspace(44.0, 31.0, count)
    return np.stack([tiny.echo(tiny.heart(80.0, width), rng) for width in widths])


def opened(content: bytes) -> NDArray[np.uint8]:
    """A PNG as an array."""
    return np.asarray(Image.open(io.BytesIO(content)))


@pytest.mark.ray
@pytest.mark.slow
class TestEndToEnd:
    def test_it_answers_with_the_mean_over_frames(self, network: KeyframePredictor) -> None:
        files = frames()
        answer = network.predict(files, views=["ED", "ES"])
        alone = [network.predict(f, views=[v]) for f, v in zip(files, ("ED", "ES"), strict=True)]
        mean = np.mean([single["ef"]["value"] for single in alone])
        assert answer["ef"]["value"] == pytest.approx(mean, abs=1e-3)
        assert "heads" not in answer

    def test_it_refuses_what_heads_refuse(self, network: KeyframePredictor) -> None:
        with pytest.raises(UnreadableImage, match="several patients"):
            network.predict(dicoms(PatientID="P2"), views=["ED", "ES"])
        with pytest.raises(UnreadableImage, match="learned from A4C"):
            network.predict(frames(), views=["A2C-ED", "A2C-ES"])
        with pytest.raises(UnreadableImage, match="key_frames"):
            network.predict(tiny.nifti(cine(9)), views=["A4C"])

    def test_its_heat_is_that_of_its_number(self, network: KeyframePredictor) -> None:
        [sample] = network.read(frames()[0], ["ED"])
        overlay = network.overlay(sample, "gradcam++")
        assert opened(overlay.content).shape == (*tiny.SHAPE, 3)
        with pytest.raises(NoFeatureMap, match="no scorecam of a key frame"):
            network.overlay(sample, "scorecam")
        model, picture = network.model, sample.arrays[IMAGE]
        assert isinstance(model, KeyframeModel)
        assert model.head is not None
        value = network.predict(frames()[0], views=["ED"])["ef"]["value"]
        tops = []
        for cutoff, sign in ((value - 1, 1), (value + 1, -1)):
            with torch.inference_mode():
                maps = model.feature_map(torch.tensor(picture[None]))[0].numpy()
                weights = sign * model.head.weight[0].numpy()
            expected = np.maximum(np.tensordot(weights, maps, 1), 0)
            heat = trained_heat(model, network._statistics, cutoff, picture, "gradcam")
            tops.append(expected.max())
            np.testing.assert_allclose(heat, expected / (tops[-1] or 1), atol=1e-4)
        assert max(tops) > 0

    def test_only_frames_that_it_is_for_are_scored(
        self, end_to_end: Bundle, prepared: Any, tmp_path: Path
    ) -> None:
        folder, _ = prepared
        again = evaluate_bundle(str(end_to_end.path), str(folder / "camus"), console=QUIET)["ef"]
        held = end_to_end.json("metrics.json")["targets"]["ef"]["per_study"]["mae"]["value"]
        assert again.per_study.values["mae"].value == pytest.approx(held, abs=1e-3)
        other = tiny.write_camus(tmp_path / "other", 8, seed=9)
        found = evaluate_bundle(str(end_to_end.path), str(other), console=QUIET)["ef"]
        # Two frames of the view that the model is for, of each patient.
        assert (found.studies, found.frames) == (8, 16)
        assert any("16 of 32 rows are of other views" in note for note in found.notes)


@pytest.fixture(scope="module")
def url(trained: Any, end_to_end: Bundle) -> Iterator[str]:
    settings = ["precision=fp32", "scaling.max_replicas=1", "limits.max_frames=20"]
    bundles = [str(trained.path), str(end_to_end.path)]
    applications = application_settings(bundles, [*settings, "limits.max_overlays=2"])
    serving = serve_bundles(applications, ServerSettings(port=free_port()))
    try:
        yield serving.urls["keyframe-ef"]
    finally:
        serving.stop()
        serve.shutdown()  # the next file listens elsewhere


def post(url: str, files: Any, **query: str | list[str]) -> httpx.Response:
    return httpx.post(url, files=files, params=query, timeout=60)


NINE = tiny.nifti(cine(9))
ED_FILE, ES_FILE = frames()
REFUSED: dict[str, tuple[Any, dict[str, str], int, str]] = {
    "label map": ({"ed": tiny.nifti(tiny.heart(80, 44))}, {}, 422, "label map, not a picture"),
    "cine as frame": ({"ed": NINE}, {}, 422, "sent as ED is a cine: it has an axis of time"),
    "cine alone": ({"a4c": NINE}, {}, 422, "?key_frames=12,30"),
    "other view": ({"a2c_ed": ED_FILE, "a2c_es": ES_FILE}, {}, 422, "has learned from A4C"),
    "cine of it": ({"a2c": NINE}, {"key_frames": "0,8"}, 422, "has learned from A4C"),
    "unknown field": ({"a2c-ed": ED_FILE, "ed": ED_FILE}, {}, 400, "1 unknown form field(s)"),
    "scorecam": ({"ed": ED_FILE}, {"overlay": "scorecam"}, 422, "gradcam++ and gradcam"),
    "outlines": ({"ed": ED_FILE}, {"overlay": "outlines"}, 400, "draws no outlines"),
    "frame as cine": ({"ed": NINE}, {"key_frames": "0,8"}, 422, "sent as the frame ED"),
    "a still": ({"file": encoded(cine(1)[0])}, {"key_frames": "0,8"}, 422, "is a single frame"),
    "too late": ({"a4c": NINE}, {"key_frames": "0,9"}, 422, "the file has 9 frame(s)"),
    "far apart": ({"a4c": NINE}, {"key_frames": "0,20"}, 422, "at most 20 frames"),
    "below 0": ({"a4c": NINE}, {"key_frames": "-1,3"}, 422, "no frame -1"),
    "the same": ({"a4c": NINE}, {"key_frames": "3,3"}, 422, "both frame 3"),
    "no number": ({"a4c": NINE}, {"key_frames": "x,3"}, 400, "such as 12,30"),
    "and frame": ({"a4c": NINE}, {"key_frames": "0,8", "frame": "0-8"}, 400, "not by both"),
    "two": ([("file", NINE), ("file", NINE)], {"key_frames": "0,8"}, 400, "2 files were sent"),
}


@pytest.mark.ray
@pytest.mark.slow
class TestServed:
    def test_fields_say_which_frame_it_is(self, url: str, predictor: KeyframePredictor) -> None:
        ed, es = frames()
        response = post(url, {"ed": ed, "a4c_es": es})
        assert response.status_code == 200, response.text
        answer, expected = response.json(), predictor.predict([ed, es], views=["ED", "ES"])
        assert answer["ef"]["value"] == pytest.approx(expected["ef"]["value"], abs=0.05)
        assert answer["ef"]["sd"] == pytest.approx(expected["ef"]["sd"], abs=0.05)
        assert answer["review"]["flagged"] == expected["review"]["flagged"]
        again = post(url, [("file", es), ("file", ed)], view=["ES", "ED"])
        assert again.json()["ef"]["value"] == pytest.approx(answer["ef"]["value"], abs=1e-3)

    def test_another_model_of_the_task_is_asked_alike(
        self, url: str, network: KeyframePredictor
    ) -> None:
        ed, es = frames()
        response = post(url, {"ed": ed, "es": es}, model="network", overlay="gradcam")
        assert response.status_code == 200, response.text
        expected = network.predict([ed, es], views=["ED", "ES"])
        assert response.json()["ef"]["value"] == pytest.approx(expected["ef"]["value"], abs=0.05)
        assert len(response.json()["overlays"]) == 2

    def test_heat_is_drawn_on_the_frames_that_were_chosen(
        self, url: str, predictor: KeyframePredictor
    ) -> None:
        pictures = cine(30)
        # Beyond the frames that a request may hold, and beyond those that are drawn on.
        sent = {"a4c": tiny.nifti(pictures)}
        response = post(url, sent, key_frames="24,28", overlay="gradcam++")
        assert response.status_code == 200, response.text
        answer = response.json()
        expected = predictor.predict(sent["a4c"], views=["A4C"], key_frames=(24, 28))
        assert answer["ef"]["value"] == pytest.approx(expected["ef"]["value"], abs=0.05)
        assert answer["frames"] == expected["frames"] == 2  # there is no head on a middle frame
        assert [overlay["frame"] for overlay in answer["overlays"]] == [0, 1]
        for overlay, number in zip(answer["overlays"], (24, 28), strict=True):
            head, _, coded = overlay["png"].partition(",")
            assert head == "data:image/png;base64"
            drawn = opened(base64.b64decode(coded)).astype(float)
            # Heat adds colour, at most half of it, and leaves what is cold as it was.
            assert np.corrcoef(drawn[..., 2].ravel(), pictures[number].ravel())[0, 1] > 0.5

    def test_a_frame_that_no_head_is_on_is_left_out_with_a_word(self, url: str) -> None:
        sent = {"ed": ED_FILE, "es": ES_FILE, "mid": ES_FILE}
        response = post(url, sent, overlay="gradcam")
        assert response.status_code == 200, response.text
        assert len(response.json()["overlays"]) == 2
        assert any(text.startswith("MID: the model") for text in response.json()["warnings"])

    def test_the_document_names_fields_and_answers(self, url: str) -> None:
        document = httpx.get(f"{url}/openapi.json").json()
        body = document["paths"]["/v1/keyframe-ef"]["post"]["requestBody"]["content"]
        fields = body["multipart/form-data"]["schema"]["properties"]
        assert {"ed", "es", "mid", "a4c", "file", "files"} <= set(fields)
        answer = document["components"]["schemas"]["Answer"]["properties"]
        assert {"heads", "review"} <= set(answer)

    @pytest.mark.parametrize("name", REFUSED)
    def test_what_has_no_answer_is_refused(self, url: str, name: str) -> None:
        files, query, status, said = REFUSED[name]
        response = post(url, files, **query)
        assert response.status_code == status, response.text
        assert said in response.json()["detail"]

    @pytest.mark.parametrize("model", ["heads", "network"])
    def test_files_of_two_patients_or_examinations_are_not_mixed(
        self, url: str, model: str
    ) -> None:
        for tags, said in (
            ({"PatientID": "P2"}, "several patients"),
            ({"StudyInstanceUID": "1.2.3"}, "several examinations"),
        ):
            ed, es = dicoms(**tags)
            response = post(url, {"ed": ed, "es": es}, model=model)
            assert response.status_code == 422
            assert said in response.json()["detail"]
            assert "P2" not in response.text
        ed, es = dicoms()
        assert post(url, {"ed": ed, "es": es}, model=model).status_code == 200

    def test_text_in_the_place_of_a_file_is_refused(self, url: str) -> None:
        sent = {"ed": ED_FILE}
        response = httpx.post(url, files=sent, data={"es": "es.png"}, timeout=60)
        assert response.status_code == 422
        assert "no file but text" in response.json()["detail"]
        # As a browser sends a field that was left empty.
        response = httpx.post(url, files=sent, data={"es": ""}, timeout=60)
        assert response.status_code == 200


def run_command(*words: str) -> None:
    result = CliRunner().invoke(app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output


@pytest.mark.ray
@pytest.mark.slow
class TestCommands:
    def test_explain_shows_the_frame_that_it_is_told(self, trained: Any, tmp_path: Path) -> None:
        (tmp_path / "ed.nii.gz").write_bytes(ED_FILE)
        (tmp_path / "cine.nii.gz").write_bytes(NINE)
        out = tmp_path / "heat.png"
        words = ["explain", str(trained.path), str(tmp_path / "ed.nii.gz"), "--out", str(out)]
        run_command(*words, "--view", "A4C-ED")
        assert Image.open(out).size == (960, 350)
        with pytest.raises(UnreadableImage, match="Say which frame each file shows"):
            run_command(*words)
        with pytest.raises(NoFeatureMap, match="no scorecam of a key frame"):
            run_command(*words, "--view", "ED", "--method", "scorecam")
        words[2] = str(tmp_path / "cine.nii.gz")
        with pytest.raises(UnreadableImage, match="axis of time"):
            run_command(*words, "--view", "ES")
        out.unlink()
        run_command(*words, "--view", "ES", "--frame", "8")
        assert out.is_file()

    def test_evaluate_gives_the_figures_of_the_bundle_again(
        self, trained: Any, prepared: Any, tmp_path: Path
    ) -> None:
        folder, _ = prepared
        found = evaluate_bundle(
            str(trained.path), str(folder / "camus"), out=str(tmp_path), console=QUIET
        )
        held = trained.json("metrics.json")["targets"]
        written = json.loads((tmp_path / "metrics.json").read_text())
        assert written["largest_score_difference_from_the_bundle"]["ef"] < 1e-2
        for name, figure in (("ef", "mae"), ("ef_le_45", "auc")):
            value = held[name]["per_study"][figure]["value"]
            again = found[name].per_study.values[figure].value
            assert again == pytest.approx(value, abs=1e-2, nan_ok=True)
        assert found["ef"].studies == held["ef"]["studies"]

    def test_evaluate_scores_studies_of_other_patients_by_their_heads(
        self, trained: Any, predictor: KeyframePredictor, tmp_path: Path
    ) -> None:
        other = tiny.write_camus(tmp_path / "other", 8, seed=9)
        (other / "patient0003" / "patient0003_4CH_ES.nii.gz").write_bytes(b"damaged")
        found = evaluate_bundle(
            str(trained.path), str(other), out=str(tmp_path / "out"), console=QUIET
        )["ef"]
        assert (found.patients, found.studies) == (8, 8)
        assert any("1 of 16 files cannot be read" in note for note in found.notes)
        table = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
        scores = table[table["head"] == "ef"].set_index("patient_id")["score"]
        for patient, phases in (("patient0001", ("ED", "ES")), ("patient0003", ("ED",))):
            files = [other / patient / f"{patient}_4CH_{phase}.nii.gz" for phase in phases]
            answer = predictor.predict(files, views=phases)
            assert answer["ef"]["value"] == pytest.approx(scores[patient], abs=0.05)

    def test_patients_that_took_part_are_not_scored(
        self, trained: Any, prepared: Any, tmp_path: Path
    ) -> None:
        folder, shards = prepared
        learned = shards.samples["patient_id"][divide(built(), shards).split == "train"].unique()
        other = tiny.write_camus(tmp_path / "other", 6, seed=9)
        for number, patient in enumerate(learned[:3]):
            # The same frames under another name.
            name = f"patient{100 + number:04d}"
            (other / name).mkdir()
            for file in (folder / "camus" / patient).iterdir():
                (other / name / file.name.replace(patient, name)).write_bytes(file.read_bytes())
        found = evaluate_bundle(str(trained.path), str(other), console=QUIET)["ef"]
        assert found.patients == 6
        assert any("3 of 9 patients have frames that took part" in note for note in found.notes)

    def test_predict_answers_for_the_studies_of_a_table(
        self, trained: Any, predictor: KeyframePredictor, tmp_path: Path
    ) -> None:
        other = tiny.write_camus(tmp_path / "other", 2, seed=9)
        rows = [
            (f"{patient}/{patient}_4CH_{phase}.nii.gz", patient, "A4C", phase)
            for patient in ("patient0001", "patient0002")
            for phase in ("ED", "ES")
        ]
        for name, data in zip(("one.dcm", "two.dcm"), dicoms(PatientID="P2"), strict=True):
            (other / name).write_bytes(data)
        rows += [("one.dcm", "mixed", "", "ED"), ("two.dcm", "mixed", "", "ES")]
        table = pd.DataFrame(rows, columns=["source", "study_id", "view", "phase"])
        table.to_csv(other / "studies.csv", index=False)
        out = tmp_path / "answers.csv"
        answers = predict_files(
            str(trained.path), [str(other / "studies.csv")], str(out), precision="fp32"
        )
        assert answers["study_id"].tolist() == ["patient0001", "patient0002"]
        for row in answers.to_dict("records"):
            expected = predictor.predict(json.loads(row["sources"]), views=["ED", "ES"])
            assert row["ef_value"] == pytest.approx(expected["ef"]["value"], abs=0.05)
            assert row["review_flagged"] == expected["review"]["flagged"]
        assert "several patients" in Path(f"{out}.quarantine.csv").read_text()

    @pytest.mark.parametrize("positional", [True, False])
    def test_key_frames_of_cines_become_a_table_that_is_read(
        self, ray_local: None, tmp_path: Path, positional: bool
    ) -> None:
        for number in range(2):
            video = encode_video(beating(40, first=3 + number, seed=number), 20.0)
            (tmp_path / f"cine{number}.avi").write_bytes(video)
        (tmp_path / "broken.avi").write_bytes(b"RIFF0000AVI nothing")
        names = ["cine0.avi", "cine1.avi", "broken.avi"]
        data, out = tmp_path / "cines.csv", tmp_path / "keyframes.csv"
        pd.DataFrame({"filename": names, "ef": [50.0, 40.0, 30.0]}).to_csv(data, index=False)
        how = ["--positional"] if positional else ["--bundle", str(outlining_bundle())]
        run_command("data", "keyframes", str(data), str(out), *how)
        table = pd.read_csv(out)
        assert len(table) == 2
        for number, row in enumerate(table.to_dict("records")):
            ed, es, mid = (row[name] for name in ("ed_frame", "es_frame", "mid_frame"))
            if positional:
                assert (ed, es, mid) == (26, 13, 20)
                continue
            assert (ed - 3 - number) % 16 in (15, 0, 1)
            assert (es - 3 - number - 8) % 16 in (15, 0, 1)
            assert mid == (ed + es) // 2
        assert "broken.avi" in Path(f"{out}.quarantine.csv").read_text()
        manifest = built().task.read_manifest(str(out), None)
        assert sorted(manifest.table["phase"]) == ["ED", "ED", "ES", "ES", "MID", "MID"]
        with pytest.raises(ValueError, match="Say how key frames are found"):
            run_command("data", "keyframes", str(data), str(out))


@pytest.mark.ray
@pytest.mark.slow
def test_a_backbone_without_heat_is_named_in_the_log(
    prepared: Any, predictor: KeyframePredictor, caplog: pytest.LogCaptureFixture
) -> None:
    _, shards = prepared
    run = built("model.backbone=mobilenetv3_small_050")
    assert isinstance(run.task, KeyframeEfTask)
    assert isinstance(predictor, HeadsPredictor)
    studies = find_studies(run.task, shards)
    everyone = np.ones(len(studies.table), bool)
    none, some = np.full((len(everyone), 1), np.nan), np.full(len(everyone), np.nan)
    answers = Answers(("ED/gp",), none, none, none, some, some, some)
    fitted = Fitted(
        fit=Fit(predictor.heads, answers),
        weights=run.task.build_model().state_dict(),
        development=~everyone,
        test=everyone,
        answers=answers,
        features=Features(np.zeros(0, np.int64), np.zeros((0, 1), np.float32)),
    )
    assert heat_in_structures(run, shards, studies, {"final": fitted}).empty
    assert "no averages of a feature map" in caplog.text


def test_shares_of_structures_that_were_not_outlined_count_for_nothing() -> None:
    names = ["a", "b", "c"]
    shares = pd.DataFrame(
        {
            **{"frame": "ED", "study_id": names, "patient_id": names},
            "cavity": [0.2, 0.4, 0.6],
            "myocardium": [0.5, np.nan, np.nan],
            "atrium": np.nan,
        }
    )
    found = summary(shares, seed=0).set_index("place")
    assert found["value"].to_dict() == pytest.approx({"cavity": 0.4, "myocardium": 0.5})
    assert found["frames"].to_dict() == {"cavity": 3, "myocardium": 1}
