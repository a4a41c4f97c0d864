"""Weights in and out: safetensors, timm's hub, and the one converter for published .pt files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE
from safetensors.torch import load as load_safetensors
from safetensors.torch import save, save_file
from torch import Tensor, nn

from cardioray import storage
from cardioray.models.backbones import BackboneInfo, backbone_info
from cardioray.models.classifier import ImageModelConfig

log = logging.getLogger(__name__)

# What trainers wrap around a network leaves its name in the keys: DataParallel, Lightning, EchoNet.
PREFIXES = ("module.", "model.", "m.", "net.", "backbone.", "_orig_mod.")


def read_weights(path: str) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors file, local or s3://.

    Raises:
        ValueError: for another kind of file; says how to convert it.
    """
    if not path.endswith(".safetensors"):
        raise ValueError(
            f"{path} is no .safetensors file. Convert published weights first: "
            f"cardioray models convert {path} OUT.safetensors"
        )
    return load_safetensors(storage.read_bytes(path))


def convert_weights(source: Path, target: Path) -> list[str]:
    """Convert a published .pt or .pth file to safetensors; the only place that reads such files.

    Only tensors are read (`weights_only=True`), so the file cannot run code. A state dict nested
    under "state_dict", "model" or "model_state_dict" is found, wrapper prefixes are taken off.

    Returns:
        The keys written.

    Raises:
        ValueError: when the file holds no state dict.
    """
    loaded = torch.load(source, map_location="cpu", weights_only=True)
    state = _find_state(loaded)
    if not state:
        raise ValueError(f"{source} holds no state dict (a mapping from names to tensors).")
    cleaned = {key: value.contiguous().clone() for key, value in strip_prefixes(state).items()}
    save_file(cleaned, target)
    return sorted(cleaned)


def strip_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off wrapper prefixes that every key shares."""
    result = dict(state)
    changed = True
    while changed and result:
        changed = False
        for prefix in PREFIXES:
            if all(key.startswith(prefix) for key in result):
                result = {key[len(prefix) :]: value for key, value in result.items()}
                changed = True
    return result


def load_backbone(net: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load backbone weights; the classifier of the file is left out, anything else must fit.

    A first layer for three channels is fitted to one by summing its kernels, as timm does.

    Raises:
        ValueError: when a layer of the network is missing in the file or has another shape; names
            the first ones.
    """
    from timm.models import adapt_input_conv

    wanted = net.state_dict()
    given = strip_prefixes(state)
    given |= {
        key: adapt_input_conv(value.shape[1], given[key])
        for key, value in wanted.items()
        if key in given and _is_first_layer(given[key], value)
    }
    missing = [key for key in wanted if key not in given]
    wrong = [k for k, v in wanted.items() if k in given and given[k].shape != v.shape]
    if missing or wrong:
        shown = [f"missing {key}" for key in missing[:3]]
        shown += [f"{k}: {tuple(given[k].shape)} for {tuple(wanted[k].shape)}" for k in wrong[:3]]
        raise ValueError(
            f"{source} does not fit the network: {len(missing)} of {len(wanted)} tensors missing, "
            f"{len(wrong)} of another shape ({'; '.join(shown)})."
        )
    net.load_state_dict({key: given[key] for key in wanted})


def _is_first_layer(given: Tensor, wanted: Tensor) -> bool:
    """Whether a kernel reads RGB and is wanted for one channel."""
    return (
        given.ndim == 4
        and given.shape[1] == 3
        and wanted.shape
        == (
            given.shape[0],
            1,
            *given.shape[2:],
        )
    )


def starting_weights(settings: ImageModelConfig, channels: int, cache: str) -> str | None:
    """Decide once, before any worker starts, where a run's backbone weights come from.

    Weights from timm's hub are written to `cache`, so that workers without internet can read them.

    Args:
        settings: the backbone, and where its weights may come from.
        channels: channels of the input; published RGB kernels are summed for one.
        cache: folder or prefix for weights taken from the hub.

    Returns:
        A .safetensors path, or None for a start from scratch.

    Raises:
        ValueError: when `pretrained` is "hub" and the hub cannot be reached.
    """
    if settings.weights is not None:
        read_weights(settings.weights)
        return settings.weights
    if settings.pretrained == "none":
        return None
    info = backbone_info(settings.backbone)
    path = storage.join(cache, f"{info.timm_id}-{channels}ch.safetensors")
    if storage.exists(path):
        return path
    try:
        state = _published(info, channels)
    except (httpx.HTTPError, OSError) as error:
        if settings.pretrained == "hub":
            raise ValueError(
                f"the published weights of {info.timm_id} cannot be had from {ENDPOINT} ({error}); "
                "pass model.weights=FILE, or model.pretrained=none to start from scratch."
            ) from error
        log.warning(
            "The published weights of %s cannot be had from %s: training starts from scratch, "
            "the frozen stage is left out.",
            info.timm_id,
            ENDPOINT,
        )
        return None
    storage.write_bytes(path, save(state))
    return path


def _published(info: BackboneInfo, channels: int) -> dict[str, Tensor]:
    """The weights from the hub or its local cache.

    Raises:
        OSError, httpx.HTTPError: when neither has them.
    """
    import timm

    repository = timm.get_pretrained_cfg(info.timm_id).hf_hub_id
    cached = try_to_load_from_cache(str(repository), "model.safetensors")
    if not isinstance(cached, str) and not HF_HUB_OFFLINE:
        # One short request first: the hub's client retries for a minute without a network.
        httpx.head(ENDPOINT, timeout=5.0)
    net = timm.create_model(info.timm_id, pretrained=True, num_classes=0, in_chans=channels)
    return {key: value.contiguous() for key, value in net.state_dict().items()}


def _find_state(loaded: Any) -> dict[str, Tensor]:
    if not isinstance(loaded, Mapping):
        return {}
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded.get(key), Mapping):
            return _find_state(loaded[key])
    return {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}
