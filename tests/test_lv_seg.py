"""Segmentation from CAMUS's layout to a bundle, and to answers about frames and cines."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
import tiny_outlines
import tiny_segments as tiny
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage, generate_uid
from ray import serve
from rich.console import Console
from tiny_bundles import run_example
from tiny_dicom import echo_dicom

import cardioray
from cardioray.bundle import Bundle, open_bundle
from cardioray.clinical.simpson import measure_cavity
from cardioray.clinical.volumes import volumes_of
from cardioray.data.image import UnreadableImage
from cardioray.data.label_maps import CAVITY, MYOCARDIUM, STRUCTURES
from cardioray.data.video_writing import encode_video
from cardioray.evaluation.metrics import regression_metrics
from cardioray.evaluation.segmentation import unpack_labels
from cardioray.inference.batch import predict_files
from cardioray.inference.evaluate import evaluate_bundle
from cardioray.machine import free_port
from cardioray.segments import SegmentPredictor
from cardioray.serve.deploy import application_settings, serve_bundles
from cardioray.serve.settings import ServerSettings
from cardioray.tasks import make_task

VIEWS = ["A4C-ED", "A4C-ES", "A2C-ED", "A2C-ES"]


@pytest.fixture(scope="module")
def trained(ray_local: None) -> tuple[Path, Bundle]:
    return tiny_outlines.outlining()


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
        # No file states volumes: they are judged by those of the reference outlines.
        assert set(predictions["head"]) == {"ef", "ef_of_reference", "edv", "esv"}
        assert set(bundle.json("metrics.json")["targets"]) == {"ef", "edv", "esv"}
        calibrated = bundle.metadata["calibration_views"]
        assert set(calibrated) == {"A4C+A2C"}
        own = predictions[(predictions["head"] == "ef") & (predictions["split"] == "test")]
        assert own["study_id"].is_unique
        assert regression_metrics(own["label"], own["score"]).mae < 8
        reference = predictions[predictions["head"] == "ef_of_reference"]
        assert regression_metrics(reference["label"], reference["score"]).mae < 2.5

    def test_figures_of_outlines_by_group(self, trained: Any) -> None:
        bundle = trained[1]
        rows = bundle.json("metrics.json")["outlines"]
        named = {(row["structure"], row["group"]): row for row in rows}
        structures = ("cavity", "myocardium", "atrium")
        groups = ("all", "phase ED", "phase ES", "view A2C", "view A4C")
        assert {(s, g) for s in structures for g in groups} <= set(named)
        parts = pd.read_parquet(bundle.path / "parts.parquet")
        test = parts[(parts["split"] == "test") & (parts["phase"] == "ED")]
        found = named["cavity", "phase ED"]
        assert found["dice"]["value"] == pytest.approx(test["dice_cavity"].mean())
        assert found["dice"]["low"] <= found["dice"]["value"] <= found["dice"]["high"]
        gained = (test["hd95_mm_cavity"] - test["raw_hd95_mm_cavity"]).mean()
        assert found["gained_by_tidying"]["hd95_mm"] == pytest.approx(gained)
        assert "| cavity | phase ED |" in (bundle.path / "README.md").read_text()

    def test_the_worst_studies_are_drawn_from_the_label_maps_it_keeps(self, trained: Any) -> None:
        bundle = trained[1]
        parts = pd.read_parquet(bundle.path / "parts.parquet")
        for _, row in parts.iterrows():
            labels = unpack_labels(row["predicted_png"])
            assert labels.shape == tiny.SHAPE
            area = (labels == CAVITY).sum() * np.prod(tiny.SPACING)
            assert row["predicted_area_mm2"] == pytest.approx(area, rel=1e-5)
        studies = parts.loc[parts["split"] == "test", "study_id"].nunique()
        drawn = sorted(path.name for path in (bundle.path / "plots" / "outlines").iterdir())
        assert drawn == [
            f"worst_{kind}_{number:02d}.png"
            for kind in ("dice", "ef")
            for number in range(1, studies + 1)
        ]
        assert "plots/outlines/worst_ef_01.png" in (bundle.path / "README.md").read_text()

    def test_the_export_computes_the_same(self, trained: Any) -> None:
        tolerance = trained[1].json("tolerance.json")
        assert tolerance["openvino_kept"]
        assert tolerance["largest_absolute_difference_of_scores"]["openvino_fp32"]["masks"] < 1e-3

    def test_it_verifies_itself(self, trained: Any) -> None:
        assert open_bundle(trained[1].place).task == "lv-seg"


def without_spacing(folder: Path) -> None:
    """Write the pictures of a folder again, as files that do not state the size of a pixel."""
    for file in folder.rglob("*.nii.gz"):
        array = np.asarray(nibabel.load(file).dataobj)
        file.write_bytes(tiny.nifti(array.T, (0.0, 0.0)))


@pytest.mark.ray
@pytest.mark.slow
class TestEvaluated:
    def test_own_data_give_the_figures_of_the_bundle_again(
        self, trained: Any, tmp_path: Path
    ) -> None:
        folder, bundle = trained
        found = evaluate_bundle(
            bundle.place, str(folder / "camus"), out=str(tmp_path), console=Console(quiet=True)
        )["ef"]
        held = bundle.json("metrics.json")
        assert found.patients == held["targets"]["ef"]["patients"]
        assert any("the bundle's own test studies" in note for note in found.notes)
        written = json.loads((tmp_path / "metrics.json").read_text())
        # A probability that differs by rounding may move a pixel from one structure to another.
        assert written["largest_score_difference_from_the_bundle"]["ef"] < 0.5
        for mine, theirs in zip(written["outlines"], held["outlines"], strict=True):
            assert (mine["structure"], mine["group"]) == (theirs["structure"], theirs["group"])
            assert mine["frames"] == theirs["frames"]
            assert mine["dice"]["value"] == pytest.approx(theirs["dice"]["value"], abs=1e-3)
            assert mine["hd95_mm"]["value"] == pytest.approx(theirs["hd95_mm"]["value"], abs=0.1)
        parts, own = (
            pd.read_parquet(place / "parts.parquet").set_index("sample_id")
            for place in (tmp_path, bundle.path)
        )
        assert set(parts.index) == set(own.index[own["split"] == "test"])
        drawn = [
            sorted(path.name for path in (place / "plots" / "outlines").iterdir())
            for place in (tmp_path, bundle.path)
        ]
        assert drawn[0] == drawn[1]
        assert (tmp_path / "plots" / "ef" / "scatter.png").exists()

    def test_known_patients_are_left_out_and_unknown_pixels_have_no_length(
        self, trained: Any, tmp_path: Path
    ) -> None:
        folder, bundle = trained
        tiny.write_camus(tmp_path / "others", 5, seed=9)
        # One frame of a patient that the network was trained on, under another name.
        parts = pd.read_parquet(bundle.path / "parts.parquet")
        names = sorted(path.name for path in (folder / "camus").iterdir())
        known = next(name for name in names if name not in set(parts["patient_id"]))
        for ending in ("4CH_ED.nii.gz", "4CH_ED_gt.nii.gz"):
            shutil.copy(
                folder / "camus" / known / f"{known}_{ending}",
                tmp_path / "others" / "patient0002" / f"patient0002_{ending}",
            )
        without_spacing(tmp_path / "others")
        console = Console(file=io.StringIO(), width=100)
        out = tmp_path / "out"
        found = evaluate_bundle(
            bundle.place, str(tmp_path / "others"), out=str(out), console=console
        )["ef"]
        assert (found.patients, found.studies) == (4, 4)
        assert found.per_study.values["mae"].value < 10
        notes = " ".join(found.notes)
        assert "1 of 5 patients have frames that took part in making the bundle" in notes
        assert "16 of 16 frames do not state the size of a pixel" in notes
        written = json.loads((out / "metrics.json").read_text())
        for row in written["outlines"]:
            assert row["hd95_mm"]["value"] is None
            assert row["msd_mm"]["value"] is None
        assert written["outlines"][0]["dice"]["value"] > 0.8
        shown = console.file.getvalue()  # type: ignore[attr-defined]
        assert "Outlines: means over frames" in shown
        assert "undefined" in shown

    def test_shards_are_refused(self, trained: Any) -> None:
        folder, bundle = trained
        with pytest.raises(ValueError, match="holds shards; give the data set"):
            evaluate_bundle(bundle.place, str(folder / "shards"))


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
        [told] = [text for text in answer["warnings"] if text.startswith("Calibration and")]
        assert "fitted on studies measured in A4C and A2C" in told
        assert "this one is measured in A4C, and" in told
        whole = predictor.predict(files, views=VIEWS)
        assert not any(text.startswith("Calibration and") for text in whole["warnings"])
        for name in ("edv", "esv"):
            assert whole[name]["unit"] == "ml"
            assert whole[name]["uncalibrated"] == whole["volumes"][f"{name}_ml"]

    def test_the_example_of_the_card_runs(self, trained: Any, tmp_path: Path) -> None:
        for name, first in (("a4c", 0), ("a2c", 4)):
            frames = tiny_outlines.beating(20, first=first)
            (tmp_path / f"{name}.dcm").write_bytes(echo_dicom(frames))
        answer = run_example(trained[1].path, tmp_path)
        assert answer["volumes"]["views"] == ["A4C", "A2C"]

    def test_phases_of_a_cine_are_found_beat_by_beat(self, predictor: SegmentPredictor) -> None:
        frames, ef = cine()
        answer = predictor.predict(tiny.nifti(frames), views=["A4C"])
        assert answer["ef"]["uncalibrated"] == pytest.approx(ef, abs=12)
        [beat] = answer["beats"]  # NIfTI does not state a rate
        assert beat["ed_frame"] % 20 in (18, 19, 0, 1, 2)
        assert beat["es_frame"] % 20 in (8, 9, 10, 11, 12)
        assert any("how many frames a second" in text for text in answer["warnings"])
        assert answer["cines"] == [
            {"view": "A4C", "frames_in_file": 40, "frames_used": 40, "fps": None}
        ]

    def test_frames_of_a_cine_are_named_in_a_table(self, trained: Any, tmp_path: Path) -> None:
        frames, ef = cine()
        (tmp_path / "a4c.nii.gz").write_bytes(tiny.nifti(frames))
        (tmp_path / "studies.csv").write_text(
            "study_id,source,view,phase,frame\none,a4c.nii.gz,A4C,ED,0\none,a4c.nii.gz,A4C,ES,10\n"
        )
        out = str(tmp_path / "answers.csv")
        quiet = Console(quiet=True)
        table = predict_files(trained[1].place, [str(tmp_path / "studies.csv")], out, console=quiet)
        [row] = table.to_dict("records")
        assert row["frames"] == 2
        assert row["ef_uncalibrated"] == pytest.approx(ef, abs=12)

    def test_a_picture_without_a_pixel_size_needs_one(self, predictor: SegmentPredictor) -> None:
        files, _ = patient()
        bare = [tiny.nifti(np.asarray(predictor.decode(f)[0].picture), (0.0, 0.0)) for f in files]
        with pytest.raises(UnreadableImage, match="size of a pixel.*spacing_mm"):
            predictor.predict(bare, views=VIEWS)
        stated = predictor.predict(bare, views=VIEWS, spacing_mm=tiny.SPACING)
        whole = predictor.predict(files, views=VIEWS)
        assert stated["ef"]["value"] == pytest.approx(whole["ef"]["value"], abs=1e-4)

    def test_pixels_of_other_proportions_are_told(self, predictor: SegmentPredictor) -> None:
        files, _ = patient()
        square = [tiny.nifti(predictor.decode(f)[0].picture, (1.3, 1.3)) for f in files[2:]]
        answer = predictor.predict([*files[:2], *square], views=VIEWS)
        assert any("pictures of one were resampled" in text for text in answer["warnings"])
        plain = predictor.predict(files, views=VIEWS)
        assert not any("resampled" in text for text in plain["warnings"])

    @pytest.mark.parametrize(
        ("views", "reason"),
        [
            (None, "A4C-ED, A4C-ES"),
            (["A4C-ED", "PLAX-ES"], "'PLAX-ES' is none of these"),
            (["A4C-ED", "A4C-ED"], "Several files were sent as A4C-ED"),
            (["A4C-ED", "A4C"], "sent as the cine A4C is a single frame"),
            (["A4C-ED", "A2C-ES"], "No view has both phases"),
        ],
    )
    def test_views_that_make_no_study_are_refused_before_the_network_runs(
        self, trained: Any, views: list[str] | None, reason: str
    ) -> None:
        files, _ = patient()
        without = cardioray.load(trained[1].place, network=False)
        with pytest.raises(UnreadableImage, match=reason):
            without.predict(files[:2], views=views)

    def test_a_header_with_its_pixels_beside_it(
        self, predictor: SegmentPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        files, _ = patient()
        for name, data in zip(("ed", "es"), files, strict=False):
            picture = predictor.decode(data)[0].picture
            (tmp_path / f"{name}.raw").write_bytes(picture.tobytes())
            size, pixel = ("{1} {0} 1".format(*each) for each in (tiny.SHAPE, tiny.SPACING))
            (tmp_path / f"{name}.mhd").write_text(
                f"NDims = 3\nDimSize = {size}\nElementSpacing = {pixel}\n"
                f"ElementType = MET_UCHAR\nElementDataFile = {name}.raw\n"
            )
        expected = predictor.predict(files[:2], views=VIEWS[:2])["ef"]["value"]
        monkeypatch.chdir(tmp_path)
        for folder in (tmp_path, Path()):
            paths = [folder / "ed.mhd", folder / "es.mhd"]
            answer = predictor.predict(paths, views=VIEWS[:2])
            # NIfTI states the size of a pixel in 32 bit.
            assert answer["ef"]["value"] == pytest.approx(expected, abs=1e-4)

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


@pytest.fixture(scope="module")
def url(trained: Any) -> Iterator[str]:
    settings = ["precision=fp32", "scaling.max_replicas=1", "limits.max_frames=60"]
    applications = application_settings([trained[1].place], settings)
    serving = serve_bundles(applications, ServerSettings(port=free_port()))
    try:
        yield serving.urls["lv-seg"]
    finally:
        serving.stop()
        serve.shutdown()  # the next file listens elsewhere


FIELDS = ("a4c_ed", "a4c_es", "a2c_ed", "a2c_es")


@pytest.mark.ray
@pytest.mark.slow
class TestServed:
    def test_fields_say_views_and_phases(self, url: str, predictor: SegmentPredictor) -> None:
        files, _ = patient()
        sent = dict(zip(FIELDS, files, strict=True))
        response = httpx.post(url, files=sent, timeout=60)
        assert response.status_code == 200, response.text
        answer, expected = response.json(), predictor.predict(files, views=VIEWS)
        assert answer["ef"]["value"] == pytest.approx(expected["ef"]["value"], abs=0.05)
        assert answer["volumes"]["views"] == ["A4C", "A2C"]
        by_query = [("file", data) for data in files]
        again = httpx.post(url, files=by_query, params={"view": VIEWS}, timeout=60).json()
        assert again["ef"] == answer["ef"]

    def test_masks_and_contours_are_the_outlines(
        self, url: str, predictor: SegmentPredictor
    ) -> None:
        files, _ = patient()
        sent = dict(zip(FIELDS[:2], files[:2], strict=True))
        found = {}
        for masks in ("png", "rle"):
            response = httpx.post(
                url, files=sent, params={"masks": masks, "contours": "true"}, timeout=60
            )
            assert response.status_code == 200, response.text
            found[masks] = response.json()["outlines"]
        for png, rle in zip(found["png"], found["rle"], strict=True):
            data = base64.b64decode(png["mask"]["png"].split(",")[1])
            labels = np.asarray(Image.open(io.BytesIO(data)))
            assert labels.shape == tiny.SHAPE == tuple(rle["mask"]["size"])
            for name, number in STRUCTURES.items():
                runs = rle["mask"]["runs"][name]
                flat = np.repeat(np.arange(len(runs)) % 2, runs).astype(bool)
                assert np.array_equal(flat.reshape(labels.shape), labels == number)
                area = (labels == number).sum() * np.prod(tiny.SPACING) / 100
                assert png["area_cm2"][name] == pytest.approx(area)
            points = np.array(png["contours"]["cavity"]["px"], int)
            assert (labels[points[:, 1], points[:, 0]] == CAVITY).all()
            in_mm = (points + 0.5) * np.array(tiny.SPACING[::-1])
            assert png["contours"]["cavity"]["mm"] == pytest.approx(in_mm, abs=1e-3)
        drawn = httpx.post(url, files=sent, params={"overlay": "outlines"}, timeout=60).json()
        assert [overlay["frame"] for overlay in drawn["overlays"]] == [0, 1]
        assert drawn["overlays"][0]["png"].startswith("data:image/png")

    def test_a_cine_is_taken_in_its_own_field(self, url: str) -> None:
        frames, ef = cine()
        whole = httpx.post(url, files={"a4c": tiny.nifti(frames)}, timeout=60)
        assert whole.status_code == 200, whole.text
        assert whole.json()["ef"]["uncalibrated"] == pytest.approx(ef, abs=12)
        refused = httpx.post(url, files={"a4c_ed": tiny.nifti(frames)}, timeout=60)
        assert refused.status_code == 422
        assert "axis of time" in refused.json()["detail"]

    def test_one_frame_of_a_cine_is_taken_as_a_frame(self, url: str) -> None:
        frames, ef = cine()
        sent = {"a4c_ed": tiny.nifti(frames), "a4c_es": tiny.nifti(np.roll(frames, -10, axis=0))}
        response = httpx.post(url, files=sent, params={"frame": "0"}, timeout=60)
        assert response.status_code == 200, response.text
        assert response.json()["ef"]["uncalibrated"] == pytest.approx(ef, abs=12)
        assert response.json()["cines"] == []

    def test_a_cine_that_is_cut_says_so(self, url: str) -> None:
        frames, _ = cine(4, 20)
        response = httpx.post(url, files={"a4c": tiny.nifti(frames)}, timeout=60)
        assert response.status_code == 200, response.text
        answer = response.json()
        [used] = answer["cines"]
        assert (used["frames_in_file"], used["frames_used"]) == (80, 60)
        assert any("of 80 frames the first 60 were used" in text for text in answer["warnings"])

    def test_a_video_has_beats_and_needs_the_size_of_a_pixel(self, url: str) -> None:
        frames, ef = cine(3, 16)
        # As large as the bundle's pictures, so that a pixel keeps its size.
        sent = {"a4c": encode_video(frames, 20.0)}
        refused = httpx.post(url, files=sent, timeout=60)
        assert refused.status_code == 422
        assert "spacing_mm" in refused.json()["detail"]
        spacing = ",".join(map(str, tiny.SPACING))
        response = httpx.post(url, files=sent, params={"spacing_mm": spacing}, timeout=60)
        assert response.status_code == 200, response.text
        beats = response.json()["beats"]
        assert len(beats) >= 2
        assert [beat["ef_percent"] for beat in beats] == pytest.approx([ef] * len(beats), abs=14)

    @pytest.mark.parametrize("spacing", ["0,0.3", "0.3", "a,b", "-1,1", "nan,1"])
    def test_a_pixel_size_that_is_none_is_refused(self, url: str, spacing: str) -> None:
        files, _ = patient()
        response = httpx.post(
            url, files={"a4c_ed": files[0]}, params={"spacing_mm": spacing}, timeout=60
        )
        assert response.status_code == 400
        assert "two numbers above 0" in response.json()["detail"]

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "The file is empty"),
            (b"text " * 200, "The file is text"),
            (tiny.nifti(tiny.heart(80, 44)), "label map, not a picture"),
            (tiny.nifti(tiny.echo(tiny.heart(80, 44), np.random.default_rng(0)))[:2000], "cut off"),
        ],
        ids=["empty", "text", "label map", "cut off"],
    )
    def test_bad_files_cost_a_4xx(self, url: str, content: bytes, reason: str) -> None:
        files, _ = patient()
        response = httpx.post(url, files={"a4c_ed": content, "a4c_es": files[1]}, timeout=60)
        assert response.status_code == 422
        assert re.search(reason, response.json()["detail"])
        good = dict(zip(FIELDS, files, strict=True))
        assert httpx.post(url, files=good, timeout=60).status_code == 200

    def test_two_patients_are_not_mixed(self, url: str) -> None:
        rng = np.random.default_rng(0)
        sent = {
            field: dicom(tiny.echo(tiny.heart(80, width), rng), patient_id)
            for field, width, patient_id in (("a4c_ed", 44, "ANNA"), ("a4c_es", 34, "BERTA"))
        }
        refused = httpx.post(url, files=sent, timeout=60)
        assert refused.status_code == 422
        assert "several patients" in refused.json()["detail"]
        assert "ANNA" not in refused.text
        sent["a4c_es"] = dicom(tiny.echo(tiny.heart(74, 34), rng), "ANNA")
        answer = httpx.post(url, files=sent, timeout=60)
        assert answer.status_code == 200, answer.text

    @pytest.mark.samples
    def test_a_real_patient(self, url: str, predictor: SegmentPredictor, samples: Path) -> None:
        names = ("4CH_ED", "4CH_ES", "2CH_ED", "2CH_ES")
        folder = samples / "camus" / "patient0200"
        files = [(folder / f"patient0200_{name}.nii.gz").read_bytes() for name in names]
        response = httpx.post(url, files=dict(zip(FIELDS, files, strict=True)), timeout=60)
        # The network has learned phantoms: it may find no cavity, and says so.
        assert response.status_code in (200, 422), response.text
        if response.status_code == 200:
            answer = response.json()
            expected = predictor.predict(files, views=VIEWS)
            assert answer["ef"]["value"] == pytest.approx(expected["ef"]["value"], abs=0.1)
            assert any("Input unlike" in text for text in answer["warnings"])


def dicom(frame: Any, patient_id: str) -> bytes:
    """An ultrasound frame with the size of its pixels."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = UltrasoundImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.Modality, dataset.PatientID = "US", patient_id
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = frame.shape
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = frame.tobytes() + b"\0" * (frame.size % 2)
    region = pydicom.Dataset()
    region.RegionSpatialFormat, region.RegionDataType = 1, 1
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 0, 0
    region.RegionLocationMaxX1 = frame.shape[1] - 1
    region.RegionLocationMaxY1 = frame.shape[0] - 1
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = tiny.SPACING[1] / 10, tiny.SPACING[0] / 10
    dataset.SequenceOfUltrasoundRegions = [region]
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"structures": ["atrium"]}, "the cavity among them"),
        ({"structures": ["cavity", "cavity"]}, "different ones"),
        ({"preprocess": {"image_size": 100}}, "multiple"),
        ({"model": {"backbone": "resnet18"}}, "architecture-encoder"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make_task("lv-seg", settings)


def test_known_names_of_networks(tmp_path: Path) -> None:
    task = make_task("lv-seg")
    assert "unet-resnet34" in task.backbones("unet-*")
    assert task.backbones("FPN-resnet18") == ["fpn-resnet18"]
