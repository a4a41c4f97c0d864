"""The heads of `keyframe-ef`: fitted to features of frames, weighed, and kept as arrays.

A member is a head on one frame ("ED/gp"), or on all of them side by side ("together/mlp").
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from cardioray.clinical.ensemble import (
    EnsembleWeights,
    SdCalibration,
    fit_ensemble,
    fit_sd_calibration,
)
from cardioray.config import config, parse, to_dict
from cardioray.models.feature_mlp import FeatureMlp
from cardioray.models.gaussian_process import GaussianProcess, GaussianProcessConfig
from cardioray.targets import BinaryTarget
from cardioray.tasks.keyframe_ef import EF_TARGET, KeyframeHeads

Floats = NDArray[np.float64]
Features = Mapping[str, NDArray[np.floating[Any]]]

TOGETHER = "together"
GP, MLP, MLP_CLASS = "gp", "mlp", "mlp_class"
# Perceptrons of a fold learn from some patients, stop by others, and are asked about a third part.
LEAST_FOLDS = 3
# Fewer patients of a class tell nothing of where to draw the line.
_LEAST_OF_CLASS = 2
# An answer surer than this is believed by nobody who has traced a ventricle twice: between
# observers, the EF by discs differs with an SD of 3 to 8 % (R. M. Lang et al., J. Am. Soc.
# Echocardiogr. 28:1-39, 2015).
_LEAST_SD = 1.0


@dataclass(frozen=True, eq=False)
class Answers:
    """What heads say of S studies.

    Attributes:
        members: names of the heads.
        values: numbers of the members, (S, V); NaN of a head for the class, and where frames of a
            study are missing.
        sds: their standard deviations, calibrated, (S, V).
        probabilities: of the class by each member, (S, V); NaN where frames are missing.
        value: the number by the ensemble, (S,).
        sd: its standard deviation, (S,).
        probability: of the class by the ensemble, (S,).
    """

    members: tuple[str, ...]
    values: Floats
    sds: Floats
    probabilities: Floats
    value: Floats
    sd: Floats
    probability: Floats


@config
class HeadsRecord:
    """What of fitted heads is no array.

    Attributes:
        frames: the frames that heads are on.
        together: whether there are heads on all of them.
        members: names of the heads.
        cutoff: of the class, in percent.
        operator: of the class.
        sds: calibration of the SD of each member that tells a number.
        number: weights of the members for the number.
        number_sd: calibration of the SD of the ensemble.
        question: weights of the members for the class.
    """

    frames: tuple[str, ...]
    together: bool
    members: tuple[str, ...]
    cutoff: float
    operator: str
    sds: dict[str, SdCalibration]
    number: EnsembleWeights
    number_sd: SdCalibration
    question: EnsembleWeights


@dataclass(frozen=True, eq=False)
class FittedHeads:
    """Heads with their weights and calibrations.

    Attributes:
        record: what is no array.
        heads: the fitted heads by name.
    """

    record: HeadsRecord
    heads: Mapping[str, GaussianProcess | FeatureMlp]

    def answer(self, features: Features) -> Answers:
        """What the heads say of some studies.

        Args:
            features: by frame (S, D), with rows of NaN where a study has no such frame.

        Raises:
            ValueError: when a study has none of the frames.
        """
        inputs = by_input(features, self.record.frames, together=self.record.together)
        raw = _said(self.heads, inputs, self.record.cutoff, self.record.operator)
        return _weighed(self.record, raw)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """All heads, for safetensors."""
        return {
            f"{name}:{key}": value
            for name, head in self.heads.items()
            for key, value in head.to_arrays().items()
        }

    def to_json(self) -> str:
        """The record."""
        return json.dumps(to_dict(self.record), indent=2)

    @classmethod
    def read(cls, record: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> FittedHeads:
        """What `to_json` and `to_arrays` gave.

        Raises:
            ValueError: when they do not belong together, or a key is unknown.
        """
        parsed = parse(HeadsRecord, record)
        heads: dict[str, GaussianProcess | FeatureMlp] = {}
        for name in parsed.members:
            own = {
                key.removeprefix(f"{name}:"): value
                for key, value in arrays.items()
                if key.startswith(f"{name}:")
            }
            kind = GaussianProcess if name.endswith(f"/{GP}") else FeatureMlp
            heads[name] = kind.from_arrays(own)
        return cls(parsed, heads)


@dataclass(frozen=True, eq=False)
class _Raw:
    """As `Answers`, before calibration and weights."""

    members: tuple[str, ...]
    values: Floats
    sds: Floats
    probabilities: Floats


@dataclass(frozen=True, eq=False)
class Development:
    """The studies that heads are fitted to.

    Attributes:
        features: by frame (S, D), with rows of NaN where a study has no such frame.
        labels: the number, (S,).
        patients: whose studies they are, (S,).
        validation: which of them stop the training of perceptrons, (S,).
    """

    features: Features
    labels: Floats
    patients: NDArray[np.object_]
    validation: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class InnerFold:
    """Development studies apart, to learn what heads say of patients they have not seen.

    Attributes:
        fitted: rows of the development studies that heads are fitted to.
        held: rows that they then answer for.
        features: of all development studies, by frame (S, D), from a backbone that has not
            learned from the held-out patients either.
    """

    fitted: NDArray[np.int64]
    held: NDArray[np.int64]
    features: Features


@dataclass(frozen=True, eq=False)
class Fit:
    """Fitted heads, and what heads like them say of the studies they are fitted to.

    Attributes:
        heads: fitted to all development studies.
        out_of_fold: answers for the development studies, each by heads of other patients, weighed
            and calibrated as the heads are.
    """

    heads: FittedHeads
    out_of_fold: Answers


def fit_heads(
    settings: KeyframeHeads,
    target: BinaryTarget,
    development: Development,
    processes: Mapping[str, GaussianProcessConfig],
    folds: Sequence[InnerFold],
) -> Fit:
    """Fit all heads, weigh them and calibrate their SD.

    Weights and calibration come from predictions that heads of other development patients made,
    fold by fold; the heads that are kept are fitted to all of them. Perceptrons keep patients
    apart, by whom their training stops.

    Args:
        settings: which heads.
        target: the class.
        development: the studies.
        processes: settings of the Gaussian process for each input ("ED", "together").
        folds: at least three, which hold out every development study once; see `require_classes`.

    Raises:
        ValueError: for features or labels that a head cannot be fitted to.
    """
    assert len(folds) >= LEAST_FOLDS
    frames = tuple(development.features)
    together = settings.together and len(frames) > 1
    asked = _Asked(settings, target, development, processes, frames, together)
    everyone = np.ones(len(development.labels), bool)
    heads = _fit_all(
        asked,
        development.features,
        everyone & ~development.validation,
        development.validation,
        everyone,
    )
    pieces: list[tuple[NDArray[np.int64], _Raw]] = []
    for number, fold in enumerate(folds):
        training, stopping = _inner(folds, number, len(everyone))
        trained = _fit_all(asked, fold.features, training & ~stopping, stopping, training)
        inputs = by_input(fold.features, frames, together=together)
        own = {name: values[fold.held] for name, values in inputs.items()}
        pieces.append((fold.held, _said(trained, own, target.cutoff or 0.0, target.operator)))
    raw = _joined(pieces, len(everyone))
    record = _weigh(frames, together, target, raw, development.labels)
    return Fit(FittedHeads(record, heads), _weighed(record, raw))


def _inner(
    folds: Sequence[InnerFold], number: int, count: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Who heads of a fold are fitted to, and by whom of them perceptrons stop: the next fold."""
    training, stopping = np.zeros((2, count), bool)
    training[folds[number].fitted] = True
    stopping[folds[(number + 1) % len(folds)].held] = True
    return training, stopping & training


def require_classes(
    settings: KeyframeHeads,
    target: BinaryTarget,
    labels: Floats,
    patients: NDArray[np.object_],
    validation: NDArray[np.bool_],
    folds: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> None:
    """Refuse before anything is trained a class that is too rare to be learned or decided.

    Args:
        settings: which heads.
        target: the class.
        labels: the number of each development study, (S,).
        patients: whose studies they are, (S,).
        validation: which of them stop the training of perceptrons, (S,).
        folds: rows fitted to and rows held out.

    Raises:
        ValueError: says how many patients there are of each class, and what can be done.
    """
    classes = classes_of(labels, target)
    counts = [len(set(patients[classes == code])) for code in (0, 1)]
    shown = " and ".join(
        f"{count} of {name!r}" for count, name in zip(counts, target.classes, strict=True)
    )
    if min(counts) < _LEAST_OF_CLASS:
        raise ValueError(
            f"a threshold for the class needs {_LEAST_OF_CLASS} development patients of each "
            f"class, and there are {shown}: another cut_off.value, or more patients."
        )
    if MLP_CLASS not in settings.members:
        return
    learned = [~validation]
    for number, (fitted, _) in enumerate(folds):
        training = np.zeros(len(labels), bool)
        training[fitted] = True
        training[folds[(number + 1) % len(folds)][1]] = False
        learned.append(training)
    if any(len(np.unique(classes[rows])) < 2 for rows in learned):
        raise ValueError(
            "perceptrons for the class need patients of both classes in every fold that they "
            f"learn from, and there are {shown}: another cut_off.value, more patients, or "
            "heads.members=[gp,mlp]."
        )


def by_input(features: Features, frames: Sequence[str], *, together: bool) -> dict[str, Floats]:
    """Features of each frame and, where wanted, of all of them side by side, (S, D) each."""
    inputs = {frame: np.asarray(features[frame], float) for frame in frames}
    if together:
        inputs[TOGETHER] = np.concatenate([inputs[frame] for frame in frames], axis=1)
    return inputs


@dataclass(frozen=True, eq=False)
class _Asked:
    """What every fit of all heads has in common."""

    settings: KeyframeHeads
    target: BinaryTarget
    development: Development
    processes: Mapping[str, GaussianProcessConfig]
    frames: tuple[str, ...]
    together: bool


def _fit_all(
    asked: _Asked,
    features: Features,
    training: NDArray[np.bool_],
    stopping: NDArray[np.bool_],
    everyone: NDArray[np.bool_],
) -> dict[str, GaussianProcess | FeatureMlp]:
    """Every head: processes on everyone, perceptrons on those in training."""
    labels = asked.development.labels
    classes = classes_of(labels, asked.target)
    heads: dict[str, GaussianProcess | FeatureMlp] = {}
    inputs = by_input(features, asked.frames, together=asked.together)
    for name, values in inputs.items():
        there = np.isfinite(values).all(axis=1)
        learned, stopped = training & there, stopping & there
        for kind in asked.settings.members:
            if kind == GP:
                rows = everyone & there
                heads[f"{name}/{kind}"] = GaussianProcess.fit(
                    values[rows], labels[rows], asked.processes[name]
                )
                continue
            wanted = classes if kind == MLP_CLASS else labels
            heads[f"{name}/{kind}"] = FeatureMlp.fit(
                "classification" if kind == MLP_CLASS else "regression",
                values[learned],
                wanted[learned],
                values[stopped],
                wanted[stopped],
                asked.settings.mlp,
            )
    return heads


def classes_of(labels: Floats, target: BinaryTarget) -> Floats:
    """0 or 1 for each number, (S,)."""
    assert target.value_column is not None
    return target.encode(pd.DataFrame({target.value_column: labels})).astype(float)


def _said(
    heads: Mapping[str, GaussianProcess | FeatureMlp],
    inputs: Mapping[str, Floats],
    cutoff: float,
    operator: str,
) -> _Raw:
    """What each head says of the studies that have its frames."""
    count = len(next(iter(inputs.values())))
    values, sds, probabilities = np.full((3, count, len(heads)), np.nan)
    for place, (name, head) in enumerate(heads.items()):
        frame, _, kind = name.rpartition("/")
        there = np.isfinite(inputs[frame]).all(axis=1)
        if not there.any():
            continue
        own = inputs[frame][there]
        if kind == MLP_CLASS:
            assert isinstance(head, FeatureMlp)
            probabilities[there, place] = head.predict(own)
            continue
        if isinstance(head, GaussianProcess):
            values[there, place], sds[there, place] = head.predict(own)
        else:
            values[there, place] = head.predict(own)
            sds[there, place] = head.residual_sd
        probabilities[there, place] = _probability(
            values[there, place], sds[there, place], cutoff, operator
        )
    return _Raw(tuple(heads), values, sds, probabilities)


def _probability(values: Floats, sds: Floats, cutoff: float, operator: str) -> Floats:
    """Probability that a number is on the side of the cut-off that the class is."""
    below = norm.cdf((cutoff - values) / np.maximum(sds, _LEAST_SD))
    return np.asarray(below if operator in ("<", "<=") else 1 - below)


def _joined(pieces: Sequence[tuple[NDArray[np.int64], _Raw]], count: int) -> _Raw:
    members = pieces[0][1].members
    values, sds, probabilities = np.full((3, count, len(members)), np.nan)
    for held, raw in pieces:
        values[held], sds[held], probabilities[held] = raw.values, raw.sds, raw.probabilities
    return _Raw(members, values, sds, probabilities)


def _weigh(
    frames: tuple[str, ...], together: bool, target: BinaryTarget, raw: _Raw, labels: Floats
) -> HeadsRecord:
    """Weights and calibrations from predictions made out of fold."""
    numbers = [i for i, name in enumerate(raw.members) if not name.endswith(f"/{MLP_CLASS}")]
    sds = {}
    spread = raw.sds.copy()
    for i in numbers:
        known = np.isfinite(raw.values[:, i])
        fitted = fit_sd_calibration(
            labels[known], raw.values[known, i], raw.sds[known, i], floor=_LEAST_SD
        )
        sds[raw.members[i]] = fitted
        spread[known, i] = fitted.apply(raw.sds[known, i])
    number = fit_ensemble(
        "squared_error", tuple(raw.members[i] for i in numbers), raw.values[:, numbers], labels
    )
    mean, sd = number.mixture(raw.values[:, numbers], spread[:, numbers])
    question = fit_ensemble("log_loss", raw.members, raw.probabilities, classes_of(labels, target))
    assert target.cutoff is not None
    return HeadsRecord(
        frames=frames,
        together=together,
        members=raw.members,
        cutoff=target.cutoff,
        operator=target.operator,
        sds=sds,
        number=number,
        number_sd=fit_sd_calibration(labels, mean, sd, floor=_LEAST_SD),
        question=question,
    )


def _weighed(record: HeadsRecord, raw: _Raw) -> Answers:
    """Calibrated members, and the ensemble of them."""
    sds = raw.sds.copy()
    for place, name in enumerate(raw.members):
        if name in record.sds:
            sds[:, place] = record.sds[name].apply(raw.sds[:, place])
    numbers = [raw.members.index(name) for name in record.number.members]
    if not np.isfinite(raw.values[:, numbers]).any(axis=1).all():
        raise ValueError(
            f"a study has none of the frames {', '.join(record.frames)} that heads were fitted to."
        )
    value, sd = record.number.mixture(raw.values[:, numbers], sds[:, numbers])
    return Answers(
        members=raw.members,
        values=raw.values,
        sds=sds,
        probabilities=raw.probabilities,
        # Every use of the answer, scored or served, sees the same number.
        value=np.clip(value, EF_TARGET.low, EF_TARGET.high),
        sd=record.number_sd.apply(sd),
        probability=record.question.mean(raw.probabilities),
    )
