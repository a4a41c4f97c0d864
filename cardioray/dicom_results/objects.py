"""What DICOM results have in common: their sources, their maker, and how they are handed out."""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pydicom
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import UltrasoundImageStorage

from cardioray import __version__
from cardioray.data.frames import UnreadableImage, damage_explained
from cardioray.registry import unknown_name

if TYPE_CHECKING:
    from highdicom import SOPClass

DicomKind = Literal["seg", "sr"]
KINDS: tuple[DicomKind, ...] = ("seg", "sr")

NOT_CLINICAL = "NOT FOR CLINICAL USE"
MAKER = "CardioRay"
# Behind the series of the scanner.
SERIES_NUMBERS: dict[DicomKind, int] = {"seg": 9001, "sr": 9002}
IDENTIFIERS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
LONG_STRING = 64

VENTRICLE = Code("87878005", "SCT", "Left ventricle")
INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")


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
        missing = [name for name in IDENTIFIERS if not header.get(name)]
    if missing:
        raise UnreadableImage(
            f"The DICOM file that was sent as {said} has no {', '.join(missing)}, so that a "
            "result has nothing to refer to. Leave out dicom."
        )
    return header


def equipment(model: Model) -> dict[str, Any]:
    """What made an object, as `highdicom.SOPClass` takes it."""
    return {
        "manufacturer": MAKER,
        "manufacturer_model_name": model.name[:LONG_STRING],
        "device_serial_number": model.identity[:LONG_STRING],
        "software_versions": __version__,
    }


def copy_patient(dataset: SOPClass, source: Dataset) -> None:
    """Patient and study as the source states them.

    highdicom would check them, and quote a name that it does not like in a warning.
    """
    stated = copy.deepcopy(source)
    # Their modules are those of every image, and the library does not know retired kinds.
    stated.SOPClassUID = UltrasoundImageStorage
    if "SpecificCharacterSet" in stated:
        dataset.SpecificCharacterSet = stated.SpecificCharacterSet
    dataset.copy_patient_and_study_information(stated)


def item(**values: Any) -> Dataset:
    """A dataset of some tags by their keywords."""
    dataset = Dataset()
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


def coded(code: Code) -> Dataset:
    """A code as an item of a sequence."""
    from highdicom.sr import CodedConcept

    return CodedConcept.from_code(code)


def written(dataset: Dataset) -> bytes:
    """A DICOM file."""
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()
