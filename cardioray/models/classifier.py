"""Image to answers: normalisation, backbone and one output per target in one module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cardioray.config import config
from cardioray.models.backbones import Backbone, BackboneInfo, backbone_info
from cardioray.models.fitting import GivenWeights


@config
class HeadConfig:
    """The head of the published FFR classifier, by its measures.

    Attributes:
        hidden: widths of the two hidden layers.
        dropout: share of units dropped between them.
    """

    hidden: tuple[int, int] = (512, 256)
    dropout: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError("dropout must be at least 0 and below 1.")


@config
class ImageModelConfig:
    """An image classifier or regressor.

    Attributes:
        backbone: one of the ten, or any timm model name.
        head: the layers between the pooled features and the outputs.
        pretrained: "hub" takes timm's published weights and fails without them, "auto" takes them
            when they can be reached and says so when not, "none" starts from scratch.
        weights: file with backbone weights (.safetensors; `cardioray models convert` makes one
            from a published .pt file); wins over `pretrained`.
    """

    backbone: str = "densenet169"
    head: HeadConfig = HeadConfig()
    pretrained: str = "auto"
    weights: GivenWeights = None

    def __post_init__(self) -> None:
        backbone_info(self.backbone)
        if self.pretrained not in ("auto", "hub", "none"):
            raise ValueError("pretrained is one of auto, hub, none.")


class Head(nn.Module):
    """BN, 512 ReLU, BN, dropout, 256 ReLU, BN, then one linear output per target.

    The published head adds an L1 penalty of 1e-5 and L2 of 1e-4 on the first layer; here the
    optimiser's decoupled weight decay stands for both.
    """

    def __init__(self, width: int, outputs: tuple[str, ...], settings: HeadConfig) -> None:
        super().__init__()
        first, second = settings.hidden
        self.body = nn.Sequential(
            nn.BatchNorm1d(width),
            nn.Linear(width, first),
            nn.ReLU(),
            nn.BatchNorm1d(first),
            nn.Dropout(settings.dropout),
            nn.Linear(first, second),
            nn.ReLU(),
            nn.BatchNorm1d(second),
        )
        self.outputs = nn.ModuleDict({name: nn.Linear(second, 1) for name in outputs})

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Features (B, width) to one (B,) tensor per target."""
        hidden = self.body(features)
        return {name: layer(hidden).squeeze(1) for name, layer in self.outputs.items()}


class ImageClassifier(nn.Module):
    """uint8 images (B, H, W, C), or floats in [0, 1], to a logit or value (B,) per target.

    Channels come last, as shards and decoders have them; seen channels-first this is the memory
    layout convolutions run fastest in, so nothing is copied.

    Normalisation is part of the module, so that a checkpoint, an export and a server cannot
    disagree about it. Grey input uses the mean over RGB of the weights' own mean and std.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: ImageModelConfig, *, channels: int, outputs: tuple[str, ...]):
        super().__init__()
        self.info: BackboneInfo = backbone_info(settings.backbone)
        self.backbone = Backbone(self.info, channels)
        self.head = Head(self.info.feature_width, outputs, settings.head)
        for name, values in (("mean", self.info.mean), ("std", self.info.std)):
            rgb = torch.tensor(values)
            per_channel = rgb if channels == 3 else rgb.mean().repeat(channels)
            self.register_buffer(name, per_channel.view(1, -1, 1, 1), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """(B, H, W, C) uint8 or [0, 1] images to (B, C, H, W) as the backbone's weights expect."""
        channels_first = images.permute(0, 3, 1, 2)
        if images.dtype == torch.uint8:
            channels_first = channels_first.float() / 255.0
        return (channels_first - self.mean) / self.std

    def features(self, images: Tensor) -> Tensor:
        """Pooled backbone features (B, feature_width)."""
        pooled = self.backbone(self.normalise(images))
        assert isinstance(pooled, Tensor)
        return pooled

    def forward_with_features(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """What `forward` gives, and the pooled features it came from."""
        features = self.features(images)
        answers = self.head(features)
        assert isinstance(answers, dict)
        return answers, features

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits (binary targets) or values (regression targets), each (B,)."""
        return self.forward_with_features(images)[0]
