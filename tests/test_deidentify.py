"""Cines without names: nothing of the patient leaves, and the key stays with its owner."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage, generate_uid

from cardioray.data.clip import CLIP, ClipDecoder, ClipPreprocess
from cardioray.data.deidentify import KEPT_TAGS, deidentify
from cardioray.data.frames import UnreadableImage
from cardioray.data.ultrasound import tissue_region
from cardioray.data.video import read_video

NAME, PATIENT = "Doe^Jane", "P-1234567"


def cine(frames: int = 20) -> NDArray[np.uint8]:
    """A fan of changing speckle under a name, in letters that stand still."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:240, :320]
    depth, angle = np.hypot(x - 160, y - 30), np.arctan2(x - 160, y - 30)
    fan = (depth < 190) & (depth > 4) & (np.abs(angle) < 0.7)
    clip = rng.integers(20, 200, (frames, 240, 320)).astype(np.uint8) * fan
    clip[:, 4:16, 10:120] = 255
    return clip


def write_dicom(
    path: Path,
    pixels: NDArray[np.uint8],
    *,
    patient: str = PATIENT,
    study: str | None = None,
    modality: str = "US",
) -> Path:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = UltrasoundMultiFrameImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.SOPClassUID = UltrasoundMultiFrameImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.PatientID, dataset.PatientSex = NAME, patient, "F"
    dataset.PatientBirthDate, dataset.InstitutionName = "19500101", "Hospital of Springfield"
    dataset.StudyInstanceUID = study or generate_uid()
    dataset.Modality, dataset.Manufacturer, dataset.HeartRate = modality, "Maker", "72"
    dataset.FrameTime = "25.0"
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = pixels.tobytes()
    region = Dataset()
    region.RegionSpatialFormat, region.RegionDataType = 1, 1
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 20, 20
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 300, 230
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX = region.PhysicalDeltaY = 0.08
    dataset.SequenceOfUltrasoundRegions = [region]
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_a_cine_states_its_rate_scale_and_region(tmp_path: Path) -> None:
    data = write_dicom(tmp_path / "a.dcm", cine()).read_bytes()
    (sample,) = ClipDecoder(preprocess=ClipPreprocess()).decode(data, None)
    assert sample.facts["fps"] == 40
    assert sample.facts["sector_found"] == 1
    side = sample.facts["cm_per_px"] * 112
    assert 190 * 0.08 < side < 260 * 0.08
    assert sample.arrays[CLIP].shape == (20, 112, 112, 1)


@pytest.mark.parametrize(("right", "known"), [(300, True), (321, True), (595, False)])
def test_a_region_beyond_the_picture_is_of_another_size(
    tmp_path: Path, right: int, known: bool
) -> None:
    path = write_dicom(tmp_path / "a.dcm", cine())
    dataset = dcmread(path)
    dataset.SequenceOfUltrasoundRegions[0].RegionLocationMaxX1 = right
    region = tissue_region(dataset)
    assert region is not None
    assert (region.cm_per_px is not None) == known


def test_what_leaves_has_no_word_about_the_patient(tmp_path: Path) -> None:
    data, out, key = tmp_path / "Doe_Jane", tmp_path / "public", tmp_path / "private" / "key.csv"
    study = generate_uid()
    write_dicom(data / "Doe_1.dcm", cine(), study=study)
    write_dicom(data / "Doe_2.dcm", cine()[::-1], study=study)
    write_dicom(data / "Other.dcm", cine(), patient="P-2")
    (data / "notes.txt").write_text("Jane Doe")
    write_dicom(data / "xray.dcm", cine(), modality="XA")
    done = deidentify(str(data), str(out), str(key))

    assert len(done.manifest) == 3
    assert done.manifest["patient_id"].nunique() == 2
    assert done.manifest["study_id"].nunique() == 2
    assert [source for source, _ in done.refused] == ["notes.txt", "xray.dcm"]
    for file in out.rglob("*"):
        assert "Doe" not in file.name
        if file.is_file():
            content = file.read_bytes()
            for secret in (NAME, "Doe", PATIENT, study, "1950", "Springfield"):
                assert secret.encode() not in content
    manifest = pd.read_csv(out / "manifest.csv")
    assert set(manifest["manufacturer"]) == {"Maker"}
    assert len(KEPT_TAGS) == 4

    frames, fps = read_video((out / manifest["source"][0]).read_bytes())
    assert (frames.shape, fps) == ((20, 112, 112, 3), 40.0)
    held = pd.read_csv(key)
    assert set(held["patient_id"]) == {PATIENT, "P-2"}
    assert key.stat().st_mode & 0o777 == 0o600


def test_burned_in_letters_are_masked(tmp_path: Path) -> None:
    write_dicom(tmp_path / "in" / "a.dcm", cine())
    deidentify(str(tmp_path / "in"), str(tmp_path / "out"), str(tmp_path / "key.csv"))
    (video,) = (tmp_path / "out").rglob("*.avi")
    frames = read_video(video.read_bytes())[0].astype(int)
    outside = frames.max(axis=(0, 3)) < 16
    assert outside[0, :30].all()
    assert outside[:10, -10:].all()
    assert frames.max() > 100


def test_a_second_call_with_the_same_key_keeps_the_names(tmp_path: Path) -> None:
    write_dicom(tmp_path / "in" / "a.dcm", cine())
    key = str(tmp_path / "key.csv")
    first = deidentify(str(tmp_path / "in"), str(tmp_path / "one"), key).manifest
    write_dicom(tmp_path / "in" / "b.dcm", cine(), patient="P-9")
    second = deidentify(str(tmp_path / "in"), str(tmp_path / "two"), key).manifest
    assert first["patient_id"][0] in set(second["patient_id"])
    assert len(second) == 2


def test_a_key_that_others_could_read_becomes_its_owners_alone(tmp_path: Path) -> None:
    write_dicom(tmp_path / "in" / "a.dcm", cine())
    key = tmp_path / "key.csv"
    deidentify(str(tmp_path / "in"), str(tmp_path / "one"), str(key))
    held = key.read_text()
    key.chmod(0o644)
    deidentify(str(tmp_path / "in"), str(tmp_path / "two"), str(key))
    assert key.read_text() == held, "there is no new name"
    assert key.stat().st_mode & 0o777 == 0o600


def test_every_frame_of_a_long_cine_is_written(tmp_path: Path) -> None:
    write_dicom(tmp_path / "in" / "a.dcm", np.tile(cine(), (52, 1, 1)))
    done = deidentify(str(tmp_path / "in"), str(tmp_path / "out"), str(tmp_path / "key.csv"))
    assert list(done.manifest["frames"]) == [1040]
    frames, _ = read_video((tmp_path / "out" / done.manifest["source"][0]).read_bytes())
    assert len(frames) == 1040
    # The last of them are those of the file, not repeated ones.
    assert np.array_equal(frames[-20:], frames[:20])
    assert not np.array_equal(frames[-1], frames[-2])


def test_a_cine_of_more_frames_than_are_held_is_refused_and_not_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dicom(tmp_path / "in" / "a.dcm", cine(20))
    write_dicom(tmp_path / "in" / "b.dcm", cine(19))
    monkeypatch.setattr("cardioray.data.deidentify._MOST_BYTES", 19 * 112 * 112)
    done = deidentify(str(tmp_path / "in"), str(tmp_path / "out"), str(tmp_path / "key.csv"))
    assert list(done.manifest["frames"]) == [19]
    ((file, reason),) = done.refused
    assert file == "a.dcm"
    assert "states 20 frames; at most 19" in reason
    assert "--image-size" in reason


def test_a_cine_of_any_number_of_pixels_in_all_is_read_in_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_dicom(tmp_path / "a.dcm", cine(55)).read_bytes()
    preprocess = ClipPreprocess(sector="find")
    (expected,) = ClipDecoder(preprocess=preprocess).decode(data, None)
    # Ten frames at once: the sector is looked for in more than a run, and the last one is shorter.
    monkeypatch.setattr("cardioray.data.clip.MAX_PIXELS", 240 * 320)
    (read,) = ClipDecoder(preprocess=preprocess).decode(data, None)
    assert np.array_equal(read.arrays[CLIP], expected.arrays[CLIP])
    assert read.facts == pytest.approx(expected.facts, nan_ok=True)
    (part,) = ClipDecoder(preprocess=preprocess).decode(data, "7-33")
    assert len(part.arrays[CLIP]) == 27
    # The limit of a single frame stays.
    monkeypatch.setattr("cardioray.data.clip.MAX_PIXELS", 240 * 320 - 1)
    with pytest.raises(UnreadableImage, match="320 x 240 = 76,800 pixels"):
        ClipDecoder(preprocess=preprocess).decode(data, None)


def test_without_a_sector_nothing_is_written(tmp_path: Path) -> None:
    still = np.zeros((10, 240, 320), np.uint8)
    still[:, 10:20, 10:100] = 255
    write_dicom(tmp_path / "in" / "a.dcm", still)
    with pytest.raises(ValueError, match="No ultrasound sector"):
        deidentify(str(tmp_path / "in"), str(tmp_path / "out"), str(tmp_path / "key.csv"))
    assert not list(tmp_path.rglob("*.avi"))


def test_the_key_does_not_lie_with_what_it_protects(tmp_path: Path) -> None:
    write_dicom(tmp_path / "in" / "a.dcm", cine())
    with pytest.raises(ValueError, match="would lie below"):
        deidentify(str(tmp_path / "in"), str(tmp_path / "out"), str(tmp_path / "out" / "key.csv"))
    foreign = tmp_path / "table.csv"
    foreign.write_text("a,b\n1,2\n")
    foreign.chmod(0o644)
    with pytest.raises(ValueError, match="is no key file"):
        deidentify(str(tmp_path / "in"), str(tmp_path / "out"), str(foreign))
    assert foreign.read_text() == "a,b\n1,2\n"
    assert foreign.stat().st_mode & 0o777 == 0o644


@pytest.mark.samples
def test_real_cines_are_masked_to_their_sector(samples: Path, tmp_path: Path) -> None:
    done = deidentify(str(samples / "echo_dicom"), str(tmp_path / "out"), str(tmp_path / "key.csv"))
    assert len(done.manifest) >= 2
    for source in done.manifest["source"]:
        frames = read_video((tmp_path / "out" / source).read_bytes())[0]
        assert frames.shape[1:] == (112, 112, 3)
        corners = frames[:, [0, 0, -1, -1], [0, -1, 0, -1]]
        assert corners.max() < 16
