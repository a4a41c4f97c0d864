"""Task `keyframe-ef`: the ejection fraction from single frames, and how sure that is.

Frames are at end diastole, at end systole and between them.

The question of the published system on ResNet-50 features: what do key frames alone tell? By
default a frozen backbone gives features, and heads (perceptrons, Gaussian processes) are fitted to
them; with `method=end_to_end` the backbone learns the answer itself, from one frame at a time.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from cardioray.config import config
from cardioray.data.keyframe_layouts import FRAMES, FrameName, read_keyframe_manifest
from cardioray.data.manifest import Manifest
from cardioray.data.segment import IMAGE, MASK, SegmentDecoder, SegmentPreprocess
from cardioray.data.segment_augment import SegmentAugmentConfig, augment_segments
from cardioray.data.splits import SplitConfig
from cardioray.models.backbones import BACKBONES, backbone_info
from cardioray.models.feature_mlp import MlpHeadConfig
from cardioray.models.gaussian_process import GaussianProcessConfig
from cardioray.models.keyframes import (
    KeyframeModel,
    KeyframeModelConfig,
    keyframe_starting_weights,
    load_keyframe_weights,
)
from cardioray.models.segmentation import SEGMENTERS, SegmentModelConfig
from cardioray.targets import BinaryTarget, EfCutOff, RegressionTarget
from cardioray.tasks.base import (
    TASKS,
    Batch,
    LabelStatistics,
    Monitor,
    OperatingConfig,
    Outputs,
    Pretraining,
    Task,
    freeze_part,
)
from cardioray.tasks.lv_seg import LvSegSettings, LvSegTask

EF_TARGET = RegressionTarget(
    name="ef", value_column="ef", unit="%", low=0.0, high=100.0, cutoffs=(35.0, 40.0, 45.0, 50.0)
)


@config
class KeyframeHeads:
    """What is fitted to features.

    Attributes:
        members: kinds of heads: "gp" a Gaussian process, "mlp" a perceptron for the number,
            "mlp_class" one for the class.
        together: fit heads to the features of all frames of a study side by side, too.
        gp: settings of Gaussian processes; kernel and components are where a search starts.
        mlp: settings of perceptrons.
        inner_folds: folds of the development patients, whose predictions weigh the members,
            calibrate the SD and set thresholds; in a comparison of at least 4 folds, the other
            folds are taken. A backbone that learns outlines does so for each of them anew.
        search: Gaussian processes that are tried by patient folds, for each frame; 0 takes the
            settings as they are.
    """

    members: tuple[Literal["gp", "mlp", "mlp_class"], ...] = ("gp", "mlp", "mlp_class")
    together: bool = True
    gp: GaussianProcessConfig = GaussianProcessConfig()
    mlp: MlpHeadConfig = MlpHeadConfig()
    inner_folds: int = Field(default=5, ge=3)
    search: int = Field(default=12, ge=0)

    def __post_init__(self) -> None:
        if not {"gp", "mlp"} & set(self.members):
            raise ValueError("heads.members: gp or mlp must be among them, for the number.")


@config
class OutlineTraining:
    """How the segmentation network is trained whose encoder is the backbone.

    Optimiser, precision, seed and whatever else is not here are those of the run (`train`).

    Attributes:
        epochs: passes over the outlined frames; None for those of the recipe "scratch".
        learning_rate: the highest one; None for that of the recipe.
        batch_size: frames a worker takes a step.
    """

    epochs: int | None = Field(default=None, ge=1)
    learning_rate: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=16, ge=2)


@config
class KeyframeSettings:
    """Settings of `keyframe-ef`.

    Attributes:
        method: "features" fits heads to a frozen backbone, "end_to_end" trains the backbone.
        view: the view that takes part, where the data name views; "" for all.
        frames: which key frames take part.
        cut_off: the class that is told beside the number.
        preprocess: from the decoded frame to the stored one; travels with the bundle.
        model: the backbone and where its weights come from.
        outlines: how a backbone with `model.pretrained=outlines` is trained.
        heads: what is fitted to features.
        augment: random changes while a backbone is trained.
        class_weight: weight of the class beside the number when a backbone is trained.
        split: how patients are divided.
        operating: threshold rule, calibration of probabilities, conformal sets.
    """

    method: Literal["features", "end_to_end"] = "features"
    view: str = "A4C"
    frames: tuple[FrameName, ...] = FRAMES
    cut_off: EfCutOff = EfCutOff()
    preprocess: SegmentPreprocess = SegmentPreprocess(image_size=128)
    model: KeyframeModelConfig = KeyframeModelConfig()
    outlines: OutlineTraining = OutlineTraining()
    heads: KeyframeHeads = KeyframeHeads()
    augment: SegmentAugmentConfig = SegmentAugmentConfig()
    class_weight: float = Field(default=0.3, ge=0)
    split: SplitConfig = SplitConfig()
    operating: OperatingConfig = OperatingConfig()

    def __post_init__(self) -> None:
        if not self.frames or len(set(self.frames)) < len(self.frames):
            raise ValueError(f"frames are different ones of {', '.join(FRAMES)}.")

    @property
    def target(self) -> BinaryTarget:
        """The class as a question."""
        return self.cut_off.target(self.cut_off.name, EF_TARGET.value_column)


@TASKS.register("keyframe-ef")
class KeyframeEfTask(Task):
    """The ejection fraction from key frames."""

    name: ClassVar[str] = "keyframe-ef"
    title: ClassVar[str] = "Ejection fraction from frames at end diastole, end systole and between"
    intended_use: ClassVar[str] = (
        "Research: how much single frames of an apical view tell of the ejection fraction, and how "
        "sure that is. Not for clinical use."
    )
    settings_type: ClassVar[type] = KeyframeSettings
    settings: KeyframeSettings
    example: ClassVar[str] = 'predictor.predict(["ed.png", "es.png"], views=["ED", "ES"])'
    measures_pixels: ClassVar[bool] = True
    takes_views: ClassVar[bool] = True
    shards_kind: ClassVar[str] = "segments"

    @property
    def targets(self) -> tuple[RegressionTarget | BinaryTarget, ...]:
        """The number, and the class."""
        return (EF_TARGET, self.settings.target)

    @property
    def monitor(self) -> Monitor:
        """Mean absolute error over validation studies."""
        return Monitor(name="val_mae", mode="min")

    @property
    def modality(self) -> str:
        """Ultrasound."""
        return "US"

    @property
    def fits_heads(self) -> bool:
        """With `method=features`."""
        return self.settings.method == "features"

    def read_manifest(self, data: str, patient_from: str | None) -> Manifest:
        """CAMUS, EchoNet with its tracings, or a table that names key frames."""
        return read_keyframe_manifest(data, self.targets, patient_from=patient_from)

    def takes_part(self, samples: pd.DataFrame) -> NDArray[np.bool_]:
        """Chosen frames of the chosen view; frames whose view is not said are taken for it."""
        chosen = samples["phase"].isin(self.settings.frames)
        if self.settings.view and "view" in samples:
            said = samples["view"].fillna("").str.upper()
            chosen &= said.isin(["", self.settings.view.upper()])
        return chosen.to_numpy(bool)

    @property
    def decoder(self) -> SegmentDecoder:
        """From a file to frames, and from a label map to theirs."""
        return SegmentDecoder(preprocess=self.settings.preprocess)

    @property
    def outputs(self) -> tuple[str, ...]:
        """None but features, where heads are fitted to these."""
        return () if self.fits_heads else super().outputs

    def backbones(self, pattern: str) -> list[str]:
        """Wildcards go over the ten of the FFR study, or, with a hyphen, over segmentation."""
        if any(sign in pattern for sign in "*?["):
            registry = SEGMENTERS if "-" in pattern else BACKBONES
            return registry.matching(pattern.lower())
        KeyframeModelConfig(backbone=pattern, pretrained="none")
        return [pattern if "-" in pattern else backbone_info(pattern).name]

    def build_model(self) -> KeyframeModel:
        """Backbone and normalisation, and a head where the backbone is trained."""
        return KeyframeModel(self.settings.model, outputs=self.outputs)

    def initialise(self, model: nn.Module, statistics: LabelStatistics) -> None:
        """Normalise by published weights or training pictures."""
        assert isinstance(model, KeyframeModel)
        model.initialise(statistics.pixel_mean, statistics.pixel_std)

    def starting_weights(self, cache: str) -> str | None:
        """Published or given weights of the backbone."""
        return keyframe_starting_weights(self.settings.model, cache)

    def pretraining(self) -> Pretraining | None:
        """With `model.pretrained=outlines`, that of the segmentation network."""
        model = self.settings.model
        if model.weights is not None or model.pretrained != "outlines":
            return None
        task = LvSegTask(
            LvSegSettings(
                structures=model.structures,
                preprocess=self.settings.preprocess,
                model=SegmentModelConfig(backbone=model.backbone, pretrained="none"),
                augment=self.settings.augment,
                split=self.settings.split,
                volumes=False,
            )
        )
        how = self.settings.outlines
        return Pretraining(task, how.epochs, how.learning_rate, how.batch_size)

    def load_starting_weights(self, model: nn.Module, path: str) -> None:
        """Load the backbone."""
        assert isinstance(model, KeyframeModel)
        load_keyframe_weights(model, path)

    def freeze(self, model: nn.Module, part: str) -> None:
        """Fix nothing, the backbone, or its first layers."""
        assert isinstance(model, KeyframeModel)
        freeze_part(model, part, model.encoder, model.first_blocks())

    def pretrained_part(self, model: nn.Module) -> nn.Module:
        """The backbone."""
        assert isinstance(model, KeyframeModel)
        return model.encoder

    def augment(self, batch: Batch, seed: tuple[int, ...]) -> Batch:
        """Moves, tones and noise, for each picture by itself."""
        pictures = batch[IMAGE]
        blank = torch.zeros(pictures.shape[:3], dtype=torch.uint8, device=pictures.device)
        moved, _ = augment_segments(pictures, batch.get(MASK, blank), self.settings.augment, seed)
        return {**batch, IMAGE: moved}

    def loss(self, outputs: Outputs, batch: Batch, statistics: LabelStatistics) -> Tensor:
        """Squared error of the number in its SD, and cross-entropy of the class."""
        number, question = EF_TARGET.name, self.settings.target.name
        known = torch.isfinite(batch[number])
        labels = torch.where(known, batch[number], statistics.means[number])
        wanted = (labels - statistics.means[number]) / statistics.deviations[number]
        squared = (outputs[number] - wanted) ** 2
        classes = torch.where(known, batch[question], 0.0)
        logits = outputs[question]
        crossed = F.binary_cross_entropy_with_logits(logits, classes, reduction="none")
        losses = squared + self.settings.class_weight * crossed
        return (losses * known).sum() / known.sum().clamp(min=1)

    def scores(self, outputs: Outputs, statistics: LabelStatistics) -> dict[str, Tensor]:
        """The number in its own units and bounds; probability of the class.

        Nothing where heads are fitted to features: what these say is no output of the network.
        """
        if self.fits_heads:
            return {}
        number, question = EF_TARGET.name, self.settings.target.name
        value = outputs[number] * statistics.deviations[number] + statistics.means[number]
        return {
            number: value.clamp(EF_TARGET.low, EF_TARGET.high),
            question: torch.sigmoid(outputs[question]),
        }
