"""NIfTI and MetaImage files: pictures the right way round, sizes, and damage."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from cardioray.data.frames import UnreadableImage
from cardioray.data.nifti import read_source, read_volume, volume_kind


def picture(*shape: int, kind: Any = np.uint8) -> NDArray[Any]:
    """Frames (T, H, W), or one (H, W)."""
    return np.random.default_rng(0).integers(0, 200, shape).astype(kind)


def nifti(
    frames: NDArray[Any],
    zooms: tuple[float, ...] = (0.3, 0.5),
    *,
    version: int = 1,
    unit: str = "mm",
    packed: bool = True,
) -> bytes:
    array = frames.T
    image_type = {1: nibabel.Nifti1Image, 2: nibabel.Nifti2Image}[version]
    image = image_type(array, np.eye(4))
    image.header.set_zooms([*zooms, *[1.0] * (array.ndim - 2)])
    image.header.set_xyzt_units(unit)
    data = image.to_bytes()
    return gzip.compress(data) if packed else data


def metaimage(frames: NDArray[Any], element: str, *, packed: bool = False, **fields: str) -> bytes:
    body = frames.tobytes()
    header = {
        "ObjectType": "Image",
        "NDims": str(frames.ndim),
        "DimSize": " ".join(map(str, frames.shape[::-1])),
        "ElementSpacing": "0.3 0.5 1"[: 7 if frames.ndim == 2 else None],
        "ElementType": element,
        "CompressedData": str(packed),
        **fields,
    }
    name = header.pop("ElementDataFile", "LOCAL")
    lines = [f"{key} = {value}" for key, value in header.items()]
    text = "\n".join([*lines, f"ElementDataFile = {name}\n"]).encode()
    return text + (zlib.compress(body) if packed else body) * (name == "LOCAL")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
def test_rows_are_depths_and_columns_are_lateral(version: int, packed: bool, kind: Any) -> None:
    frames = picture(7, 5, 4, kind=kind)
    for expected in (frames, frames[0]):
        data = nifti(expected, version=version, packed=packed)
        assert volume_kind(data) == "nifti"
        volume = read_volume(data)
        assert volume.frames.dtype == kind
        assert np.array_equal(volume.frames, frames[: len(volume.frames)])
        # The first axis of the file is the lateral one.
        assert volume.spacing_mm == pytest.approx((0.5, 0.3))


@pytest.mark.parametrize(
    ("shape", "frames"), [((5, 4, 1), 1), ((5, 4, 1, 7), 7), ((5, 4, 7, 1), 7), ((5, 4, 1, 1), 1)]
)
def test_axes_of_one_element_are_no_frames(shape: tuple[int, ...], frames: int) -> None:
    array = picture(*shape)
    volume = read_volume(nifti(array.T))
    assert volume.frames.shape == (frames, 4, 5)


@pytest.mark.parametrize(
    ("unit", "zooms", "spacing"),
    [
        ("unknown", (0.3, 0.5), (0.5, 0.3)),
        ("micron", (300, 500), (0.5, 0.3)),
        ("meter", (3e-4, 5e-4), (0.5, 0.3)),
        ("mm", (0, 0.5), None),
        ("mm", (np.nan, 0.5), None),
    ],
)
def test_the_size_of_a_pixel_is_in_mm(
    unit: str, zooms: tuple[float, float], spacing: tuple[float, float] | None
) -> None:
    found = read_volume(nifti(picture(5, 4), zooms, unit=unit)).spacing_mm
    assert found == (None if spacing is None else pytest.approx(spacing))


@pytest.mark.parametrize(
    ("units", "step", "fps"),
    [
        (("mm", "sec"), 0.02, 50.0),
        (("mm", "msec"), 25.0, 40.0),
        (("mm", "usec"), 12_500.0, 80.0),
        (("mm", "unknown"), 0.02, None),
        (("mm", "hz"), 0.02, None),
        # What writers leave that know no time.
        (("mm", "sec"), 1.0, None),
        (("mm", "msec"), 1.0, None),
        (("mm", "sec"), 0.0, None),
        (("mm", "sec"), np.nan, None),
    ],
)
@pytest.mark.parametrize("axes", [3, 4])
def test_a_cine_says_its_rate_in_a_unit_of_time(
    units: tuple[str, str], step: float, fps: float | None, axes: int
) -> None:
    frames = picture(7, 5, 4)
    array = frames.T if axes == 3 else frames.T[:, :, None]
    image = nibabel.Nifti1Image(array, np.eye(4))
    image.header.set_xyzt_units(*units)
    image.header["pixdim"][4] = step
    found = read_volume(image.to_bytes())
    assert np.array_equal(found.frames, frames)
    assert found.fps == (None if fps is None else pytest.approx(fps))
    assert read_volume(nifti(frames)).fps is None
    assert read_volume(metaimage(frames, "MET_UCHAR")).fps is None


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("element", "kind"), [("MET_UCHAR", "<u1"), ("MET_SHORT", "<i2"), ("MET_FLOAT", "<f4")]
)
def test_metaimage_of_one_file(element: str, kind: str, packed: bool) -> None:
    frames = picture(7, 5, 4, kind=kind)
    data = metaimage(frames, element, packed=packed)
    assert volume_kind(data) == "metaimage"
    volume = read_volume(data)
    assert np.array_equal(volume.frames, frames)
    assert volume.spacing_mm == pytest.approx((0.5, 0.3))


def test_metaimage_of_big_endian_numbers() -> None:
    frames = picture(5, 4, kind=">i2")
    data = metaimage(frames, "MET_SHORT", BinaryDataByteOrderMSB="True")
    assert np.array_equal(read_volume(data).frames[0], frames)


def test_a_header_brings_the_pixels_beside_it(tmp_path: Path, s3: str) -> None:
    from cardioray import storage

    frames = picture(7, 5, 4)
    for folder in (str(tmp_path), s3):
        header = metaimage(frames, "MET_UCHAR", ElementDataFile="cine.raw")
        storage.write_bytes(storage.join(folder, "cine.mhd"), header)
        with pytest.raises(FileNotFoundError):
            read_source(storage.join(folder, "cine.mhd"))
        storage.write_bytes(storage.join(folder, "cine.raw"), frames.tobytes())
        data = read_source(storage.join(folder, "cine.mhd"))
        assert np.array_equal(read_volume(data).frames, frames)
        with pytest.raises(UnreadableImage, match="send one .mha file"):
            read_volume(header)


def test_a_header_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = picture(7, 5, 4)
    header = metaimage(frames, "MET_UCHAR", ElementDataFile="cine.raw")
    (tmp_path / "cine.mhd").write_bytes(header)
    (tmp_path / "cine.raw").write_bytes(frames.tobytes())
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(read_volume(read_source("cine.mhd")).frames, frames)


@pytest.mark.parametrize("name", ["/etc/passwd", "../cine.raw", "LIST", "%03d.raw", ""])
def test_a_header_reads_no_file_elsewhere(tmp_path: Path, name: str) -> None:
    file = tmp_path / "cine.mhd"
    file.write_bytes(metaimage(picture(5, 4), "MET_UCHAR", ElementDataFile=name))
    with pytest.raises(UnreadableImage, match="one file beside it is read"):
        read_source(str(file))


def claims(shape: tuple[int, ...]) -> bytes:
    """A packed NIfTI file whose header claims more than there is."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape)
    header["magic"], header["vox_offset"] = b"n+1", 352
    return gzip.compress(header.binaryblock + bytes(100))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "neither NIfTI nor MetaImage"),
        (b"\x1f\x8bnonsense", "packed file is damaged"),
        (gzip.compress(b"text" * 200), "neither NIfTI nor MetaImage"),
        (nifti(picture(5, 4), packed=False)[:-3], "cut off"),
        (nifti(picture(50, 40))[:-400], "cut off"),
        (claims((20_000, 20_000)), "400,000,000 pixels"),
        (claims((7_000, 7_000, 20)), "980,000,000 pixels"),
        (claims((4, 5, 6, 7)), "4 x 5 x 6 x 7 elements"),
        (claims((0, 5)), "no pixels"),
        (metaimage(picture(5, 4), "MET_UCHAR")[:-3], "cut off"),
        (metaimage(picture(5, 4), "MET_STRING"), "type MET_STRING"),
        (metaimage(picture(5, 4), "MET_UCHAR", ElementNumberOfChannels="3"), "no grey pictures"),
        (b"NDims = 2\nDimSize = 4 5\n", "does not say where its pixels are"),
        (b"NDims = 2\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n", "DimSize"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # packed bytes hold the time
)
def test_what_cannot_be_read_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason):
        read_volume(data)


def test_colours_are_refused() -> None:
    colours = np.zeros((4, 5, 1), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    data = nibabel.Nifti1Image(colours, np.eye(4)).to_bytes()
    with pytest.raises(UnreadableImage, match="no grey pictures"):
        read_volume(data)


def test_flipped_bytes_raise_nothing_but_unreadable() -> None:
    rng = np.random.default_rng(1)
    frames = picture(3, 12, 10)
    read = 0
    for data in (nifti(frames), nifti(frames, packed=False), metaimage(frames, "MET_UCHAR")):
        for _ in range(60):
            broken = bytearray(data)
            for at in rng.integers(0, min(len(data), 400), 3):
                broken[at] ^= 1 << int(rng.integers(8))
            try:
                assert read_volume(bytes(broken)).frames.ndim == 3
                read += 1
            except UnreadableImage:
                continue
    assert 0 < read < 180
