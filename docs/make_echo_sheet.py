"""Draw docs/images/phantom_echo.png and .webp: phantom patients of every preset, and a beating one.

Run it from the repository's root: `python docs/make_echo_sheet.py`. With a folder of real DICOM
cines as its argument it also draws echo_deidentified.png, a cine before and after; the one in the
repository comes with pydicom (`pydicom.data`, MIT).
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cardioray.data.clip import CLIP, ClipDecoder, ClipPreprocess
from cardioray.phantoms.echo_config import ECHO_PRESETS
from cardioray.phantoms.echo_patient import VIEWS, draw_echo_patient
from cardioray.phantoms.echo_scene import render_view

SEED, PATIENTS = 3, 2
TILE_PX, TITLE_PX = 180, 22
IMAGES = Path(__file__).parent / "images"


def enlarged(frame: NDArray[np.uint8], side: int = TILE_PX) -> NDArray[np.uint8]:
    """A frame at the size of a tile."""
    resized: NDArray[np.uint8] = cv2.resize(frame, (side, side), interpolation=cv2.INTER_CUBIC)
    return resized


def row(index: int, preset: str) -> NDArray[np.uint8]:
    """ED and ES of every view of a patient, under what is true of it."""
    settings = ECHO_PRESETS.get(preset)
    patient = draw_echo_patient(SEED, index, settings)
    tiles = []
    for view in VIEWS:
        clip = render_view(patient, view, settings)
        tiles += [enlarged(clip.frames[clip.outlines[phase][0]]) for phase in ("ED", "ES")]
    findings = patient.findings
    said = "wall-motion abnormality" if findings.wall_motion_abnormality else "normal wall motion"
    text = f"{preset}: EF {patient.ef_percent:.0f} %, {said}{', scar' * findings.scar}; ED, ES of "
    title = Image.new("L", (6 * TILE_PX, TITLE_PX), 255)
    font = ImageFont.load_default(size=13)
    ImageDraw.Draw(title).text((4, 3), text + ", ".join(VIEWS), fill=0, font=font)
    return np.vstack([np.asarray(title), np.hstack(tiles)])


def beating() -> list[Image.Image]:
    """The three views of a patient over time, side by side."""
    settings = ECHO_PRESETS.get("standard")
    patient = draw_echo_patient(SEED, 0, settings)
    clips = [render_view(patient, view, settings) for view in VIEWS]
    frames = []
    for step in range(40):
        moment = step / 20
        picked = [clip.frames[min(int(moment * clip.fps), len(clip.frames) - 1)] for clip in clips]
        frames.append(Image.fromarray(np.hstack([enlarged(frame, 160) for frame in picked])))
    return frames


def before_and_after(folder: Path) -> NDArray[np.uint8]:
    """A frame of a real cine as it is stored, and what de-identification leaves of it."""
    data = (folder / "color3d_jpeg_baseline.dcm").read_bytes()
    (sample,) = ClipDecoder(preprocess=ClipPreprocess(sector="find")).decode(data, None)
    after = sample.arrays[CLIP][24, ..., 0]  # the frame that the sample's picture shows
    height, width = sample.picture.shape[:2]
    before = cv2.resize(sample.picture, (round(width * 360 / height), 360))
    pair: NDArray[np.uint8] = np.hstack([before, enlarged(after, 360)])
    return pair


def main() -> None:
    """Write the pictures."""
    IMAGES.mkdir(exist_ok=True)
    rows = [row(index, preset) for preset in ECHO_PRESETS for index in range(PATIENTS)]
    Image.fromarray(np.vstack(rows)).save(IMAGES / "phantom_echo.png", optimize=True)
    frames = beating()
    frames[0].save(
        IMAGES / "phantom_echo.webp",
        save_all=True,
        append_images=frames[1:],
        duration=50,
        loop=0,
        quality=60,
    )
    if len(sys.argv) > 1:
        pair = before_and_after(Path(sys.argv[1]))
        Image.fromarray(pair).save(IMAGES / "echo_deidentified.png", optimize=True)
    for file in sorted(IMAGES.glob("*echo*")):
        print(f"{file}: {file.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
