"""Outlines and volumes as DICOM objects: a segmentation (SEG) and a measurement report (SR).

Both are results of research: series description, content label and text say that they are not for
clinical use. They are filed with the study that they were made of, so that patient and study are
copied from its files; nothing of them is logged.

The report is TID 1500 of DICOM PS3.16 with the LOINC codes of its CID 12300 (core echo
measurements). A segmentation is made here and not by `highdicom.seg.Segmentation`: that one takes
several frames only from sources with a frame of reference, which ultrasound has none of.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pack_bits
from pydicom.sr.coding import Code
from pydicom.uid import (
    ExplicitVRLittleEndian,
    SegmentationStorage,
    UltrasoundImageStorage,
    generate_uid,
)

from cardioray import __version__
from cardioray.clinical.volumes import FOUR, TWO
from cardioray.data.frames import UnreadableImage, damage_explained
from cardioray.data.label_maps import STRUCTURES
from cardioray.outlines import COLOURS, OutlinedBeat, Segmented, StudyOutlines
from cardioray.registry import unknown_name

if TYPE_CHECKING:
    from highdicom import SOPClass, sr

DicomKind = Literal["seg", "sr"]
KINDS: tuple[DicomKind, ...] = ("seg", "sr")

NOT_CLINICAL = "NOT FOR CLINICAL USE"
_LABEL = "NOT_FOR_CLINICAL"  # all that 16 characters hold of it
_MAKER = "CardioRay"
# Behind the series of the scanner.
_SERIES_NUMBERS: dict[DicomKind, int] = {"seg": 9001, "sr": 9002}
_IDENTIFIERS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_LONG_STRING = 64

_ANATOMY = Code("91723000", "SCT", "Anatomical Structure")
_VENTRICLE = Code("87878005", "SCT", "Left ventricle")
_STRUCTURE_CODES = {
    "cavity": _VENTRICLE,
    "myocardium": Code("49848007", "SCT", "Left Ventricle Myocardium"),
    "atrium": Code("82471001", "SCT", "Left atrium"),
}
_SEGMENT_LABELS = {
    "cavity": "Left-ventricular cavity",
    "myocardium": "Left-ventricular myocardium",
    "atrium": "Left atrium",
}
_SOURCE = Code("121322", "DCM", "Source image for image processing operation")
_DERIVED_BY = Code("113076", "DCM", "Segmentation")
_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")
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


class DicomResultsUnavailable(ValueError):  # noqa: N818 (a state of the installation)
    """The library that makes them is not installed; says how to install it."""


@dataclass(frozen=True)
class Model:
    """What made the outlines.

    Attributes:
        name: of the bundle.
        identity: hash over its files.
        structures: that it tells apart.
    """

    name: str
    identity: str
    structures: tuple[str, ...]


@dataclass(frozen=True)
class DicomResult:
    """A DICOM object, ready to be stored.

    Attributes:
        kind: "seg" or "sr".
        said: of a segmentation, view and phase of its source: "A4C-ED", or "A4C" of a cine; of a
            report, "".
        sop_instance_uid: what other objects refer to it by.
        content: the file.
    """

    kind: DicomKind
    said: str
    sop_instance_uid: str
    content: bytes

    @property
    def file_name(self) -> str:
        """ "A4C-ED.seg.dcm", or "report.sr.dcm"."""
        return f"{self.said or 'report'}.{self.kind}.dcm"


def require_highdicom() -> None:
    """Say how to install the library, where it is missing.

    Raises:
        DicomResultsUnavailable: when it is.
    """
    try:
        import highdicom  # noqa: F401
    except ImportError:
        raise DicomResultsUnavailable(
            "DICOM results are made by highdicom, which is not installed: "
            "pip install 'cardioray[dicom-results]'."
        ) from None


def dicom_kinds(names: Sequence[str]) -> tuple[DicomKind, ...]:
    """Kinds of results by their names, each once.

    Raises:
        ValueError: for an unknown one; names the known ones.
    """
    for name in names:
        if name not in KINDS:
            raise unknown_name("kind of DICOM result", name, KINDS)
    return tuple(kind for kind in KINDS if kind in names)


def read_sources(files: Mapping[str, bytes | None]) -> dict[str, Dataset]:
    """The headers of the files of a study, which DICOM results refer to.

    Args:
        files: by what each shows, its content; None where there is no file.

    Raises:
        UnreadableImage: when one is no DICOM file, or has no identifiers to refer to, or they are
            of several studies.
    """
    sources = {said: _header(said, data) for said, data in files.items()}
    if len({source.StudyInstanceUID for source in sources.values()}) > 1:
        raise UnreadableImage(
            "The files are of several DICOM studies (Study Instance UID), and a result is filed "
            "with one. Send the files of one study, or leave out dicom."
        )
    return sources


def _header(said: str, data: bytes | None) -> Dataset:
    if data is None or data[128:132] != b"DICM":
        raise UnreadableImage(
            "A DICOM result refers to the DICOM images that it was made of, and what was sent as "
            f"{said} is no DICOM file. Send DICOM files, or leave out dicom."
        )
    with damage_explained("The DICOM file cannot be decoded"):
        header = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
        missing = [name for name in _IDENTIFIERS if not header.get(name)]
    if missing:
        raise UnreadableImage(
            f"The DICOM file that was sent as {said} has no {', '.join(missing)}, so that a "
            "result has nothing to refer to. Leave out dicom."
        )
    return header


def segmentations(
    frames: Sequence[Segmented], sources: Mapping[str, Dataset], model: Model
) -> list[DicomResult]:
    """A binary segmentation of each source, with a segment for each structure in every frame.

    Args:
        frames: outlined frames of one study.
        sources: of `read_sources`, by what each shows.
        model: what outlined them.
    """
    import highdicom

    series, found = highdicom.UID(), []
    for number, (said, source) in enumerate(sources.items(), 1):
        own = [frame for frame in frames if frame.said == said]
        dataset = _filed(SegmentationStorage, source, series, number, model)
        _add_segments(dataset, model)
        _add_frames(dataset, own, source, model)
        _add_references(dataset, source)
        found.append(DicomResult("seg", said, str(dataset.SOPInstanceUID), _written(dataset)))
    return found


def _filed(sop_class: str, source: Dataset, series: str, number: int, model: Model) -> SOPClass:
    """An empty segmentation in the study of its source."""
    import highdicom

    dataset = highdicom.SOPClass(
        study_instance_uid=source.StudyInstanceUID,
        series_instance_uid=series,
        series_number=_SERIES_NUMBERS["seg"],
        sop_instance_uid=highdicom.UID(),
        sop_class_uid=sop_class,
        instance_number=number,
        modality="SEG",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        series_description=f"{NOT_CLINICAL}: {_MAKER} outlines",
        **_equipment(model),
    )
    _copy_patient(dataset, source)
    return dataset


def _equipment(model: Model) -> dict[str, Any]:
    return {
        "manufacturer": _MAKER,
        "manufacturer_model_name": model.name[:_LONG_STRING],
        "device_serial_number": model.identity[:_LONG_STRING],
        "software_versions": __version__,
    }


def _copy_patient(dataset: SOPClass, source: Dataset) -> None:
    """Patient and study as the source states them.

    highdicom would check them, and quote a name that it does not like in a warning.
    """
    stated = copy.deepcopy(source)
    # Their modules are those of every image, and the library does not know retired kinds.
    stated.SOPClassUID = UltrasoundImageStorage
    if "SpecificCharacterSet" in stated:
        dataset.SpecificCharacterSet = stated.SpecificCharacterSet
    dataset.copy_patient_and_study_information(stated)


def _add_segments(dataset: Dataset, model: Model) -> None:
    import highdicom
    from highdicom.color import CIELabColor

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=f"{_MAKER} lv-seg {model.name}"[:_LONG_STRING],
        family=_INTELLIGENCE,
        version=model.identity,
        source=_MAKER,
    )
    dataset.SegmentationType = "BINARY"
    dataset.SegmentsOverlap = "NO"
    dataset.ContentLabel = _LABEL
    dataset.ContentDescription = f"{NOT_CLINICAL}: outlines of the left heart"
    dataset.ContentCreatorName = _MAKER
    dataset.SegmentSequence = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=_SEGMENT_LABELS[name],
            segmented_property_category=_ANATOMY,
            segmented_property_type=_STRUCTURE_CODES[name],
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            display_color=CIELabColor.from_rgb(*COLOURS[name]),
        )
        for number, name in enumerate(model.structures, 1)
    ]


def _add_frames(
    dataset: Dataset, frames: Sequence[Segmented], source: Dataset, model: Model
) -> None:
    """Pixels, segment after segment and in each frame after frame, and what each frame is of."""
    import highdicom

    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.PixelRepresentation = 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 1, 0
    dataset.Rows, dataset.Columns = frames[0].labels.shape
    dataset.NumberOfFrames = len(frames) * len(model.structures)
    dataset.LossyImageCompression = source.get("LossyImageCompression") or "00"
    for name in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if name in source and dataset.LossyImageCompression == "01":
            dataset[name] = source[name]
    organization = highdicom.UID()
    dataset.DimensionOrganizationSequence = [_item(DimensionOrganizationUID=organization)]
    dataset.DimensionIndexSequence = [
        _item(
            DimensionIndexPointer=pydicom.datadict.tag_for_keyword(pointer),
            FunctionalGroupPointer=pydicom.datadict.tag_for_keyword(group),
            DimensionOrganizationUID=organization,
            DimensionDescriptionLabel=pointer,
        )
        for pointer, group in (
            ("ReferencedSegmentNumber", "SegmentIdentificationSequence"),
            ("TemporalPositionIndex", "FrameContentSequence"),
        )
    ]
    dataset.SharedFunctionalGroupsSequence = [Dataset()]
    groups, bits = [], []
    for number, name in enumerate(model.structures, 1):
        for position, frame in enumerate(frames, 1):
            groups.append(_frame_groups(number, position, frame, source))
            bits.append((frame.labels == STRUCTURES[name]).ravel())
    dataset.PerFrameFunctionalGroupsSequence = groups
    dataset.PixelData = pack_bits(np.concatenate(bits).view(np.uint8))


def _frame_groups(segment: int, position: int, frame: Segmented, source: Dataset) -> Dataset:
    reference = _item(
        ReferencedSOPClassUID=source.SOPClassUID,
        ReferencedSOPInstanceUID=source.SOPInstanceUID,
        SpatialLocationsPreserved="YES",
        PurposeOfReferenceCodeSequence=[_coded(_SOURCE)],
    )
    if "NumberOfFrames" in source:
        reference.ReferencedFrameNumber = frame.frame + 1
    content = _item(DimensionIndexValues=[segment, position], TemporalPositionIndex=position)
    derivation = _item(
        SourceImageSequence=[reference], DerivationCodeSequence=[_coded(_DERIVED_BY)]
    )
    return _item(
        FrameContentSequence=[content],
        SegmentIdentificationSequence=[_item(ReferencedSegmentNumber=segment)],
        DerivationImageSequence=[derivation],
    )


def _add_references(dataset: Dataset, source: Dataset) -> None:
    instance = _item(
        ReferencedSOPClassUID=source.SOPClassUID, ReferencedSOPInstanceUID=source.SOPInstanceUID
    )
    dataset.ReferencedSeriesSequence = [
        _item(SeriesInstanceUID=source.SeriesInstanceUID, ReferencedInstanceSequence=[instance])
    ]


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
        name=f"{_MAKER} lv-seg {model.name}",
        version=model.identity,
        parameters=[NOT_CLINICAL],
        family=_INTELLIGENCE,
    )
    observer = sr.ObserverContext(
        observer_type=sr.CodedConcept.from_code(_DEVICE),
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=generate_uid(entropy_srcs=[_MAKER, model.identity]),
            name=_MAKER,
            manufacturer_name=_MAKER,
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
        series_number=_SERIES_NUMBERS["sr"],
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        is_complete=True,
        series_description=f"{NOT_CLINICAL}: {_MAKER} measurements",
        **_equipment(model),
    )
    _copy_patient(document, images[0])
    return DicomResult("sr", "", str(document.SOPInstanceUID), _written(document))


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
        finding_sites=[sr.FindingSite(anatomic_location=_VENTRICLE)],
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
    evidence = _item(**{name: source.get(name) for name in _IDENTIFIERS})
    for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex"):
        setattr(evidence, name, "")
    for name in ("AccessionNumber", "StudyID", "StudyDate", "StudyTime"):
        setattr(evidence, name, "")
    return evidence


def _beyond(larger: float | None, smaller: float | None) -> float | None:
    return None if larger is None or smaller is None else larger - smaller


def _item(**values: Any) -> Dataset:
    dataset = Dataset()
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


def _coded(code: Code) -> Dataset:
    from highdicom.sr import CodedConcept

    return CodedConcept.from_code(code)


def _written(dataset: Dataset) -> bytes:
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()
