"""Settings of a training run, and the named recipes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from cardioray import config
from cardioray.registry import Registry
from cardioray.tasks.base import TASKS, Task

Frozen = Literal["none", "backbone", "first_blocks"]


@config.config
class StageConfig:
    """One stage of a recipe: a stretch of epochs with its own optimiser.

    Attributes:
        name: name in the log.
        epochs: most epochs.
        learning_rate: peak rate.
        schedule: "one_cycle" and "cosine" move per step, "plateau" per epoch on the validation
            loss, "step" falls by `step_factor` every `step_epochs`, "constant" does not move.
        final_learning_rate: where "cosine" ends and "plateau" stops.
        step_epochs: epochs between two falls of "step".
        step_factor: what "step" multiplies the rate by.
        plateau_factor: what "plateau" multiplies the rate by.
        plateau_patience: epochs without a better validation loss before it does.
        frozen: part of the network that does not learn; its batch norm runs in eval mode.
        freeze_batch_norm: run every batch norm of the backbone in eval mode.
        patience: epochs without a better monitored figure before the stage ends; None for never.
        min_delta: smallest gain that counts as better.
    """

    name: str = "train"
    epochs: int = Field(default=30, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    schedule: Literal["one_cycle", "cosine", "plateau", "step", "constant"] = "one_cycle"
    final_learning_rate: float = Field(default=1e-6, gt=0)
    step_epochs: int = Field(default=15, ge=1)
    step_factor: float = Field(default=0.1, gt=0, lt=1)
    plateau_factor: float = Field(default=0.8, gt=0, lt=1)
    plateau_patience: int = Field(default=10, ge=0)
    frozen: Frozen = "none"
    freeze_batch_norm: bool = False
    patience: int | None = Field(default=None, ge=1)
    min_delta: float = Field(default=1e-5, ge=0)


RECIPES: Registry[tuple[StageConfig, ...]] = Registry("recipe")
RECIPES.add("scratch", (StageConfig(name="scratch", epochs=40, learning_rate=2e-3, patience=15),))
RECIPES.add(
    "fine_tune",
    (
        StageConfig(
            name="head",
            epochs=10,
            learning_rate=1e-3,
            schedule="cosine",
            final_learning_rate=1e-5,
            frozen="backbone",
            patience=5,
        ),
        StageConfig(
            name="fine_tune",
            epochs=40,
            learning_rate=1e-4,
            schedule="plateau",
            frozen="first_blocks",
            freeze_batch_norm=True,
            plateau_patience=4,
            patience=12,
        ),
    ),
)
# EchoNet-Dynamic's, by its numbers: with SGD, batches of 20 and errors in percent squared.
RECIPES.add(
    "echonet_dynamic",
    (StageConfig(name="echonet", epochs=45, learning_rate=1e-4, schedule="step"),),
)
# The two stages of the FFR-Estimation system, by its numbers.
RECIPES.add(
    "ffr_estimation",
    (
        StageConfig(
            name="head",
            epochs=120,
            learning_rate=1e-3,
            schedule="cosine",
            final_learning_rate=1e-5,
            frozen="backbone",
            patience=10,
        ),
        StageConfig(
            name="fine_tune",
            epochs=600,
            learning_rate=1e-4,
            schedule="plateau",
            frozen="first_blocks",
            freeze_batch_norm=True,
            plateau_patience=10,
            patience=100,
        ),
    ),
)


@config.config
class OptimizerConfig:
    """How gradients become steps.

    Attributes:
        kind: "adamw" or "sgd" (momentum 0.9).
        weight_decay: decoupled for AdamW.
        gradient_clip: largest gradient norm; None for no limit.
        accumulate: batches a step adds up.
        ema_decay: decay of a running average of the weights that is validated and kept instead
            of the weights themselves; None for none.
    """

    kind: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = Field(default=1e-2, ge=0)
    gradient_clip: float | None = Field(default=5.0, gt=0)
    accumulate: int = Field(default=1, ge=1)
    ema_decay: float | None = Field(default=None, gt=0, lt=1)


@config.config
class TrainConfig:
    """Settings of the training loop.

    Attributes:
        recipe: "auto" takes "fine_tune" where there are weights to start from and "scratch" where
            there are none; or the name of a recipe.
        stages: stages of your own; they win over the recipe.
        epochs: most epochs of the last stage, whatever the recipe says.
        learning_rate: peak rate of the last stage, whatever the recipe says.
        batch_size: samples a worker takes a step.
        optimizer: optimiser settings.
        precision: "auto" is bf16 where the device is faster so.
        channels_last: memory layout of convolutions.
        compile: run the network through torch.compile.
        seed: fixes weights, order, augmentation and dropout.
        cache_gb: arrays a worker keeps in memory; larger shards are streamed every epoch.
        shuffle_buffer: samples that are mixed while shards are streamed.
        checkpoint_every: epochs between checkpoints.
        max_failures: restarts after a worker or node is lost.
        max_patients: patients of the training split that are learned from, drawn by `seed` so
            that fewer are a part of more; None for all of them.
    """

    recipe: str = "auto"
    stages: tuple[StageConfig, ...] | None = None
    epochs: int | None = Field(default=None, ge=1)
    learning_rate: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=32, ge=2)
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    channels_last: bool = True
    compile: bool = False
    seed: int = Field(default=42, ge=0)
    cache_gb: float = Field(default=4.0, ge=0)
    shuffle_buffer: int = Field(default=1024, ge=1)
    checkpoint_every: int = Field(default=1, ge=1)
    max_failures: int = Field(default=3, ge=0)
    max_patients: int | None = Field(default=None, ge=1)

    def __post_init__(self) -> None:
        if self.recipe != "auto":
            RECIPES.get(self.recipe)

    def resolved_stages(self, has_weights: bool) -> tuple[StageConfig, ...]:
        """The stages this run goes through.

        A stage that freezes the backbone is left out where it would freeze random weights.
        """
        name = ("fine_tune" if has_weights else "scratch") if self.recipe == "auto" else self.recipe
        stages = self.stages or RECIPES.get(name)
        if not has_weights:
            stages = tuple(s for s in stages if s.frozen != "backbone")
            if not stages:
                raise ValueError("every stage freezes the backbone, but there are no weights.")
        last = stages[-1]
        if self.epochs is not None:
            last = dataclasses.replace(last, epochs=self.epochs)
        if self.learning_rate is not None:
            last = dataclasses.replace(last, learning_rate=self.learning_rate)
        return (*stages[:-1], last)


@config.config
class ScaleConfig:
    """How a run spreads over a cluster.

    Attributes:
        workers: training processes; each is a DDP rank.
        gpus_per_worker: GPUs of each, fractions allowed; "auto" is one where there is one for every
            worker.
        cpus_per_worker: CPUs of each; "auto" leaves room for Ray Data on small machines.
        threads_per_worker: CPU threads of each; "auto" shares all cores among the workers of the
            runs that go on at a time. Sums are rounded in another order with another number.
        backend: process group; "auto" is nccl on GPUs and gloo elsewhere.
        spread: place workers on different nodes where possible.
        shared_storage: every node sees local output folders.
    """

    workers: int = Field(default=1, ge=1)
    gpus_per_worker: float | Literal["auto"] = "auto"
    cpus_per_worker: float | Literal["auto"] = "auto"
    threads_per_worker: int | Literal["auto"] = "auto"
    backend: Literal["auto", "nccl", "gloo"] = "auto"
    spread: bool = False
    shared_storage: bool = False


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides what a run computes.

    Attributes:
        task: the task with its settings.
        train: the loop.
        scale: the workers.
    """

    task: Task
    train: TrainConfig
    scale: ScaleConfig

    @classmethod
    def build(
        cls, task: str, values: Mapping[str, Any] | None = None, overrides: Iterable[str] = ()
    ) -> RunConfig:
        """A run from a task's name, written settings and `section.key=value` overrides.

        The sections `train` and `scale` are the run's, all others the task's.

        Raises:
            ValueError: for an unknown task, section or key, or a wrong value; lists the known.
        """
        task_type = TASKS.get(task)
        values = dict(values or {})
        values.pop("task", None)
        own = {"train": TrainConfig, "scale": ScaleConfig}
        texts = list(overrides)
        parsed: dict[str, Any] = {}
        for section, kind in own.items():
            prefix = f"{section}."
            mine = [text.removeprefix(prefix) for text in texts if text.startswith(prefix)]
            texts = [text for text in texts if not text.startswith(prefix)]
            parsed[section] = config.parse(kind, values.pop(section, {}), mine)
        settings: Any = config.parse(task_type.settings_type, values, texts)
        return cls(task=task_type(settings), **parsed)

    def decisive(self) -> dict[str, Any]:
        """The part of the written form that decides what a run computes."""
        written = self.to_dict() | {"scale": {"workers": self.scale.workers}}
        aside = ("max_failures", "checkpoint_every")
        written["train"] = {k: v for k, v in written["train"].items() if k not in aside}
        return written

    def to_dict(self) -> dict[str, Any]:
        """The written form; `build` reads it back."""
        return {
            "task": self.task.name,
            **config.to_dict(self.task.settings),
            "train": config.to_dict(self.train),
            "scale": config.to_dict(self.scale),
        }
