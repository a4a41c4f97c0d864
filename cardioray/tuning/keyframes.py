"""Heads on features of key frames: fitted, cross-validated, and set beside other models."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from ray.actor import ActorHandle
from torch import Tensor

from cardioray import config, storage
from cardioray.data.keyframe_layouts import OUTLINED
from cardioray.data.reading import pixel_statistics
from cardioray.data.shards import ShardSet, write_table
from cardioray.models.gaussian_process import GaussianProcessConfig
from cardioray.models.keyframes import KeyframeModel, load_keyframe_weights
from cardioray.models.segmentation import SegmentModelConfig
from cardioray.tasks.base import encode_labels
from cardioray.tasks.keyframe_ef import EF_TARGET, KeyframeEfTask
from cardioray.tasks.keyframe_heads import (
    Answers,
    Development,
    Fit,
    by_input,
    fit_heads,
)
from cardioray.tasks.lv_seg import LvSegSettings
from cardioray.training.features import Features, compute_features
from cardioray.training.outcome import WEIGHTS_CACHE
from cardioray.training.progress import Shown
from cardioray.training.run import check_data, train
from cardioray.training.settings import RunConfig
from cardioray.tuning.kernel_search import Job, search_kernels

log = logging.getLogger(__name__)

ENCODERS = "encoders"
# Fewest development patients that heads are fitted to and weighed by.
LEAST_PATIENTS = 10


@dataclass(frozen=True, eq=False)
class Studies:
    """The studies of a shard set that have a label and a key frame.

    Attributes:
        table: `study_id`, `patient_id`, `label`, and `sample_id`, `row` and `source` of its first
            key frame, one row a study.
        rows: by frame the row of the shards, -1 where a study has no such frame, (S,).
    """

    table: pd.DataFrame
    rows: Mapping[str, NDArray[np.int64]]

    def features(
        self, found: Features, chosen: NDArray[np.bool_]
    ) -> dict[str, NDArray[np.float32]]:
        """By frame the features of some studies, NaN where a study has no such frame, (S, D)."""
        gathered = {}
        for frame, rows in self.rows.items():
            own = rows[chosen]
            values = np.full((len(own), found.values.shape[1]), np.nan, np.float32)
            values[own >= 0] = found.of(own[own >= 0])
            gathered[frame] = values
        return gathered


def find_studies(task: KeyframeEfTask, shards: ShardSet) -> Studies:
    """The studies that take part.

    Raises:
        ValueError: when there is none, or a study has a frame twice.
    """
    samples = shards.samples
    labels = encode_labels(task, samples)[EF_TARGET.name]
    mine = task.takes_part(samples) & np.isfinite(labels)
    if not mine.any():
        raise ValueError(
            f"no frame of {shards.path} is of view {task.settings.view or 'any'}, one of the "
            f"frames {', '.join(task.settings.frames)}, and of a study with an ejection fraction."
        )
    own = samples[mine].assign(label=labels[mine].astype(float), study=task.studies(samples)[mine])
    twice = own.duplicated(["study", "phase"], keep=False)
    if twice.any():
        first = own[twice].iloc[0]
        raise ValueError(
            f"Study {first['study']} has several {first['phase']} frames of view "
            f"{task.settings.view or 'any'}; heads take one. Choose a view, or give each cine its "
            "own study_id."
        )
    firsts = own.drop_duplicates("study").sort_values("study")
    table = pd.DataFrame(
        {
            "study_id": firsts["study"].to_numpy(),
            "patient_id": firsts["patient_id"].to_numpy(),
            "sample_id": firsts["sample_id"].to_numpy(),
            "row": firsts["row"].to_numpy(),
            "source": firsts["source"].to_numpy(),
            "label": firsts["label"].to_numpy(),
        }
    )
    rows: dict[str, NDArray[np.int64]] = {}
    for frame in task.settings.frames:
        of_frame = own[own["phase"] == frame].set_index("study")["row"]
        numbers = of_frame.reindex(table["study_id"]).fillna(-1).to_numpy(np.int64)
        if (numbers >= 0).any():
            rows[frame] = numbers
    return Studies(table, rows)


@dataclass(frozen=True, eq=False)
class Fitted:
    """What one division of the patients gave.

    Attributes:
        fit: the heads.
        weights: of the backbone (`KeyframeModel`).
        development: which studies the heads were fitted to, (S,).
        test: which studies they have not seen, (S,).
        answers: what they say of the test studies, in the order of `Studies.table`.
        features: of all studies.
    """

    fit: Fit
    weights: Mapping[str, Tensor]
    development: NDArray[np.bool_]
    test: NDArray[np.bool_]
    answers: Answers
    features: Features


def fit_divisions(
    run: RunConfig,
    shards: ShardSet,
    studies: Studies,
    splits: Mapping[str, pd.Series[str]],
    out: str,
    board: ActorHandle[object] | None,
) -> dict[str, Fitted]:
    """Features, kernels and heads for some divisions of the patients, by name.

    Args:
        run: settings.
        shards: prepared data.
        studies: of the shards.
        splits: split of every sample, by the name of the division.
        out: folder or prefix for features, encoders and the search.
        board: where trainings are shown, or None.

    Raises:
        ValueError: for settings or data that heads cannot be fitted with.
    """
    task = run.task
    assert isinstance(task, KeyframeEfTask)
    rows = np.unique(np.concatenate([r[r >= 0] for r in studies.rows.values()]))
    prepared: dict[str, tuple[dict[str, Tensor], Features, NDArray[np.object_]]] = {}
    for name, split in splits.items():
        weights = backbone_weights(run, shards, split, out, name, board)
        features = compute_features(task, weights, shards, rows, out, precision=run.train.precision)
        prepared[name] = (weights, features, _of_studies(studies, shards, split))
    processes = _processes(run, studies, prepared, out)
    fitted = {}
    for name, (weights, features, own) in prepared.items():
        development = np.isin(own, ["train", "validation", "calibration"])
        test = own == "test"
        _require_patients(studies.table["patient_id"][development], name)
        fit = fit_heads(
            task.settings.heads,
            task.settings.target,
            _development(studies, features, development, own),
            processes[name],
            seed=run.train.seed,
        )
        answers = fit.heads.answer(studies.features(features, test))
        fitted[name] = Fitted(fit, weights, development, test, answers, features)
    return fitted


def backbone_weights(
    run: RunConfig,
    shards: ShardSet,
    split: pd.Series[str],
    out: str,
    name: str,
    board: ActorHandle[object] | None,
) -> dict[str, Tensor]:
    """The weights of the backbone for one division: published, given, trained on outlines, random.

    Args:
        run: settings.
        shards: prepared data.
        split: split of every sample; no test patient takes part in what is trained.
        out: folder or prefix of trainings.
        name: of the division.
        board: where a training is shown, or None.

    Raises:
        ValueError: when there are none to be had.
    """
    task = run.task
    assert isinstance(task, KeyframeEfTask)
    settings = task.settings.model
    torch.manual_seed(run.train.seed)
    model = task.build_model()
    training = (split == "train").to_numpy() & task.takes_part(shards.samples)
    rows = np.sort(shards.samples["row"].to_numpy(np.int64)[training])
    model.initialise(*pixel_statistics(shards, rows, task.columns[0], run.train.seed))
    if settings.weights is None and settings.pretrained == "outlines":
        _load_trained_encoder(run, shards, split, out, name, board, model)
    else:
        path = task.starting_weights(storage.join(out, WEIGHTS_CACHE))
        if path is not None:
            load_keyframe_weights(model, path)
        else:
            log.warning(
                "%s has random weights (model.pretrained=none): its features say little.",
                settings.backbone,
            )
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def _load_trained_encoder(
    run: RunConfig,
    shards: ShardSet,
    split: pd.Series[str],
    out: str,
    name: str,
    board: ActorHandle[object] | None,
    model: KeyframeModel,
) -> None:
    """Train a segmentation on the outlines of the training patients, and take its encoder."""
    if OUTLINED not in shards.samples or not shards.samples[OUTLINED].any():
        raise ValueError(
            f"{shards.path} has no outlines to train the backbone on (model.pretrained=outlines): "
            "prepare data with label maps, or give weights with model.weights."
        )
    segmentation = encoder_run(run)
    # What is told of test patients is of no use here, and they are not to be seen.
    known = split.where(split.isin(["train", "validation"]), "")
    check_data(segmentation, shards, known)
    outcome = train(
        segmentation, shards, known, storage.join(out, ENCODERS), name=name, progress=board
    )
    model.load_segmentation(outcome.weights())


def encoder_run(run: RunConfig) -> RunConfig:
    """The training of the segmentation network whose encoder is the backbone."""
    task = run.task
    assert isinstance(task, KeyframeEfTask)
    settings = LvSegSettings(
        structures=task.settings.model.structures,
        preprocess=task.settings.preprocess,
        model=SegmentModelConfig(backbone=task.settings.model.backbone, pretrained="none"),
        augment=task.settings.augment,
        split=task.settings.split,
    )
    written = config.to_dict(settings) | {
        "train": config.to_dict(run.train),
        "scale": config.to_dict(run.scale),
    }
    return RunConfig.build("lv-seg", written)


def shown_for(run: RunConfig, shown: Shown | None) -> Shown | None:
    """How the trainings of backbones are shown: by their own figure, not by that of the heads."""
    task = run.task
    assert isinstance(task, KeyframeEfTask)
    if shown is None or not task.settings.model.of_segmentation:
        return shown
    return replace(shown, figure=encoder_run(run).task.monitor.name)


def _of_studies(studies: Studies, shards: ShardSet, split: pd.Series[str]) -> NDArray[np.object_]:
    """The split of every study, (S,)."""
    by_patient = split.groupby(shards.samples["patient_id"]).first()
    return by_patient.reindex(studies.table["patient_id"]).to_numpy(object)


def _development(
    studies: Studies,
    features: Features,
    development: NDArray[np.bool_],
    own: NDArray[np.object_],
) -> Development:
    table = studies.table[development]
    return Development(
        features=studies.features(features, development),
        labels=table["label"].to_numpy(float),
        patients=table["patient_id"].to_numpy(object),
        validation=own[development] == "validation",
    )


def _processes(
    run: RunConfig,
    studies: Studies,
    prepared: Mapping[str, tuple[dict[str, Tensor], Features, NDArray[np.object_]]],
    out: str,
) -> dict[str, dict[str, GaussianProcessConfig]]:
    """Settings of the Gaussian process for each division and input, searched where wanted."""
    task = run.task
    assert isinstance(task, KeyframeEfTask)
    heads = task.settings.heads
    jobs = {}
    for name, (_, features, own) in prepared.items():
        development = _development(
            studies, features, np.isin(own, ["train", "validation", "calibration"]), own
        )
        together = heads.together and len(development.features) > 1
        inputs = by_input(development.features, tuple(development.features), together=together)
        for frame, values in inputs.items():
            there = np.isfinite(values).all(axis=1)
            _require_patients(pd.Series(development.patients[there]), f"{name}, {frame}")
            jobs[f"{name}/{frame}"] = Job(
                values[there], development.labels[there], development.patients[there]
            )
    base = replace(heads.gp, seed=run.train.seed)
    chosen = search_kernels(jobs, base, heads.search if "gp" in heads.members else 0, out)
    found: dict[str, dict[str, GaussianProcessConfig]] = {name: {} for name in prepared}
    for job, settings in chosen.items():
        name, _, frame = job.rpartition("/")
        found[name][frame] = settings
    return found


def _require_patients(patients: pd.Series[str], where: str) -> None:
    count = patients.nunique()
    if count < LEAST_PATIENTS:
        raise ValueError(
            f"{where}: heads are fitted to {count} patients; at least {LEAST_PATIENTS} are needed."
        )


def predictions_of(
    studies: Studies, fitted: Mapping[str, Fitted], constant: str = "constant mean"
) -> pd.DataFrame:
    """What every member, the ensemble and a constant say of the test studies of each division.

    Args:
        studies: all of them.
        fitted: by the name of the division.
        constant: what the baseline is called: the mean of the development studies, with their SD.

    Returns:
        One row a study and model: `fold`, `model`, `study_id`, `patient_id`, `label`, `value`,
        `sd`, `probability`; NaN of what a model does not tell, or cannot for want of a frame.
    """
    pieces = []
    for fold, own in fitted.items():
        table = studies.table[own.test].assign(fold=fold)
        labels = studies.table["label"][own.development]
        said: dict[str, tuple[Any, Any, Any]] = {
            "ensemble": (own.answers.value, own.answers.sd, own.answers.probability),
            constant: (labels.mean(), labels.std(), np.nan),
        }
        for place, member in enumerate(own.answers.members):
            said[member] = (
                own.answers.values[:, place],
                own.answers.sds[:, place],
                own.answers.probabilities[:, place],
            )
        for model, (value, sd, probability) in said.items():
            pieces.append(table.assign(model=model, value=value, sd=sd, probability=probability))
    return pd.concat(pieces, ignore_index=True)


def write_predictions(table: pd.DataFrame, out: str) -> None:
    """Keep the table of `predictions_of`."""
    write_table(storage.join(out, "keyframes.parquet"), table)
