"""ECG to answers: a picture or twelve signals, with what the chart says or without.

After Boribalburephan et al., Scientific Reports 2024 (doi:10.1038/s41598-024-58131-6): a 2-D
backbone, 512 latent features, one linear head a question, and a bidirectional recurrent network
over age and five flags.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from cardioray.config import config
from cardioray.models.backbones import Backbone, BackboneInfo, backbone_info
from cardioray.models.fitting import GivenWeights
from cardioray.models.imputation import MISSING, Imputer

LEADS = 12
# Numbers of a chart: age in years first, all others are flags.
CHART = 6
_YEARS = 100.0
# Signals are kept as two bytes a sample, in steps of 1 uV around the middle; 0 is not known.
_UNKNOWN, _MIDDLE, _STEPS_PER_MV = 0, 32768, 1000.0
_EMBEDDED = 5


@config
class EcgModelConfig:
    """A network for ECGs.

    Attributes:
        backbone: any timm model name.
        sees: "picture", the canonical page, or "signals", twelve leads as channels of one row.
        chart: how age and five flags take part: "none", "birnn" as published, or "mlp".
        latent: features that the backbone is brought to, and heads start from.
        recurrent: features of the recurrent network.
        pretrained: as for pictures: "auto", "hub" or "none".
        weights: file with backbone weights; wins over `pretrained`.
    """

    backbone: str = "resnet34d"
    sees: Literal["picture", "signals"] = "picture"
    chart: Literal["none", "birnn", "mlp"] = "none"
    latent: int = Field(default=512, ge=8)
    recurrent: int = Field(default=512, ge=8)
    pretrained: str = "auto"
    weights: GivenWeights = None

    def __post_init__(self) -> None:
        backbone_info(self.backbone)
        if self.pretrained not in ("auto", "hub", "none"):
            raise ValueError("pretrained is one of auto, hub, none.")

    @property
    def channels(self) -> int:
        """Of what the backbone takes."""
        return 1 if self.sees == "picture" else LEADS


class EcgModel(nn.Module):
    """uint8 pictures (B, S, S, 1) or signals (B, 12, N, 2), and charts (B, 6), to logits (B,)."""

    mean: Tensor
    std: Tensor

    def __init__(self, settings: EcgModelConfig, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.settings = settings
        self.info: BackboneInfo = backbone_info(settings.backbone)
        self.backbone = Backbone(self.info, settings.channels)
        self.latent = nn.Linear(self.info.feature_width, settings.latent, bias=False)
        self.chart: nn.Module | None = None
        self.imputer = Imputer(CHART) if settings.chart != "none" else None
        width = settings.latent
        if settings.chart != "none":
            branch = _Recurrent if settings.chart == "birnn" else _Perceptron
            self.chart = branch(settings.recurrent)
            width += settings.recurrent
        self.heads = nn.ModuleDict({name: nn.Linear(width, 1) for name in outputs})
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def initialise(self, mean: float, std: float) -> None:
        """Normalise pictures by the grey levels of training pages."""
        self.mean.fill_(mean / 255.0)
        self.std.fill_(max(std / 255.0, 1e-3))

    def normalise(self, seen: Tensor) -> Tensor:
        """What the backbone takes, (B, C, H, W)."""
        if self.settings.sees == "signals":
            return millivolts_of(seen).unsqueeze(2)
        grey = seen.permute(0, 3, 1, 2)
        if seen.dtype == torch.uint8:
            grey = grey.float() / 255.0
        return (grey - self.mean) / self.std

    def features(self, seen: Tensor, chart: Tensor | None = None) -> Tensor:
        """Latent features of the page, and of the chart where it takes part, (B, width)."""
        pooled = self.backbone(self.normalise(seen))
        found = torch.relu(self.latent(pooled))
        if self.chart is None:
            assert isinstance(found, Tensor)
            return found
        assert self.imputer is not None
        assert chart is not None
        said = self.chart(self.imputer(chart_of(chart), chart.float() != MISSING))
        return torch.cat([found, said.to(found.dtype)], dim=1)

    def forward_with_features(
        self, seen: Tensor, chart: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """A logit (B,) a question, and the features they come from."""
        features = self.features(seen, chart)
        return {name: head(features).squeeze(1) for name, head in self.heads.items()}, features

    def forward(self, seen: Tensor, chart: Tensor | None = None) -> dict[str, Tensor]:
        """A logit (B,) a question."""
        return self.forward_with_features(seen, chart)[0]


class _Recurrent(nn.Module):
    """Age and flags read one after the other from both sides, directions summed, (B, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.flag = nn.Embedding(2, _EMBEDDED)
        self.age = nn.Linear(1, _EMBEDDED)
        # Where in the sequence a flag stands says which one it is.
        self.rnn = nn.RNN(_EMBEDDED, width, batch_first=True, bidirectional=True)

    def forward(self, chart: Tensor) -> Tensor:
        age = self.age(chart[:, :1]).unsqueeze(1)
        flags = chart[:, 1:, None]
        no, yes = self.flag.weight[0], self.flag.weight[1]
        steps = torch.cat([age, no * (1 - flags) + yes * flags], dim=1)
        _, last = self.rnn(steps)
        summed = last.sum(dim=0)
        assert isinstance(summed, Tensor)
        return summed


class _Perceptron(nn.Module):
    """The same by two linear layers, (B, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(CHART, 64), nn.ReLU(), nn.Linear(64, width), nn.ReLU()
        )

    def forward(self, chart: Tensor) -> Tensor:
        found = self.layers(chart)
        assert isinstance(found, Tensor)
        return found


def chart_of(coded: Tensor) -> Tensor:
    """Charts as bytes (B, 6) to age in centuries and flags; `MISSING` is for others to tell."""
    # In one piece: what is written into a tensor is lost when a network is exported.
    scale = torch.tensor([1 / _YEARS] + [1.0] * (CHART - 1), device=coded.device)
    return coded.float() * scale


def millivolts_of(coded: Tensor) -> Tensor:
    """Signals as bytes (B, 12, N, 2) to mV, 0 where not known, (B, 12, N)."""
    steps = coded[..., 0].float() * 256 + coded[..., 1].float()
    return torch.where(steps == _UNKNOWN, 0.0, (steps - _MIDDLE) / _STEPS_PER_MV)


def coded_millivolts(millivolts: Tensor) -> Tensor:
    """The bytes (B, 12, N, 2) of signals in mV (B, 12, N), NaN where not known."""
    known = torch.isfinite(millivolts)
    steps = torch.where(known, (millivolts * _STEPS_PER_MV).round(), 0.0) + _MIDDLE
    steps = torch.where(known, steps.clamp(1, 65535), _UNKNOWN).to(torch.int32)
    return torch.stack([steps // 256, steps % 256], dim=-1).to(torch.uint8)


def signals_changed(
    coded: Tensor,
    seed: tuple[int, ...],
    *,
    gain: float,
    shift: int,
    noise_mv: float,
    lead_dropout: float,
) -> Tensor:
    """Random changes of a batch of signals, each ECG by itself, drawn from the seed alone.

    Args:
        coded: bytes (B, 12, N, 2).
        seed: what is drawn from.
        gain: largest relative change of the gain.
        shift: most samples that all leads are moved by, the ends blank.
        noise_mv: most noise, as a standard deviation.
        lead_dropout: share of leads that are blanked.

    Returns:
        As `coded`.
    """
    state = int(np.random.SeedSequence(seed).generate_state(1)[0])
    generator = torch.Generator().manual_seed(state)
    batch, leads, length = coded.shape[:3]
    steps = coded[..., 0].float() * 256 + coded[..., 1].float()
    values = torch.where(steps == _UNKNOWN, torch.nan, (steps - _MIDDLE) / _STEPS_PER_MV)

    def drawn(*shape: int) -> Tensor:
        # On the CPU: other devices have other generators.
        return torch.rand(*shape, generator=generator)

    factor = 1 + gain * (2 * drawn(batch, 1, 1) - 1)
    sigma = noise_mv * drawn(batch, 1, 1)
    noise = torch.randn(batch, leads, length, generator=generator) * sigma
    moves = torch.randint(-shift, shift + 1, (batch, 1), generator=generator)
    blank = drawn(batch, leads, 1) < lead_dropout
    places = torch.arange(length) - moves
    inside = (places >= 0) & (places < length)
    index = places.clamp(0, length - 1).to(values.device)
    values = values.gather(2, index[:, None, :].expand(-1, leads, -1))
    kept = inside[:, None, :] & ~blank
    values = values * factor.to(values.device) + noise.to(values.device)
    return coded_millivolts(torch.where(kept.to(values.device), values, torch.nan))
