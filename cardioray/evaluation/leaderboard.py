"""The leaderboard: models compared on out-of-fold predictions, with intervals and paired tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from cardioray.evaluation.figures import Resampling
from cardioray.evaluation.intervals import (
    Interval,
    PairedTest,
    delong_test,
    holm,
    paired_patient_bootstrap,
    patient_bootstrap,
)
from cardioray.evaluation.leaderboard_page import Picture, write_leaderboard
from cardioray.evaluation.metrics import (
    LOWER_IS_BETTER,
    Floats,
    auc_within_groups,
    regression_statistics,
)
from cardioray.evaluation.out_of_fold import FittingSettings, OutOfFold, decide_out_of_fold
from cardioray.evaluation.report import Evaluation, evaluate_decisions
from cardioray.targets import BinaryTarget, RegressionTarget

_STUDY = ["fold", "patient_id", "study_id"]


@dataclass(frozen=True, kw_only=True)
class LeaderboardEntry:
    """One model and what is known about it.

    Attributes:
        name: of the backbone or variant, unique on the leaderboard.
        predictions: out-of-fold rows of split "test", one fold or several pooled, and where there
            are any the rows of split "calibration" of the same folds.
        validation_score: the figure on validation patients by which the winner is chosen.
        standing: the same as a number of which more is better, and in which equal scores may
            differ; None for the score itself.
        stopped_early: whether it was given up before the end, so that it has fewer epochs or folds.
        epochs: epochs trained.
        folds: folds done.
        parameters_millions: of the model.
        gflops: of one forward pass, in 1e9 multiply-adds times two.
        train_seconds: wall time of all its trainings.
        latency_ms: CPU latency of one picture.
        bundle: path of its bundle, relative to the leaderboard's folder.
    """

    name: str
    predictions: pd.DataFrame
    validation_score: float
    standing: float | None = None
    stopped_early: bool = False
    epochs: int | None = None
    folds: int | None = None
    parameters_millions: float | None = None
    gflops: float | None = None
    train_seconds: float | None = None
    latency_ms: float | None = None
    bundle: str | None = None


@dataclass(frozen=True, kw_only=True)
class LeaderboardRow:
    """One line of a leaderboard.

    Attributes:
        entry: the model.
        evaluation: its figures on out-of-fold test rows.
        frames: these rows, with the decision made for each.
        studies: the same, one row per study.
        auc_within_folds: AUC that compares studies of the same fold only; None where there is one
            fold or the target is a number.
        thresholds_from: which patients the operating points were fitted on.
        versus_winner: paired test of the winner against this model; None for the winner.
        p_holm: p-value of that test, corrected for the number of models (Holm 1979).
    """

    entry: LeaderboardEntry
    evaluation: Evaluation
    frames: pd.DataFrame
    studies: pd.DataFrame
    auc_within_folds: Interval | None
    thresholds_from: str
    versus_winner: PairedTest | None
    p_holm: float

    @property
    def marks(self) -> str:
        """What a reader has to see at a glance."""
        marks = [] if self.versus_winner else ["winner"]
        if self.entry.stopped_early:
            marks.append("stopped early")
        elif self.versus_winner and math.isnan(self.p_holm):
            marks.append("not tested against the winner")
        elif self.versus_winner and self.p_holm >= 0.05:
            marks.append("not distinguishable from the winner")
        return ", ".join(marks)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the predictions, ready for JSON."""
        entry = {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in vars(self.entry).items()
            if name != "predictions"
        }
        return {
            **entry,
            "marks": self.marks,
            "thresholds_from": self.thresholds_from,
            "auc_within_folds": self.auc_within_folds and self.auc_within_folds.to_dict(),
            "versus_winner": self.versus_winner and self.versus_winner.to_dict(),
            "p_holm": None if math.isnan(self.p_holm) else self.p_holm,
            "evaluation": self.evaluation.to_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """Models in the order of the score that chose the winner.

    Attributes:
        target: what was predicted.
        validation_metric: name of the figure behind `validation_score`.
        rows: finished models by validation score, the winner first; then the stopped ones.
        resampling: how intervals were made.
        failed: models that could not be scored, and why.
    """

    target: BinaryTarget | RegressionTarget
    validation_metric: str
    rows: tuple[LeaderboardRow, ...]
    resampling: Resampling
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def winner(self) -> LeaderboardEntry:
        """The model with the best validation score."""
        return self.rows[0].entry

    def with_bundles(self, bundles: Mapping[str, str]) -> Leaderboard:
        """The same leaderboard, with the bundles of some models by their name."""
        rows = tuple(
            replace(row, entry=replace(row.entry, bundle=bundles.get(row.entry.name)))
            for row in self.rows
        )
        return replace(self, rows=rows)

    @property
    def headline(self) -> str:
        """The figure that models are tested on: "auc" or "mae"."""
        return "auc" if isinstance(self.target, BinaryTarget) else "mae"

    @property
    def table(self) -> pd.DataFrame:
        """One row a model: figures per study with `_low` and `_high`, then `frame_` ones."""
        return pd.DataFrame([_flat(rank, row) for rank, row in enumerate(self.rows, 1)])

    def write(self, folder: str, pictures: Sequence[Picture] = ()) -> list[str]:
        """Write leaderboard.csv, .json and .html, and the plots under plots/.

        Args:
            folder: local or s3:// folder, made where it is absent.
            pictures: further ones for the page and the folder (learning curves, predictions).

        Returns:
            Paths of the files.
        """
        return write_leaderboard(self, folder, pictures)

    def to_dict(self) -> dict[str, Any]:
        """The content of leaderboard.json."""
        return {
            "target": self.target.name,
            "kind": self.target.kind,
            "validation_metric": self.validation_metric,
            "winner": self.winner.name,
            "rows": [row.to_dict() for row in self.rows],
            "failed": dict(self.failed),
        }


def build_leaderboard(
    entries: Sequence[LeaderboardEntry],
    target: BinaryTarget | RegressionTarget,
    *,
    validation_metric: str = "auc",
    rule: str = "youden",
    calibration: str = "platt",
    alpha: float = 0.1,
    seed: int = 0,
    num_resamples: int = 2000,
) -> Leaderboard:
    """Score models and test each against the winner.

    The winner is the model with the best validation score among those that were not stopped
    early; test rows play no part in the choice. Calibration, threshold and conformal set of a
    test row come from the calibration patients of its fold; without enough of those they are
    cross-fitted over the test patients, never on the patient that is decided.

    Args:
        entries: at least one, names unique.
        target: what the label means.
        validation_metric: name of the validation score; decides whether less is better.
        rule: threshold rule, binary targets only.
        calibration: calibration method, binary targets only.
        alpha: of the conformal sets.
        seed: of bootstrap and cross-fitting.
        num_resamples: of the bootstrap.

    Raises:
        ValueError: when there is no entry, a name comes twice, or a table is at fault; the text
            names the entry.
    """
    names = [entry.name for entry in entries]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"A leaderboard needs models of different names, given {names}.")
    unscored = [entry.name for entry in entries if not math.isfinite(entry.validation_score)]
    if unscored:
        raise ValueError(
            f"{', '.join(unscored)}: the validation score is no number; a fold without validation "
            "patients of both classes cannot choose a winner."
        )
    resampling = Resampling(num_resamples, seed)
    settings = FittingSettings(rule, calibration, alpha, seed)
    sign = -1 if validation_metric in LOWER_IS_BETTER else 1

    def place(entry: LeaderboardEntry) -> tuple[bool, float, str]:
        standing = entry.standing
        if standing is None:
            standing = sign * entry.validation_score
        return (entry.stopped_early, -standing, entry.name)

    ordered = sorted(entries, key=place)
    decided = [_decided(entry, target, settings) for entry in ordered]
    tests = [None] + [
        _compare(decided[0].studies, other.studies, target, resampling) for other in decided[1:]
    ]
    corrected = holm([test.p_value if test else math.nan for test in tests])
    rows = tuple(
        LeaderboardRow(
            entry=entry,
            evaluation=evaluate_decisions(each.frames, each.studies, target, resampling),
            frames=each.frames,
            studies=each.studies,
            auc_within_folds=_auc_within_folds(each.studies, target, resampling),
            thresholds_from=each.thresholds_from,
            versus_winner=test,
            p_holm=p_holm,
        )
        for entry, each, test, p_holm in zip(ordered, decided, tests, corrected, strict=True)
    )
    return Leaderboard(
        target=target, validation_metric=validation_metric, rows=rows, resampling=resampling
    )


def _decided(
    entry: LeaderboardEntry,
    target: BinaryTarget | RegressionTarget,
    settings: FittingSettings,
) -> OutOfFold:
    try:
        return decide_out_of_fold(entry.predictions, target, settings)
    except ValueError as error:
        raise ValueError(f"{entry.name}: {error}") from None


def _compare(
    winner: pd.DataFrame,
    other: pd.DataFrame,
    target: BinaryTarget | RegressionTarget,
    resampling: Resampling,
) -> PairedTest:
    """Test on the studies both models were scored on; DeLong where each patient has one.

    Scores of networks of different folds are not ranked together: a shift between the folds of one
    model would pass for a difference between the models.
    """
    said = "score" if isinstance(target, BinaryTarget) else "value"
    both = winner[[*_STUDY, "label", said]].merge(
        other[[*_STUDY, said]], on=_STUDY, suffixes=("_winner", "_other")
    )
    if both.empty:
        nothing = Interval(math.nan, math.nan, math.nan)
        return PairedTest(nothing, math.nan, "none (no study in common)")
    labels = both["label"].to_numpy()
    first, second = both[f"{said}_winner"].to_numpy(), both[f"{said}_other"].to_numpy()
    binary = isinstance(target, BinaryTarget)
    folds = both["fold"].to_numpy()
    groups = folds if len(np.unique(folds)) > 1 else None
    if binary and both["patient_id"].is_unique:
        return delong_test(labels, first, second, resampling.confidence, groups=groups)

    def figure(scores: Floats, weights: Floats) -> dict[str, Floats]:
        if binary:
            return {"auc": auc_within_groups(labels, scores, folds, weights)}
        return {"mae": regression_statistics(labels, scores, weights)["mae"]}

    tests = paired_patient_bootstrap(
        both,
        lambda weights: figure(first, weights),
        lambda weights: figure(second, weights),
        num_resamples=resampling.num_resamples,
        seed=resampling.seed,
        confidence=resampling.confidence,
    )
    return tests["auc" if binary else "mae"]


def _auc_within_folds(
    studies: pd.DataFrame, target: BinaryTarget | RegressionTarget, resampling: Resampling
) -> Interval | None:
    if isinstance(target, RegressionTarget) or studies["fold"].nunique() < 2:
        return None
    labels, scores = studies["label"].to_numpy(), studies["score"].to_numpy()
    folds = studies["fold"].to_numpy()
    return patient_bootstrap(
        studies,
        lambda weights: {"auc": auc_within_groups(labels, scores, folds, weights)},
        num_resamples=resampling.num_resamples,
        seed=resampling.seed,
        confidence=resampling.confidence,
    )["auc"]


def _flat(rank: int, row: LeaderboardRow) -> dict[str, Any]:
    """A row of the table: identity, figures per study, figures per frame, cost."""
    entry, evaluation, test = row.entry, row.evaluation, row.versus_winner
    nothing = Interval(math.nan, math.nan, math.nan)
    flat: dict[str, Any] = {
        "rank": rank,
        "name": entry.name,
        "marks": row.marks,
        "validation_score": entry.validation_score,
        "patients": evaluation.patients,
        "studies": evaluation.studies,
        "frames": evaluation.frames,
    }
    figures = dict(evaluation.per_study.values) | dict(evaluation.conformal)
    if evaluation.kind == "binary":
        figures["auc_within_folds"] = row.auc_within_folds or nothing
    per_frame = {f"frame_{name}": value for name, value in evaluation.per_frame.values.items()}
    flat |= {
        "p_vs_winner": test.p_value if test else math.nan,
        "p_holm": row.p_holm,
        "difference_vs_winner": test.difference.value if test else math.nan,
        "test_vs_winner": test.method if test else "",
    }
    for name, interval in {**figures, **per_frame}.items():
        flat |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    flat |= evaluation.per_study.counts
    flat |= {"thresholds_from": row.thresholds_from}
    details = ("stopped_early", "folds", "epochs", "parameters_millions", "gflops")
    costs = ("train_seconds", "latency_ms", "bundle")
    return flat | {name: getattr(entry, name) for name in (*details, *costs)}
