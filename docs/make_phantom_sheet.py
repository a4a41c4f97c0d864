"""Draw docs/images/phantom_angiogram.png: six phantom patients of every preset.

Run it from the repository's root: `python docs/make_phantom_sheet.py`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cardioray.phantoms.angiogram import PRESETS, draw_patient, render_frames

PATIENTS = 6
SEED = 15
TILE_PX = 208
TITLE_PX = 34


def tile(index: int, preset: str) -> Image.Image:
    """One frame of a patient under its preset, FFR and lesion."""
    settings = PRESETS.get(preset)
    patient = draw_patient(index, SEED, settings)
    frame = render_frames(patient, settings)[-1]
    picture = Image.new("L", (TILE_PX, TILE_PX + TITLE_PX), 255)
    resized = Image.fromarray(frame).resize((TILE_PX, TILE_PX), Image.Resampling.LANCZOS)
    picture.paste(resized, (0, TITLE_PX))
    lines = (
        f"{preset}: FFR {patient.ffr:.2f} ({patient.label})",
        f"{patient.percent_diameter_stenosis:.0f} %, {patient.lesion_length_mm:.0f} mm long, "
        f"{patient.reference_diameter_mm:.1f} mm wide",
    )
    font = ImageFont.load_default(size=12)
    ImageDraw.Draw(picture).multiline_text((3, 2), "\n".join(lines), fill=0, font=font)
    return picture


def main() -> None:
    """Write the sheet."""
    rows = [
        np.hstack([np.asarray(tile(index, preset)) for index in range(PATIENTS)])
        for preset in PRESETS
    ]
    target = Path(__file__).parent / "images" / "phantom_angiogram.png"
    target.parent.mkdir(exist_ok=True)
    Image.fromarray(np.vstack(rows)).save(target, optimize=True)
    print(f"{target}: {target.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
