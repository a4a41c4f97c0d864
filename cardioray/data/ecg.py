"""From an ECG as hospitals store it to what a network takes: a canonical page, and signals.

Pictures and PDF pages are read (`ecg_page`); recorded signals are printed first, so that a network
for pictures sees all of them alike.
"""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydantic import Field
from scipy.signal import resample_poly

from cardioray.config import config
from cardioray.data.decoding import DecodedSample, Inspection, inspection, picture_of
from cardioray.data.ecg_canonical import CANONICAL_PX, canonical
from cardioray.data.ecg_leads import LAYOUTS, EcgSignals
from cardioray.data.ecg_page import EcgPage, PageSettings, read_page
from cardioray.data.ecg_paper import PaperStyle, draw_page
from cardioray.data.ecg_records import is_archive, is_waveform, read_archive, read_waveform
from cardioray.data.frames import (
    ALL_FRAMES,
    MAX_FRAMES,
    RASTER_KINDS,
    FrameSelection,
    UInt8Image,
    UnreadableImage,
    damage_explained,
    sniff,
)
from cardioray.data.image import read_numbered_frames
from cardioray.data.pdf import is_pdf, read_pages

PICTURE = "page"
SIGNALS = "signals"
ACCEPTED_ECGS = (
    "Accepted are PDF, PNG, JPEG, BMP and TIFF pages, DICOM waveforms and pictures, and WFDB "
    "records as a ZIP archive of their files."
)
# How recorded signals are printed before they are read.
_PRINTED = "3x4+1"
# Signals are kept as two bytes a sample: steps of 1 uV around the middle, 0 where not known.
_STEPS_PER_MV, _MIDDLE = 1000.0, 32768


@config
class EcgPreprocess:
    """What becomes of an ECG before it is stored or shown to a model.

    Attributes:
        page: how pictures are read.
        image_size: side of the picture that a model sees, in px: 12 leads in 6 rows and 2 columns.
        rate_hz: samples a second of the signals.
        seconds: how much of each lead there is.
        pdf_dpi: resolution at which PDF pages are drawn.
    """

    page: PageSettings = PageSettings()
    image_size: int = Field(default=CANONICAL_PX, ge=96, le=1536, multiple_of=6)
    rate_hz: int = Field(default=100, ge=50, le=500)
    seconds: float = Field(default=2.5, ge=1, le=10)
    pdf_dpi: float = Field(default=200.0, ge=72, le=600)

    @property
    def num_samples(self) -> int:
        """Of each lead."""
        return round(self.seconds * self.rate_hz)


@config
class EcgDecoder:
    """Each ECG of a file as a canonical page and as signals.

    Attributes:
        preprocess: from the decoded page or record to the arrays.
    """

    preprocess: EcgPreprocess

    @property
    def columns(self) -> tuple[str, ...]:
        """The canonical page (S, S, 1), and signals as bytes (12, N, 2)."""
        return (PICTURE, SIGNALS)

    @property
    def selection(self) -> FrameSelection:
        """All pages."""
        return ALL_FRAMES

    @property
    def accepted(self) -> str:
        """Pages and records."""
        return ACCEPTED_ECGS

    @property
    def risky(self) -> bool:
        """PDF files are programs of a kind, and their reader is not written in Python."""
        return True

    def decode(
        self, data: bytes, frames: str | None, max_frames: int = MAX_FRAMES
    ) -> list[DecodedSample]:
        """Read the ECGs of a file; of a document, the pages that show one.

        The facts of a sample: `mm_per_mv` and `mm_per_s` of the page, and `layout`, the number of
        its arrangement in `LAYOUTS`, NaN for one that is not known and was let through; such a
        page is shown whole, and has no signals.

        Raises:
            UnreadableImage: when no page is an ECG that can be read; says why.
        """
        selection = FrameSelection.parse(frames) if frames else self.selection
        signals = _recorded(data)
        if signals is not None:
            return [self._printed(signals)]
        found, reasons = [], []
        pages = self._pages(data, selection, max_frames)
        for number, picture in pages:
            try:
                page = read_page(picture, self.preprocess.page)
            except UnreadableImage as error:
                reasons.append((number, error))
                continue
            found.append(self._sample(number, picture, page, page.signals))
        if not found:
            if len(reasons) == 1:
                raise reasons[0][1]
            told = " ".join(f"Page {number + 1}: {error}" for number, error in reasons[:3])
            raise UnreadableImage(f"None of the {len(reasons)} pages is an ECG. {told}")
        return found

    def inspect(self, data: bytes, frames: str | None) -> Inspection:
        """The pages that show an ECG, at full resolution."""
        samples = self.decode(data, frames)
        pictures = [sample.picture for sample in samples]
        sizes = [f"{picture.shape[1]} x {picture.shape[0]}" for picture in pictures]
        return inspection(f"{_kind(data)}, {layout_name(samples[0])}", sizes, pictures)

    def from_array(self, array: NDArray[Any]) -> DecodedSample:
        """A picture of a page, (H, W) or (H, W, 3)."""
        picture = picture_of(array)
        page = read_page(picture, self.preprocess.page)
        return self._sample(0, picture, page, page.signals)

    def _pages(
        self, data: bytes, selection: FrameSelection, max_frames: int
    ) -> list[tuple[int, UInt8Image]]:
        """Numbered pictures of a document or picture file."""
        if is_pdf(data):
            return _chosen(read_pages(data, self.preprocess.pdf_dpi), selection)
        kind = sniff(data, (*RASTER_KINDS, "dicom"), ACCEPTED_ECGS)
        document = _encapsulated(data) if kind == "dicom" else None
        if document is not None:
            return _chosen(read_pages(document, self.preprocess.pdf_dpi), selection)
        return read_numbered_frames(data, frames=selection, max_frames=max_frames)

    def _printed(self, signals: EcgSignals) -> DecodedSample:
        """Recorded signals, printed and read again; the signals themselves stay as recorded."""
        layout = LAYOUTS.get(_PRINTED)
        picture = draw_page(signals, layout, PaperStyle()).picture
        page = read_page(picture, replace(self.preprocess.page, layout=_PRINTED))
        return self._sample(0, picture, page, signals.cut(layout))

    def _sample(
        self, number: int, picture: UInt8Image, page: EcgPage, signals: EcgSignals
    ) -> DecodedSample:
        return DecodedSample(
            frame=str(number),
            arrays={
                PICTURE: self._shown(page)[..., None],
                SIGNALS: self._coded(signals),
            },
            picture=picture,
            facts={
                "mm_per_mv": page.mm_per_mv,
                "mm_per_s": page.mm_per_s,
                "layout": math.nan
                if page.layout is None
                else float(list(LAYOUTS).index(page.layout.name)),
            },
            notes=page.notes,
        )

    def _shown(self, page: EcgPage) -> UInt8Image:
        """The canonical picture; of a page in no known arrangement, all of its ink made to fit."""
        if page.layout is not None:
            return canonical(page, self.preprocess.image_size)
        side = (self.preprocess.image_size, self.preprocess.image_size)
        fitted = cv2.resize(page.ink, side, interpolation=cv2.INTER_AREA)
        return np.asarray(255 - fitted)

    def _coded(self, signals: EcgSignals) -> NDArray[np.uint8]:
        """Signals at the wanted rate and length, as bytes."""
        settings = self.preprocess
        wanted = settings.num_samples
        known = np.isfinite(signals.millivolts)
        filled = np.where(known, signals.millivolts, 0.0)
        up, down = settings.rate_hz, round(signals.rate_hz)
        # By the line between first and last sample, since filters take what is beyond for zero.
        values = resample_poly(filled, up, down, axis=1, padtype="line")[:, :wanted]
        steps = np.clip(np.round(values * _STEPS_PER_MV) + _MIDDLE, 1, 65535).astype(np.int64)
        places = np.minimum(
            np.round(np.arange(steps.shape[1]) * down / up).astype(int), known.shape[1] - 1
        )
        steps[~known[:, places]] = 0
        steps = np.pad(steps, ((0, 0), (0, wanted - steps.shape[1])))
        return np.stack([steps // 256, steps % 256], axis=-1).astype(np.uint8)


def _recorded(data: bytes) -> EcgSignals | None:
    """The signals of a record, None for a file of pages."""
    if is_archive(data):
        return read_archive(data)
    if data[128:132] == b"DICM" and is_waveform(data):
        return read_waveform(data)
    return None


def _encapsulated(data: bytes) -> bytes | None:
    """The PDF document inside a DICOM file, if it holds one."""
    with damage_explained("The DICOM file cannot be decoded"):
        dataset = pydicom.dcmread(io.BytesIO(data), specific_tags=["EncapsulatedDocument"])
        document = dataset.get("EncapsulatedDocument")
        return None if document is None else bytes(document)


def _chosen(pages: list[UInt8Image], selection: FrameSelection) -> list[tuple[int, UInt8Image]]:
    wanted = selection.indices(len(pages))
    return [(number, pages[number]) for number in wanted]


def _kind(data: bytes) -> str:
    if is_archive(data):
        return "WFDB record"
    if is_pdf(data):
        return "PDF"
    if data[128:132] == b"DICM":
        return "DICOM waveform" if is_waveform(data) else "DICOM"
    return sniff(data, RASTER_KINDS, ACCEPTED_ECGS).upper()


def layout_name(sample: DecodedSample) -> str:
    """The arrangement that a sample's page was found to have."""
    number = sample.facts.get("layout", math.nan)
    return "unknown layout" if math.isnan(number) else list(LAYOUTS)[int(number)]
