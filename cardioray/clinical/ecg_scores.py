"""Four logistic scores from a questionnaire: scar and a low ejection fraction, without a picture.

The formulas are those that the published multi-task ECG system shows on its assessment page, fitted
there to patients who came to the heart centre of one hospital (Siriraj, Bangkok). They say how
common a finding was among such patients, which is not how common it is elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

RiskLevel = Literal["low", "medium", "high"]

# Where a level begins, in percent: the published page calls less than the first one low.
MEDIUM_FROM, HIGH_FROM = 30.0, 70.0
OLD_FROM_YEARS = 65
HEAVY_ABOVE_KG_PER_M2 = 25.0
# The Buddhist era, in which Thai documents count years, began 543 years before the common one.
BUDDHIST_ERA = 543
OLDEST_YEARS = 120
# What lies outside was written in another unit.
_RANGES = {"height": (50.0, 260.0, "cm"), "weight": (10.0, 500.0, "kg")}

# Questions that are answered with yes (1) or no (0).
QUESTIONS = (
    "female",
    "diabetes_mellitus",
    "history_mi",
    "history_ptca_cabg",
    "history_cad",
    "history_hf",
    "hypertension",
    "history_ckd",
)
YEAR, HEIGHT, WEIGHT = "year_of_birth", "height", "weight"
ANSWERS = (YEAR, "female", HEIGHT, WEIGHT, *QUESTIONS[1:])
# Terms that are made of other answers.
_OLD, _HEAVY = "age_65_or_more", "bmi_above_25"
_MADE_OF: Mapping[str, tuple[str, ...]] = {_OLD: (YEAR,), _HEAVY: (HEIGHT, WEIGHT)}


class UnusableAnswers(ValueError):  # noqa: N818 (says which answers)
    """Answers of which no score can be made.

    Attributes:
        fields: their names.
    """

    def __init__(self, message: str, fields: tuple[str, ...]) -> None:
        super().__init__(message)
        self.fields = fields


@dataclass(frozen=True, kw_only=True)
class EcgScore:
    """A logistic score.

    Attributes:
        name: as the published page calls it.
        title: what it is about.
        intercept: of the logit.
        coefficients: of the logit, by the name of the term.
        average: mean probability in percent that the published page compares with; None where it
            states none.
    """

    name: str
    title: str
    intercept: float
    coefficients: Mapping[str, float]
    average: float | None

    @property
    def answers(self) -> tuple[str, ...]:
        """Names of the answers that the score needs."""
        needed = {part for term in self.coefficients for part in _MADE_OF.get(term, (term,))}
        return tuple(name for name in ANSWERS if name in needed)

    def percent(self, answers: Mapping[str, float | None], this_year: int) -> float:
        """The probability in percent.

        Args:
            answers: by name; what the score does not need may be missing.
            this_year: of the common era, from which the age is counted.

        Raises:
            UnusableAnswers: when an answer is missing or cannot be true; names it.
        """
        check_answers(answers, self.answers, this_year)
        terms = {name: answers.get(name) for name in QUESTIONS}
        if _OLD in self.coefficients:
            terms[_OLD] = float(age_years(_given(answers, YEAR), this_year) >= OLD_FROM_YEARS)
        if _HEAVY in self.coefficients:
            bmi = bmi_kg_per_m2(_given(answers, HEIGHT), _given(answers, WEIGHT))
            terms[_HEAVY] = float(bmi > HEAVY_ABOVE_KG_PER_M2)
        logit = self.intercept
        for name, coefficient in self.coefficients.items():
            logit += coefficient * _given(terms, name)
        return 100 / (1 + math.exp(-logit))


SCORES: Mapping[str, EcgScore] = {
    score.name: score
    for score in (
        EcgScore(
            name="scar",
            title="Myocardial scar",
            intercept=-1.25369,
            coefficients={
                "female": -1.289421,
                "history_mi": 1.26799,
                "history_ptca_cabg": 0.852316,
                "history_cad": 1.188963,
                "history_hf": 0.875971,
                "history_ckd": 0.394268,
            },
            average=47.62,
        ),
        EcgScore(
            name="cadScar",
            title="Scar of coronary artery disease",
            intercept=-1.838088,
            coefficients={
                "female": -1.257548,
                "diabetes_mellitus": 0.290813,
                "history_mi": 1.42843,
                "history_ptca_cabg": 0.915726,
                "history_cad": 1.477169,
                "history_hf": 0.519559,
                "history_ckd": 0.35904,
            },
            average=None,
        ),
        EcgScore(
            name="lvef40",
            title="LVEF < 40 %",
            intercept=-1.986239,
            coefficients={
                _OLD: -0.573404,
                "female": -0.537664,
                _HEAVY: -0.771137,
                "hypertension": -0.533213,
                "history_cad": 0.714925,
                "history_hf": 2.065291,
                "history_ckd": 0.61929,
            },
            average=59.47,
        ),
        EcgScore(
            name="lvef50",
            title="LVEF < 50 %",
            intercept=-1.468317,
            coefficients={
                _OLD: -0.438355,
                "female": -0.797398,
                _HEAVY: -0.3547618,
                "hypertension": -0.350557,
                "history_mi": 0.534031,
                "history_cad": 0.787748,
                "history_hf": 1.831592,
            },
            average=59.47,
        ),
    )
}


def risk_level(percent: float) -> RiskLevel:
    """Low below 30 %, high from 70 % on, medium between."""
    if percent < MEDIUM_FROM:
        return "low"
    return "medium" if percent < HIGH_FROM else "high"


def age_years(year_of_birth: float, this_year: int) -> float:
    """Age at the end of a year of the common era, from a year of birth of the Buddhist era."""
    return this_year - (year_of_birth - BUDDHIST_ERA)


def bmi_kg_per_m2(height_cm: float, weight_kg: float) -> float:
    """Body mass index."""
    return weight_kg / (height_cm / 100) ** 2


def check_answers(
    answers: Mapping[str, float | None], needed: tuple[str, ...], this_year: int
) -> None:
    """Refuse answers that are missing or cannot be true.

    Args:
        answers: by name, None where somebody has not answered.
        needed: the names that count.
        this_year: of the common era.

    Raises:
        UnusableAnswers: names the missing ones, else those that are out of range.
    """
    if missing := tuple(name for name in needed if answers.get(name) is None):
        raise UnusableAnswers(f"Not answered: {', '.join(missing)}.", missing)
    wrong = {name: _fault(name, _given(answers, name), this_year) for name in needed}
    if found := {name: text for name, text in wrong.items() if text}:
        raise UnusableAnswers(" ".join(found.values()), tuple(found))


def _fault(name: str, value: float, this_year: int) -> str:
    """What is wrong with an answer; "" where nothing is."""
    if name in QUESTIONS:
        return "" if value in (0, 1) else f"{name} is 1 for yes or 0 for no, not {value:g}."
    if name in _RANGES:
        low, high, unit = _RANGES[name]
        inside = low <= value <= high
        return "" if inside else f"{name} is from {low:g} to {high:g} {unit}, not {value:g}."
    present = this_year + BUDDHIST_ERA
    if value in range(present - OLDEST_YEARS + 1, present):
        return ""
    return (
        f"{name} is a year of the Buddhist era from {present - OLDEST_YEARS + 1} to {present - 1}, "
        f"which makes an age above 0 and below {OLDEST_YEARS}, not {value:g}."
    )


def _given(answers: Mapping[str, float | None], name: str) -> float:
    value = answers[name]
    assert value is not None
    return value
