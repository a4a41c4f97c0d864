"""The heads of `keyframe-ef`: fitted to features of frames, weighed, and kept as arrays.

A member is a head on one frame ("ED/gp"), or on all of them side by side ("together/mlp").
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from cardioray.clinical.calibration import patient_folds
from cardioray.clinical.ensemble import (
    EnsembleWeights,
    SdCalibration,
    fit_ensemble,
    fit_sd_calibration,
)
from cardioray.config import config, parse, replace, to_dict
from cardioray.models.feature_mlp import FeatureMlp
from cardioray.models.gaussian_process import GaussianProcess, GaussianProcessConfig
from cardioray.targets import BinaryTarget
from cardioray.tasks.keyframe_ef import KeyframeHeads

Floats = NDArray[np.float64]
Features = Mapping[str, NDArray[np.floating[Any]]]

TOGETHER = "together"
GP, MLP, MLP_CLASS = "gp", "mlp", "mlp_class"
# The weighted answer of all members.
ENSEMBLE = "ensemble"
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
    *,
    seed: int = 0,
) -> Fit:
    """Fit all heads, weigh them and calibrate their SD.

    Weights and calibration come from predictions that heads of other development patients made,
    `settings.inner_folds` times; the heads that are kept are fitted to all of them. Perceptrons
    keep the validation patients apart, by whom their training stops.

    Args:
        settings: which heads.
        target: the class.
        development: the studies.
        processes: settings of the Gaussian process for each input ("ED", "together").
        seed: of the folds.

    Raises:
        ValueError: when there are too few patients of a class for a perceptron.
    """
    classes = _classes(development.labels, target) if MLP_CLASS in settings.members else None
    if classes is not None:
        _require_both_classes(classes, development.patients, target, settings.inner_folds)
    frames = tuple(development.features)
    together = settings.together and len(frames) > 1
    inputs = by_input(development.features, frames, together=together)
    asked = _Asked(settings, target, inputs, development, processes)
    everyone = np.ones(len(development.labels), bool)
    heads = _fit_all(asked, everyone & ~development.validation, development.validation, everyone)
    folds = list(
        patient_folds(classes, development.patients, num_folds=settings.inner_folds, seed=seed)
    )
    pieces: list[tuple[NDArray[np.int64], _Raw]] = []
    for number, (fitted, held) in enumerate(folds):
        training, stopping = np.zeros((2, len(everyone)), bool)
        training[fitted] = True
        # Perceptrons stop by the patients that the next fold holds out.
        stopping[folds[(number + 1) % len(folds)][1]] = True
        stopping &= training
        trained = _fit_all(asked, training & ~stopping, stopping, training)
        own = {name: values[held] for name, values in inputs.items()}
        pieces.append((held, _said(trained, own, target.cutoff or 0.0, target.operator)))
    raw = _joined(pieces, len(everyone))
    record = _weigh(frames, together, target, raw, development.labels)
    return Fit(FittedHeads(record, heads), _weighed(record, raw))


def _require_both_classes(
    classes: Floats, patients: NDArray[np.object_], target: BinaryTarget, folds: int
) -> None:
    """Refuse before anything is fitted a class that a fold would lack."""
    counts = [len(set(patients[classes == code])) for code in (0, 1)]
    # One of each class is held out, one stops the training, and one is learned from.
    if min(counts) < max(3, folds):
        shown = " and ".join(
            f"{count} of {name!r}" for count, name in zip(counts, target.classes, strict=True)
        )
        raise ValueError(
            f"perceptrons for the class need {max(3, folds)} development patients of each class, "
            f"and there are {shown}: another cut_off.value, fewer heads.inner_folds, more "
            "patients, or heads.members=[gp,mlp]."
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
    inputs: Mapping[str, Floats]
    development: Development
    processes: Mapping[str, GaussianProcessConfig]


def _fit_all(
    asked: _Asked,
    training: NDArray[np.bool_],
    stopping: NDArray[np.bool_],
    everyone: NDArray[np.bool_],
) -> dict[str, GaussianProcess | FeatureMlp]:
    """Every head: processes on everyone, perceptrons on those in training."""
    labels = asked.development.labels
    classes = _classes(labels, asked.target)
    heads: dict[str, GaussianProcess | FeatureMlp] = {}
    for name, values in asked.inputs.items():
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


def _classes(labels: Floats, target: BinaryTarget) -> Floats:
    import pandas as pd

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
    question = fit_ensemble("log_loss", raw.members, raw.probabilities, _classes(labels, target))
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
        value=value,
        sd=record.number_sd.apply(sd),
        probability=record.question.mean(raw.probabilities),
    )


def with_process(settings: GaussianProcessConfig, **changes: Any) -> GaussianProcessConfig:
    """A Gaussian process with other settings."""
    return replace(settings, [f"{key}={value}" for key, value in changes.items()])
