"""Batch prediction and evaluation against the predictor; the bundle is of an untrained network."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from ray_cluster import keep_cluster
from rich.console import Console
from tiny_training import untrained_bundle

from cardioray.answers import ModelOutputs
from cardioray.bundle import Bundle
from cardioray.data.clip import CLIP
from cardioray.data.decoding import DecodedSample
from cardioray.data.pipeline import prepare
from cardioray.data.splits import assign_splits
from cardioray.inference.batch import (
    FILES_PER_PART,
    find_studies,
    predict_files,
    side_by_side,
)
from cardioray.inference.columns import as_csv, video_rows
from cardioray.inference.evaluate import evaluate_bundle, evaluate_table
from cardioray.phantoms.angiogram import PRESETS, write_angiograms
from cardioray.studies import load
from cardioray.tasks import make_task
from cardioray.tasks.base import encode_labels
from cardioray.training.run import make_plan
from cardioray.training.settings import RunConfig

SETTINGS = [
    "preprocess.image_size=32",
    "model.backbone=test_resnet",
    "train.precision=fp32",
    "train.batch_size=16",
    *("split.train=0.4", "split.validation=0.2", "split.calibration=0.2", "split.test=0.2"),
    "split.min_calibration_patients=2",
    # Scores of random weights lie close together; Platt's line through them is so steep that it
    # turns rounding into visible differences.
    "operating.calibration=none",
]
QUIET = Console(quiet=True)
FFR = make_task("ffr")


@dataclass(frozen=True)
class Made:
    """A data set and a bundle whose figures are of that data set."""

    data: Path
    bundle: Bundle

    @property
    def frames(self) -> list[Path]:
        return sorted(self.data.rglob("*.png"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Random weights, scored as a finished run scores: every step but training itself."""
    keep_cluster(num_cpus=8, dashboard=False)
    root = tmp_path_factory.mktemp("inference")
    data = root / "phantoms"
    # Few enough frames for one call of one actor.
    config = dataclasses.replace(PRESETS.get("clear"), frames_per_patient=2)
    write_angiograms(str(data), 24, seed=4, config=config)
    run = RunConfig.build("ffr", {}, SETTINGS)
    shards = prepare(run.task, run.task.read_manifest(str(data), None), str(root / "shards"))
    labels = encode_labels(run.task, shards.samples)
    samples = shards.samples.drop(columns="split", errors="ignore")
    split = assign_splits(samples, labels["ffr"], run.task.split).split
    plan = make_plan(run, shards, split, str(root), str(root / "weights"), None, "random")
    torch.manual_seed(0)
    weights = run.task.build_model().state_dict()
    return Made(data, untrained_bundle(run, plan, split, weights, root / "bundle"))


class TestEvaluateBundle:
    pytestmark = [pytest.mark.ray, pytest.mark.slow]

    def test_own_data_give_the_figures_of_the_bundle_again(
        self, made: Made, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        found = evaluate_bundle(str(made.bundle.path), str(made.data), out=str(out), console=QUIET)[
            "ffr"
        ]
        held = made.bundle.json("metrics.json")["targets"]["ffr"]
        assert (found.patients, found.studies, found.frames) == (
            held["patients"],
            held["studies"],
            held["frames"],
        )
        written = json.loads((out / "metrics.json").read_text())
        assert written["computed_with"] == "torch fp32"
        assert written["largest_score_difference_from_the_bundle"]["ffr"] < 1e-6
        for level in ("per_study", "per_frame", "conformal"):
            mine = pd.json_normalize(written["targets"]["ffr"][level]).iloc[0]
            theirs = pd.json_normalize(held[level]).iloc[0]
            pd.testing.assert_series_equal(mine, theirs, rtol=0, atol=1e-6)
        table = pd.read_parquet(out / "predictions.parquet")
        assert set(table["split"]) == {"test"}
        assert len(table) == found.frames
        assert (out / "plots" / "ffr" / "roc.png").stat().st_size > 1000

    def test_train_patients_are_those_without_predictions_and_noise_is_put_on_theirs(
        self, made: Made, tmp_path: Path
    ) -> None:
        held = pd.read_parquet(made.bundle.path / "predictions.parquet")
        everyone = pd.read_csv(made.data / "manifest.csv", dtype=str)["patient_id"].nunique()
        console = Console(file=io.StringIO(), width=80)
        found = evaluate_bundle(
            str(made.bundle.path),
            str(made.data),
            split="train",
            out=str(tmp_path),
            console=console,
            noise=[0.9],
        )["ffr"]
        assert found.patients == everyone - held["patient_id"].nunique()
        table = pd.read_csv(tmp_path / "noise.csv")
        assert table["share"].tolist() == [0, 0.9]
        assert table["value"][0] == pytest.approx(found.per_study.values["auc"].value)
        assert (tmp_path / "plots" / "noise.png").read_bytes().startswith(b"\x89PNG")
        assert "with pixels made black" in console.file.getvalue()
        with pytest.raises(ValueError, match="shares are between 0 and 1"):
            evaluate_bundle(str(made.bundle.path), str(made.data), noise=[1.5])

    def test_openvino_differs_within_the_recorded_tolerance(
        self, made: Made, tmp_path: Path
    ) -> None:
        evaluate_bundle(
            str(made.bundle.path),
            str(made.data),
            out=str(tmp_path),
            console=QUIET,
            runtime="openvino",
        )
        written = json.loads((tmp_path / "metrics.json").read_text())
        allowed = made.bundle.json("tolerance.json")["largest_absolute_difference_of_scores"]
        difference = written["largest_score_difference_from_the_bundle"]["ffr"]
        assert written["computed_with"] == "openvino fp32"
        assert difference <= 2 * allowed["openvino_fp32"]["ffr"] + 1e-6

    def test_pictures_that_made_the_bundle_are_not_scored_under_other_names(
        self, made: Made, tmp_path: Path
    ) -> None:
        manifest = pd.read_csv(made.data / "manifest.csv", dtype=str)
        manifest["source"] = [str(made.data / source) for source in manifest["source"]]
        held = pd.read_parquet(made.bundle.path / "predictions.parquet")
        test = set(held["patient_id"][held["split"] == "test"])
        own = manifest["patient_id"].isin(test)
        some = pd.concat([manifest[own], manifest[~own].head(8)])
        some["patient_id"] = "other-" + some["patient_id"]
        some["sample_id"] = [f"other-{number}" for number in range(len(some))]
        broken = tmp_path / "broken.png"
        broken.write_bytes(b"no picture")
        some.iloc[0, some.columns.get_loc("source")] = str(broken)
        some.to_csv(tmp_path / "manifest.csv", index=False)
        found = evaluate_bundle(
            str(made.bundle.path), str(tmp_path), out=str(tmp_path / "out"), console=QUIET
        )["ffr"]
        assert found.patients == len(test)
        assert found.frames == own.sum() - 1
        assert any("1 of" in note and "cannot be read" in note for note in found.notes)
        assert any(f"8 of {len(some) - 1} samples took part" in note for note in found.notes)
        quarantine = pd.read_csv(tmp_path / "out" / "quarantine.csv")
        assert quarantine["source"].tolist() == [str(broken)]

        some.tail(8).to_csv(tmp_path / "manifest.csv", index=False)
        with pytest.raises(ValueError, match="all 8 samples took part in making the bundle"):
            evaluate_bundle(str(made.bundle.path), str(tmp_path), console=QUIET)

    def test_a_split_that_is_not_there_is_named(self, made: Made) -> None:
        with pytest.raises(ValueError, match=r"no rows of split 'tset'; it has .*test"):
            evaluate_bundle(str(made.bundle.path), str(made.data), split="tset", console=QUIET)

    def test_shards_are_no_data_set(self, made: Made) -> None:
        with pytest.raises(ValueError, match="holds shards"):
            evaluate_bundle(str(made.bundle.path), str(made.data.parent / "shards"), console=QUIET)


class TestEvaluateTable:
    def table(self, calibration: bool) -> pd.DataFrame:
        rng = np.random.default_rng(0)
        label = np.arange(80) % 2
        split = np.where(np.arange(80) < 40, "calibration", "test") if calibration else "test"
        return pd.DataFrame(
            {
                "patient_id": [f"P{i}" for i in range(80)],
                "label": label,
                "score": 1 / (1 + np.exp(-2 * label + 1 - rng.normal(size=80))),
                "split": split,
            }
        )

    @pytest.mark.parametrize(
        ("calibration", "source", "patients"),
        [(True, "calibration patients", 40), (False, "cross-fitted", 80)],
    )
    def test_says_where_thresholds_are_from(
        self, calibration: bool, source: str, patients: int, tmp_path: Path
    ) -> None:
        path = tmp_path / "theirs.csv"
        self.table(calibration).to_csv(path, index=False)
        found = evaluate_table(
            str(path), make_task("ffr"), out=str(tmp_path / "out"), console=QUIET
        )["ffr"]
        assert found.patients == patients
        assert source in found.notes[0]
        decided = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
        assert {"probability", "positive", "uncertain"} <= set(decided)
        assert (tmp_path / "out" / "plots" / "ffr" / "confusion.png").exists()

    def test_another_split_is_scored_the_same_way(self, tmp_path: Path) -> None:
        table = self.table(calibration=True)
        results = []
        for name in ("test", "validation"):
            path = tmp_path / f"{name}.csv"
            table.assign(split=table["split"].replace("test", name)).to_csv(path, index=False)
            found = evaluate_table(str(path), make_task("ffr"), split=name, console=QUIET)
            assert found["ffr"].split == name
            results.append(found["ffr"].per_study.to_dict())
        assert results[0] == results[1]

    def test_an_absent_split_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "theirs.csv"
        self.table(calibration=True).to_csv(path, index=False)
        with pytest.raises(ValueError, match=r"no rows of split 'validation'; it has .*test \(40"):
            evaluate_table(str(path), make_task("ffr"), split="validation", console=QUIET)


class TestPredictFiles:
    pytestmark = [pytest.mark.ray, pytest.mark.slow]

    @pytest.fixture(scope="class")
    def inputs(self, made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Studies of two frames in more than one part, with bad files among them."""
        folder = tmp_path_factory.mktemp("new") / "frames"
        folder.mkdir()
        for number in range(FILES_PER_PART // 2 + 4):
            for frame in range(2):
                picture = made.frames[(2 * number + frame) % len(made.frames)]
                shutil.copy(picture, folder / f"S{number:02d}_{frame}.png")
        (folder / "S00_9.png").write_bytes(b"no picture")
        (folder / "S99_0.png").write_bytes(b"")
        return folder

    def test_one_row_a_study_equal_to_the_predictor(self, made: Made, inputs: Path) -> None:
        out = inputs.parent / "answers.parquet"
        options = {"study_from": r"^(S\d+)_", "console": QUIET, "precision": "fp32"}
        table = predict_files(str(made.bundle.path), [str(inputs)], str(out), **options)
        pd.testing.assert_frame_equal(table, pd.read_parquet(out), check_dtype=False)
        assert table["study_id"].tolist() == [f"S{n:02d}" for n in range(len(table))]
        predictor = load(made.bundle.path, precision="fp32")
        for _, row in table.iloc[[0, 7, len(table) - 1]].iterrows():
            sources = json.loads(row["sources"])
            assert [Path(s).name for s in sources] == [f"{row['study_id']}_{k}.png" for k in (0, 1)]
            answer = predictor.predict(sources)
            for field in ("class", "prediction", "uncertain", "threshold"):
                assert row[f"ffr_{field}"] == answer["ffr"][field]
            assert row["ffr_probability"] == pytest.approx(answer["ffr"]["probability"], abs=1e-6)
            assert json.loads(row["ffr_probability_per_frame"]) == pytest.approx(
                answer["ffr"]["probability_per_frame"], abs=1e-6
            )
            assert (row["frames"], row["model"], row["bundle"]) == (
                answer["frames"],
                answer["model"],
                answer["bundle"],
            )
            unread = ["1 of 3 files of the study could not be read."]
            expected = answer["warnings"] + (unread if row["study_id"] == "S00" else [])
            assert json.loads(row["warnings"]) == expected
        quarantine = pd.read_csv(f"{out}.quarantine.csv")
        assert [Path(s).name for s in quarantine["source"]] == ["S00_9.png", "S99_0.png"]
        assert quarantine["reason"].str.contains("Accepted are PNG").all()

        # Repeated, it does nothing.
        def state() -> dict[str, int]:
            return {str(p): p.stat().st_mtime_ns for p in inputs.parent.rglob("*")}

        before = state()
        again = predict_files(str(made.bundle.path), [str(inputs)], str(out), **options)
        assert state() == before
        pd.testing.assert_frame_equal(again, table)

        # As a killed run leaves it, only the lost part is made again.
        parts = sorted(Path(f"{out}.parts").glob("part-*.parquet"))
        assert len(parts) >= 2
        for lost in (out, parts[0], Path(f"{out}.parts") / "complete.json"):
            lost.unlink()
        again = predict_files(str(made.bundle.path), [str(inputs)], str(out), **options)
        pd.testing.assert_frame_equal(again, table)
        after = state()
        assert after[str(parts[1])] == before[str(parts[1])]
        assert after[str(parts[0])] != before[str(parts[0])]

    def test_a_manifest_names_the_studies_and_csv_holds_the_same(
        self, made: Made, tmp_path: Path
    ) -> None:
        out = tmp_path / "answers.csv"
        few = pd.read_csv(made.data / "manifest.csv", dtype=str).head(6)
        few["source"] = [str(made.data / source) for source in few["source"]]
        few[["source", "patient_id"]].to_csv(tmp_path / "new.csv", index=False)
        table = predict_files(
            str(made.bundle.path), [str(tmp_path / "new.csv")], str(out), console=QUIET
        )
        assert table["study_id"].tolist() == sorted(few["patient_id"].unique())
        assert table["frames"].sum() == 6
        written = pd.read_csv(out, dtype={"study_id": str})
        pd.testing.assert_frame_equal(written, table, check_dtype=False, check_exact=False)

    def test_pictures_have_no_views(self, made: Made) -> None:
        predictor = load(made.bundle.path, network=False)
        with pytest.raises(ValueError, match="Leave out views: ffr is not about cines"):
            predictor.predict(made.frames[0], views=["A4C"])

    def test_nothing_readable_is_an_error_with_the_reason(self, made: Made, tmp_path: Path) -> None:
        bad = tmp_path / "bad.png"
        bad.write_bytes(b"text")
        out = tmp_path / "answers.csv"
        with pytest.raises(ValueError, match=r"None of the 1 files can be read: .*bad\.png"):
            predict_files(str(made.bundle.path), [str(bad)], str(out), console=QUIET)
        assert not out.exists()
        assert "bad.png" in (tmp_path / "answers.csv.quarantine.csv").read_text()


class TestColumns:
    def rows(self, columns: str, splits: list[str] | None) -> pd.DataFrame:
        clip = np.zeros((9, 4, 4, 1), np.uint8)
        samples = [
            DecodedSample(frame="0", arrays={CLIP: clip}, picture=clip[0, ..., 0], facts=facts)
            for facts in ({"source_frames": 12.0}, {})
        ]
        windows = np.array([0.25, 0.75, 0.5], np.float32)
        outputs = ModelOutputs.of_windows([2, 1], {"wma": windows}, np.zeros((3, 1), np.float32))
        names = ["a.avi", "b.avi"]
        return pd.DataFrame(video_rows(columns, names, samples, outputs, "wma", splits))

    def test_a_row_has_the_split_of_its_table(self) -> None:
        table = self.rows("cardiac_mri", ["train", ""])
        assert as_csv("cardiac_mri", table).decode().splitlines() == [
            "filename,split,frames,preds",
            "a.avi,train,12,0.5",
            "b.avi,test,9,0.5",
        ]
        assert self.rows("cardiac_mri", None)["split"].tolist() == ["test", "test"]

    def test_echonet_has_a_row_a_window_and_no_split(self) -> None:
        lines = as_csv("echonet", self.rows("echonet", ["train", ""])).decode().splitlines()
        assert lines == ["a.avi,0,0.25", "a.avi,1,0.75", "b.avi,0,0.5"]


def test_a_batch_is_full_of_frames_whoever_they_are_of() -> None:
    def sizes(counts: list[int]) -> list[int]:
        slices = list(side_by_side(counts))
        assert [i for part in slices for i in range(len(counts))[part]] == list(range(len(counts)))
        return [sum(counts[part]) for part in slices]

    assert sizes([1] * 70) == [32, 32, 6]
    assert sizes([100] * 32) == [100] * 32
    assert sizes([4] * 10) == [32, 8]
    assert sizes([0, 0]) == [0]
    assert sizes([]) == []


class TestFindStudies:
    def found(self, *paths: Path, pattern: str | None = None) -> dict[str, list[str]]:
        studies = find_studies([str(p) for p in paths], pattern, FFR, "/nowhere/out.csv")
        return {s.study_id: [Path(f.path).name for f in s.files] for s in studies}

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for name in ("b_1.png", "b_0.png", "a_0.png", "notes.csv"):
            (tmp_path / name).write_bytes(b"x")
        return tmp_path

    def test_each_file_is_a_study_and_counts_once(self, folder: Path) -> None:
        found = self.found(folder, folder / "a_0.png")
        assert found == {str(folder / n): [n] for n in ("a_0.png", "b_0.png", "b_1.png")}

    def test_files_of_one_group_are_a_study(self, folder: Path) -> None:
        found = self.found(folder, pattern=r"^(?P<study>[a-z])_")
        assert found == {"a": ["a_0.png"], "b": ["b_0.png", "b_1.png"]}

    def test_a_folder_is_read_by_its_manifest(self, folder: Path) -> None:
        table = pd.DataFrame(
            {"source": ["b_0.png", "a_0.png"], "study_id": ["7", "7"], "frame": ["2-4", ""]}
        )
        table.to_csv(folder / "manifest.csv", index=False)
        assert self.found(folder) == {"7": ["b_0.png", "a_0.png"]}
        with pytest.raises(ValueError, match="names its studies"):
            self.found(folder, pattern="(.)")

    def test_a_table_says_views_and_splits(self, folder: Path) -> None:
        table = folder / "new.csv"
        table.write_text("source,View,Split\na_0.png,A4C,VAL\nb_0.png,,\n")
        studies = find_studies([str(table)], None, FFR, "/nowhere/out.csv")
        files = [file for study in studies for file in study.files]
        assert [(f.view, f.split) for f in files] == [("A4C", "VAL"), ("", "")]

    def test_the_size_of_a_pixel_is_said_for_all_files_or_file_by_file(self, folder: Path) -> None:
        table = folder / "new.csv"
        table.write_text('source,spacing_mm\na_0.png,"0.31,0.4"\nb_0.png,0.3\nb_1.png,\n')

        def found(task: str, said: str | None) -> list[str]:
            studies = find_studies([str(table)], None, make_task(task), "/nowhere/out.csv", said)
            return [file.spacing_mm for study in studies for file in study.files]

        assert found("lv-seg", None) == ["0.31,0.4", "0.3,0.3", ""]
        assert found("lv-seg", "0.5,0.6") == ["0.31,0.4", "0.3,0.3", "0.5,0.6"]
        assert found("echo-ef", None) == ["", "", ""]
        with pytest.raises(ValueError, match="Leave out --spacing-mm: ffr measures nothing"):
            found("ffr", "0.5")
        with pytest.raises(ValueError, match="two numbers above 0"):
            found("lv-seg", "0")
        table.write_text("source,spacing_mm\na_0.png,\nb_0.png,-1\n")
        with pytest.raises(ValueError, match=r"new\.csv, row 2: spacing_mm is"):
            found("lv-seg", None)

    def test_a_table_of_key_frames_stands_for_its_frames(
        self, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        table = folder / "keyframes.csv"
        rows = ["source,view,patient_id,ed_frame,es_frame,mid_frame"]
        rows += ["a_0.png,A4C,p,12,4,", "b_0.png,,p,0,9,3", "b_1.png,A4C,p,,7,"]
        table.write_text("\n".join(rows))
        studies = find_studies([str(table)], None, make_task("keyframe-ef"), "/nowhere/out.csv")
        found = {
            study.study_id: [(Path(f.path).name, f.frames, f.view) for f in study.files]
            for study in studies
        }
        # A cine is a study of its own, as in training, whatever else there is of the patient.
        assert found == {
            "a_0.png": [
                ("a_0.png", "12", "A4C-ED"),
                ("a_0.png", "4", "A4C-ES"),
                ("a_0.png", "8", "A4C-MID"),
            ],
            "b_0.png": [("b_0.png", "0", "ED"), ("b_0.png", "9", "ES"), ("b_0.png", "3", "MID")],
        }
        assert "1 cine(s) without key frames are left out" in caplog.text
        # Another task answers about the cines themselves.
        studies = find_studies([str(table)], None, make_task("lv-seg"), "/nowhere/out.csv")
        assert [file.frames for study in studies for file in study.files] == ["", "", ""]

    def test_what_an_earlier_run_left_beside_its_input_is_no_input(self, folder: Path) -> None:
        out = folder / "out.csv"
        parts = folder / "out.csv.parts"
        parts.mkdir()
        (parts / "complete.json").write_text("{}")
        studies = find_studies([str(folder)], None, FFR, str(out))
        assert len(studies) == 3

    @pytest.mark.parametrize(
        ("pattern", "message"),
        [
            (r"^(S\d+)", "finds no study in"),
            (r"^[a-z]_", "needs a group"),
            (r"(", "no regular expression"),
        ],
    )
    def test_a_bad_pattern_is_explained(self, folder: Path, pattern: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            self.found(folder, pattern=pattern)

    def test_a_missing_path_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="gone does not exist"):
            self.found(tmp_path / "gone")

    def test_a_table_without_sources_lists_what_it_has(self, tmp_path: Path) -> None:
        (tmp_path / "new.csv").write_text("path,study_id\na.png,1\n")
        with pytest.raises(ValueError, match="no column source, only path, study_id"):
            self.found(tmp_path / "new.csv")
