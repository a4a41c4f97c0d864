"""Clips to answers: the video networks of echo, with normalisation and one output per target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cardioray.config import config
from cardioray.models.fitting import GivenWeights
from cardioray.registry import Registry

PUBLISHED_WIDTH = 64


@dataclass(frozen=True, kw_only=True)
class VideoBackboneInfo:
    """What is known of a video network before it is built.

    Attributes:
        name: name in configs and leaderboards.
        title: name as papers print it.
        layers: residual blocks in each of the four stages.
        kind: how it convolves: "r2plus1d" along frames after each picture, "r3d" over both at
            once, "mc3" over both in the first stages only.
        weights: name of torchvision's record of its published weights, or None.
        width: channels of the first stage; every later stage has twice those before it.
    """

    name: str
    title: str
    layers: tuple[int, int, int, int]
    kind: Literal["r2plus1d", "r3d", "mc3"]
    weights: str | None
    width: int

    @property
    def feature_width(self) -> int:
        """Channels of the pooled feature vector."""
        return 8 * self.width


VIDEO_BACKBONES: Registry[VideoBackboneInfo] = Registry("video backbone")


def _add(
    name: str,
    title: str,
    kind: Literal["r2plus1d", "r3d", "mc3"],
    layers: tuple[int, int, int, int],
    weights: str | None,
    width: int = PUBLISHED_WIDTH,
) -> None:
    info = VideoBackboneInfo(
        name=name, title=title, layers=layers, kind=kind, weights=weights, width=width
    )
    VIDEO_BACKBONES.add(name, info)


_EIGHTEEN = (2, 2, 2, 2)
_add("r2plus1d_18", "R(2+1)D-18", "r2plus1d", _EIGHTEEN, "R2Plus1D_18_Weights.KINETICS400_V1")
_add("r3d_18", "R3D-18", "r3d", _EIGHTEEN, "R3D_18_Weights.KINETICS400_V1")
_add("mc3_18", "MC3-18", "mc3", _EIGHTEEN, "MC3_18_Weights.KINETICS400_V1")
# For CPUs: half as deep, and a quarter as wide. Nobody publishes weights of them.
_add("r2plus1d_10", "R(2+1)D-10", "r2plus1d", (1, 1, 1, 1), None)
_add("r2plus1d_10_slim", "R(2+1)D-10, slim", "r2plus1d", (1, 1, 1, 1), None, width=16)


@config
class VideoModelConfig:
    """A video classifier or regressor.

    Attributes:
        backbone: one of `VIDEO_BACKBONES`.
        pretrained: "hub" takes torchvision's Kinetics weights and fails without them, "auto" takes
            them when they can be reached and says so when not, "none" starts from scratch.
        weights: file with weights of the network (.safetensors; `cardioray models convert` makes
            one from a published .pt file, EchoNet's among them); wins over `pretrained`.
        dropout: share of pooled features dropped in training.
    """

    backbone: str = "r2plus1d_18"
    pretrained: Literal["auto", "hub", "none"] = "auto"
    weights: GivenWeights = None
    dropout: float = Field(default=0.0, ge=0, lt=1)

    def __post_init__(self) -> None:
        VIDEO_BACKBONES.get(self.backbone)


class VideoBackbone(nn.Module):
    """(B, C, T, H, W) normalised clips to pooled features (B, feature_width)."""

    def __init__(self, info: VideoBackboneInfo, channels: int) -> None:
        super().__init__()
        self.info = info
        self.net = _build(info)
        self.net.fc = nn.Identity()
        if channels != 3:
            first = self.net.stem[0]
            self.net.stem[0] = nn.Conv3d(
                channels,
                first.out_channels,
                first.kernel_size,
                first.stride,
                first.padding,
                bias=False,
            )
            nn.init.kaiming_normal_(self.net.stem[0].weight, mode="fan_out", nonlinearity="relu")

    def feature_map(self, clips: Tensor) -> Tensor:
        """The last feature map (B, feature_width, t, h, w)."""
        x = self.net.stem(clips)
        for stage in (self.net.layer1, self.net.layer2, self.net.layer3, self.net.layer4):
            x = stage(x)
        assert isinstance(x, Tensor)
        return x

    def forward(self, clips: Tensor) -> Tensor:
        """Pooled features (B, feature_width)."""
        return self.feature_map(clips).mean(dim=(2, 3, 4))

    def first_blocks(self) -> list[nn.Parameter]:
        """Parameters of the stem and the first stage."""
        return [*self.net.stem.parameters(), *self.net.layer1.parameters()]


def _build(info: VideoBackboneInfo) -> Any:
    from torchvision.models.video.resnet import (
        BasicBlock,
        BasicStem,
        Conv2Plus1D,
        Conv3DNoTemporal,
        Conv3DSimple,
        R2Plus1dStem,
        VideoResNet,
    )

    makers: dict[str, tuple[Sequence[Any], Callable[..., nn.Module]]] = {
        "r2plus1d": ([Conv2Plus1D] * 4, R2Plus1dStem),
        "r3d": ([Conv3DSimple] * 4, BasicStem),
        "mc3": ([Conv3DSimple, *[Conv3DNoTemporal] * 3], BasicStem),
    }
    convolutions, stem = makers[info.kind]
    if info.width == PUBLISHED_WIDTH:
        return VideoResNet(BasicBlock, convolutions, list(info.layers), stem)

    class Narrow(VideoResNet):  # type: ignore[misc]
        """torchvision's network with fewer channels in every stage."""

        def _make_layer(
            self, block: Any, convolution: Any, planes: int, *blocks: int, **stride: int
        ) -> nn.Sequential:
            if planes == PUBLISHED_WIDTH:  # the first stage: what the stem gives
                self.inplanes = info.width
            planes = planes * info.width // PUBLISHED_WIDTH
            made = super()._make_layer(block, convolution, planes, *blocks, **stride)
            assert isinstance(made, nn.Sequential)
            return made

    return Narrow(
        BasicBlock, convolutions, list(info.layers), lambda: _narrow_stem(stem(), info.width)
    )


def _narrow_stem(stem: Any, width: int) -> nn.Sequential:
    """The stem with fewer channels in each of its layers, except the clip's own."""
    layers: list[nn.Module] = []
    channels = 3
    for layer in stem:
        if isinstance(layer, nn.Conv3d):
            out = layer.out_channels * width // PUBLISHED_WIDTH
            kernel, stride, padding = layer.kernel_size, layer.stride, layer.padding
            layers.append(
                nn.Conv3d(channels, out, kernel, stride, padding, bias=False)  # type: ignore[arg-type]
            )
            channels = out
        elif isinstance(layer, nn.BatchNorm3d):
            layers.append(nn.BatchNorm3d(channels))
        else:
            layers.append(layer)
    return nn.Sequential(*layers)


class VideoModel(nn.Module):
    """uint8 clips (B, T, H, W, C) and how many of their frames count (B,) to one (B,) per target.

    Normalisation is part of the module: `mean` and `std` are those of the training clips, in grey
    levels, and are stored with the weights. Frames that do not count are zero after it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: VideoModelConfig, *, channels: int, outputs: tuple[str, ...]):
        super().__init__()
        self.info = VIDEO_BACKBONES.get(settings.backbone)
        self.backbone = VideoBackbone(self.info, channels)
        self.dropout = nn.Dropout(settings.dropout)
        width = self.info.feature_width
        self.heads = nn.ModuleDict({name: nn.Linear(width, 1) for name in outputs})
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.full((channels,), 255.0))

    def initialise(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        biases: Mapping[str, float],
    ) -> None:
        """Set normalisation, and let every head begin at a value of its own.

        Args:
            mean: of the training clips, per channel, in grey levels.
            std: their standard deviation.
            biases: per output, what it says before it has learned anything.
        """
        self.mean.copy_(torch.tensor(mean))
        self.std.copy_(torch.tensor(std))
        for name, bias in biases.items():
            nn.init.constant_(self.heads[name].bias, bias)  # type: ignore[arg-type]

    def normalise(self, clips: Tensor, valid: Tensor) -> Tensor:
        """(B, T, H, W, C) grey levels to (B, C, T, H, W), zero where a frame does not count."""
        scaled = (clips.float() - self.mean) / self.std
        counts = torch.arange(clips.shape[1], device=clips.device) < valid.reshape(-1, 1)
        scaled = scaled * counts[:, :, None, None, None]
        return scaled.permute(0, 4, 1, 2, 3)

    def features(self, clips: Tensor, valid: Tensor) -> Tensor:
        """Pooled backbone features (B, feature_width)."""
        pooled = self.backbone(self.normalise(clips, valid))
        assert isinstance(pooled, Tensor)
        return pooled

    def forward_with_features(
        self, clips: Tensor, valid: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """What `forward` gives, and the pooled features it came from."""
        features = self.features(clips, valid)
        hidden = self.dropout(features)
        return {name: head(hidden).squeeze(1) for name, head in self.heads.items()}, features

    def forward(self, clips: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Logits (binary targets) or values in their own unit (regression targets), each (B,)."""
        return self.forward_with_features(clips, valid)[0]
