"""What the benchmarks of outlines share: phantom frames, a training step, and Dice."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cardioray.data.label_maps import STRUCTURES
from cardioray.data.segment import IMAGE, MASK, SegmentPreprocess
from cardioray.evaluation.segmentation import mask_figures
from cardioray.models.runtime import fast_layout
from cardioray.models.segmentation import MASKS, SegmentModel
from cardioray.phantoms.camus import SIZE_PX, VIEWS
from cardioray.phantoms.echo_config import ECHO_PRESETS
from cardioray.phantoms.echo_patient import draw_echo_patient
from cardioray.phantoms.echo_scene import render_systole
from cardioray.tasks.base import LabelStatistics
from cardioray.training.feed import epoch_order
from cardioray.training.schedule import scheduled_rate
from cardioray.training.settings import RunConfig, StageConfig

Pictures = NDArray[np.uint8]


@dataclass(frozen=True)
class Frames:
    """Frames of phantom patients.

    Attributes:
        pictures: as `lv-seg` stores them, (N, 256, 256, 1).
        labels: (N, 256, 256).
        spacing_mm: height and width of a pixel of each, (N, 2).
    """

    pictures: Pictures
    labels: NDArray[np.uint8]
    spacing_mm: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.pictures)


def phantom_frames(patients: int, seed: int, *, whole_systole: bool = False) -> Frames:
    """Both phases of both views of each patient, or all frames between, too."""
    look = dataclasses.replace(ECHO_PRESETS.get("standard"), image_size_px=SIZE_PX)
    preprocess = SegmentPreprocess(image_size=SIZE_PX)
    pictures, labels, sides = [], [], []
    for number in range(patients):
        patient = draw_echo_patient(seed, number, look)
        for view in VIEWS:
            systole = render_systole(patient, view, look)
            kept = slice(None) if whole_systole else [0, -1]
            pictures += [preprocess.apply(frame) for frame in systole.frames[kept]]
            labels.append(systole.labels[kept])
            sides += [systole.spacing_mm] * len(labels[-1])
    return Frames(
        pictures=np.stack(pictures),
        labels=np.concatenate(labels),
        spacing_mm=np.array([sides, sides]).T,
    )


class Training(Protocol):
    """A network, and a way to train it."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Of its weights."""

    @property
    def steps(self) -> int:
        """Of an epoch."""

    def epoch(self) -> Iterator[float]:
        """Train on every frame once; the loss of each step."""

    def label_maps(self, pictures: Pictures, batch_size: int) -> NDArray[np.uint8]:
        """What the network draws, (N, 256, 256)."""


class ProductTraining:
    """Steps of `training/loop.py` with frames in memory, on one worker without Ray."""

    def __init__(self, run: RunConfig, frames: Frames, *, bf16: bool) -> None:
        self.task, self.settings, self.bf16 = run.task, run.train, bf16
        self.frames = frames
        self.steps = len(frames) // run.train.batch_size
        self.statistics = LabelStatistics(
            class_weights={},
            means={},
            deviations={},
            pixel_mean=(float(frames.pictures.mean()),),
            pixel_std=(float(frames.pictures.std()),),
        )
        torch.manual_seed(0)
        model = self.task.build_model()
        assert isinstance(model, SegmentModel)
        self.task.initialise(model, self.statistics)
        fast_layout(model)
        self.model = model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)
        self.epochs = 0

    def epoch(self) -> Iterator[float]:
        """Train on every frame once; the loss of each step."""
        self.model.train()
        order = epoch_order(len(self.frames), seed=0, epoch=self.epochs, rank=0)
        size = self.settings.batch_size
        for step in range(self.steps):
            chosen = order[step * size : (step + 1) * size]
            yield self._step(chosen, (0, self.epochs, 0, step, 0))
        self.epochs += 1

    def _step(self, chosen: NDArray[np.int64], seed: tuple[int, ...]) -> float:
        batch = {
            IMAGE: torch.from_numpy(self.frames.pictures[chosen]),
            MASK: torch.from_numpy(self.frames.labels[chosen]),
        }
        batch = self.task.augment(batch, seed)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            outputs = self.model(batch[IMAGE])
        outputs = {name: value.float() for name, value in outputs.items()}
        loss = self.task.loss(outputs, batch, self.statistics)
        loss.backward()
        clip = self.settings.optimizer.gradient_clip
        assert clip is not None
        nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    @torch.inference_mode()
    def label_maps(self, pictures: Pictures, batch_size: int) -> NDArray[np.uint8]:
        """What the network draws, (N, 256, 256)."""
        self.model.eval()
        found = []
        for start in range(0, len(pictures), batch_size):
            some = torch.from_numpy(pictures[start : start + batch_size])
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                found.append(self.model(some)[MASKS].argmax(1))
        return torch.cat(found).numpy().astype(np.uint8)


def train_epoch(training: Training, stage: StageConfig, epoch: int) -> None:
    """Train on every frame once, at the rate of the stage, step by step."""
    losses = training.epoch()
    for step in range(training.steps):
        rate = scheduled_rate(stage, (epoch + step / training.steps) / stage.epochs, {})
        for group in training.optimizer.param_groups:
            group["lr"] = rate
        next(losses)
    assert next(losses, None) is None


def mean_dice(found: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> float:
    """Dice of label maps (N, H, W), the mean over frames and structures."""
    figures = [
        mask_figures(one == number, other == number, None).dice
        for one, other in zip(found, wanted, strict=True)
        for number in STRUCTURES.values()
    ]
    return float(np.nanmean(figures))
