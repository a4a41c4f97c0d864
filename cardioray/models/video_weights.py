"""Starting weights of video networks: torchvision's Kinetics weights, EchoNet's, or one's own."""

from __future__ import annotations

import logging
import urllib.error

import torch
from safetensors.torch import save

from cardioray import storage
from cardioray.models.fitting import fit_to_network, plain_names
from cardioray.models.video import (
    VIDEO_BACKBONES,
    VideoBackbone,
    VideoBackboneInfo,
    VideoModel,
    VideoModelConfig,
)
from cardioray.models.weights import read_weights

log = logging.getLogger(__name__)

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
    if settings.pretrained == "none":
        return None
    path = storage.join(cache, f"{info.name}-kinetics.safetensors")
    if storage.exists(path):
        return path
    reason = _fetch(info, path)
    if reason is None:
        return path
    if settings.pretrained == "hub":
        raise ValueError(
            f"{reason}; pass model.weights=FILE, or model.pretrained=none to start from scratch."
        )
    log.warning("%s: training starts from scratch, the frozen stage is left out.", reason)
    return None


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


def _fetch(info: VideoBackboneInfo, path: str) -> str | None:
    """Fetch published weights to a file; why not, or None where it is there now."""
    import torchvision.models

    if info.weights is None:
        return f"nobody publishes weights of {info.title}"
    record = torchvision.models.get_weight(info.weights)
    try:
        state = torch.hub.load_state_dict_from_url(
            record.url, progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
    except (urllib.error.URLError, OSError) as error:
        return f"the Kinetics weights of {info.title} cannot be had from {record.url} ({error})"
    storage.write_bytes(path, save({key: value.contiguous() for key, value in state.items()}))
    return None
