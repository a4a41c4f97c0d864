"""Pictures of ECGs read: drawn ones, whose truth is known, and real ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
from numpy.typing import NDArray

from cardioray.data.ecg_canonical import canonical_corner, tile_to_page
from cardioray.data.ecg_flat import transform
from cardioray.data.ecg_leads import LAYOUTS, LEADS, EcgSignals
from cardioray.data.ecg_page import (
    EcgPage,
    PageSettings,
    canonical,
    over_original,
    read_page,
    to_original,
)
from cardioray.data.ecg_paper import DrawnPage, PaperStyle, draw_page
from cardioray.data.image import UnreadableImage, read_frames

Picture = NDArray[np.uint8]
Floats = NDArray[np.float64]
RATE = 500.0
HEADER = ("Name: Doe, John    ID: 123456", "Vent. rate 72 BPM   PR interval 160 ms", "Sinus rhythm")


def record(seed: int = 0, heart_rate: float = 70.0) -> EcgSignals:
    """Twelve leads with waves of their own, the limb leads as Einthoven and Goldberger say."""
    rng = np.random.default_rng(seed)
    times = np.arange(round(10.2 * RATE)) / RATE
    beats = np.arange(0.35, 11, 60 / heart_rate) + rng.normal(
        0, 0.02, len(np.arange(0.35, 11, 60 / heart_rate))
    )
    # Place in s, width in s and size in mV of P, Q, R, S and T.
    waves = ((-0.17, 0.022, 0.12), (-0.03, 0.009, -0.1), (0.0, 0.011, 1.0), (0.032, 0.011, -0.3))

    def lead(sizes: Floats, t_wave: float) -> Floats:
        values = np.zeros(len(times))
        for beat in beats:
            for (place, width, size), factor in zip(waves, sizes, strict=True):
                values += size * factor * np.exp(-0.5 * ((times - beat - place) / width) ** 2)
            values += t_wave * np.exp(-0.5 * ((times - beat - 0.26) / 0.045) ** 2)
        return values

    one = lead(np.array([0.8, 0.8, 0.75, 0.4]), 0.2)
    two = lead(np.array([1.2, 1.0, 1.0, 1.3]), 0.28)
    limbs = [one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2]
    chest = [
        lead(np.array([0.5, 0, r, s]), t)
        for r, s, t in zip(
            (0.2, 0.35, 0.6, 1.1, 1.2, 0.9),
            (2.2, 3.0, 2.4, 1.4, 0.7, 0.4),
            (-0.1, 0.35, 0.4, 0.35, 0.3, 0.2),
            strict=True,
        )
    ]
    noise = rng.normal(0, 0.006, (12, len(times)))
    return EcgSignals((np.stack([*limbs, *chest]) + noise).astype(np.float32), RATE, np.zeros(12))


def printed(layout: str, style: PaperStyle | None = None, seed: int = 0) -> DrawnPage:
    style = style or PaperStyle(px_per_mm=6.0, header=HEADER)
    return draw_page(record(seed), LAYOUTS.get(layout), style)


def correlations(page: EcgPage, signals: EcgSignals, most_late_s: float = 0.02) -> Floats:
    """Of what was read with what was printed, for each lead, when it is moved by up to 20 ms."""
    truth = signals.cut(page.known_layout).millivolts
    most = round(most_late_s * RATE)
    found = []
    for read, real in zip(page.signals.millivolts, truth, strict=True):
        length = min(len(read), len(real))
        known = np.isfinite(read[:length])
        assert known.mean() > 0.9
        known[:most] = known[-most:] = False
        moved = [np.roll(real[:length], by) for by in range(-most, most + 1)]
        if np.ptp(real) == 0:  # a lead that is off
            continue
        found.append(max(np.corrcoef(read[:length][known], one[known])[0, 1] for one in moved))
    return np.array(found)


@pytest.mark.parametrize("layout", LAYOUTS.names())
def test_every_layout_is_recognised_and_read(layout: str) -> None:
    drawn = printed(layout)
    page = read_page(drawn.picture)
    assert page.known_layout.name == layout
    assert page.mm_per_mv == 10
    assert page.gain_source == "pulse"
    assert page.scale_source == "grid"
    assert np.median(correlations(page, record())) > 0.93
    to_page = page.homography
    for lead in LEADS:
        real, found = drawn.boxes[lead], page.boxes[lead]
        begins = transform(to_page, np.array([real.left, real.baseline]))
        assert found.left == pytest.approx(begins[0], abs=1.5 * page.px_per_mm)
        assert found.baseline == pytest.approx(begins[1], abs=2 * page.px_per_mm)
    assert len(page.rhythm) == len(page.known_layout.rhythm)
    np.testing.assert_allclose(page.signals.starts_s, record().cut(page.known_layout).starts_s)


@pytest.mark.parametrize("grid", ["pink", "green", "blue", "grey"])
def test_any_colour_of_paper(grid: str) -> None:
    style = PaperStyle(px_per_mm=6.0, grid=grid)  # type: ignore[arg-type]
    page = read_page(printed("3x4+1", style).picture)
    assert page.known_layout.name == "3x4+1"
    assert np.median(correlations(page, record())) > 0.93


@pytest.mark.parametrize(("gain", "px_per_mm"), [(5.0, 8.0), (20.0, 4.0)])
def test_the_gain_is_that_of_the_pulses(gain: float, px_per_mm: float) -> None:
    style = PaperStyle(px_per_mm=px_per_mm, mm_per_mv=gain, row_mm=45.0)
    page = read_page(printed("3x4+1", style).picture)
    assert page.mm_per_mv == gain
    truth = record().cut(page.known_layout).millivolts
    heights = [np.ptp(lead) for lead in truth]
    read = [np.nanmax(lead) - np.nanmin(lead) for lead in page.signals.millivolts]
    np.testing.assert_allclose(np.median(np.array(read) / heights), 1, atol=0.08)


def test_without_pulses_the_gain_is_assumed_and_said() -> None:
    style = PaperStyle(px_per_mm=6.0, pulse=False)
    page = read_page(printed("3x4", style).picture)
    assert page.gain_source == "assumed"
    assert any("10 mm/mV are assumed" in note for note in page.notes)
    halved = read_page(printed("3x4", style).picture, PageSettings(mm_per_mv=20))
    assert halved.gain_source == "setting"
    np.testing.assert_allclose(
        halved.signals.millivolts, page.signals.millivolts / 2, atol=1e-6, equal_nan=True
    )


def jpeg(picture: Picture, quality: int) -> Picture:
    _, coded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded: Picture = cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1]
    return np.ascontiguousarray(decoded)


def tilted(picture: Picture, angle: float) -> Picture:
    height, width = picture.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1)
    room = 200
    turn[:, 2] += room
    size = (width + 2 * room, height + 2 * room)
    return cv2.warpAffine(picture, turn, size, borderValue=(130, 140, 150)).astype(np.uint8)


def photographed(picture: Picture) -> Picture:
    """At an angle, in the light of a lamp, compressed."""
    height, width = picture.shape[:2]
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    seen = corners + np.array([[60, 40], [-40, 0], [0, 0], [0, -50]], np.float32)
    tilt = cv2.getPerspectiveTransform(corners, seen)
    moved = cv2.warpPerspective(picture, tilt, (width, height), borderValue=(90, 80, 70))
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    light = 0.6 + 0.4 * np.exp(-((x - 0.3) ** 2 + (y - 0.4) ** 2) / 0.25)
    return jpeg((moved * light[..., None]).astype(np.uint8), 60)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda picture: jpeg(picture, 40),
        lambda picture: tilted(picture, 8),
        lambda picture: tilted(picture, -8),
        photographed,
    ],
    ids=["jpeg", "tilted", "tilted-back", "photographed"],
)
def test_scans_and_photos(spoil: Callable[[Picture], Picture]) -> None:
    page = read_page(spoil(printed("3x4+1").picture))
    assert page.known_layout.name == "3x4+1"
    assert page.mm_per_mv == 10
    assert np.median(correlations(page, record())) > 0.88


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_pages_on_their_side_or_head(turns: int) -> None:
    drawn = printed("3x4+1")
    page = read_page(np.ascontiguousarray(np.rot90(drawn.picture, turns)))
    assert page.known_layout.name == "3x4+1"
    assert np.median(correlations(page, record())) > 0.9
    assert "turned" in page.notes[0]
    # The homography still begins at the picture as it was given.
    back = transform(np.linalg.inv(page.homography), np.array([0.0, 0.0]))
    shape = np.rot90(drawn.picture, turns).shape
    assert -3 < back[0] < shape[1] + 3
    assert -3 < back[1] < shape[0] + 3


NO_GRID = PaperStyle(px_per_mm=300 / 25.4, grid="none", header=HEADER)


def test_without_a_grid_the_pulses_tell_the_scale() -> None:
    page = read_page(printed("6x2", NO_GRID).picture)
    assert page.scale_source == "pulse"
    assert page.known_layout.name == "6x2"
    assert np.median(correlations(page, record())) > 0.9


def test_without_grid_and_pulse_the_size_of_the_sheet_or_a_setting_tells() -> None:
    drawn = printed("6x2", replace(NO_GRID, pulse=False)).picture
    with pytest.raises(UnreadableImage, match="Set scan_dpi"):
        read_page(drawn)
    page = read_page(drawn, PageSettings(scan_dpi=300))
    assert page.scale_source == "setting"
    assert np.median(correlations(page, record())) > 0.9
    sheet = np.full((2480, 3508, 3), 255, np.uint8)
    sheet[100 : 100 + len(drawn), 100 : 100 + drawn.shape[1]] = drawn
    page = read_page(sheet)
    assert page.scale_source == "page size"
    assert "A4" in page.notes[0]
    assert np.median(correlations(page, record())) > 0.9


def test_known_formats_stand_at_known_places() -> None:
    style = replace(NO_GRID, pulse=False, header=(), row_mm=18.6, margin_mm=0, header_mm=0)
    drawn = printed("6x2", style).picture
    sheet = np.full((2480, 3508, 3), 255, np.uint8)
    part = drawn[:1320, :2820]
    sheet[280 : 280 + len(part), 180 : 180 + part.shape[1]] = part
    page = read_page(sheet, PageSettings(format="mtecg-old"))
    assert page.known_layout.name == "6x2"
    box = page.boxes["V1"]
    place = transform(np.linalg.inv(page.homography), np.array([box.left, box.baseline]))
    assert place[0] == pytest.approx(180 + 1410, abs=2)
    assert 280 < place[1] < 280 + 220
    with pytest.raises(UnreadableImage, match="mtecg-new"):
        read_page(part, PageSettings(format="mtecg-new"))


def test_an_unknown_arrangement_says_what_was_seen() -> None:
    picture = printed("12x1").picture
    cut = picture[: round(0.72 * len(picture))]
    with pytest.raises(UnreadableImage, match=r"\d+ rows of curves were seen; known are 3x4"):
        read_page(cut)
    page = read_page(cut, PageSettings(unknown_layout="as_is"))
    assert page.layout is None
    assert page.boxes == {}
    assert np.isnan(page.signals.millivolts).all()
    with pytest.raises(ValueError, match="not known"):
        canonical(page)


def test_a_layout_that_is_set_is_taken() -> None:
    picture = printed("3x4+1").picture
    page = read_page(picture, PageSettings(layout="3x4-cabrera+1"))
    assert page.known_layout.name == "3x4-cabrera+1"
    assert page.agreement is not None
    assert page.agreement < read_page(picture).agreement - 0.1  # type: ignore[operator]
    with pytest.raises(UnreadableImage, match="another number"):
        read_page(picture, PageSettings(layout="12x1"))
    with pytest.raises(ValueError, match="Unknown ECG layout"):
        read_page(picture, PageSettings(layout="4x3"))


def test_what_is_no_ecg_is_refused() -> None:
    rng = np.random.default_rng(0)
    blank = np.full((900, 1200, 3), 255, np.uint8)
    text = blank.copy()
    words = "There is nothing to be seen on this page but letters"
    for line in range(20):
        cv2.putText(text, words[line:], (20, 40 + 42 * line), 0, 1.1, (0, 0, 0), 2)
    noise = rng.integers(0, 255, blank.shape).astype(np.uint8)
    paper = draw_page(
        EcgSignals(np.full((12, 5000), np.nan, np.float32), RATE, np.zeros(12)),
        LAYOUTS.get("3x4"),
        PaperStyle(px_per_mm=5.0, pulse=False, header=HEADER),
    ).picture
    blobs = cv2.GaussianBlur(noise, (0, 0), 12)
    for picture in (blank, text, noise, paper, blobs, noise[..., 0]):
        with pytest.raises(UnreadableImage, match="no picture of an ECG"):
            read_page(picture)


def test_the_canonical_picture_is_the_same_for_every_page() -> None:
    """The same signals, in other places and sizes, become nearly the same picture."""
    wanted = canonical(read_page(printed("3x4+1").picture))
    assert wanted.shape == (384, 384)
    assert wanted.dtype == np.uint8
    assert (wanted < 128).mean() > 0.005
    soft = cv2.GaussianBlur(255 - wanted, (0, 0), 2).astype(float)
    styles = (
        PaperStyle(px_per_mm=9.0, grid="blue", row_mm=30.0),
        PaperStyle(px_per_mm=6.0, mm_per_mv=5.0, names=False),
    )
    for layout in ("3x4-cabrera+1", "3x4"):
        for style in styles:
            other = canonical(read_page(printed(layout, style).picture))
            same = cv2.GaussianBlur(255 - other, (0, 0), 2).astype(float)
            columns = slice(192, 384)  # chest leads, which both show at the same time
            assert np.corrcoef(soft[:, columns].ravel(), same[:, columns].ravel())[0, 1] > 0.8
    smaller = canonical(read_page(printed("3x4+1").picture), 192)
    assert smaller.shape == (192, 192)
    with pytest.raises(ValueError, match="100 does not do"):
        canonical(read_page(printed("3x4+1").picture), 100)


def test_minus_avr_is_turned_back() -> None:
    picture = canonical(read_page(printed("6x2-cabrera").picture))
    x, y = canonical_corner("aVR")
    tile = 255 - picture[y : y + 64, x : x + 192].astype(float)
    # aVR points down: its ink reaches further below the middle than above.
    rows = np.flatnonzero(tile.max(axis=1) > 100)
    assert 63 - rows[0] < rows[-1]


def test_heat_goes_back_to_where_the_lead_is() -> None:
    drawn = printed("3x4+1")
    spoilt = tilted(drawn.picture, 5)
    page = read_page(spoilt)
    x, y = canonical_corner("V2")
    heat = np.zeros((384, 384), np.float32)
    heat[y : y + 64, x : x + 192] = 1
    over = over_original(page, heat, spoilt.shape[:2])
    assert over.shape == spoilt.shape[:2]
    height, width = drawn.picture.shape[:2]
    turn = np.vstack([cv2.getRotationMatrix2D((width / 2, height / 2), 5, 1), [0, 0, 1]])
    turn[:2, 2] += 200
    box = drawn.boxes["V2"]
    inside = transform(turn, np.array([(box.left + box.right) / 2, box.baseline]))
    assert over[round(inside[1]), round(inside[0])] > 0.9
    other = drawn.boxes["V5"]
    outside = transform(turn, np.array([(other.left + other.right) / 2, other.baseline]))
    assert over[round(outside[1]), round(outside[0])] == 0
    middle = transform(to_original(page, "V2"), np.array([96.0, 31.5]))
    np.testing.assert_allclose(middle, inside, atol=12)
    there = transform(tile_to_page(page, "V2"), np.array([0.0, 31.5]))
    np.testing.assert_allclose(there, [page.boxes["V2"].left, page.boxes["V2"].baseline])


def read_record(path: Path) -> EcgSignals:
    """A record of the PhysioNet/CinC challenge 2021."""
    lines = path.with_suffix(".hea").read_text().splitlines()
    rate = float(lines[0].split()[2])
    gains = np.array([float(line.split()[2].split("(")[0].split("/")[0]) for line in lines[1:13]])
    values = scipy.io.loadmat(path)["val"] / gains[:, None]
    return EcgSignals(values.astype(np.float32), rate, np.zeros(12))


@pytest.mark.samples
@pytest.mark.parametrize("layout", ["3x4+1", "6x2", "12x1"])
def test_real_records_are_read_back(samples: Path, layout: str) -> None:
    paths = sorted((samples / "ecg_signals_cinc2021").glob("*.mat"))[::17]
    assert len(paths) >= 3
    found = []
    for path in paths:
        signals = read_record(path)
        page = read_page(draw_page(signals, LAYOUTS.get(layout), PaperStyle(header=HEADER)).picture)
        assert page.known_layout.name == layout
        found.extend(correlations(page, signals))
    assert np.median(found) > 0.9


# What the real pictures are; the one of five columns has V4R, V8 and V9 in the fifth.
_REAL = {
    "ecg00001.png": "3x4+1",
    "ecg00013.jpg": "3x4",
    "ecg00026.jpg": "3x4+1",
    "ecg00030.jpg": "3x4+1",
    "ecg00040.jpg": "3x4+1",
    "ecg00053.png": "3x4+3",
}


@pytest.mark.samples
@pytest.mark.parametrize(("name", "layout"), _REAL.items())
def test_real_pictures(samples: Path, name: str, layout: str) -> None:
    picture = read_frames((samples / "ecg_images" / name).read_bytes())[0]
    page = read_page(picture)
    assert page.known_layout.name == layout
    assert page.mm_per_mv == 10
    assert page.agreement is not None
    assert page.agreement > 0.7
    assert canonical(page).shape == (384, 384)


@pytest.mark.samples
def test_five_columns_are_refused(samples: Path) -> None:
    picture = read_frames((samples / "ecg_images" / "ecg00020.jpg").read_bytes())[0]
    with pytest.raises(UnreadableImage, match="5 columns"):
        read_page(picture)


@pytest.mark.samples
def test_an_angiogram_is_no_ecg(samples: Path) -> None:
    path = sorted((samples / "angio_danilov" / "image_dir").glob("*.bmp"))[0]
    with pytest.raises(UnreadableImage, match="no picture of an ECG"):
        read_page(read_frames(path.read_bytes())[0])
