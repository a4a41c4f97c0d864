"""DICOM results of many studies as files: `<table>.dicom/<study>/A4C.seg.dcm`, `report.sr.dcm`."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset

from cardioray import config, storage
from cardioray.data.nifti import read_source
from cardioray.dicom_results.objects import DicomKind, read_sources, require_highdicom
from cardioray.inference.actors import SourceFile
from cardioray.outlines import parse_view, shown_as
from cardioray.predictor import Predictor
from cardioray.segments import SegmentPredictor

_NAME_LETTERS = 60


@dataclass(frozen=True)
class DicomFiles:
    """Which DICOM results are written, and where.

    Attributes:
        kinds: "seg", "sr"; () for none.
        folder: local folder or s3:// prefix.
    """

    kinds: tuple[DicomKind, ...]
    folder: str

    def require(self, predictor: Predictor) -> None:
        """Refuse what could not be made.

        Raises:
            ValueError: when the task draws no outlines, or the library is missing.
        """
        if not self.kinds:
            return
        if not isinstance(predictor, SegmentPredictor):
            raise ValueError(
                "DICOM results hold outlines and what is measured in them, and "
                f"{predictor.task.name} draws none. Leave out --dicom."
            )
        require_highdicom()

    def options(self, files: Sequence[SourceFile]) -> dict[str, Any]:
        """What `SegmentPredictor.answer` needs for a study of some files.

        Raises:
            UnreadableImage: when one of them is none that a result could refer to.
        """
        if not self.kinds:
            return {}
        contents = {shown_as(*parse_view(file.view)): read_source(file.path) for file in files}
        sources: Mapping[str, Dataset] = read_sources(contents)
        return {"dicom": self.kinds, "sources": sources}

    def write(self, study_id: str, answer: dict[str, Any]) -> dict[str, Any]:
        """Write the results of an answer; it then holds their paths in their place."""
        if not self.kinds:
            return answer
        folder = storage.join(self.folder, _folder_name(study_id))
        paths = []
        for result in answer["dicom"]:
            path = storage.join(folder, result["name"])
            storage.write_bytes(path, base64.b64decode(result["dicom"].partition(",")[2]))
            paths.append(path)
        return {**answer, "dicom": paths}


def _folder_name(study_id: str) -> str:
    """A study as the name of a folder: what is readable of it, and what tells it apart."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", study_id)[-_NAME_LETTERS:].strip("._")
    return readable if readable == study_id else f"{readable}-{config.digest(study_id)[:8]}"
