"""Weights in and out: safetensors, timm's hub, and the one converter for published .pt files."""

from __future__ import annotations

import io
import logging
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError  # the name of an error; nothing is unpickled here
from typing import Any, Protocol
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save
from torch import Tensor, nn

from cardioray import storage
from cardioray.models.backbones import Backbone, BackboneInfo, backbone_info
from cardioray.models.fitting import fit_to_network, plain_names

log = logging.getLogger(__name__)

# Where trainers put the state dict among other things.
_NESTED = ("state_dict", "model_state_dict", "model")


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
        ValueError: when the file cannot be read so or holds no state dict, and when `target` does
            not end in .safetensors.
    """
    if not target.endswith(".safetensors"):
        raise ValueError(f"{target} must end in .safetensors, which is how such files are known.")
    loaded = _read_published(source)
    state = _find_state(loaded)
    if not state:
        held = f"a {type(loaded).__name__}"
        if isinstance(loaded, Mapping):
            held = f"only {', '.join(str(key) for key in list(loaded)[:5]) or 'an empty mapping'}"
        raise ValueError(
            f"{source} holds no state dict (a mapping from names to tensors), by itself or under "
            f"{', '.join(_NESTED)}, but {held}; save the network's state_dict() alone."
        )
    named = plain_names(state, source)
    # Tensors of a .pt file may share memory, which safetensors refuses.
    own = {key: value.contiguous().clone() for key, value in named.items()}
    storage.write_bytes(target, save(own))
    return sorted(named)


class StartingFrom(Protocol):
    """The settings of a network that say where the weights of its backbone come from."""

    @property
    def backbone(self) -> str:
        """Name of the backbone."""

    @property
    def pretrained(self) -> str:
        """ "hub", "auto" or "none"."""

    @property
    def weights(self) -> str | None:
        """A file that wins over `pretrained`."""


def load_backbone(net: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load backbone weights; see `fit_to_network`."""
    net.load_state_dict(fit_to_network(net, state, source))


def starting_weights(settings: StartingFrom, channels: int, cache: str) -> str | None:
    """Decide once, before any worker starts, where a run's backbone weights come from.

    Weights from timm's hub are written to `cache`, so that workers without internet can read them.

    Args:
        settings: the backbone, and where its weights may come from.
        channels: channels of the input; published RGB kernels are summed for one.
        cache: folder or prefix for weights taken from the hub.

    Returns:
        A .safetensors path, or None for a start from scratch.

    Raises:
        ValueError: when `pretrained` is "hub" and there are none or the hub cannot be reached, when
            the file named by `weights` does not fit, or when the hub's local copy is damaged.
    """
    info = backbone_info(settings.backbone)
    if settings.weights is not None:
        with torch.device("meta"):
            net = Backbone(info, channels).net
        fit_to_network(net, read_weights(settings.weights), settings.weights)
        return settings.weights
    path = storage.join(cache, f"{info.timm_id}-{channels}ch.safetensors")
    return published_or_scratch(settings.pretrained, path, lambda: _published(info, channels))


class NotToBeHadError(Exception):
    """There are no published weights, or none that can be reached; says so."""


def published_or_scratch(
    pretrained: str, path: str, fetch: Callable[[], Mapping[str, Tensor]]
) -> str | None:
    """Published weights in a file, fetched unless it is there; None for a start from scratch.

    Args:
        pretrained: "hub", "auto" or "none", as in the configs of networks.
        path: the file.
        fetch: gives the weights, or raises `NotToBeHadError`.

    Raises:
        ValueError: when `pretrained` is "hub" and they are not to be had.
    """
    if pretrained == "none":
        return None
    if storage.exists(path):
        return path
    try:
        state = fetch()
    except NotToBeHadError as error:
        if pretrained == "hub":
            raise ValueError(
                f"{error}; pass model.weights=FILE, or model.pretrained=none to start from scratch."
            ) from error
        log.warning("%s: training starts from scratch, the frozen stage is left out.", error)
        return None
    storage.write_bytes(path, save({key: value.contiguous() for key, value in state.items()}))
    return path


def _published(info: BackboneInfo, channels: int) -> dict[str, Tensor]:
    """The weights that timm publishes, or knows of elsewhere, from there or the local cache.

    Raises:
        NotToBeHadError: when there are none, or neither has them.
        ValueError: when the local cache is damaged.
    """
    # Every process of a training loads this module; the driver alone asks for weights.
    import httpx
    import timm
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    record = timm.get_pretrained_cfg(info.timm_id)
    if not record or not record.has_weights:
        raise NotToBeHadError(f"timm knows of no published weights of {info.timm_id}")
    place = ENDPOINT if record.hf_hub_id else record.url
    try:
        if _local_copy(record) is None and not HF_HUB_OFFLINE:
            # One short request first: the hub's client retries for a minute without a network.
            httpx.head(place, timeout=5.0)
        net = timm.create_model(info.timm_id, pretrained=True, num_classes=0, in_chans=channels)
    except (httpx.HTTPError, OSError) as error:
        raise NotToBeHadError(
            f"the published weights of {info.timm_id} cannot be had from {place} "
            f"({one_line(error)})"
        ) from error
    except SafetensorError as error:
        raise ValueError(
            f"{_local_copy(record)}, the local copy of the published weights of {info.timm_id}, is "
            f"damaged ({error}); delete it, and it is fetched again."
        ) from error
    state: dict[str, Tensor] = net.state_dict()
    return state


def _local_copy(record: Any) -> Path | None:
    """Where the weights of timm's record have been kept since they were last fetched."""
    if record.hf_hub_id:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(record.hf_hub_id, "model.safetensors")
        return Path(found).resolve() if isinstance(found, str) else None
    kept = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(record.url).path).name)
    return kept if kept.exists() else None


def _read_published(source: str) -> Any:
    """What a .pt or .pth file holds.

    Raises:
        ValueError: when there is no such file, it is damaged, or holds more than tensors.
    """
    try:
        data = storage.read_bytes(source)
    except FileNotFoundError:
        raise ValueError(f"{source} does not exist.") from None
    try:
        _require_checksums(data)
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except MemoryError:
        raise  # the machine's trouble, not the file's
    except UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        kind = f" ({found[1]})" if found else ""
        raise ValueError(
            f"{source} is damaged, or holds Python objects{kind} beside its tensors, which could "
            "run code and are not read; save its state_dict() alone."
        ) from error
    except Exception as error:  # damaged archives and pickles raise nearly every type
        raise ValueError(
            f"{source} is damaged or no file of weights ({one_line(error)})."
        ) from error


def _require_checksums(data: bytes) -> None:
    """Look at the checksums of an archive, which torch.load does not.

    Raises:
        zipfile.BadZipFile: when one does not fit. A damaged archive may raise other errors.
    """
    stream = io.BytesIO(data)
    if not zipfile.is_zipfile(stream):
        return  # files from before PyTorch 1.6 have none
    with zipfile.ZipFile(stream) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"the checksum of {damaged} does not fit")


def _find_state(loaded: Any) -> dict[str, Tensor]:
    if not isinstance(loaded, Mapping):
        return {}
    for key in _NESTED:
        if isinstance(loaded.get(key), Mapping):
            return _find_state(loaded[key])
    return {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}


def one_line(error: Exception) -> str:
    """An error's reason, short enough for a message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
