"""Key frames from the command line, and over files of whole data sets."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import tiny_segments as tiny
from PIL import Image
from tiny_keyframes import QUIET, built, cine, dicoms, frames
from tiny_outlines import beating, outlining_bundle
from typer.testing import CliRunner

from cardioray.bundle import Bundle
from cardioray.cli import app
from cardioray.data.image import UnreadableImage
from cardioray.data.shards import ShardSet
from cardioray.data.video_writing import encode_video
from cardioray.inference.batch import predict_files
from cardioray.inference.evaluate import evaluate_bundle
from cardioray.keyframes import KeyframePredictor
from cardioray.models.backbones import NoFeatureMap
from cardioray.training.single import divide

Prepared = tuple[Path, ShardSet]
ED_FILE = frames()[0]
NINE = tiny.nifti(cine(9))


def run_command(*words: str) -> None:
    result = CliRunner().invoke(app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output


@pytest.mark.ray
@pytest.mark.slow
class TestCommands:
    def test_explain_shows_the_frame_that_it_is_told(
        self, keyframe_heads: Bundle, tmp_path: Path
    ) -> None:
        (tmp_path / "ed.nii.gz").write_bytes(ED_FILE)
        (tmp_path / "cine.nii.gz").write_bytes(NINE)
        out = tmp_path / "heat.png"
        words = [
            "explain",
            str(keyframe_heads.path),
            str(tmp_path / "ed.nii.gz"),
            "--out",
            str(out),
        ]
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
        self, keyframe_heads: Bundle, keyframe_shards: Prepared, tmp_path: Path
    ) -> None:
        folder, _ = keyframe_shards
        found = evaluate_bundle(
            str(keyframe_heads.path), str(folder / "camus"), out=str(tmp_path), console=QUIET
        )
        held = keyframe_heads.json("metrics.json")["targets"]
        written = json.loads((tmp_path / "metrics.json").read_text())
        assert written["largest_score_difference_from_the_bundle"]["ef"] < 1e-2
        for name, figure in (("ef", "mae"), ("ef_le_45", "auc")):
            value = held[name]["per_study"][figure]["value"]
            again = found[name].per_study.values[figure].value
            assert again == pytest.approx(value, abs=1e-2, nan_ok=True)
        assert found["ef"].studies == held["ef"]["studies"]

    def test_evaluate_scores_studies_of_other_patients_by_their_heads(
        self, keyframe_heads: Bundle, keyframe_predictor: KeyframePredictor, tmp_path: Path
    ) -> None:
        other = tiny.write_camus(tmp_path / "other", 8, seed=9)
        (other / "patient0003" / "patient0003_4CH_ES.nii.gz").write_bytes(b"damaged")
        found = evaluate_bundle(
            str(keyframe_heads.path), str(other), out=str(tmp_path / "out"), console=QUIET
        )["ef"]
        assert (found.patients, found.studies) == (8, 8)
        assert any("1 of 16 files cannot be read" in note for note in found.notes)
        table = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
        scores = table[table["head"] == "ef"].set_index("patient_id")["score"]
        for patient, phases in (("patient0001", ("ED", "ES")), ("patient0003", ("ED",))):
            files = [other / patient / f"{patient}_4CH_{phase}.nii.gz" for phase in phases]
            answer = keyframe_predictor.predict(files, views=phases)
            assert answer["ef"]["value"] == pytest.approx(scores[patient], abs=0.05)

    def test_patients_that_took_part_are_not_scored(
        self, keyframe_heads: Bundle, keyframe_shards: Prepared, tmp_path: Path
    ) -> None:
        folder, shards = keyframe_shards
        learned = shards.samples["patient_id"][divide(built(), shards).split == "train"].unique()
        other = tiny.write_camus(tmp_path / "other", 6, seed=9)
        for number, patient in enumerate(learned[:3]):
            # The same frames under another name.
            name = f"patient{100 + number:04d}"
            (other / name).mkdir()
            for file in (folder / "camus" / patient).iterdir():
                (other / name / file.name.replace(patient, name)).write_bytes(file.read_bytes())
        found = evaluate_bundle(str(keyframe_heads.path), str(other), console=QUIET)["ef"]
        assert found.patients == 6
        assert any("3 of 9 patients have frames that took part" in note for note in found.notes)

    def test_predict_answers_for_the_studies_of_a_table(
        self, keyframe_heads: Bundle, keyframe_predictor: KeyframePredictor, tmp_path: Path
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
            str(keyframe_heads.path), [str(other / "studies.csv")], str(out), precision="fp32"
        )
        assert answers["study_id"].tolist() == ["patient0001", "patient0002"]
        for row in answers.to_dict("records"):
            expected = keyframe_predictor.predict(json.loads(row["sources"]), views=["ED", "ES"])
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
