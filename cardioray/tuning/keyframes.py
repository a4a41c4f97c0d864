"""Heads on features of key frames: fitted, cross-validated, and set beside other models."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from ray.actor import ActorHandle
from torch import Tensor

from cardioray import storage
from cardioray.clinical.calibration import patient_folds
from cardioray.data.reading import pixel_statistics
from cardioray.data.shards import ShardSet
from cardioray.data.splits import training_within
from cardioray.models.gaussian_process import GaussianProcessConfig
from cardioray.models.keyframes import load_keyframe_weights
from cardioray.tasks.base import encode_labels
from cardioray.tasks.keyframe_ef import EF_TARGET, KeyframeEfTask
from cardioray.tasks.keyframe_heads import (
    LEAST_FOLDS,
    Answers,
    Development,
    Fit,
    InnerFold,
    by_input,
    classes_of,
    fit_heads,
    require_classes,
)
from cardioray.training.features import Features, compute_features
from cardioray.training.outcome import WEIGHTS_CACHE, Outcome
from cardioray.training.run import pretrain, pretraining_run, run_name, seen_by_weights
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


@dataclass(frozen=True, eq=False)
class Division:
    """One division, ready to be fitted.

    Attributes:
        name: of the division.
        development: which studies heads are fitted to, (S,).
        test: which they have not seen, (S,).
        validation: of the development studies, those that stop the training of perceptrons.
        folds: rows of the development studies that are fitted to and held out, fold by fold.
    """

    name: str
    development: NDArray[np.bool_]
    test: NDArray[np.bool_]
    validation: NDArray[np.bool_]
    folds: list[tuple[NDArray[np.int64], NDArray[np.int64]]]


def fit_divisions(
    run: RunConfig,
    shards: ShardSet,
    studies: Studies,
    splits: Mapping[str, pd.Series[str]],
    out: str,
    board: ActorHandle[object] | None,
) -> dict[str, Fitted]:
    """Features, kernels and heads for some divisions of the patients, by name.

    Weights, SD and threshold of the heads come from what heads say of patients whom neither they
    nor their backbone have seen: a backbone that learns outlines does so once for every inner
    fold, too. Where there are at least four divisions (the folds of a comparison), the inner folds
    of each are the others, so that each pair of them shares a backbone.

    Args:
        run: settings.
        shards: prepared data.
        studies: of the shards.
        splits: split of every sample, by the name of the division.
        out: folder or prefix for features, encoders and the search.
        board: where trainings are shown, or None.

    Raises:
        ValueError: for settings or data that heads cannot be fitted with, before anything is
            trained.
    """
    task = run.task
    assert isinstance(task, KeyframeEfTask)
    _refuse_seen(run, shards, studies, splits)
    parts = divisions(task, shards, studies, splits, seed=run.train.seed)
    backbones = Backbones(run, shards, studies, out, board)
    everyone = studies.table["patient_id"].to_numpy(object)
    # By the division, and by the division and its inner fold.
    weights: dict[tuple[str, int | None], dict[str, Tensor]] = {}
    for part in parts:
        own = everyone[part.development]
        weights[part.name, None] = backbones.weights(set(own), part.name)
        for number, (learned, _) in enumerate(part.folds):
            weights[part.name, number] = (
                backbones.weights(set(own[learned]), f"{part.name}, inner fold {number + 1}")
                if backbones.learned
                else weights[part.name, None]
            )
    features = dict(zip(weights, backbones.features(list(weights.values())), strict=True))
    processes = _processes(
        run, studies, {part.name: (part, features[part.name, None]) for part in parts}, out
    )
    fitted = {}
    for part in parts:
        final = features[part.name, None]
        fit = fit_heads(
            task.settings.heads,
            task.settings.target,
            _development(studies, final, part),
            processes[part.name],
            [
                InnerFold(
                    learned, held, studies.features(features[part.name, number], part.development)
                )
                for number, (learned, held) in enumerate(part.folds)
            ],
        )
        answers = fit.heads.answer(studies.features(final, part.test))
        fitted[part.name] = Fitted(
            fit, weights[part.name, None], part.development, part.test, answers, final
        )
    return fitted


def _refuse_seen(
    run: RunConfig, shards: ShardSet, studies: Studies, splits: Mapping[str, pd.Series[str]]
) -> None:
    """Refuse given weights that have learned from patients whom they are to be judged by."""
    seen = shards.samples["patient_id"][seen_by_weights(run, shards)]
    known = studies.table["patient_id"].isin(seen).to_numpy()
    tested = np.any([_of_studies(studies, shards, split) == "test" for split in splits.values()], 0)
    if not known.any():
        return
    if (known & tested).any():
        whom = f"{studies.table['patient_id'][known & tested].nunique()} of the test patients"
        what = "their scores would be too good"
    else:
        whom = f"{studies.table['patient_id'][known].nunique()} of the patients heads learn from"
        what = "the heads would take themselves to be surer than they are"
    raise ValueError(
        f"model.weights is of a bundle that was made with {whom}: {what}. Use weights of other "
        "patients, or model.pretrained=outlines, which learns them anew for every fold."
    )


def divisions(
    task: KeyframeEfTask,
    shards: ShardSet,
    studies: Studies,
    splits: Mapping[str, pd.Series[str]],
    *,
    seed: int,
) -> list[Division]:
    """Every division with its inner folds, checked for whether heads can be fitted to it.

    Args:
        task: its class and heads.
        shards: prepared data.
        studies: of the shards.
        splits: as of `fit_divisions`.
        seed: of inner folds that are drawn.

    Raises:
        ValueError: when there are too few patients, of a class or with a frame.
    """
    heads, table = task.settings.heads, studies.table
    labels, patients = table["label"].to_numpy(float), table["patient_id"].to_numpy(object)
    owns = {name: _of_studies(studies, shards, split) for name, split in splits.items()}
    parts = []
    for name, own in owns.items():
        development = np.isin(own, ["train", "validation", "calibration"])
        _require_patients(studies, development, name)
        others = [set(patients[other == "test"]) for key, other in owns.items() if key != name]
        mine = patients[development]
        if len(others) >= LEAST_FOLDS and set().union(*others) >= set(mine):
            held = [np.flatnonzero(np.isin(mine, list(other))) for other in others]
            folds = [(np.setdiff1d(np.arange(len(mine)), rows), rows) for rows in held]
        else:
            classes = classes_of(labels[development], task.settings.target)
            rare = min((classes == code).sum() for code in (0, 1)) < heads.inner_folds
            folds = list(
                patient_folds(
                    None if rare else classes, mine, num_folds=heads.inner_folds, seed=seed
                )
            )
        validation = own[development] == "validation"
        require_classes(heads, task.settings.target, labels[development], mine, validation, folds)
        parts.append(Division(name, development, own == "test", validation, folds))
    return parts


class Backbones:
    """Backbones for sets of patients, trained where they learn from these, and their features."""

    def __init__(
        self,
        run: RunConfig,
        shards: ShardSet,
        studies: Studies,
        out: str,
        board: ActorHandle[object] | None,
    ) -> None:
        assert isinstance(run.task, KeyframeEfTask)
        self.run, self.task, self.shards, self.out, self.board = run, run.task, shards, out, board
        self.rows = np.unique(np.concatenate([r[r >= 0] for r in studies.rows.values()]))
        self.first = pretraining_run(run)

    @property
    def learned(self) -> bool:
        """Whether a backbone learns from its patients."""
        return self.first is not None

    def weights(self, patients: set[str], shown: str) -> dict[str, Tensor]:
        """The weights of the backbone: published, given, trained on outlines, or random.

        Args:
            patients: who may be learned from, and normalised by.
            shown: what the training is for.

        Raises:
            ValueError: when there are none to be had.
        """
        samples = self.shards.samples
        known = samples["patient_id"].isin(patients).to_numpy()
        torch.manual_seed(self.run.train.seed)
        model = self.task.build_model()
        taking = known & self.task.takes_part(samples)
        rows = np.sort(samples["row"].to_numpy(np.int64)[taking])
        model.initialise(
            *pixel_statistics(self.shards, rows, self.task.columns[0], self.run.train.seed)
        )
        if self.first is not None:
            model.load_segmentation(self._outlining(self.first, known, shown).weights())
        else:
            path = self.task.starting_weights(storage.join(self.out, WEIGHTS_CACHE))
            if path is not None:
                load_keyframe_weights(model, path)
            else:
                log.warning(
                    "%s has random weights (model.pretrained=none): its features say little.",
                    self.task.settings.model.backbone,
                )
        return {key: value.detach().clone() for key, value in model.state_dict().items()}

    def _outlining(self, first: RunConfig, known: NDArray[np.bool_], shown: str) -> Outcome:
        """A segmentation of the known patients' frames; the same patients have the same one."""
        labels = encode_labels(self.task, self.shards.samples)[EF_TARGET.name]
        split = training_within(self.shards.samples, labels, known, self.task.split)
        name = run_name(first, self.shards, split)
        log.info("The backbone of %s is trained on outlines as %s.", shown, name)
        place = storage.join(self.out, ENCODERS)
        return pretrain(first, self.shards, split, place, name, progress=self.board)

    def features(self, networks: Sequence[Mapping[str, Tensor]]) -> list[Features]:
        """Of all frames that take part, by each network."""
        return compute_features(
            self.task,
            networks,
            self.shards,
            self.rows,
            self.out,
            precision=self.run.train.precision,
        )


def _of_studies(studies: Studies, shards: ShardSet, split: pd.Series[str]) -> NDArray[np.object_]:
    """The split of every study, (S,)."""
    by_patient = split.groupby(shards.samples["patient_id"]).first()
    return by_patient.reindex(studies.table["patient_id"]).to_numpy(object)


def _development(studies: Studies, features: Features, part: Division) -> Development:
    table = studies.table[part.development]
    return Development(
        features=studies.features(features, part.development),
        labels=table["label"].to_numpy(float),
        patients=table["patient_id"].to_numpy(object),
        validation=part.validation,
    )


def _processes(
    run: RunConfig,
    studies: Studies,
    parts: Mapping[str, tuple[Division, Features]],
    out: str,
) -> dict[str, dict[str, GaussianProcessConfig]]:
    """Settings of the Gaussian process for each division and input, searched where wanted."""
    task = run.task
    assert isinstance(task, KeyframeEfTask)
    heads = task.settings.heads
    jobs = {}
    for name, (part, features) in parts.items():
        development = _development(studies, features, part)
        together = heads.together and len(development.features) > 1
        inputs = by_input(development.features, tuple(development.features), together=together)
        for frame, values in inputs.items():
            there = np.isfinite(values).all(axis=1)
            jobs[f"{name}/{frame}"] = Job(
                values[there], development.labels[there], development.patients[there]
            )
    base = replace(heads.gp, seed=run.train.seed)
    chosen = search_kernels(jobs, base, heads.search if "gp" in heads.members else 0, out)
    found: dict[str, dict[str, GaussianProcessConfig]] = {name: {} for name in parts}
    for job, settings in chosen.items():
        name, _, frame = job.rpartition("/")
        found[name][frame] = settings
    return found


def _require_patients(studies: Studies, development: NDArray[np.bool_], where: str) -> None:
    """Refuse frames that too few patients have for heads to be fitted to them."""
    patients = studies.table["patient_id"].to_numpy(object)
    every = np.all([rows >= 0 for rows in studies.rows.values()], axis=0)
    inputs = {frame: rows >= 0 for frame, rows in studies.rows.items()} | {"together": every}
    for frame, there in inputs.items():
        count = len(set(patients[development & there]))
        if count < LEAST_PATIENTS:
            others = [name for name in studies.rows if name != frame]
            advice = f"frames=[{','.join(others)}], or " if frame != "together" and others else ""
            raise ValueError(
                f"{where}: heads on {frame} are fitted to {count} patients; at least "
                f"{LEAST_PATIENTS} are needed: {advice}more patients."
            )
