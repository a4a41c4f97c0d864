"""What a checkpoint holds: tensors as safetensors, everything else as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

TENSORS = "state.safetensors"
RECORD = "state.json"


@dataclass
class Progress:
    """Where a run stands, apart from its tensors.

    Attributes:
        stage: index of the current stage.
        epoch: epochs finished in all stages together.
        stage_epoch: epochs finished in the current stage.
        step: optimiser steps taken.
        best: best monitored figure so far.
        best_epoch: epoch that reached it.
        standing: its standing among epochs and runs (`Monitor.standing`); more is better.
        stage_best: best monitored figure of the current stage; early stopping follows it.
        waited: epochs of this stage since it improved.
        plateau: state of the plateau schedule.
        log: one row an epoch, what log.csv holds.
        losses: training loss of every step, averaged over ranks.
        notes: what went otherwise than it should, for whoever uses the model.
    """

    stage: int = 0
    epoch: int = 0
    stage_epoch: int = 0
    step: int = 0
    best: float | None = None
    best_epoch: int = 0
    standing: float | None = None
    stage_best: float | None = None
    waited: int = 0
    plateau: dict[str, Any] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class TrainState:
    """Everything a run needs to go on as if it had never stopped.

    Attributes:
        progress: the numbers.
        model: the network being trained.
        averaged: running average of its weights, or None.
        best_weights: state dict of the best epoch.
        optimizer: optimiser of the current stage.
    """

    progress: Progress
    model: nn.Module
    averaged: nn.Module | None
    best_weights: dict[str, Tensor]
    optimizer: torch.optim.Optimizer

    def save(self, folder: Path) -> None:
        """Write the two files."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        if self.averaged is not None:
            tensors |= {f"averaged.{k}": v for k, v in self.averaged.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best_weights.items()}
        record = asdict(self.progress)
        slots = self.optimizer.state_dict()["state"]
        tensors |= {
            f"optimizer.{index}.{key}": value
            for index, slot in slots.items()
            for key, value in slot.items()
        }
        separate = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        save_file(separate, folder / TENSORS)
        (folder / RECORD).write_text(json.dumps(record))

    def load_tensors(self, folder: Path) -> None:
        """Put the tensors of a checkpoint in place; the optimiser must be of the same stage."""
        tensors = load_file(folder / TENSORS)
        self.model.load_state_dict(_below(tensors, "model."))
        if self.averaged is not None:
            self.averaged.load_state_dict(_below(tensors, "averaged."))
        self.best_weights = _below(tensors, "best.")
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in _below(tensors, "optimizer.").items():
            index, _, name = key.partition(".")
            slots.setdefault(int(index), {})[name] = value
        # Moments have the memory layout of their parameter: another one rounds differently.
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        laid_out = {
            index: {name: _laid_out_as(parameters[index], v) for name, v in slot.items()}
            for index, slot in slots.items()
        }
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": laid_out, "param_groups": groups})


def read_progress(folder: Path) -> Progress:
    """The numbers of a checkpoint."""
    return parse_progress((folder / RECORD).read_bytes())


def parse_progress(record: bytes) -> Progress:
    """The numbers of a checkpoint, from the content of its `RECORD`."""
    return Progress(**json.loads(record))


def read_best_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of the best epoch a checkpoint knows of."""
    return _below(load_file(folder / TENSORS), "best.")


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    if value.shape != parameter.shape:  # the step count
        return value
    return torch.empty_like(parameter, requires_grad=False).copy_(value)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: v for key, v in tensors.items() if key.startswith(prefix)}
