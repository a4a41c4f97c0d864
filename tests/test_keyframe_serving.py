"""Key frames over HTTP."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tiny_segments as tiny
from numpy.typing import NDArray
from PIL import Image
from ray import serve
from served import encoded
from tiny_keyframes import cine, dicoms, frames

from cardioray.bundle import Bundle
from cardioray.keyframes import KeyframePredictor
from cardioray.machine import free_port
from cardioray.serve.deploy import application_settings, serve_bundles
from cardioray.serve.settings import ServerSettings


def opened(content: bytes) -> NDArray[np.uint8]:
    """A PNG as an array."""
    return np.asarray(Image.open(io.BytesIO(content)))


@pytest.fixture(scope="module")
def url(keyframe_heads: Bundle, keyframe_network: Bundle) -> Iterator[str]:
    settings = ["precision=fp32", "scaling.max_replicas=1", "limits.max_frames=20"]
    bundles = [str(keyframe_heads.path), str(keyframe_network.path)]
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
    def test_fields_say_which_frame_it_is(
        self, url: str, keyframe_predictor: KeyframePredictor
    ) -> None:
        ed, es = frames()
        response = post(url, {"ed": ed, "a4c_es": es})
        assert response.status_code == 200, response.text
        answer, expected = response.json(), keyframe_predictor.predict([ed, es], views=["ED", "ES"])
        assert answer["ef"]["value"] == pytest.approx(expected["ef"]["value"], abs=0.05)
        assert answer["ef"]["sd"] == pytest.approx(expected["ef"]["sd"], abs=0.05)
        assert answer["review"]["flagged"] == expected["review"]["flagged"]
        again = post(url, [("file", es), ("file", ed)], view=["ES", "ED"])
        assert again.json()["ef"]["value"] == pytest.approx(answer["ef"]["value"], abs=1e-3)

    def test_another_model_of_the_task_is_asked_alike(
        self, url: str, network_predictor: KeyframePredictor
    ) -> None:
        ed, es = frames()
        response = post(url, {"ed": ed, "es": es}, model="network", overlay="gradcam")
        assert response.status_code == 200, response.text
        expected = network_predictor.predict([ed, es], views=["ED", "ES"])
        assert response.json()["ef"]["value"] == pytest.approx(expected["ef"]["value"], abs=0.05)
        assert len(response.json()["overlays"]) == 2

    def test_heat_is_drawn_on_the_frames_that_were_chosen(
        self, url: str, keyframe_predictor: KeyframePredictor
    ) -> None:
        pictures = cine(30)
        # Beyond the frames that a request may hold, and beyond those that are drawn on.
        sent = {"a4c": tiny.nifti(pictures)}
        response = post(url, sent, key_frames="24,28", overlay="gradcam++")
        assert response.status_code == 200, response.text
        answer = response.json()
        expected = keyframe_predictor.predict(sent["a4c"], views=["A4C"], key_frames=(24, 28))
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
