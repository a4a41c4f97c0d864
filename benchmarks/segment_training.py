"""Training of a segmentation beside a plain loop with albumentations."""

from __future__ import annotations

import copy
import time
from dataclasses import asdict

import cv2
import numpy as np
import torch

from benchmarks.peers.plain_segmentation import ChangedPictures, PlainTraining
from benchmarks.report import Cell, Ratio, Report
from benchmarks.segments import (
    ProductTraining,
    Training,
    mean_dice,
    phantom_frames,
    train_epoch,
)
from cardioray.config import config
from cardioray.machine import bf16_flags, cpu_flags, usable_cores
from cardioray.models.runtime import use_bf16
from cardioray.training.settings import RunConfig, StageConfig

QUESTION = """\
Images a second of a training step of U-Net on ResNet-34 at 256 px, from uint8 pictures in memory to
the changed weights, on all cores. The plain loop computes in fp32, and albumentations changes
pictures in the processes of a DataLoader, with the augmentations, loss and batch of EchoEF-Net.
CardioRay changes whole batches on the device, has channels last in memory, and computes in bf16
where the processor does it fast; both precisions are timed, and the one that `precision: auto`
takes here counts. All begin with the same weights and take the same steps on the same phantom
frames, at a rate that rises and falls once. They take turns, an epoch each; median over epochs
without the first. Dice is that of validation frames after the last one, the mean over frames and
structures.

Tried on two cores of an Intel processor with avx512_bf16 and without AMX: autocast to bf16, as in
the table; bf16 in the convolutions alone, by oneDNN (1.0 of the speed in fp32); `train.compile`
(0.98, after half a minute of compiling). A step is 370 GFLOP. These cores multiply matrices at 300
GFLOP/s in fp32, of which the plain loop reaches 170 and CardioRay 200: twice the plain loop is more
than they have."""

PLAIN = "plain loop, fp32, albumentations"
FP32, BF16 = "CardioRay, fp32", "CardioRay, bf16"


@config
class StepSettings:
    """Size of the run.

    Attributes:
        patients: phantom patients to train with, four frames each.
        validation_patients: further ones.
        batch_size: frames a step.
        epochs: passes over the frames, the first of which is not timed.
        learning_rate: the highest one.
    """

    patients: int = 16
    validation_patients: int = 8
    batch_size: int = 8
    epochs: int = 5
    learning_rate: float = 1e-3


def run(settings: StepSettings) -> Report:
    """Train each way, epoch by epoch in turns."""
    cv2.setNumThreads(1)
    torch.set_num_threads(usable_cores())
    frames = phantom_frames(settings.patients, seed=21)
    held_out = phantom_frames(settings.validation_patients, seed=22)
    # EchoEF-Net mirrors half of the pictures; CardioRay does so only where it is asked to.
    changes = {"model": {"pretrained": "none"}, "augment": {"flip": 0.5}}
    run_config = RunConfig.build("lv-seg", changes, [f"train.batch_size={settings.batch_size}"])
    ours = {name: ProductTraining(run_config, frames, bf16=name == BF16) for name in (FP32, BF16)}
    net = copy.deepcopy(ours[FP32].model.net).to(memory_format=torch.contiguous_format)
    data = ChangedPictures(frames.pictures[..., 0], frames.labels)
    size, cores = settings.batch_size, usable_cores()
    ways: dict[str, Training] = {
        PLAIN: PlainTraining(net, data, batch_size=size, workers=cores),
        **ours,
    }
    stage = StageConfig(epochs=settings.epochs, learning_rate=settings.learning_rate)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for epoch in range(settings.epochs):
        for name, training in ways.items():
            begun = time.perf_counter()
            train_epoch(training, stage, epoch)
            if epoch:
                seconds[name].append((time.perf_counter() - begun) / training.steps)
    chosen = BF16 if use_bf16(run_config.train.precision, torch.device("cpu")) else FP32
    speed = {name: size / float(np.median(values)) for name, values in seconds.items()}
    dice = {
        name: mean_dice(training.label_maps(held_out.pictures, size), held_out.labels)
        for name, training in ways.items()
    }
    rows: list[dict[str, Cell]] = [
        {"loop": name, "speed": speed[name], "dice": dice[name]} for name in ways
    ]
    return Report(
        name="segment_step",
        title="Outlines: a training step",
        question=QUESTION,
        columns={"loop": "loop", "speed": "images/s", "dice": "validation Dice"},
        rows=rows,
        ratios=[
            Ratio(name=f"{chosen} / plain loop", value=speed[chosen] / speed[PLAIN], goal=">= 2"),
            Ratio(name=f"{BF16} / {FP32}", value=speed[BF16] / speed[FP32]),
            Ratio(name="Dice, bf16 less fp32", value=dice[BF16] - dice[FP32]),
            Ratio(name=f"Dice, {chosen} less plain loop", value=dice[chosen] - dice[PLAIN]),
        ],
        settings=asdict(settings)
        | {
            "frames": len(frames),
            "steps": settings.epochs * ways[PLAIN].steps,
            "bf16 flags of the processor": ", ".join(bf16_flags(cpu_flags())) or "none",
        },
    )
