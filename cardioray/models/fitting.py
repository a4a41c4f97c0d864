"""State dicts from elsewhere, fitted to the names and shapes of a network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import torch
from pydantic import AfterValidator
from torch import Tensor, nn

from cardioray import storage

# Attributes under which trainers keep a network: Lightning, EchoNet, others.
PREFIXES = ("model.", "m.", "net.", "backbone.")
# Modules that stand around others, anywhere in a network: DataParallel, torch.compile, FSDP,
# activation checkpointing.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# torchvision's published DenseNets have "norm.1" where its networks have had "norm1" since 2018.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
_COUNTS = "num_batches_tracked"
_SHOWN = 3


def _absolute(path: str | None) -> str | None:
    return None if path is None else storage.absolute(path)


# A file of weights in a config, by its full path: trials and workers run in folders of their own.
GivenWeights = Annotated[str | None, AfterValidator(_absolute)]


def plain_names(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Take out of the names what wraps a network or a part of it, and prefixes all names share.

    Args:
        state: of a file.
        source: name of the file, for the error.

    Raises:
        ValueError: when two names become one.
    """
    plain: dict[str, Tensor] = {}
    for key, value in state.items():
        name = _plain_name(key)
        if name in plain:
            raise ValueError(
                f"{source} holds {name} twice, with and without a wrapper's name in it; save the "
                "network's own state_dict() alone."
            )
        plain[name] = value
    while prefix := _shared_prefix(plain):
        plain = {key.removeprefix(prefix): value for key, value in plain.items()}
    return plain


def fit_to_network(
    net: nn.Module, state: Mapping[str, Tensor], source: str, library: str = "timm"
) -> dict[str, Tensor]:
    """The tensors of a file that a network without classifier takes, by the network's names.

    What stands beside the network in the file is left out: its classifier, its trainer's own
    tensors. What wraps the network's names is found, where only a part of the file is the network,
    too. A first layer for three channels is fitted to one by summing its kernels, as timm does.
    Counts of batches, which older files do not have, begin at zero.

    Args:
        net: made by timm, or a video network of torchvision; on the meta device only names and
            shapes are looked at.
        state: of the file.
        source: name of the file, for the error.
        library: whose names its layers have, for the error.

    Raises:
        ValueError: when a tensor of the network is missing in the file or has another shape, when
            the file's network has more of them, as a deeper one has, or when it is there twice;
            names the first ones.
    """
    wanted = net.state_dict()
    needed = [key for key in wanted if not key.endswith(_COUNTS)]
    # A few of timm's networks have a wrapper's name in their own.
    own_names = {_plain_name(key): key for key in wanted}
    found = _below_best_prefix(plain_names(state, source), [_plain_name(k) for k in needed], source)
    given = {own_names.get(key, key): value for key, value in found.items()}
    for key, value in wanted.items():
        if key in given and _is_first_layer(given[key], value):
            given[key] = _for_one_channel(given[key])
        elif key not in given and key.endswith(_COUNTS):
            given[key] = torch.zeros((), dtype=torch.long)
    missing = [key for key in needed if key not in given]
    wrong = [key for key in wanted if key in given and given[key].shape != wanted[key].shape]
    unknown = _unknown_inside(net, found)
    if missing or wrong or unknown:
        shown = [f"missing {key}" for key in missing[:_SHOWN]]
        shown += [
            f"{key}: {tuple(given[key].shape)} for {tuple(wanted[key].shape)}"
            for key in wrong[:_SHOWN]
        ]
        shown += [f"unknown {key}" for key in unknown[:_SHOWN]]
        begins = f" The file begins with {', '.join(list(state)[:_SHOWN])}." if missing else ""
        raise ValueError(
            f"{source} does not fit the network: of its {len(needed)} tensors {len(missing)} are "
            f"missing and {len(wrong)} have another shape; {len(unknown)} are unknown to it "
            f"({'; '.join(shown)}).{begins} Set model.backbone to the network that the file is of; "
            f"its layers must have {library}'s names."
        )
    return {key: given[key] for key in wanted}


def _plain_name(name: str) -> str:
    """A tensor's name without wrappers, and as today's networks have it."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    return _OLD_DENSENET.sub(r"\1\2", ".".join(parts))


def _shared_prefix(state: Mapping[str, Tensor]) -> str | None:
    """A trainer's prefix that every name has."""
    if not state:
        return None
    return next((p for p in PREFIXES if all(key.startswith(p) for key in state)), None)


def _below_best_prefix(
    state: Mapping[str, Tensor], needed: list[str], source: str
) -> dict[str, Tensor]:
    """The part of a state dict below the prefix under which most of the needed names stand."""
    ends = (needed[0], needed[-1])
    prefixes = {key.removesuffix(end) for key in state for end in ends if key.endswith(end)} | {""}
    found = {prefix: sum(prefix + key in state for key in needed) for prefix in sorted(prefixes)}
    complete = [prefix for prefix, count in found.items() if count == len(needed)]
    if len(complete) > 1:
        places = ", ".join(prefix or "no prefix" for prefix in complete)
        raise ValueError(
            f"{source} holds the network {len(complete)} times, under {places}; save the one that "
            "is meant to a file of its own."
        )
    best = max(found, key=lambda prefix: found[prefix])
    return {key.removeprefix(best): value for key, value in state.items() if key.startswith(best)}


def _is_first_layer(given: Tensor, wanted: Tensor) -> bool:
    """Whether a kernel reads RGB and is wanted for one channel."""
    outputs, size = given.shape[:1], given.shape[2:]
    return given.ndim in (4, 5) and given.shape[1] == 3 and wanted.shape == (*outputs, 1, *size)


def _for_one_channel(kernels: Tensor) -> Tensor:
    """RGB kernels for the grey picture that all three channels would have repeated."""
    if kernels.ndim == 5:
        return kernels.sum(dim=1, keepdim=True)
    from timm.models import adapt_input_conv

    adapted: Tensor = adapt_input_conv(1, kernels)
    return adapted


def _unknown_inside(net: nn.Module, names: Iterable[str]) -> list[str]:
    """Plain names inside the network's own stages that the network has not.

    A deeper network, or one with attention in its blocks, has every tensor of the plain one.
    """
    own = {_plain_name(name) for name in net.state_dict()}
    known = own | {_plain_name(name) for name, _ in net.named_buffers()}
    stages = {name.partition(".")[0] for name in own}
    heads = tuple(f"{name}." for name in _dropped_classifiers(net))
    return [
        name
        for name in names
        if name.partition(".")[0] in stages
        and name not in known
        and not name.endswith(_COUNTS)
        and not name.startswith(heads)
    ]


def _dropped_classifiers(net: nn.Module) -> list[str]:
    """Names of what was left out when the network was made without classifier."""
    record: Any = getattr(
        net, "pretrained_cfg", {"classifier": "fc"}
    )  # torchvision's has no record
    names = record.get("classifier") or ()
    dropped = []
    for name in (names,) if isinstance(names, str) else names:
        module, path = net, ""
        # A classifier of several layers is left out as a whole.
        for part in name.split("."):
            path = f"{path}.{part}" if path else part
            module = dict(module.named_children()).get(part, nn.Identity())
            if isinstance(module, nn.Identity):
                break
        dropped.append(path)
    return dropped
