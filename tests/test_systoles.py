"""Systoles from the area of the cavity, and what a network for clips says of each beat."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_dicom import echo_dicom

from cardioray.clinical.beats import phases_of
from cardioray.data.clip import CLIP, ClipDecoder, ClipPreprocess
from cardioray.data.decoding import DecodedSample
from cardioray.data.outlined_clip import FRAMES, OutlinedClipDecoder
from cardioray.data.sampling import ClipSampling
from cardioray.data.segment import IMAGE, SegmentDecoder, SegmentPreprocess
from cardioray.data.video_writing import encode_video
from cardioray.serve.settings import ServeSettings
from cardioray.tasks import make_task
from cardioray.tasks.echo_ef import EchoEfTask, Systole


def area(frames: int, period: int, first: int, contraction: float = 0.4) -> np.ndarray:
    """The area of a cavity whose end diastole is in frame `first`."""
    phase = (np.arange(frames) - first) % period
    systole = contraction * period
    return np.where(
        phase < systole,
        20 + 10 * np.cos(np.pi * phase / systole),
        20 - 10 * np.cos(np.pi * (phase - systole) / (period - systole)),
    )


class TestPhases:
    @pytest.mark.parametrize("period", [12, 20, 33, 50])
    @pytest.mark.parametrize("shift", [0.0, 0.25, 0.5, 0.85])
    def test_each_beat_has_its_end_diastole_before_its_end_systole(
        self, period: int, shift: float
    ) -> None:
        frames, first = round(3.4 * period), round(shift * period)
        noise = np.random.default_rng(period).normal(0, 0.2, frames)
        pairs = phases_of(area(frames, period, first) + noise, period / 0.8)
        expected = [
            (ed, ed + 0.4 * period)
            for ed in range(first, frames, period)
            if ed + 0.4 * period < frames - 1
        ]
        assert len(pairs) == len(expected)
        for (ed, es), (true_ed, true_es) in zip(pairs, expected, strict=True):
            assert abs(ed - true_ed) <= max(2, 0.08 * period)
            assert abs(es - true_es) <= max(2, 0.08 * period)
            assert ed < es

    def test_a_frame_that_was_drawn_wrong_is_no_end_of_a_beat(self) -> None:
        curve = area(60, 20, 0)
        spoiled = curve.copy()
        spoiled[[13, 33]] = 60
        spoiled[5] = np.nan
        assert phases_of(spoiled, 25.0) == phases_of(curve, 25.0)

    @pytest.mark.parametrize(("frame", "drawn"), [(30, 5.0), (30, 180.0), (15, 5.0), (45, 90.0)])
    def test_a_frame_that_was_drawn_wrong_is_not_measured(self, frame: int, drawn: float) -> None:
        curve = 70 + 30 * np.cos(2 * np.pi * np.arange(61) / 30)
        curve[frame] = drawn
        for fps in (None, 25.0):
            pairs = phases_of(curve, fps)
            assert len(pairs) >= (1 if fps is None else 2)
            for ed, es in pairs:
                assert curve[ed] == pytest.approx(100, abs=1)
                assert curve[es] == pytest.approx(40, abs=1)

    @given(
        period=st.integers(14, 60),
        first=st.floats(0, 1),
        frame=st.floats(0, 1, exclude_max=True),
        drawn=st.floats(0, 60) | st.just(np.nan),
        known_rate=st.booleans(),
    )
    @settings(max_examples=300, deadline=None)
    def test_one_frame_spoils_no_phase(
        self, period: int, first: float, frame: float, drawn: float, known_rate: bool
    ) -> None:
        frames = round(2.4 * period)
        curve = area(frames, period, round(first * period))
        spoiled = curve.copy()
        place = int(frame * frames)
        spoiled[place] = drawn
        pairs = phases_of(spoiled, period / 0.8 if known_rate else None)
        assert pairs
        for ed, es in pairs:
            # Of a range from 10 to 30; two frames from an end it is at most this far away.
            assert spoiled[ed] > 30 - 4
            assert spoiled[es] < 10 + 4

    def test_a_lost_frame_is_no_end_of_a_beat(self) -> None:
        curve = area(60, 20, 0)
        for lost in ([20], [28], [19, 20, 21], [8, 28, 48], list(range(1, 60, 2))):
            spoiled = curve.copy()
            spoiled[lost] = np.nan
            for fps in (None, 25.0):
                pairs = phases_of(spoiled, fps)
                assert pairs
                assert np.isfinite(spoiled[np.array(pairs)]).all()
        spoiled[:] = np.nan
        spoiled[[3, 40]] = 20, 10
        assert phases_of(spoiled, 25.0) == [(3, 40)]

    def test_few_frames_a_beat_keep_their_ends(self) -> None:
        assert phases_of(area(40, 10, 0), 12.5) == [(0, 4), (10, 14), (20, 24), (30, 34)]
        half = 70 + 30 * np.cos(np.pi * np.arange(9) / 8)
        assert phases_of(half, None) == [(0, 8)]

    def test_noise_is_not_taken_for_contraction(self) -> None:
        rng = np.random.default_rng(0)
        measured = []
        for _ in range(200):
            curve = 2 * area(100, 40, 0) + 20 + rng.normal(0, 1.6, 100)
            measured += [1 - curve[es] / curve[ed] for ed, es in phases_of(curve, 50.0)]
        assert np.mean(measured) == pytest.approx(1 - 40 / 80, abs=0.02)

    def test_scale_and_unit_do_not_matter(self) -> None:
        curve = area(70, 21, 4) + np.random.default_rng(0).normal(0, 0.1, 70)
        assert phases_of(curve, 25.0) == phases_of(371.0 * curve, 25.0)

    def test_without_a_rate_the_cine_is_one_beat(self) -> None:
        curve = area(60, 20, 3)
        [(ed, es)] = phases_of(curve, None)
        assert curve[ed] == pytest.approx(curve.max(), abs=0.7)
        assert curve[es] == pytest.approx(curve.min(), abs=0.7)
        assert phases_of(np.full(9, np.nan), 25.0) == []
        assert phases_of(np.array([np.nan, 3.0, np.nan]), 25.0) == []


@pytest.fixture
def task() -> EchoEfTask:
    settings = {"sampling": {"frames": 6, "stride": 2, "step": 3}}
    found = make_task("echo-ef", settings)
    assert isinstance(found, EchoEfTask)
    return found


def sample(frames: int, fps: float = 25.0) -> DecodedSample:
    clip = np.zeros((frames, 8, 8, 1), np.uint8)
    facts = {"fps": fps, "source_fps": fps}
    return DecodedSample(frame="0", arrays={CLIP: clip}, picture=clip[0, ..., 0], facts=facts)


class TestValuesOfBeats:
    def test_a_beat_is_the_mean_of_the_windows_that_hold_its_systole(
        self, task: EchoEfTask
    ) -> None:
        frames, span = 60, 11
        starts = task.sampler.starts(frames, thorough=True)
        values = np.random.default_rng(0).uniform(30, 70, len(starts)).astype(np.float32)
        systoles = [Systole(2, 7), Systole(20, 27), Systole(41, 46)]
        assert task.sampler.span == span
        found = task.outlined_beats([sample(frames)], {"ef": [values]}, [systoles])
        for beat, (ed, es) in zip(found["beats"], systoles, strict=True):
            held = [
                (start, value)
                for start, value in zip(starts, values, strict=True)
                if start <= ed and es <= start + span - 1
            ]
            assert held
            assert beat["value"] == pytest.approx(np.mean([value for _, value in held]))
            assert beat["first_frame"] == held[0][0]
            assert beat["last_frame"] == held[-1][0] + span - 1
            assert (beat["ed_frame"], beat["es_frame"], beat["cine"]) == (ed, es, 0)
        every = [beat["value"] for beat in found["beats"]]
        assert found["beat_range"] == [min(every), max(every)]

    def test_a_systole_that_no_window_holds_has_the_nearest_one(self, task: EchoEfTask) -> None:
        starts = np.array(task.sampler.starts(60, thorough=True))
        values = np.arange(len(starts), dtype=np.float32)
        found = task.outlined_beats([sample(60)], {"ef": [values]}, [[Systole(20, 44)]])
        [beat] = found["beats"]
        assert abs(beat["first_frame"] + 5 - 32) <= 1.5
        assert found["beat_range"] is None

    def test_cines_without_systoles_have_no_beats(self, task: EchoEfTask) -> None:
        windows = {"ef": [np.array([50.0], np.float32), np.zeros(0, np.float32)]}
        found = task.outlined_beats([sample(4), sample(30)], windows, [[Systole(1, 3)], []])
        assert [beat["cine"] for beat in found["beats"]] == [0]
        assert found["beats"][0]["value"] == 50
        assert found["beats"][0]["last_frame"] == 3

    def test_by_default_predictions_tell_the_beats(self, task: EchoEfTask) -> None:
        starts = task.sampler.starts(40, thorough=True)
        windows = {"ef": [np.full(len(starts), 55.0, np.float32)]}
        details = task.details([sample(40)], windows)
        assert details["systoles_from"] == {"source": "predictions"}
        assert "ed_frame" not in details["beats"][0]


class TestDecoder:
    @staticmethod
    def decoders(**preprocess: Any) -> OutlinedClipDecoder:
        return OutlinedClipDecoder(
            clip=ClipDecoder(preprocess=ClipPreprocess(image_size=32, **preprocess)),
            segments=SegmentDecoder(preprocess=SegmentPreprocess(image_size=64)),
        )

    @staticmethod
    def frames(count: int = 20) -> np.ndarray:
        rng = np.random.default_rng(0)
        return rng.integers(0, 255, (count, 40, 48), dtype=np.uint8)

    @pytest.mark.parametrize("selection", [None, "4-15"])
    def test_both_ways_are_those_of_the_decoders_alone(self, selection: str | None) -> None:
        decoder = self.decoders()
        for data in (encode_video(self.frames(), 25.0), echo_dicom(self.frames())):
            [found] = decoder.decode(data, selection)
            [clip] = decoder.clip.decode(data, selection)
            frames = decoder.segments.decode(data, selection)
            np.testing.assert_array_equal(found.arrays[CLIP], clip.arrays[CLIP])
            np.testing.assert_array_equal(found.arrays[FRAMES], [f.arrays[IMAGE] for f in frames])
            assert (found.facts["height_px"], found.facts["width_px"]) == (40, 48)
            assert {**clip.facts, **found.facts} == found.facts

    def test_frames_are_those_of_the_file_where_the_clip_is_resampled(self) -> None:
        [found] = self.decoders(fps=10.0).decode(encode_video(self.frames(), 25.0), None)
        assert len(found.arrays[FRAMES]) == 20
        assert len(found.arrays[CLIP]) == 8
        assert (found.facts["fps"], found.facts["source_fps"]) == (10, 25)

    def test_both_are_cut_alike(self) -> None:
        [found] = self.decoders(max_frames=7).decode(encode_video(self.frames(), 25.0), None)
        assert len(found.arrays[FRAMES]) == len(found.arrays[CLIP]) == 7
        [found] = self.decoders().decode(encode_video(self.frames(), 25.0), None, max_frames=5)
        assert len(found.arrays[FRAMES]) == len(found.arrays[CLIP]) == 5

    def test_arrays_are_taken_as_well(self) -> None:
        found = self.decoders().from_array(self.frames(6))
        assert found.arrays[FRAMES].shape == (6, 64, 64, 1)
        assert found.arrays[CLIP].shape == (6, 32, 32, 1)

    def test_it_travels_to_other_processes(self) -> None:
        decoder = self.decoders()
        assert pickle.loads(pickle.dumps(decoder)) == decoder
        assert decoder.columns == (CLIP, FRAMES)


def test_only_echo_ef_is_served_with_systoles() -> None:
    settings = ServeSettings(task="echo-ef", bundles=("a",), systoles_from="b")
    assert settings.systoles_from == "b"
    with pytest.raises(ValueError, match="applications of echo-ef alone"):
        ServeSettings(task="lv-seg", bundles=("a",), systoles_from="b")
    assert ClipSampling(frames=6, stride=2).span == 11
