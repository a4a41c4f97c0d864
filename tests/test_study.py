"""Studies of several views: a network for each, sorted to by a classifier, and their fusion."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
import tiny_training as tiny
from rich.console import Console

import cardioray
from cardioray.bundle import MEMBERS, Bundle, BundleError, open_bundle
from cardioray.data.image import UnreadableImage
from cardioray.data.pipeline import PrepareConfig, prepare
from cardioray.data.shards import ShardSet
from cardioray.data.video_writing import encode_video
from cardioray.evaluation.predictions import views_side_by_side
from cardioray.inference.batch import predict_files
from cardioray.inference.columns import as_csv, video_rows
from cardioray.inference.evaluate import evaluate_bundle
from cardioray.machine import free_port
from cardioray.predictor import Overlay
from cardioray.serve.deploy import application_settings, serve_bundles
from cardioray.serve.settings import ServerSettings
from cardioray.studies import SORTER, StudyPredictor
from cardioray.training.settings import RunConfig
from cardioray.training.study import train_study

VIEWS = ("A4C", "PLAX")
PATIENTS, SIZE, FRAMES = 60, 16, 18
TINY = (
    f"preprocess.image_size={SIZE}",
    "sampling.frames=6",
    "sampling.stride=2",
    "sampling.step=6",
    "model.backbone=r2plus1d_10_slim",
    "model.pretrained=none",
    "split.train=0.4",
    "split.validation=0.15",
    "split.calibration=0.3",
    "split.test=0.15",
    "split.min_calibration_patients=2",
    "split.cross_fit_folds=0",
    "train.batch_size=6",
    "train.precision=fp32",
    "train.recipe=scratch",
    "train.epochs=8",
    "train.learning_rate=1e-3",
    "scale.threads_per_worker=1",
    "scale.gpus_per_worker=0",
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def cine(view: str, moves: bool, seed: int) -> bytes:
    """A dark ellipse in noise, upright or lying in darker noise, that beats or hardly does."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    long, short = (y, x) if view == "A4C" else (x, y)
    low = 110 if view == "A4C" else 40
    clip = rng.integers(low, low + 70, (FRAMES, SIZE, SIZE))
    phase = rng.uniform(0, 2 * np.pi)
    for number in range(FRAMES):
        lost = (0.6 if moves else 0.1) * (1 - np.cos(2 * np.pi * number / 9 + phase)) / 2
        clip[number][np.hypot(long / 7, short / 3.5) < np.sqrt(1 - lost)] //= 6
    return encode_video(clip.astype(np.uint8), 25.0)


@pytest.fixture(scope="module")
def echoes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest in which some studies lack a view."""
    folder = tmp_path_factory.mktemp("echoes")
    rows = []
    for patient in range(PATIENTS):
        wma = patient % 2
        for number, view in enumerate(VIEWS):
            if patient % 10 == 3 * number:
                continue
            name = f"P{patient:02d}_{view}.avi"
            (folder / name).write_bytes(cine(view, not wma, 2 * patient + number))
            rows.append((name, f"P{patient:02d}", f"S{patient:02d}", view, wma))
    columns = ["source", "patient_id", "study_id", "view", "wma"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "manifest.csv", index=False)
    return folder


def run_of(*overrides: str) -> RunConfig:
    return RunConfig.build("echo-cmr", {}, (*TINY, *overrides))


@pytest.fixture(scope="module")
def shards(ray_local: None, echoes: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    run = run_of()
    manifest = run.task.read_manifest(str(echoes), None)
    return prepare(run.task, manifest, str(tmp_path_factory.mktemp("shards")), PrepareConfig())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def bundle(shards: ShardSet, runs: Path) -> Bundle:
    with tiny.training_here():
        return train_study(run_of(), shards, (), str(runs), name="study")


@pytest.fixture(scope="module")
def predictor(bundle: Bundle) -> StudyPredictor:
    predictor = cardioray.load(bundle.place, precision="fp32", num_threads=1)
    assert isinstance(predictor, StudyPredictor)
    return predictor


def test_a_bundle_of_bundles_verifies_itself(bundle: Bundle) -> None:
    assert bundle.members == (*VIEWS, SORTER)
    assert [bundle.member(view).task for view in bundle.members] == [
        "echo-cmr",
        "echo-cmr",
        "echo-view",
    ]
    assert "Against" in (bundle.path / "README.md").read_text()
    file = bundle.path / MEMBERS / "PLAX" / "metadata.json"
    content = file.read_bytes()
    file.write_bytes(content + b" ")
    with pytest.raises(BundleError, match="was changed"):
        open_bundle(bundle.place)
    file.write_bytes(content)


def test_a_finished_study_is_found_again_and_no_other(
    bundle: Bundle, shards: ShardSet, runs: Path
) -> None:
    again = train_study(run_of(), shards, ("PLAX", "a4c", "PLAX"), str(runs), name="study")
    assert again.identity == bundle.identity
    with pytest.raises(ValueError, match="holds a run of other settings or data"):
        train_study(run_of("train.epochs=9"), shards, VIEWS, str(runs), name="study")


def test_a_patient_is_in_the_same_split_for_every_network(bundle: Bundle) -> None:
    divisions = []
    for member in bundle.members:
        table = pd.read_parquet(bundle.member(member).path / "predictions.parquet")
        divisions.append(table.groupby("patient_id")["split"].first())
    for other in divisions[1:]:
        both = divisions[0].index.intersection(other.index)
        assert len(both) > 10
        assert (divisions[0][both] == other[both]).all()


def test_views_are_told_apart(bundle: Bundle) -> None:
    figures = json.loads((bundle.path / "metrics.json").read_text())
    assert figures["views"]["view_A4C"]["per_study"]["auc"]["value"] > 0.95
    fused = figures["fusion"]["wma"]
    assert set(fused["headline_by_view"]) == set(VIEWS)
    assert fused["best_view_on_calibration"] in VIEWS
    assert fused["fused_minus_best_view"]["difference"]["low"] <= 1


def test_the_fused_score_is_that_of_the_members(bundle: Bundle, predictor: StudyPredictor) -> None:
    tables = [
        pd.read_parquet(bundle.member(view).path / "predictions.parquet").assign(view=view)
        for view in VIEWS
    ]
    every = pd.concat(tables)
    studies, scores = views_side_by_side(every[every["split"] == "test"], VIEWS)
    assert np.isnan(scores).any()
    held = pd.read_parquet(bundle.path / "predictions.parquet")
    held = held[held["split"] == "test"].set_index("study_id")["score"]
    expected = predictor.fusion.targets["wma"].apply(scores)
    assert held[studies["study_id"]].to_numpy() == pytest.approx(expected)


def test_a_study_is_answered_whatever_the_order_of_its_cines(
    predictor: StudyPredictor,
) -> None:
    a4c, plax = cine("A4C", True, 901), cine("PLAX", True, 902)
    answer = predictor.predict([a4c, plax])
    assert [c["view"] for c in answer["cines"]] == ["A4C", "PLAX"]
    assert answer["views"] == ["A4C", "PLAX"]
    assert set(answer["wma"]["probability_per_view"]) == set(VIEWS)
    turned = predictor.predict([plax, a4c])
    assert turned["wma"]["probability"] == pytest.approx(answer["wma"]["probability"], abs=1e-5)
    by_view = answer["wma"]["probability_per_view"]
    assert turned["wma"]["probability_per_view"] == pytest.approx(by_view, abs=1e-5)
    twice = predictor.predict([a4c, plax, plax])
    assert twice["wma"]["probability"] == pytest.approx(answer["wma"]["probability"], abs=1e-5)
    json.dumps(answer)


def test_a_missing_view_is_said(predictor: StudyPredictor) -> None:
    answer = predictor.predict([cine("PLAX", False, 903)])
    assert answer["views"] == ["PLAX"]
    assert any("no cine of A4C" in text for text in answer["warnings"])


def test_what_is_said_of_a_view_counts(predictor: StudyPredictor) -> None:
    a4c = cine("A4C", True, 904)
    said = predictor.predict([a4c], views=["plax"])
    assert said["views"] == ["PLAX"]
    assert said["cines"][0]["view_probability"] == 1
    other = predictor.predict([a4c, a4c], views=["PSAX", ""])
    assert [c["used"] for c in other["cines"]] == [False, True]
    assert any("Cine 0 was left out: it shows PSAX" in text for text in other["warnings"])
    with pytest.raises(UnreadableImage, match="None of the 1 cines shows one of the views A4C"):
        predictor.predict([a4c], views=["PSAX"])
    with pytest.raises(ValueError, match="1 items have 2 views"):
        predictor.predict([a4c], views=["A4C", "A4C"])


def test_a_cine_of_no_view_is_left_out(predictor: StudyPredictor) -> None:
    bar = predictor.fusion.least_probability
    assert 0.5 <= bar <= 1
    a4c = cine("A4C", True, 905)
    outputs = predictor.infer(predictor.decode(a4c))
    outputs.view_probabilities[:] = bar - 0.01
    with pytest.raises(UnreadableImage, match="as far as the classifier"):
        predictor.answer(predictor.decode(a4c), outputs)


def test_the_overlay_is_that_of_the_network_of_the_view(
    predictor: StudyPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    [sample] = predictor.decode(cine("PLAX", True, 906))
    assert predictor.overlay(sample).media_type == "video/mp4"
    with pytest.raises(UnreadableImage, match="none of the views A4C, PLAX clearly"):
        predictor.overlay(replace(sample, view="PSAX"))
    # Networks as small as these have one place in their feature map, and heat that looks alike.
    for view, member in predictor.members.items():
        heat = Overlay(view.encode(), "video/mp4")
        monkeypatch.setattr(member, "overlay", lambda *_, heat=heat: heat)
    assert predictor.overlay(sample).content == b"PLAX"
    assert predictor.overlay(replace(sample, view="A4C")).content == b"A4C"


def test_its_own_data_give_its_own_figures(
    ray_local: None, bundle: Bundle, echoes: Path, tmp_path: Path
) -> None:
    found = evaluate_bundle(
        bundle.place, str(echoes), out=str(tmp_path / "out"), console=Console(quiet=True)
    )
    own = json.loads((bundle.path / "metrics.json").read_text())["targets"]["wma"]
    assert found["wma"].studies == own["studies"]
    assert found["wma"].per_study.values["auc"].value == pytest.approx(
        own["per_study"]["auc"]["value"]
    )
    assert any("took part in making the bundle" in note for note in found["wma"].notes)


def test_a_table_of_cines_becomes_a_table_of_studies(
    ray_local: None, bundle: Bundle, predictor: StudyPredictor, echoes: Path, tmp_path: Path
) -> None:
    names = ["P01_A4C.avi", "P01_PLAX.avi", "P02_A4C.avi"]
    rows = [
        (str(echoes / name), name[:3], view)
        for name, view in zip(names, ("", "", "PSAX"), strict=True)
    ]
    table = tmp_path / "studies.csv"
    pd.DataFrame(rows, columns=["source", "study_id", "view"]).to_csv(table, index=False)
    out = tmp_path / "answers.csv"
    answers = predict_files(
        bundle.place, [str(table)], str(out), precision="fp32", console=Console(quiet=True)
    )
    [row] = answers.to_dict("records")
    expected = predictor.predict([echoes / name for name in names[:2]])
    assert row["study_id"] == "P01"
    assert row["wma_probability"] == pytest.approx(expected["wma"]["probability"], abs=1e-4)
    assert json.loads(row["wma_probability_per_view"]).keys() == set(VIEWS)
    unread = pd.read_csv(f"{out}.quarantine.csv")
    assert "None of the 1 cines" in unread["reason"].iloc[0]


def test_predictions_in_the_columns_of_other_projects(
    ray_local: None, bundle: Bundle, predictor: StudyPredictor, echoes: Path, tmp_path: Path
) -> None:
    member = str(bundle.path / MEMBERS / "A4C")
    names = ["P01_A4C.avi", "P02_A4C.avi"]
    files = [str(echoes / name) for name in names]
    options = {"precision": "fp32", "console": Console(quiet=True)}
    out = tmp_path / "cmr.csv"
    predict_files(member, files, str(out), columns="cardiac_mri", **options)
    table = pd.read_csv(out)
    assert table.columns.tolist() == ["filename", "split", "frames", "preds"]
    assert table["filename"].tolist() == names
    assert (table["frames"] == FRAMES).all()
    own = predictor.members["A4C"]
    samples = [own.decode(Path(file).read_bytes())[0] for file in files]
    outputs = own.infer(samples)
    assert table["preds"].tolist() == pytest.approx(outputs.scores["wma"].tolist(), abs=1e-5)
    rows = pd.DataFrame(video_rows("echonet", names, samples, outputs, "wma"))
    lines = [line.split(",") for line in as_csv("echonet", rows).decode().splitlines()]
    assert [line[:2] for line in lines] == [[n, str(i)] for n in names for i in range(2)]
    windows = np.concatenate(outputs.windows["wma"])
    assert [float(line[2]) for line in lines] == pytest.approx(windows, abs=1e-4)
    with pytest.raises(ValueError, match="Unknown columns 'theirs'"):
        predict_files(member, files, str(out), columns="theirs", **options)


@pytest.fixture(scope="module")
def url(ray_local: None, bundle: Bundle) -> Iterator[str]:
    settings = ["precision=fp32", "scaling.max_replicas=1"]
    applications = application_settings([bundle.place], settings)
    serving = serve_bundles(applications, ServerSettings(port=free_port()))
    try:
        yield serving.urls["echo-cmr"]
    finally:
        serving.stop()


def test_the_server_answers_as_python_does(url: str, predictor: StudyPredictor) -> None:
    a4c, plax = cine("A4C", False, 907), cine("PLAX", False, 908)
    parts = [("files", ("0", a4c)), ("files", ("1", plax))]
    response = httpx.post(url, files=parts, timeout=60)
    assert response.status_code == 200, response.text
    answer = response.json()
    expected = predictor.predict([a4c, plax])
    assert answer["wma"]["probability"] == pytest.approx(expected["wma"]["probability"], abs=1e-4)
    assert answer["views"] == ["A4C", "PLAX"]
    said = httpx.post(url, files=parts, params={"view": ["PSAX", "PLAX"]}, timeout=60).json()
    assert said["views"] == ["PLAX"]
    none = httpx.post(url, files=parts, params={"view": ["PSAX", "PSAX"]}, timeout=60)
    assert none.status_code == 422
    assert "None of the 2 cines" in none.json()["detail"]
    few = httpx.post(url, files=parts, params={"view": "A4C"}, timeout=60)
    assert few.status_code == 400
    assert "give one for each" in few.json()["detail"]


@pytest.mark.parametrize(
    ("task", "views", "reason"),
    [
        ("echo-cmr", ("A4C", "A6C"), "Unknown view 'A6C'"),
        ("echo-cmr", ("A4C",), "at least two views"),
        ("ffr", (), "has no views"),
    ],
)
def test_what_cannot_be_fused_is_refused(
    shards: ShardSet, tmp_path: Path, task: str, views: tuple[str, ...], reason: str
) -> None:
    run = run_of() if task == "echo-cmr" else RunConfig.build(task)
    with pytest.raises(ValueError, match=reason):
        train_study(run, shards, views, str(tmp_path))


def test_the_classifier_answers_by_itself(bundle: Bundle) -> None:
    sorter = bundle.member(SORTER)
    answer = cardioray.load(sorter.path).predict([cine("A4C", True, 909)])
    assert answer["view"]["class"] == "A4C"
    assert answer["view"]["probability"] > 0.5
    table = pd.read_parquet(sorter.path / "predictions.parquet")
    total = table.groupby("sample_id")["score"].sum()
    assert total.to_numpy() == pytest.approx(1, abs=1e-4)
    assert (table["study_id"] == table["sample_id"]).all()
