"""Pictures, cines and label maps for segmentation: pixel sizes, pairs that fit, refusals."""

from __future__ import annotations

import gzip
import json
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
from matplotlib.path import Path as MplPath
from numpy.typing import NDArray
from pydicom.uid import generate_uid
from served import encoded
from tiny_dicom import echo_dicom

from cardioray.data.echo_layouts import traced_area, traced_outline
from cardioray.data.frames import UnreadableImage
from cardioray.data.isolation import IsolatedDecoder
from cardioray.data.label_maps import ATRIUM, CAVITY, MYOCARDIUM
from cardioray.data.segment import IMAGE, MASK, REFERENCE, SegmentDecoder, SegmentPreprocess
from cardioray.data.video_writing import encode_video

SIZE = 64


def decoder(**settings: Any) -> SegmentDecoder:
    return SegmentDecoder(preprocess=SegmentPreprocess(image_size=SIZE, **settings))


def echo(*shape: int) -> NDArray[np.uint8]:
    """Frames with a bright wall on speckle."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 90, shape).astype(np.uint8)
    frames[..., shape[-2] // 3 : shape[-2] // 2, shape[-1] // 4 : shape[-1] // 2] += 120
    return frames


def labels(*shape: int) -> NDArray[np.uint8]:
    found = np.zeros(shape, np.uint8)
    found[..., 10:60, 20:50] = MYOCARDIUM
    found[..., 20:60, 25:45] = CAVITY
    found[..., 60:80, 25:45] = ATRIUM
    return found


def nifti(frames: NDArray[Any], zooms: tuple[float, float] = (0.3, 0.5)) -> bytes:
    image = nibabel.Nifti1Image(frames.T, np.eye(4))
    image.header.set_zooms([*zooms, *[1.0] * (frames.ndim - 2)])
    return gzip.compress(image.to_bytes())


def test_a_frame_becomes_a_square_and_its_pixels_keep_their_size() -> None:
    frame = echo(120, 90)
    (sample,) = decoder().decode(nifti(frame), None)
    assert sample.arrays[IMAGE].shape == (SIZE, SIZE, 1)
    assert np.array_equal(sample.picture, frame)
    assert sample.facts["spacing_row_mm"] == pytest.approx(0.5)
    assert sample.facts["spacing_column_mm"] == pytest.approx(0.3)
    assert sample.facts["is_cine"] == 0
    assert (sample.facts["source_frames"], sample.facts["wanted_frames"]) == (1, 1)
    # An axis of time that is one frame long makes no cine of it.
    (alone,) = decoder().decode(nifti(frame[None]), None)
    assert alone.facts["is_cine"] == 0
    (numbered,) = decoder().decode(nifti(frame), "12")
    assert numbered.frame == "12"
    assert np.array_equal(numbered.picture, frame)


def test_gain_changes_little_within_the_percentiles() -> None:
    frame = echo(120, 90)
    dim = (frame // 2).astype(np.uint8)
    bright, dark = (decoder().preprocess.apply(each).astype(int) for each in (frame, dim))
    assert np.abs(bright - dark).mean() < 3
    assert bright.min() < 20
    assert bright.max() > 235
    hot = dim.copy()
    hot[0, 0] = 255
    plain = SegmentPreprocess(image_size=SIZE, percentiles=(0, 100))
    first, second = (
        np.abs(each.apply(hot).astype(int) - dark).mean() for each in (decoder().preprocess, plain)
    )
    assert first < 1
    assert second > 10


def test_a_blank_frame_stays_blank() -> None:
    assert np.ptp(decoder().preprocess.apply(np.full((50, 40), 7, np.uint8))) == 0


@pytest.mark.parametrize("kind", ["nifti", "avi", "tiff"])
def test_a_cine_is_its_frames(kind: str) -> None:
    frames = echo(6, 96, 96)
    if kind == "nifti":
        data = nifti(frames)
    elif kind == "avi":
        data = encode_video(frames, 40.0)
    else:
        from PIL import Image

        pages = [Image.fromarray(frame) for frame in frames]
        data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    samples = decoder().decode(data, None)
    assert [sample.frame for sample in samples] == list("012345")
    assert all(sample.facts["is_cine"] == 1 for sample in samples)
    assert (samples[0].facts["fps"] == 40.0) == (kind == "avi")
    assert {sample.facts["source_frames"] for sample in samples} == {6}
    assert {sample.facts["chosen"] for sample in samples} == {0}
    span = decoder().decode(data, "1-4")
    assert [sample.frame for sample in span] == list("1234")
    assert {sample.facts["wanted_frames"] for sample in span} == {4}
    assert {sample.facts["chosen"] for sample in span} == {0}
    (part,) = decoder().decode(data, "2")
    assert part.frame == "2"
    assert part.facts["chosen"] == 1
    assert np.array_equal(part.arrays[IMAGE], samples[2].arrays[IMAGE])
    if kind == "tiff":
        with pytest.raises(UnreadableImage, match="more than 4 pages"):
            decoder().decode(data, None, max_frames=4)
    else:
        cut = decoder().decode(data, None, max_frames=4)
        assert len(cut) == 4
        assert {sample.facts["wanted_frames"] for sample in cut} == {6}
        assert {sample.facts["source_frames"] for sample in cut} == {6}


def test_labels_come_along_at_both_sizes() -> None:
    frame, reference = echo(120, 90), labels(120, 90)
    for given in (nifti(reference), encoded(reference)):
        (sample,) = decoder().decode_labelled(nifti(frame), given, None)
        assert np.array_equal(sample.arrays[REFERENCE], reference)
        mask = sample.arrays[MASK]
        assert mask.shape == (SIZE, SIZE)
        for structure in (CAVITY, MYOCARDIUM, ATRIUM):
            shares = [(each == structure).mean() for each in (mask, reference)]
            assert shares[0] == pytest.approx(shares[1], abs=0.01)


def test_labels_of_a_cine_are_those_of_its_frames() -> None:
    frames = echo(5, 120, 90)
    reference = labels(5, 120, 90)
    reference[3, 30:34, 30:34] = 0
    for wanted in (None, "3", "1-3"):
        samples = decoder().decode_labelled(nifti(frames), nifti(reference), wanted)
        for sample in samples:
            assert np.array_equal(sample.arrays[REFERENCE], reference[int(sample.frame)])
    (one,) = decoder().decode_labelled(nifti(frames), nifti(reference[3]), "3")
    assert np.array_equal(one.arrays[REFERENCE], reference[3])


def test_an_outline_is_filled() -> None:
    outline = {"cavity": [[20, 30], [50, 30], [50, 80], [20, 80]]}
    (sample,) = decoder().decode_labelled(nifti(echo(120, 90)), json.dumps(outline).encode(), None)
    expected = np.zeros((120, 90), np.uint8)
    expected[30:80, 20:50] = CAVITY
    assert np.array_equal(sample.arrays[REFERENCE], expected)


def shoelace(outline: NDArray[np.float64]) -> float:
    x, y = outline.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def drawn(outline: NDArray[np.float64], height: int = 112, width: int = 112) -> NDArray[np.uint8]:
    given = json.dumps({"cavity": outline.tolist()}).encode()
    (sample,) = decoder().decode_labelled(nifti(echo(height, width)), given, None)
    return sample.arrays[REFERENCE]


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.5, 0.5), (0.25, 0.9)])
@pytest.mark.parametrize("size", [8.0, 15.0, 30.0])
def test_an_outline_has_its_own_area(size: float, shift: tuple[float, float]) -> None:
    turn = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    tilt = np.array([[0.94, -0.34], [0.34, 0.94]])
    unit = np.stack([0.6 * np.cos(turn), 1.4 * np.sin(turn)], axis=1) @ tilt.T
    outline = 56 + np.array(shift) + size * unit
    for each in (outline, outline[::-1]):
        area = (drawn(each) == CAVITY).sum()
        assert area == pytest.approx(shoelace(outline), rel=0.02 if size > 10 else 0.04)


def test_an_outline_may_leave_the_picture_and_bend_inwards() -> None:
    outline = np.array([[-20, -10], [130, 20], [60, 40], [130, 95], [-20, 130]], float)
    found = drawn(outline, 100, 120) == CAVITY
    y, x = np.mgrid[:100, :120]
    middles = np.stack([x.ravel(), y.ravel()], axis=1)
    # What lies on the outline may count to either side.
    inner, outer = (
        MplPath(outline).contains_points(middles, radius=reach).reshape(100, 120)
        for reach in (1e-6, -1e-6)
    )
    sure = inner == outer
    assert sure.mean() > 0.99
    assert np.array_equal(found[sure], inner[sure])
    assert found[50, 10]
    assert not found[45, 100]


def test_echonet_tracings_have_their_own_area() -> None:
    rng = np.random.default_rng(0)
    larger = []
    for _ in range(20):
        # The long axis, and twenty chords across it, as EchoNet's tables have them.
        centre, length, width = rng.uniform(45, 65, 2), rng.uniform(25, 55), rng.uniform(12, 30)
        along = np.array([np.sin(angle := rng.uniform(-0.4, 0.4)), np.cos(angle)])
        across = np.array([along[1], -along[0]])
        steps = np.linspace(-0.5, 0.5, 20)
        half = width / 2 * np.sqrt(np.maximum(1 - (1.9 * steps) ** 2, 0.01))
        middle = centre + length * steps[:, None] * along
        left, right = middle - half[:, None] * across, middle + half[:, None] * across
        axis = [*(centre - length / 2 * along), *(centre + length / 2 * along)]
        lines = pd.DataFrame(
            [axis, *np.concatenate([left, right], axis=1)], columns=["x1", "y1", "x2", "y2"]
        )
        outline = traced_outline(lines)
        larger.append((drawn(outline) == CAVITY).sum() / traced_area(lines) - 1)
    assert np.abs(larger).max() < 0.04
    assert np.abs(np.mean(larger)) < 0.005


@pytest.mark.parametrize("empty", [[2], [0, 1, 3]])
def test_a_label_map_with_empty_frames_is_one(empty: list[int]) -> None:
    maps = labels(5, 120, 90)
    maps[empty] = 0
    with pytest.raises(UnreadableImage, match="holds a label map, not a picture"):
        decoder().decode(nifti(maps), None)
    blank = nifti(np.zeros((5, 120, 90), np.uint8))
    assert len(decoder().decode(blank, None)) == 5
    dark = echo(5, 120, 90)
    dark[empty] = 0
    assert len(decoder().decode(nifti(dark), None)) == 5


def test_patients_and_examinations_are_told_apart_without_their_names() -> None:
    def facts(**tags: Any) -> tuple[float, float]:
        [sample] = decoder().decode(echo_dicom(echo(120, 90), **tags), None)
        return sample.facts["patient"], sample.facts["study"]

    first, again = facts(), facts(PatientName="Another^Spelling")
    assert first == again
    other_day = facts(StudyInstanceUID=generate_uid())
    assert other_day[0] == first[0]
    assert other_day[1] != first[1]
    assert facts(PatientID="P2")[0] != first[0]
    assert np.isnan(facts(PatientID=None, StudyInstanceUID=None)).all()
    [still] = decoder().decode(nifti(echo(120, 90)), None)
    assert np.isnan([still.facts["patient"], still.facts["study"]]).all()


def test_the_same_in_a_process_of_its_own() -> None:
    frame, reference = nifti(echo(120, 90)), nifti(labels(120, 90))
    (here,) = decoder().decode_labelled(frame, reference, None)
    with IsolatedDecoder(decoder()) as shielded:
        (there,) = shielded.decode_labelled(frame, reference, None)
        with pytest.raises(UnreadableImage, match="neither NIfTI|PNG"):
            shielded.decode_labelled(frame, b"nothing", None)
    assert all(np.array_equal(here.arrays[name], there.arrays[name]) for name in here.arrays)


@pytest.mark.parametrize(
    ("frames", "given", "reason"),
    [
        (labels(120, 90), labels(120, 90), "holds a label map, not a picture"),
        (echo(120, 90), labels(90, 120), r"label map is 120 x 90 px, and its picture 90 x 120"),
        (echo(120, 90), labels(120, 90) * 50, "other numbers than 0 and those of structures"),
        (echo(4, 120, 90), labels(3, 120, 90), r"3 frame\(s\) for 4 picture"),
    ],
)
def test_what_does_not_fit_is_refused(
    frames: NDArray[Any], given: NDArray[Any], reason: str
) -> None:
    with pytest.raises(UnreadableImage, match=reason):
        decoder().decode_labelled(nifti(frames), nifti(given), None)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="multiple"):
        SegmentPreprocess(image_size=100)
    with pytest.raises(ValueError, match="lower one first"):
        SegmentPreprocess(percentiles=(99, 1))
