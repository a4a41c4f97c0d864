"""Small networks on features that were computed once: a class or a number.

They learn from a table of features within seconds, on the CPU, and are kept as arrays.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from cardioray.config import config
from cardioray.models.feature_space import (
    Features,
    FeatureSpace,
    FeatureSpaceConfig,
    below,
    canonical_order,
    check_names,
)
from cardioray.registry import unknown_name

Floats = NDArray[np.float64]
HeadKind = Literal["classification", "regression"]
KINDS: tuple[HeadKind, ...] = ("classification", "regression")


@config
class MlpHeadConfig:
    """A network of dense layers on features, by default the published one of LVEF from frames.

    Attributes:
        hidden: widths of the hidden layers, each followed by ReLU and dropout.
        dropout: share of units dropped behind each hidden layer.
        learning_rate: of AdamW.
        weight_decay: of AdamW; with 0 it is Adam.
        batch_size: rows a step.
        epochs: at most.
        patience: epochs without a lower validation loss after which training ends.
        seed: of weights, order and dropout.
        space: from features to inputs; by default all of them, standardised.
    """

    hidden: tuple[int, ...] = (512, 256)
    dropout: tuple[float, ...] = (0.3, 0.2)
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    batch_size: int = Field(default=32, ge=1)
    epochs: int = Field(default=200, ge=1)
    patience: int = Field(default=20, ge=1)
    seed: int = Field(default=42, ge=0)
    space: FeatureSpaceConfig = FeatureSpaceConfig(components=None)

    def __post_init__(self) -> None:
        if len(self.hidden) != len(self.dropout):
            raise ValueError("hidden and dropout need one number for each hidden layer.")
        if any(width < 1 for width in self.hidden):
            raise ValueError("hidden layers are at least 1 wide.")
        if any(not 0 <= share < 1 for share in self.dropout):
            raise ValueError("dropout must be at least 0 and below 1.")


@dataclass(frozen=True, eq=False)
class FeatureMlp:
    """A trained head.

    Attributes:
        kind: "classification" or "regression".
        space: from features to inputs.
        weights: of each layer, (outputs, inputs) float32.
        biases: of each layer, (outputs,) float32.
        centre: mean of the training targets of a regression; 0 for a classification.
        scale: their standard deviation; 1 for a classification.
        residual_sd: of a regression the root mean square of the errors on the validation rows, in
            the target's unit; somewhat too small, as these rows chose the epoch. NaN for a
            classification.
        losses: training and validation loss of each epoch, (E, 2).
        best_epoch: the epoch whose weights were kept, from 1.
    """

    kind: HeadKind
    space: FeatureSpace
    weights: tuple[NDArray[np.float32], ...]
    biases: tuple[NDArray[np.float32], ...]
    centre: float
    scale: float
    residual_sd: float
    losses: Floats
    best_epoch: int

    @classmethod
    def fit(
        cls,
        kind: HeadKind,
        features: Features,
        labels: ArrayLike,
        validation_features: Features,
        validation_labels: ArrayLike,
        settings: MlpHeadConfig | None = None,
    ) -> FeatureMlp:
        """Train on training rows until the loss of validation rows falls no more.

        The loss is the binary cross-entropy, with each class weighted by total / (2 N_class) of the
        training rows, or the mean squared error of the standardised number. The head depends on the
        rows and the seed, not on the order of the rows.

        Args:
            kind: "classification" or "regression".
            features: (N, D), as the backbone gives them.
            labels: 0 or 1, or numbers, (N,).
            validation_features: of other patients, (M, D).
            validation_labels: (M,).
            settings: of network and training.

        Raises:
            ValueError: when the kind is unknown, features or labels are not finite or do not match,
                a class is absent from the training rows or all their numbers are equal.
        """
        settings = settings or MlpHeadConfig()
        if kind not in KINDS:
            raise unknown_name("kind of head", kind, KINDS)
        truth = _labels(kind, features, labels, "training")
        held_truth = _labels(kind, validation_features, validation_labels, "validation")
        centre, scale = 0.0, 1.0
        if kind == "regression":
            centre, scale = float(truth.mean()), float(truth.std())
        if len(np.unique(truth)) < 2:
            raise ValueError(
                "All labels of the training rows are equal; there is nothing to learn."
            )
        space = FeatureSpace.fit(features, settings.space)
        inputs, held = space.apply(features), space.apply(validation_features)
        order, held_order = canonical_order(inputs, truth), canonical_order(held, held_truth)
        network, losses, best = _train(
            kind,
            _tensors(inputs[order], (truth[order] - centre) / scale),
            _tensors(held[held_order], (held_truth[held_order] - centre) / scale),
            settings,
        )
        layers = [layer for layer in network if isinstance(layer, nn.Linear)]
        mean_squared = float(losses[best - 1, 1]) if kind == "regression" else math.nan
        return cls(
            kind=kind,
            space=space,
            weights=tuple(layer.weight.detach().numpy().copy() for layer in layers),
            biases=tuple(layer.bias.detach().numpy().copy() for layer in layers),
            centre=centre,
            scale=scale,
            residual_sd=scale * math.sqrt(mean_squared),
            losses=losses,
            best_epoch=best,
        )

    def predict(self, features: Features) -> Floats:
        """Probability of class 1, or the number in the target's unit.

        Args:
            features: (N, D).

        Returns:
            (N,).

        Raises:
            ValueError: when the features are not finite or not D a row.
        """
        values = self.space.apply(features).astype(np.float32)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            values = np.maximum(values @ weight.T + bias, 0)
        outputs = (values @ self.weights[-1].T + self.biases[-1])[:, 0].astype(np.float64)
        if self.kind == "classification":
            return np.asarray(0.5 * (1 + np.tanh(outputs / 2)))
        return self.centre + self.scale * outputs

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The head as named arrays, for a safetensors file."""
        numbers = (
            KINDS.index(self.kind),
            self.centre,
            self.scale,
            self.residual_sd,
            self.best_epoch,
        )
        arrays: dict[str, NDArray[Any]] = {
            "numbers": np.array(numbers, np.float64),
            "losses": self.losses,
        }
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            arrays[f"layers.{number}.weight"], arrays[f"layers.{number}.bias"] = weight, bias
        arrays |= {f"space.{name}": array for name, array in self.space.to_arrays().items()}
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> FeatureMlp:
        """The head that `to_arrays` wrote.

        Raises:
            ValueError: when an array is missing or is not known.
        """
        own = {name: array for name, array in arrays.items() if not name.startswith("space.")}
        count = sum(name.endswith(".weight") for name in own)
        layers = [f"layers.{number}.{part}" for number in range(count) for part in _PARTS]
        check_names(own, ["numbers", "losses", *layers], "a head of dense layers")
        kind, centre, scale, residual_sd, best = (float(number) for number in own["numbers"])
        weights, biases = (
            tuple(np.asarray(own[f"layers.{n}.{part}"], np.float32) for n in range(count))
            for part in _PARTS
        )
        return cls(
            kind=KINDS[int(kind)],
            space=FeatureSpace.from_arrays(below(arrays, "space.")),
            weights=weights,
            biases=biases,
            centre=centre,
            scale=scale,
            residual_sd=residual_sd,
            losses=np.asarray(own["losses"], np.float64),
            best_epoch=int(best),
        )


_PARTS = ("weight", "bias")
Rows = tuple[Tensor, Tensor]


def make_network(inputs: int, settings: MlpHeadConfig) -> nn.Sequential:
    """Dense layers with ReLU and dropout, and one output without."""
    layers: list[nn.Module] = []
    width = inputs
    for wide, share in zip(settings.hidden, settings.dropout, strict=True):
        layers += [nn.Linear(width, wide), nn.ReLU(), nn.Dropout(share)]
        width = wide
    return nn.Sequential(*layers, nn.Linear(width, 1))


def _train(
    kind: HeadKind, training: Rows, validation: Rows, settings: MlpHeadConfig
) -> tuple[nn.Sequential, Floats, int]:
    """The network with its best weights, the losses of the epochs (E, 2), and the best epoch."""
    inputs, truth = training
    share_positive = float(truth.mean())

    def loss(rows: Rows) -> Tensor:
        outputs = network(rows[0])[:, 0]
        if kind == "regression":
            return functional.mse_loss(outputs, rows[1])
        weights = 0.5 / torch.where(rows[1] == 1, share_positive, 1 - share_positive)
        return functional.binary_cross_entropy_with_logits(outputs, rows[1], weights)

    losses: list[tuple[float, float]] = []
    best = 0
    kept: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = make_network(inputs.shape[1], settings)
        optimiser = torch.optim.AdamW(
            network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        for epoch in range(1, settings.epochs + 1):
            network.train()
            total = 0.0
            for rows in torch.randperm(len(inputs)).split(settings.batch_size):
                optimiser.zero_grad()
                step = loss((inputs[rows], truth[rows]))
                step.backward()
                optimiser.step()
                total += float(step.detach()) * len(rows)
            network.eval()
            with torch.inference_mode():
                losses.append((total / len(inputs), float(loss(validation))))
            if not best or losses[-1][1] < losses[best - 1][1]:
                best, kept = epoch, copy.deepcopy(network.state_dict())
            if epoch - best >= settings.patience:
                break
    network.load_state_dict(kept)
    return network, np.array(losses), best


def _labels(kind: HeadKind, features: Features, labels: ArrayLike, rows: str) -> Floats:
    truth = np.asarray(labels, np.float64)
    if truth.shape != (len(features),) or not len(truth):
        raise ValueError(f"There are {truth.shape} labels for {len(features)} {rows} rows.")
    if not np.isfinite(truth).all():
        raise ValueError(f"Labels of {rows} rows are not finite; leave out rows without one.")
    if kind == "classification" and not np.isin(truth, (0, 1)).all():
        raise ValueError(f"Labels of {rows} rows of a classification are 0 or 1.")
    return truth


def _tensors(inputs: Floats, truth: Floats) -> Rows:
    return (
        torch.from_numpy(inputs.astype(np.float32)),
        torch.from_numpy(truth.astype(np.float32)),
    )
