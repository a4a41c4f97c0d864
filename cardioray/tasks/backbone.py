"""What tasks have in common whose network is a timm backbone with something behind it."""

from __future__ import annotations

from abc import abstractmethod

from torch import nn

from cardioray.models.backbones import BACKBONES, Backbone, backbone_info
from cardioray.models.weights import load_backbone, read_weights, starting_weights
from cardioray.tasks.base import Task, freeze_part


class BackboneTask(Task):
    """A task whose `settings.model` names a backbone, and whose network has it as `backbone`."""

    @property
    @abstractmethod
    def input_channels(self) -> int:
        """Of what the backbone takes."""

    def backbones(self, pattern: str) -> list[str]:
        """Wildcards go over the ten of the FFR study; any other name that timm has works, too."""
        if any(sign in pattern for sign in "*?["):
            return BACKBONES.matching(pattern.lower())
        return [backbone_info(pattern).name]

    def starting_weights(self, cache: str) -> str | None:
        """Published or given backbone weights."""
        return starting_weights(self.settings.model, self.input_channels, cache)

    def load_starting_weights(self, model: nn.Module, path: str) -> None:
        """Load the backbone; what follows stays as it was drawn."""
        load_backbone(_backbone_of(model).net, read_weights(path), path)

    def freeze(self, model: nn.Module, part: str) -> None:
        """Fix nothing, the backbone, or its stem and first block."""
        backbone = _backbone_of(model)
        freeze_part(model, part, backbone, backbone.first_blocks(2))

    def pretrained_part(self, model: nn.Module) -> nn.Module:
        """The backbone."""
        return _backbone_of(model)


def _backbone_of(model: nn.Module) -> Backbone:
    backbone = model.backbone
    assert isinstance(backbone, Backbone)
    return backbone
