"""Image backbones: the ten of the published comparison by their names, and any timm model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from cardioray.registry import Registry, unknown_name


class NoFeatureMap(ValueError):  # noqa: N818 (says what the network is)
    """A network without a convolutional feature map, for which there is no heat map."""


@dataclass(frozen=True, kw_only=True)
class BackboneInfo:
    """What is known of a backbone before it is built.

    Attributes:
        name: name in configs and leaderboards ("densenet169").
        title: name as papers print it ("DenseNet-169").
        timm_id: architecture and weight tag in timm.
        feature_width: channels of the pooled feature vector.
        input_size: side in px the published weights were trained at.
        min_input_size: smallest side in px the network can take.
        mean: normalisation the published weights expect, per RGB channel, for values in [0, 1].
        std: as `mean`.
        parameters_millions: size without any classifier.
        pooled: True when the features are the network's own pooled output (any timm model);
            False when they are the globally averaged last feature map (the ten).
    """

    name: str
    title: str
    timm_id: str
    feature_width: int
    input_size: int
    min_input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    parameters_millions: float
    pooled: bool = False


BACKBONES: Registry[BackboneInfo] = Registry("backbone")

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def _add(
    name: str,
    title: str,
    timm_id: str,
    width: int,
    sizes: tuple[int, int],
    millions: float,
    norm: dict[str, tuple[float, float, float]],
) -> None:
    input_size, smallest = sizes
    BACKBONES.add(
        name,
        BackboneInfo(
            name=name,
            title=title,
            timm_id=timm_id,
            feature_width=width,
            input_size=input_size,
            min_input_size=smallest,
            parameters_millions=millions,
            mean=norm["mean"],
            std=norm["std"],
        ),
    )


_add("densenet121", "DenseNet-121", "densenet121.ra_in1k", 1024, (224, 32), 6.95, _IMAGENET)
_add("densenet169", "DenseNet-169", "densenet169.tv_in1k", 1664, (224, 32), 12.48, _IMAGENET)
_add("densenet201", "DenseNet-201", "densenet201.tv_in1k", 1920, (224, 32), 18.09, _IMAGENET)
_add(
    "inceptionresnetv2",
    "InceptionResNetV2",
    "inception_resnet_v2.tf_in1k",
    1536,
    (299, 75),
    54.31,
    _HALF,
)
_add("vgg16", "VGG-16", "vgg16.tv_in1k", 512, (224, 32), 14.71, _IMAGENET)
_add("vgg19", "VGG-19", "vgg19.tv_in1k", 512, (224, 32), 20.02, _IMAGENET)
_add("resnet50v2", "ResNet50V2", "resnetv2_50.a1h_in1k", 2048, (224, 32), 23.5, _HALF)
_add("xception", "Xception", "legacy_xception.tf_in1k", 2048, (299, 32), 20.81, _HALF)
_add(
    "mobilenetv3large",
    "MobileNetV3Large",
    "mobilenetv3_large_100.ra_in1k",
    960,
    (224, 32),
    2.97,
    _IMAGENET,
)
_add("inceptionv3", "InceptionV3", "inception_v3.tv_in1k", 2048, (299, 75), 21.79, _HALF)


def backbone_info(name: str) -> BackboneInfo:
    """The record of one of the ten, or of any other timm model.

    Case, hyphens and underscores do not matter for the ten ("DenseNet-169" is "densenet169").

    Raises:
        ValueError: when neither knows the name.
    """
    key = name.lower().replace("-", "").replace("_", "")
    if key in BACKBONES:
        return BACKBONES.get(key)
    return _timm_info(name)


@lru_cache(maxsize=64)
def _timm_info(name: str) -> BackboneInfo:
    import timm

    if not timm.is_model(name):
        error = unknown_name("backbone", name, BACKBONES)
        raise ValueError(f"{error} Any name of timm.list_models() works too.")
    architecture, dot, _ = name.partition(".")
    tagged = timm.list_models(f"{architecture}.*", include_tags=True)
    if dot and name not in tagged:
        raise unknown_name("backbone", name, tagged)
    with torch.device("meta"):
        net = timm.create_model(name, pretrained=False, num_classes=0)
    record = net.pretrained_cfg
    parameters = sum(p.numel() for p in net.parameters())
    return BackboneInfo(
        name=name,
        title=name,
        timm_id=name,
        feature_width=int(getattr(net, "head_hidden_size", net.num_features)),
        input_size=int(record["input_size"][-1]),
        min_input_size=int(record.get("min_input_size", (3, 32, 32))[-1]),
        mean=tuple(record["mean"]),
        std=tuple(record["std"]),
        parameters_millions=round(parameters / 1e6, 2),
        pooled=True,
    )


@lru_cache(maxsize=64)
def require_picture_size(info: BackboneInfo, size: int, channels: int) -> None:
    """Refuse pictures that a backbone cannot take, before anything is started.

    The ten are known by their records. Of another model, timm's record does not say it reliably
    (windows, patches and position embeddings all ask for something else), so that a batch goes
    through it on the meta device, where nothing is computed.

    Args:
        info: the backbone.
        size: side of the pictures in px.
        channels: of the pictures.

    Raises:
        ValueError: when the network does not take such pictures, or gives no pooled features of
            them; names the sizes nearby that it takes.
    """
    if not info.pooled:
        if size < info.min_input_size:
            raise ValueError(
                f"{info.title} needs pictures of at least {info.min_input_size} px; "
                f"preprocess.image_size is {size}."
            )
        return
    with torch.device("meta"):
        network = Backbone(info, channels).eval()
    reason = _why_not(network, size, channels)
    if reason is None:
        return
    steps = (14, 16, 32, 64)  # patches, and the strides of most networks
    near = {size // step * step + more for step in steps for more in (0, step)} - {0, size}
    taken = [
        side
        for side in sorted(near | {info.input_size})
        if _why_not(network, side, channels) is None
    ]
    if not taken:
        raise ValueError(
            f"{info.title} is no backbone for {channels}-channel pictures ({reason}); choose "
            "another model.backbone."
        )
    raise ValueError(
        f"{info.title} does not take pictures of {size} px ({reason}). It takes "
        f"{' or '.join(map(str, taken))} px: set preprocess.image_size, or choose another "
        "model.backbone."
    )


def _why_not(network: Backbone, size: int, channels: int) -> str | None:
    """Why a network on the meta device gives no pooled features of pictures, or None if it does."""
    try:
        with torch.inference_mode():
            features = network(torch.zeros(2, channels, size, size, device="meta"))
    # What timm's networks raise for a shape that does not fit.
    except (AssertionError, RuntimeError, ValueError) as error:
        return str(error).strip().partition("\n")[0][:120].rstrip(".") or type(error).__name__
    shape = tuple(features.shape)
    return None if shape == (2, network.info.feature_width) else f"its features are {shape}"


class Backbone(nn.Module):
    """A feature extractor: (B, channels, H, W) normalised images to (B, feature_width).

    The ten are reduced to their convolutional features and a global average, as the published
    comparison used them: VGG without its 4096-wide classifier, MobileNetV3 without its last
    1280-wide layer. Grey input (`channels=1`) sums the first layer's kernels over RGB, so that
    published weights answer as they would to the grey picture repeated three times.
    """

    def __init__(self, info: BackboneInfo, channels: int = 3) -> None:
        # Loaded with the first network: many processes only handle names and settings.
        import timm

        super().__init__()
        self.info = info
        self.net = timm.create_model(
            info.timm_id, pretrained=False, num_classes=0, in_chans=channels
        )
        if not info.pooled:
            # Layers behind the last feature map would be parameters without a gradient.
            for unused in ("pre_logits", "conv_head", "norm_head", "act2"):
                if hasattr(self.net, unused):
                    setattr(self.net, unused, nn.Identity())

    def feature_map(self, images: Tensor) -> Tensor:
        """The last feature map (B, C, h, w), or what the network has in its place."""
        features = self.net.forward_features(images)
        assert isinstance(features, Tensor)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Pooled features (B, feature_width)."""
        if self.info.pooled:
            pooled = self.net(images)
            assert isinstance(pooled, Tensor)
            return pooled
        return self.feature_map(images).mean(dim=(2, 3))

    def first_blocks(self, num_blocks: int) -> list[nn.Parameter]:
        """Parameters of the stem and the first blocks, in timm's own grouping of layers."""
        from timm.models import group_parameters

        groups = group_parameters(self.net, self.net.group_matcher(coarse=True), reverse=False)
        names = {name for key in sorted(groups)[:num_blocks] for name in groups[key]}
        return [p for name, p in self.net.named_parameters() if name in names]
