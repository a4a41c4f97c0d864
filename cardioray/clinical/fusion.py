"""One answer a study from what a network for each view says; views may be missing.

A yes/no answer is fused by logistic regression on the views' logits, as the study of CMR findings
from echo does (doi:10.1016/j.echo.2025.05.016), a number by ridge regression on the views' values.
Each view has a term for being there at all, so that a missing one is no zero.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cardioray.config import config

Floats = NDArray[np.float64]

_EDGE = 1e-6
# Ridge penalty on standardised inputs: a study says little about single views.
_PENALTY = 1.0


@config
class ViewFusion:
    """Fitted weights of the views.

    Attributes:
        kind: "logistic" for probabilities, "linear" for numbers.
        views: names, in the order of all other fields.
        centres: what is taken off each view's logit or value.
        scales: what it is divided by then.
        weights: of each view's centred logit or value.
        present: added where a view is there.
        intercept: added always.
    """

    kind: Literal["logistic", "linear"]
    views: tuple[str, ...] = Field(min_length=1)
    centres: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    present: tuple[float, ...]
    intercept: float

    def __post_init__(self) -> None:
        lengths = {
            len(values)
            for values in (self.views, self.centres, self.scales, self.weights, self.present)
        }
        if len(lengths) != 1:
            raise ValueError("fusion: every view needs a centre, a scale, a weight and a term.")
        if any(scale <= 0 for scale in self.scales):
            raise ValueError("fusion: scales must be above 0.")

    def apply(self, scores: Floats) -> Floats:
        """Fused scores.

        Args:
            scores: (N, V) probabilities or values, NaN where a view is missing.

        Returns:
            (N,); NaN where every view is missing.
        """
        inputs, there = _inputs(self.kind, scores, self.centres, self.scales)
        raw = inputs @ np.array(self.weights) + there @ np.array(self.present) + self.intercept
        fused = 1 / (1 + np.exp(-raw)) if self.kind == "logistic" else raw
        return np.where(there.any(axis=1), fused, np.nan)


@config
class StudyFusion:
    """How the cines of a study become one answer.

    Attributes:
        views: those that have a network.
        least_probability: of its likeliest view that a cine needs to take part.
        targets: by target, the weights of the views.
    """

    views: tuple[str, ...] = Field(min_length=1)
    least_probability: float = Field(ge=0, le=1)
    targets: dict[str, ViewFusion]

    def __post_init__(self) -> None:
        for name, fusion in self.targets.items():
            if fusion.views != self.views:
                raise ValueError(f"fusion of {name!r}: its views are not {', '.join(self.views)}.")


def fit_fusion(
    kind: Literal["logistic", "linear"], views: tuple[str, ...], scores: Floats, labels: Floats
) -> ViewFusion:
    """Fit the weights of the views to studies that their networks have not learned from.

    No weight is below 0: each network has learned the question itself, so that on the few studies
    there are, a weight against what one says is chance. Such views are left out, worst first.

    Args:
        kind: see `ViewFusion`.
        views: names.
        scores: (N, V) probabilities or values, NaN where a view is missing.
        labels: (N,) 0 or 1, or values.

    Raises:
        ValueError: when a view is in no study, or a yes/no label has one class only.
    """
    there = np.isfinite(scores)
    for number, view in enumerate(views):
        if not there[:, number].any():
            raise ValueError(f"No study to fuse has the view {view}.")
    values = _logits(scores) if kind == "logistic" else scores
    centres = np.nanmean(values, axis=0)
    scales = np.maximum(np.nanstd(values, axis=0), 1e-3)
    inputs, present = _inputs(kind, scores, tuple(centres), tuple(scales))
    # A view that every study has needs no term of its own: the intercept is one.
    varying = present.std(axis=0) > 0
    if kind == "logistic" and len(np.unique(labels)) < 2:
        raise ValueError("Fusion needs studies of both classes.")
    taken = np.ones(len(views), bool)
    while True:
        features = np.concatenate([inputs * taken, present[:, varying]], axis=1)
        coefficients, intercept = _penalised(kind, features, labels)
        weights = coefficients[: len(views)] * taken
        if (weights >= 0).all():
            break
        taken[np.argmin(weights)] = False
    terms = np.zeros(len(views))
    terms[varying] = coefficients[len(views) :]
    return ViewFusion(
        kind=kind,
        views=views,
        centres=tuple(map(float, centres)),
        scales=tuple(map(float, scales)),
        weights=tuple(map(float, weights)),
        present=tuple(map(float, terms)),
        intercept=intercept,
    )


def _penalised(kind: str, features: Floats, labels: Floats) -> tuple[Floats, float]:
    """Coefficients and intercept of a logistic or ridge regression."""
    from sklearn.linear_model import LogisticRegression, Ridge  # an answer needs no sklearn

    if kind == "logistic":
        fitted = LogisticRegression(C=1 / _PENALTY).fit(features, labels.astype(int))
        return np.asarray(fitted.coef_[0]), float(fitted.intercept_[0])
    ridge = Ridge(alpha=_PENALTY).fit(features, labels)
    return np.asarray(ridge.coef_), float(ridge.intercept_)


def fuse_out_of_fold(
    kind: Literal["logistic", "linear"],
    views: tuple[str, ...],
    scores: Floats,
    labels: Floats,
    patients: NDArray[np.object_],
    *,
    folds: int = 5,
) -> Floats:
    """Fused scores of studies, each by weights fitted to other patients.

    For thresholds and calibration, which would be too good on the studies that weights came from.

    Raises:
        ValueError: when there are fewer than two patients, or a fold lacks a view or a class.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    count = min(folds, len(np.unique(patients)))
    if count < 2:
        raise ValueError("Fusion out of fold needs at least two patients.")
    if kind == "logistic":
        splitter = StratifiedGroupKFold(count, shuffle=True, random_state=0)
        divided = splitter.split(scores, labels.astype(int), patients)
    else:
        divided = GroupKFold(count).split(scores, labels, patients)
    fused = np.full(len(scores), np.nan)
    for fitted, held in divided:
        fused[held] = fit_fusion(kind, views, scores[fitted], labels[fitted]).apply(scores[held])
    return fused


def _inputs(
    kind: str, scores: Floats, centres: tuple[float, ...], scales: tuple[float, ...]
) -> tuple[Floats, Floats]:
    """Standardised logits or values with 0 for what is missing, and what is there as 0 or 1."""
    there = np.isfinite(scores)
    values = _logits(scores) if kind == "logistic" else scores
    centred = (values - np.array(centres)) / np.array(scales)
    return np.where(there, centred, 0.0), there.astype(float)


def _logits(probabilities: Floats) -> Floats:
    clipped = np.clip(probabilities, _EDGE, 1 - _EDGE)
    return np.asarray(np.log(clipped / (1 - clipped)))
