"""A data set with broken files: the run ends, and the quarantine lists exactly those.

With tests/ in PYTHONPATH, `python -c 'import test_broken_videos as here; here.main()' 2000 200`
runs it larger, and prints the memory of all its processes over time.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import psutil
import pytest
from ray_cluster import private_folder

from cardioray.data import cluster
from cardioray.data.clip import ClipDecoder
from cardioray.data.decoding import DecodedSample
from cardioray.data.frames import MAX_FRAMES
from cardioray.data.isolation import IsolationConfig
from cardioray.data.pipeline import PrepareConfig, prepare
from cardioray.data.shards import QUARANTINE, ShardSet
from cardioray.data.video import promised_frames
from cardioray.data.video_writing import encode_video
from cardioray.tasks import make_task
from cardioray.tasks.base import Task

SLEEP = b"CARDIORAY-TEST-SLEEP"
KINDS = ("cut", "flipped", "empty", "text", "foreign", "hangs")
BOUNDS = IsolationConfig(deadline_s=2.0, recycle_after=100)


@dataclass(frozen=True)
class SleepyDecoder:
    """The clip decoder, with files on which it never comes back, as decord has some."""

    inner: ClipDecoder
    columns = ("clip",)
    risky = True

    @property
    def selection(self) -> object:
        return self.inner.selection

    def decode(
        self, data: bytes, frames: str | None, max_frames: int = MAX_FRAMES
    ) -> list[DecodedSample]:
        while data.endswith(SLEEP):
            time.sleep(0.1)
        return self.inner.decode(data, frames, max_frames)


def write_files(folder: Path, files: int, broken: int, seed: int = 0) -> dict[str, str]:
    """Videos of noise and a manifest; gives the kind of each broken file by its name."""
    rng = np.random.default_rng(seed)
    (folder / "Videos").mkdir(parents=True)
    chosen = {int(i): KINDS[n % len(KINDS)] for n, i in enumerate(rng.permutation(files)[:broken])}
    kinds, rows = {}, []
    for number in range(files):
        clip = rng.integers(0, 255, (int(rng.integers(6, 14)), 48, 48)).astype(np.uint8)
        data, name = encode_video(clip, 30.0), f"v{number:05d}.avi"
        if (kind := chosen.get(number)) is not None:
            data = damaged(data, kind, rng)
            kinds[name] = kind
        (folder / "Videos" / name).write_bytes(data)
        rows.append((name, 20 + number % 50, f"p{number}"))
    table = pd.DataFrame(rows, columns=["filename", "ef", "patient_id"])
    table.to_csv(folder / "manifest.csv", index=False)
    return kinds


def damaged(data: bytes, kind: str, rng: np.random.Generator) -> bytes:
    if kind == "cut":
        return data[: int(rng.integers(1, len(data)))]
    if kind == "flipped":
        flipped = bytearray(data)
        for at in rng.integers(0, len(data), 40):
            flipped[at] ^= 1 << int(rng.integers(8))
        return bytes(flipped)
    if kind == "empty":
        return b""
    if kind == "text":
        return b"sample_id,patient_id\n" * 50
    if kind == "foreign":
        return b"\x89PNG\r\n\x1a\n" + data[:2000]
    return data + SLEEP


def readable(data: bytes) -> bool:
    """Whether OpenCV, another reader, finds every frame that the header promises."""
    with tempfile.NamedTemporaryFile(suffix=".avi") as file:
        Path(file.name).write_bytes(data)
        capture = cv2.VideoCapture(file.name)
        count = 0
        while capture.read()[0]:
            count += 1
    return count > 0 and count == promised_frames(data)


class SleepyTask:
    """`echo-ef`, decoding as `SleepyDecoder` does."""

    name = "echo-ef"

    def __init__(self, task: Task) -> None:
        self.decoder = SleepyDecoder(task.decoder)


def run(folder: Path, files: int, broken: int) -> tuple[ShardSet, dict[str, str], set[str]]:
    """Prepare a set with broken files; gives shards, kinds of the broken, and quarantined names."""
    kinds = write_files(folder / "set", files, broken)
    task = make_task("echo-ef", {}, ["preprocess.image_size=48"])
    manifest = task.read_manifest(str(folder / "set"), None)
    settings = PrepareConfig(sources_per_part=50, max_bad=0.5, isolation=BOUNDS)
    shards = prepare(SleepyTask(task), manifest, str(folder / "shards"), settings)
    with (folder / "shards" / QUARANTINE).open() as stream:
        bad = {Path(row["source"]).name for row in csv.DictReader(stream)}
    return shards, kinds, bad


@pytest.mark.ray
@pytest.mark.slow
def test_the_quarantine_lists_exactly_the_unreadable() -> None:
    """In a process and on a cluster of its own: processes of a cluster have to find this module."""
    with private_folder() as folder:
        done = subprocess.run(
            [sys.executable, "-c", "import test_broken_videos as here; here.main()", "80", "16"],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(
                    [str(Path(__file__).parent), *filter(None, sys.path)]
                ),
                "RAY_TMPDIR": str(folder),
            },
            capture_output=True,
            text=True,
            timeout=500,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "80 files, 16 broken" in done.stdout


def check(folder: Path, shards: ShardSet, kinds: dict[str, str], bad: set[str], files: int) -> None:
    """What has to hold; a file with flipped bits may still be whole."""
    certain = {name for name, kind in kinds.items() if kind != "flipped"}
    assert certain <= bad <= set(kinds)
    for name in set(kinds) - certain:
        data = (folder / "set" / "Videos" / name).read_bytes()
        if not readable(data):
            assert name in bad, name
    assert shards.index.num_samples == files - len(bad)
    assert not [process for process in psutil.process_iter() if decodes_for_us(process)]


def decodes_for_us(process: psutil.Process) -> bool:
    """Whether it is a decoding process of this cluster, also one that has lost its parent."""
    try:
        ours = process.environ().get("RAY_TMPDIR") == os.environ.get("RAY_TMPDIR")
        return ours and "cardioray.data.isolation" in process.cmdline()
    except psutil.Error:
        return False


def main() -> None:
    """The same at full size, with the memory of all processes over time."""
    files, broken = int(sys.argv[1]), int(sys.argv[2])
    cluster.connect()
    memory: list[float] = []
    stop = threading.Event()

    def watch() -> None:
        me = psutil.Process()
        while not stop.wait(1.0):
            total = 0.0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss  # what several share counts once
                except psutil.Error:
                    continue
            memory.append(total / 1e6)

    with tempfile.TemporaryDirectory() as name:
        threading.Thread(target=watch, daemon=True).start()
        begun = time.monotonic()
        shards, kinds, bad = run(Path(name), files, broken)
        seconds = time.monotonic() - begun
        stop.set()
        check(Path(name), shards, kinds, bad, files)
    third = max(1, len(memory) // 3)
    parts = (memory[:third], memory[third:-third] or memory, memory[-third:])
    first, middle, last = (float(np.mean(part)) for part in parts)
    print(
        f"{files} files, {broken} broken, {len(bad)} in quarantine, {seconds:.0f} s; memory of all "
        f"processes (MB) in thirds: {first:.0f}, {middle:.0f}, {last:.0f}, "
        f"highest {max(memory):.0f}"
    )
    # In the first third processes start; a short run is little else.
    assert files < 1000 or last < 1.1 * middle
