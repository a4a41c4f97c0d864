"""Weights in and out: safetensors, timm's hub, and the one converter for published .pt files."""

from __future__ import annotations

import io
import logging
import pickle
from collections.abc import Mapping
from typing import Any

import httpx
import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save
from torch import Tensor, nn

from cardioray import storage
from cardioray.models.backbones import Backbone, BackboneInfo, backbone_info
from cardioray.models.classifier import ImageModelConfig

log = logging.getLogger(__name__)

# What trainers wrap around a network leaves its name in the keys: DataParallel, Lightning, EchoNet.
PREFIXES = ("module.", "model.", "m.", "net.", "backbone.", "_orig_mod.")


def read_weights(path: str) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors file, local or s3://.

    Raises:
        ValueError: when there is no such file, it is damaged, or of another kind; says how to
            convert it.
    """
    if not path.endswith(".safetensors"):
        raise ValueError(
            f"{path} is no .safetensors file. Convert published weights first: "
            f"cardioray models convert {path} OUT.safetensors"
        )
    try:
        return load_safetensors(storage.read_bytes(path))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist.") from None
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error}).") from error


def convert_weights(source: str, target: str) -> list[str]:
    """Convert a published .pt or .pth file to safetensors; the only place that reads such files.

    Both may be local or s3://.

    Only tensors are read (`weights_only=True`), so the file cannot run code. A state dict nested
    under "state_dict", "model" or "model_state_dict" is found, wrapper prefixes are taken off.

    Returns:
        The keys written.

    Raises:
        ValueError: when the file cannot be read so, or holds no state dict.
    """
    try:
        data = io.BytesIO(storage.read_bytes(source))
        loaded = torch.load(data, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{source} does not exist.") from None
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{source} is damaged, or holds Python objects beside its tensors, which could run "
            "code and are not read; save its state_dict() alone."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:  # of damaged archives
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{source} cannot be read as weights ({reason[0][:200]}).") from error
    state = _find_state(loaded)
    if not state:
        raise ValueError(f"{source} holds no state dict (a mapping from names to tensors).")
    cleaned = {key: value.contiguous().clone() for key, value in strip_prefixes(state).items()}
    storage.write_bytes(target, save(cleaned))
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
    """Load backbone weights; see `fit_to_backbone`."""
    net.load_state_dict(fit_to_backbone(net, state, source))


def fit_to_backbone(net: nn.Module, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The tensors of a file that a backbone takes, by the backbone's names.

    The file's classifier is left out, and anything else that the backbone has not; what wraps the
    network's names is found, where only a part of the file is the network, too. A first layer for
    three channels is fitted to one by summing its kernels, as timm does. Counts of batches, which
    older files do not have, begin at zero.

    Args:
        net: the backbone; on the meta device only names and shapes are looked at.
        state: of the file.
        source: name of the file, for the error.

    Raises:
        ValueError: when a layer of the network is missing in the file or has another shape; names
            the first ones.
    """
    from timm.models import adapt_input_conv

    wanted = net.state_dict()
    given = _below_best_prefix(state, list(wanted))
    for key, value in wanted.items():
        if key in given and _is_first_layer(given[key], value):
            given[key] = adapt_input_conv(value.shape[1], given[key])
        elif key not in given and key.endswith("num_batches_tracked"):
            given[key] = torch.zeros((), dtype=torch.long)
    missing = [key for key in wanted if key not in given]
    wrong = [k for k, v in wanted.items() if k in given and given[k].shape != v.shape]
    if missing or wrong:
        shown = [f"missing {key}" for key in missing[:3]]
        shown += [f"{k}: {tuple(given[k].shape)} for {tuple(wanted[k].shape)}" for k in wrong[:3]]
        raise ValueError(
            f"{source} does not fit the network, whose layers have timm's names: {len(missing)} of "
            f"{len(wanted)} tensors missing, {len(wrong)} of another shape ({'; '.join(shown)})."
        )
    return {key: given[key] for key in wanted}


def _below_best_prefix(state: Mapping[str, Tensor], wanted: list[str]) -> dict[str, Tensor]:
    """The part of a state dict below the prefix under which most of the wanted names stand."""
    first = [key for key in wanted if not key.endswith("num_batches_tracked")][0]
    prefixes = {key[: -len(first)] for key in state if key.endswith(first)} or {""}
    best = max(sorted(prefixes), key=lambda prefix: sum(prefix + key in state for key in wanted))
    return {key[len(best) :]: value for key, value in state.items() if key.startswith(best)}


def _is_first_layer(given: Tensor, wanted: Tensor) -> bool:
    """Whether a kernel reads RGB and is wanted for one channel."""
    outputs, size = given.shape[:1], given.shape[2:]
    return given.ndim == 4 and given.shape[1] == 3 and wanted.shape == (*outputs, 1, *size)


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
        ValueError: when `pretrained` is "hub" and there are none or the hub cannot be reached, or
            when the file named by `weights` does not fit.
    """
    info = backbone_info(settings.backbone)
    if settings.weights is not None:
        with torch.device("meta"):
            net = Backbone(info, channels).net
        fit_to_backbone(net, read_weights(settings.weights), settings.weights)
        return settings.weights
    if settings.pretrained == "none":
        return None
    path = storage.join(cache, f"{info.timm_id}-{channels}ch.safetensors")
    if storage.exists(path):
        return path
    try:
        state = _published(info, channels)
    except (_NoneThereError, httpx.HTTPError, OSError) as error:
        if settings.pretrained == "hub":
            raise ValueError(
                f"the published weights of {info.timm_id} cannot be had from {ENDPOINT} ({error}); "
                "pass model.weights=FILE, or model.pretrained=none to start from scratch."
            ) from error
        log.warning(
            "The published weights of %s cannot be had from %s (%s): training starts from "
            "scratch, the frozen stage is left out.",
            info.timm_id,
            ENDPOINT,
            str(error).splitlines()[0] if str(error) else type(error).__name__,
        )
        return None
    storage.write_bytes(path, save(state))
    return path


class _NoneThereError(Exception):
    """Nobody has published weights of this architecture through timm."""


def _published(info: BackboneInfo, channels: int) -> dict[str, Tensor]:
    """The weights from the hub or its local cache.

    Raises:
        _NoneThereError: when timm knows of none.
        OSError, httpx.HTTPError: when neither has them.
    """
    import timm

    record = timm.get_pretrained_cfg(info.timm_id)
    if not record or not record.has_weights:
        raise _NoneThereError("timm knows of none")
    repository = record.hf_hub_id
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
