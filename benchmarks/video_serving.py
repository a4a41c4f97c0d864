"""Answers about echo clips: OpenVINO beside eager PyTorch, and a cluster beside a bare loop."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from rich.console import Console

from benchmarks.report import Cell, Ratio, Report
from cardioray.config import config
from cardioray.data import cluster
from cardioray.data.pipeline import PrepareConfig, prepare
from cardioray.inference.batch import predict_files
from cardioray.machine import bf16_flags, cpu_flags, usable_cores
from cardioray.models.runtime import OpenVinoRuntime, export_openvino
from cardioray.phantoms.echo import write_echoes
from cardioray.phantoms.echo_config import ECHO_PRESETS
from cardioray.studies import load
from cardioray.tasks.base import LabelStatistics
from cardioray.training.settings import RunConfig
from cardioray.training.single import train_bundle

CLIP_QUESTION = """\
Milliseconds for one window of 32 frames of 112 px through R(2+1)D-18, on all cores: eager PyTorch
in fp32, as the published code answers, beside OpenVINO as CardioRay exports it, in fp32 and in
bf16. The largest difference of the EF is over all windows timed. Weights are random, with the
batch norms' statistics from the windows. The three take turns; medians. On a processor without
bf16 OpenVINO computes in fp32 whatever it is told.

Tried on a processor with avx512_bf16 and without AMX: fp32 gives 1.42 to 1.45 times eager PyTorch;
bf16 0.81, since its kernels for these convolutions are slower than those for fp32, which is why
`auto` does not choose it there; weights and activations in int8 by NNCF, calibrated on the windows,
6.3, which no bundle holds yet, since a random network does not show what it costs in accuracy."""
STUDY_QUESTION = """\
Clips a second of `cardioray predict` from AVI files to the table of answers, starting its actors
included, beside a loop over clips that lie decoded in memory, through the same network in one
process with all cores, which does nothing else. R(2+1)D-18, the default of `echo-ef`, after one
epoch of few patients; windows of 32 x 2 of 112 px, the first and the last of each clip."""


@config
class ClipSettings:
    """Size of the run.

    Attributes:
        windows: different windows, each timed in every round.
        rounds: times that each is answered.
    """

    windows: int = 6
    rounds: int = 5


@config
class StudySettings:
    """Size of the run.

    Attributes:
        patients: phantom patients, three clips each.
        trained_on: further ones that the network is trained with.
        bare_clips: clips that the bare loop answers, whose speed does not change on the way.
    """

    patients: int = 167
    trained_on: int = 40
    bare_clips: int = 120


def run_clips(settings: ClipSettings) -> Report:
    """Time one window on every runtime."""
    run = RunConfig.build("echo-ef", {"model": {"pretrained": "none"}})
    torch.manual_seed(0)
    torch.set_num_threads(usable_cores())
    model = run.task.build_model()
    statistics = LabelStatistics(
        class_weights={},
        means={"ef": 55.6},
        deviations={"ef": 12.0},
        pixel_mean=(127.0,),
        pixel_std=(74.0,),
    )
    run.task.initialise(model, statistics)
    rng = np.random.default_rng(0)
    shape = (settings.windows, 1, 32, 112, 112, 1)
    windows = rng.integers(0, 255, shape).astype(np.uint8)
    valid = np.full(1, 32, np.uint8)
    _settle(model, windows, valid)
    with tempfile.TemporaryDirectory(prefix="cr-bench-") as name:
        folder = Path(name)
        export_openvino(
            model, ("ef",), (np.repeat(windows[0], 2, 0), np.full(2, 32, np.uint8)), folder
        )
        ways: dict[str, Any] = {
            "PyTorch, eager, fp32": lambda window: _eager(model, window, valid),
            "OpenVINO, fp32": _openvino(folder, valid, bf16=False),
            "OpenVINO, bf16": _openvino(folder, valid, bf16=True),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        found: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(settings.rounds + 1):
            for window in windows:
                for way, answer in ways.items():
                    begun = time.perf_counter()
                    ef = answer(window)
                    if number:
                        seconds[way].append(time.perf_counter() - begun)
                        found[way].append(ef)
    eager, fp32, bf16 = ways
    rows: list[dict[str, Cell]] = [
        {
            "way": way,
            "milliseconds": 1000 * float(np.median(seconds[way])),
            "difference": float(np.abs(np.subtract(found[way], found[eager])).max()),
        }
        for way in ways
    ]
    flags = bf16_flags(cpu_flags())
    speed = {way: float(np.median(seconds[eager]) / np.median(seconds[way])) for way in ways}
    return Report(
        name="video_serving",
        title="Video: one clip answered",
        question=CLIP_QUESTION,
        columns={
            "way": "way",
            "milliseconds": "ms a window",
            "difference": "largest difference of the EF, points",
        },
        rows=rows,
        ratios=[
            Ratio(name="OpenVINO bf16 / eager", value=speed[bf16], goal=">= 1.8"),
            Ratio(name="OpenVINO fp32 / eager", value=speed[fp32]),
            Ratio(
                name="difference of the EF, bf16",
                value=float(rows[2]["difference"] or 0.0),
                goal="<= 0.2",
                unit="points",
            ),
        ],
        settings=asdict(settings) | {"bf16 flags of the processor": ", ".join(flags) or "none"},
    )


def _settle(model: Any, windows: Any, valid: Any) -> None:
    """Statistics of the batch norms from the windows, so that a random network tells them apart."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    model.train()
    with torch.no_grad():
        for window in windows:
            model(torch.from_numpy(window), torch.from_numpy(valid))
    model.eval()


@torch.inference_mode()
def _eager(model: Any, window: Any, valid: Any) -> float:
    return float(model(torch.from_numpy(window), torch.from_numpy(valid))["ef"][0])


def _openvino(folder: Path, valid: Any, *, bf16: bool) -> Any:
    runtime = OpenVinoRuntime(folder, bf16=bf16)
    return lambda window: float(runtime.run((window, valid))["ef"][0])


# Training and scoring of the network in minutes; what it has learned is of no interest.
_QUICK = (
    "model.pretrained=none",
    "sampling.max_windows=2",
    "train.epochs=1",
    "train.batch_size=4",
    "train.recipe=scratch",
    "split.train=0.4",
    "split.validation=0.1",
    "split.calibration=0.3",
    "split.test=0.2",
    "split.cross_fit_folds=0",
)


def run_studies(settings: StudySettings) -> Report:
    """Answer for a folder of clips, and run the network over the same clips in a loop."""
    with tempfile.TemporaryDirectory(prefix="cr-bench-") as name:
        folder = Path(name)
        run = RunConfig.build("echo-ef", {}, _QUICK)
        look = ECHO_PRESETS.get("standard")
        write_echoes(str(folder / "echoes"), settings.patients, seed=9, config=look)
        write_echoes(str(folder / "others"), settings.trained_on, seed=10, config=look)
        cluster.connect()
        try:
            manifest = run.task.read_manifest(str(folder / "others"), None)
            shards = prepare(run.task, manifest, str(folder / "shards"), PrepareConfig())
            bundle = train_bundle(run, shards, str(folder / "runs"), name="network")
            videos = sorted((folder / "echoes" / "Videos").glob("*.avi"))
            begun = time.perf_counter()
            table = predict_files(
                bundle.place,
                [str(folder / "echoes" / "Videos")],
                str(folder / "answers.parquet"),
                console=Console(quiet=True),
            )
            ours = time.perf_counter() - begun
            assert len(table) == len(videos)
        finally:
            ray.shutdown()
        predictor = load(bundle.place, num_threads=usable_cores())
        chosen = videos[: settings.bare_clips]
        samples = [s.without_picture() for v in chosen for s in predictor.decode(v.read_bytes())]
        predictor.infer(samples[:4])
        begun = time.perf_counter()
        for start in range(0, len(samples), 32):
            predictor.infer(samples[start : start + 32])
        bare = time.perf_counter() - begun
    rows: list[dict[str, Cell]] = [
        {"way": "cardioray predict, from files", "speed": len(videos) / ours, "seconds": ours},
        {"way": "bare loop, clips in memory", "speed": len(samples) / bare, "seconds": bare},
    ]
    cardioray, loop = (float(str(row["speed"])) for row in rows)
    return Report(
        name="video_studies",
        title="Video: many studies answered",
        question=STUDY_QUESTION,
        columns={"way": "way", "speed": "clips/s", "seconds": "s"},
        rows=rows,
        ratios=[Ratio(name="cardioray predict / bare loop", value=cardioray / loop, goal=">= 0.9")],
        settings=asdict(settings) | {"clips": len(videos), "runtime": predictor.runtime},
    )
