"""One server over HTTP: answers, parity, bad input, ids, logs, documentation, metrics."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import io
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
import ray
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, XRayAngiographicImageStorage, generate_uid
from served import (
    answer_to_half_an_upload,
    encoded,
    logged,
    picture,
    png,
    replica_pids,
    serving_cluster,
)
from tiny_bundles import renamed, tiny_bundle

import cardioray
from cardioray.machine import free_port
from cardioray.predictor import Predictor
from cardioray.serve.deploy import application_settings, serve_bundles
from cardioray.serve.settings import ServerSettings

pytestmark = pytest.mark.ray

MAX_BYTES = 2_000_000
SETTINGS = [
    "precision=fp32",
    f"limits.max_bytes={MAX_BYTES}",
    "limits.max_files=12",
    "limits.max_frames=10",
    "limits.max_overlays=2",
    "limits.upload_s=1.5",
    "max_queued_requests=200",
    "scaling.max_replicas=1",
]
PNG = {"Content-Type": "image/png"}


@dataclass(frozen=True)
class Server:
    url: str
    client: httpx.Client
    predictor: Predictor

    def post(self, **request: Any) -> httpx.Response:
        return self.client.post(self.url, **request)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving_cluster():
        tiny = tiny_bundle()
        second = tmp_path_factory.mktemp("bundles") / "second"
        renamed(tiny, second, "second")
        applications = application_settings([str(tiny), str(second)], SETTINGS)
        serving = serve_bundles(applications, ServerSettings(port=free_port()))
        predictor = cardioray.load(tiny, precision="fp32", num_threads=1)
        with httpx.Client(timeout=60) as client:
            yield Server(serving.urls["ffr"], client, predictor)


def dicom(**attributes: Any) -> bytes:
    """An XA file with one frame of 8-bit pixels; an attribute of None is left out."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = XRayAngiographicImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = pydicom.Dataset()
    dataset.file_meta = meta
    values: dict[str, Any] = {
        "SOPClassUID": XRayAngiographicImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Modality": "XA",
        "Rows": 96,
        "Columns": 96,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
        "PixelData": picture().tobytes(),
        **attributes,
    }
    for name, value in values.items():
        if value is not None:
            setattr(dataset, name, value)
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def same(answer: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-6) -> None:
    """The answer of the server is that of the predictor, and its request id."""
    assert set(answer) == {*expected, "request_id"}
    for key, value in expected.items():
        if key == "ffr":
            numbers = ("probability", "threshold", "probability_per_frame")
            for name in numbers:
                np.testing.assert_allclose(answer[key][name], value[name], atol=tolerance, rtol=0)
            assert answer[key]["class"] == value["class"]
            assert answer[key]["prediction"] == value["prediction"]
            assert answer[key]["uncertain"] == value["uncertain"]
        else:
            assert answer[key] == value


# Answers


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF"])
def test_a_raw_picture_is_answered_as_in_python(server: Server, kind: str) -> None:
    data = encoded(picture(1), kind)
    headers = {"Content-Type": f"image/{kind.lower()}"}
    answer = server.post(content=data, headers=headers)
    assert answer.status_code == 200
    same(answer.json(), server.predictor.predict([data]))


def test_a_dicom_run_is_answered_as_in_python(server: Server) -> None:
    data = dicom(NumberOfFrames=3, PixelData=np.stack([picture(i) for i in range(3)]).tobytes())
    answer = server.post(content=data, headers={"Content-Type": "application/dicom"})
    assert answer.status_code == 200
    same(answer.json(), server.predictor.predict([data]))


def test_the_frames_of_a_run_are_chosen(server: Server) -> None:
    frames = [picture(3), *[picture(4)] * 5]
    run = dicom(NumberOfFrames=6, PixelData=b"".join(frame.tobytes() for frame in frames))
    for frame, chosen in {"all": frames, "0-1": frames[:2], "5": frames[5:]}.items():
        answer = server.post(content=run, params={"frame": frame})
        same(answer.json(), server.predictor.predict(chosen))
    answer = server.post(content=run, params={"frame": "contrast"})
    refused(answer, 422, "No arrival of contrast medium stands out in the 6 frames")
    assert "?frame= chooses among the frames of a file: all, contrast" in answer.json()["accepted"]
    refused(server.post(content=run, params={"frame": "4-6"}), 422, "the file has 6 frame(s)")


@pytest.mark.parametrize("count", [5, 10])
def test_several_files_are_one_study(server: Server, count: int) -> None:
    files = [png(seed) for seed in range(count)]
    parts = [("files", (f"{i}.png", data, "image/png")) for i, data in enumerate(files)]
    answer = server.post(files=parts)
    assert answer.status_code == 200
    assert answer.json()["frames"] == count
    same(answer.json(), server.predictor.predict(files))


def test_the_type_of_a_part_and_a_body_without_a_type_do_not_matter(server: Server) -> None:
    data = png(3)
    expected = server.predictor.predict([data])
    same(server.post(content=data).json(), expected)
    same(server.post(files={"file": ("x", data, "text/plain")}).json(), expected)


@pytest.mark.samples
def test_real_angiograms_are_answered_as_in_python(server: Server, samples: Path) -> None:
    folders = (samples / "angio_danilov" / "image_dir", samples / "angio_cadica")
    files = sorted(file for folder in folders for file in folder.iterdir())
    assert len(files) == 9
    for file in files:
        data = file.read_bytes()
        response = server.post(content=data, params={"overlay": "gradcam++"})
        assert response.status_code == 200
        answer = response.json()
        [overlay] = answer.pop("overlays")
        image = Image.open(io.BytesIO(base64.b64decode(overlay["png"].partition(",")[2])))
        assert image.size == Image.open(file).size
        same(answer, server.predictor.predict([data]))
        # The network was fitted on noise.
        assert any("unlike the training" in warning for warning in answer["warnings"])


def test_every_client_gets_its_own_answer_out_of_a_batch(server: Server) -> None:
    pictures = [png(seed) for seed in range(48)]

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60) as client:
            return await asyncio.gather(
                *(client.post(server.url, content=data, headers=PNG) for data in pictures)
            )

    answers = asyncio.run(ask())
    assert {answer.status_code for answer in answers} == {200}
    for data, answer in zip(pictures, answers, strict=True):
        # Another batch size may take another path through the arithmetic.
        same(answer.json(), server.predictor.predict([data]), tolerance=1e-5)


def test_a_model_is_chosen_by_name(server: Server) -> None:
    names = [
        server.post(content=png(), params=p).json()["model"] for p in ({}, {"model": "second"})
    ]
    assert names == ["tiny", "second"]


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "scorecam"])
def test_overlays(server: Server, method: str) -> None:
    files = [("files", (f"{seed}", png(seed, size=120), "image/png")) for seed in range(3)]
    answer = server.post(files=files, params={"overlay": method}).json()
    assert [(o["frame"], o["method"]) for o in answer["overlays"]] == [(0, method), (1, method)]
    for overlay in answer["overlays"]:
        kind, _, data = overlay["png"].partition(",")
        assert kind == "data:image/png;base64"
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert image.size == (120, 120)
    plain = server.post(files=files).json()
    left_out = "Overlays are of the first 2 of 3 alone (limits.max_overlays)."
    plain["warnings"].append(left_out)
    assert {k: v for k, v in answer.items() if k not in ("overlays", "request_id")} == {
        k: v for k, v in plain.items() if k != "request_id"
    }


# What is refused


def multipart(*parts: bytes, end: bytes = b"--b--\r\n") -> dict[str, Any]:
    return {
        "content": b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + end,
        "headers": {"Content-Type": "multipart/form-data; boundary=b"},
    }


def part(data: bytes, name: str = "file") -> bytes:
    disposition = f'Content-Disposition: form-data; name="{name}"; filename="x.png"\r\n\r\n'
    return disposition.encode() + data


def not_a_number() -> bytes:
    values = picture().astype(np.float32)
    values[3, 4] = np.nan
    return encoded(Image.fromarray(values), "TIFF")


def pages(count: int) -> bytes:
    first, *others = [Image.fromarray(picture(i, 32)) for i in range(count)]
    return encoded(first, "TIFF", save_all=True, append_images=others)


BAD_FILES = {
    "empty": (lambda: b"", "empty"),
    "truncated": (lambda: png()[:500], "damaged or truncated"),
    "text": (lambda: b"not a picture at all\n" * 9, "is text"),
    "pdf": (lambda: b"%PDF-1.7 and so on", "PDF document"),
    "bomb": (lambda: encoded(Image.new("1", (30_000, 30_000))), "too large"),
    "20,000 x 20,000": (lambda: encoded(Image.new("1", (20_000, 20_000))), "too large"),
    "nan": (not_a_number, "NaN"),
    "dicom without pixels": (lambda: dicom(PixelData=None), "no pixel"),
    "dicom of a report": (lambda: dicom(PixelData=None, Rows=None, Columns=None), ""),
    "dicom cut off": (lambda: dicom()[:-2000], ""),
    "too many frames": (lambda: pages(11), "more than 10"),
}


@pytest.mark.parametrize("multi", [False, True], ids=["raw", "multipart"])
@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_are_no_study(server: Server, name: str, multi: bool) -> None:
    make, words = BAD_FILES[name]
    data = make()
    request = multipart(part(data)) if multi else {"content": data, "headers": PNG}
    refused(server.post(**request), 422, words)


BAD_REQUESTS = {
    "json": ({"json": {}}, 415, "'application/json' is not accepted"),
    "form": ({"data": {"file": "x"}}, 415, "x-www-form-urlencoded"),
    "compressed": (
        {"content": gzip.compress(b"x"), "headers": {**PNG, "Content-Encoding": "gzip"}},
        415,
        "gzip",
    ),
    "no file": (multipart(), 422, "holds no file"),
    "other field": (
        multipart(part(png()), part(png(), "image")),
        400,
        "1 unknown form field(s). Known: file, files.",
    ),
    "text field": (
        multipart(b'Content-Disposition: form-data; name="file"\r\n\r\nx'),
        422,
        "holds no file",
    ),
    "cut off": (multipart(part(png()), end=b"")["content"][:-40], 422, "ends before"),
    "no boundary": (
        {"content": b"--b", "headers": {"Content-Type": "multipart/form-data"}},
        400,
        "boundary",
    ),
    "broken multipart": (
        {"content": b"nonsense" * 9, "headers": multipart()["headers"]},
        400,
        "broken",
    ),
    "too many files": (multipart(*[part(png())] * 13), 400, "Too many files"),
    "too large": ({"content": b"x" * (MAX_BYTES + 1), "headers": PNG}, 413, "at most 1.91 MiB"),
    "too large in parts": (multipart(*[part(b"x" * 500_000)] * 5), 413, "at most"),
    "unknown model": ({"content": b"x", "params": {"model": "tyni"}}, 404, "Did you mean 'tiny'"),
    "unknown overlay": ({"content": b"x", "params": {"overlay": "cam"}}, 400, "scorecam"),
    "unknown frame": ({"content": b"x", "params": {"frame": "some"}}, 400, "'all', 'contrast'"),
    "unknown parameter": (
        {"content": b"x", "params": {"modle": "a"}},
        400,
        "Known: frame, model, over",
    ),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_requests_that_are_none(server: Server, name: str) -> None:
    request, status, words = BAD_REQUESTS[name]
    if isinstance(request, bytes):
        request = {"content": request, "headers": multipart()["headers"]}
    refused(server.post(**request), status, words)


def test_a_stream_without_a_length_is_refused_beyond_the_limit(server: Server) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            yield b"x" * 100_000

    refused(server.post(content=chunks(), headers=PNG), 413, "at most")


def test_an_upload_that_does_not_arrive_is_given_up(server: Server) -> None:
    assert b" 408 " in answer_to_half_an_upload(server.url).split(b"\r\n")[0]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_wrong_methods(server: Server, method: str) -> None:
    answer = server.client.request(method, server.url)
    refused(answer, 405, "Allowed here: POST")
    assert answer.headers["Allow"] == "POST"


@pytest.mark.parametrize("path", ["/nothing", "/docs/other", "x", "/../other"])
def test_wrong_paths(server: Server, path: str) -> None:
    refused(server.client.get(f"{server.url}{path}"), 404, "/v1/TASK")


def refused(answer: httpx.Response, status: int, words: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["type"].startswith("urn:cardioray:problem:")
    assert problem["title"]
    if status in (413, 415, 422):
        assert "PNG, JPEG, BMP, TIFF and DICOM" in problem["accepted"]
        assert "1.91 MiB, 12 files and 10 frames" in problem["accepted"]
    assert words in problem["detail"]
    assert problem["request_id"] == answer.headers["X-Request-ID"]


def test_the_replica_survives_all_of_it(server: Server) -> None:
    before = replica_pids("ffr")
    for make, _ in BAD_FILES.values():
        assert server.post(content=make(), headers=PNG).status_code == 422
    for request, status, _ in BAD_REQUESTS.values():
        if isinstance(request, dict):
            assert server.post(**request).status_code == status
    assert replica_pids("ffr") == before
    assert server.post(content=png(), headers=PNG).status_code == 200


# Ids and logs


def test_request_ids(server: Server) -> None:
    def ids(**headers: str | bytes) -> tuple[str, list[str]]:
        named: Any = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = server.post(content=png(), headers={**PNG, **named})
        return answer.json()["request_id"], answer.headers.get_list("X-Request-ID")

    assert ids(X_Request_ID="case-17.a:b") == ("case-17.a:b", ["case-17.a:b"])
    fresh = [ids(), ids(), ids(X_Request_ID="John Smith"), ids(X_Request_ID=b"\xe9"), ids()]
    assert len({body for body, _ in fresh}) == 5
    for body, header in fresh:
        assert header == [body]
        assert re.fullmatch(r"[0-9a-f-]{36}", body)


def test_logs_know_the_request_and_nothing_of_the_upload(server: Server) -> None:
    named = {"file": ("NAMEMARK-smith.png", png(), "image/png")}
    secrets = {"X-Patient": "HEADERMARK", "User-Agent": "AGENTMARK", "Authorization": "KEYMARK"}
    good = server.post(files=named, headers={**secrets, "X-Request-ID": "logged-good"})
    assert good.status_code == 200
    assert server.post(content=png(), headers={"X-Request-ID": "IDMARK smith"}).status_code == 200
    server.client.get(f"{server.url}/PATHMARK", params={"QUERYMARK": "x"})
    server.post(content=png(), params={"PARAMETERMARK": "x"})
    patient = dicom(PatientName="TAGMARK^SMITH", PatientID="TAGMARK" * 20, PixelData=b"xx")
    broken = server.post(content=patient, headers={"X-Request-ID": "logged-bad"})
    assert broken.status_code == 422
    spoiled = {"file": (f"DAMAGEMARK{'x' * 300}.dcm", dicom()[:300], "application/TYPEMARK")}
    assert server.post(files=spoiled).status_code == 422
    wait_for(lambda: "logged-bad" in logged())
    text = logged()
    line = next(line for line in text.splitlines() if "logged-good" in line)
    assert "POST predict 200" in line
    assert "model=tiny frames=1" in line
    assert "problem=unreadable" in next(x for x in text.splitlines() if "logged-bad" in x)
    assert not re.findall(r"\w+MARK", text)


# What a server says of itself


def test_probes_models_and_cards(server: Server) -> None:
    def get(path: str, **request: Any) -> httpx.Response:
        answer = server.client.get(f"{server.url}{path}", **request)
        assert answer.status_code == 200
        return answer

    assert get("/live").json() == {"status": "live"}
    assert get("/ready").json() == {"status": "ready", "models": ["tiny", "second"]}
    models = get("/models").json()
    assert [(m["name"], m["default"], m["runtime"]) for m in models] == [
        ("tiny", True, "openvino"),
        ("second", False, "openvino"),
    ]
    assert models[0]["bundle"] == server.predictor.bundle.identity
    card = get("/card", params={"model": "second"}).json()
    assert card["metadata"]["name"] == "second"
    assert "Not for clinical use" in card["card"]
    text = get("/card", headers={"Accept": "text/markdown"})
    assert text.headers["Content-Type"].startswith("text/markdown")
    assert text.text.startswith("# tiny")
    refused(server.client.get(f"{server.url}/card", params={"model": "x"}), 404, "Known")


def test_the_documentation_is_all_from_this_server(server: Server) -> None:
    page = server.client.get(f"{server.url}/docs")
    assert "connect-src 'self'" in page.headers["Content-Security-Policy"]
    links = re.findall(r"""(?:src|href|url:)[=\s]*["']([^"']+)["']""", page.text)
    assert len(links) >= 4
    root = str(httpx.URL(server.url).copy_with(path="/")).rstrip("/")
    for link in links:
        assert link.startswith("/v1/ffr/")
        assert server.client.get(f"{root}{link}").status_code == 200
    assert '"validatorUrl": null' in page.text
    document = server.client.get(f"{server.url}/openapi.json").json()
    paths = ["/v1/ffr", "/v1/ffr/models", "/v1/ffr/card", "/v1/ffr/live", "/v1/ffr/ready"]
    assert sorted(document["paths"]) == sorted(paths)
    post = document["paths"]["/v1/ffr"]["post"]
    assert "multipart/form-data" in post["requestBody"]["content"]
    assert "application/problem+json" in post["responses"]["422"]["content"]
    answer = document["components"]["schemas"]["Answer"]["properties"]
    assert set(server.post(content=png()).json()) <= set(answer)


def test_metrics_reach_prometheus(server: Server) -> None:
    port = ray.nodes()[0]["MetricsExportPort"]
    wanted = (
        "ray_cardioray_requests_total",
        "ray_cardioray_request_seconds_bucket",
        "ray_cardioray_batch_frames_bucket",
        "ray_cardioray_queue_studies",
        "ray_cardioray_errors_total",
        "ray_cardioray_score_bucket",
        "ray_cardioray_model_seconds_bucket",
    )

    def text() -> str:
        with contextlib.suppress(httpx.HTTPError):
            return server.client.get(f"http://127.0.0.1:{port}/metrics").text
        return ""

    wait_for(lambda: all(name in text() for name in wanted), seconds=60)
    lines = text().splitlines()
    counted = [x for x in lines if x.startswith("ray_cardioray_requests_total") and 'us="200"' in x]
    assert any('application="ffr"' in x and 'model="tiny"' in x for x in counted)
    assert any('kind="unreadable"' in x for x in lines)


def wait_for(condition: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)
