"""From videos to a model that answers: clips of any length through loop, bundle and predictor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_training as tiny
import torch
from rich.console import Console
from tiny_bundles import run_example

import cardioray
from cardioray.bundle import Bundle
from cardioray.data.clip import CLIP
from cardioray.data.decoding import DecodedSample
from cardioray.data.pipeline import PrepareConfig, prepare
from cardioray.data.reading import draw_windows, pixel_statistics, take_rows
from cardioray.data.sampling import VALID, ClipSampling, draw, split
from cardioray.data.shards import ShardSet
from cardioray.data.video_writing import encode_video
from cardioray.inference.batch import predict_files
from cardioray.inference.evaluate import evaluate_bundle
from cardioray.tasks import make_task
from cardioray.training.run import make_plan
from cardioray.training.settings import RunConfig
from cardioray.training.single import train_bundle

COUNT, SIZE = 30, 16
TINY = (
    f"preprocess.image_size={SIZE}",
    "split.cross_fit_folds=0",
    "sampling.frames=6",
    "sampling.stride=2",
    "sampling.step=4",
    "model.backbone=r2plus1d_10_slim",
    "model.pretrained=none",
    "train.batch_size=4",
    "train.precision=fp32",
    "train.recipe=scratch",
    "train.epochs=2",
    "train.learning_rate=3e-4",
    "scale.threads_per_worker=1",
    "scale.gpus_per_worker=0",
)

pytestmark = pytest.mark.ray


def heart(ef: float, frames: int, seed: int) -> np.ndarray:
    """A dark disc in noise that loses `ef` percent of its area in every beat of 12 frames."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    phase = rng.uniform(0, 2 * np.pi)
    clip = rng.integers(90, 160, (frames, SIZE, SIZE))
    for number in range(frames):
        lost = ef / 100 * (1 - np.cos(2 * np.pi * number / 12 + phase)) / 2
        clip[number][np.hypot(x - 8, y - 8) < 5.5 * np.sqrt(1 - lost)] //= 6
    return clip.astype(np.uint8)


@pytest.fixture(scope="module")
def echoes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("echoes")
    (folder / "Videos").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for number in range(COUNT):
        ef, frames = float(rng.uniform(20, 70)), int(rng.integers(8, 40))
        name = f"0X{number:03d}"
        (folder / "Videos" / f"{name}.avi").write_bytes(
            encode_video(heart(ef, frames, number), 25.0)
        )
        split = "TRAIN" if number < 18 else "VAL" if number < 24 else "TEST"
        rows.append((name, ef, split))
    table = pd.DataFrame(rows, columns=["FileName", "EF", "Split"])
    table.to_csv(folder / "FileList.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def shards(ray_local: None, echoes: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    run = RunConfig.build("echo-ef", {}, TINY)
    out = tmp_path_factory.mktemp("shards")
    manifest = run.task.read_manifest(str(echoes), None)
    return prepare(run.task, manifest, str(out), PrepareConfig(sources_per_part=12))


def test_shards_hold_whole_clips_and_what_files_say(shards: ShardSet, echoes: Path) -> None:
    assert shards.index.columns == {CLIP: None}
    assert (shards.samples["fps"] == 25).all()
    rows = shards.samples["row"].to_numpy()
    clips = take_rows(shards, rows, [CLIP])[CLIP]
    assert [len(clip) for clip in clips] == shards.samples["source_frames"].astype(int).tolist()
    mean, std = pixel_statistics(shards, rows, CLIP, seed=0)
    pixels = np.concatenate([clip.ravel() for clip in clips]).astype(float)
    assert mean[0] == pytest.approx(pixels.mean(), rel=1e-9)
    assert std[0] == pytest.approx(pixels.std(), rel=1e-9)


@pytest.mark.parametrize("seed", [0, 1])
def test_windows_are_cut_where_shards_are_read(shards: ShardSet, seed: int) -> None:
    sampler = ClipSampling(frames=4, stride=2)
    rows = shards.samples["row"].to_numpy()[5:30]
    clips = take_rows(shards, rows, [CLIP])[CLIP]

    def epoch(seed: int) -> dict[int, dict[str, np.ndarray]]:
        dataset = draw_windows(shards, rows, (CLIP,), sampler, seed)
        batches = dataset.iter_batches(batch_size=None, batch_format="numpy")
        return {
            row: window for b in batches for row, window in zip(b["row"], split(b), strict=True)
        }

    found = epoch(seed)
    assert sorted(found) == list(rows)
    for row, clip in zip(rows, clips, strict=True):
        expected = draw(sampler, {CLIP: clip}, row, seed)
        for name in (CLIP, VALID):
            np.testing.assert_array_equal(found[row][name], expected[name])
    # Parts are mixed, and the rows of each.
    assert list(epoch(seed)) == list(found) != list(epoch(seed + 2))
    assert list(found) != list(rows)


@pytest.mark.parametrize("cache_gb", [1, 0])
def test_a_run_is_the_same_twice_and_scores_every_clip(
    shards: ShardSet, tmp_path: Path, cache_gb: int
) -> None:
    outcomes = []
    for name in ("one", "two"):
        run = RunConfig.build("echo-ef", {}, (*TINY, f"train.cache_gb={cache_gb}"))
        split = shards.samples["split"]
        plan = make_plan(run, shards, split, str(tmp_path / name), str(tmp_path), None, name)
        assert plan.statistics.pixel_mean[0] > 0
        outcomes.append(tiny.train_plan_here(plan))
    logs = [outcome.log() for outcome in outcomes]
    assert logs[0]["train_loss"].tolist() == logs[1]["train_loss"].tolist()
    assert np.isfinite(logs[0]["train_loss"]).all()
    table = outcomes[0].predictions()
    assert table.groupby("split").size().to_dict() == {"test": 6, "validation": 6}
    assert table["score"].between(0, 100).all()


@pytest.fixture(scope="module")
def bundle(shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    run = RunConfig.build("echo-ef", {}, TINY)
    with tiny.training_here():
        return train_bundle(run, shards, str(tmp_path_factory.mktemp("runs")), name="tiny")


def test_a_bundle_answers_about_a_video(bundle: Bundle, echoes: Path) -> None:
    predictor = cardioray.load(str(bundle.path))
    held = pd.read_parquet(bundle.path / "predictions.parquet")
    test = held[held["split"] == "test"]
    for _, row in test.iterrows():
        path = echoes / row["source"]
        answer = predictor.predict(path)
        assert answer["ef"]["value"] == pytest.approx(row["score"], abs=0.2)
        assert answer["ef"]["low"] <= answer["ef"]["value"] <= answer["ef"]["high"]
        assert answer["cines"][0]["fps"] == 25
        assert predictor.predict([path.read_bytes()])["ef"] == answer["ef"]
        short = answer["cines"][0]["frames_used"] < 11
        assert any("looks at 11 at a time" in text for text in answer["warnings"]) == short
    two = predictor.predict([echoes / source for source in test["source"][:2]])
    singles = [predictor.predict(echoes / source)["ef"]["value"] for source in test["source"][:2]]
    assert two["ef"]["value"] == pytest.approx(np.mean(singles), abs=1e-3)
    assert two["frames"] == 2
    json.dumps(two)
    tolerance = json.loads((bundle.path / "tolerance.json").read_text())
    assert tolerance["openvino_kept"]
    state = predictor.model.state_dict()
    assert state["mean"].item() > 1
    assert torch.isfinite(state["heads.ef.bias"]).all()


def test_the_example_of_its_card_runs(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "cine.avi").write_bytes(encode_video(heart(50, 20, 1), 25.0))
    assert run_example(bundle.path, tmp_path)["ef"]["unit"] == "%"


def test_a_long_cine_is_answered_by_bounded_windows_and_the_answer_says_so(bundle: Bundle) -> None:
    frames = heart(50, 60, 1)
    every = cardioray.load(bundle.place).predict([frames])
    few = cardioray.load(bundle.place, max_windows=4).predict([frames])
    said = "Of 13 windows the network answered for 4, evenly spread."
    assert [answer["cines"][0]["windows"] for answer in (every, few)] == [13, 4]
    assert [said in answer["warnings"] for answer in (every, few)] == [False, True]
    assert few["ef"]["value"] == pytest.approx(every["ef"]["value"], abs=10)


def test_figures_are_of_all_windows_and_of_one(
    ray_local: None, bundle: Bundle, echoes: Path, tmp_path: Path
) -> None:
    figures = bundle.json("metrics.json")["targets"]["ef"]
    held = pd.read_parquet(bundle.path / "predictions.parquet")
    test = held[held["split"] == "test"]
    for level, column in (("per_study", "score"), ("one_window", "score_one_window")):
        mae = (test[column] - test["label"]).abs().mean()
        assert figures[level]["mae"]["value"] == pytest.approx(mae)
    assert not np.allclose(test["score"], test["score_one_window"])
    assert "| by one window |" in (bundle.path / "README.md").read_text().replace("  ", " ")
    found = evaluate_bundle(
        bundle.place, str(echoes), out=str(tmp_path / "out"), console=Console(quiet=True)
    )["ef"]
    assert found.one_window is not None
    for name in ("mae", "bias"):
        again = found.one_window.values[name].value
        assert again == pytest.approx(figures["one_window"][name]["value"], abs=0.2)


def test_a_table_of_files_says_which_cines_take_part(
    ray_local: None, bundle: Bundle, echoes: Path, tmp_path: Path
) -> None:
    rows = [
        ("0X024.avi", "S1", "A4C", "val"),
        ("0X025.avi", "S1", "PLAX", "val"),
        ("0X026.avi", "S2", "PSAX", "test"),
        ("0X027.avi", "S3", "", ""),
    ]
    files = [str(echoes / "Videos" / name) for name, *_ in rows]
    table = pd.DataFrame(rows, columns=["source", "study_id", "view", "split"])
    table.assign(source=files).to_csv(tmp_path / "new.csv", index=False)
    out = str(tmp_path / "answers.csv")

    def predict(columns: str | None = None) -> dict[str, str]:
        given = [str(tmp_path / "new.csv")]
        options = {"precision": "fp32", "console": Console(quiet=True), "columns": columns}
        predict_files(bundle.place, given, out, **options)
        unread = pd.read_csv(f"{out}.quarantine.csv")
        return dict(zip(unread["source"], unread["reason"], strict=True))

    unread = predict()
    answers = pd.read_csv(out)
    predictor = cardioray.load(bundle.place, precision="fp32")
    assert answers["study_id"].tolist() == ["S1", "S3"]
    alone = [predictor.predict(files[place])["ef"]["value"] for place in (0, 3)]
    assert answers["ef_value"].tolist() == pytest.approx(alone, abs=1e-3)
    warnings = [json.loads(text) for text in answers["warnings"]]
    left_out = "Left out of 2 cines: 1 of PLAX. The network was trained on A4C."
    assert [left_out in texts for texts in warnings] == [True, False]
    assert [cine["used"] for cine in json.loads(answers["cines"][0])] == [True, False]
    assert list(unread) == [files[2]]
    assert "None of the 1 cines shows one of the views A4C" in unread[files[2]]

    # In the columns of another project there is no place for a warning.
    unread = predict("cardiac_mri")
    videos = pd.read_csv(out)
    assert videos["filename"].tolist() == ["0X024.avi", "0X027.avi"]
    assert videos["split"].tolist() == ["val", "test"]
    assert videos["preds"].tolist() == pytest.approx(alone, abs=1e-3)
    assert list(unread) == files[1:3]


@pytest.mark.parametrize(
    ("name", "column", "doubted"),
    [
        ("abnormal", "T1_ms", "T1 is near chance"),
        ("t2_high", "mapping", "T2 is near chance"),
        ("lge", "scar", "Scar is told weakly"),
        ("function", "lvef", None),
    ],
)
def test_what_echo_shows_weakly_is_said_of_every_head(
    name: str, column: str, doubted: str | None
) -> None:
    head = {"kind": "binary", "name": name, "positive": "yes", "negative": "no"}
    by_value = {**head, "value_column": column, "cutoff": 1050, "operator": ">"}
    by_label = {**head, "label_column": column}
    number = {"kind": "regression", "name": name, "value_column": column}
    for extra in (by_value, by_label, number):
        found = make_task("echo-cmr", {"extra": [extra]}).doubts([])
        assert len(found) == (0 if doubted is None else 1)
        assert all(text.startswith(str(doubted)) for text in found)


def test_a_doubt_is_said_once() -> None:
    extra = {"kind": "binary", "name": "t1_high", "positive": "high", "negative": "normal"}
    extra |= {"value_column": "t1_ms", "cutoff": 1050, "operator": ">"}
    found = make_task("echo-cmr", {"findings": ["t1"], "extra": [extra]}).doubts([])
    assert len(found) == 1


@pytest.mark.parametrize(
    ("fact", "value", "said"),
    [
        ("sector_found", 0.0, "No ultrasound sector was found"),
        ("damaged", 1.0, "The file is damaged"),
        ("fps", np.nan, "The file does not say how many frames a second"),
        ("source_frames", 90.0, "Of 90 frames the first 80 were used"),
    ],
)
def test_what_a_file_lacks_is_said_of_its_cine(fact: str, value: float, said: str) -> None:
    clip = np.zeros((80, 112, 112, 1), np.uint8)
    sound = {"fps": 50.0, "sector_found": 1.0, "damaged": 0.0, "source_frames": 80.0}

    def sample(**changed: float) -> DecodedSample:
        facts = {**sound, **changed}
        return DecodedSample(frame="0", arrays={CLIP: clip}, picture=clip[0, ..., 0], facts=facts)

    task = make_task("echo-ef", {"sampling": {"step": 1}})
    assert task.doubts([sample()]) == []
    [doubt] = task.doubts([sample(), sample(**{fact: value})])
    assert doubt.startswith(f"Cine 1: {said}")
