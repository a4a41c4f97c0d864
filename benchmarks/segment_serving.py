"""Outlines of a frame: OpenVINO beside eager PyTorch."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.report import Cell, Ratio, Report
from benchmarks.segments import (
    Pictures,
    ProductTraining,
    mean_dice,
    phantom_frames,
    train_epoch,
)
from cardioray.config import config
from cardioray.machine import bf16_flags, cpu_flags, usable_cores
from cardioray.models.runtime import OpenVinoRuntime, export_openvino, use_bf16
from cardioray.models.segmentation import MASKS
from cardioray.training.settings import RunConfig, StageConfig

QUESTION = """\
Milliseconds for one frame of 256 px through U-Net on ResNet-34, from the uint8 picture to the
logits of all pixels, on all cores: eager PyTorch in fp32, as the published code answers, beside
OpenVINO as CardioRay exports it, in fp32 and in bf16, of which CardioRay takes what `precision:
auto` says of the processor. The network was trained for a few steps on phantom frames; Dice is that
of other patients' frames, the mean over frames and structures, and pixels are those whose label is
another one than eager PyTorch's. The three take turns; medians.

Tried on two cores of an Intel processor with avx512_bf16 and without AMX, where bf16 gains nothing:
f16 (98 ms, beside 59 ms in fp32); two frames at once, on a core each (53 ms a frame); int8 by NNCF,
calibrated on 64 training frames (16 to 24 ms, 3.5 to 5.5 times as fast as eager PyTorch). With the
layers that are left in fp32 and the correction of biases Dice then changes by 0.0001 to 0.0027; no
bundle holds such a network yet."""

EAGER, FP32, BF16 = "PyTorch, eager, fp32", "OpenVINO, fp32", "OpenVINO, bf16"


@config
class FrameSettings:
    """Size of the run.

    Attributes:
        patients: phantom patients to train with, four frames each.
        epochs: passes over their frames.
        learning_rate: the highest one.
        other_patients: those whose frames are outlined.
        rounds: times that each frame is.
    """

    patients: int = 16
    epochs: int = 5
    learning_rate: float = 1e-3
    other_patients: int = 10
    rounds: int = 4


def run(settings: FrameSettings) -> Report:
    """Train the network briefly, then time a frame on every runtime."""
    cv2.setNumThreads(1)
    torch.set_num_threads(usable_cores())
    training = _trained(settings)
    others = phantom_frames(settings.other_patients, seed=32)
    model = copy.deepcopy(training.model).to(memory_format=torch.contiguous_format).eval()
    with tempfile.TemporaryDirectory(prefix="cr-bench-") as name:
        folder = Path(name)
        export_openvino(training.model, (MASKS,), (others.pictures[:2],), folder)
        ways: dict[str, Callable[[Pictures], NDArray[np.float32]]] = {
            EAGER: lambda picture: _eager(model, picture),
            FP32: _openvino(folder, bf16=False),
            BF16: _openvino(folder, bf16=True),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        found: dict[str, list[NDArray[np.uint8]]] = {way: [] for way in ways}
        for number in range(settings.rounds + 1):
            for picture in others.pictures:
                for way, answer in ways.items():
                    begun = time.perf_counter()
                    logits = answer(picture[None])
                    if number:
                        seconds[way].append(time.perf_counter() - begun)
                    else:
                        found[way].append(logits[0].argmax(axis=0).astype(np.uint8))
    maps = {way: np.stack(values) for way, values in found.items()}
    dice = {way: mean_dice(values, others.labels) for way, values in maps.items()}
    speed = {way: float(np.median(seconds[EAGER]) / np.median(seconds[way])) for way in ways}
    chosen = BF16 if use_bf16("auto", torch.device("cpu")) else FP32
    rows: list[dict[str, Cell]] = [
        {
            "way": way,
            "milliseconds": 1000 * float(np.median(seconds[way])),
            "dice": f"{dice[way]:.4f}",
            "pixels": 100 * float((maps[way] != maps[EAGER]).mean()),
        }
        for way in ways
    ]
    return Report(
        name="segment_serving",
        title="Outlines: one frame answered",
        question=QUESTION,
        columns={
            "way": "way",
            "milliseconds": "ms a frame",
            "dice": "Dice",
            "pixels": "other pixels, %",
        },
        rows=rows,
        ratios=[
            Ratio(name=f"{chosen} / eager", value=speed[chosen], goal=">= 2"),
            Ratio(
                name=f"difference of Dice, {chosen}",
                value=abs(dice[chosen] - dice[EAGER]),
                goal="<= 0.001",
            ),
            Ratio(name=f"{BF16} / eager", value=speed[BF16]),
            Ratio(name=f"difference of Dice, {BF16}", value=abs(dice[BF16] - dice[EAGER])),
        ],
        settings=asdict(settings)
        | {
            "frames": len(others),
            "bf16 flags of the processor": ", ".join(bf16_flags(cpu_flags())) or "none",
        },
    )


def _trained(settings: FrameSettings) -> ProductTraining:
    """The default network after a few steps."""
    run_config = RunConfig.build(
        "lv-seg", {"model": {"pretrained": "none"}}, ["train.batch_size=8"]
    )
    bf16 = use_bf16(run_config.train.precision, torch.device("cpu"))
    training = ProductTraining(run_config, phantom_frames(settings.patients, seed=31), bf16=bf16)
    stage = StageConfig(epochs=settings.epochs, learning_rate=settings.learning_rate)
    for epoch in range(settings.epochs):
        train_epoch(training, stage, epoch)
    return training


@torch.inference_mode()
def _eager(model: nn.Module, picture: Pictures) -> NDArray[np.float32]:
    logits: NDArray[np.float32] = model(torch.from_numpy(picture))[MASKS].numpy()
    return logits


def _openvino(folder: Path, *, bf16: bool) -> Callable[[Pictures], NDArray[np.float32]]:
    runtime = OpenVinoRuntime(folder, bf16=bf16, num_threads=usable_cores())
    return lambda picture: runtime.run((picture,))[MASKS]
