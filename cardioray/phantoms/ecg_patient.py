"""A phantom patient with a scar or without, an ejection fraction, and what the chart says.

Prevalences are those of Boribalburephan et al., Scientific Reports 2024
(doi:10.1038/s41598-024-58131-6): scar in 27 %, LVEF of 50 % or less in 19 %, age 72 +- 14 years.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from cardioray.phantoms.drawing import Stream, stream
from cardioray.phantoms.ecg_config import EcgPhantomConfig
from cardioray.phantoms.ecg_heart import TERRITORIES, Heart

# What the chart says besides age, and how common it is.
FLAGS = {"female": 0.48, "dm": 0.34, "ht": 0.62, "smoke": 0.28, "dlp": 0.55}
# Years of age, and how each year and flag adds to the log odds of a scar.
_AGE = (72.0, 14.0, 25.0, 97.0)
_AGE_SLOPE = 0.012
_SCAR_SLOPES = {"female": -0.95, "dm": 0.55, "ht": 0.15, "smoke": 0.55, "dlp": 0.30}
_ARTERIES = {"LAD": 0.45, "RCA": 0.35, "LCX": 0.20}


@dataclass(frozen=True, kw_only=True)
class EcgPatient:
    """A patient.

    Attributes:
        index: number of the patient in the data set.
        scar: whether MRI shows a scar of an infarction.
        artery: the one that was closed; "" without a scar.
        scar_share: share of the left ventricle that is scar.
        lvef_percent: ejection fraction.
        age: in years.
        flags: what is true of them, by the name of the clinical feature.
        heart: what their ECG depends on.
    """

    index: int
    scar: bool
    artery: str
    scar_share: float
    lvef_percent: float
    age: int
    flags: dict[str, bool]
    heart: Heart

    @property
    def patient_id(self) -> str:
        """Unique within a data set."""
        return f"G{self.index:05d}"


def draw_ecg_patient(seed: int, index: int, config: EcgPhantomConfig) -> EcgPatient:
    """The patient of a data set with this number."""
    rng = stream(seed, index, Stream.TRUTH)
    age, flags = _draw_chart(rng)
    odds = _scar_offset(config.scar_share) + _leaning(age, flags)
    scar = bool(rng.random() < 1 / (1 + math.exp(-odds)))
    artery = str(rng.choice(list(_ARTERIES), p=list(_ARTERIES.values()))) if scar else ""
    share = float(rng.beta(1.6, 3.2) * 0.42 + 0.03) if scar else 0.0
    lvef = float(rng.normal(63, 5.5)) - 82 * share
    if rng.random() < config.cardiomyopathy_share:
        lvef = min(lvef, float(rng.uniform(12, 46)))
    lvef = round(float(np.clip(lvef, 10, 80)), 1)
    heart = _draw_heart(stream(seed, index, Stream.ANATOMY), config, age, artery, share, lvef)
    return EcgPatient(
        index=index,
        scar=scar,
        artery=artery,
        scar_share=round(share, 4),
        lvef_percent=lvef,
        age=age,
        flags=flags,
        heart=heart,
    )


def _draw_chart(rng: np.random.Generator) -> tuple[int, dict[str, bool]]:
    mean, deviation, low, high = _AGE
    age = round(float(np.clip(rng.normal(mean, deviation), low, high)))
    older = (age - mean) / deviation
    flags: dict[str, bool] = {}
    for name, share in FLAGS.items():
        lean = {"ht": 0.35, "dlp": 0.15, "smoke": -0.2}.get(name, 0.0) * older
        if name == "smoke" and flags["female"]:
            lean -= 1.3
        odds = math.log(share / (1 - share)) + lean
        flags[name] = bool(rng.random() < 1 / (1 + math.exp(-odds)))
    return age, flags


def _leaning(age: int, flags: dict[str, bool]) -> float:
    """What a chart adds to the log odds of a scar."""
    slopes = sum(_SCAR_SLOPES[name] for name, true in flags.items() if true)
    return _AGE_SLOPE * (age - _AGE[0]) + slopes


@cache
def _scar_offset(share: float) -> float:
    """Log odds of a scar where a chart adds nothing, such that the share over everyone is right."""
    rng = np.random.default_rng(0)
    leanings = np.array([_leaning(*_draw_chart(rng)) for _ in range(4000)])
    low, high = -12.0, 12.0
    for _ in range(50):
        middle = (low + high) / 2
        if (1 / (1 + np.exp(-(middle + leanings)))).mean() < share:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _draw_heart(
    rng: np.random.Generator,
    config: EcgPhantomConfig,
    age: int,
    artery: str,
    scar_share: float,
    lvef: float,
) -> Heart:
    """An ECG that leans towards what is wrong, and varies as much without it."""
    weakness = config.effect * float(np.clip((57 - lvef) / 35, 0, 1))
    # A scar of a fifth of the ventricle takes the whole of its territory's forces.
    loss = float(np.clip(config.effect * scar_share / 0.2, 0, 1))
    scar = {part: loss * most for part, most in TERRITORIES[artery].items()} if artery else {}
    old = (age - 60) / 30
    lbbb = rng.random() < min(0.9, 0.015 + 0.33 * weakness)
    return Heart(
        scar=scar,
        lbbb=bool(lbbb),
        qrs_scale=float(np.clip(rng.normal(1 + 0.28 * weakness, 0.07), 0.85, 1.7)),
        voltage=float(np.clip(rng.lognormal(-0.12 * weakness, 0.2), 0.45, 1.8)),
        lateral_strain=float(np.clip(rng.normal(0.05 + 0.75 * weakness, 0.2), 0, 1)),
        left_atrium=float(np.clip(rng.normal(1 + 0.7 * weakness + 0.1 * old, 0.2), 0.5, 2.6)),
        turn_deg=(
            float(rng.normal(0, 7)),
            float(rng.normal(-6 * weakness, 9)),
            float(rng.normal(-8 * old, 13)),
        ),
        rate_bpm=float(np.clip(rng.normal(70 + 13 * weakness, 11), 45, 135)),
        fibrillation=bool(rng.random() < np.clip(0.04 + 0.06 * old + 0.12 * weakness, 0, 0.6)),
        ectopic_share=float(rng.random() < 0.06 + 0.2 * weakness) * float(rng.uniform(0.05, 0.2)),
        pr_s=float(np.clip(rng.normal(0.165 + 0.012 * old, 0.018), 0.11, 0.26)),
        t_factor=float(np.clip(rng.lognormal(-0.25 * weakness, 0.28), 0.3, 2.0)),
    )
