"""The ECG questionnaire over HTTP, as the published system's web client sends it."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from cardioray.clinical.ecg_scores import (
    ANSWERS,
    SCORES,
    EcgScore,
    RiskLevel,
    UnusableAnswers,
    check_answers,
    risk_level,
)
from cardioray.registry import unknown_name
from cardioray.serve.problems import Problem, malformed

Language = Literal["th", "en"]

_LEVELS: Mapping[Language, Mapping[RiskLevel, str]] = {
    "th": {"low": "ต่ำ", "medium": "ปานกลาง", "high": "สูง"},
    "en": {"low": "low", "medium": "medium", "high": "high"},
}
_DESCRIPTIONS: Mapping[Language, Mapping[str, str]] = {
    "th": {
        "scar": "โอกาสที่กล้ามเนื้อหัวใจมีแผลเป็น",
        "cadScar": "โอกาสที่กล้ามเนื้อหัวใจมีแผลเป็นจากโรคหลอดเลือดหัวใจ",
        "lvef40": "โอกาสที่หัวใจห้องล่างซ้ายบีบตัวได้ต่ำกว่าร้อยละ 40",
        "lvef50": "โอกาสที่หัวใจห้องล่างซ้ายบีบตัวได้ต่ำกว่าร้อยละ 50",
    },
    "en": {
        "scar": "Chance of a scar in the heart muscle",
        "cadScar": "Chance of a scar in the heart muscle from coronary artery disease",
        "lvef40": "Chance that the left ventricle ejects less than 40 % of its blood",
        "lvef50": "Chance that the left ventricle ejects less than 50 % of its blood",
    },
}


class AssessmentRequest(BaseModel):
    """What is asked about a person, and what the person answered."""

    selectedDiseases: list[str] = Field(  # noqa: N815 (the web client's word)
        min_length=1, max_length=len(SCORES), description=f"Of {', '.join(SCORES)}"
    )
    data: dict[str, Any] = Field(
        description=f"Answers by name: {', '.join(ANSWERS)}. `year_of_birth` is of the Buddhist "
        "era, `height` in cm, `weight` in kg, the others are 1 for yes and 0 for no. What no "
        "chosen score needs may be missing."
    )


class ScoreCard(BaseModel):
    """One score."""

    title: str
    description: str
    average: float | None = Field(description="Percent; null where none is published")
    probability: float = Field(description="Percent, two decimals", ge=0, le=100)
    risk_level: str = Field(description="Below 30 % low, from 70 % on high, in words of `lang`")


def questions() -> list[dict[str, Any]]:
    """The scores and the answers that each needs, in the order in which they are asked."""
    return [
        {"name": score.name, "title": score.title, "answers": list(score.answers)}
        for score in SCORES.values()
    ]


def assess(
    request: AssessmentRequest, language: Language, this_year: int | None = None
) -> list[ScoreCard]:
    """A card for each chosen score, in the order in which they were chosen.

    Args:
        request: scores and answers.
        language: of the words.
        this_year: of the common era; the present one by default.

    Raises:
        Problem: for an unknown score or answer, and for an answer that is missing or cannot be
            true; names it.
    """
    if this_year is None:
        this_year = datetime.datetime.now().astimezone().year
    chosen = [_score(name) for name in request.selectedDiseases]
    answers = {name: _number(name, value) for name, value in request.data.items()}
    needed = {name for score in chosen for name in score.answers}
    try:
        check_answers(answers, tuple(name for name in ANSWERS if name in needed), this_year)
    except UnusableAnswers as error:
        raise _unusable(str(error), error.fields) from None
    cards = []
    for score in chosen:
        percent = score.percent(answers, this_year)
        cards.append(
            ScoreCard(
                title=score.title,
                description=_DESCRIPTIONS[language][score.name],
                average=score.average,
                probability=round(percent, 2),
                risk_level=_LEVELS[language][risk_level(percent)],
            )
        )
    return cards


def _score(name: str) -> EcgScore:
    if name not in SCORES:
        raise malformed(str(unknown_name("score", name[:40], SCORES)))
    return SCORES[name]


def _number(name: str, value: Any) -> float | None:
    """An answer as a form sends it: a number, true or false, digits, or nothing."""
    if name not in ANSWERS:
        raise malformed(str(unknown_name("answer", name[:40], ANSWERS)))
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise _unusable(f"{name} is no number.", (name,))
    return number


def _unusable(detail: str, fields: tuple[str, ...]) -> Problem:
    problem = Problem("unusable-answers", 422, "Answers are missing or cannot be true", detail)
    problem.fields = fields
    return problem
