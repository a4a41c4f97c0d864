"""What a task is: the contract between a clinical question and the machinery that runs it.

Training, comparison, batch inference and serving call these methods and nothing else of a task,
so one loop, one pipeline and one server carry them all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from cardioray import config
from cardioray.clinical.calibration import CALIBRATIONS
from cardioray.clinical.number_calibration import NUMBER_CALIBRATIONS
from cardioray.data.decoding import DecodedSample, Decoder
from cardioray.data.manifest import Manifest, study_ids
from cardioray.data.sampling import Sampler, Whole
from cardioray.data.splits import SplitConfig
from cardioray.evaluation.metrics import binary_metrics, regression_metrics
from cardioray.evaluation.predictions import ONE_WINDOW, check_predictions, per_study
from cardioray.evaluation.thresholds import parse_rule
from cardioray.models.imputation import Imputation
from cardioray.registry import Registry, unknown_name
from cardioray.targets import BinaryTarget, RegressionTarget

Batch = dict[str, Tensor]
Outputs = dict[str, Tensor]

# Monitored figures that differ by less are called equal.
_TIE = 1e-4
# What `Monitor.standing` is called in what a run reports.
STANDING = "standing"


@config.config
class OperatingConfig:
    """How scores become answers; fitted on calibration patients.

    Attributes:
        rule: threshold rule: "youden", "best_f1", "fixed:0.5", "sensitivity:0.90".
        calibration: of probabilities "platt", "temperature", "isotonic" or "none"; of numbers
            "linear", "isotonic" or "none", and one of probabilities alone leaves them as they are.
        alpha: share of patients whose truth may be outside the conformal set.
    """

    rule: str = "youden"
    calibration: str = "platt"
    alpha: float = Field(default=0.1, gt=0, lt=1)

    def __post_init__(self) -> None:
        parse_rule(self.rule)
        known = {*CALIBRATIONS, *NUMBER_CALIBRATIONS}
        if self.calibration not in known:
            raise unknown_name("calibration", self.calibration, known)


@dataclass(frozen=True, kw_only=True)
class LabelStatistics:
    """What the loss needs to know of the training labels.

    Attributes:
        class_weights: per binary target, weights of class 0 and class 1.
        means: per regression target, mean of the training values.
        deviations: per regression target, their standard deviation.
        pixel_mean: per channel, mean grey level of training samples; () where the task does not
            measure it.
        pixel_std: per channel, their standard deviation.
        imputation: what fills in missing numbers of charts, where charts take part; a network
            keeps it, and a bundle does not tell it apart from the weights.
    """

    class_weights: Mapping[str, tuple[float, float]]
    means: Mapping[str, float]
    deviations: Mapping[str, float]
    pixel_mean: tuple[float, ...] = ()
    pixel_std: tuple[float, ...] = ()
    imputation: Imputation | None = None


@dataclass(frozen=True, kw_only=True)
class ScoredRows:
    """What a network says of some rows of shards.

    Attributes:
        samples: their rows of the table of the shards, ascending.
        split: the split that they are of.
        labels: per target one number a row, NaN where it is missing.
        measures: what `Task.measures` gave, by name, each (N, ...); of rows that are seen by
            windows, the mean over them.
        one_window: the same of the middle window alone; empty for rows that are seen whole.
    """

    samples: pd.DataFrame
    split: str
    labels: Mapping[str, NDArray[np.float32]]
    measures: Mapping[str, NDArray[Any]]
    one_window: Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Tables:
    """What becomes of scored rows.

    Attributes:
        predictions: one row a sample and target that has a label; see `check_predictions`.
        parts: where an answer is made of several samples, what is known of each; else None.
    """

    predictions: pd.DataFrame
    parts: pd.DataFrame | None = None

    @classmethod
    def joined(cls, tables: Sequence[Tables]) -> Tables:
        """The tables of several splits as one."""
        parts = [table.parts for table in tables if table.parts is not None]
        return cls(
            pd.concat([table.predictions for table in tables], ignore_index=True),
            pd.concat(parts, ignore_index=True) if parts else None,
        )

    def of(self, split: str) -> Tables:
        """The rows of one split."""
        rows = self.predictions[self.predictions["split"] == split]
        parts = self.parts
        if parts is not None:
            parts = parts[parts["split"] == split].reset_index(drop=True)
        return Tables(rows.reset_index(drop=True), parts)


@dataclass(frozen=True, kw_only=True)
class Monitor:
    """The validation figure that stops training early and chooses winners.

    With few validation patients, figures such as the AUC take few values, and several models have
    the same; what is compared is therefore `standing`, in which the loss decides between equals.

    Attributes:
        name: column of the training log ("val_auc").
        mode: whether more or less is better.
    """

    name: str
    mode: Literal["min", "max"]

    def better(self, value: float, best: float, min_delta: float = 0.0) -> bool:
        """Whether a value beats the best so far by more than `min_delta`; NaN never does."""
        gain = value - best if self.mode == "max" else best - value
        return bool(gain > min_delta)

    def standing(self, figures: Mapping[str, float]) -> float:
        """The monitored figure as a number of which more is better, ties broken by `val_loss`.

        Args:
            figures: validation figures of an epoch, `val_loss` (at least 0) among them.
        """
        value = figures[self.name] if self.mode == "max" else -figures[self.name]
        loss = figures["val_loss"]
        return value - _TIE * loss / (1 + loss)


@dataclass(frozen=True)
class Pretraining:
    """A training that comes before another one, whose network starts from its weights.

    Attributes:
        task: what is trained.
        epochs: passes over its samples; None for those of the recipe "scratch".
        learning_rate: the highest one; None for that of the recipe.
        batch_size: samples a worker takes a step.
    """

    task: Task
    epochs: int | None
    learning_rate: float | None
    batch_size: int


class Task(ABC):
    """One clinical question with its inputs, targets, model, loss, metrics and answer.

    Attributes:
        name: name in commands, routes and bundles.
        title: the question in a few words.
        intended_use: what an answer may be used for; goes into the model card.
        settings_type: the typed settings of the task; `split` and `operating` are among them.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    intended_use: ClassVar[str]
    settings_type: ClassVar[type]
    settings: Any
    # How a model card shows to ask about a study.
    example: ClassVar[str] = 'predictor.predict(["frame.png"])'
    # Whether whoever asks may say which view a file shows.
    takes_views: ClassVar[bool] = False
    # Whether pixel_mean and pixel_std are measured before a run begins.
    measures_pixels: ClassVar[bool] = False
    # Tasks with the same kind of shards train on each other's, where they were prepared alike.
    shards_kind: ClassVar[str] = ""
    # Settings that a search may draw beside the learning rate, by the name of what is drawn.
    searched: ClassVar[Mapping[str, str]] = {}
    # Settings that make variants of the task, which may answer fewer of its questions, by name.
    variants: ClassVar[Registry[tuple[str, ...]]] = Registry("variant")
    # Whether what is learned is the numbers and classes of the targets; elsewhere, it is arrays of
    # the shards, and targets are what answers are judged by.
    learns_from_labels: ClassVar[bool] = True
    # Arrays of the shards, of any shape, that scores of a finished training are measured against.
    references: ClassVar[tuple[str, ...]] = ()

    def __init__(self, settings: Any) -> None:
        assert isinstance(settings, self.settings_type)
        self.settings = settings

    @property
    @abstractmethod
    def targets(self) -> tuple[BinaryTarget | RegressionTarget, ...]:
        """The heads; the first one is the headline."""

    @property
    def split(self) -> SplitConfig:
        """How patients are divided where the manifest does not say."""
        split: SplitConfig = self.settings.split
        return split

    @property
    def operating(self) -> OperatingConfig:
        """How scores become answers."""
        operating: OperatingConfig = self.settings.operating
        return operating

    @property
    @abstractmethod
    def monitor(self) -> Monitor:
        """The figure that early stopping, ASHA and the choice of a winner follow."""

    @property
    def max_batch(self) -> int:
        """Windows of samples that go through the network at a time when it only answers."""
        return 32

    @property
    @abstractmethod
    def modality(self) -> str:
        """DICOM modality of the input ("XA", "US", "ECG")."""

    # From files to shards

    @property
    def fits_heads(self) -> bool:
        """Whether heads are fitted to features of a frozen network, which itself learns nothing."""
        return False

    @abstractmethod
    def read_manifest(self, data: str, patient_from: str | None) -> Manifest:
        """Read a manifest of this task's kind; see `cardioray.data.manifest`."""

    def takes_part(self, samples: pd.DataFrame) -> NDArray[np.bool_]:
        """Which rows of a manifest or of shards the model is for; all by default."""
        return np.ones(len(samples), np.bool_)

    def warnings(self, samples: pd.DataFrame) -> list[str]:
        """What a bundle has to say of the samples that it was made from, as sentences.

        Its card does; answers about other people's studies do not repeat it.
        """
        return []

    def suited(self, samples: pd.DataFrame) -> Task:
        """The task as some shards can train it, without targets that nothing in them tells of."""
        return self

    def judged(
        self, samples: pd.DataFrame, target: BinaryTarget | RegressionTarget
    ) -> NDArray[np.bool_]:
        """Which rows of shards are of studies that can be judged; by default those with a label.

        Args:
            samples: of the shards.
            target: one of `targets`.
        """
        return np.isfinite(target.encode(samples))

    def require(self, samples: pd.DataFrame, split: pd.Series[str]) -> None:  # noqa: B027
        """Refuse, before anything is trained, a division of which no bundle could be made.

        For tasks that learn from no labels; those of the others are counted elsewhere.

        Args:
            samples: of the shards.
            split: split of every sample.

        Raises:
            ValueError: says what is missing.
        """

    def studies(self, samples: pd.DataFrame) -> pd.Series[str]:
        """What each row of a manifest or of shards is answered together with."""
        return study_ids(samples)

    @property
    @abstractmethod
    def decoder(self) -> Decoder:
        """The way from a file to arrays, with the settings that shards depend on."""

    # From shards to a model

    @property
    def sampler(self) -> Sampler:
        """What of a stored sample the network sees at a time."""
        return Whole(self.decoder.columns)

    @property
    def columns(self) -> tuple[str, ...]:
        """Arrays that the network takes, in order."""
        return self.sampler.columns

    @property
    def stored(self) -> tuple[str, ...]:
        """Arrays of the shards that training reads; by default those that a file gives."""
        return self.decoder.columns

    @property
    def carried(self) -> tuple[str, ...]:
        """Numbers of the table of the shards that batches bring along; none by default."""
        return ()

    def inputs(self, batch: Mapping[str, Any]) -> tuple[Any, ...]:
        """What the network takes, in order; by default the columns.

        Args:
            batch: the columns that the sampler gives, and the carried numbers, (B, ...) each; as
                tensors or as arrays.
        """
        return tuple(batch[name] for name in self.columns)

    def facts_of_row(self, row: Mapping[str, Any]) -> dict[str, float]:
        """What a row of a table says of its sample, for `DecodedSample.facts`; nothing by default.

        Args:
            row: of a manifest, or of any table of files, by column.

        Raises:
            ValueError: for an impossible value.
        """
        return {}

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what the network gives beside its features; by default those of the targets."""
        return tuple(target.name for target in self.targets)

    def input_shapes(
        self, stored: Mapping[str, Sequence[int] | None]
    ) -> dict[str, tuple[int, ...]]:
        """Shape of each array that the network takes, without the batch.

        Args:
            stored: shapes of the arrays of the shards, None where they vary.
        """
        return {name: tuple(stored[name] or ()) for name in self.columns}

    def pictures(self, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
        """A picture for each of some network inputs, to be looked at: (N, H, W, C)."""
        return np.asarray(arrays[self.columns[0]])

    def initialise(self, model: nn.Module, statistics: LabelStatistics) -> None:  # noqa: B027
        """Give a new network what is known before it has learned anything; nothing by default."""

    @abstractmethod
    def backbones(self, pattern: str) -> list[str]:
        """Names of the networks that a name or wildcard stands for.

        Raises:
            ValueError: when there is none; lists the known ones.
        """

    @abstractmethod
    def build_model(self) -> nn.Module:
        """A new network with random weights; takes the columns in order.

        It also has `forward_with_features`, which gives the pooled features beside the outputs.
        """

    @abstractmethod
    def starting_weights(self, cache: str) -> str | None:
        """Where a run's first weights come from, decided once; None for a start from scratch."""

    def pretraining(self) -> Pretraining | None:
        """The training that comes first, on the same training and validation patients.

        Its weights are then what this task's network starts from. None for no such training.
        """
        return None

    @abstractmethod
    def load_starting_weights(self, model: nn.Module, path: str) -> None:
        """Load what `starting_weights` found."""

    @abstractmethod
    def freeze(self, model: nn.Module, part: str) -> None:
        """Fix a part of the network for a training stage, and free the rest.

        Args:
            model: what `build_model` returned.
            part: "none", "backbone", or "first_blocks".
        """

    @abstractmethod
    def pretrained_part(self, model: nn.Module) -> nn.Module:
        """The part of the network that starting weights fill; its batch norm can be frozen."""

    @abstractmethod
    def augment(self, batch: Batch, seed: tuple[int, ...]) -> Batch:
        """Random changes to a training batch on its device, drawn from the seed alone."""

    @abstractmethod
    def loss(self, outputs: Outputs, batch: Batch, statistics: LabelStatistics) -> Tensor:
        """The scalar to minimise; missing labels (NaN) are left out."""

    def details(
        self, samples: Sequence[DecodedSample], windows: Mapping[str, Sequence[NDArray[np.float32]]]
    ) -> dict[str, Any]:
        """What an answer says beside its targets, of the samples of one study.

        Args:
            samples: decoded files or frames.
            windows: per target and sample, the score of every window.
        """
        return {}

    def doubts(self, samples: Sequence[DecodedSample]) -> list[str]:
        """What speaks against the answer for a study, as sentences, from its files alone."""
        return []

    @abstractmethod
    def scores(self, outputs: Outputs, statistics: LabelStatistics) -> dict[str, Tensor]:
        """Per target what the predictions table holds: a probability or a number, (B,)."""

    def measures(
        self,
        outputs: Outputs,
        batch: Batch,
        statistics: LabelStatistics,
        references: Mapping[str, NDArray[Any]] | None = None,
    ) -> Mapping[str, Tensor | NDArray[Any]]:
        """Per sample what its rows of the tables are made of; by default its scores.

        What is no number stands in an array of objects.

        Args:
            outputs: of the network.
            batch: what it was given, with labels and carried numbers.
            statistics: of the training labels.
            references: the arrays that `references` names, for the scores of a finished training.
        """
        return self.scores(outputs, statistics)

    def tables(self, scored: ScoredRows) -> Tables:
        """Predictions of some rows; a second head learns from fewer of them."""
        samples = scored.samples
        pieces = []
        for target in self.targets:
            piece = pd.DataFrame(
                {
                    "sample_id": samples["sample_id"].to_numpy(),
                    "patient_id": samples["patient_id"].to_numpy(),
                    "study_id": self.studies(samples).to_numpy(),
                    "source": samples["source"].to_numpy(),
                    "split": scored.split,
                    "head": target.name,
                    "label": scored.labels[target.name],
                    "score": scored.measures[target.name],
                    "row": samples["row"].to_numpy(),
                }
            )
            if scored.one_window:
                piece[ONE_WINDOW] = scored.one_window[target.name]
            pieces.append(piece[piece["label"].notna()])
        return Tables(pd.concat(pieces, ignore_index=True))

    def validation_figures(self, tables: Tables) -> dict[str, float]:
        """What the log says of the validation split after an epoch, for the headline target.

        `val_loss` is the log loss or squared error a sample; the other figures are over studies.

        Args:
            tables: of the validation split.
        """
        target = self.targets[0]
        samples = check_predictions(tables.predictions, target)
        labels, scores = samples["label"].to_numpy(float), samples["score"].to_numpy(float)
        studies = per_study(samples)
        if target.kind == "binary":
            clipped = np.clip(scores, 1e-7, 1 - 1e-7)
            losses = -(labels * np.log(clipped) + (1 - labels) * np.log(1 - clipped))
            figures = binary_metrics(studies["label"], studies["score"], 0.5)
            named = {"val_auc": figures.auc, "val_accuracy": figures.accuracy}
        else:
            losses = (labels - scores) ** 2
            numbers = regression_metrics(studies["label"], studies["score"])
            named = {"val_mae": numbers.mae, "val_r2": numbers.r2}
        return {"val_loss": float(losses.mean()), **named}

    def label_statistics(
        self,
        labels: Mapping[str, NDArray[np.float32]],
        carried: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> LabelStatistics:
        """Class weights total / (2 N_class) and label means over the training rows.

        Args:
            labels: per target those of the training rows.
            carried: the carried numbers of these rows, where the task has any.
        """
        weights: dict[str, tuple[float, float]] = {}
        means: dict[str, float] = {}
        deviations: dict[str, float] = {}
        for target in self.targets:
            known = labels[target.name][np.isfinite(labels[target.name])]
            if target.kind == "binary":
                counts = [max(1, int((known == code).sum())) for code in (0, 1)]
                total = len(known)
                weights[target.name] = (total / (2 * counts[0]), total / (2 * counts[1]))
            else:
                if not len(known):
                    known = np.zeros(1, np.float32)
                means[target.name] = float(known.mean())
                deviations[target.name] = float(max(known.std(), 1e-6))
        return LabelStatistics(class_weights=weights, means=means, deviations=deviations)


def binary_loss(
    logits: Tensor, labels: Tensor, *, weights: tuple[float, float] | None, smoothing: float
) -> Tensor:
    """Mean cross-entropy of a yes/no head over the rows whose label is known.

    Args:
        logits: (B,).
        labels: 0, 1 or NaN, (B,).
        weights: of class 0 and class 1; None for equal ones.
        smoothing: share of a label that is spread evenly over both classes.
    """
    known = torch.isfinite(labels)
    labels = torch.where(known, labels, 0.0)
    smoothed = labels * (1 - smoothing) + smoothing / 2
    losses = F.binary_cross_entropy_with_logits(logits, smoothed, reduction="none")
    if weights is not None:
        negative, positive = weights
        losses = losses * torch.where(labels > 0.5, positive, negative)
    return (losses * known).sum() / known.sum().clamp(min=1)


def freeze_part(
    model: nn.Module, part: str, backbone: nn.Module, first_blocks: Iterable[nn.Parameter]
) -> None:
    """Fix "none", the "backbone" or its "first_blocks", and free the rest; see `Task.freeze`."""
    model.requires_grad_(True)
    if part == "backbone":
        backbone.requires_grad_(False)
    elif part == "first_blocks":
        for parameter in first_blocks:
            parameter.requires_grad_(False)


TASKS: Registry[type[Task]] = Registry("task")


def make_task(
    name: str, settings: Mapping[str, Any] | None = None, overrides: Iterable[str] = ()
) -> Task:
    """Build a task from its name, its written settings and `section.key=value` overrides.

    Raises:
        ValueError: for an unknown task or setting; lists the known ones.
    """
    task_type = TASKS.get(name)
    return task_type(config.parse(task_type.settings_type, settings or {}, overrides))


def encode_labels(task: Task, table: pd.DataFrame) -> dict[str, NDArray[np.float32]]:
    """The labels of every target for a manifest or shard table, NaN where missing.

    A whole column may be missing of numbers that a task does not learn from.
    """
    labels = {}
    for target in task.targets:
        if not task.learns_from_labels and target.value_column not in table:
            labels[target.name] = np.full(len(table), np.nan, np.float32)
        else:
            labels[target.name] = target.encode(table)
    return labels
