"""Rules that choose the threshold from which a probability is called positive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cardioray.registry import Registry

Floats = NDArray[np.float64]
Rule = Callable[[NDArray[np.bool_], Floats, float], float]


@dataclass(frozen=True)
class ThresholdRule:
    """A named rule.

    Attributes:
        choose: threshold from labels, probabilities and the number of the rule's text (NaN where
            it takes none).
        needs_value: whether the text has to end in ":number".
        meaning: one line for a report.
    """

    choose: Rule
    needs_value: bool
    meaning: str


THRESHOLD_RULES: Registry[ThresholdRule] = Registry("threshold rule")


def parse_rule(rule: str) -> tuple[ThresholdRule, float]:
    """A rule's record and number from its text, such as "youden" or "sensitivity:0.90".

    Raises:
        ValueError: when the name is unknown, or the number is missing, superfluous, or not
            between 0 and 1.
    """
    name, separator, text = rule.partition(":")
    record = THRESHOLD_RULES.get(name)
    if not record.needs_value:
        if separator:
            raise ValueError(f"Threshold rule {name!r} takes no value, given {rule!r}.")
        return record, float("nan")
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < 1:
        raise ValueError(
            f"Threshold rule {rule!r}: write {name}:NUMBER with a number between 0 and 1."
        )
    return record, value


def choose_threshold(labels: ArrayLike, probabilities: ArrayLike, rule: str) -> float:
    """The threshold that a rule picks; a row is positive when its probability is at least this.

    Candidates are 0 and the midpoints between neighbouring probabilities, so that no row sits on
    the threshold and a rounding error of another runtime changes no decision. Of several equally
    good candidates the lowest is taken: a missed disease costs more than a second look.

    Args:
        labels: 0 or 1, shape (rows,), one row per study of the calibration patients.
        probabilities: calibrated probabilities of class 1, shape (rows,).
        rule: name of a rule, with its value where it takes one.

    Raises:
        ValueError: when the rule is unknown, or it looks at the labels and a class is absent.
    """
    record, value = parse_rule(rule)
    truth, scores = np.asarray(labels) == 1, np.asarray(probabilities, dtype=float)
    return record.choose(truth, scores, value)


def _youden(truth: NDArray[np.bool_], scores: Floats, _: float) -> float:
    candidates, sensitivity, specificity = _candidates(truth, scores)
    return _best(candidates, sensitivity + specificity)


def _best_f1(truth: NDArray[np.bool_], scores: Floats, _: float) -> float:
    candidates, sensitivity, specificity = _candidates(truth, scores)
    tp, fp = sensitivity * truth.sum(), (1 - specificity) * (~truth).sum()
    return _best(candidates, 2 * tp / (truth.sum() + tp + fp))


def _at_sensitivity(truth: NDArray[np.bool_], scores: Floats, wanted: float) -> float:
    candidates, sensitivity, _ = _candidates(truth, scores)
    # Specificity rises with the threshold, so the last that still finds enough is the best.
    return float(candidates[sensitivity >= wanted - 1e-12][-1])


def _candidates(truth: NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats, Floats]:
    """Candidate thresholds, rising, and the sensitivity and specificity at each."""
    if truth.all() or not truth.any():
        raise ValueError(
            f"A threshold cannot be chosen from {len(truth)} rows that all have label "
            f"{int(truth.any())}. Use the rule fixed:0.5, or more calibration patients."
        )
    distinct = np.unique(scores)
    candidates = np.concatenate([[0.0], (distinct[1:] + distinct[:-1]) / 2])
    positives, negatives = np.sort(scores[truth]), np.sort(scores[~truth])
    sensitivity = 1 - np.searchsorted(positives, candidates) / len(positives)
    specificity = np.searchsorted(negatives, candidates) / len(negatives)
    return candidates, sensitivity, specificity


def _best(candidates: Floats, figure: Floats) -> float:
    # Equal figures may differ in their last bit; argmax takes the first, which is the lowest.
    return float(candidates[np.argmax(np.round(figure, 12))])


THRESHOLD_RULES.add(
    "fixed", ThresholdRule(lambda truth, scores, value: value, True, "the number given")
)
THRESHOLD_RULES.add(
    "youden", ThresholdRule(_youden, False, "largest sensitivity + specificity - 1 (Youden 1950)")
)
THRESHOLD_RULES.add("best_f1", ThresholdRule(_best_f1, False, "largest F1"))
THRESHOLD_RULES.add(
    "sensitivity",
    ThresholdRule(_at_sensitivity, True, "largest specificity with at least that sensitivity"),
)
