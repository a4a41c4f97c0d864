"""Single echo frames to features: any timm backbone, or the encoder of a segmentation network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from cardioray import storage
from cardioray.config import config
from cardioray.models.backbones import Backbone, NoFeatureMap, backbone_info
from cardioray.models.classifier import ImageModelConfig
from cardioray.models.fitting import GivenWeights
from cardioray.models.segmentation import (
    SegmentModel,
    SegmentModelConfig,
    load_segment_weights,
    segment_starting_weights,
    segmenter_info,
)
from cardioray.models.weights import load_backbone, read_weights, starting_weights

StructureName = Literal["cavity", "myocardium", "atrium"]
# Where the weights of a backbone come from.
WeightsFrom = Literal["hub", "outlines", "none"]


@config
class KeyframeModelConfig:
    """What makes features of a frame.

    Attributes:
        backbone: any timm model ("resnet50", 2,048 features), or "architecture-encoder" for the
            encoder of a segmentation network ("unet-resnet18"), whose deepest map is averaged.
        pretrained: "hub" takes the published ImageNet weights and fails without them; "outlines"
            trains the segmentation network of an "architecture-encoder" on the label maps of the
            training patients, for every fold anew, and takes its encoder; "none" leaves random
            weights, whose features say little.
        weights: file with weights of the backbone, or of the segmentation network
            (.safetensors, such as model.safetensors of a bundle of `lv-seg`); wins over
            `pretrained`.
        structures: what "outlines" tells apart; of EchoNet's tracings, the cavity alone.
    """

    backbone: str = "resnet50"
    pretrained: WeightsFrom = "hub"
    weights: GivenWeights = None
    structures: tuple[StructureName, ...] = ("cavity", "myocardium", "atrium")

    def __post_init__(self) -> None:
        if self.of_segmentation:
            segmenter_info(self.backbone)
        else:
            backbone_info(self.backbone)
            if self.pretrained == "outlines":
                raise ValueError(
                    f"a backbone that is trained on outlines is the encoder of a segmentation "
                    f"network: write model.backbone=unet-{self.backbone}."
                )

    @property
    def of_segmentation(self) -> bool:
        """Whether the backbone is named as a segmentation network is."""
        import segmentation_models_pytorch as smp

        architecture, dash, _ = self.backbone.lower().partition("-")
        return bool(dash) and architecture in smp.MODEL_ARCHITECTURES_MAPPING

    @property
    def segmentation(self) -> SegmentModelConfig:
        """The network that the encoder is of."""
        assert self.of_segmentation
        pretrained: Literal["hub", "none"] = "hub" if self.pretrained == "hub" else "none"
        return SegmentModelConfig(
            backbone=self.backbone, pretrained=pretrained, weights=self.weights
        )

    @property
    def plain(self) -> ImageModelConfig:
        """The backbone by itself."""
        assert not self.of_segmentation
        return ImageModelConfig(
            backbone=self.backbone, pretrained=self.pretrained, weights=self.weights
        )


class KeyframeModel(nn.Module):
    """uint8 frames (B, S, S, 1) to pooled features (B, D), and perhaps one number per output.

    Normalisation is part of the module, in grey levels: that of published weights, or that of the
    training pictures.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: KeyframeModelConfig, *, outputs: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.settings = settings
        self.encoder: nn.Module
        if settings.of_segmentation:
            segmenter = SegmentModel(settings.segmentation, channels=1, classes=1)
            self.encoder = segmenter.net.encoder
            self.width = int(segmenter.net.encoder.out_channels[-1])
        else:
            info = backbone_info(settings.backbone)
            self.encoder = Backbone(info, 1)
            self.width = info.feature_width
        self.head = nn.Linear(self.width, len(outputs)) if outputs else None
        self.outputs = outputs
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("std", torch.full((1,), 255.0))

    def initialise(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the normalisation: of the training pictures, or what published weights expect."""
        if not self.settings.of_segmentation and self.settings.pretrained == "hub":
            info = backbone_info(self.settings.backbone)
            mean = [255.0 * sum(info.mean) / len(info.mean)]
            std = [255.0 * sum(info.std) / len(info.std)]
        self.mean.copy_(torch.tensor(mean))
        self.std.copy_(torch.tensor(std))

    def normalise(self, pictures: Tensor) -> Tensor:
        """(B, S, S, 1) grey levels to (B, 1, S, S)."""
        return ((pictures.float() - self.mean) / self.std).permute(0, 3, 1, 2)

    def feature_map(self, pictures: Tensor) -> Tensor:
        """The deepest feature map, (B, D, h, w).

        Raises:
            NoFeatureMap: for a backbone without one.
        """
        images = self.normalise(pictures)
        found = (
            self.encoder.feature_map(images)
            if isinstance(self.encoder, Backbone)
            else self.encoder(images)[-1]
        )
        if not isinstance(found, Tensor) or found.ndim != 4:
            raise NoFeatureMap(f"{self.settings.backbone} has no convolutional feature map.")
        return found

    def features(self, pictures: Tensor) -> Tensor:
        """Pooled features (B, D)."""
        images = self.normalise(pictures)
        if isinstance(self.encoder, Backbone):
            pooled = self.encoder(images)
            assert isinstance(pooled, Tensor)
            return pooled
        deepest: Tensor = self.encoder(images)[-1]
        return deepest.mean(dim=(2, 3))

    def forward_with_features(self, pictures: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """One number per output, each (B,), and the features they come from."""
        features = self.features(pictures)
        if self.head is None:
            return {}, features
        found = self.head(features)
        return {name: found[:, i] for i, name in enumerate(self.outputs)}, features

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """One number per output, each (B,)."""
        return self.forward_with_features(pictures)[0]

    def load_segmentation(self, state: Mapping[str, Tensor]) -> None:
        """Take encoder and normalisation of a `SegmentModel`, by its state dict.

        Raises:
            ValueError: when it is of another network.
        """
        own = self.state_dict()
        prefix = "net.encoder."
        taken = {f"encoder.{k.removeprefix(prefix)}": v for k, v in state.items() if prefix in k}
        taken |= {name: state[name] for name in ("mean", "std") if name in state}
        wanted = [key for key in own if not key.startswith("head.")]
        if any(key not in taken or taken[key].shape != own[key].shape for key in wanted):
            raise ValueError(f"these are weights of another network than {self.settings.backbone}.")
        self.load_state_dict({**own, **taken})

    def first_blocks(self) -> list[nn.Parameter]:
        """Parameters of the first layers of the backbone."""
        if isinstance(self.encoder, Backbone):
            return self.encoder.first_blocks(2)
        every = list(self.encoder.parameters())
        return every[: max(1, len(every) // 4)]


def keyframe_starting_weights(settings: KeyframeModelConfig, cache: str) -> str | None:
    """Decide once where the weights of the backbone come from.

    Args:
        settings: the backbone, and where its weights may come from.
        cache: folder or prefix for weights that were fetched.

    Returns:
        A .safetensors path, or None for random weights, and where weights are yet to be trained.

    Raises:
        ValueError: when they cannot be had; says what else can be done.
    """
    if settings.weights is None and settings.pretrained != "hub":
        return None
    try:
        if settings.of_segmentation:
            return segment_starting_weights(settings.segmentation, 1, cache)
        return starting_weights(settings.plain, 1, cache)
    except ValueError as error:
        if settings.weights is not None:
            raise
        encoder = settings.backbone if settings.of_segmentation else f"unet-{settings.backbone}"
        raise ValueError(
            f"{error} Features of random weights say little. Give a file with model.weights, or "
            f"train the encoder on outlines of the same patients (model.backbone={encoder}, "
            "model.pretrained=outlines), or ask for random weights with model.pretrained=none."
        ) from error


def load_keyframe_weights(model: KeyframeModel, path: str) -> None:
    """Load what `keyframe_starting_weights` found.

    A file of a whole model of this kind, or of a segmentation network of this package, brings its
    normalisation along.

    Raises:
        ValueError: when the file does not fit.
    """
    state = read_weights(path)
    if any(key.startswith("encoder.") for key in state) and "mean" in state:
        _load_own(model, state, path)
        return
    if isinstance(model.encoder, Backbone):
        load_backbone(model.encoder.net, state, path)
        return
    if "mean" in state:
        model.load_segmentation(state)
        return
    segmenter = SegmentModel(
        model.settings.segmentation, channels=1, classes=max(1, _classes(state))
    )
    load_segment_weights(segmenter, path)
    model.encoder.load_state_dict(segmenter.net.encoder.state_dict())


def _load_own(model: KeyframeModel, state: Mapping[str, Tensor], path: str) -> None:
    own = model.state_dict()
    fitting = {key: value for key, value in state.items() if key in own}
    missing = [key for key in own if key not in fitting and not key.startswith("head.")]
    if missing or any(own[key].shape != value.shape for key, value in fitting.items()):
        raise ValueError(f"{storage.absolute(path)} holds weights of another network.")
    model.load_state_dict({**own, **fitting})


def _classes(state: Mapping[str, Tensor]) -> int:
    """Classes that a segmentation network tells apart; 0 where the file has an encoder alone."""
    heads = [v for key, v in state.items() if key.endswith("segmentation_head.0.bias")]
    return len(heads[0]) if heads else 0
