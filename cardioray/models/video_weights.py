"""Starting weights of video networks: torchvision's Kinetics weights, EchoNet's, or one's own."""

from __future__ import annotations

import urllib.error

import torch
from torch import Tensor

from cardioray import storage
from cardioray.models.fitting import fit_to_network, plain_names
from cardioray.models.video import (
    VIDEO_BACKBONES,
    VideoBackbone,
    VideoBackboneInfo,
    VideoModel,
    VideoModelConfig,
)
from cardioray.models.weights import NotToBeHadError, published_or_scratch, read_weights

_LIBRARY = "torchvision"


def video_starting_weights(settings: VideoModelConfig, channels: int, cache: str) -> str | None:
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
    info = VIDEO_BACKBONES.get(settings.backbone)
    if settings.weights is not None:
        with torch.device("meta"):
            net = VideoBackbone(info, channels).net
        fit_to_network(net, read_weights(settings.weights), settings.weights, _LIBRARY)
        return settings.weights
    path = storage.join(cache, f"{info.name}-kinetics.safetensors")
    return published_or_scratch(settings.pretrained, path, lambda: _published(info))


def load_video_weights(model: VideoModel, path: str) -> None:
    """Load the network's weights, whatever wraps their names.

    A file with a classifier of one output, as EchoNet's have, gives it to the model's head where
    that is the only one; other classifiers are left out.

    Raises:
        ValueError: when the file does not fit.
    """
    state = read_weights(path)
    model.backbone.net.load_state_dict(fit_to_network(model.backbone.net, state, path, _LIBRARY))
    plain = plain_names(state, path)
    weight, bias = plain.get("fc.weight"), plain.get("fc.bias")
    if weight is None or bias is None or len(model.heads) != 1:
        return
    (head,) = model.heads.values()
    assert isinstance(head, torch.nn.Linear)
    if weight.shape == head.weight.shape:
        head.load_state_dict({"weight": weight, "bias": bias})


def _published(info: VideoBackboneInfo) -> dict[str, Tensor]:
    """The Kinetics weights that torchvision publishes.

    Raises:
        NotToBeHadError: when there are none, or they cannot be fetched.
    """
    import torchvision.models

    if info.weights is None:
        raise NotToBeHadError(f"nobody publishes weights of {info.title}")
    record = torchvision.models.get_weight(info.weights)
    try:
        state: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
            record.url, progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
    except (urllib.error.URLError, OSError) as error:
        raise NotToBeHadError(
            f"the Kinetics weights of {info.title} cannot be had from {record.url} ({error})"
        ) from error
    return state
