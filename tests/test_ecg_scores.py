"""The four scores of the ECG questionnaire, and how they are asked for."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from cardioray.clinical.ecg_scores import (
    ANSWERS,
    QUESTIONS,
    SCORES,
    UnusableAnswers,
    risk_level,
)
from cardioray.serve.assessment import AssessmentRequest, ScoreCard, assess
from cardioray.serve.problems import Problem

YEAR = 2026
NO = dict.fromkeys(QUESTIONS, 0.0) | {"year_of_birth": 2520.0, "height": 170.0, "weight": 70.0}


def plain_percent(name: str, a: dict[str, float]) -> float:
    """The published formulas, written out."""
    old = 1 if YEAR - (a["year_of_birth"] - 543) >= 65 else 0
    heavy = 1 if a["weight"] / (a["height"] / 100) ** 2 > 25 else 0
    logit = {
        "scar": -1.25369
        - 1.289421 * a["female"]
        + 1.26799 * a["history_mi"]
        + 0.852316 * a["history_ptca_cabg"]
        + 1.188963 * a["history_cad"]
        + 0.875971 * a["history_hf"]
        + 0.394268 * a["history_ckd"],
        "cadScar": -1.838088
        - 1.257548 * a["female"]
        + 0.290813 * a["diabetes_mellitus"]
        + 1.42843 * a["history_mi"]
        + 0.915726 * a["history_ptca_cabg"]
        + 1.477169 * a["history_cad"]
        + 0.519559 * a["history_hf"]
        + 0.35904 * a["history_ckd"],
        "lvef40": -1.986239
        - 0.573404 * old
        - 0.537664 * a["female"]
        - 0.771137 * heavy
        - 0.533213 * a["hypertension"]
        + 0.714925 * a["history_cad"]
        + 2.065291 * a["history_hf"]
        + 0.61929 * a["history_ckd"],
        "lvef50": -1.468317
        - 0.438355 * old
        - 0.797398 * a["female"]
        - 0.3547618 * heavy
        - 0.350557 * a["hypertension"]
        + 0.534031 * a["history_mi"]
        + 0.787748 * a["history_cad"]
        + 1.831592 * a["history_hf"],
    }[name]
    return 100 / (1 + math.exp(-logit))


@pytest.mark.parametrize("name", SCORES)
def test_scores_are_the_published_formulas(name: str) -> None:
    bodies = [(2520.0, 170.0, 70.0), (2490.0, 170.0, 70.0), (2520.0, 150.0, 90.0)]
    for flags in itertools.product([0.0, 1.0], repeat=len(QUESTIONS)):
        for year, height, weight in bodies:
            answers = dict(zip(QUESTIONS, flags, strict=True))
            answers |= {"year_of_birth": year, "height": height, "weight": weight}
            assert SCORES[name].percent(answers, YEAR) == pytest.approx(
                plain_percent(name, answers), abs=1e-9
            )


def test_borders_of_age_and_weight() -> None:
    score = SCORES["lvef40"]
    at_64, at_65 = (NO | {"year_of_birth": float(YEAR - age + 543)} for age in (64, 65))
    assert score.percent(at_64, YEAR) > score.percent(at_65, YEAR)
    assert score.percent(at_65, YEAR) == score.percent(NO | {"year_of_birth": 2480.0}, YEAR)
    at_25, above = (NO | {"height": 200.0, "weight": kg} for kg in (100.0, 100.1))
    assert score.percent(at_25, YEAR) == score.percent(NO, YEAR)
    assert score.percent(above, YEAR) < score.percent(at_25, YEAR)


@pytest.mark.parametrize("name", SCORES)
def test_every_answer_that_a_score_needs_is_asked_for_by_name(name: str) -> None:
    score = SCORES[name]
    needed = {answer: NO[answer] for answer in score.answers}
    assert score.percent(needed, YEAR) == score.percent(NO, YEAR)
    for answer in score.answers:
        for missing in ({k: v for k, v in needed.items() if k != answer}, needed | {answer: None}):
            with pytest.raises(UnusableAnswers, match=answer) as caught:
                score.percent(missing, YEAR)
            assert caught.value.fields == (answer,)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"year_of_birth": 2026.0 + 543}, "above 0 and below 120"),
        ({"year_of_birth": 2026.0 + 543 - 120}, "above 0 and below 120"),
        ({"year_of_birth": 1960.0}, "Buddhist era"),
        ({"year_of_birth": 2520.5}, "Buddhist era"),
        ({"height": 1.7}, "from 50 to 260 cm"),
        ({"weight": 0.0}, "from 10 to 500 kg"),
        ({"female": 2.0}, "1 for yes or 0 for no"),
        ({"history_hf": 0.5}, "1 for yes or 0 for no"),
    ],
)
def test_answers_that_cannot_be_true(change: dict[str, float], words: str) -> None:
    with pytest.raises(UnusableAnswers, match=words) as caught:
        SCORES["lvef40"].percent(NO | change, YEAR)
    assert caught.value.fields == tuple(change)


def test_ages_from_1_to_119_are_accepted() -> None:
    for age in (1, 119):
        SCORES["lvef50"].percent(NO | {"year_of_birth": float(YEAR + 543 - age)}, YEAR)


@pytest.mark.parametrize(
    ("percent", "level"),
    [(0, "low"), (29.99, "low"), (30, "medium"), (69.99, "medium"), (70, "high"), (100, "high")],
)
def test_levels(percent: float, level: str) -> None:
    assert risk_level(percent) == level


# Over HTTP


def asked(*scores: str, **data: Any) -> list[ScoreCard]:
    return assess(AssessmentRequest(selectedDiseases=list(scores), data=data), "th", YEAR)


def test_cards_are_those_of_the_published_client() -> None:
    cards = asked("lvef50", "scar", **(NO | {"history_hf": 1, "history_mi": True, "female": "0"}))
    assert [set(card.model_dump()) for card in cards] == [
        {"title", "description", "average", "probability", "risk_level"}
    ] * 2
    assert [card.average for card in cards] == [59.47, 47.62]
    answers = NO | {"history_hf": 1.0, "history_mi": 1.0}
    assert cards[0].probability == round(plain_percent("lvef50", answers), 2)
    assert cards[1].probability == round(plain_percent("scar", answers), 2)
    assert {card.risk_level for card in cards} <= {"ต่ำ", "ปานกลาง", "สูง"}


def test_words_follow_the_language() -> None:
    request = AssessmentRequest(selectedDiseases=["scar"], data=NO)
    thai, english = (assess(request, language, YEAR)[0] for language in ("th", "en"))
    assert (thai.risk_level, english.risk_level) == ("ต่ำ", "low")
    assert thai.probability == english.probability
    assert thai.description != english.description


@pytest.mark.parametrize("nothing", [None, "", "  "])
def test_a_missing_answer_is_named_and_is_no_high_risk(nothing: str | None) -> None:
    with pytest.raises(Problem) as caught:
        asked("scar", "cadScar", **(NO | {"history_mi": nothing}))
    assert caught.value.status == 422
    assert caught.value.fields == ("history_mi",)
    assert "history_mi" in caught.value.detail
    assert caught.value.body("id")["fields"] == ["history_mi"]


def test_all_missing_answers_are_named_at_once() -> None:
    with pytest.raises(Problem) as caught:
        asked(*SCORES)
    assert caught.value.fields == ANSWERS


def test_what_no_chosen_score_needs_may_be_missing() -> None:
    data = {name: NO[name] for name in SCORES["scar"].answers}
    assert "year_of_birth" not in data
    (card,) = asked("scar", **data, year_of_birth=None)
    assert card.probability == round(plain_percent("scar", NO), 2)


@pytest.mark.parametrize(
    ("scores", "data", "status", "words"),
    [
        (["scars"], NO, 400, "Did you mean 'scar'"),
        (["scar"], NO | {"history_mii": 1}, 400, "Did you mean 'history_mi'"),
        (["scar"], NO | {"history_mi": "perhaps"}, 422, "history_mi is no number"),
        (["scar"], NO | {"history_mi": [1]}, 422, "history_mi is no number"),
        (["scar"], NO | {"history_mi": "nan"}, 422, "history_mi is no number"),
    ],
)
def test_what_no_score_can_be_made_of(
    scores: list[str], data: dict[str, Any], status: int, words: str
) -> None:
    with pytest.raises(Problem, match=words) as caught:
        asked(*scores, **data)
    assert caught.value.status == status
