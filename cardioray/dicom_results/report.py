"""Volumes and ejection fraction as a DICOM report.

TID 1500 of DICOM PS3.16 with the LOINC codes of its CID 12300 (core echo measurements).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from cardioray.clinical.volumes import FOUR, TWO
from cardioray.dicom_results.objects import (
    IDENTIFIERS,
    INTELLIGENCE,
    MAKER,
    NOT_CLINICAL,
    SERIES_NUMBERS,
    VENTRICLE,
    DicomResult,
    Model,
    copy_patient,
    equipment,
    item,
    written,
)
from cardioray.outlines import OutlinedBeat, StudyOutlines

if TYPE_CHECKING:
    from highdicom import sr

_COMMENT = Code("121106", "DCM", "Comment")
_ECHO = Code("433236007", "SCT", "Transthoracic echocardiography")
_DEVICE = Code("121007", "DCM", "Device")
_ML, _PERCENT = Code("ml", "UCUM", "ml"), Code("%", "UCUM", "Percent")
# By method and number of views; DICOM CID 12227.
_METHODS = {
    ("discs", 2): Code("125207", "DCM", "Method of Disks, Biplane"),
    ("discs", 1): Code("125208", "DCM", "Method of Disks, Single Plane"),
    ("area_length", 2): Code("125204", "DCM", "Area-Length Biplane"),
    ("area_length", 1): Code("125205", "DCM", "Area-Length Single Plane"),
}
# What is measured, whatever the method; DICOM CID 12202.
_NAMES = {
    "edv": Code("18026-5", "LN", "Left Ventricular End Diastolic Volume"),
    "esv": Code("18148-7", "LN", "Left Ventricular End Systolic Volume"),
    "ef": Code("18043-0", "LN", "Left Ventricular Ejection Fraction by US"),
}
# By discs, by the views they rest on; DICOM CID 12300.
_BY_DISCS = {
    (FOUR, TWO): {
        "edv": Code("79996-5", "LN", "Left ventricular end diastolic volume biplane (MOD)"),
        "esv": Code("80001-1", "LN", "Left ventricular end systolic volume biplane (MOD)"),
        "ef": Code("79991-6", "LN", "Left ventricular ejection fraction biplane (MOD)"),
    },
    (FOUR,): {
        "edv": Code("79999-9", "LN", "Left ventricular end diastolic volume single plane 4C (MOD)"),
        "esv": Code("80004-5", "LN", "Left ventricular end systolic volume single plane 4C (MOD)"),
        "ef": Code("79993-2", "LN", "Left ventricular ejection fraction single plane 4C (MOD)"),
    },
    (TWO,): {
        "edv": Code("79998-1", "LN", "Left ventricular end diastolic volume single plane 2C (MOD)"),
        "esv": Code("80003-7", "LN", "Left ventricular end systolic volume single plane 2C (MOD)"),
        "ef": Code("79992-4", "LN", "Left ventricular ejection fraction single plane 2C (MOD)"),
    },
}
_UNITS = {"edv": _ML, "esv": _ML, "ef": _PERCENT}
_TITLES = {
    "edv": "End-diastolic volume",
    "esv": "End-systolic volume",
    "ef": "Ejection fraction",
}
_MEASURED = {"edv": "edv_ml", "esv": "esv_ml", "ef": "ef_percent"}


def report(
    study: StudyOutlines, answer: Mapping[str, Any], sources: Mapping[str, Dataset], model: Model
) -> DicomResult:
    """The numbers of an answer as a measurement report.

    Volumes and ejection fraction as they were measured, with their method and the frames that they
    rest on; those that are calibrated, with their interval; and the ejection fraction of each beat.

    Args:
        study: what the answer rests on.
        answer: of `SegmentPredictor.answer`.
        sources: of `read_sources`, by what each shows.
        model: what outlined them.
    """
    import highdicom
    from highdicom import sr

    algorithm = sr.AlgorithmIdentification(
        name=f"{MAKER} lv-seg {model.name}",
        version=model.identity,
        parameters=[NOT_CLINICAL],
        family=INTELLIGENCE,
    )
    observer = sr.ObserverContext(
        observer_type=sr.CodedConcept.from_code(_DEVICE),
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=generate_uid(entropy_srcs=[MAKER, model.identity]),
            name=MAKER,
            manufacturer_name=MAKER,
            model_name=model.name,
        ),
    )
    groups = [_study_group(study, answer, sources, algorithm)]
    method = answer["volumes"]["method"]
    groups += [
        _beat_group(number, beat, study, sources[beat.view], method, algorithm)
        for number, beat in enumerate(study.beats, 1)
        if beat.ef_percent is not None
    ]
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_person_context=None, observer_device_context=observer
        ),
        procedure_reported=_ECHO,
        imaging_measurements=groups,
    )
    images = list(sources.values())
    document = sr.ComprehensiveSR(
        evidence=[_anonymous(image) for image in images],
        content=content,
        series_instance_uid=highdicom.UID(),
        series_number=SERIES_NUMBERS["sr"],
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        is_complete=True,
        series_description=f"{NOT_CLINICAL}: {MAKER} measurements",
        **equipment(model),
    )
    copy_patient(document, images[0])
    return DicomResult("sr", "", str(document.SOPInstanceUID), written(document))


def _study_group(
    study: StudyOutlines,
    answer: Mapping[str, Any],
    sources: Mapping[str, Dataset],
    algorithm: sr.AlgorithmIdentification,
) -> sr.MeasurementsAndQualitativeEvaluations:
    from highdicom import sr

    volumes = answer["volumes"]
    views, method = tuple(volumes["views"]), volumes["method"]
    code = _METHODS[method, len(views)]
    names = _BY_DISCS[views] if method == "discs" else _NAMES
    measurements = [
        _measurement(names[name], volumes[key], name, f"{_TITLES[name]}, as measured", method=code)
        for name, key in _MEASURED.items()
    ]
    for name in (name for name in _NAMES if name in answer):
        found = answer[name]
        interval = sr.MeasurementProperties(
            upper_measurement_uncertainty=_beyond(found["high"], found["value"]),
            lower_measurement_uncertainty=_beyond(found["value"], found["low"]),
        )
        measurements.append(
            _measurement(
                _NAMES[name],
                found["value"],
                name,
                f"{_TITLES[name]}, calibrated",
                properties=interval,
            )
        )
    images = []
    for said, source in sources.items():
        if said[:3] not in views:
            continue
        used = {study.frames[i].frame for b in study.beats if b.view == said for i in (b.ed, b.es)}
        images.append(_image(source, sorted(used)))
    remarks = [
        f"{NOT_CLINICAL}. A result of research software, not reviewed by a physician.",
        *answer["warnings"],
    ]
    return _group("Left ventricle", measurements, images, algorithm, remarks)


def _beat_group(
    number: int,
    beat: OutlinedBeat,
    study: StudyOutlines,
    source: Dataset,
    method: str,
    algorithm: sr.AlgorithmIdentification,
) -> sr.MeasurementsAndQualitativeEvaluations:
    ed, es = (study.frames[place].frame for place in (beat.ed, beat.es))
    names = _BY_DISCS[beat.view,] if method == "discs" else _NAMES
    assert beat.ef_percent is not None
    code = _METHODS[method, 1]
    title = f"{_TITLES['ef']} of beat {number}, as measured"
    measurement = _measurement(names["ef"], beat.ef_percent, "ef", title, method=code)
    remark = f"{NOT_CLINICAL}. End diastole in frame {ed + 1}, end systole in frame {es + 1}."
    title = f"Beat {number}, {beat.view}"
    return _group(title, [measurement], [_image(source, [ed, es])], algorithm, [remark])


def _measurement(
    name: Code, value: float, unit_of: str, title: str, **details: Any
) -> sr.Measurement:
    from highdicom import sr

    return sr.Measurement(
        name=name,
        value=value,
        unit=_UNITS[unit_of],
        tracking_identifier=sr.TrackingIdentifier(identifier=title),
        **details,
    )


def _group(
    title: str,
    measurements: Sequence[sr.Measurement],
    images: Sequence[sr.SourceImageForMeasurementGroup],
    algorithm: sr.AlgorithmIdentification,
    remarks: Sequence[str],
) -> sr.MeasurementsAndQualitativeEvaluations:
    import highdicom
    from highdicom import sr

    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=highdicom.UID(), identifier=title),
        finding_sites=[sr.FindingSite(anatomic_location=VENTRICLE)],
        algorithm_id=algorithm,
        measurements=measurements,
        source_images=images,
    )
    # TID 1501 may be extended; the library's constructor has no remarks.
    group[0].ContentSequence.extend(
        sr.TextContentItem(
            name=_COMMENT, value=remark, relationship_type=sr.RelationshipTypeValues.CONTAINS
        )
        for remark in remarks
    )
    return group


def _image(source: Dataset, frames: Sequence[int]) -> sr.SourceImageForMeasurementGroup:
    """A source, and the frames of it that count from 0; () for the whole."""
    from highdicom import sr

    return sr.SourceImageForMeasurementGroup(
        referenced_sop_class_uid=source.SOPClassUID,
        referenced_sop_instance_uid=source.SOPInstanceUID,
        referenced_frame_numbers=[frame + 1 for frame in frames] or None,
    )


def _anonymous(source: Dataset) -> Dataset:
    """Identifiers and empty tags: highdicom takes patients from its evidence, and checks them."""
    evidence = item(**{name: source.get(name) for name in IDENTIFIERS})
    for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex"):
        setattr(evidence, name, "")
    for name in ("AccessionNumber", "StudyID", "StudyDate", "StudyTime"):
        setattr(evidence, name, "")
    return evidence


def _beyond(larger: float | None, smaller: float | None) -> float | None:
    return None if larger is None or smaller is None else larger - smaller
