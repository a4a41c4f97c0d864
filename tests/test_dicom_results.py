"""DICOM segmentations and reports: what is written is read back, and refers to its sources."""

from __future__ import annotations

import io
import sys
import warnings
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import tiny_segments as tiny
from highdicom import sr
from pydicom.sr.codedict import codes
from tiny_dicom import echo_dicom

from cardioray.clinical.simpson import measure_cavity
from cardioray.clinical.volumes import volumes_of
from cardioray.data.frames import UnreadableImage
from cardioray.data.label_maps import CAVITY, MYOCARDIUM
from cardioray.dicom_results.objects import (
    DicomResult,
    DicomResultsUnavailable,
    Model,
    dicom_kinds,
    read_sources,
    require_highdicom,
)
from cardioray.dicom_results.report import report
from cardioray.dicom_results.segmentation import segmentations
from cardioray.outlines import Segmented, StudyOutlines, study_outlines

MODEL = Model("unet", "3721ea528f3d", ("cavity", "myocardium", "atrium"))
NOT_CLINICAL = "NOT FOR CLINICAL USE"
FPS = 20.0
FIRST = 3  # frame of the file that is the first one outlined


def segmented(labels: np.ndarray, view: str, phase: str, frame: int) -> Segmented:
    cavity = measure_cavity(labels == CAVITY, tiny.SPACING, labels == MYOCARDIUM)
    return Segmented(view, phase, frame, labels, cavity, tiny.SPACING, FPS)


def cine(frames: int = 36) -> tuple[dict[str, bytes], list[Segmented]]:
    """A four-chamber cine of 16 frames a beat, outlined from its fourth frame on."""
    widths = 37 + 7 * np.cos(2 * np.pi * (np.arange(frames) - FIRST) / 16)
    maps = [tiny.heart(76, width) for width in widths]
    pictures = np.stack([tiny.echo(m, np.random.default_rng(0)) for m in maps])
    outlined = [segmented(m, "A4C", "", i) for i, m in enumerate(maps) if i >= FIRST]
    return {"A4C": echo_dicom(pictures, fps=FPS)}, outlined


def stills() -> tuple[dict[str, bytes], list[Segmented]]:
    """Both phases of both views, each a file of its own."""
    files, outlined = {}, []
    for view, share in (("A4C", 1.0), ("A2C", 0.9)):
        for phase, (length, width) in (("ED", (80, 44)), ("ES", (70, 33))):
            labels = tiny.heart(length, width * share)
            files[f"{view}-{phase}"] = echo_dicom(tiny.echo(labels, np.random.default_rng(1)))
            outlined.append(segmented(labels, view, phase, 0))
    return files, outlined


def answer_to(study: StudyOutlines, method: str = "discs") -> dict[str, Any]:
    """The parts of an answer that a report holds."""
    volumes = volumes_of(study.cavities, method)
    assert volumes is not None
    return {
        "ef": {"value": 51.234567891234, "low": 44.1, "high": None, "unit": "%"},
        "volumes": {
            "edv_ml": volumes.edv_ml,
            "esv_ml": volumes.esv_ml,
            "ef_percent": volumes.ef_percent,
            "method": method,
            "views": list(volumes.views),
        },
        "warnings": ["Trained on phantoms: figures say nothing about patients."],
    }


def reported(
    files: dict[str, bytes], outlined: list[Segmented], method: str = "discs"
) -> tuple[StudyOutlines, dict[str, Any], DicomResult]:
    study = study_outlines(outlined, method)
    answer = answer_to(study, method)
    return study, answer, report(study, answer, read_sources(files), MODEL)


def read(result: DicomResult) -> pydicom.FileDataset:
    return pydicom.dcmread(io.BytesIO(result.content))


def groups_of(result: DicomResult) -> list[Any]:
    document = sr.srread(io.BytesIO(result.content))
    assert isinstance(document, sr.ComprehensiveSR)
    return document.content.get_image_measurement_groups()


def numbers_of(group: Any) -> dict[tuple[str, str], float]:
    """Per code and tracking identifier, the number as it is read back."""
    found = {}
    for measurement in group.get_measurements():
        [item] = [
            i for i in measurement[0].ContentSequence if i.name == codes.DCM.TrackingIdentifier
        ]
        found[measurement.name.value, item.value] = measurement.value
    return found


class TestSegmentation:
    @pytest.mark.parametrize("kind", [cine, stills])
    def test_masks_read_back_equal_the_label_maps(self, kind: Any) -> None:
        files, outlined = kind()
        found = segmentations(outlined, read_sources(files), MODEL)
        assert [result.said for result in found] == list(files)
        for result in found:
            own = [frame for frame in outlined if frame.said == result.said]
            expected = np.stack([frame.labels for frame in own])
            source = pydicom.dcmread(io.BytesIO(files[result.said]))
            read_back = highdicom.seg.segread(io.BytesIO(result.content))
            if "NumberOfFrames" in source:
                maps = read_back.get_pixels_by_source_frame(
                    source.SOPInstanceUID, [f.frame + 1 for f in own], combine_segments=True
                )
            else:
                maps = read_back.get_pixels_by_source_instance(
                    [source.SOPInstanceUID], combine_segments=True
                )
            np.testing.assert_array_equal(maps, expected)
            planes = read(result).pixel_array.reshape(3, len(own), *expected.shape[1:])
            for number, plane in enumerate(planes, 1):
                np.testing.assert_array_equal(plane, expected == number)

    def test_it_is_filed_with_its_source_and_says_what_it_is(self) -> None:
        files, outlined = cine()
        [result] = segmentations(outlined, read_sources(files), MODEL)
        dataset, source = read(result), pydicom.dcmread(io.BytesIO(files["A4C"]))
        for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID"):
            assert dataset[name].value == source[name].value
        for name in ("StudyInstanceUID", "StudyDate", "AccessionNumber"):
            assert dataset[name].value == source[name].value
        assert dataset.SOPClassUID.name == "Segmentation Storage"
        assert dataset.SOPInstanceUID == result.sop_instance_uid
        assert dataset.SeriesInstanceUID != source.SeriesInstanceUID
        assert NOT_CLINICAL in dataset.SeriesDescription
        assert NOT_CLINICAL in dataset.ContentDescription
        assert dataset.ContentLabel == "NOT_FOR_CLINICAL"
        assert [s.SegmentLabel for s in dataset.SegmentSequence] == [
            "Left-ventricular cavity",
            "Left-ventricular myocardium",
            "Left atrium",
        ]
        assert {s.SegmentAlgorithmType for s in dataset.SegmentSequence} == {"AUTOMATIC"}
        [series] = dataset.ReferencedSeriesSequence
        assert series.SeriesInstanceUID == source.SeriesInstanceUID
        [instance] = series.ReferencedInstanceSequence
        assert instance.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert result.file_name == "A4C.seg.dcm"

    def test_a_network_of_fewer_structures_has_fewer_segments(self) -> None:
        files, outlined = stills()
        model = Model("unet", "0", ("cavity", "atrium"))
        result = segmentations(outlined, read_sources(files), model)[0]
        planes = read(result).pixel_array
        for plane, number in zip(planes, (1, 3), strict=True):
            np.testing.assert_array_equal(plane, outlined[0].labels == number)

    def test_every_object_has_an_identifier_of_its_own(self) -> None:
        files, outlined = stills()
        found = segmentations(outlined, read_sources(files), MODEL)
        assert len({result.sop_instance_uid for result in found}) == 4
        assert len({read(result).SeriesInstanceUID for result in found}) == 1
        assert [read(result).InstanceNumber for result in found] == [1, 2, 3, 4]


class TestReport:
    @pytest.mark.parametrize(
        ("kind", "method", "expected", "method_code"),
        [
            (stills, "discs", ("79996-5", "80001-1", "79991-6"), "125207"),
            (cine, "discs", ("79999-9", "80004-5", "79993-2"), "125208"),
            (stills, "area_length", ("18026-5", "18148-7", "18043-0"), "125204"),
            (cine, "area_length", ("18026-5", "18148-7", "18043-0"), "125205"),
        ],
    )
    def test_its_numbers_are_those_of_the_answer(
        self, kind: Any, method: str, expected: tuple[str, ...], method_code: str
    ) -> None:
        _, answer, result = reported(*kind(), method)
        group = groups_of(result)[0]
        volumes = answer["volumes"]
        measured = dict(zip(expected, ("edv_ml", "esv_ml", "ef_percent"), strict=True))
        titles = ("End-diastolic volume", "End-systolic volume", "Ejection fraction")
        found = numbers_of(group)
        for (code, key), title in zip(measured.items(), titles, strict=True):
            assert found.pop((code, f"{title}, as measured")) == volumes[key]
        assert found == {("18043-0", "Ejection fraction, calibrated"): answer["ef"]["value"]}
        units = {m.name.value: m.unit.value for m in group.get_measurements()}
        assert [units[code] for code in expected] == ["ml", "ml", "%"]
        methods = {
            item.value.value
            for measurement in group.get_measurements()
            for item in measurement[0].ContentSequence
            if item.name == codes.SCT.MeasurementMethod
        }
        assert methods == {method_code}

    def test_an_interval_is_told_as_distances_from_the_value(self) -> None:
        _, answer, result = reported(*stills())
        group = groups_of(result)[0]
        calibrated = group.get_measurements()[-1][0]
        below = [
            item.value
            for item in calibrated.ContentSequence
            if item.name == codes.SCT.RangeOfLowerMeasurementUncertainty
        ]
        ef = answer["ef"]
        assert below == [pytest.approx(ef["value"] - ef["low"])]
        assert all(
            item.name != codes.SCT.RangeOfUpperMeasurementUncertainty
            for item in calibrated.ContentSequence
        )

    def test_beats_refer_to_their_frames(self) -> None:
        files, outlined = cine()
        study, _, result = reported(files, outlined)
        source = pydicom.dcmread(io.BytesIO(files["A4C"]))
        whole, *beats = groups_of(result)
        assert len(beats) == len(study.beats) >= 2
        used = set()
        for group, beat in zip(beats, study.beats, strict=True):
            [measurement] = group.get_measurements()
            assert measurement.value == beat.ef_percent
            [image] = group.source_images
            frames = [outlined[place].frame + 1 for place in (beat.ed, beat.es)]
            assert image.referenced_frame_numbers == frames
            assert image.referenced_sop_instance_uid == source.SOPInstanceUID
            used |= set(frames)
        [image] = whole.source_images
        assert image.referenced_frame_numbers == sorted(used)
        # In the file, end diastole is every sixteenth frame from the fourth on.
        assert {(f - 1 - FIRST) % 8 for f in used} <= {7, 0, 1}

    def test_it_refers_to_all_its_sources_and_says_what_it_is(self) -> None:
        files, outlined = stills()
        _, answer, result = reported(files, outlined)
        dataset = read(result)
        sources = [pydicom.dcmread(io.BytesIO(data)) for data in files.values()]
        evidence = sr.srread(io.BytesIO(result.content)).get_evidence()
        assert {item[2] for item in evidence} == {s.SOPInstanceUID for s in sources}
        [group] = groups_of(result)
        shown = {image.referenced_sop_instance_uid for image in group.source_images}
        assert shown == {s.SOPInstanceUID for s in sources}
        assert NOT_CLINICAL in dataset.SeriesDescription
        assert (dataset.CompletionFlag, dataset.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
        assert dataset.PreliminaryFlag == "PRELIMINARY"
        assert dataset.PatientName == sources[0].PatientName
        remarks = [i.value for i in group[0].ContentSequence if i.name == codes.DCM.Comment]
        assert remarks[0].startswith(NOT_CLINICAL)
        assert remarks[1:] == answer["warnings"]
        assert result.file_name == "report.sr.dcm"


class TestSources:
    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (None, "sent as A4C is no DICOM file"),
            (tiny.nifti(np.zeros((4, 4), np.uint8)), "sent as A4C is no DICOM file"),
            (echo_dicom(tiny.heart(80, 44), StudyInstanceUID=None), "has no StudyInstanceUID"),
            (echo_dicom(tiny.heart(80, 44), SeriesInstanceUID=""), "has no SeriesInstanceUID"),
        ],
        ids=["array", "NIfTI", "no study", "empty series"],
    )
    def test_what_nothing_can_refer_to_is_refused(self, data: Any, reason: str) -> None:
        with pytest.raises(UnreadableImage, match=reason):
            read_sources({"A4C": data})

    def test_files_of_two_studies_are_refused(self) -> None:
        files = {
            "A4C-ED": echo_dicom(tiny.heart(80, 44)),
            "A4C-ES": echo_dicom(tiny.heart(70, 33), StudyInstanceUID="1.2.3"),
        }
        with pytest.raises(UnreadableImage, match="of several DICOM studies"):
            read_sources(files)

    @pytest.mark.parametrize(
        "tags",
        [
            {"PatientName": "Muster", "PatientSex": "unknown"},
            {"PatientName": None, "PatientID": None, "PatientBirthDate": None, "PatientSex": None},
            {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Änne"},
            {"StudyDate": "", "StudyTime": None, "AccessionNumber": None, "StudyID": None},
        ],
        ids=["unusual", "nobody", "umlauts", "no date"],
    )
    def test_patients_are_copied_as_the_source_states_them(
        self, tags: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        labels = tiny.heart(80, 44)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's, about a sex that is none
            files = {"A4C-ED": echo_dicom(labels, **tags)}
            files["A4C-ES"] = echo_dicom(tiny.heart(70, 33), **tags)
        outlined = [
            segmented(labels, "A4C", "ED", 0),
            segmented(tiny.heart(70, 33), "A4C", "ES", 0),
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", "The string")  # highdicom's, which quotes the name
            results = [
                *segmentations(outlined, read_sources(files), MODEL),
                reported(files, outlined)[2],
            ]
        assert "Muster" not in caplog.text
        source = pydicom.dcmread(io.BytesIO(files["A4C-ED"]))
        for result in results:
            dataset = read(result)
            for name in ("PatientName", "PatientID", "PatientSex", "StudyDate", "AccessionNumber"):
                assert (dataset.get(name) or "") == (source.get(name) or "")

    def test_without_the_library_it_says_how_to_install_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        require_highdicom()
        monkeypatch.setitem(sys.modules, "highdicom", None)
        with pytest.raises(DicomResultsUnavailable, match=r"cardioray\[dicom-results\]"):
            require_highdicom()

    def test_kinds_are_known_by_their_names(self) -> None:
        assert dicom_kinds(["sr", "seg", "sr"]) == ("seg", "sr")
        assert dicom_kinds([]) == ()
        with pytest.raises(ValueError, match="Unknown kind of DICOM result 'sg'.*seg, sr"):
            dicom_kinds(["sg"])

    @pytest.mark.samples
    @pytest.mark.parametrize(
        "name",
        [
            "color3d_jpeg_baseline.dcm",
            "examples_ybr_color.dcm",
            "JPGLosslessP14SV1_1s_1f_8b.dcm",
            "color-px.dcm",
        ],
    )
    def test_real_files_are_referred_to(self, samples: Path, name: str) -> None:
        data = (samples / "echo_dicom" / name).read_bytes()
        source = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
        count = int(source.get("NumberOfFrames") or 1)
        rng = np.random.default_rng(0)
        maps = rng.integers(0, 4, (count, source.Rows, source.Columns)).astype(np.uint8)
        phase = "" if count > 1 else "ED"
        outlined = [
            Segmented("A4C", phase, i, labels, None, (0.5, 0.5), FPS)
            for i, labels in enumerate(maps)
        ]
        [said] = {frame.said for frame in outlined}
        [result] = segmentations(outlined, read_sources({said: data}), MODEL)
        planes = read(result).pixel_array.reshape(3, count, *maps.shape[1:])
        np.testing.assert_array_equal(planes[1], maps == 2)
        read_back = highdicom.seg.segread(io.BytesIO(result.content))
        uid = source.SOPInstanceUID
        if count > 1:
            got = read_back.get_pixels_by_source_frame(uid, [count], combine_segments=True)
        else:
            got = read_back.get_pixels_by_source_instance([uid], combine_segments=True)
        np.testing.assert_array_equal(got[0], maps[-1])
