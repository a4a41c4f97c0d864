"""CAMUS as it is released: frames and label maps in NIfTI or MetaImage, with a text file a view.

Layout: one folder a patient, `<patient>_<2CH|4CH>_<ED|ES>.nii.gz` with `..._gt.nii.gz`, cines as
`..._half_sequence.nii.gz` (`..._sequence.mhd` in the older release), and `Info_<view>.cfg`.
S. Leclerc et al., IEEE Trans. Med. Imaging 38:2198-2210, 2019, doi:10.1109/TMI.2019.2900516.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cardioray import storage
from cardioray.data.layouts import SPLIT_NAMES, shown
from cardioray.data.manifest import Manifest
from cardioray.data.nifti import VOLUME_SUFFIXES

VIEWS = {"2CH": "A2C", "4CH": "A4C"}
PHASES = ("ED", "ES")

_FILE = re.compile(
    r"(?P<patient>patient\d+)_(?P<view>2CH|4CH)_(?P<what>ED|ES|half_sequence|sequence)(?P<gt>_gt)?"
    r"(?P<suffix>\.nii\.gz|\.nii|\.mhd|\.mha)",
    re.IGNORECASE,
)
_INFO = re.compile(r"Info_(2CH|4CH)\.cfg", re.IGNORECASE)
_LIST = re.compile(r"subgroup_(training|validation|testing)\.txt", re.IGNORECASE)

# What the text files call a number, in either release, and what it is called here.
_NUMBERS = {
    **{"ed": "ed_frame", "es": "es_frame", "nbframe": "num_frames", "framerate": "fps"},
    **{"ef": "ef", "lvef": "ef", "lvedv": "edv_ml", "lvesv": "esv_ml", "age": "age"},
}
_TEXTS = {"imagequality": "image_quality", "sex": "sex"}
# What a view says of its own cine; the rest is said of the patient.
_OF_VIEW = ("ed_frame", "es_frame", "num_frames", "fps", "image_quality")
_OF_PATIENT = ("ef", "edv_ml", "esv_ml", "age", "sex")
_RANGES = {"ef": (0.0, 100.0), "edv_ml": (0.0, 1000.0), "esv_ml": (0.0, 1000.0)}


@dataclass(frozen=True)
class _Files:
    """The files of one view of one patient, below the root."""

    pictures: dict[str, str]
    masks: dict[str, str]


def is_camus(files: list[str]) -> bool:
    """Whether a folder with these files is laid out as CAMUS is."""
    return any(_FILE.fullmatch(file.rsplit("/", 1)[-1]) for file in files)


def read_camus(root: str, patient_from: str | None = None) -> Manifest:
    """One row for each frame at end diastole or end systole that has a picture.

    Where a view has no picture or no label map of a phase, that of its frame in the cine is taken,
    by the number that `Info_*.cfg` gives. Columns beside the usual ones: `view` ("A2C", "A4C"),
    `phase` ("ED", "ES"), `mask` (label map, "" where there is none), `ef`, `edv_ml`, `esv_ml`,
    `image_quality`, `ed_frame`, `es_frame`, `fps`, `age`, `sex`. Lists of the official division
    (`subgroup_*.txt`), in the folder or below it, give `split`.

    Args:
        root: folder with a folder a patient; local or s3://.
        patient_from: refused, since the files name their patients.

    Raises:
        ValueError: when there is no such file, or a text file is wrong; names it.
    """
    if patient_from is not None:
        raise ValueError("CAMUS names its patients; leave out the patient pattern.")
    root = storage.absolute(root)
    files = storage.list_files(root, (*VOLUME_SUFFIXES, ".cfg", ".txt"))
    relative = [file[len(root.rstrip("/")) :].lstrip("/") for file in files]
    warnings: list[str] = []
    views, infos = _found(root, relative)
    if not views:
        raise ValueError(
            f"{root} holds no file named as CAMUS names them: patient0001_4CH_ED.nii.gz, with "
            "patient0001_4CH_ED_gt.nii.gz beside it."
        )
    rows = []
    for (patient, view), found in sorted(views.items()):
        info = infos.get((patient, view), {})
        said = _of_patient(patient, infos, warnings)
        own = {name: info.get(name) for name in _OF_VIEW}
        for phase in PHASES:
            place = _place(found, phase, info)
            if place is not None:
                rows.append(
                    {
                        "sample_id": f"{patient}_{VIEWS[view]}_{phase}",
                        "patient_id": patient,
                        "study_id": patient,
                        "view": VIEWS[view],
                        "phase": phase,
                        **place,
                        **own,
                        **said,
                    }
                )
    table = pd.DataFrame(rows)
    if table.empty:
        raise ValueError(f"{root} holds no frame at end diastole or end systole.")
    splits = _splits(root, relative, sorted(table["patient_id"].unique()), warnings)
    if splits is not None:
        table["split"] = table["patient_id"].map(splits)
    _warn_of_gaps(table, warnings)
    first = ["sample_id", "patient_id", "study_id", "view", "phase", "source", "frame", "mask"]
    table = table[[*first, *(name for name in table if name not in first)]]
    return Manifest(table=table, base=root, patients_known=True, warnings=tuple(warnings))


def _found(
    root: str, files: list[str]
) -> tuple[dict[tuple[str, str], _Files], dict[tuple[str, str], dict[str, float | str]]]:
    """Files and text file of every patient and view."""
    views: dict[tuple[str, str], _Files] = {}
    infos: dict[tuple[str, str], dict[str, float | str]] = {}
    patients: dict[str, str] = {}
    texts: list[tuple[str, str]] = []
    for file in files:
        folder, _, name = file.rpartition("/")
        if match := _FILE.fullmatch(name):
            patient, view = match["patient"].lower(), match["view"].upper()
            patients[folder] = patient
            what = match["what"].upper() if len(match["what"]) == 2 else "sequence"
            own = views.setdefault((patient, view), _Files({}, {}))
            (own.masks if match["gt"] else own.pictures)[what] = file
        elif match := _INFO.fullmatch(name):
            texts.append((file, match[1].upper()))
    for file, view in texts:
        folder = file.rpartition("/")[0]
        if folder in patients:
            infos[patients[folder], view] = _read_info(storage.join(root, file))
    return {key: own for key, own in views.items() if own.pictures}, infos


def _read_info(path: str) -> dict[str, float | str]:
    """The fields of one text file that are known here."""
    found: dict[str, float | str] = {}
    for number, line in enumerate(storage.read_bytes(path).decode("utf-8-sig").splitlines(), 1):
        key, colon, value = line.partition(":")
        name, value = key.strip().lower(), value.strip()
        if not colon or not value:
            continue
        if name in _TEXTS:
            found[_TEXTS[name]] = value
        elif name in _NUMBERS:
            found[_NUMBERS[name]] = _number(value, _NUMBERS[name], f"{path}, line {number}")
    return found


def _number(text: str, name: str, place: str) -> float:
    try:
        value = float(text.rstrip("%").strip())
    except ValueError:
        raise ValueError(f"{place}: {name} is {text!r}, which is no number.") from None
    low, high = _RANGES.get(name, (-np.inf, np.inf))
    if not low <= value <= high:
        raise ValueError(f"{place}: {name} is {value:g}, outside [{low:g}, {high:g}].")
    return value


def _of_patient(
    patient: str,
    infos: Mapping[tuple[str, str], Mapping[str, float | str]],
    warnings: list[str],
) -> dict[str, float | str | None]:
    """What both text files say of a patient; where they differ, the four-chamber view's counts."""
    four, two = (infos.get((patient, view), {}) for view in ("4CH", "2CH"))
    said: dict[str, float | str | None] = {}
    for name in _OF_PATIENT:
        first, second = four.get(name), two.get(name)
        said[name] = second if first is None else first
        text = f"{patient}: {name} is {first} by Info_4CH.cfg, which counts, and {second} by the"
        text += " other one."
        if None not in (first, second) and first != second and text not in warnings:
            warnings.append(text)
    return said


def _place(
    found: _Files, phase: str, info: Mapping[str, float | str]
) -> dict[str, str | None] | None:
    """Source, frame and mask of a phase; None where there is no picture of it.

    What has no file of the phase's own is in the cine, in the frame that the text file names.
    """
    picture, mask = found.pictures.get(phase), found.masks.get(phase)
    number, frame = info.get(f"{phase.lower()}_frame"), ""
    if isinstance(number, float):
        in_cine = picture is None or (mask is None and "sequence" in found.masks)
        frame = str(int(number) - 1) if in_cine else ""
        picture = picture or found.pictures.get("sequence")
        mask = mask or found.masks.get("sequence")
    return None if picture is None else {"source": picture, "frame": frame, "mask": mask or ""}


def _splits(
    root: str, files: list[str], patients: list[str], warnings: list[str]
) -> dict[str, str] | None:
    """The split of every patient by the lists that are there; None without lists."""
    splits: dict[str, str] = {}
    names = {"testing": "test", "training": "train", "validation": "validation"}
    for file in files:
        match = _LIST.fullmatch(file.rsplit("/", 1)[-1])
        if not match:
            continue
        split = names[match[1].lower()]
        assert split in SPLIT_NAMES.values()
        for patient in storage.read_bytes(storage.join(root, file)).decode().split():
            if splits.setdefault(patient.lower(), split) != split:
                raise ValueError(f"{patient} is in two lists of the division below {root}.")
    if not splits:
        return None
    unlisted = [patient for patient in patients if patient not in splits]
    if unlisted:
        warnings.append(
            f"{len(unlisted)} patient(s) stand in no list of the division and are taken for "
            f"training: {shown(unlisted)}."
        )
    return {patient: splits.get(patient, "train") for patient in patients}


def _warn_of_gaps(table: pd.DataFrame, warnings: list[str]) -> None:
    """Say which frames and masks are missing."""
    counts = table.groupby("patient_id").size()
    fewer = counts.index[counts < len(VIEWS) * len(PHASES)].tolist()
    if fewer:
        warnings.append(
            f"{len(fewer)} patient(s) have not both phases of both views: {shown(fewer)}."
        )
    bare = table["sample_id"][table["mask"] == ""].tolist()
    if bare:
        warnings.append(f"{len(bare)} frame(s) have no label map: {shown(bare)}.")
