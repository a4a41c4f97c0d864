"""Videos and DICOM objects of outlined studies, and beats from outlines: Python, server, commands.

Both bundles are real ones; that for clips is untrained.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom
import httpx
import numpy as np
import pandas as pd
import pydicom
import pytest
import tiny_segments as tiny
from highdicom import sr
from PIL import Image
from ray import serve
from tiny_bundles import tiny_echo_bundle
from tiny_dicom import echo_dicom
from tiny_outlines import beating, outlining_bundle
from typer.testing import CliRunner

import cardioray
from cardioray.cli import app
from cardioray.data.image import UnreadableImage
from cardioray.data.outlined_clip import FRAMES
from cardioray.data.video import read_video
from cardioray.data.video_writing import encode_video
from cardioray.machine import free_port
from cardioray.segments import SegmentPredictor
from cardioray.serve.deploy import application_settings, serve_bundles
from cardioray.serve.settings import ServerSettings
from cardioray.systoles import OutlinedBeatsPredictor

pytestmark = [pytest.mark.ray, pytest.mark.slow]

FPS = 20.0


@pytest.fixture(scope="module")
def bundles(ray_local: None) -> dict[str, str]:
    return {"lv-seg": str(outlining_bundle()), "echo-ef": str(tiny_echo_bundle())}


@pytest.fixture(scope="module")
def outliner(bundles: dict[str, str]) -> SegmentPredictor:
    found = cardioray.load(bundles["lv-seg"], precision="fp32", num_threads=1)
    assert isinstance(found, SegmentPredictor)
    return found


@pytest.fixture(scope="module")
def beats(bundles: dict[str, str]) -> OutlinedBeatsPredictor:
    found = cardioray.load(
        bundles["echo-ef"], systoles_from=bundles["lv-seg"], precision="fp32", num_threads=1
    )
    assert isinstance(found, OutlinedBeatsPredictor)
    return found


@pytest.fixture(scope="module")
def cine() -> bytes:
    return echo_dicom(beating(first=5), fps=FPS)


def content_of(uri: str, media_type: str) -> bytes:
    head, _, coded = uri.partition(",")
    assert head == f"data:{media_type};base64"
    return base64.b64decode(coded)


def check_dicom(answer: dict[str, Any], cine: bytes) -> None:
    """The objects of an answer with masks hold its label maps and its numbers."""
    seg, report = answer["dicom"]
    assert (seg["kind"], seg["name"]) == ("seg", "A4C.seg.dcm")
    assert (report["kind"], report["name"]) == ("sr", "report.sr.dcm")
    source = pydicom.dcmread(io.BytesIO(cine))
    masks = highdicom.seg.segread(io.BytesIO(content_of(seg["dicom"], "application/dicom")))
    assert masks.SOPInstanceUID == seg["sop_instance_uid"]
    numbers = [outline["frame"] + 1 for outline in answer["outlines"]]
    found = masks.get_pixels_by_source_frame(source.SOPInstanceUID, numbers, combine_segments=True)
    for outline, labels in zip(answer["outlines"], found, strict=True):
        png = content_of(outline["mask"]["png"], "image/png")
        np.testing.assert_array_equal(labels, np.asarray(Image.open(io.BytesIO(png))))
    document = sr.srread(io.BytesIO(content_of(report["dicom"], "application/dicom")))
    whole, *single = document.content.get_image_measurement_groups()
    values = [measurement.value for measurement in whole.get_measurements()]
    volumes = answer["volumes"]
    expected = [volumes["edv_ml"], volumes["esv_ml"], volumes["ef_percent"]]
    expected += [answer[name]["value"] for name in ("edv", "esv", "ef")]
    assert values == pytest.approx(expected, rel=1e-12)
    assert [group.get_measurements()[0].value for group in single] == pytest.approx(
        [beat["ef_percent"] for beat in answer["beats"]], rel=1e-12
    )


class TestPython:
    def test_dicom_objects_hold_the_answer(self, outliner: SegmentPredictor, cine: bytes) -> None:
        answer = outliner.predict(cine, views=["A4C"], masks="png", dicom=("seg", "sr"))
        assert len(answer["beats"]) >= 2
        check_dicom(answer, cine)
        plain = outliner.predict(cine, views=["A4C"], masks="png")
        assert plain == {key: value for key, value in answer.items() if key != "dicom"}

    def test_frames_of_several_files_are_told_apart(self, outliner: SegmentPredictor) -> None:
        rng = np.random.default_rng(0)
        maps = [tiny.heart(80, 44), tiny.heart(70, 33)]
        files = [echo_dicom(tiny.echo(labels, rng)) for labels in maps]
        answer = outliner.predict(files, views=["4CH ED", "a4c_es"], dicom=["seg"], masks="png")
        assert [result["name"] for result in answer["dicom"]] == [
            "A4C-ED.seg.dcm",
            "A4C-ES.seg.dcm",
        ]
        for result, data, outline in zip(answer["dicom"], files, answer["outlines"], strict=True):
            content = content_of(result["dicom"], "application/dicom")
            masks = highdicom.seg.segread(io.BytesIO(content))
            uid = pydicom.dcmread(io.BytesIO(data)).SOPInstanceUID
            [labels] = masks.get_pixels_by_source_instance([uid], combine_segments=True)
            png = content_of(outline["mask"]["png"], "image/png")
            np.testing.assert_array_equal(labels, np.asarray(Image.open(io.BytesIO(png))))

    @pytest.mark.parametrize("kind", ["NIfTI", "array"])
    def test_other_files_make_no_dicom_objects(self, outliner: SegmentPredictor, kind: str) -> None:
        frames = beating(20)
        items: list[Any] = [tiny.nifti(frames)]
        views = ["A4C"]
        if kind == "array":
            items, views = [frames[0], frames[8]], ["A4C-ED", "A4C-ES"]
        with pytest.raises(UnreadableImage, match="is no DICOM file"):
            outliner.predict(items, views=views, spacing_mm=tiny.SPACING, dicom=["sr"])

    def test_a_video_shows_every_frame_and_its_area(
        self, outliner: SegmentPredictor, cine: bytes
    ) -> None:
        answer = outliner.predict(cine, views=["A4C"], videos=True)
        [overlay] = answer["overlays"]
        assert (overlay["view"], overlay["method"], overlay["frame"]) == ("A4C", "video", 0)
        frames, fps = read_video(content_of(overlay["video"], "video/mp4"))
        assert len(frames) == len(answer["outlines"]) == 48
        assert fps == FPS
        found = outliner.explain(cine)
        own, _ = read_video(found.content)
        # x264 gives other bytes from run to run, though it is shown the same frames.
        assert own.shape == frames.shape
        assert np.abs(own.astype(int) - frames.astype(int)).mean() < 2
        areas = [outline["area_cm2"]["cavity"] for outline in answer["outlines"]]
        assert found.areas == pytest.approx(areas)
        assert found.unit == "cm2"

    def test_frames_make_no_video(self, outliner: SegmentPredictor) -> None:
        files = [
            tiny.nifti(tiny.echo(tiny.heart(80, w), np.random.default_rng(0))) for w in (44, 33)
        ]
        with pytest.raises(UnreadableImage, match="overlay=outlines"):
            outliner.predict(files, views=["A4C-ED", "A4C-ES"], videos=True)
        assert outliner.explain(files[0]).media_type == "image/png"
        with pytest.raises(ValueError, match="single frame"):
            outliner.explain(files[0], "video")
        with pytest.raises(ValueError, match="no gradcam of a segmentation"):
            outliner.explain(files[0], "gradcam")

    @pytest.mark.samples
    def test_a_real_cine_becomes_a_video(self, outliner: SegmentPredictor, samples: Path) -> None:
        data = (samples / "echo_dicom" / "examples_ybr_color.dcm").read_bytes()
        found = outliner.explain(data)
        frames, fps = read_video(found.content)
        assert len(frames) == len(found.areas) == 30
        assert fps == pytest.approx(30, abs=0.1)


class TestBeats:
    def test_they_are_those_of_the_outlines(
        self, beats: OutlinedBeatsPredictor, outliner: SegmentPredictor, cine: bytes
    ) -> None:
        answer = beats.predict(cine)
        outlined = outliner.predict(cine, views=["A4C"])["beats"]
        assert len(outlined) >= 2
        for own, other in zip(answer["beats"], outlined, strict=True):
            assert (own["ed_frame"], own["es_frame"]) == (other["ed_frame"], other["es_frame"])
            assert (own["ed_frame"] - 5) % 16 in (15, 0, 1)
            assert (own["es_frame"] - 13) % 16 in (15, 0, 1)
        assert answer["systoles_from"] == {
            "source": "outlines",
            "model": outliner.bundle.name,
            "bundle": outliner.bundle.identity,
        }
        assert not any("beats are not told apart" in text for text in answer["warnings"])

    def test_all_else_is_the_answer_without_them(
        self, beats: OutlinedBeatsPredictor, bundles: dict[str, str], cine: bytes
    ) -> None:
        plain = cardioray.load(bundles["echo-ef"], precision="fp32", num_threads=1)
        answer, expected = beats.predict(cine), plain.predict(cine)
        changed = ("beats", "beat_range", "systoles_from")
        assert {k: v for k, v in answer.items() if k not in changed} == {
            k: v for k, v in expected.items() if k not in changed
        }
        assert expected["systoles_from"] == {"source": "predictions"}

    def test_a_cine_without_a_cavity_says_so(
        self, beats: OutlinedBeatsPredictor, cine: bytes
    ) -> None:
        samples = beats.read([cine, cine])
        outputs = beats.infer(samples)
        answer = beats.answer(samples, replace(outputs, systoles=[[], outputs.systoles[1]]))
        told = [text for text in answer["warnings"] if "beats are not told apart" in text]
        assert told == [
            "Cine 0: No cavity was outlined in two frames or more; beats are not told apart."
        ]
        assert {beat["cine"] for beat in answer["beats"]} == {1}

    def test_a_cine_of_another_view_is_not_outlined(
        self, beats: OutlinedBeatsPredictor, cine: bytes
    ) -> None:
        samples = beats.read([cine, cine], ["PLAX", "A4C"])
        outputs = beats.infer(samples)
        assert [len(own) > 0 for own in outputs.systoles] == [False, True]
        assert outputs[1:2].systoles == outputs.systoles[1:]
        assert beats.passes(samples) > beats.passes(samples[:1])
        assert samples[0].arrays[FRAMES].shape == (48, 64, 64, 1)

    def test_bundles_of_other_tasks_are_refused(self, bundles: dict[str, str]) -> None:
        with pytest.raises(ValueError, match="is a bundle of lv-seg. Leave it out"):
            cardioray.load(bundles["lv-seg"], systoles_from=bundles["lv-seg"])
        with pytest.raises(ValueError, match="outlines of a bundle of lv-seg"):
            cardioray.load(bundles["echo-ef"], systoles_from=bundles["echo-ef"])


@pytest.fixture(scope="module")
def urls(bundles: dict[str, str]) -> Iterator[dict[str, str]]:
    common = ["precision=fp32", "scaling.max_replicas=1", "limits.max_frames=60"]
    outlines = application_settings([bundles["lv-seg"]], common)
    systoles = [*common, f"systoles_from={bundles['lv-seg']}"]
    clips = application_settings([bundles["echo-ef"]], systoles)
    serving = serve_bundles([*outlines, *clips], ServerSettings(port=free_port()))
    try:
        yield serving.urls
    finally:
        serving.stop()
        serve.shutdown()  # the next file listens elsewhere


def post(url: str, files: dict[str, bytes], **query: Any) -> httpx.Response:
    return httpx.post(url, files=files, params=query, timeout=120)


class TestServed:
    def test_dicom_objects_come_beside_the_answer(self, urls: dict[str, str], cine: bytes) -> None:
        response = post(urls["lv-seg"], {"a4c": cine}, dicom=["seg", "sr"], masks="png")
        assert response.status_code == 200, response.text
        check_dicom(response.json(), cine)
        one = post(urls["lv-seg"], {"file": cine}, view="A4C", dicom="sr").json()
        assert [result["kind"] for result in one["dicom"]] == ["sr"]

    def test_other_files_are_refused(self, urls: dict[str, str], cine: bytes) -> None:
        refused = post(urls["lv-seg"], {"a4c": tiny.nifti(beating(20))}, dicom="seg")
        assert refused.status_code == 422
        assert "sent as A4C is no DICOM file" in refused.json()["detail"]
        nobody = echo_dicom(beating(20), StudyInstanceUID=None)
        refused = post(urls["lv-seg"], {"a4c": nobody}, dicom="seg")
        assert refused.status_code == 422
        assert "Muster" not in refused.text
        assert post(urls["lv-seg"], {"a4c": cine}, dicom="pdf").status_code == 400
        assert post(urls["echo-ef"], {"file": cine}, dicom="seg").status_code == 400

    def test_a_video_comes_as_other_overlays_do(
        self, urls: dict[str, str], outliner: SegmentPredictor, cine: bytes
    ) -> None:
        response = post(urls["lv-seg"], {"a4c": cine}, overlay="video")
        assert response.status_code == 200, response.text
        [overlay] = response.json()["overlays"]
        frames, fps = read_video(content_of(overlay["video"], "video/mp4"))
        assert (len(frames), fps) == (48, FPS)
        expected, _ = read_video(outliner.explain(cine).content)
        assert np.abs(frames.astype(int) - expected).mean() < 2
        stills = {
            field: tiny.nifti(tiny.echo(tiny.heart(80, width), np.random.default_rng(0)))
            for field, width in (("a4c_ed", 44), ("a4c_es", 33))
        }
        refused = post(urls["lv-seg"], stills, overlay="video")
        assert refused.status_code == 422
        assert "overlay=outlines" in refused.json()["detail"]
        refused = post(urls["echo-ef"], {"file": cine}, overlay="video")
        assert refused.status_code == 400

    def test_beats_are_told_by_outlines(
        self, urls: dict[str, str], beats: OutlinedBeatsPredictor, cine: bytes
    ) -> None:
        response = post(urls["echo-ef"], {"file": cine})
        assert response.status_code == 200, response.text
        answer, expected = response.json(), beats.predict(cine)
        assert answer["systoles_from"] == expected["systoles_from"]
        phases = ("ed_frame", "es_frame", "first_frame", "last_frame")
        for own, other in zip(answer["beats"], expected["beats"], strict=True):
            assert [own[name] for name in phases] == [other[name] for name in phases]
            assert own["value"] == pytest.approx(other["value"], abs=1e-3)

    def test_the_documents_name_what_answers_hold(self, urls: dict[str, str]) -> None:
        documents = {task: httpx.get(f"{url}/openapi.json").json() for task, url in urls.items()}
        answers = {
            task: document["components"]["schemas"]["Answer"]["properties"]
            for task, document in documents.items()
        }
        assert {"dicom", "overlays", "outlines"} <= set(answers["lv-seg"])
        assert "systoles_from" in answers["echo-ef"]
        assert "dicom" not in answers["echo-ef"]
        assert "501" in documents["lv-seg"]["paths"]["/v1/lv-seg"]["post"]["responses"]


def run(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


class TestCommands:
    def test_explain_writes_the_video_and_its_curve(
        self, bundles: dict[str, str], outliner: SegmentPredictor, cine: bytes, tmp_path: Path
    ) -> None:
        (tmp_path / "a4c.dcm").write_bytes(cine)
        out = tmp_path / "a4c.mp4"
        run("explain", bundles["lv-seg"], str(tmp_path / "a4c.dcm"), "--out", str(out))
        frames, fps = read_video(out.read_bytes())
        assert (len(frames), fps) == (48, FPS)
        table = pd.read_csv(tmp_path / "a4c.csv")
        assert list(table.columns) == ["frame", "area_cm2"]
        expected = outliner.explain(cine).areas
        assert table["area_cm2"].to_numpy() == pytest.approx(np.array(expected), rel=0.02)

    def test_explain_measures_videos_in_mm_where_it_is_told_the_size_of_a_pixel(
        self, bundles: dict[str, str], tmp_path: Path
    ) -> None:
        (tmp_path / "a4c.avi").write_bytes(encode_video(beating(20), FPS))
        words = ["explain", bundles["lv-seg"], str(tmp_path / "a4c.avi")]
        run(*words, "--out", str(tmp_path / "px.mp4"))
        spacing = ",".join(map(str, tiny.SPACING))
        run(*words, "--out", str(tmp_path / "mm.mp4"), "--spacing-mm", spacing)
        px, mm = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("px", "mm"))
        assert list(px.columns) == ["frame", "area_px"]
        pixel = np.prod(tiny.SPACING) / 100
        assert (px["area_px"] * pixel).to_numpy() == pytest.approx(mm["area_cm2"].to_numpy(), 1e-3)
        with pytest.raises(ValueError, match="measures nothing"):
            run("explain", bundles["echo-ef"], str(tmp_path / "a4c.avi"), "--spacing-mm", spacing)
        with pytest.raises(ValueError, match="two numbers above 0"):
            run(*words, "--spacing-mm", "0.3")

    def test_predict_writes_dicom_objects_of_every_study(
        self, bundles: dict[str, str], cine: bytes, tmp_path: Path
    ) -> None:
        (tmp_path / "one.dcm").write_bytes(cine)
        (tmp_path / "two.nii.gz").write_bytes(tiny.nifti(beating(20)))
        table = pd.DataFrame(
            {"source": ["one.dcm", "two.nii.gz"], "study_id": ["one", "s/2"], "view": "A4C"}
        )
        table.to_csv(tmp_path / "studies.csv", index=False)
        out = tmp_path / "answers.csv"
        words = [bundles["lv-seg"], str(tmp_path / "studies.csv"), "--out", str(out)]
        run("predict", *words, "--dicom", "seg", "--dicom", "sr", "--precision", "fp32")
        answers = pd.read_csv(out)
        assert answers["study_id"].tolist() == ["one"]
        paths = json.loads(answers["dicom"][0])
        folder = tmp_path / "answers.csv.dicom" / "one"
        assert paths == [str(folder / "A4C.seg.dcm"), str(folder / "report.sr.dcm")]
        document = sr.srread(paths[1])
        whole = document.content.get_image_measurement_groups()[0]
        values = [measurement.value for measurement in whole.get_measurements()]
        assert values[2] == pytest.approx(answers["volumes_ef_percent"][0])
        assert highdicom.seg.segread(paths[0]).number_of_segments == 3
        quarantine = (tmp_path / "answers.csv.quarantine.csv").read_text()
        assert "two.nii.gz" in quarantine
        assert "is no DICOM file" in quarantine
        with pytest.raises(ValueError, match="echo-ef draws none"):
            run(
                "predict",
                bundles["echo-ef"],
                str(tmp_path / "one.dcm"),
                "--out",
                str(out),
                "--dicom",
                "seg",
            )

    def test_predict_measures_pictures_where_it_is_told_the_size_of_a_pixel(
        self, bundles: dict[str, str], outliner: SegmentPredictor, tmp_path: Path
    ) -> None:
        rng, phases = np.random.default_rng(0), {"ED": 44.0, "ES": 33.0}
        for phase, width in phases.items():
            picture = tiny.echo(tiny.heart(80, width), rng)
            Image.fromarray(picture).save(tmp_path / f"{phase}.png")
        sources = [f"{phase}.png" for phase in phases]
        table = pd.DataFrame(
            {"source": sources, "study_id": "s", "view": "A4C", "phase": list(phases)}
        )
        table.to_csv(tmp_path / "studies.csv", index=False)
        out = tmp_path / "answers.csv"
        words = ["predict", bundles["lv-seg"], str(tmp_path / "studies.csv"), "--out", str(out)]
        words += ["--precision", "fp32"]
        with pytest.raises(ValueError, match="Say it with spacing_mm"):
            run(*words)
        expected = outliner.predict(
            [tmp_path / source for source in sources],
            views=["A4C-ED", "A4C-ES"],
            spacing_mm=tiny.SPACING,
        )
        run(*words, "--spacing-mm", ",".join(map(str, tiny.SPACING)))
        [found] = pd.read_csv(out).to_dict("records")
        assert found["volumes_edv_ml"] == pytest.approx(expected["volumes"]["edv_ml"], rel=1e-3)
        assert found["edv_value"] == pytest.approx(expected["edv"]["value"], rel=1e-3)
        # Other pixels are other answers.
        run(*words, "--spacing-mm", ",".join(str(2 * side) for side in tiny.SPACING))
        [larger] = pd.read_csv(out).to_dict("records")
        assert larger["volumes_edv_ml"] == pytest.approx(8 * found["volumes_edv_ml"], rel=1e-3)

    def test_predict_finds_beats_in_outlines(
        self, bundles: dict[str, str], beats: OutlinedBeatsPredictor, cine: bytes, tmp_path: Path
    ) -> None:
        (tmp_path / "one.dcm").write_bytes(cine)
        out = tmp_path / "answers.csv"
        run(
            *("predict", bundles["echo-ef"], str(tmp_path / "one.dcm"), "--out", str(out)),
            *("--systoles-from", bundles["lv-seg"], "--precision", "fp32"),
        )
        answer, expected = pd.read_csv(out), beats.predict(cine)
        own = json.loads(answer["beats"][0])
        assert [(b["ed_frame"], b["es_frame"]) for b in own] == [
            (b["ed_frame"], b["es_frame"]) for b in expected["beats"]
        ]
        assert answer["systoles_from_source"][0] == "outlines"
