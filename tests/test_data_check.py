"""The check of a data set."""

from __future__ import annotations

import io
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import tiny_segments
from PIL import Image
from pydicom.data import get_testdata_file
from rich.console import Console

from cardioray import storage
from cardioray.data.check import DataReport, check_manifest, print_report
from cardioray.data.decoding import ImageDecoder
from cardioray.data.image import ImagePreprocess
from cardioray.data.manifest import Manifest, read_manifest
from cardioray.data.splits import SplitConfig
from cardioray.targets import BinaryTarget, RegressionTarget
from cardioray.tasks import make_task

FFR = BinaryTarget(name="ffr", positive="low", negative="high", value_column="ffr", cutoff=0.8)


def save(path: Path, seed: int, side: int = 24) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """24 patients of two frames each, half of each class."""
    rows = []
    for patient in range(24):
        for frame in range(2):
            name = f"P{patient:02d}_{frame}.png"
            save(tmp_path / name, seed=10 * patient + frame)
            rows.append(
                (f"P{patient:02d}_{frame}", f"P{patient:02d}", name, 0.6 + patient % 2 * 0.3)
            )
    table = pd.DataFrame(rows, columns=["sample_id", "patient_id", "source", "ffr"])
    table.to_csv(tmp_path / "manifest.csv", index=False)
    return tmp_path


def edited(folder: Path, **cells: dict[int, object]) -> Manifest:
    """The manifest with some cells changed, by column and row."""
    table = pd.read_csv(folder / "manifest.csv", dtype={"patient_id": str})
    for column, changes in cells.items():
        if column not in table:
            table[column] = ""
        for row, value in changes.items():
            table.loc[row, column] = value
    table.to_csv(folder / "manifest.csv", index=False)
    return read_manifest(str(folder), [FFR])


def text_of(report: DataReport, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_report(report, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_clean_data_set(folder: Path) -> None:
    report = check_manifest(read_manifest(str(folder), [FFR]), FFR)
    assert report.errors == ()
    assert (report.rows, report.patients, report.frames) == (48, 24, 48)
    assert report.sizes == {"24 x 24": 48}
    assert report.pixel_types == {"PNG uint8 grey": 48}
    assert report.calibration == "cross-fitted"
    assert [c.split for c in report.counts] == ["train"] * 2 + ["validation"] * 2 + ["test"] * 2
    assert sum(count.patients for count in report.counts) == 24
    assert sum(count.rows for count in report.counts) == 48
    assert "no errors" in text_of(report)


def test_unreadable_and_missing_files_are_errors_with_reasons(folder: Path) -> None:
    (folder / "P03_0.png").unlink()
    (folder / "P04_0.png").write_bytes(b"")
    (folder / "P05_0.png").write_text("text " * 50)
    whole = (folder / "P06_0.png").read_bytes()
    (folder / "P06_0.png").write_bytes(whole[: len(whole) // 2])
    report = check_manifest(read_manifest(str(folder), [FFR]), FFR)
    assert report.errors == ("4 of 48 files cannot be read.",)
    reasons = {Path(source).name: reason for source, reason in report.unreadable}
    assert reasons["P03_0.png"] == "does not exist"
    assert "empty" in reasons["P04_0.png"]
    assert "text, whatever its name says" in reasons["P05_0.png"]
    assert "truncated" in reasons["P06_0.png"]
    assert report.frames == 44
    assert "P05_0.png" in text_of(report, width=200)


def split_of(report_manifest: Manifest, name: str) -> list[int]:
    return report_manifest.table.index[report_manifest.table["split"] == name].tolist()


def with_splits(folder: Path) -> Manifest:
    """Patients 0 to 15 train, 16 to 19 validation, 20 to 23 test."""
    names = ["train"] * 32 + ["validation"] * 8 + ["test"] * 8
    return edited(folder, split=dict(enumerate(names)))


def test_equal_frames_in_two_splits_are_a_leak_even_in_another_format(folder: Path) -> None:
    manifest = with_splits(folder)
    Image.open(folder / "P00_0.png").convert("RGB").save(folder / "copy.bmp")
    manifest = edited(folder, source={46: "copy.bmp"})
    report = check_manifest(manifest, FFR)
    assert report.duplicates == (("P00_0", "P23_0"),)
    assert report.errors == ("1 group(s) of equal frames lie in several splits: P00_0 = P23_0.",)


def test_equal_frames_within_a_split(folder: Path) -> None:
    with_splits(folder)
    for copy, original in (("P02_0", "P00_0"), ("P03_0", "P04_0"), ("P05_1", "P05_0")):
        (folder / f"{copy}.png").write_bytes((folder / f"{original}.png").read_bytes())
    report = check_manifest(read_manifest(str(folder), [FFR]), FFR)
    assert report.errors == (
        "1 group(s) of equal frames have contradictory labels: P03_0 = P04_0.",
    )
    assert "1 group(s) of equal frames belong to several patients of one split: P00_0 = P02_0." in (
        report.warnings
    )
    assert "1 group(s) of equal frames within one patient: P05_0 = P05_1." in report.warnings


def test_a_patient_in_two_splits_and_a_file_of_two_patients(folder: Path) -> None:
    with_splits(folder)
    report = check_manifest(edited(folder, split={1: "test"}), FFR)
    assert "Patient 'P00' is in several splits: test, train." in report.errors
    report = check_manifest(edited(folder, split={1: "train"}, source={2: "P00_0.png"}), FFR)
    assert "1 file(s) stand under two patients: P00_0.png." in report.errors


def test_a_class_missing_in_a_split(folder: Path) -> None:
    with_splits(folder)
    manifest = edited(folder, ffr=dict.fromkeys(range(40, 48), 0.9))
    report = check_manifest(manifest, FFR)
    assert report.errors == ("The test split has no patient with low.",)


def test_two_labels_of_a_patient_need_studies(folder: Path) -> None:
    (error,) = check_manifest(edited(folder, ffr={5: 0.95}), FFR).errors
    assert error.startswith("1 patient(s) have rows with different labels of 'ffr': P02. ")
    assert "Add study_id" in error

    names = {row: f"P{row // 2:02d}-LAD" for row in range(48)}
    (error,) = check_manifest(edited(folder, study_id=names), FFR).errors
    assert "1 study_id(s) have rows with different labels of 'ffr': P02-LAD." in error
    two_vessels = edited(folder, study_id={5: "P02-RCA"})
    assert check_manifest(two_vessels, FFR).errors == ()

    (error,) = check_manifest(edited(folder, study_id={4: "P03-LAD"}), FFR).errors
    assert "1 study_id(s) stand under two patients: P03-LAD." in error
    (error,) = check_manifest(edited(folder, study_id={4: ""}), FFR).errors
    assert error == "1 row(s) have no study_id, while other rows have one."


def test_numbers_differ_within_a_patient_too(folder: Path) -> None:
    manifest = edited(folder, ffr={5: 0.61})
    assert check_manifest(manifest, FFR).errors == ()
    value = RegressionTarget(name="ffr_value", value_column="ffr")
    (error,) = check_manifest(manifest, FFR, value).errors
    assert "different labels of 'ffr_value': P02" in error


def test_an_empty_study_column_is_none(folder: Path) -> None:
    assert "study_id" not in edited(folder, study_id={0: ""}).table


def test_every_target_is_checked(folder: Path) -> None:
    with_splits(folder)
    other = RegressionTarget(name="age", value_column="age_years")
    (error,) = check_manifest(read_manifest(str(folder), [FFR]), FFR, other).errors
    assert error == "target 'age' needs a column 'age_years'."
    manifest = edited(folder, age_years={row: str(50 + row // 2) for row in range(40)})
    report = check_manifest(manifest, FFR, other)
    assert report.errors == ("The test split has no value of 'age'.",)
    ages = [count for count in report.counts if count.class_name == "age"]
    assert {count.split: count.rows for count in ages} == {"train": 32, "validation": 8}


def test_blank_frames_are_warnings(folder: Path) -> None:
    Image.new("L", (24, 24)).save(folder / "P00_0.png")
    Image.new("L", (24, 24)).save(folder / "P23_0.png")
    report = check_manifest(edited(folder), FFR)
    assert report.errors == ()
    assert "2 row(s) with a blank frame: P00_0, P23_0." in report.warnings
    assert report.duplicates == (), "blank frames are equal without being copies"


def test_cines_count_by_frame(folder: Path) -> None:
    cine = Path(get_testdata_file("examples_ybr_color.dcm", download=False)).read_bytes()
    (folder / "cine.dcm").write_bytes(cine)
    manifest = edited(folder, source={0: "cine.dcm"}, frame={0: "5-8"})
    report = check_manifest(manifest, FFR)
    assert report.sizes == {"24 x 24": 47, "320 x 240": 4}
    assert report.pixel_types["DICOM US 8-bit YBR_FULL_422"] == 1
    table = manifest.table.assign(frame="")
    everything = Manifest(table=table, base=manifest.base, patients_known=True)
    assert check_manifest(everything, FFR).sizes["320 x 240"] == 30
    one = ImageDecoder(preprocess=ImagePreprocess(), frames="7")
    assert check_manifest(everything, FFR, decoder=one).sizes["320 x 240"] == 1


def test_numbers_as_targets(folder: Path) -> None:
    target = RegressionTarget(name="ffr_value", value_column="ffr")
    report = check_manifest(read_manifest(str(folder), [target]), target)
    assert report.errors == ()
    assert {count.class_name for count in report.counts} == {"ffr_value"}


def test_frames_with_label_maps_are_counted_by_view(tmp_path: Path) -> None:
    root = tiny_segments.write_camus(tmp_path, 4)
    wide = root / "patient0002" / "patient0002_2CH_ED.nii.gz"
    pixels = np.asarray(nibabel.load(wide).dataobj).T
    wide.write_bytes(tiny_segments.nifti(pixels, (0.5, 0.25)))
    (root / "patient0003" / "patient0003_4CH_ES_gt.nii.gz").write_bytes(b"nothing")
    task = make_task("lv-seg")
    manifest = task.read_manifest(str(root), None)
    report = check_manifest(
        manifest,
        *task.targets,
        splits=task.split,
        decoder=task.decoder,
        needs_labels=task.learns_from_labels,
    )
    # Volumes that no text file states are no error.
    assert all("cannot be read" in error for error in report.errors)
    assert report.groups == {
        "view": {"A2C": 8, "A4C": 8},
        "phase": {"ED": 8, "ES": 8},
        "image_quality": {"Good": 8, "Poor": 8},
    }
    assert report.label_maps == 15
    assert report.pixel_types == {
        "A2C, NIFTI, 1.30 x 1.60 mm a pixel": 7,
        "A4C, NIFTI, 1.30 x 1.60 mm a pixel": 7,
        "A2C, NIFTI, 0.25 x 0.50 mm a pixel": 1,
    }
    assert report.sizes == {"A2C, 72 x 80": 8, "A4C, 72 x 80": 7}
    text = text_of(report)
    assert "16 rows, 4 patients, 15 frames read, 15 of them with label maps" in text
    assert "rows by view: A2C 8, A4C 8" in text
    assert "its label map" in text


def test_held_out_calibration(folder: Path) -> None:
    config = SplitConfig(
        train=0.4, validation=0.2, calibration=0.2, test=0.2, min_calibration_patients=2
    )
    report = check_manifest(read_manifest(str(folder), [FFR]), FFR, splits=config)
    assert report.calibration == "held-out"
    assert {count.split for count in report.counts} >= {"calibration"}


def test_progress_and_long_lists(folder: Path) -> None:
    for patient in range(24):
        (folder / f"P{patient:02d}_0.png").unlink()
    seen: list[tuple[int, int]] = []
    manifest = read_manifest(str(folder), [FFR])
    report = check_manifest(manifest, FFR, on_progress=lambda *done: seen.append(done))
    assert seen[-1] == (48, 48)
    text = text_of(report)
    # What to mend is listed to its end.
    assert all(f"P{patient:02d}_0.png" in text for patient in range(24))
    assert max(len(line) for line in text.splitlines()) <= 80


def test_a_bucket_is_checked_like_a_folder(s3: str, folder: Path) -> None:
    storage.copy_folder(str(folder), f"{s3}/set")
    local = check_manifest(read_manifest(str(folder), [FFR]), FFR)
    remote = check_manifest(read_manifest(f"{s3}/set", [FFR]), FFR)
    assert remote == local
