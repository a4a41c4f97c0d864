"""Decoding and preprocessing of raster pictures."""

from __future__ import annotations

import io
import struct
import zlib
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from cardioray.data.frames import UInt8Image, drop_equal_channels, to_uint8
from cardioray.data.image import (
    FrameSelection,
    ImagePreprocess,
    UnreadableImage,
    describe_pixels,
    read_frames,
    read_numbered_frames,
)

GREY = np.add.outer(np.arange(40) * 3, np.arange(60)).astype(np.uint8)
RGB = np.stack([GREY, 255 - GREY, GREY // 2], axis=2)


def encode(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(stream, kind, **options)
    return stream.getvalue()


def decode(data: bytes, **limits: int) -> UInt8Image:
    """The picture of a file that holds one."""
    [picture] = read_frames(data, **limits)
    return picture


def tiff(array: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds almost nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\x00" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
@pytest.mark.parametrize("image", [GREY, RGB], ids=["grey", "rgb"])
def test_lossless_kinds_return_the_pixels(kind: str, image: np.ndarray) -> None:
    np.testing.assert_array_equal(decode(encode(image, kind)), image)


@pytest.mark.parametrize("image", [GREY, RGB], ids=["grey", "rgb"])
def test_jpeg_is_near_the_pixels(image: np.ndarray) -> None:
    decoded = decode(encode(image, "JPEG", quality=95, subsampling=0))
    assert decoded.shape == image.shape
    assert np.abs(decoded.astype(int) - image).mean() < 3


def test_grey_saved_as_rgb_comes_back_grey() -> None:
    as_rgb = np.repeat(GREY[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode(encode(as_rgb, "PNG")), GREY)
    np.testing.assert_array_equal(drop_equal_channels(as_rgb), GREY)
    assert drop_equal_channels(RGB) is RGB


def test_palette_one_bit_and_cmyk() -> None:
    grey_palette = Image.fromarray(GREY).convert("P")
    np.testing.assert_array_equal(decode(encode(grey_palette, "PNG")), GREY)
    black_and_white = Image.fromarray(GREY > 100)
    assert set(np.unique(decode(encode(black_and_white, "TIFF")))) == {0, 255}
    cmyk = Image.fromarray(RGB).convert("CMYK")
    np.testing.assert_array_equal(decode(encode(cmyk, "TIFF")), np.asarray(cmyk.convert("RGB")))


def test_transparency_is_laid_over_white() -> None:
    alpha = np.full(GREY.shape, 255, np.uint8)
    alpha[:, :30] = 0
    decoded = decode(encode(np.dstack([RGB, alpha]), "PNG"))
    assert (decoded[:, :30] == 255).all()
    np.testing.assert_array_equal(decoded[:, 30:], RGB[:, 30:])
    half = Image.merge("LA", [Image.new("L", (4, 4), 0), Image.new("L", (4, 4), 128)])
    assert (decode(encode(half, "PNG")) == 127).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    turned = {
        1: GREY, 2: GREY[:, ::-1], 3: GREY[::-1, ::-1], 4: GREY[::-1], 5: GREY.T,
        6: np.rot90(GREY, -1), 7: GREY[::-1, ::-1].T, 8: np.rot90(GREY),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(encode(GREY, kind, exif=exif))
    assert decoded.shape == turned.shape
    assert np.abs(decoded.astype(int) - turned).mean() < 3


@pytest.mark.parametrize(
    ("largest", "bits"), [(255, 8), (256, 10), (1023, 10), (1024, 12), (4095, 12), (65535, 16)]
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_scale_is_the_smallest_that_holds_the_picture(
    largest: int, bits: int, kind: str
) -> None:
    values = np.linspace(0, largest, GREY.size).round().astype(np.uint16).reshape(GREY.shape)
    expected = np.rint(values * (255 / (2**bits - 1)))
    np.testing.assert_array_equal(decode(encode(values, kind)), expected)


def test_scale_of_a_stated_bit_depth_does_not_depend_on_the_picture() -> None:
    dark = np.array([[0, 100]], np.uint16)
    assert to_uint8(dark, bits=12).tolist() == [[0, 6]]
    assert to_uint8(dark, bits=8).tolist() == [[0, 100]]


def test_float_tiff() -> None:
    ramp = np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10)
    np.testing.assert_array_equal(decode(tiff(ramp)), np.rint(ramp * 255))
    half = decode(tiff(ramp / 2))
    assert half.max() == 128, "a picture within [0, 1] keeps its brightness"
    stretched = decode(tiff(ramp * 700 - 300))
    assert (stretched.min(), stretched.max()) == (0, 255)
    np.testing.assert_array_equal(stretched, np.rint(ramp * 255))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_float_tiff_with_nan_is_refused(bad: float) -> None:
    values = np.zeros((8, 8), np.float32)
    values[3, 4] = bad
    with pytest.raises(UnreadableImage, match="NaN or infinite"):
        decode(tiff(values))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"patient;ffr\n1;0.7\n" * 20, "text, whatever its name says.*Accepted are PNG"),
        (b"%PDF-1.7 ...", "PDF"),
        (b"PK\x03\x04" + bytes(50), "ZIP archive"),
        (b"GIF89a" + bytes(50), "GIF"),
        (bytes(range(128, 256)) * 4, "unknown kind"),
        (b"BMI, age\n20, 50\n", "header .* damaged"),
    ],
)
def test_other_files_are_named(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason):
        read_frames(data)


@pytest.mark.parametrize("side", [20_000, 8_000, 2**31 - 1])
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    with pytest.raises(UnreadableImage, match="accepted|too large"):
        decode(png_header(side, side))


def test_the_limit_is_a_setting_and_holds_for_every_page() -> None:
    assert decode(encode(GREY, "PNG"), max_pixels=GREY.size).shape == GREY.shape
    with pytest.raises(UnreadableImage, match="60 x 40 = 2,400 pixels; at most 2,399"):
        decode(encode(GREY, "PNG"), max_pixels=GREY.size - 1)
    pages = [Image.new("L", (8, 8)), Image.new("L", (100, 100))]
    data = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    with pytest.raises(UnreadableImage, match="100 x 100"):
        read_frames(data, max_pixels=5_000)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF"])
def test_truncation_anywhere_is_refused(kind: str) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (40, 60), np.uint8)
    data = encode(noise, kind)
    for share in np.linspace(0, 0.95, 20):
        with pytest.raises(UnreadableImage):
            decode(data[: int(share * len(data))])


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF"])
def test_flipped_bytes_raise_nothing_but_unreadable(kind: str) -> None:
    rng = np.random.default_rng(1)
    data = encode(RGB, kind)
    refused = 0
    for _ in range(150):
        damaged = bytearray(data)
        for position in rng.integers(0, min(len(data), 400), 4):
            damaged[position] = rng.integers(0, 256)
        try:
            images = read_frames(bytes(damaged), max_pixels=100_000)
        except UnreadableImage:
            refused += 1
        else:
            assert all(image.dtype == np.uint8 for image in images)
    assert refused > 0


def test_an_error_of_ours_is_not_called_damage() -> None:
    with pytest.raises(AttributeError):
        read_frames(encode(GREY, "PNG"), frames="contrast")  # type: ignore[arg-type]


def test_pages_are_frames() -> None:
    pages = [np.full((6, 8), level, np.uint8) for level in (10, 20, 30, 40)]
    pictures = [Image.fromarray(page) for page in pages]
    data = encode(pictures[0], "TIFF", save_all=True, append_images=pictures[1:])
    assert [int(frame[0, 0]) for frame in read_frames(data)] == [10, 20, 30, 40]
    chosen = read_frames(data, frames=FrameSelection.parse("1-2"))
    assert [int(frame[0, 0]) for frame in chosen] == [20, 30]
    with pytest.raises(UnreadableImage, match="Frame 4 .* 4 frame"):
        read_frames(data, frames=FrameSelection.parse("4"))
    with pytest.raises(UnreadableImage, match="more than 3 pages"):
        read_frames(data, max_frames=3)
    with pytest.raises(UnreadableImage, match="more than 3 pages"):
        read_frames(data, frames=FrameSelection.parse("0"), max_frames=3)
    animated = encode(pictures[0], "PNG", save_all=True, append_images=pictures[1:])
    assert [int(frame[0, 0]) for frame in read_frames(animated)] == [10, 20, 30, 40]


def test_a_still_is_its_frame_whatever_its_number() -> None:
    (numbered,) = read_numbered_frames(encode(GREY, "PNG"), frames=FrameSelection.parse("17"))
    assert numbered[0] == 17
    for text in ("all", "contrast", "0", "17", "3-9"):
        frames = read_frames(encode(GREY, "PNG"), frames=FrameSelection.parse(text))
        assert len(frames) == 1
        np.testing.assert_array_equal(frames[0], GREY)


@pytest.mark.parametrize(
    ("text", "indices"), [("all", range(9)), ("0", [0]), (" 7 ", [7]), ("2-4", [2, 3, 4])]
)
def test_frame_selection(text: str, indices: range | list[int]) -> None:
    selection = FrameSelection.parse(text)
    assert list(selection.indices(9)) == list(indices)
    assert FrameSelection.parse(str(selection)) == selection


@pytest.mark.parametrize("text", ["", "first", "-1", "4-2", "1,2", "2.5"])
def test_frame_selection_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="frame"):
        FrameSelection.parse(text)


def test_pixels_are_described() -> None:
    assert describe_pixels(encode(GREY, "PNG")) == "PNG uint8 grey"
    assert describe_pixels(encode(GREY.astype(np.uint16), "TIFF")) == "TIFF uint16 grey"
    assert describe_pixels(tiff(np.zeros((4, 4), np.float32))) == "TIFF float32 grey"
    assert describe_pixels(encode(RGB, "JPEG")) == "JPEG uint8 RGB"
    with pytest.raises(UnreadableImage):
        describe_pixels(b"text")


SHAPES = [(100, 50), (50, 300, 3), (1, 9), (64, 64), (20, 500)]


@pytest.mark.parametrize(
    ("fit", "channels", "equalise"),
    list(product(["squash", "pad", "crop"], [1, 3], ["none", "global", "clahe"])),
)
def test_preprocess_shape_and_determinism(fit: str, channels: int, equalise: str) -> None:
    rng = np.random.default_rng(0)
    preprocess = ImagePreprocess(image_size=64, channels=channels, fit=fit, equalise=equalise)
    for shape in SHAPES:
        image = rng.integers(0, 256, shape).astype(np.uint8)
        before = image.copy()
        result = preprocess.apply(image)
        assert result.shape == (64, 64, channels)
        assert result.dtype == np.uint8
        np.testing.assert_array_equal(result, preprocess.apply(image))
        np.testing.assert_array_equal(image, before)
        if equalise == "none":
            np.testing.assert_array_equal(preprocess.apply(result), result)


def test_shrinking_averages_by_area() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (128, 64), dtype=np.uint8)
    blocks = image.reshape(32, 4, 32, 2).mean(axis=(1, 3))
    result = ImagePreprocess(image_size=32).apply(image)[..., 0]
    assert np.abs(result - blocks).max() <= 0.51


def test_pad_and_crop_keep_the_aspect() -> None:
    wide = np.zeros((50, 100), np.uint8)
    wide[:, 40:60] = 200
    padded = ImagePreprocess(image_size=100, fit="pad").apply(wide)[..., 0]
    np.testing.assert_array_equal(padded[25:75], wide)
    assert padded[:25].max() == padded[75:].max() == 0
    cropped = ImagePreprocess(image_size=50, fit="crop").apply(wide)[..., 0]
    np.testing.assert_array_equal(cropped, wide[:, 25:75])


def test_colour_and_grey_inputs() -> None:
    grey_result = ImagePreprocess(image_size=40, channels=3).apply(GREY)
    assert (grey_result[..., 0] == grey_result[..., 2]).all()
    colour = np.zeros((32, 32, 3), np.uint8)
    colour[..., 0] = 200
    luma = ImagePreprocess(image_size=32, channels=1).apply(colour)
    assert abs(int(luma[0, 0, 0]) - 0.299 * 200) < 1


def test_global_equalisation_is_per_channel_and_independent_of_contrast() -> None:
    faint = (RGB // 8 + 90).astype(np.uint8)
    preprocess = ImagePreprocess(image_size=64, channels=3, equalise="global")
    result = preprocess.apply(faint)
    assert [(c.min(), c.max()) for c in np.moveaxis(result, 2, 0)] == [(0, 255)] * 3
    red = ImagePreprocess(image_size=64, equalise="global").apply(faint[..., 0])
    np.testing.assert_array_equal(result[..., :1], red)
    shifted = preprocess.apply(faint + np.uint8(20))
    np.testing.assert_array_equal(shifted, result)


def test_bicubic_differs_from_bilinear_only_when_enlarging() -> None:
    small, large = GREY[:20, :20], cv2.resize(GREY, (300, 300))
    for image, same in ((small, False), (large, True)):
        bilinear = ImagePreprocess(image_size=64).apply(image)
        bicubic = ImagePreprocess(image_size=64, interpolation="bicubic").apply(image)
        assert np.array_equal(bilinear, bicubic) is same


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8)), np.zeros((8, 8, 4), np.uint8), np.zeros((2, 8, 8, 3), np.uint8)],
)
def test_preprocess_refuses_other_arrays(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8 picture of shape"):
        ImagePreprocess().apply(image)


@pytest.mark.samples
def test_real_angiograms_are_read(samples: Path) -> None:
    files = sorted(samples.glob("angio_*/**/*.png")) + sorted(samples.glob("angio_*/**/*.bmp"))
    assert len(files) == 9
    for file in files:
        image = decode(file.read_bytes())
        assert image.shape == (512, 512)
        assert image.std() > 10
