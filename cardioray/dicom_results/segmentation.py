"""Outlines as a DICOM segmentation.

It is made here and not by `highdicom.seg.Segmentation`: that one takes several frames only from
sources with a frame of reference, which ultrasound has none of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pack_bits
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage

from cardioray.data.label_maps import STRUCTURES
from cardioray.dicom_results.objects import (
    INTELLIGENCE,
    LONG_STRING,
    MAKER,
    NOT_CLINICAL,
    SERIES_NUMBERS,
    VENTRICLE,
    DicomResult,
    Model,
    coded,
    copy_patient,
    equipment,
    item,
    written,
)
from cardioray.outlines import COLOURS, Segmented

if TYPE_CHECKING:
    from highdicom import SOPClass

_LABEL = "NOT_FOR_CLINICAL"  # all that 16 characters hold of it
_ANATOMY = Code("91723000", "SCT", "Anatomical Structure")
_STRUCTURE_CODES = {
    "cavity": VENTRICLE,
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
        found.append(DicomResult("seg", said, str(dataset.SOPInstanceUID), written(dataset)))
    return found


def _filed(sop_class: str, source: Dataset, series: str, number: int, model: Model) -> SOPClass:
    """An empty segmentation in the study of its source."""
    import highdicom

    dataset = highdicom.SOPClass(
        study_instance_uid=source.StudyInstanceUID,
        series_instance_uid=series,
        series_number=SERIES_NUMBERS["seg"],
        sop_instance_uid=highdicom.UID(),
        sop_class_uid=sop_class,
        instance_number=number,
        modality="SEG",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        series_description=f"{NOT_CLINICAL}: {MAKER} outlines",
        **equipment(model),
    )
    copy_patient(dataset, source)
    return dataset


def _add_segments(dataset: Dataset, model: Model) -> None:
    import highdicom
    from highdicom.color import CIELabColor

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=f"{MAKER} lv-seg {model.name}"[:LONG_STRING],
        family=INTELLIGENCE,
        version=model.identity,
        source=MAKER,
    )
    dataset.SegmentationType = "BINARY"
    dataset.SegmentsOverlap = "NO"
    dataset.ContentLabel = _LABEL
    dataset.ContentDescription = f"{NOT_CLINICAL}: outlines of the left heart"
    dataset.ContentCreatorName = MAKER
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
    dataset.DimensionOrganizationSequence = [item(DimensionOrganizationUID=organization)]
    dataset.DimensionIndexSequence = [
        item(
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
    reference = item(
        ReferencedSOPClassUID=source.SOPClassUID,
        ReferencedSOPInstanceUID=source.SOPInstanceUID,
        SpatialLocationsPreserved="YES",
        PurposeOfReferenceCodeSequence=[coded(_SOURCE)],
    )
    if "NumberOfFrames" in source:
        reference.ReferencedFrameNumber = frame.frame + 1
    content = item(DimensionIndexValues=[segment, position], TemporalPositionIndex=position)
    derivation = item(SourceImageSequence=[reference], DerivationCodeSequence=[coded(_DERIVED_BY)])
    return item(
        FrameContentSequence=[content],
        SegmentIdentificationSequence=[item(ReferencedSegmentNumber=segment)],
        DerivationImageSequence=[derivation],
    )


def _add_references(dataset: Dataset, source: Dataset) -> None:
    instance = item(
        ReferencedSOPClassUID=source.SOPClassUID, ReferencedSOPInstanceUID=source.SOPInstanceUID
    )
    dataset.ReferencedSeriesSequence = [
        item(SeriesInstanceUID=source.SeriesInstanceUID, ReferencedInstanceSequence=[instance])
    ]
