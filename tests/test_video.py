"""Reading videos: backends, damage, and what a file may cost."""

from __future__ import annotations

import io
import os
import re
import signal
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from benchmarks.video_decoding import (
    DECORD,
    ISOLATED,
    OPENCV,
    OURS,
    TORCHCODEC,
    DecodingSettings,
    _report,
    why_no_torchcodec,
)
from cardioray import config
from cardioray.data.clip import CLIP, ClipDecoder, ClipPreprocess, resample
from cardioray.data.decoding import DecodedSample
from cardioray.data.frames import ALL_FRAMES, FrameSelection, UnreadableImage
from cardioray.data.isolation import (
    DecoderUnavailableError,
    IsolatedDecoder,
    IsolationConfig,
)
from cardioray.data.sector import find_sector
from cardioray.data.video import BACKENDS, backends_for, promised_frames, read_video
from cardioray.data.video_writing import encode_video


def moving_disc(
    frames: int = 40, height: int = 112, width: int = 112, colour: bool = False
) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    clip = np.zeros((frames, height, width), np.uint8)
    for number in range(frames):
        radius = 20 + 8 * np.sin(number / 4)
        clip[number] = 200 / (1 + np.exp(np.hypot(x - width / 2, y - height / 2) - radius))
    if colour:
        return np.stack([clip, clip // 2, 255 - clip], axis=-1)
    return clip


# Every backend with every kind of file that it reads.
READ = [(b, k) for b in BACKENDS for k in ("avi", "mp4") if (b, k) != ("motion_jpeg", "mp4")]


@pytest.mark.parametrize(("backend", "kind"), READ)
@pytest.mark.parametrize("colour", [False, True])
def test_frames_come_back(backend: str, kind: str, colour: bool) -> None:
    clip = moving_disc(colour=colour)
    frames, fps = read_video(encode_video(clip, 31.0, kind), backend=backend)
    assert frames.shape == (40, 112, 112, 3)
    assert fps == pytest.approx(31.0)
    expected = clip if colour else np.repeat(clip[..., None], 3, axis=3)
    # Chroma has half the resolution in both codecs.
    assert np.abs(frames.astype(int) - expected).mean() < (6 if colour else 2)


@pytest.mark.parametrize(("backend", "kind"), READ)
@pytest.mark.parametrize("window", [(0, None, 1), (7, 23, 1), (7, 24, 2), (3, 39, 5), (39, 40, 1)])
@pytest.mark.parametrize("colour", [False, True])
def test_backends_agree(
    backend: str, kind: str, window: tuple[int, int | None, int], colour: bool
) -> None:
    data = encode_video(moving_disc(colour=colour), 25.0, kind)
    first, stop, step = window
    frames = read_video(data, first=first, stop=stop, step=step, backend=backend)[0].astype(int)
    expected = read_video(data, backend="pyav")[0][first:stop:step].astype(int)
    assert frames.shape == expected.shape
    if backend == "motion_jpeg" and colour:
        # libjpeg smooths chroma where FFmpeg repeats it; brightness is the same.
        weights = np.array([0.299, 0.587, 0.114])
        assert np.abs((frames - expected) @ weights).max() < 3
        assert np.abs(frames - expected).mean() < 2
    else:
        assert np.abs(frames - expected).max() <= 1


def write_container(
    kind: str, codec: str, clip: NDArray[np.uint8], times_ms: Sequence[int] | None = None
) -> bytes:
    """A file of any container: frames at 25 a second or at given times, or without any."""
    stream = io.BytesIO()
    with av.open(stream, "w", format=kind) as container:
        video = container.add_stream(codec, rate=25)
        video.height, video.width = 112, 112
        video.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        frames = [av.VideoFrame.from_ndarray(picture, format="gray") for picture in clip]
        if times_ms is not None:
            video.codec_context.time_base = Fraction(1, 1000)
            for frame, at in zip(frames, times_ms, strict=True):
                frame.pts, frame.time_base = at, Fraction(1, 1000)
        container.start_encoding()  # the heading, though no frame may follow
        for frame in frames:
            container.mux(video.encode(frame))
        if frames:
            container.mux(video.encode())
    return stream.getvalue()


@pytest.mark.parametrize("codec", ["libx264", "mjpeg"])
def test_quicktime_files_are_read(codec: str) -> None:
    clip = moving_disc()
    data = write_container("mov", codec, clip)
    assert data[4:12] == b"ftypqt  "
    for backend in backends_for(data):
        frames, fps = read_video(data, backend=backend)
        assert fps == 25
        assert np.abs(frames[..., 0].astype(int) - clip).mean() < 2
    (sample,) = decoder().decode(data, None)
    assert sample.arrays[CLIP].shape == (40, 112, 112, 1)
    with pytest.raises(UnreadableImage, match="cut off"):
        read_video(data[:-100])


@pytest.mark.parametrize("kind", ["mp4", "mov"])
def test_frames_at_uneven_times_are_all_read_and_the_rate_is_their_mean(kind: str) -> None:
    clip = moving_disc()
    times = np.cumsum([0, *[20, 20, 160, 20] * 10])[:40]
    data = write_container(kind, "libx264", clip, times.tolist())
    with av.open(io.BytesIO(data)) as container:
        written = [1000 * float(frame.time) for frame in container.decode(video=0)]
    assert written == pytest.approx(times, abs=1)
    for backend in backends_for(data):
        frames, fps = read_video(data, backend=backend)
        assert np.abs(frames[..., 0].astype(int) - clip).mean() < 2, "none twice, none left out"
        # By the length of the track, which counts decoding times and so is off by a frame or two.
        assert fps == pytest.approx(1000 / np.diff(times).mean(), rel=0.1)
        part, _ = read_video(data, first=6, stop=31, step=3, backend=backend)
        assert np.array_equal(part, frames[6:31:3])


@pytest.mark.parametrize(
    ("kind", "codec"), [("avi", "mjpeg"), ("mp4", "libx264"), ("mov", "mjpeg")]
)
def test_a_whole_video_without_a_frame_is_refused(kind: str, codec: str) -> None:
    data = write_container(kind, codec, moving_disc(0))
    for backend in (*backends_for(data), "auto"):
        with pytest.raises(UnreadableImage, match="holds no|cannot be decoded"):
            read_video(data, backend=backend)
    with pytest.raises(UnreadableImage, match="holds no|cannot be decoded"):
        decoder().decode(data, None)


# A backend whose library is missing


@pytest.mark.parametrize(("backend", "library"), [("decord", "decord"), ("pyav", "av")])
def test_a_backend_that_is_not_installed_is_no_damage(
    backend: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, other = encode_video(moving_disc(4), 25.0, "mp4"), {"decord": "pyav", "pyav": "decord"}
    named = decoder(backend=backend)
    monkeypatch.setitem(sys.modules, library, None)
    words = f"{backend} needs {library}, which is not installed here: pip install {library}"
    there = rf"to one of: auto, motion_jpeg, {other[backend]}\."
    for read in (
        lambda: read_video(data, backend=backend),
        lambda: named.decode(data, None),
        lambda: config.parse(ClipPreprocess, {}, [f"backend={backend}"]),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            read()
        assert not isinstance(caught.value, UnreadableImage), "no file is to blame"
        assert re.search(there, str(caught.value))
    if backend == "decord":
        assert "x86-64" in str(caught.value)
        assert backends_for(data) == ("pyav",)
        assert decoder().decode(data, None)[0].arrays[CLIP].shape == (4, 112, 112, 1)


def test_a_backend_that_does_not_load_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(name: str) -> None:
        raise OSError("libavformat.so.61: cannot open shared object file")

    monkeypatch.setattr("cardioray.data.video.importlib.import_module", no_library)
    with pytest.raises(ValueError, match=r"decord, which does not load \(libavformat") as caught:
        read_video(encode_video(moving_disc(4), 25.0, "mp4"), backend="decord")
    assert not isinstance(caught.value, UnreadableImage)


def test_the_benchmark_says_why_torchcodec_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    why = why_no_torchcodec()
    assert why is not None
    assert "torchcodec" in why

    def no_ffmpeg(name: str) -> None:
        raise RuntimeError("Could not load libtorchcodec.\n  1. FFmpeg is missing | 2. torch")

    monkeypatch.setattr("benchmarks.video_decoding.importlib.import_module", no_ffmpeg)
    why = why_no_torchcodec()
    assert why == "Could not load libtorchcodec. 1. FFmpeg is missing / 2. torch"
    seconds = {name: [1.0, 2.0] for name in (OPENCV, DECORD, OURS, ISOLATED)}
    report = _report(DecodingSettings(), seconds, 8, 0, why)
    assert f"| {TORCHCODEC}: not timed, it does not load ({why}) |  |  |" in report.markdown()
    seconds[TORCHCODEC] = [1.0, 2.0]
    assert "not timed" not in _report(DecodingSettings(), seconds, 8, 0, None).markdown()


def test_pieces_of_a_stride_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode_video(moving_disc(), 25.0)
    whole = {name: read_video(data, backend=name)[0] for name in BACKENDS}
    monkeypatch.setattr("cardioray.data.video._PIECE_BYTES", 7 * 3 * 112 * 112)
    for name, frames in whole.items():
        for first, step in ((0, 1), (4, 2), (1, 3), (0, 9)):
            part = read_video(data, first=first, step=step, backend=name)[0]
            assert np.array_equal(part, frames[first::step])


def test_motion_jpeg_that_is_grouped_or_interleaved_is_found() -> None:
    data = encode_video(moving_disc(6), 25.0)
    at = data.index(b"movi") + 4
    end = at - 8 + struct.unpack_from("<I", data, at - 8)[0] + 4
    sound = b"01wb" + struct.pack("<I", 3) + b"abc\0"
    group = b"LIST" + struct.pack("<I", 4 + len(sound) + end - at) + b"rec " + sound + data[at:end]
    grouped = bytearray(data[:at] + group)
    grouped[at - 8 : at - 4] = struct.pack("<I", 4 + len(group))
    grouped[4:8] = struct.pack("<I", len(grouped) - 8)
    read = [read_video(bytes(d), backend="motion_jpeg")[0] for d in (data, grouped)]
    assert np.array_equal(*read)


def test_what_motion_jpeg_cannot_vouch_for_is_left_to_the_others() -> None:
    clip = moving_disc(8)
    data = bytearray(encode_video(clip, 25.0))
    at = data.index(b"\xff\xda") + 40  # within the coefficients of the first frame
    data[at : at + 6] = b"\xff\xd9\xff\xd9\xff\xd9"
    with pytest.raises(UnreadableImage):
        read_video(bytes(data), backend="motion_jpeg")
    larger = bytearray(encode_video(clip, 25.0))
    form = larger.index(b"strf") + 12
    larger[form : form + 4] = struct.pack("<i", 128)
    with pytest.raises(UnreadableImage, match="has 112 x 112 px, and the file says 128 x 112"):
        read_video(bytes(larger), backend="motion_jpeg")
    (sample,) = decoder().decode(bytes(data), None)
    assert sample.arrays[CLIP].shape == (8, 112, 112, 1)
    more = encode_video(clip, 25.0) + b"RIFF" + struct.pack("<I", 4) + b"AVIX"
    with pytest.raises(UnreadableImage, match="second part"):
        read_video(more, backend="motion_jpeg")


@pytest.mark.parametrize("size", [(48, 80), (50, 62), (120, 34)])
def test_odd_sizes_and_single_frames(size: tuple[int, int]) -> None:
    data = encode_video(moving_disc(1, *size), 30.0)
    for backend in BACKENDS:
        assert read_video(data, backend=backend)[0].shape == (1, *size, 3)


@pytest.mark.parametrize(("backend", "kind"), READ)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
def test_a_video_that_is_cut_off_is_refused(backend: str, kind: str, share: float) -> None:
    data = encode_video(moving_disc(), 30.0, kind)
    with pytest.raises(UnreadableImage):
        read_video(data[: int(share * len(data))], backend=backend)


def test_an_avi_that_lost_frames_is_refused_though_its_length_fits() -> None:
    data = bytearray(encode_video(moving_disc(), 30.0))
    assert promised_frames(bytes(data)) == 40
    at = data.index(b"avih") + 8 + 16
    data[at : at + 4] = struct.pack("<I", 60)
    with pytest.raises(UnreadableImage, match="40 of 60 frames"):
        read_video(bytes(data))


def decoder(**options: object) -> ClipDecoder:
    return ClipDecoder(preprocess=ClipPreprocess(**options))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"patient,ef\n1,55\n" * 40, "text"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "PNG picture"),
        (b"RIFF" + struct.pack("<I", 92) + b"AVI " + b"\0" * 88, "cannot be decoded"),
        (b"\0\0\0\x08ftyp", "cannot be decoded|damaged"),
    ],
)
def test_what_is_no_clip_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason):
        decoder().decode(data, None)


def test_a_clip_has_the_models_size_and_says_what_the_file_says() -> None:
    clip = moving_disc(frames=30)
    (sample,) = decoder().decode(encode_video(clip, 40.0), None)
    assert sample.arrays[CLIP].shape == (30, 112, 112, 1)
    assert sample.facts["fps"] == 40
    assert sample.facts["source_frames"] == 30
    assert np.isnan(sample.facts["cm_per_px"])
    assert np.abs(sample.arrays[CLIP][..., 0].astype(int) - clip).mean() < 2
    (coloured,) = decoder(channels=3, image_size=64).decode(encode_video(clip, 40.0), None)
    assert coloured.arrays[CLIP].shape == (30, 64, 64, 3)


def test_frames_are_chosen_and_bounded() -> None:
    data = encode_video(moving_disc(frames=30), 40.0)
    (whole,) = decoder().decode(data, None)
    (part,) = decoder().decode(data, "5-14")
    assert np.array_equal(part.arrays[CLIP], whole.arrays[CLIP][5:15])
    (cut,) = decoder().decode(data, None, max_frames=8)
    assert len(cut.arrays[CLIP]) == 8
    assert cut.facts["source_frames"] == 30
    with pytest.raises(UnreadableImage, match="has 30 frame"):
        decoder().decode(data, "25-35")


def test_a_long_cine_is_read_in_pieces_as_a_short_one_is() -> None:
    clip = moving_disc(frames=90, height=100, width=140)
    (whole,) = decoder(image_size=56).decode(encode_video(clip, 30.0), None)
    (first,) = decoder(image_size=56).decode(encode_video(clip, 30.0), None, max_frames=48)
    assert whole.arrays[CLIP].shape[0] == 90
    assert np.array_equal(whole.arrays[CLIP][:48], first.arrays[CLIP])


def test_frame_rates_are_brought_together() -> None:
    ramp = np.repeat(np.arange(0, 200, 4, dtype=np.uint8), 4).reshape(50, 2, 2, 1)
    half = resample(ramp, 50.0, 25.0)
    assert np.array_equal(half, ramp[::2])
    twice = resample(ramp, 50.0, 100.0)
    assert len(twice) == 99
    assert np.array_equal(twice[::2], ramp)
    assert (np.diff(twice[:, 0, 0, 0].astype(int)) == 2).all()


def sector_cine(letters: bool = True) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A fan of changing speckle with letters, a scale and an ECG around it."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:240, :320]
    depth, angle = np.hypot(x - 160, y - 10), np.arctan2(x - 160, y - 10)
    fan = (depth < 200) & (depth > 4) & (np.abs(angle) < 0.7)
    frames = rng.integers(20, 200, (20, 240, 320)).astype(np.uint8) * fan
    if letters:
        frames[:, 5:15, 5:60] = 230
        frames[:, 30:200:10, 310:318] = 200
        for number in range(20):
            trace = 225 + (6 * np.sin((np.arange(320) + 7 * number) / 9)).astype(int)
            frames[number, trace, np.arange(320)] = 255
    return frames, fan


def test_the_sector_is_found_and_everything_else_is_masked() -> None:
    frames, fan = sector_cine()
    sector = find_sector(frames)
    assert sector.found
    overlap = (sector.mask & fan).sum() / (sector.mask | fan).sum()
    assert overlap > 0.95
    assert not sector.mask[5:15, 5:60].any()
    assert not sector.mask[:, 310:].any()
    assert not sector.mask[222:, :].any()
    square = sector.crop(frames[0])
    assert square.shape[0] == square.shape[1]


def test_a_picture_without_an_edge_has_no_sector() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (10, 90, 120)).astype(np.uint8)
    sector = find_sector(noise)
    assert not sector.found
    assert sector.mask.all()
    assert (sector.box.height, sector.box.width) == (120, 120)


# Decoding in other processes


@dataclass(frozen=True)
class Trouble:
    """A decoder that does what the file says."""

    columns = (CLIP,)
    selection = ALL_FRAMES
    risky = True

    def decode(self, data: bytes, frames: str | None, max_frames: int = 9) -> list[DecodedSample]:
        command = data.decode()
        if command == "sleep":
            while True:
                time.sleep(0.1)
        if command == "spin":
            while True:
                pass
        if command == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if command == "exit":
            os._exit(3)
        if command == "bad":
            raise UnreadableImage("The file is bad.")
        if command == "bug":
            raise KeyError("a fault")
        if command == "hungry":
            np.ones(2**36, np.uint8)
        size = int(command)
        array = np.full((size, 4, 4, 1), size % 251, np.uint8)
        fact = {"pid": float(os.getpid())}
        return [DecodedSample(frame="0", arrays={CLIP: array}, picture=array[0], facts=fact)]


QUICK = IsolationConfig(deadline_s=1.0, memory_mb=2048, recycle_after=3)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("sleep", "more than 1 s"),
        ("spin", "more than 1 s"),
        ("crash", "SIGSEGV"),
        ("exit", "status 3"),
        ("bad", "The file is bad"),
        ("hungry", "memory"),
    ],
)
def test_a_file_costs_one_error_and_the_next_one_is_read(command: str, reason: str) -> None:
    with IsolatedDecoder(Trouble(), QUICK) as shielded:
        with pytest.raises(UnreadableImage, match=reason):
            shielded.decode(command.encode(), None)
        (sample,) = shielded.decode(b"7", None)
        assert sample.arrays[CLIP].shape == (7, 4, 4, 1)
        process = psutil.Process(int(sample.facts["pid"]))
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_fault_of_the_decoder_is_not_blamed_on_the_file() -> None:
    with (
        IsolatedDecoder(Trouble(), QUICK) as shielded,
        pytest.raises(RuntimeError, match="a fault"),
    ):
        shielded.decode(b"bug", None)


def test_a_process_that_does_not_start_is_not_blamed_on_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with IsolatedDecoder(Trouble(), QUICK) as shielded:
        with pytest.raises(DecoderUnavailableError, match="did not start"):
            shielded.decode(b"7", None)
        monkeypatch.undo()
        assert len(shielded.decode(b"7", None)) == 1


def test_processes_are_replaced_and_large_clips_come_through() -> None:
    with IsolatedDecoder(Trouble(), QUICK) as shielded:
        seen = []
        for size in (3, 5, 2_000_000, 11, 12, 13, 14):
            (sample,) = shielded.decode(str(size).encode(), None)
            assert len(sample.arrays[CLIP]) == size
            assert (sample.arrays[CLIP] == size % 251).all()
            seen.append(sample.facts["pid"])
    assert len(set(seen)) == 3


def test_isolated_decoding_gives_the_same_clip() -> None:
    data = encode_video(moving_disc(), 30.0)
    plain = decoder()
    with IsolatedDecoder(plain) as shielded:
        (here,), (there,) = plain.decode(data, "3-20"), shielded.decode(data, "3-20")
    assert np.array_equal(here.arrays[CLIP], there.arrays[CLIP])
    assert np.array_equal(here.picture, there.picture)
    assert str(here.facts) == str(there.facts)
    assert FrameSelection.parse("3-20").indices(40) == range(3, 21)


# What readers say of a damaged Motion JPEG file.
REASONS = re.compile(
    r"The video cannot be decoded \(.+\)\."
    r"|The video (is damaged|is cut off|holds no frame)\b.+\."
    r"|The AVI holds no video stream\."
    r"|A part of the AVI is longer than what it is in\."
)


def test_a_file_with_flipped_bits_is_decoded_whole_or_refused_with_a_reason() -> None:
    rng = np.random.default_rng(0)
    clip = moving_disc()
    data = encode_video(clip, 30.0)
    read, refused, damaged = 0, [], 0
    strict = ClipDecoder(preprocess=ClipPreprocess(backend="motion_jpeg"))
    with IsolatedDecoder(decoder(), IsolationConfig(deadline_s=20)) as shielded:
        for number in range(24):
            broken = bytearray(data)
            for at in rng.integers(0, len(data), (1, 5, 20)[number % 3]):
                broken[at] ^= 1 << int(rng.integers(8))
            try:
                (sample,) = shielded.decode(bytes(broken), None)
            except UnreadableImage as error:
                refused.append(str(error))
                continue
            assert sample.arrays[CLIP].shape == (40, 112, 112, 1)
            # A bit may change what a frame shows below it, but hardly the clip.
            assert np.abs(sample.arrays[CLIP][..., 0].astype(int) - clip).mean() < 10
            read += 1
            if sample.facts["damaged"]:
                damaged += 1
                with pytest.raises(UnreadableImage):
                    strict.decode(bytes(broken), None)
    assert 0 < damaged < read
    assert [reason for reason in refused if not REASONS.fullmatch(reason)] == []
    assert read >= 5
    assert len(refused) >= 5
    assert len(set(refused)) > 1, "the reasons differ"
