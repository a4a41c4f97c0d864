"""Questions about clips: any number of heads over one video network.

`echo-ef` and `echo-cmr` are this task with the words and defaults of their field.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from cardioray.config import config
from cardioray.data.clip import CLIP, ClipDecoder, ClipPreprocess
from cardioray.data.clip_augment import ClipAugmentConfig, augment_clips
from cardioray.data.decoding import DecodedSample
from cardioray.data.echo_layouts import read_echo_manifest
from cardioray.data.layouts import shown
from cardioray.data.manifest import Manifest
from cardioray.data.sampling import VALID, ClipSampling
from cardioray.data.splits import SplitConfig
from cardioray.evaluation.metrics import binary_metrics
from cardioray.evaluation.predictions import check_predictions, per_study
from cardioray.models.video import VIDEO_BACKBONES, VideoModel, VideoModelConfig
from cardioray.models.video_weights import load_video_weights, video_starting_weights
from cardioray.targets import BinaryTarget, RegressionTarget, questions
from cardioray.tasks.base import (
    Batch,
    LabelStatistics,
    Monitor,
    OperatingConfig,
    Outputs,
    Tables,
    Task,
    freeze_part,
)
from cardioray.tasks.clip_answers import cine_facts, clip_doubts


@config
class VideoLoss:
    """The loss of the heads, summed over them.

    Attributes:
        weights: weight of each head by its name; 1 where it is not named.
        class_weights: weigh the classes of a yes/no head by total / (2 N_class).
        in_deviations: measure squared errors in standard deviations of the training labels, so
            that heads in percent and in millilitres weigh alike; EchoNet-Dynamic does not.
    """

    weights: dict[str, float] = Field(default_factory=dict)
    class_weights: bool = False
    in_deviations: bool = True


@config
class VideoSettings:
    """Settings of a task about clips.

    Attributes:
        views: which views take part, where the manifest names views; () for all.
        preprocess: from the decoded cine to the stored clip; travels with the bundle.
        sampling: which frames of a clip the network sees at a time.
        model: network and starting weights.
        augment: random changes during training.
        loss: weights of the heads.
        split: how patients are divided.
        operating: threshold rule, calibration and conformal set.
    """

    views: tuple[str, ...] = ()
    preprocess: ClipPreprocess = ClipPreprocess()
    sampling: ClipSampling = ClipSampling()
    model: VideoModelConfig = VideoModelConfig()
    augment: ClipAugmentConfig = ClipAugmentConfig()
    loss: VideoLoss = VideoLoss()
    split: SplitConfig = SplitConfig()
    operating: OperatingConfig = OperatingConfig()


class VideoTask(Task):
    """Heads over a clip; what a subclass adds is its targets and words."""

    settings: VideoSettings
    example: ClassVar[str] = 'predictor.predict(["cine.avi"])'
    measures_pixels: ClassVar[bool] = True
    takes_views: ClassVar[bool] = True
    shards_kind: ClassVar[str] = "clips"
    searched: ClassVar[Mapping[str, str]] = {"dropout": "model.dropout"}
    max_batch: ClassVar[int] = 8

    @property
    def monitor(self) -> Monitor:
        """Mean absolute error, or AUC, of the headline over validation studies."""
        if self.targets[0].kind == "regression":
            return Monitor(name="val_mae", mode="min")
        return Monitor(name="val_auc", mode="max")

    @property
    def modality(self) -> str:
        """Ultrasound."""
        return "US"

    def read_manifest(self, data: str, patient_from: str | None) -> Manifest:
        """EchoNet's layout, a table of videos, or a folder of DICOM files with labels.

        Rows of other views than the chosen ones are left out, and a warning counts them.

        Raises:
            ValueError: as `read_echo_manifest`, or when no row is of a chosen view.
        """
        manifest = read_echo_manifest(data, self.targets, patient_from=patient_from)
        chosen = self.takes_part(manifest.table)
        if chosen.all():
            return manifest
        counts = Counter(manifest.table["view"][~chosen])
        found = shown([f"{name or 'none'} ({n})" for name, n in counts.most_common()])
        wanted = " or ".join(self.settings.views)
        if not chosen.any():
            raise ValueError(
                f"No row is of view {wanted}; there are {found}. Name views that are there in "
                "`views`, or mend the column view."
            )
        left_out = f"{counts.total()} row(s) are not of view {wanted} and are left out: {found}."
        return replace(
            manifest,
            table=manifest.table[chosen].reset_index(drop=True),
            warnings=(*manifest.warnings, left_out),
        )

    def takes_part(self, samples: pd.DataFrame) -> NDArray[np.bool_]:
        """Cines of the chosen views, where the table names views."""
        views = [view.lower() for view in self.settings.views]
        if not views or "view" not in samples:
            return super().takes_part(samples)
        return samples["view"].str.lower().isin(views).to_numpy(bool)

    @property
    def decoder(self) -> ClipDecoder:
        """From a cine to a clip."""
        return ClipDecoder(preprocess=self.settings.preprocess)

    @property
    def sampler(self) -> ClipSampling:
        """Windows of clips."""
        return self.settings.sampling

    def input_shapes(
        self, stored: Mapping[str, Sequence[int] | None]
    ) -> dict[str, tuple[int, ...]]:
        """A window, and the number of its frames that count."""
        size, channels = self.settings.preprocess.image_size, self.settings.preprocess.channels
        return {CLIP: (self.settings.sampling.frames, size, size, channels), VALID: ()}

    def pictures(self, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
        """The middle one of the frames that count."""
        middle = np.maximum(arrays[VALID].astype(int) - 1, 0) // 2
        return np.asarray(arrays[CLIP][np.arange(len(middle)), middle])

    def backbones(self, pattern: str) -> list[str]:
        """Wildcards go over the video networks."""
        return VIDEO_BACKBONES.matching(pattern.lower())

    def build_model(self) -> VideoModel:
        """Network, heads and normalisation; takes windows as `ClipSampling.cut` gives them."""
        return VideoModel(
            self.settings.model,
            channels=self.settings.preprocess.channels,
            outputs=tuple(target.name for target in self.targets),
        )

    def initialise(self, model: nn.Module, statistics: LabelStatistics) -> None:
        """Normalise by the training clips; numbers begin at their training mean."""
        assert isinstance(model, VideoModel)
        model.initialise(statistics.pixel_mean, statistics.pixel_std, statistics.means)

    def starting_weights(self, cache: str) -> str | None:
        """Published or given weights of the network."""
        channels = self.settings.preprocess.channels
        return video_starting_weights(self.settings.model, channels, cache)

    def load_starting_weights(self, model: nn.Module, path: str) -> None:
        """Load the network, and the head where the file has one for the only target."""
        assert isinstance(model, VideoModel)
        load_video_weights(model, path)

    def freeze(self, model: nn.Module, part: str) -> None:
        """Fix nothing, the backbone, or its stem and first stage."""
        assert isinstance(model, VideoModel)
        freeze_part(model, part, model.backbone, model.backbone.first_blocks())

    def pretrained_part(self, model: nn.Module) -> nn.Module:
        """The backbone."""
        assert isinstance(model, VideoModel)
        return model.backbone

    def augment(self, batch: Batch, seed: tuple[int, ...]) -> Batch:
        """Shift, brightness and dropped pixels, for each clip by itself."""
        return {**batch, CLIP: augment_clips(batch[CLIP], self.settings.augment, seed)}

    def loss(self, outputs: Outputs, batch: Batch, statistics: LabelStatistics) -> Tensor:
        """Cross-entropy of yes/no heads and squared errors of numbers, missing labels left out."""
        total = torch.zeros((), device=batch[CLIP].device)
        several = questions(self.targets)
        for name, classes in several.items():
            weight = self.settings.loss.weights.get(name, 1.0)
            total = total + weight * _choice_loss(outputs, batch, classes)
        for target in self.targets:
            if isinstance(target, BinaryTarget) and target.one_of:
                continue
            weight = self.settings.loss.weights.get(target.name, 1.0)
            labels = batch[target.name]
            known = torch.isfinite(labels)
            labels = torch.where(known, labels, 0.0)
            if target.kind == "binary":
                losses = self._binary_losses(outputs[target.name], labels, target, statistics)
            else:
                losses = (outputs[target.name] - labels) ** 2
                if self.settings.loss.in_deviations:
                    losses = losses / statistics.deviations[target.name] ** 2
            total = total + weight * (losses * known).sum() / known.sum().clamp(min=1)
        return total

    def validation_figures(self, tables: Tables) -> dict[str, float]:
        """As of every task; the figure of a question of several classes is the mean over them."""
        own = super().validation_figures(tables)
        headline = self.targets[0]
        if isinstance(headline, RegressionTarget) or not headline.one_of:
            return own
        classes = next(t for t in questions(self.targets).values() if headline in t)
        figures = []
        for target in classes:
            studies = per_study(check_predictions(tables.predictions, target))
            figures.append(binary_metrics(studies["label"], studies["score"], 0.5).auc)
        return {**own, "val_auc": float(np.mean(figures))}

    def _binary_losses(
        self, logits: Tensor, labels: Tensor, target: BinaryTarget, statistics: LabelStatistics
    ) -> Tensor:
        losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        if self.settings.loss.class_weights:
            negative, positive = statistics.class_weights[target.name]
            losses = losses * torch.where(labels > 0.5, positive, negative)
        return losses

    def details(
        self, samples: Sequence[DecodedSample], windows: Mapping[str, Sequence[NDArray[np.float32]]]
    ) -> dict[str, Any]:
        """`cines`: per cine frames in the file, frames used, fps, cm a pixel and windows.

        Of a question with several classes the likeliest one and its probability, by its name.
        """
        chosen = {}
        for name, classes in questions(self.targets).items():
            means = [np.concatenate(windows[each.name]).mean() for each in classes]
            best = int(np.argmax(means))
            chosen[name] = {"class": classes[best].positive, "probability": float(means[best])}
        return {**chosen, "cines": cine_facts(self.sampler, samples)}

    def doubts(self, samples: Sequence[DecodedSample]) -> list[str]:
        """No sector, too short, rate unknown, cut."""
        return clip_doubts(self.sampler, samples)

    def scores(self, outputs: Outputs, statistics: LabelStatistics) -> dict[str, Tensor]:
        """Probability of the positive class; numbers in their own units and bounds."""
        scored = {}
        shares = {
            each.name: share
            for classes in questions(self.targets).values()
            for each, share in zip(
                classes,
                torch.softmax(torch.stack([outputs[c.name] for c in classes]), dim=0),
                strict=True,
            )
        }
        for target in self.targets:
            if target.name in shares:
                scored[target.name] = shares[target.name]
                continue
            value = outputs[target.name]
            if isinstance(target, RegressionTarget):
                if target.low is not None or target.high is not None:
                    value = value.clamp(target.low, target.high)
                scored[target.name] = value
            else:
                scored[target.name] = torch.sigmoid(value)
        return scored


def _choice_loss(outputs: Outputs, batch: Batch, classes: Sequence[BinaryTarget]) -> Tensor:
    """Mean cross-entropy of one question over the samples that have a label."""
    logits = torch.stack([outputs[each.name] for each in classes], dim=1)
    labels = torch.stack([batch[each.name] for each in classes], dim=1)
    known = torch.isfinite(labels).all(dim=1)
    losses = -(torch.log_softmax(logits, dim=1) * torch.where(known[:, None], labels, 0.0))
    return losses.sum() / known.sum().clamp(min=1)
