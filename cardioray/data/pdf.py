"""Pages of PDF files as pictures."""

from __future__ import annotations

import numpy as np

from cardioray.data.frames import (
    MAX_PIXELS,
    UInt8Image,
    UnreadableImage,
    check_size,
    drop_equal_channels,
)

_POINTS_PER_INCH = 72.0
MAGIC = b"%PDF-"
# Pages of a report that are looked at for an ECG.
MAX_PAGES = 12


def is_pdf(data: bytes) -> bool:
    """Whether a file says so of itself, within its first kilobyte as readers allow."""
    return MAGIC in data[:1024]


def read_pages(data: bytes, dpi: float, max_pages: int = MAX_PAGES) -> list[UInt8Image]:
    """The pages of a PDF, drawn at a resolution; vectors and scans alike.

    Args:
        data: the whole file.
        dpi: dots an inch.
        max_pages: of a longer file, only these are drawn.

    Returns:
        (H, W, 3) uint8 for each page, or (H, W) where all of it is grey.

    Raises:
        UnreadableImage: when the file is damaged, encrypted or empty, or a page is too large.
    """
    import pypdfium2  # a library that processes which read no PDF need not load

    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        raise UnreadableImage(
            f"The PDF file cannot be read: it is damaged or protected by a password ({error})."
        ) from None
    try:
        if not len(document):
            raise UnreadableImage("The PDF file has no page.")
        return [_drawn(document[number], dpi) for number in range(min(len(document), max_pages))]
    finally:
        document.close()


def _drawn(page: object, dpi: float) -> UInt8Image:
    scale = dpi / _POINTS_PER_INCH
    width, height = page.get_size()  # type: ignore[attr-defined]
    check_size(round(height * scale), round(width * scale), MAX_PIXELS)
    bitmap = page.render(scale=scale, rev_byteorder=True)  # type: ignore[attr-defined]
    picture = np.array(bitmap.to_numpy()[..., :3], np.uint8)
    bitmap.close()
    return drop_equal_channels(picture)
