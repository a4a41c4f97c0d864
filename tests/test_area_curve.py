"""A cine above the curve of an area: what is drawn, and where."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest

from cardioray.data.video import read_video
from cardioray.data.video_writing import encode_video
from cardioray.explain.area_curve import AreaCurve, curve_frames

MARKER = np.array([255, 140, 0])


def areas(frames: int = 30) -> np.ndarray:
    return 20 + 6 * np.cos(2 * np.pi * np.arange(frames) / 15)


def drawn(
    shape: tuple[int, int] = (60, 48), values: np.ndarray | None = None, fps: float | None = 25.0
) -> np.ndarray:
    values = areas() if values is None else values
    pictures = [np.full((*shape, 3), 8 * (i % 30), np.uint8) for i in range(len(values))]
    curve = AreaCurve(values, "cm2", fps, 0, [0, 15], [7, 22])
    return curve_frames(pictures, shape, curve, "NOTE")


def marker_columns(frames: np.ndarray, strip: int) -> list[int]:
    """Where the line of the marker stands in each frame."""
    found = []
    for frame in frames:
        line = (frame[-strip + 24 : -24] == MARKER).all(axis=-1)
        found.append(int(line.sum(axis=0).argmax()))
    return found


@pytest.mark.parametrize(
    ("shape", "width", "longest"),
    [((60, 48), 320, 512), ((480, 640), 512, 512), ((1201, 801), 342, 512), ((40, 900), 512, 512)],
)
def test_pictures_keep_their_proportions_and_sides_are_even(
    shape: tuple[int, int], width: int, longest: int
) -> None:
    frames = drawn(shape)
    height = frames.shape[1] - 140
    assert frames.shape[2] == width
    assert max(height, width) <= longest
    assert not frames.shape[1] % 2
    assert not frames.shape[2] % 2
    filled = (frames[5, :height] == 40).all(axis=-1)
    rows, columns = filled.any(axis=1).sum(), filled.any(axis=0).sum()
    assert rows / columns == pytest.approx(shape[0] / shape[1], rel=0.06)


def test_the_marker_moves_evenly_and_the_rest_of_the_curve_stands() -> None:
    frames = drawn()
    columns = marker_columns(frames, 140)
    steps = np.diff(columns)
    assert (steps > 0).all()
    assert steps.max() - steps.min() <= 1
    first, last = frames[3, -118:-22], frames[20, -118:-22]
    differs = np.flatnonzero((first != last).any(axis=(0, 2)))
    near = {column + off for column in (columns[3], columns[20]) for off in range(-5, 6)}
    assert set(differs.tolist()) <= near


def test_the_phases_are_marked_where_they_are() -> None:
    frames = drawn()
    corner = frames[:, :24, :40].astype(int)
    marked = np.flatnonzero([np.ptp(frame.reshape(-1, 3), axis=0).max() > 60 for frame in corner])
    assert marked.tolist() == [0, 7, 15, 22]
    assert not np.array_equal(corner[0] - corner[0].min(), corner[7] - corner[7].min())


def test_frames_without_an_area_leave_a_gap() -> None:
    values = areas()
    values[10:14] = np.nan
    whole, holed = drawn()[25, -118:-22], drawn(values=values)[25, -118:-22]
    columns = marker_columns(drawn(), 140)

    def white(strip: np.ndarray, place: int) -> int:
        around = strip[:, columns[place] - 3 : columns[place] + 4]
        return int((around > 120).all(axis=-1).sum())

    assert white(whole, 12) > 0
    assert white(holed, 12) == 0
    assert white(holed, 20) > 0
    nothing = drawn(values=np.full(30, np.nan))
    assert nothing.shape == drawn().shape


def test_the_axis_counts_frames_where_no_rate_is_known() -> None:
    assert not np.array_equal(drawn()[0, -20:], drawn(fps=None)[0, -20:])


def test_a_still_and_a_flat_curve_are_drawn() -> None:
    curve = AreaCurve(np.array([12.0]), "px", None, 0, [], [])
    single = curve_frames([np.zeros((50, 50, 3), np.uint8)], (50, 50), curve, "")
    assert len(single) == 1
    assert drawn(values=np.full(30, 7.0)).shape == drawn().shape


def test_browsers_play_it() -> None:
    frames = drawn()
    data = encode_video(frames, 25.0, "mp4")
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
    decoded, fps = read_video(data)
    assert decoded.shape == frames.shape
    assert fps == 25
    assert np.abs(decoded.astype(int) - frames).mean() < 6
