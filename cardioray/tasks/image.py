"""Task `image`: any question about single pictures, named by its targets.

Binary and regression targets share one backbone and head. `ffr` is this task with the words and
defaults of its field.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from cardioray.config import config
from cardioray.data.augment import Augment, AugmentConfig
from cardioray.data.decoding import ImageDecoder
from cardioray.data.image import FrameSelection, ImagePreprocess
from cardioray.data.manifest import Manifest, read_manifest
from cardioray.data.splits import SplitConfig
from cardioray.models.backbones import backbone_info, require_picture_size
from cardioray.models.classifier import ImageClassifier, ImageModelConfig
from cardioray.targets import BinaryTarget, RegressionTarget
from cardioray.tasks.backbone import BackboneTask
from cardioray.tasks.base import (
    TASKS,
    Batch,
    LabelStatistics,
    Monitor,
    OperatingConfig,
    Outputs,
    binary_loss,
)


@config
class ImageLoss:
    """The loss of the binary and regression heads.

    Attributes:
        label_smoothing: share of a binary label spread evenly over both classes.
        class_weights: weigh classes by total / (2 N_class) of the training rows.
        regression_weight: weight of each regression head's squared error (in units of its
            standard deviation) beside the binary heads.
    """

    label_smoothing: float = Field(default=0.2, ge=0, lt=1)
    class_weights: bool = True
    regression_weight: float = Field(default=0.3, ge=0)


@config
class ImageSettings:
    """Settings of an image task.

    Attributes:
        target: the headline question.
        value_target: a number predicted by a second head, or None.
        frames: which frames of a multi-frame file are samples ("all", "contrast", "12", "10-20").
        preprocess: from the decoded picture to the stored one; travels with the bundle.
        model: backbone, head, starting weights.
        augment: random changes during training.
        loss: weights and smoothing.
        split: how patients are divided.
        operating: threshold rule, calibration and conformal set.
    """

    target: BinaryTarget = BinaryTarget(name="image", positive="positive", negative="negative")
    value_target: RegressionTarget | None = None
    frames: str = "all"
    preprocess: ImagePreprocess = ImagePreprocess()
    model: ImageModelConfig = ImageModelConfig()
    augment: AugmentConfig = AugmentConfig()
    loss: ImageLoss = ImageLoss()
    split: SplitConfig = SplitConfig()
    operating: OperatingConfig = OperatingConfig()

    def __post_init__(self) -> None:
        FrameSelection.parse(self.frames)
        pictures = self.preprocess
        require_picture_size(
            backbone_info(self.model.backbone), pictures.image_size, pictures.channels
        )


@TASKS.register("image")
class ImageTask(BackboneTask):
    """A binary question about a picture, optionally with a number beside it."""

    name: ClassVar[str] = "image"
    title: ClassVar[str] = "Binary question about a picture"
    intended_use: ClassVar[str] = "Research on labelled pictures. Not for clinical use."
    settings_type: ClassVar[type] = ImageSettings
    searched: ClassVar[Mapping[str, str]] = {
        "dropout": "model.head.dropout",
        "hidden": "model.head.hidden",
        "rotation_degrees": "augment.rotation_degrees",
        "contrast": "augment.contrast",
    }
    settings: ImageSettings

    @functools.cached_property
    def _augment(self) -> Augment:
        return Augment(self.settings.augment)

    @property
    def targets(self) -> tuple[BinaryTarget | RegressionTarget, ...]:
        """The question and, where set, the number."""
        value = self.settings.value_target
        return (self.settings.target,) if value is None else (self.settings.target, value)

    @property
    def monitor(self) -> Monitor:
        """AUC over validation studies."""
        return Monitor(name="val_auc", mode="max")

    @property
    def modality(self) -> str:
        """Any."""
        return "OT"

    def read_manifest(self, data: str, patient_from: str | None) -> Manifest:
        """Folder per class, CSV, Excel, Parquet, or a folder that holds a manifest."""
        return read_manifest(data, self.targets, patient_from=patient_from)

    @property
    def decoder(self) -> ImageDecoder:
        """Preprocessing and frame selection."""
        return ImageDecoder(preprocess=self.settings.preprocess, frames=self.settings.frames)

    @property
    def input_channels(self) -> int:
        """One of grey pictures, three of coloured ones."""
        return self.settings.preprocess.channels

    def build_model(self) -> ImageClassifier:
        """Backbone, head and normalisation; takes (B, H, W, C) uint8 or [0, 1] floats."""
        return ImageClassifier(
            self.settings.model,
            channels=self.settings.preprocess.channels,
            outputs=tuple(target.name for target in self.targets),
        )

    def augment(self, batch: Batch, seed: tuple[int, ...]) -> Batch:
        """Rotation, shift, zoom, contrast and brightness, for each picture by itself."""
        floats = batch["image"].permute(0, 3, 1, 2).float() / 255.0
        changed = self._augment(floats, seed=seed)
        return {**batch, "image": changed.permute(0, 2, 3, 1)}

    def loss(self, outputs: Outputs, batch: Batch, statistics: LabelStatistics) -> Tensor:
        """Weighted, smoothed cross-entropy, plus squared error of the number in SD units."""
        target = self.settings.target
        settings = self.settings.loss
        total = binary_loss(
            outputs[target.name],
            batch[target.name],
            weights=statistics.class_weights[target.name] if settings.class_weights else None,
            smoothing=settings.label_smoothing,
        )
        value = self.settings.value_target
        if value is not None:
            known = torch.isfinite(batch[value.name])
            wanted = (batch[value.name] - statistics.means[value.name]) / statistics.deviations[
                value.name
            ]
            errors = (outputs[value.name] - torch.where(known, wanted, 0.0)) ** 2
            mean_error = (errors * known).sum() / known.sum().clamp(min=1)
            total = total + self.settings.loss.regression_weight * mean_error
        return total

    def scores(self, outputs: Outputs, statistics: LabelStatistics) -> dict[str, Tensor]:
        """Probability of the positive class; the number in its own units and bounds."""
        scored = {self.settings.target.name: torch.sigmoid(outputs[self.settings.target.name])}
        value = self.settings.value_target
        if value is not None:
            mean, deviation = statistics.means[value.name], statistics.deviations[value.name]
            number = outputs[value.name] * deviation + mean
            if value.low is not None or value.high is not None:
                number = number.clamp(value.low, value.high)
            scored[value.name] = number
        return scored
