"""A server for cines: studies, overlays over time, and uploads that decoders do not survive."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from served import replica_pids, serving_cluster
from tiny_bundles import ECHO_SIZE, tiny_echo_bundle

import cardioray
from cardioray.data.clip import CLIP
from cardioray.data.deidentify import deidentify
from cardioray.data.image import UnreadableImage
from cardioray.data.pipeline import prepare
from cardioray.data.reading import take_rows
from cardioray.data.video import read_video
from cardioray.data.video_writing import encode_video
from cardioray.machine import free_port
from cardioray.predictor import Predictor
from cardioray.serve.deploy import application_settings, serve_bundles
from cardioray.serve.settings import ServerSettings

pytestmark = pytest.mark.ray

SETTINGS = [
    "precision=fp32",
    "limits.max_files=4",
    "limits.max_frames=60",
    "limits.decode_s=3",
    "scaling.max_replicas=1",
]


def cine(frames: int = 30, seed: int = 0, fps: float = 25.0, kind: str = "avi") -> bytes:
    rng = np.random.default_rng(seed)
    clip = rng.integers(0, 255, (frames, ECHO_SIZE, ECHO_SIZE)).astype(np.uint8)
    return encode_video(clip, fps, kind)


@dataclass(frozen=True)
class Server:
    url: str
    client: httpx.Client
    predictor: Predictor

    def post(self, *files: bytes, **query: str | list[str]) -> httpx.Response:
        parts = [("files", (f"{i}", data)) for i, data in enumerate(files)]
        return self.client.post(self.url, files=parts, params=query)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving_cluster():
        bundle = tiny_echo_bundle()
        applications = application_settings([str(bundle)], SETTINGS)
        serving = serve_bundles(applications, ServerSettings(port=free_port()))
        predictor = cardioray.load(bundle, precision="fp32", num_threads=1)
        with httpx.Client(timeout=120) as client:
            yield Server(serving.urls["echo-ef"], client, predictor)


@pytest.mark.parametrize("kind", ["avi", "mp4"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_study_is_answered_as_python_does(server: Server, kind: str, count: int) -> None:
    files = [cine(20 + 10 * number, number, kind=kind) for number in range(count)]
    response = server.post(*files)
    assert response.status_code == 200, response.text
    answer = response.json()
    expected = server.predictor.predict(files)
    assert answer["ef"] == pytest.approx(expected["ef"], abs=1e-4)
    assert answer["cines"] == expected["cines"]
    assert answer["frames"] == count
    assert [c["frames_used"] for c in answer["cines"]] == [20 + 10 * n for n in range(count)]
    assert {beat["cine"] for beat in answer["beats"]} == set(range(count))


def test_cines_of_other_views_take_no_part(server: Server) -> None:
    files = [cine(20 + 4 * number, 10 + number) for number in range(4)]
    views = ["PLAX", "a4c", "A2C", "PLAX"]
    response = server.post(*files, view=views)
    assert response.status_code == 200, response.text
    answer = response.json()
    expected = server.predictor.predict(files, views=views)
    assert answer["ef"] == pytest.approx(expected["ef"], abs=1e-4)
    alone = server.predictor.predict(files[1], views=["A4C"])
    assert answer["ef"] == pytest.approx(alone["ef"], abs=1e-4)
    assert [(c["view"], c["used"]) for c in answer["cines"]] == [
        ("PLAX", False),
        ("a4c", True),
        ("A2C", False),
        ("PLAX", False),
    ]
    assert {beat["cine"] for beat in answer["beats"]} == {1}
    left_out = "Left out of 4 cines: 1 of A2C, 2 of PLAX. The network was trained on A4C."
    assert left_out in answer["warnings"]
    assert left_out in expected["warnings"]
    assert not any("another view" in text for text in answer["warnings"])


def test_a_cine_of_which_no_view_is_said_takes_part(server: Server) -> None:
    files = [cine(20, 20), cine(24, 21)]
    answer = server.post(*files, view=["", "PLAX"]).json()
    alone = server.predictor.predict(files[0])
    assert answer["ef"] == pytest.approx(alone["ef"], abs=1e-4)
    assert [c["used"] for c in answer["cines"]] == [True, False]
    assert "used" not in alone["cines"][0]
    # These cines are smaller than those that the bundle says it was trained on.
    [gate] = [text for text in alone["warnings"] if text.startswith("Input unlike the training")]
    assert gate.endswith("This may be another view than A4C, which the network was trained on.")


def test_a_study_without_a_view_of_the_network_is_refused(server: Server) -> None:
    files = [cine(20, 30), cine(24, 31)]
    response = server.post(*files, view=["PLAX", "A2C"])
    assert response.status_code == 422
    reason = "None of the 2 cines shows one of the views A4C, which the network was trained on"
    assert f"{reason}; there are 1 of A2C, 1 of PLAX." in response.json()["detail"]
    with pytest.raises(UnreadableImage, match=reason):
        server.predictor.predict(files, views=["PLAX", "A2C"])
    few = server.post(*files, view="A4C")
    assert few.status_code == 400
    assert "give one for each" in few.json()["detail"]
    with pytest.raises(ValueError, match="2 items have 1 views"):
        server.predictor.predict(files, views=["A4C"])


def test_a_long_cine_is_cut_and_the_answer_says_so(server: Server) -> None:
    answer = server.post(cine(100)).json()
    assert answer["cines"][0]["frames_in_file"] == 100
    assert answer["cines"][0]["frames_used"] == 60
    assert any("Of 100 frames the first 60" in text for text in answer["warnings"])
    part = server.post(cine(100), frame="70-99").json()
    assert part["cines"][0]["frames_used"] == 30


def test_a_short_cine_is_answered_with_a_warning(server: Server) -> None:
    answer = server.post(cine(5)).json()
    assert any("has 5 frames" in text for text in answer["warnings"])


def test_the_overlay_is_a_video_with_a_curve(server: Server) -> None:
    answer = server.post(cine(30), overlay="gradcam").json()
    (overlay,) = answer["overlays"]
    head, _, coded = overlay["video"].partition(",")
    assert head == "data:video/mp4;base64"
    frames, fps = read_video(base64.b64decode(coded))
    assert frames.shape[0] == len(overlay["importance"]) == 30
    assert fps == 25
    assert max(overlay["importance"]) == 1
    refused = server.post(cine(30), overlay="gradcam++")
    assert refused.status_code == 422
    assert "gradcam alone" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"not a video " * 50, "text"),
        (cine()[:2000], "cut off"),
        (b"\x89PNG\r\n\x1a\n" + b"0" * 500, "PNG picture"),
    ],
)
def test_what_is_no_cine_is_refused(server: Server, data: bytes, reason: str) -> None:
    response = server.post(data)
    assert response.status_code == 422
    problem = response.json()
    assert reason in problem["detail"]
    assert "AVI, MP4, MOV and DICOM" in problem["accepted"]


def test_an_upload_that_stops_its_decoder_costs_one_4xx(server: Server) -> None:
    """The decoding process is stopped as one that hangs is: it never comes back by itself."""
    assert server.post(cine(seed=1)).status_code == 200
    (pid,) = replica_pids("echo-ef").values()

    def decoders() -> list[psutil.Process]:
        children = psutil.Process(pid).children(recursive=True)
        return [p for p in children if "cardioray.data.isolation" in p.cmdline()]

    (decoder,) = decoders()
    decoder.suspend()
    begun = time.monotonic()
    response = server.post(cine(seed=2))
    assert response.status_code == 422
    assert "takes more than 3 s" in response.json()["detail"]
    assert time.monotonic() - begun < 30
    (fresh,) = decoders() or [None]
    assert fresh is None or fresh.pid != decoder.pid
    assert server.post(cine(seed=3)).status_code == 200
    (killed,) = decoders()
    killed.kill()
    assert server.post(cine(seed=4)).status_code in (200, 422)
    assert server.post(cine(seed=5)).status_code == 200
    assert set(replica_pids("echo-ef").values()) == {pid}


def test_the_document_names_what_an_answer_holds(server: Server) -> None:
    document: Any = server.client.get(f"{server.url}/openapi.json").json()
    properties = document["components"]["schemas"]["Answer"]["properties"]
    assert {"ef", "beats", "beat_range", "cines", "warnings"} <= set(properties)


@pytest.mark.samples
def test_real_cines_go_from_dicom_to_shards_and_to_an_answer(
    server: Server, samples: Path, tmp_path: Path
) -> None:
    echoes = tmp_path / "echoes"
    done = deidentify(str(samples / "echo_dicom"), str(echoes), str(tmp_path / "key.csv"))
    table = done.manifest.assign(EF=[50.0 + n for n in range(len(done.manifest))], view="A4C")
    table.to_csv(echoes / "manifest.csv", index=False)
    task = server.predictor.task
    shards = prepare(task, task.read_manifest(str(echoes), None), str(tmp_path / "shards"))
    stored = take_rows(shards, shards.samples["row"].to_numpy(), [CLIP])[CLIP]
    assert len(stored) == len(table) >= 3
    for source, clip in zip(shards.samples["source"], stored, strict=True):
        data = (echoes / source).read_bytes()
        [sample] = server.predictor.decode(data)
        frames = min(len(clip), 60)  # the server's limit
        np.testing.assert_array_equal(sample.arrays[CLIP][:frames], clip[:frames])
        response = server.post(data)
        assert response.status_code == 200, response.text
        answer = response.json()
        assert 0 <= answer["ef"]["low"] <= answer["ef"]["value"] <= answer["ef"]["high"] <= 100
        assert answer["cines"][0]["frames_used"] == frames
        # Noise is all that this network has been trained on.
        assert any("Input unlike the training cines" in text for text in answer["warnings"])
