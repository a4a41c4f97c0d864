"""The page in a real browser, in front of three tasks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pypdfium2
import pytest
import tiny_segments as tiny
from browser import Watched, chromium, serious_faults, until, watched
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect
from ray import serve
from served import encoded, picture, png, serving_cluster
from tiny_bundles import ECHO_SIZE, SIZE, tiny_bundle, tiny_echo_bundle
from tiny_outlines import beating, outlining_bundle

from cardioray.data.video_writing import encode_video
from cardioray.machine import free_port
from cardioray.serve.auth import new_key
from cardioray.serve.deploy import application_settings, page_settings, serve_bundles
from cardioray.serve.page_app import build_page
from cardioray.serve.page_files import FOLDER
from cardioray.serve.settings import ServerSettings

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MAX_BYTES = 400_000
SETTINGS = [
    "precision=fp32",
    f"limits.max_bytes={MAX_BYTES}",
    "limits.max_frames=64",
    "scaling.max_replicas=1",
]
PHONE = {"width": 360, "height": 740}
FILES, TASKS = "#files-input", "input[name=task]"
THAI = "ไม่ใช่สำหรับใช้ทางคลินิก"


@dataclass(frozen=True)
class Server:
    url: str
    locked: str
    key: str


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving_cluster():
        bundles = [tiny_bundle(), tiny_echo_bundle(), outlining_bundle()]
        applications = application_settings([str(b) for b in bundles], SETTINGS)
        port = free_port()
        serving = serve_bundles(
            applications, ServerSettings(port=port), page_settings(applications)
        )
        assert serving.page_url == f"http://127.0.0.1:{port}/"
        key, digest = new_key()
        keys = tmp_path_factory.mktemp("keys") / "keys"
        keys.write_text(f"{digest} whoever\n")
        locked = build_page({"api_keys_file": str(keys)})
        serve.run(locked, name="locked", route_prefix="/locked")
        yield Server(serving.page_url, f"{serving.page_url}locked/", key)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def seen(server: Server, browser: Browser) -> Iterator[Watched]:
    with watched(browser, f"{server.url}?lang=en") as page:
        yield page


# What is sent


def blocks(seed: int = 0) -> NDArray[np.uint8]:
    """A picture of the size and the pixels of those that the bundle of `ffr` has learned from."""
    return np.kron(picture(seed, SIZE), np.ones((512 // SIZE, 512 // SIZE), np.uint8))


def cine() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 255, (30, ECHO_SIZE, ECHO_SIZE), dtype=np.uint8)


def frames() -> dict[str, bytes]:
    """Both phases of both views, named as CAMUS names them."""
    rng = np.random.default_rng(5)
    hearts = {"ED": (80.0, 44.0), "ES": (72.0, 30.0)}
    return {
        f"patient0001_{view}_{phase}.nii.gz": tiny.nifti(
            tiny.echo(tiny.heart(long, wide * share), rng)
        )
        for view, share in tiny.VIEWS.items()
        for phase, (long, wide) in hearts.items()
    }


def files(**contents: bytes) -> list[dict[str, Any]]:
    """Files as the browser picks them; "__" in a name stands for its dot."""
    return [
        {"name": name.replace("__", "."), "mimeType": "", "buffer": content}
        for name, content in contents.items()
    ]


def pick(page: Page, picked: list[dict[str, Any]], task: str) -> None:
    page.set_input_files(FILES, picked)
    expect(page.locator(".picked-file")).to_have_count(len(picked))
    page.check(f"{TASKS}[value={task}]")


def ask(page: Page) -> None:
    page.locator("#ask-form button[type=submit]").click()
    page.locator("#cancel").wait_for(state="detached")


def sent(page: Page, picked: list[dict[str, Any]], task: str) -> None:
    pick(page, picked, task)
    ask(page)


def saved(page: Page, kind: str) -> bytes:
    with page.expect_download() as found:
        page.locator(f"[data-download={kind}]").click()
    assert re.fullmatch(
        rf"cardioray-[a-z-]+-\d{{8}}-\d{{4}}\.{kind}", found.value.suggested_filename
    )
    return Path(found.value.path()).read_bytes()


# Without a browser


def test_the_page_and_its_files(server: Server) -> None:
    with httpx.Client(base_url=server.url) as client:
        index = client.get("/")
        assert index.status_code == 200
        policy = index.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert not re.search(r"\shttps?:", policy)
        assert index.headers["x-content-type-options"] == "nosniff"
        assert index.headers["referrer-policy"] == "no-referrer"
        assert not re.search(r"(?:src|href)=\"(?:https?:)?//", index.text)
        assert not re.search(r"<style|style=|<script>|\son\w+=", index.text)
        for file in sorted(FOLDER.rglob("*.*")):
            path = f"/page/{file.relative_to(FOLDER)}"
            first = client.get(path)
            assert (first.status_code, first.content) == (200, file.read_bytes())
            again = client.get(path, headers={"If-None-Match": first.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["cache-control"] == "no-cache"
        for path in ("/page/../page_app.py", "/page/%2e%2e/settings.py", "/page/none.js", "/v2"):
            assert client.get(path).status_code == 404
            assert client.get(path).json()["type"].endswith(":not-found")


def test_the_page_shadows_no_task(server: Server) -> None:
    for task in ("ffr", "echo-ef", "lv-seg"):
        ready = httpx.get(f"{server.url}v1/{task}/ready")
        assert ready.json()["status"] == "ready"
        assert "unsafe-inline" in ready.headers["content-security-policy"]
    assert httpx.post(f"{server.url}v1/nothing").status_code == 404


def test_the_tasks_that_run_are_told(server: Server) -> None:
    tasks = {task["task"]: task for task in httpx.get(f"{server.url}api/tasks").json()}
    assert set(tasks) == {"ffr", "echo-ef", "lv-seg"}
    assert all(task["ready"] and task["path"] == f"v1/{name}" for name, task in tasks.items())
    assert tasks["ffr"]["targets"][0]["positive"] == "FFR<=0.80"
    assert tasks["ffr"]["models"][0]["averages"] == {"ffr": 0.5}
    assert tasks["echo-ef"]["models"][0]["averages"] == {"ef": 50.0}
    assert tasks["lv-seg"]["takes_plain_files"] is False
    assert {"name": "a4c_ed", "shows": "A4C-ED"} in tasks["lv-seg"]["fields"]
    assert tasks["ffr"]["limits"]["max_bytes"] == MAX_BYTES


def test_gates_tell_what_a_task_has_learned_from(server: Server) -> None:
    def verdicts(*contents: bytes) -> dict[str, dict[str, Any]]:
        parts = [("files", content) for content in contents]
        answer = httpx.post(f"{server.url}api/gates", files=parts, timeout=60)
        assert answer.status_code == 200, answer.text
        return {each["task"]: each for each in answer.json()}

    known = verdicts(encoded(blocks()))
    assert known["ffr"]["familiar"]
    assert known["ffr"]["findings"] == []
    assert known["lv-seg"]["reads"]
    assert not known["lv-seg"]["familiar"]
    assert not known["echo-ef"]["reads"]
    assert "a PNG picture" in known["echo-ef"]["problem"]["detail"]
    unlike = verdicts(png(0, 200))["ffr"]
    assert (unlike["reads"], unlike["familiar"]) == (True, False)
    assert unlike["findings"][0].startswith("Input unlike the training pictures")
    large = verdicts(encoded(np.zeros((8, 8), np.uint8)), bytes(MAX_BYTES))
    assert {each["problem"]["status"] for each in large.values()} == {413}
    assert {each["problem"]["detail"][:17] for each in verdicts(b"").values()} == {
        "The file is empty"
    }
    wrong = httpx.post(f"{server.url}api/gates", files={"other": b"x"})
    assert (wrong.status_code, wrong.json()["title"]) == (400, "The request is malformed")


def test_a_look_at_what_a_browser_cannot_show(server: Server) -> None:
    def look(content: bytes) -> httpx.Response:
        return httpx.post(f"{server.url}api/look", files={"file": content}, timeout=60)

    frame = next(iter(frames().values()))
    found = look(frame)
    assert found.headers["content-type"] == "image/png"
    clip = look(encode_video(cine(), 25.0, "avi"))
    assert clip.headers["content-type"] == "video/mp4"
    assert clip.content[4:8] == b"ftyp"
    assert look(b"no picture").status_code == 422


def test_the_questionnaire_over_http(server: Server) -> None:
    data = dict.fromkeys(["female", "history_mi", "history_ptca_cabg", "history_cad"], 1)
    data |= {"history_hf": 0, "history_ckd": 0}
    body = {"selectedDiseases": ["scar"], "data": data}
    (card,) = httpx.post(f"{server.url}api/assessment", json=body).json()
    logit = -1.25369 - 1.289421 + 1.26799 + 0.852316 + 1.188963
    assert card["probability"] == round(100 / (1 + np.exp(-logit)), 2)
    assert card["risk_level"] == "ปานกลาง"
    del data["history_mi"]
    refused = httpx.post(f"{server.url}api/assessment", json=body)
    assert refused.status_code == 422
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["fields"] == ["history_mi"]
    assert httpx.post(f"{server.url}api/assessment", json={"data": {}}).status_code == 400


def test_the_documentation_is_hosted_here(server: Server) -> None:
    page = httpx.get(f"{server.url}api/docs").text
    assets = re.findall(r"(?:src|href)=\"([^\"]+)\"", page)
    assert assets
    for asset in assets:
        assert asset.startswith("/")
        assert httpx.get(httpx.URL(server.url).join(asset)).status_code == 200
    paths = httpx.get(f"{server.url}api/openapi.json").json()["paths"]
    assert {"/api/tasks", "/api/gates", "/api/assessment"} <= set(paths)


def test_both_languages_say_the_same() -> None:
    english, thai = (json.loads((FOLDER / f"i18n/{n}.json").read_text()) for n in ("en", "th"))
    assert set(english) <= set(thai)
    # English has the server's own sentences about files.
    assert all(key.startswith("accepts.") for key in set(thai) - set(english))
    for key, text in english.items():
        assert sorted(re.findall(r"\{\w+\}", text)) == sorted(re.findall(r"\{\w+\}", thai[key])), (
            key
        )


# Answers


def test_an_angiogram_is_answered_with_its_heat_map(server: Server, seen: Watched) -> None:
    page = seen.page
    frame = encoded(blocks(1))
    sent(page, files(frame__png=frame), "ffr")
    expect(page.locator("article h2")).to_be_focused()
    direct = httpx.post(f"{server.url}v1/ffr", files={"file": frame}).json()
    card = page.locator(".card")
    probability = direct["ffr"]["probability"]
    expect(card.locator(".figure")).to_have_text(f"{100 * probability:.1f} %")
    expect(card.locator(".level")).to_have_text(re.compile("low|medium|high"))
    expect(card).to_contain_text(direct["ffr"]["class"])
    expect(card).to_contain_text("Average of the training data: 50 %")
    expect(page.locator(".warnings")).to_contain_text(direct["warnings"][0])
    overlay = page.locator("figure.overlay img")
    expect(overlay).to_have_attribute("src", re.compile("^data:image/png;base64,"))
    page.get_by_role("switch", name="Show where the answer comes from").uncheck()
    expect(overlay).to_have_attribute("src", re.compile("^blob:"))


def test_dropped_files_are_taken(seen: Watched) -> None:
    page = seen.page
    dropped = page.evaluate_handle(
        """() => {
          const data = new DataTransfer();
          data.items.add(new File(["%PDF-1.7 "], "a.pdf"));
          data.items.add(new File(["text"], "b.txt"));
          return data;
        }"""
    )
    page.dispatch_event(".drop", "drop", {"dataTransfer": dropped})
    expect(page.locator(".picked-file")).to_have_count(2)
    expect(page.locator(".picked-file").first).to_contain_text("PDF document")
    page.get_by_role("button", name="Remove b.txt").click()
    expect(page.locator(".picked-file .file-name")).to_have_text("a.pdf")


def test_results_are_saved(seen: Watched, tmp_path: Path) -> None:
    page = seen.page
    sent(page, files(frame__png=encoded(blocks(2))), "ffr")
    answer = json.loads(saved(page, "json"))
    assert answer["model"] == "tiny"
    assert set(answer["ffr"]) >= {"probability", "threshold"}
    (tmp_path / "result.png").write_bytes(saved(page, "png"))
    with Image.open(tmp_path / "result.png") as image:
        assert image.width == 1240
        assert len(np.unique(np.asarray(image.convert("L")))) > 50
    content = saved(page, "pdf")
    assert content.startswith(b"%PDF-1.7\n")
    check_pdf(content)


def check_pdf(content: bytes) -> None:
    """Every object is where the table says, and a reader of PDF files sees pages of A4."""
    table = int(content.rsplit(b"startxref\n", 1)[1].split(b"\n", 1)[0])
    assert content[table : table + 7] == b"xref\n0 "
    rows = re.findall(rb"(\d{10}) 00000 n ", content[table:])
    for number, offset in enumerate(map(int, rows), start=1):
        assert content[offset:].startswith(f"{number} 0 obj\n".encode())
    document = pypdfium2.PdfDocument(content)
    assert document.get_metadata_dict()["Title"] == "CardioRay: ffr"
    for page in document:
        assert page.get_size() == pytest.approx((595.28, 841.89), abs=0.01)
    shown = np.asarray(document[0].render(scale=0.5).to_pil().convert("L"))
    assert len(np.unique(shown)) > 50
    document.close()


def test_a_cine_is_answered_with_a_video(seen: Watched) -> None:
    page = seen.page
    pick(page, files(cine__avi=encode_video(cine(), 25.0, "avi")), "echo-ef")
    card = page.locator(".picked-file")
    expect(card).to_contain_text("Browsers do not show files of this kind")
    card.get_by_role("button", name="Let the server show it").click()
    expect(card.locator("video")).to_have_attribute("src", re.compile("^blob:"))
    ask(page)
    expect(page.locator(".card h3")).to_have_text("Ejection fraction")
    expect(page.locator(".card .interval")).to_contain_text("90 % interval")
    video = page.locator("figure.overlay video")
    expect(video).to_have_attribute("src", re.compile("^data:video/mp4"))
    until(lambda: video.evaluate("video => video.videoWidth") > 0)
    page.get_by_text("Details").click()
    expect(page.get_by_role("table").first).to_contain_text("First frame")


def test_a_clip_that_browsers_play_is_shown(seen: Watched) -> None:
    page = seen.page
    pick(page, files(cine__mp4=encode_video(cine(), 25.0, "mp4")), "echo-ef")
    video = page.locator(".picked-file video")
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("slider").press("End")
    until(lambda: video.evaluate("video => video.currentTime") > 0.9)
    assert video.evaluate("video => video.videoWidth") > 0


def test_frames_are_outlined_and_say_by_their_names_what_they_show(seen: Watched) -> None:
    page = seen.page
    picked = [{"name": n, "mimeType": "", "buffer": c} for n, c in frames().items()]
    pick(page, picked, "lv-seg")
    said = page.locator(".picked-file select")
    shown = [said.nth(index).input_value() for index in range(4)]
    assert sorted(shown) == ["a2c_ed", "a2c_es", "a4c_ed", "a4c_es"]
    ask(page)
    titles = page.locator(".card h3")
    expect(titles).to_have_text(
        ["Ejection fraction", "End-diastolic volume", "End-systolic volume"]
    )
    page.get_by_label("Picture", exact=True).select_option(index=2)
    expect(page.locator("figure.overlay img")).to_have_attribute("alt", "Outlines, 3 of 4")
    page.get_by_text("Details").click()
    expect(page.get_by_text("What was measured in each frame")).to_be_visible()


def test_a_cine_is_outlined_with_its_area_curve(seen: Watched) -> None:
    page = seen.page
    pick(page, files(a4c__avi=encode_video(beating(), 25.0, "avi")), "lv-seg")
    ask(page)
    expect(page.locator(".problem")).to_contain_text("spacing_mm")
    page.get_by_label("Size of a pixel in mm").fill("1.6, 1.3")
    ask(page)
    expect(page.locator("figure.overlay video")).to_have_attribute(
        "src", re.compile("^data:video/mp4")
    )
    expect(page.locator("figure.overlay figcaption")).to_contain_text("area of the cavity")


# Let the file decide


def test_files_go_to_the_tasks_that_know_them(seen: Watched) -> None:
    page = seen.page
    picked = files(known__png=encoded(blocks(3)), other__png=png(4, 200), text__txt=b"words " * 99)
    sent(page, picked, "auto")
    known, other, text = (page.locator(".sorted-file").nth(index) for index in range(3))
    expect(known.locator(".verdict")).to_have_text("Like the training data of:")
    expect(other.locator(".verdict")).to_contain_text("Unlike the training data of every task")
    expect(text.locator(".verdict")).to_have_text("No task can read this file.")
    results = page.locator("article.result")
    expect(results).to_have_count(1)
    expect(results.locator("header")).to_contain_text("known.png")
    other.get_by_role("button", name="Ask it anyway").click()
    expect(results).to_have_count(2)
    expect(results.nth(1)).to_contain_text("Input unlike the training pictures")


def test_frames_are_sorted_and_outlined_where_their_names_tell_what_they_show(
    seen: Watched,
) -> None:
    page = seen.page
    sent(page, [{"name": n, "mimeType": "", "buffer": c} for n, c in frames().items()], "auto")
    expect(page.locator("article.result h2")).to_have_text(
        "Outlines and volumes of the left ventricle"
    )
    expect(page.locator(".card h3").first).to_have_text("Ejection fraction")
    # Without names, whoever sent them has to say it.
    page.get_by_role("button", name="Remove").nth(3).click()
    page.set_input_files(FILES, files(unnamed=next(iter(frames().values()))))
    ask(page)
    last = page.locator(".sorted-file").nth(3)
    expect(last).to_contain_text("needs to know what each file shows")
    last.get_by_role("button", name="Choose this task").click()
    expect(page.locator(f"{TASKS}:checked")).to_have_value("lv-seg")


# Errors


@pytest.mark.parametrize(
    ("content", "task", "words"),
    [
        (b"\x00\x01garbage" * 40, "ffr", "of an unknown kind"),
        (encoded(blocks())[:2000], "ffr", "cannot be"),
        (encoded(blocks()), "echo-ef", "The file is a PNG picture. Accepted are AVI, MP4, MOV"),
        (b"", "ffr", "empty"),
        (bytes(MAX_BYTES + 1), "ffr", "this task takes at most 391 KiB. Nothing was uploaded."),
    ],
)
def test_refusals_are_shown_as_they_are(
    seen: Watched, content: bytes, task: str, words: str
) -> None:
    page = seen.page
    sent(page, files(file__bin=content), task)
    problem = page.locator("article .problem")
    expect(problem).to_contain_text(words)
    expect(problem).to_have_attribute("role", "alert")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()


def test_what_is_missing_is_said_before_anything_is_sent(seen: Watched) -> None:
    page = seen.page
    page.locator("#ask-form button[type=submit]").click()
    expect(page.locator("#ask-fault")).to_have_text("Choose a file first.")
    pick(page, files(frame__png=encoded(blocks())), "lv-seg")
    page.locator("#ask-form button[type=submit]").click()
    expect(page.locator("#ask-fault")).to_contain_text("needs to know what each file shows")


def test_a_lost_connection_and_a_second_try(seen: Watched) -> None:
    page = seen.page
    page.route("**/v1/ffr**", lambda route: route.abort())
    sent(page, files(frame__png=encoded(blocks())), "ffr")
    expect(page.locator("article .problem")).to_contain_text("The server cannot be reached")
    page.unroute("**/v1/ffr**")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".card .figure")).to_be_visible()


def test_a_busy_server_is_asked_again(seen: Watched) -> None:
    page, refused = seen.page, []

    def once(route: Route) -> None:
        if refused:
            route.continue_()
            return
        refused.append(route)
        body = {
            "type": "urn:cardioray:problem:overloaded",
            "title": "",
            "detail": "",
            "status": 503,
        }
        route.fulfill(status=503, headers={"Retry-After": "2"}, json=body)

    page.route("**/v1/ffr**", once)
    pick(page, files(frame__png=encoded(blocks())), "ffr")
    page.locator("#ask-form button[type=submit]").click()
    expect(page.locator(".work-text")).to_contain_text("the server is busy, asking again in 2 s")
    expect(page.locator(".card .figure")).to_be_visible()


def test_asking_is_cancelled(seen: Watched) -> None:
    page = seen.page
    page.route("**/v1/ffr**", lambda route: None)  # never answers
    pick(page, files(frame__png=encoded(blocks())), "ffr")
    page.locator("#ask-form button[type=submit]").click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#ask-fault")).to_have_text("Cancelled.")
    page.unroute("**/v1/ffr**")
    ask(page)
    expect(page.locator(".card .figure")).to_be_visible()


def test_a_key_is_asked_for_and_kept_in_memory_alone(server: Server, browser: Browser) -> None:
    assert httpx.get(f"{server.locked}api/tasks").status_code == 401
    with watched(browser, f"{server.locked}?lang=en") as locked:
        page = locked.page
        field = page.get_by_label("API key")
        expect(field).to_be_focused()
        field.fill("cr_wrong")
        page.get_by_role("button", name="Use the key").click()
        expect(page.locator(".problem")).to_contain_text("The API key is not known")
        page.get_by_label("API key").fill(server.key)
        page.get_by_label("API key").press("Enter")
        expect(page.locator(TASKS)).to_have_count(4)
        assert serious_faults(page) == []
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [
            *(0, 0),
            "",
        ]
        assert server.key not in page.url
        page.reload()
        expect(page.get_by_label("API key")).to_have_value("")


# The questionnaire


def test_a_missing_answer_is_named_beside_its_question(seen: Watched) -> None:
    page = seen.page
    page.get_by_role("link", name="ECG questionnaire").click()
    page.get_by_role("link", name="Skip to the content").press("Enter")
    page.get_by_label("Year of birth").fill("2500")
    page.get_by_label("Height in cm").fill("170")
    page.get_by_label("Weight in kg").fill("70")
    page.get_by_label("Female").check()
    for name in (
        "Diabetes",
        "High blood pressure",
        "Coronary stent",
        "Known coronary",
        "Heart failure",
    ):
        page.get_by_role("group", name=re.compile(name)).get_by_label("No").check()
    page.get_by_role("group", name="Chronic kidney").get_by_label("Yes").check()
    page.get_by_role("button", name="Compute").click()
    group = page.get_by_role("group", name="Heart attack in the past")
    expect(group).to_contain_text("Not answered yet.")
    expect(page.locator("#scores .problem")).to_contain_text("Not answered: history_mi.")
    expect(page.locator("#scores .card")).to_have_count(0)
    assert serious_faults(page) == []
    group.get_by_label("Yes").check()
    page.get_by_role("button", name="Compute").click()
    expect(page.locator("#scores .card")).to_have_count(4)
    logit = -1.25369 - 1.289421 + 1.26799 + 0.394268
    first = page.locator("#scores .card").first
    expect(first.locator(".figure")).to_have_text(f"{100 / (1 + np.exp(-logit)):.1f} %")
    expect(first.locator(".level")).to_have_text("low")


# Languages, sizes, keyboard


def test_thai_is_remembered_in_the_address_alone(seen: Watched) -> None:
    page = seen.page
    sent(page, files(frame__png=encoded(blocks())), "ffr")
    page.get_by_role("button", name="ไทย").click()
    expect(page.locator("html")).to_have_attribute("lang", "th")
    expect(page.locator(".notice")).to_contain_text(THAI)
    expect(page.locator(".card .level")).to_have_text(re.compile("ต่ำ|ปานกลาง|สูง"))
    expect(page.locator(".warnings")).to_contain_text("ไม่ทราบว่าข้อมูลเป็นของผู้ป่วยคนใด")
    assert "lang=th" in page.url
    assert serious_faults(page) == []
    page.reload()
    expect(page.locator(".notice")).to_contain_text(THAI)
    assert page.evaluate("localStorage.length + document.cookie.length") == 0


@pytest.mark.parametrize("language", ["en", "th"])
def test_nothing_is_wider_than_a_phone(server: Server, browser: Browser, language: str) -> None:
    with watched(browser, f"{server.url}?lang={language}", viewport=PHONE) as phone:
        sent(phone.page, files(a_long_name_without_spaces_of_a_frame__png=encoded(blocks())), "ffr")
        assert phone.wide() == 0
        for view in ("questionnaire", "models"):
            phone.page.locator(f"[data-view={view}]").click()
            expect(phone.page.locator(f"#view-{view}")).to_be_visible()
            assert phone.wide() == 0


def test_a_model_card_is_read_and_closed_by_keyboard(seen: Watched) -> None:
    page = seen.page
    page.get_by_role("link", name="Models").click()
    opener = page.get_by_role("button", name="Model card").first
    opener.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("table").first).to_be_visible()
    assert serious_faults(page) == []
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(opener).to_be_focused()


def test_a_question_is_asked_by_keyboard(seen: Watched) -> None:
    page = seen.page
    expect(page.locator(TASKS)).to_have_count(4)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.locator(FILES)).to_be_focused()
    page.set_input_files(FILES, files(frame__png=encoded(blocks())))
    expect(page.locator(FILES)).to_be_focused()
    page.keyboard.press("Tab")  # to the button that removes the file
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(page.locator(f"{TASKS}:checked")).to_have_value("ffr")
    page.keyboard.press("Enter")
    expect(page.locator("article h2")).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(server: Server, browser: Browser, scheme: str) -> None:
    with watched(browser, f"{server.url}?lang=en", color_scheme=scheme) as seen:
        page = seen.page
        expect(page.locator(TASKS)).to_have_count(4)
        assert serious_faults(page) == []
        picked = files(known__png=encoded(blocks()), cine__avi=encode_video(cine(), 25.0, "avi"))
        sent(page, picked, "auto")
        page.locator(".sorted-file").nth(1).get_by_role("button", name="Ask it anyway").click()
        expect(page.locator("article.result")).to_have_count(2)
        page.get_by_text("Details").click()
        assert serious_faults(page) == []
        page.locator("[data-view=questionnaire]").click()
        page.get_by_role("button", name="Compute").click()
        expect(page.locator("#scores .problem")).to_be_visible()
        assert serious_faults(page) == []
