"""Pictures to a score for each structure at each pixel: networks of segmentation_models.pytorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cardioray import storage
from cardioray.config import config
from cardioray.models.fitting import GivenWeights, fit_to_network
from cardioray.models.segment_windows import Passes
from cardioray.models.weights import (
    NotToBeHadError,
    one_line,
    published_or_scratch,
    read_weights,
)
from cardioray.registry import Registry, unknown_name

MASKS = "masks"
_LIBRARY = "segmentation_models_pytorch"
_TIMM = "tu-"  # how the library calls encoders that it takes from timm


@dataclass(frozen=True, kw_only=True)
class SegmenterInfo:
    """What is known of a segmentation network before it is built.

    Attributes:
        name: "architecture-encoder", as in configs and leaderboards.
        architecture: one that segmentation_models.pytorch has ("unet").
        encoder: one that it has ("resnet34"), or "tu-" and the name of a timm model.
    """

    name: str
    architecture: str
    encoder: str


SEGMENTERS: Registry[SegmenterInfo] = Registry("segmentation network")


def _add(*names: str) -> None:
    for name in names:
        architecture, _, encoder = name.partition("-")
        SEGMENTERS.add(name, SegmenterInfo(name=name, architecture=architecture, encoder=encoder))


# One of each kind that is compared by "all"; the third is EchoEF-Net's.
_add("unet-resnet18", "unet-resnet34", "unet-tu-efficientnet_b4", "unetplusplus-resnet18")
_add("fpn-resnet18", "linknet-resnet18", "deeplabv3plus-resnet18", "segformer-mit_b0")


@lru_cache(maxsize=64)
def segmenter_info(name: str) -> SegmenterInfo:
    """The record of a network; any architecture and encoder of the library make one.

    Raises:
        ValueError: when either is not known; lists the known ones.
    """
    key = name.lower()
    if key in SEGMENTERS:
        return SEGMENTERS.get(key)
    architecture, dash, encoder = key.partition("-")
    if not dash:
        example = f"unet-{key}" if key else "unet-resnet34"
        raise ValueError(
            f"{unknown_name('segmentation network', name, SEGMENTERS)} Others are written "
            f"architecture-encoder, as in {example}."
        )
    import segmentation_models_pytorch as smp
    import timm

    if architecture not in smp.MODEL_ARCHITECTURES_MAPPING:
        raise unknown_name("architecture", architecture, smp.MODEL_ARCHITECTURES_MAPPING)
    if encoder.startswith(_TIMM):
        if not timm.is_model(encoder.removeprefix(_TIMM)):
            raise ValueError(f"timm knows no model {encoder.removeprefix(_TIMM)!r}.")
    elif encoder not in (known := smp.encoders.get_encoder_names()):
        error = unknown_name("encoder", encoder, known)
        raise ValueError(f"{error} Any model of timm works with {_TIMM} before its name.")
    return SegmenterInfo(name=key, architecture=architecture, encoder=encoder)


@config
class SegmentModelConfig:
    """A segmentation network.

    Attributes:
        backbone: "architecture-encoder"; one of `SEGMENTERS`, or any that the library has.
        pretrained: "hub" takes the published ImageNet weights of the encoder and fails without
            them, "auto" takes them when they can be reached and says so when not, "none" starts
            from scratch.
        weights: file with weights of the whole network (.safetensors), such as model.safetensors
            of a bundle, or of its encoder; wins over `pretrained`.
        window: side in px of the windows that a picture is seen in, a multiple of 32: in training
            one of them anywhere, elsewhere as many as cover it; 0 for the whole picture.
        overlap: share of a window that the next one covers, too, at least.
        flips: answer with the mean over each picture and its mirror image. Of use to a network
            that has learned mirrored hearts (`augment.flip`).
    """

    backbone: str = "unet-resnet34"
    pretrained: Literal["auto", "hub", "none"] = "auto"
    weights: GivenWeights = None
    window: int = Field(default=0, ge=0, multiple_of=32)
    overlap: float = Field(default=0.5, ge=0, le=0.9)
    flips: bool = False

    def passes(self, side: int) -> Passes:
        """How a picture of this side goes through the network when it answers."""
        return Passes.over(side, self.window, self.overlap, mirrored=self.flips)

    def __post_init__(self) -> None:
        segmenter_info(self.backbone)


class SegmentModel(nn.Module):
    """uint8 pictures (B, S, S, C) to logits of every class at every pixel (B, K, S, S).

    Normalisation is part of the module: `mean` and `std` are those of the training pictures, in
    grey levels, and are stored with the weights. So are windows and mirror images, by which it
    answers in eval mode: whatever runs it, and its export, gives one score for each pixel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: SegmentModelConfig, *, channels: int, classes: int) -> None:
        super().__init__()
        self.info = segmenter_info(settings.backbone)
        self.settings = settings
        self.net = _build(self.info, channels, classes)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.full((channels,), 255.0))

    def initialise(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the normalisation: of the training pictures, per channel, in grey levels."""
        self.mean.copy_(torch.tensor(mean))
        self.std.copy_(torch.tensor(std))

    def normalise(self, pictures: Tensor) -> Tensor:
        """(B, S, S, C) grey levels to (B, C, S, S)."""
        return ((pictures.float() - self.mean) / self.std).permute(0, 3, 1, 2)

    def forward_with_features(self, pictures: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """What `forward` gives, and the deepest feature map of the encoder, pooled."""
        if self.training or not (self.settings.window or self.settings.flips):
            masks, features = self._pass(pictures)
            return {MASKS: masks}, features
        passes = self.settings.passes(int(pictures.shape[1]))
        shown = passes.split(pictures)
        # Together they would take memory for as many pictures. A trace has no size of a batch to
        # divide them by; `LvSegTask.max_batch` keeps what it runs on small.
        traced = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        parts = [shown] if traced else shown.split(len(pictures))
        masks, features = (torch.cat(each) for each in zip(*map(self._pass, parts), strict=True))
        pooled = features.unflatten(0, (passes.count, -1)).mean(dim=0)
        return {MASKS: passes.joined(masks)}, pooled

    def _pass(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.net.encoder(self.normalise(pictures))
        masks: Tensor = self.net.segmentation_head(self.net.decoder(maps))
        features: Tensor = maps[-1].mean(dim=(2, 3))
        return masks, features

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """`masks`: logits (B, K, S, S); where they are means, logarithms of probabilities."""
        return self.forward_with_features(pictures)[0]

    def first_blocks(self) -> list[nn.Parameter]:
        """The first quarter of the parameters of the encoder, in the order of its layers.

        Encoders of so many makers have no name for their first blocks in common.
        """
        every = list(self.net.encoder.parameters())
        return every[: max(1, len(every) // 4)]


def _build(info: SegmenterInfo, channels: int, classes: int) -> Any:
    import segmentation_models_pytorch as smp

    return smp.create_model(
        info.architecture,
        encoder_name=info.encoder,
        encoder_weights=None,
        in_channels=channels,
        classes=classes,
    )


def segment_starting_weights(settings: SegmentModelConfig, channels: int, cache: str) -> str | None:
    """Decide once, before any worker starts, where a run's first weights come from.

    Args:
        settings: the network, and where its weights may come from.
        channels: channels of the input; published RGB kernels are summed for one.
        cache: folder or prefix for weights that were fetched.

    Returns:
        A .safetensors path, or None for a start from scratch.

    Raises:
        ValueError: when `pretrained` is "hub" and there are none or they cannot be fetched, or when
            the file named by `weights` does not fit.
    """
    info = segmenter_info(settings.backbone)
    if settings.weights is not None:
        state = read_weights(settings.weights)
        with torch.device("meta"):
            model = SegmentModel(settings, channels=channels, classes=_classes_of(state))
        _fitted(model, state, settings.weights)
        return settings.weights
    path = storage.join(cache, f"{info.encoder}-{channels}ch-imagenet.safetensors")
    return published_or_scratch(settings.pretrained, path, lambda: _published(info, channels))


def load_segment_weights(model: SegmentModel, path: str) -> None:
    """Load the network, or its encoder where the file has that alone.

    Raises:
        ValueError: when the file does not fit.
    """
    part, state = _fitted(model, read_weights(path), path)
    part.load_state_dict(state)


def _fitted(
    model: SegmentModel, state: dict[str, Tensor], source: str
) -> tuple[nn.Module, dict[str, Tensor]]:
    """The part of a model that a file has weights for, and these by its names."""
    whole = any("decoder." in key for key in state)
    part = model.net if whole else model.net.encoder
    return part, fit_to_network(part, state, source, _LIBRARY)


def _classes_of(state: dict[str, Tensor]) -> int:
    """Classes that the network of a file tells apart; 1 where it has an encoder alone."""
    heads = [v for key, v in state.items() if key.endswith("segmentation_head.0.bias")]
    return len(heads[0]) if heads else 1


def _published(info: SegmenterInfo, channels: int) -> dict[str, Tensor]:
    """The ImageNet weights of an encoder.

    Raises:
        NotToBeHadError: when there are none, or they cannot be fetched.
    """
    import httpx
    import segmentation_models_pytorch as smp
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    what = f"the ImageNet weights of the encoder {info.encoder}"
    try:
        if not HF_HUB_OFFLINE:
            # One short request first: the hub's client retries for a minute without a network.
            httpx.head(ENDPOINT, timeout=5.0)
        encoder = smp.encoders.get_encoder(info.encoder, in_channels=channels, weights="imagenet")
    except KeyError:
        raise NotToBeHadError(f"nobody publishes {what}") from None
    except (httpx.HTTPError, OSError, RuntimeError) as error:  # timm's word for none is the last
        raise NotToBeHadError(
            f"{what} cannot be had from {ENDPOINT} ({one_line(error)})"
        ) from error
    state: dict[str, Tensor] = encoder.state_dict()
    return state
