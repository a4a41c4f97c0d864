"""Threshold rules against an exhaustive search, and their errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cardioray.evaluation.metrics import binary_metrics
from cardioray.evaluation.thresholds import THRESHOLD_RULES, choose_threshold

rows = st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=2, max_size=40).filter(
    lambda pairs: len({label for label, _ in pairs}) == 2
)


def unpack(pairs: list[tuple[bool, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([p[0] for p in pairs], float), np.array([p[1] / 20 for p in pairs])


def all_cuts(scores: np.ndarray) -> np.ndarray:
    return np.concatenate([[0.0], np.unique(scores) + 1e-6])


@settings(max_examples=60, deadline=None)
@given(rows)
def test_youden_and_f1_find_the_best_of_all_cuts(pairs: list[tuple[bool, int]]) -> None:
    labels, scores = unpack(pairs)
    everything = [binary_metrics(labels, scores, cut) for cut in all_cuts(scores)]
    found = binary_metrics(labels, scores, choose_threshold(labels, scores, "youden"))
    best = max(figures.sensitivity + figures.specificity for figures in everything)
    assert found.sensitivity + found.specificity == pytest.approx(best)
    found = binary_metrics(labels, scores, choose_threshold(labels, scores, "best_f1"))
    assert found.f1 == pytest.approx(max(figures.f1 for figures in everything))


@settings(max_examples=60, deadline=None)
@given(rows, st.sampled_from([0.5, 0.8, 0.9, 0.99]))
def test_sensitivity_is_reached_at_the_best_specificity(
    pairs: list[tuple[bool, int]], wanted: float
) -> None:
    labels, scores = unpack(pairs)
    threshold = choose_threshold(labels, scores, f"sensitivity:{wanted}")
    found = binary_metrics(labels, scores, threshold)
    assert found.sensitivity >= wanted
    enough = [
        figures.specificity
        for figures in (binary_metrics(labels, scores, cut) for cut in all_cuts(scores))
        if figures.sensitivity >= wanted
    ]
    assert found.specificity == pytest.approx(max(enough))


def test_threshold_lies_between_probabilities_so_rounding_changes_nothing() -> None:
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.3, 0.6, 0.9])
    for rule in ("youden", "best_f1", "sensitivity:0.90"):
        threshold = choose_threshold(labels, scores, rule)
        assert threshold == pytest.approx(0.45)
        nudged = scores.astype(np.float32) - 1e-6
        assert ((nudged >= threshold) == (scores >= threshold)).all()


def test_of_equally_good_thresholds_the_lowest_is_taken() -> None:
    # Cutting below 0.4 or above 0.6 gives the same Youden index.
    labels, scores = np.array([0, 1, 0, 1]), np.array([0.2, 0.4, 0.6, 0.8])
    threshold = choose_threshold(labels, scores, "youden")
    assert threshold == pytest.approx(0.3)
    order = [2, 0, 3, 1]
    assert choose_threshold(labels[order], scores[order], "youden") == threshold


def test_fixed_is_taken_as_given_whatever_the_labels() -> None:
    assert choose_threshold([1, 1], [0.2, 0.3], "fixed:0.5") == 0.5


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("yuden", "Unknown threshold rule 'yuden'. Did you mean 'youden'.*best_f1"),
        ("sensitivity", "write sensitivity:NUMBER with a number between 0 and 1"),
        ("sensitivity:90", "between 0 and 1"),
        ("fixed:half", "between 0 and 1"),
        ("youden:0.5", "takes no value"),
    ],
)
def test_errors_say_what_to_write(rule: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_threshold([0, 1], [0.2, 0.3], rule)


@pytest.mark.parametrize("rule", ["youden", "best_f1", "sensitivity:0.9"])
def test_one_class_is_refused(rule: str) -> None:
    with pytest.raises(ValueError, match=r"3 rows that all have label 1.*fixed:0\.5"):
        choose_threshold([1, 1, 1], [0.2, 0.3, 0.4], rule)


def test_every_rule_says_what_it_means() -> None:
    assert THRESHOLD_RULES.names() == ["fixed", "youden", "best_f1", "sensitivity"]
    assert all(THRESHOLD_RULES.get(name).meaning for name in THRESHOLD_RULES)
