"""What the serving benchmarks compute from what they measured, and that peers do the same work."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web
from served import encoded, picture

from benchmarks.autoscaling import Kill, Watch
from benchmarks.load import Exchange, LoadSettings, ask_for_a_while, level
from benchmarks.peers.common import BUNDLE_VARIABLE, read_picture
from benchmarks.serving import DEFAULT, EAGER, FAST, IN_PROCESS, ratios
from cardioray.data.image import ImagePreprocess, read_frames
from cardioray.machine import free_port


def test_a_level_counts_the_answers_of_its_stretch_only() -> None:
    before = [Exchange(0.0, 0.5, 1, True)]
    inside = [Exchange(0.9, 0.2 + 0.1 * i, 1, True) for i in range(5)]
    failed = [Exchange(1.0, 0.1, 1, False)]
    found = level([*before, *inside, *failed, Exchange(1.9, 2.0, 1, True)], begin=1.0, end=3.0)
    assert found.requests_per_s == pytest.approx(2.5)
    assert found.p50_ms == pytest.approx(400)
    assert (found.answered, found.failed) == (5, 1)
    with pytest.raises(ValueError, match="None of 1 requests was answered"):
        level(failed, 0, 3)


def test_ratios_take_the_highest_level_and_differences_one_connection() -> None:
    def row(system: str, connections: int, speed: float, p50: float) -> dict[str, float | str]:
        return {
            "system": system,
            "connections": connections,
            "requests_per_s": speed,
            "p50_ms": p50,
        }

    rows = [row(EAGER, 1, 10, 80), row(EAGER, 32, 10, 3000), row(DEFAULT, 1, 20, 30)]
    rows += [row(DEFAULT, 32, 40, 800), row(FAST, 1, 20, 22), row(FAST, 32, 49, 700)]
    rows += [{"system": IN_PROCESS, "connections": 1, "p50_ms": 20.0}]
    found = {ratio.name: (ratio.value, ratio.met) for ratio in ratios(rows)}
    assert found == {
        f"{FAST} / {EAGER}, requests/s at 32 connections": (pytest.approx(4.9), False),
        f"{DEFAULT} / {EAGER}, requests/s at 32 connections": (pytest.approx(4.0), True),
        f"{DEFAULT} at 1 connection over {IN_PROCESS}, p50": (pytest.approx(10), False),
        f"{FAST} at 1 connection over {IN_PROCESS}, p50": (pytest.approx(2), True),
    }


def test_replicas_are_looked_for_after_a_time() -> None:
    watch = Watch(times=[0.0, 1.0, 2.0, 3.0, 4.0], running=[1, 1, 2, 2, 1])
    assert watch.first(2, after=0.5) == 1.5
    assert watch.first(1, after=2.5) == 1.5
    with pytest.raises(RuntimeError, match="never were 3 replicas"):
        watch.first(3, after=0.0)


def test_a_failure_counts_by_when_it_was_asked() -> None:
    kill = Kill(
        moment=10.0,
        exchanges=[
            Exchange(8.0, 1.0, 1, True),  # over before
            Exchange(9.5, 1.0, 1, False),
            Exchange(9.5, 1.0, 2, True),
            Exchange(9.9, 0.3, 1, True),
            Exchange(10.1, 0.3, 1, False),
        ],
    )
    assert kill.under_way == 3
    assert (kill.failed_under_way, kill.failed_later, kill.asked_again) == (1, 1, 1)


def test_a_client_asks_again_where_it_is_told_to(tmp_path: Path) -> None:
    (tmp_path / "frame.png").write_bytes(encoded(picture()))
    asked = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        form = await request.post()
        part = form["file"]
        assert isinstance(part, web.FileField)
        assert part.file.read() == (tmp_path / "frame.png").read_bytes()
        return web.Response(status=500 if asked % 2 else 200)

    async def ask(retries: int) -> list[Exchange]:
        app = web.Application()
        app.router.add_post("/predict", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        settings = LoadSettings(
            url=f"http://127.0.0.1:{port}/predict",
            picture=str(tmp_path / "frame.png"),
            connections=1,
            seconds=0.5,
            retries=retries,
        )
        try:
            return await ask_for_a_while(settings)
        finally:
            await runner.cleanup()

    stubborn = asyncio.run(ask(retries=1))
    assert {(e.attempts, e.answered) for e in stubborn} == {(2, True)}
    asked = 0
    hasty = asyncio.run(ask(retries=0))
    assert {e.attempts for e in hasty} == {1}
    assert [e.answered for e in hasty[:4]] == [False, True, False, True]
    assert sum(e.attempts for e in hasty) == asked


@pytest.mark.parametrize("size", [512, 300])
def test_peers_show_the_network_the_same_pixels(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BUNDLE_VARIABLE, str(tmp_path))
    columns = {"image": [224, 224, 1]}
    (tmp_path / "preprocess.json").write_text(json.dumps({"columns": columns}))
    data = encoded(picture(size=size))
    [decoded] = read_frames(data)
    expected = ImagePreprocess(image_size=224).apply(decoded)
    np.testing.assert_array_equal(read_picture(data), expected)
