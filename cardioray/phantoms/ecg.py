"""Phantom ECGs on paper, with scar, ejection fraction and a chart, in the layout of a hospital."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import cv2
import pandas as pd

from cardioray import storage
from cardioray.data.ecg_leads import LAYOUTS
from cardioray.data.ecg_paper import DrawnPage, PaperStyle, draw_page
from cardioray.data.spreading import spread
from cardioray.phantoms import dataset
from cardioray.phantoms.drawing import Stream, draw, stream
from cardioray.phantoms.ecg_config import EcgPhantomConfig
from cardioray.phantoms.ecg_heart import record
from cardioray.phantoms.ecg_patient import FLAGS, EcgPatient, draw_ecg_patient
from cardioray.phantoms.ecg_scan import photograph, scan

HOSPITAL_TABLE = "ecg.csv"
# What the hospital's table calls the clinical features.
_COLUMNS = {
    "female": "female",
    "dm": "diabetes",
    "ht": "hypertension",
    "smoke": "smoke",
    "dlp": "dyslipidemia",
}
# Years of each format and split, as published: the old one until 2016, the new one since 2017.
_YEARS = {
    "old": {"train": (2009, 2014), "validation": (2015, 2015), "test": (2016, 2016)},
    "new": {"train": (2017, 2017), "validation": (2019, 2019), "test": (2018, 2018)},
}
_SHARES = {"train": 0.65, "validation": 0.15, "test": 0.2}
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

# Changes whenever the same request would give other pixels or another truth.
_GENERATOR = 1


def write_ecgs(
    out: str,
    num_patients: int,
    *,
    seed: int,
    config: EcgPhantomConfig,
    on_progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Write a phantom data set: one ECG on paper for each patient.

    - `<year>/<month>/<file>.jpg`: pages of the old format (6 rows, 2 columns, no grid) and of the
      new one (3 rows, 4 columns and a rhythm strip on red paper); some scanned or photographed.
    - `ecg.csv` with the columns of the multi-task ECG system: run_num, file_name, lvef, scar_cad,
      year, month, age, female, diabetes, hypertension, smoke, dyslipidemia, new_cut, impute, path.
    - `manifest.csv` in CardioRay's words, and the truth.

    Some clinical features are missing, as in charts. Patients are spread over the cluster by Ray
    Data. Running it again with the same request does nothing; after a killed run it starts over.

    Args:
        out: folder or s3:// prefix, empty or absent; one that every node sees.
        num_patients: number of patients.
        seed: seed of the data set; another seed gives other patients.
        config: a preset of `ECG_PRESETS` or a config of your own.
        on_progress: called with the number of finished patients and of all patients.

    Returns:
        The manifest, one row an ECG; `source` is relative to the manifest.

    Raises:
        ValueError: when `out` holds anything else, or a number is out of range.
    """

    def write(place: str) -> pd.DataFrame:
        work = functools.partial(_write_patient, out=place, seed=seed, config=config)
        table = pd.DataFrame(spread(work, num_patients, on_progress))
        dataset.write_csv(storage.join(place, HOSPITAL_TABLE), _hospital_table(table))
        return table

    return dataset.write_once(
        out,
        "ecg",
        write,
        generator=_GENERATOR,
        num_patients=num_patients,
        seed=seed,
        config=config,
    )


def draw_ecg(
    patient: EcgPatient, seed: int, config: EcgPhantomConfig, *, new: bool
) -> tuple[DrawnPage, str]:
    """The printed page of a patient in either format, and the way it takes into a computer.

    Args:
        patient: whose ECG.
        seed: of the data set.
        config: what is drawn.
        new: the format.

    Returns:
        The page as printed, with the places of its leads, and "clean", "scanned" or
        "photographed".
    """
    noise = stream(seed, patient.index, Stream.NOISE)
    signals = record(
        patient.heart,
        noise,
        noise_mv=draw(noise, config.noise_mv),
        wander_mv=draw(noise, config.wander_mv),
    )
    scene = stream(seed, patient.index, Stream.SCENE)
    header = (f"ID {patient.patient_id}", f"{patient.age} years", "25 mm/s 10 mm/mV 0.05-150 Hz")
    style = PaperStyle(
        px_per_mm=config.px_per_mm,
        row_mm=float(scene.uniform(27, 30)) if new else float(scene.uniform(17, 19)),
        grid="red" if new else "none",
        ink_mm=float(scene.uniform(0.22, 0.38)),
        pulse=bool(scene.random() < 0.85) or not new,
        header=header,
        separators=new,
    )
    way = str(
        scene.choice(
            ["scanned", "photographed", "clean"],
            p=[
                config.scanned_share,
                config.photographed_share,
                1 - config.scanned_share - config.photographed_share,
            ],
        )
    )
    return draw_page(signals, LAYOUTS.get("3x4+1" if new else "6x2"), style), way


def _write_patient(index: int, *, out: str, seed: int, config: EcgPhantomConfig) -> dict[str, Any]:
    """Print and write one patient's ECG; its row of the manifest."""
    cv2.setNumThreads(1)  # patients are spread over the cores
    patient = draw_ecg_patient(seed, index, config)
    place = stream(seed, index, Stream.SPLIT)
    new = bool(place.random() < config.new_share)
    split = str(place.choice(list(_SHARES), p=list(_SHARES.values())))
    first, last = _YEARS["new" if new else "old"][split]
    year, month = int(place.integers(first, last + 1)), _MONTHS[place.integers(12)]
    page, way = draw_ecg(patient, seed, config, new=new)
    picture = page.picture
    if way != "clean":
        degrade = scan if way == "scanned" else photograph
        picture = degrade(picture, stream(seed, index, Stream.VIEW))
    source = f"{year}/{month}/{patient.patient_id}_1.jpg"
    done, coded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    assert done
    storage.write_bytes(storage.join(out, source), coded.tobytes())
    chart: dict[str, float | None] = {"age": patient.age}
    chart |= {name: float(patient.flags[name]) for name in FLAGS}
    gaps = stream(seed, index, Stream.MOTION).random(len(chart)) < config.missing_share
    known = {
        name: None if gap else value for (name, value), gap in zip(chart.items(), gaps, strict=True)
    }
    return {
        "sample_id": patient.patient_id,
        "patient_id": patient.patient_id,
        "study_id": f"{patient.patient_id}-ECG",
        "source": source,
        "split": split,
        "scar": int(patient.scar),
        "lvef": patient.lvef_percent,
        **known,
        "year": year,
        "month": month,
        "ecg_format": "new" if new else "old",
        "intake": way,
        "artery": patient.artery,
        "scar_share": patient.scar_share,
        "qrs_ms": round(patient.heart.qrs_ms, 1),
        "phantom": True,
        "preset": config.preset,
    }


def _hospital_table(table: pd.DataFrame) -> pd.DataFrame:
    names = {name: table[name] for name in FLAGS}
    return pd.DataFrame(
        {
            "run_num": 1,
            "file_name": table["patient_id"],
            "lvef": table["lvef"],
            "scar_cad": table["scar"],
            "year": table["year"],
            "month": table["month"],
            "age": table["age"],
            **{_COLUMNS[name]: values for name, values in names.items()},
            "new_cut": 0,
            "impute": 0,
            "train_80_percent": (table["split"] == "train").astype(int),
            "develop_10_percent": (table["split"] == "validation").astype(int),
            "path": table["source"],
        }
    )
