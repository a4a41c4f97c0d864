"""Ultrasound DICOM files of a few pixels, with a patient and the size of their pixels."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)
from tiny_segments import SPACING

STUDY, SERIES = generate_uid(entropy_srcs=["study"]), generate_uid(entropy_srcs=["series"])


def echo_dicom(
    frames: NDArray[np.uint8],
    *,
    fps: float | None = 25.0,
    spacing: tuple[float, float] = SPACING,
    **tags: Any,
) -> bytes:
    """A still (H, W), or a cine (T, H, W), of an invented patient.

    Args:
        frames: the pixels.
        fps: of a cine; None states none.
        spacing: height and width of a pixel in mm.
        **tags: further tags, or others than the usual ones; None leaves one out.
    """
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    cine = frames.ndim == 3
    dataset.SOPClassUID = UltrasoundMultiFrameImageStorage if cine else UltrasoundImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = STUDY, SERIES
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20240131", "101500", "7"
    dataset.AccessionNumber, dataset.ReferringPhysicianName = "A1", "Doe^Jane"
    dataset.Modality, dataset.PatientID, dataset.PatientName = "US", "P1", "Muster^Anna"
    dataset.PatientBirthDate, dataset.PatientSex = "19500101", "F"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    if cine:
        dataset.NumberOfFrames = len(frames)
        if fps is not None:
            dataset.FrameTime = 1000 / fps
    dataset.Rows, dataset.Columns = frames.shape[-2:]
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = frames.tobytes() + b"\0" * (frames.size % 2)
    region = pydicom.Dataset()
    region.RegionSpatialFormat, region.RegionDataType = 1, 1
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 0, 0
    region.RegionLocationMaxX1 = frames.shape[-1] - 1
    region.RegionLocationMaxY1 = frames.shape[-2] - 1
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = spacing[1] / 10, spacing[0] / 10
    dataset.SequenceOfUltrasoundRegions = [region]
    for name, value in tags.items():
        if value is None:
            del dataset[name]
        else:
            setattr(dataset, name, value)
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()
