"""How a model fares in other populations: at another prevalence, and in subgroups of patients."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from cardioray.evaluation.figures import Figures, Resampling, binary_figures
from cardioray.evaluation.intervals import Interval
from cardioray.evaluation.metrics import auc_statistic
from cardioray.registry import unknown_name

Booleans = NDArray[np.bool_]

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "==": operator.eq,
}
_GROUP = re.compile(r"\s*(?P<column>[\w .-]+?)\s*(?P<sign><=|>=|==|<|>|=)\s*(?P<value>.+?)\s*")


@dataclass(frozen=True)
class PrevalenceFigures:
    """Figures of test sets that were drawn to have a prevalence.

    Attributes:
        prevalence: share of positive studies.
        size: studies of a test set.
        repeats: test sets.
        auc: mean AUC, with the interval of the mean by Student's t.
        f1: mean F1 score, likewise.
        auc_spread: mean AUC, with the 2.5th and 97.5th percentile of the test sets: what one test
            set of this size may give.
    """

    prevalence: float
    size: int
    repeats: int
    auc: Interval
    f1: Interval
    auc_spread: Interval

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "prevalence": self.prevalence,
            "size": self.size,
            "repeats": self.repeats,
            "auc": self.auc.to_dict(),
            "f1": self.f1.to_dict(),
            "auc_spread": self.auc_spread.to_dict(),
        }


def at_prevalence(
    studies: pd.DataFrame,
    prevalence: float,
    *,
    size: int = 1000,
    repeats: int = 500,
    seed: int = 0,
    confidence: float = 0.95,
) -> PrevalenceFigures:
    """Figures at another prevalence than that of the test patients.

    Studies of both classes are drawn with replacement, as in the multi-task ECG study
    (Boribalburephan et al., Scientific Reports 2024, doi:10.1038/s41598-024-58131-6: 1,000 ECGs,
    500 times, 7.9 % positive). The interval of the mean becomes as narrow as one likes with more
    repeats: it says how well the mean is known, not how well a model does on new patients.

    Args:
        studies: columns label (0 or 1), score and positive (what was decided).
        prevalence: share of positive studies, in (0, 1).
        size: studies of a test set.
        repeats: test sets.
        seed: of the draw.
        confidence: of the intervals.

    Raises:
        ValueError: for a prevalence that cannot be, or studies of one class.
    """
    if not 0 < prevalence < 1 or not 1 <= round(prevalence * size) < size:
        raise ValueError(
            f"prevalence is a share between 0 and 1 that gives {size} studies of both classes, "
            f"not {prevalence:g}."
        )
    labels = studies["label"].to_numpy() == 1
    if labels.all() or not labels.any():
        raise ValueError("Studies of both classes are needed to draw another prevalence from.")
    scores = studies["score"].to_numpy(float)
    decided = studies["positive"].to_numpy(bool)
    rng = np.random.default_rng(seed)
    wanted = round(prevalence * size)
    weights = np.zeros((repeats, len(studies)))
    for row in weights:
        for places, count in (
            (np.flatnonzero(labels), wanted),
            (np.flatnonzero(~labels), size - wanted),
        ):
            np.add.at(row, rng.choice(places, count), 1)
    aucs = auc_statistic(labels.astype(float), scores, weights)
    hits = weights[:, labels & decided].sum(axis=1)
    false_alarms = weights[:, ~labels & decided].sum(axis=1)
    f1 = 2 * hits / np.maximum(hits + false_alarms + wanted, 1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(aucs, [tail, 1 - tail])
    return PrevalenceFigures(
        prevalence=wanted / size,
        size=size,
        repeats=repeats,
        auc=_of_mean(aucs, confidence),
        f1=_of_mean(f1, confidence),
        auc_spread=Interval(float(aucs.mean()), float(low), float(high)),
    )


def _of_mean(values: NDArray[np.float64], confidence: float) -> Interval:
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return Interval(mean, float("nan"), float("nan"))
    reach = float(stats.t.ppf((1 + confidence) / 2, count - 1) * values.std(ddof=1) / count**0.5)
    return Interval(mean, mean - reach, mean + reach)


@dataclass(frozen=True)
class Subgroup:
    """Some of the test patients.

    Attributes:
        name: as it was asked for ("qrs_ms > 120").
        studies: how many there are.
        positive: how many of these are positive.
        figures: of them; None where there are too few of either class.
    """

    name: str
    studies: int
    positive: int
    figures: Figures | None


def parse_group(text: str, columns: Sequence[str]) -> Callable[[pd.DataFrame], Booleans]:
    """The rows of a table that a condition such as "qrs_ms > 120" or "sex = F" holds for.

    Args:
        text: a column, one of <, <=, >, >= and =, and a number or a word.
        columns: that there are.

    Raises:
        ValueError: for another form or an unknown column.
    """
    found = _GROUP.fullmatch(text)
    if found is None:
        raise ValueError(f"A subgroup is written as column > 120 or column = word, not {text!r}.")
    column, value = found["column"], found["value"]
    sign = "==" if found["sign"] == "=" else found["sign"]
    if column not in columns:
        raise unknown_name("column of a subgroup", column, columns)

    def holds(table: pd.DataFrame) -> Booleans:
        try:
            wanted = float(value)
        except ValueError:
            if sign != "==":
                raise ValueError(f"{text}: {value!r} is no number.") from None
            same = table[column].astype(str).str.strip().str.lower() == value.lower()
            return same.to_numpy(bool)
        numbers = pd.to_numeric(table[column], errors="coerce").to_numpy(float)
        return np.asarray(_OPERATORS[sign](numbers, wanted), bool)

    return holds


def subgroup_figures(
    studies: pd.DataFrame,
    facts: pd.DataFrame,
    groups: Sequence[str],
    *,
    resampling: Resampling,
    fewest: int = 5,
) -> list[Subgroup]:
    """Figures of all test studies, and of each subgroup and of everybody else.

    Args:
        studies: decided rows: study_id, patient_id, label, score, probability and positive.
        facts: what the groups ask about, with a column study_id; one row a study.
        groups: conditions, see `parse_group`.
        resampling: how intervals are made.
        fewest: studies of either class below which no figure is given.

    Raises:
        ValueError: for a condition that cannot be read.
    """
    columns = [str(name) for name in facts.columns if name != "study_id"]
    conditions: Mapping[str, Callable[[pd.DataFrame], Booleans]] = {
        text: parse_group(text, columns) for text in groups
    }
    known = facts.drop_duplicates("study_id").set_index("study_id").reindex(studies["study_id"])
    found = [_subgroup("all", studies, resampling, fewest)]
    for text, holds in conditions.items():
        inside = holds(known)
        # Of whom it is not known is in neither.
        column = known[_GROUP.fullmatch(text)["column"]]  # type: ignore[index]
        told = column.notna().to_numpy(bool)
        found.append(_subgroup(text, studies[inside & told], resampling, fewest))
        found.append(_subgroup(f"not {text}", studies[~inside & told], resampling, fewest))
    return found


def _subgroup(name: str, studies: pd.DataFrame, resampling: Resampling, fewest: int) -> Subgroup:
    positive = int((studies["label"] == 1).sum())
    enough = min(positive, len(studies) - positive) >= fewest
    figures = binary_figures(studies.reset_index(drop=True), resampling) if enough else None
    return Subgroup(name, len(studies), positive, figures)


def subgroup_table(groups: Sequence[Subgroup]) -> pd.DataFrame:
    """One row a group: studies, positives, and AUC, sensitivity, specificity and F1."""
    rows = []
    for group in groups:
        row: dict[str, Any] = {
            "group": group.name,
            "studies": group.studies,
            "positive": group.positive,
        }
        for name in ("auc", "sensitivity", "specificity", "f1"):
            nothing = Interval(float("nan"), float("nan"), float("nan"))
            value = nothing if group.figures is None else group.figures.values[name]
            row |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        rows.append(row)
    return pd.DataFrame(rows)
