"""Decoding of DICOM pictures and cines."""

from __future__ import annotations

import importlib.util
import io
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from cardioray.data.contrast import contrast_frames
from cardioray.data.dicom import iter_dicom, read_dicom_info
from cardioray.data.frames import frames_at_once
from cardioray.data.image import (
    FrameSelection,
    UnreadableImage,
    read_frames,
    read_numbered_frames,
)

needs_libjpeg = pytest.mark.skipif(
    importlib.util.find_spec("libjpeg") is None, reason="JPEG of 12 bits needs the extra jpeg-gpl"
)

XA = "1.2.840.10008.5.1.4.1.1.12.1"
RAMP = np.add.outer(np.arange(32) * 2, np.arange(48)).astype(np.uint16)


def make_dicom(frames: np.ndarray, bits: int = 8, **tags: object) -> FileDataset:
    """An XA object with frames of shape (F, H, W) or one of shape (H, W)."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = XA
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = XA, "1.2.3", "XA"
    dataset.PatientName, dataset.PatientID = "Doe^Jane", "4711"
    dataset.Rows, dataset.Columns = frames.shape[-2:]
    if frames.ndim == 3:
        dataset.NumberOfFrames = len(frames)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = 8 if bits <= 8 else 16
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits - 1, 0
    dataset.PixelData = frames.astype(np.uint8 if bits <= 8 else np.uint16).tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def to_bytes(dataset: Dataset) -> bytes:
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def shipped(name: str) -> bytes:
    return Path(get_testdata_file(name, download=False)).read_bytes()


def one(dataset: Dataset) -> np.ndarray:
    (frame,) = read_frames(to_bytes(dataset))
    return frame


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_stored_bits_are_the_full_scale(bits: int) -> None:
    values = np.linspace(0, 2**bits // 3, RAMP.size).astype(np.uint16).reshape(RAMP.shape)
    expected = np.rint(values * (255 / (2**bits - 1)))
    np.testing.assert_array_equal(one(make_dicom(values, bits)), expected)


def test_sixteen_stored_bits_follow_the_values() -> None:
    values = (RAMP * 25).astype(np.uint16)
    assert 2048 < values.max() < 4096
    np.testing.assert_array_equal(one(make_dicom(values, 16)), np.rint(values * (255 / 4095)))


def test_window_is_applied_after_the_rescale() -> None:
    tags = {"RescaleSlope": 2, "RescaleIntercept": -100, "WindowCenter": 60, "WindowWidth": 100}
    result = one(make_dicom(RAMP, 12, **tags))
    # PS3.3 C.11.2.1.2.1, the LINEAR function with an output of 0 to 255.
    linear = ((RAMP * 2.0 - 100 - 59.5) / 99 + 0.5) * 255
    np.testing.assert_array_equal(result, np.rint(np.clip(linear, 0, 255)))


def test_the_window_of_a_frame_wins() -> None:
    def group(center: float) -> Dataset:
        item, outer = Dataset(), Dataset()
        item.WindowCenter, item.WindowWidth = center, 50
        outer.FrameVOILUTSequence = Sequence([item])
        return outer

    dataset = make_dicom(np.stack([RAMP, RAMP]), 12, WindowCenter=2000, WindowWidth=4000)
    dataset.PerFrameFunctionalGroupsSequence = Sequence([group(30), group(90)])
    first, second = read_frames(to_bytes(dataset))
    for frame, center in ((first, 30), (second, 90)):
        alone = one(make_dicom(RAMP, 12, WindowCenter=center, WindowWidth=50))
        np.testing.assert_array_equal(frame, alone)


def test_voi_lut() -> None:
    item = Dataset()
    item.LUTDescriptor = [256, 0, 12]
    item.add_new("LUTData", "US", [min(4095, 32 * value) for value in range(256)])
    dataset = make_dicom(RAMP.clip(0, 255), 8)
    dataset.VOILUTSequence = Sequence([item])
    expected = np.rint(np.minimum(4095, 32.0 * RAMP) * (255 / 4095))
    np.testing.assert_array_equal(one(dataset), expected)


def test_modality_lut_without_a_window() -> None:
    item = Dataset()
    item.LUTDescriptor = [256, 0, 16]
    item.add_new("LUTData", "US", [65_535 - 200 * value for value in range(256)])
    dataset = make_dicom(RAMP.clip(0, 255), 8)
    dataset.ModalityLUTSequence = Sequence([item])
    np.testing.assert_array_equal(one(dataset), np.rint((65_535 - 200.0 * RAMP) * (255 / 65_535)))


def test_monochrome1_is_inverted() -> None:
    plain = one(make_dicom(RAMP, 8))
    inverted = one(make_dicom(RAMP, 8, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(inverted, 255 - plain)


@pytest.mark.parametrize("place", ["top level", "frame"])
def test_a_negative_slope_without_a_window_inverts(place: str) -> None:
    rescale, group = Dataset(), Dataset()
    rescale.RescaleSlope, rescale.RescaleIntercept = -2, 511
    dataset = make_dicom(RAMP[None], 8)
    if place == "frame":
        group.PixelValueTransformationSequence = Sequence([rescale])
        dataset.PerFrameFunctionalGroupsSequence = Sequence([group])
    else:
        dataset.update(rescale)
    np.testing.assert_array_equal(one(dataset), 255 - one(make_dicom(RAMP, 8)))
    # As the same values with a window over their whole range.
    dataset.WindowCenter, dataset.WindowWidth = 256.5, 511
    assert np.abs(one(dataset).astype(int) - (255 - one(make_dicom(RAMP, 8)))).max() <= 1


def test_an_error_of_ours_is_not_called_damage() -> None:
    with pytest.raises(AttributeError):
        read_frames(to_bytes(make_dicom(RAMP, 8)), frames="contrast")  # type: ignore[arg-type]


def test_signed_pixels() -> None:
    values = (RAMP.astype(np.int16) - 60).astype(np.int16)
    dataset = make_dicom(RAMP, 16, PixelRepresentation=1)
    dataset.PixelData = values.tobytes()
    result = one(dataset)
    assert (result.min(), result.max()) == (0, 255)
    assert np.corrcoef(result.ravel(), values.ravel())[0, 1] > 0.999


def test_unused_high_bits_are_ignored() -> None:
    dirty = make_dicom(RAMP | 0xF000, 12)
    np.testing.assert_array_equal(one(dirty), one(make_dicom(RAMP, 12)))


# Files shipped inside pydicom: name, shape, and a file with the same picture in another coding.
CODED = [
    ("MR_small_RLE.dcm", "MR_small.dcm", 0),
    ("MR_small_jp2klossless.dcm", "MR_small.dcm", 0),
    ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm", 0),
    ("MR_small_bigendian.dcm", "MR_small.dcm", 0),
    ("MR_small_implicit.dcm", "MR_small.dcm", 0),
    ("SC_rgb_rle.dcm", "SC_rgb_jpeg_gdcm.dcm", 0),
    ("SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_rle.dcm", 5),
    ("SC_rgb_jpeg_lossy_gdcm.dcm", "SC_rgb_rle.dcm", 5),
    ("SC_rgb_jls_lossy_line.dcm", "SC_rgb_rle.dcm", 5),
    ("SC_rgb_gdcm_KY.dcm", "SC_rgb_rle.dcm", 5),
    ("SC_ybr_full_422_uncompressed.dcm", "SC_rgb_rle.dcm", 5),
    ("SC_rgb_rle_16bit.dcm", "SC_rgb_rle.dcm", 1),
]


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize(("name", "reference", "tolerance"), CODED)
def test_transfer_syntaxes_agree(name: str, reference: str, tolerance: float) -> None:
    (decoded,) = read_frames(shipped(name))
    (expected,) = read_frames(shipped(reference))
    assert decoded.shape == expected.shape
    assert np.abs(decoded.astype(int) - expected).mean() <= tolerance


@pytest.mark.parametrize(
    ("name", "shape", "frames"),
    [
        ("examples_palette.dcm", (350, 800, 3), 1),
        ("examples_ybr_color.dcm", (240, 320, 3), 30),
        ("examples_jpeg2k.dcm", (480, 640, 3), 1),
        pytest.param("JPGExtended.dcm", (1024, 256), 1, marks=needs_libjpeg),
        ("image_dfl.dcm", (512, 512), 1),
        ("SC_rgb_rle_2frame.dcm", (100, 100, 3), 2),
    ],
)
def test_shipped_files(name: str, shape: tuple[int, ...], frames: int) -> None:
    decoded = read_frames(shipped(name))
    assert len(decoded) == frames
    assert {frame.shape for frame in decoded} == {shape}
    assert read_dicom_info(shipped(name)).number_of_frames == frames


def test_frames_are_counted_from_zero() -> None:
    cine = np.stack([np.full((8, 8), 10 * index) for index in range(20)])
    data = to_bytes(make_dicom(cine))

    def levels(text: str) -> list[int]:
        return [int(f[0, 0]) for f in read_frames(data, frames=FrameSelection.parse(text))]

    assert levels("0") == [0]
    assert levels("12") == [120]
    assert levels("10-13") == [100, 110, 120, 130]
    assert levels("all") == [10 * index for index in range(20)]
    with pytest.raises(UnreadableImage, match="Frame 20 .* 20 frame.* counted from 0"):
        levels("20")


def jpeg_cine(count: int, broken: int | None = None) -> bytes:
    dataset = make_dicom(np.zeros((count, 64, 64)))
    items = []
    for index in range(count):
        _, coded = cv2.imencode(".jpg", np.full((64, 64), 10 * index, np.uint8))
        items.append(b"\xff\xd8 no picture" if index == broken else coded.tobytes())
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData = encapsulate(items)
    dataset["PixelData"].VR = "OB"
    return to_bytes(dataset)


def test_frames_that_were_not_asked_for_are_not_decoded() -> None:
    data = jpeg_cine(12, broken=3)
    (frame,) = read_frames(data, frames=FrameSelection.parse("7"))
    assert abs(int(frame.mean()) - 70) <= 1
    with pytest.raises(UnreadableImage):
        read_frames(data)
    assert len(read_frames(jpeg_cine(12))) == 12


def test_limits_are_checked_before_decoding() -> None:
    with pytest.raises(UnreadableImage, match="48 x 32 = 1,536 pixels; at most 1,000"):
        read_frames(to_bytes(make_dicom(RAMP)), max_pixels=1_000)
    cine = make_dicom(np.zeros((50, 8, 8)))
    with pytest.raises(UnreadableImage, match="50 frames; at most 20"):
        read_frames(to_bytes(cine), max_frames=20)
    with pytest.raises(UnreadableImage, match="3,200 pixels; at most 640"):
        read_frames(to_bytes(cine), max_pixels=64)
    assert len(read_frames(to_bytes(cine), frames=FrameSelection.parse("3"), max_pixels=64)) == 1


def test_a_run_of_frames_within_the_limit_is_read_and_one_more_is_not() -> None:
    data, pixels, limit = to_bytes(make_dicom(np.zeros((50, 8, 8)))), 64, 100
    most = frames_at_once(pixels, limit)
    assert most == 15

    def read(count: int) -> int:
        return len(list(iter_dicom(data, FrameSelection.parse(f"9-{8 + count}"), 50, limit)))

    assert read(most) == most
    with pytest.raises(UnreadableImage, match="1,024 pixels; at most 1,000"):
        read(most + 1)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"Rows": 60_000, "Columns": 60_000}, "60000 x 60000"),
        ({"NumberOfFrames": 2_000_000_000}, "2,000,000,000 frames"),
        ({"NumberOfFrames": 1_000}, "truncated: 1,536 of 1,536,000 bytes"),
        ({"NumberOfFrames": -3}, "states -3 frames"),
        ({"Rows": 0}, "no pixels"),
        ({"Rows": 33}, "truncated"),
        ({"PixelData": b""}, "no pixel data"),
        ({"BitsAllocated": 7}, "cannot be decoded"),
        ({"PhotometricInterpretation": "FOO"}, "cannot be decoded"),
    ],
)
def test_absurd_headers(tags: dict[str, object], reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason):
        read_frames(to_bytes(make_dicom(RAMP, 8, **tags)))


@pytest.mark.parametrize("syntax", ["jpeg", "jpeg2000"])
def test_a_bomb_behind_a_small_header(syntax: str) -> None:
    """The tags claim 8 x 8 pixels, the codestream 12,000 x 12,000."""
    suffix, uid = {"jpeg": (".jpg", JPEGBaseline8Bit), "jpeg2000": (".jp2", JPEG2000Lossless)}[
        syntax
    ]
    _, coded = cv2.imencode(suffix, np.zeros((64, 64), np.uint8))
    stream = bytearray(coded.tobytes())
    if syntax == "jpeg":
        at = stream.index(b"\xff\xc0") + 5
        stream[at : at + 4] = (12_000).to_bytes(2, "big") * 2
    else:
        del stream[: stream.index(b"\xff\x4f\xff\x51")]
        stream[8:16] = (12_000).to_bytes(4, "big") * 2
    dataset = make_dicom(np.zeros((8, 8)))
    dataset.file_meta.TransferSyntaxUID = uid
    dataset.PixelData = encapsulate([bytes(stream)])
    dataset["PixelData"].VR = "OB"
    with pytest.raises(UnreadableImage, match="12000 x 12000"):
        read_frames(to_bytes(dataset))


def test_deflated_files_are_read_up_to_a_size() -> None:
    dataset = make_dicom(RAMP)
    expected = one(dataset)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    np.testing.assert_array_equal(one(dataset), expected)
    dataset.PixelData = bytes(4_000_000)
    data = to_bytes(dataset)
    assert len(data) < 10_000
    with pytest.raises(UnreadableImage, match="inflates to over"):
        read_frames(data, max_pixels=5_000)


@pytest.mark.parametrize("name", ["rtplan.dcm", "reportsi.dcm", "waveform_ecg.dcm"])
def test_dicom_without_a_picture(name: str) -> None:
    with pytest.raises(UnreadableImage, match="holds no picture"):
        read_frames(shipped(name))
    with pytest.raises(UnreadableImage, match="holds no picture"):
        read_dicom_info(shipped(name))


def test_missing_pixel_data_and_other_files() -> None:
    dataset = make_dicom(RAMP)
    del dataset.PixelData
    with pytest.raises(UnreadableImage, match="no pixel data"):
        read_frames(to_bytes(dataset))
    assert read_dicom_info(to_bytes(dataset)).rows == 32
    with pytest.raises(UnreadableImage, match="no DICOM file"):
        read_dicom_info(b"\x89PNG\r\n\x1a\n" + bytes(300))


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("name", ["MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm"])
def test_truncation_is_refused(name: str) -> None:
    data = shipped(name)
    end = data.rindex(b"\xe0\x7f\x10\x00")
    for share in np.linspace(0, 0.9, 12):
        with pytest.raises(UnreadableImage):
            read_frames(data[: int(share * len(data))])
    for kept in (0, 8, 200):
        with pytest.raises(UnreadableImage):
            read_frames(data[: end + kept])


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("name", ["MR_small.dcm", "SC_rgb_rle_2frame.dcm", "SC_rgb_jpeg_gdcm.dcm"])
def test_flipped_bytes_raise_nothing_but_unreadable(name: str) -> None:
    rng = np.random.default_rng(0)
    data = shipped(name)
    for _ in range(60):
        damaged = bytearray(data)
        for position in rng.integers(128, len(data), 5):
            damaged[position] = rng.integers(0, 256)
        try:
            frames = read_frames(bytes(damaged), max_pixels=100_000)
        except UnreadableImage:
            continue
        assert all(frame.dtype == np.uint8 for frame in frames)


def test_info_holds_no_patient() -> None:
    dataset = make_dicom(
        np.zeros((3, 8, 8)), 10, FrameTime=66.7, ImagerPixelSpacing=[0.4, 0.4],
        EstimatedRadiographicMagnificationFactor=1.6,
    )  # fmt: skip
    info = read_dicom_info(to_bytes(dataset))
    assert info.modality == "XA"
    assert info.sop_class == "X-Ray Angiographic Image Storage"
    assert (info.rows, info.columns, info.number_of_frames, info.bits_stored) == (8, 8, 3, 10)
    assert info.photometric == "MONOCHROME2"
    assert info.frame_time_ms == pytest.approx(66.67, abs=0.05)
    assert info.pixel_spacing_mm == pytest.approx((0.25, 0.25))
    assert "Doe" not in repr(info)
    assert "4711" not in repr(info)


@pytest.mark.parametrize(
    ("tags", "milliseconds"),
    [
        ({}, None),
        ({"CineRate": 10}, 100),
        ({"RecommendedDisplayFrameRate": 20}, 50),
        ({"FrameTimeVector": [0, 40, 60]}, 50),
        ({"FrameTime": 0}, None),
    ],
)
def test_frame_time(tags: dict[str, object], milliseconds: float | None) -> None:
    info = read_dicom_info(to_bytes(make_dicom(RAMP, **tags)))
    assert info.frame_time_ms == pytest.approx(milliseconds)


def test_detector_spacing_without_magnification_is_not_spacing_in_the_patient() -> None:
    only_detector = make_dicom(RAMP, ImagerPixelSpacing=[0.4, 0.4])
    assert read_dicom_info(to_bytes(only_detector)).pixel_spacing_mm is None
    calibrated = make_dicom(RAMP, PixelSpacing=[0.2, 0.3])
    assert read_dicom_info(to_bytes(calibrated)).pixel_spacing_mm == (0.2, 0.3)


def run_of(filled: list[bool], seed: int = 0) -> np.ndarray:
    """A beating run on a noisy background: a catheter in all frames, vessels in the filled ones."""
    rng = np.random.default_rng(seed)
    backdrop = cv2.GaussianBlur(rng.normal(0, 400, (256, 256)), (0, 0), 25) + 140
    frames = []
    for index, full in enumerate(filled):
        beat = 8 * np.sin(2 * np.pi * index / 12)
        frame = backdrop + 0.2 * beat
        ink = np.zeros((256, 256), np.uint8)
        cv2.line(ink, (0, 30), (90, int(60 + 0.2 * beat)), 50, 4)
        if full:
            for end in ((200, 100), (180, 220), (90, 230)):
                x, y = int(end[0] + beat), int(end[1] + beat)
                cv2.line(ink, (90, int(60 + beat)), (x, y), 60, 5)
        noisy = frame - cv2.GaussianBlur(ink, (0, 0), 1) + rng.normal(0, 6, frame.shape)
        frames.append(np.clip(noisy, 0, 255))
    return np.array(frames).astype(np.uint8)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("before", "during", "after"), [(10, 20, 12), (3, 25, 0), (20, 4, 0)])
def test_contrast_frames_are_found(before: int, during: int, after: int, seed: int) -> None:
    run = run_of([False] * before + [True] * during + [False] * after, seed)
    data = to_bytes(make_dicom(run))
    found = read_frames(data, frames=FrameSelection.parse("contrast"))
    np.testing.assert_array_equal(np.stack(found), run[before : before + during])
    numbered = read_numbered_frames(data, frames=FrameSelection.parse("contrast"))
    assert [number for number, _ in numbered] == list(range(before, before + during))


@pytest.mark.parametrize("full", [False, True])
def test_a_run_without_arrival_is_refused(full: bool) -> None:
    with pytest.raises(UnreadableImage, match="all of them or none"):
        contrast_frames(list(run_of([full] * 30)))


def test_frames_of_different_sizes_are_no_run() -> None:
    with pytest.raises(UnreadableImage, match="differ in size"):
        contrast_frames([np.zeros((8, 8), np.uint8), np.zeros((8, 9), np.uint8)])


def test_contrast_of_a_still_is_the_still() -> None:
    assert (
        len(read_frames(to_bytes(make_dicom(RAMP)), frames=FrameSelection.parse("contrast"))) == 1
    )


def test_rle_cine_round_trip() -> None:
    run = run_of([True] * 3)
    dataset = make_dicom(run)
    dataset.compress(RLELossless, generate_instance_uid=False)
    np.testing.assert_array_equal(np.stack(read_frames(to_bytes(dataset))), run)


def test_patient_tags_are_not_read() -> None:
    """A damaged patient tag cannot stop the reader, nor show up in a message."""
    dataset = make_dicom(RAMP)
    dataset.PatientBirthDate = "19700101"
    data = to_bytes(dataset).replace(b"19700101", b"not-date")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_frames(data)) == 1


@pytest.mark.samples
def test_real_cines(samples: Path) -> None:
    cine = (samples / "echo_dicom" / "color3d_jpeg_baseline.dcm").read_bytes()
    info = read_dicom_info(cine)
    assert (info.modality, info.number_of_frames, round(info.frame_time_ms or 0)) == ("US", 120, 33)
    frames = read_frames(cine, frames=FrameSelection.parse("50-52"))
    assert [frame.shape for frame in frames] == [(480, 640, 3)] * 3
    still = read_frames((samples / "echo_dicom" / "JPGLosslessP14SV1_1s_1f_8b.dcm").read_bytes())
    assert still[0].shape == (768, 1024)
