"""What makes a study of frames and cines: refusals, doubts of beats, and what an answer says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import nibabel
import numpy as np
import pytest
import tiny_segments as tiny
from pydicom.uid import generate_uid
from tiny_dicom import echo_dicom
from tiny_outlines import beating

from cardioray.clinical.volumes import volumes_of
from cardioray.data.decoding import DecodedSample
from cardioray.data.frames import UnreadableImage
from cardioray.data.label_maps import CAVITY, STRUCTURES
from cardioray.data.segment import SegmentDecoder, SegmentPreprocess
from cardioray.outlines import (
    Segmented,
    cut_doubts,
    described,
    parse_view,
    refuse_contradictions,
    refuse_incomplete,
    said_of,
    spacing_of,
    study_outlines,
    used_of_cines,
    with_spacing,
)
from cardioray.tasks.outline_tables import cavity_of

DECODER = SegmentDecoder(preprocess=SegmentPreprocess(image_size=32))


def read(data: bytes, view: str, frames: str | None = None, **options: Any) -> list[DecodedSample]:
    return [replace(sample, view=view) for sample in DECODER.decode(data, frames, **options)]


def outlined(
    samples: Sequence[DecodedSample], maps: Sequence[np.ndarray], fps: float = 20.0
) -> list[Segmented]:
    """Frames as a network would outline them that never errs."""
    return [
        Segmented(
            *parse_view(sample.view),
            int(sample.frame),
            labels,
            cavity_of(labels, tiny.SPACING),
            tiny.SPACING,
            fps,
        )
        for sample, labels in zip(samples, maps, strict=True)
    ]


def hearts(frames: int = 48, period: int = 16) -> list[np.ndarray]:
    """The label maps of `beating`."""
    widths = 37 + 7 * np.cos(2 * np.pi * np.arange(frames) / period)
    return [tiny.heart(76 + 0.4 * (width - 37), width) for width in widths]


CINE = tiny.nifti(beating(20))
STILL = tiny.nifti(beating(1)[0])


class TestSaid:
    def test_one_frame_of_a_cine_is_a_frame(self) -> None:
        for data in (CINE, echo_dicom(beating(20))):
            [end_diastole], [end_systole] = read(data, "a4c_ed", "0"), read(data, "A4C-ES", "8")
            said = [said_of(end_diastole), said_of(end_systole)]
            assert said == [("A4C", "ED"), ("A4C", "ES")]
            refuse_contradictions([end_diastole, end_systole], said)
            refuse_incomplete(said)
            with pytest.raises(UnreadableImage, match="sent as the cine A4C is a single frame"):
                said_of(read(data, "A4C", "5")[0])

    @pytest.mark.parametrize("frames", [None, "0-9"])
    def test_a_cine_is_no_frame(self, frames: str | None) -> None:
        samples = read(CINE, "A4C-ED", frames)
        with pytest.raises(UnreadableImage, match=r"is a cine.*or choose one frame"):
            said_of(samples[0])
        assert said_of(read(CINE, "A4C", frames)[0]) == ("A4C", "")

    def test_phases_are_needed(self) -> None:
        for said in ([("A4C", "ED"), ("A2C", "ES")], [("A4C", "ED")], []):
            with pytest.raises(UnreadableImage, match="No view has both phases"):
                refuse_incomplete(said)
        refuse_incomplete([("A4C", "ED"), ("A2C", "")])
        refuse_incomplete([("A4C", "ED"), ("A2C", "ES"), ("A2C", "ED")])


class TestOneStudy:
    @staticmethod
    def files(**second: Any) -> list[DecodedSample]:
        frames = beating(2)
        first = read(echo_dicom(frames[0]), "A4C-ED")
        return first + read(echo_dicom(frames[1], **second), "A4C-ES")

    @pytest.mark.parametrize(
        ("tags", "reason"),
        [
            ({"PatientID": "P2"}, "several patients"),
            ({"StudyInstanceUID": generate_uid()}, "several examinations"),
        ],
    )
    def test_patients_and_examinations_are_not_mixed(
        self, tags: dict[str, Any], reason: str
    ) -> None:
        mixed = self.files(**tags)
        with pytest.raises(UnreadableImage, match=reason):
            refuse_contradictions(mixed, [said_of(sample) for sample in mixed])

    @pytest.mark.parametrize("tags", [{}, {"PatientID": None, "StudyInstanceUID": None}])
    def test_what_is_not_stated_is_no_contradiction(self, tags: dict[str, Any]) -> None:
        samples = self.files(**tags)
        refuse_contradictions(samples, [said_of(sample) for sample in samples])

    @pytest.mark.parametrize("other", ["A4C-ES", "4CH-ES", "4ch es"])
    def test_pixels_of_a_view_have_one_size(self, other: str) -> None:
        first = read(tiny.nifti(beating(1)[0], (0.3, 0.3)), "A4C-ED")
        second = tiny.nifti(beating(1)[0], (0.6, 0.6))
        with pytest.raises(UnreadableImage, match="Pixels of the frames of A4C"):
            spacing_of(first + read(second, other))
        assert spacing_of(first + read(second, "2CH-ES")) == [
            pytest.approx((0.3, 0.3)),
            pytest.approx((0.6, 0.6)),
        ]


class TestCines:
    def test_a_cine_that_was_cut_says_so(self) -> None:
        frames = beating(48)
        for data in (tiny.nifti(frames), echo_dicom(frames, fps=20.0)):
            samples = read(data, "A4C", max_frames=20)
            found = outlined(samples, hearts()[:20])
            [cine] = used_of_cines(samples, found)
            assert (cine["view"], cine["frames_in_file"], cine["frames_used"]) == ("A4C", 48, 20)
            assert cine["fps"] == 20
            [doubt] = cut_doubts(samples, found)
            assert "A4C: of 48 frames the first 20 were used" in doubt

    def test_what_was_asked_for_is_no_cut(self) -> None:
        samples = read(tiny.nifti(beating(48)), "A2C", "4-23")
        found = outlined(samples, hearts()[4:24], math.nan)
        assert used_of_cines(samples, found) == [
            {"view": "A2C", "frames_in_file": 48, "frames_used": 20, "fps": None}
        ]
        assert cut_doubts(samples, found) == []
        one = [*read(STILL, "A4C-ED"), *read(STILL, "A4C-ES")]
        assert used_of_cines(one, outlined(one, hearts()[:2])) == []

    def test_a_rate_in_the_header_tells_beats_apart(self) -> None:
        image = nibabel.Nifti1Image(beating(48).T[:, :, None], np.eye(4))
        image.header.set_zooms((tiny.SPACING[1], tiny.SPACING[0], 1, 0.05))
        image.header.set_xyzt_units("mm", "sec")
        samples = read(image.to_bytes(), "A4C")
        assert samples[0].facts["fps"] == pytest.approx(20)
        study = study_outlines(outlined(samples, hearts(), samples[0].facts["fps"]), "discs")
        assert len(study.beats) == 3
        assert study.doubts == ()


class TestBeats:
    def test_doubts_of_a_beat_name_it(self) -> None:
        # In the second beat next to nothing is left of the cavity.
        least = np.repeat([22.0, 14.0, 22.0], 16)
        contracted = (1 - np.cos(2 * np.pi * np.arange(48) / 16)) / 2
        maps = [tiny.heart(76, width) for width in 44 - contracted * (44 - least)]
        samples = read(tiny.nifti(beating(48)), "A4C")
        study = study_outlines(outlined(samples, maps), "discs")
        assert len(study.beats) == 3
        beat = study.beats[1]
        doubts = [text for text in study.doubts if "beat 2" in text]
        assert doubts[0].startswith(f"A4C, beat 2 (frames {beat.ed} and {beat.es}): An ejection")
        assert not any("beat 1" in text or "beat 3" in text for text in study.doubts)

    def test_what_is_the_whole_answer_is_said_once(self) -> None:
        maps = [tiny.heart(76, width) for width in np.linspace(44, 43.5, 10)]
        samples = read(tiny.nifti(beating(10)), "A4C")
        alone = study_outlines(outlined(samples, maps), "discs")
        whole = volumes_of(alone.cavities)
        assert whole is not None
        assert any("ejection fraction" in text for text in whole.doubts)
        assert not any("beat" in text for text in alone.doubts)
        other = [*read(STILL, "A2C-ED"), *read(STILL, "A2C-ES")]
        both = outlined([*samples, *other], [*maps, maps[0], tiny.heart(60, 30)])
        assert any("A4C, beat 1" in text for text in study_outlines(both, "discs").doubts)

    def test_a_lost_frame_is_never_measured(self) -> None:
        maps = hearts()
        for frame in (16, 24):
            maps[frame] = np.zeros_like(maps[frame])
        samples = read(tiny.nifti(beating(48)), "A4C")
        study = study_outlines(outlined(samples, maps), "discs")
        assert len(study.beats) == 3
        assert not {16, 24} & {frame for beat in study.beats for frame in (beat.ed, beat.es)}
        assert all(beat.ef_percent is not None for beat in study.beats)
        assert any("no cavity was found in 2 of 48 frames" in text for text in study.doubts)


@pytest.mark.parametrize("structures", [("cavity",), ("cavity", "myocardium"), tuple(STRUCTURES)])
def test_structures_that_the_network_does_not_know_are_not_said_to_be_absent(
    structures: tuple[str, ...],
) -> None:
    labels = tiny.heart(76, 40)
    for name, number in STRUCTURES.items():
        if name not in structures:
            labels[labels == number] = 0
    [sample] = read(STILL, "A4C-ED")
    [frame] = outlined([sample], [labels])
    found = described(frame, "rle", structures, contours=True)
    assert set(found["area_cm2"]) == set(structures)
    assert set(found["mask"]["runs"]) == set(structures)
    assert set(found["contours"]) == set(structures)
    pixel = np.prod(tiny.SPACING) / 100
    assert found["area_cm2"]["cavity"] == pytest.approx((labels == CAVITY).sum() * pixel)


def test_a_said_pixel_size_counts_where_the_file_states_none() -> None:
    [bare] = read(tiny.nifti(beating(1)[0], (0.0, 0.0)), "A4C-ED")
    with pytest.raises(UnreadableImage, match="does not state the size of a pixel"):
        spacing_of([bare])
    assert spacing_of([with_spacing(bare, (0.4, 0.3))]) == [(0.4, 0.3)]
