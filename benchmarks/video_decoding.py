"""Reading echo clips beside OpenCV, bare decord and torchcodec."""

from __future__ import annotations

import functools
import importlib
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Cell, Ratio, Report
from cardioray.config import config
from cardioray.data.clip import ClipDecoder, ClipPreprocess
from cardioray.data.isolation import IsolatedDecoder, IsolationConfig
from cardioray.data.video import checked_frames, open_video
from cardioray.data.video_writing import encode_video
from cardioray.phantoms.echo_config import ECHO_PRESETS
from cardioray.phantoms.echo_patient import draw_echo_patient
from cardioray.phantoms.echo_scene import render_view

QUESTION = """\
Clips a second on one core, from the bytes of MJPG AVI files of 112 px (phantoms, and real cines
where they are at hand): a window of 32 frames, every other one, beginning anywhere; and whole
clips, as the shards need them. OpenCV reads frame by frame as EchoNet-Dynamic does, and cuts the
window afterwards; decord is called bare. What CardioRay does beside decoding is in its figures: it
checks that the file is whole, brings the frames to the model's size and channels, and, in the last
row of its own, decodes in another process that can be killed. The ways take turns, file by
file."""
WINDOW, STRIDE = 32, 2
OPENCV, DECORD, TORCHCODEC = "OpenCV, frame by frame", "decord, bare", "torchcodec"
OURS, ISOLATED = "CardioRay", "CardioRay, in its own process"


@config
class DecodingSettings:
    """Size of the run.

    Attributes:
        clips: phantom clips.
        rounds: times that every file is read by every way; the fastest one counts.
        samples: folder with real AVI files, or "".
    """

    clips: int = 200
    rounds: int = 3
    samples: str = ""


def run(settings: DecodingSettings) -> Report:
    """Time every way on every file."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    cv2.setNumThreads(1)
    files = _phantoms(settings.clips)
    real = sorted(Path(settings.samples).glob("*.avi")) if settings.samples else []
    files += [path.read_bytes() for path in real]
    rng = np.random.default_rng(0)
    decoder = ClipDecoder(preprocess=ClipPreprocess())
    with (
        tempfile.TemporaryDirectory(prefix="cr-bench-") as folder,
        IsolatedDecoder(decoder, IsolationConfig(recycle_after=10**6)) as shielded,
    ):
        path = Path(folder) / "clip.avi"
        ways = _ways(decoder, shielded)
        seconds, rounds = {name: [0.0, 0.0] for name in ways}, settings.rounds
        for data in files:
            path.write_bytes(data)
            start = int(rng.integers(max(1, _length(data) - (WINDOW - 1) * STRIDE)))
            for name, (window, whole) in ways.items():
                seconds[name][0] += _fastest(functools.partial(window, data, path, start), rounds)
                seconds[name][1] += _fastest(functools.partial(whole, data, path), rounds)
    return _report(settings, seconds, len(files), len(real), why_no_torchcodec())


def _ways(decoder: ClipDecoder, shielded: IsolatedDecoder) -> dict[str, Any]:
    import decord

    def decord_window(data: bytes, path: Path, start: int) -> Any:
        reader = decord.VideoReader(str(path), num_threads=1)
        wanted = range(start, min(start + WINDOW * STRIDE, len(reader)), STRIDE)
        return reader.get_batch(list(wanted)).asnumpy()

    def decord_whole(data: bytes, path: Path) -> Any:
        reader = decord.VideoReader(str(path), num_threads=1)
        return reader.get_batch(range(len(reader))).asnumpy()

    def our_window(data: bytes, path: Path, start: int) -> Any:
        video = open_video(data)
        assert video.num_frames is not None
        stop = min(start + (WINDOW - 1) * STRIDE + 1, video.num_frames)
        return np.concatenate(list(checked_frames(video, start, stop, STRIDE)))

    ways: dict[str, Any] = {
        OPENCV: (
            lambda d, p, s: _opencv(p)[s : s + WINDOW * STRIDE : STRIDE],
            lambda d, p: _opencv(p),
        ),
        DECORD: (decord_window, decord_whole),
        OURS: (our_window, lambda d, p: decoder.decode(d, None)),
        ISOLATED: (
            lambda d, p, s: shielded.decode(d, f"{s}-{min(s + WINDOW * STRIDE, _length(d)) - 1}"),
            lambda d, p: shielded.decode(d, None),
        ),
    }
    if why_no_torchcodec() is None:
        ways[TORCHCODEC] = _torchcodec()
    return ways


def why_no_torchcodec() -> str | None:
    """Why torchcodec does not load, in one line that fits into a table; None where it does."""
    try:
        importlib.import_module("torchcodec.decoders")
    except (ImportError, RuntimeError, OSError) as error:
        # It lists every release of FFmpeg that it has tried, in many lines.
        return " ".join(str(error).replace("|", "/").split())[:200] or type(error).__name__
    return None


def _torchcodec() -> Any:
    """torchcodec's ways, where it loads."""
    from torchcodec.decoders import VideoDecoder

    def window(data: bytes, path: Path, start: int) -> Any:
        decoder = VideoDecoder(data, num_ffmpeg_threads=1, seek_mode="approximate")
        stop = min(start + WINDOW * STRIDE, decoder.metadata.num_frames)
        return decoder.get_frames_in_range(start, stop, STRIDE).data

    def whole(data: bytes, path: Path) -> Any:
        decoder = VideoDecoder(data, num_ffmpeg_threads=1, seek_mode="approximate")
        return decoder.get_frames_in_range(0, decoder.metadata.num_frames).data

    return window, whole


def _opencv(path: Path) -> NDArray[np.uint8]:
    """All frames, as EchoNet-Dynamic's `loadvideo` reads them."""
    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        there, frame = capture.read()
        if not there:
            break
        frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    capture.release()
    return np.stack(frames)


def _length(data: bytes) -> int:
    count = open_video(data).num_frames
    assert count is not None
    return count


def _fastest(way: Callable[[], Any], rounds: int) -> float:
    best = np.inf
    for _ in range(rounds):
        begun = time.perf_counter()
        way()
        best = min(best, time.perf_counter() - begun)
    return float(best)


def _phantoms(count: int) -> list[bytes]:
    settings = ECHO_PRESETS.get("standard")
    files = []
    for index in range(count):
        clip = render_view(draw_echo_patient(11, index, settings), "A4C", settings)
        files.append(encode_video(clip.frames, clip.fps))
    return files


def _report(
    settings: DecodingSettings,
    seconds: dict[str, list[float]],
    files: int,
    real: int,
    no_torchcodec: str | None,
) -> Report:
    speed = {name: [files / value for value in pair] for name, pair in seconds.items()}
    rows: list[dict[str, Cell]] = [
        {"way": name, "window": pair[0], "whole": pair[1]} for name, pair in speed.items()
    ]
    if no_torchcodec is not None:
        rows.append({"way": f"{TORCHCODEC}: not timed, it does not load ({no_torchcodec})"})
    return Report(
        name="video_decoding",
        title="Video: decoding",
        question=QUESTION,
        columns={
            "way": "way",
            "window": "windows of 32 x 2, clips/s",
            "whole": "whole clips, clips/s",
        },
        rows=rows,
        ratios=[
            Ratio(
                name=f"windows, {OURS} / {OPENCV}",
                value=speed[OURS][0] / speed[OPENCV][0],
                goal=">= 3",
            ),
            Ratio(
                name=f"whole clips, {OURS} / {DECORD}",
                value=speed[OURS][1] / speed[DECORD][1],
                goal=">= 0.95",
            ),
            Ratio(
                name=f"whole clips, {ISOLATED} / {DECORD}",
                value=speed[ISOLATED][1] / speed[DECORD][1],
            ),
        ],
        settings=asdict(settings)
        | {"files": files, "real_files": real, "samples": bool(settings.samples)},
    )
