"""CAMUS as released, in both formats: rows, text files, gaps and the official division."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from cardioray.data.camus import is_camus, read_camus
from cardioray.data.segment import REFERENCE, SegmentDecoder, SegmentPreprocess


def write(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        image = nibabel.Nifti1Image(np.zeros((4, 5), np.uint8), np.eye(4))
        (folder / name).write_bytes(image.to_bytes())


def patient(
    root: Path, number: int, info: str = "ED: 1\nES: 9\nEF: 45\n", views: str = "24"
) -> str:
    name = f"patient{number:04d}"
    for view in views:
        files = [
            f"{name}_{view}CH_{phase}{gt}.nii.gz" for phase in ("ED", "ES") for gt in ("", "_gt")
        ]
        write(root / name, *files)
        (root / name / f"Info_{view}CH.cfg").write_text(info)
    return name


def test_a_row_for_each_view_and_phase(tmp_path: Path) -> None:
    info = (
        "ED: 1\nES: 19\nNbFrame: 19\nSex: F\nAge: 56\nImageQuality: Good\nEF: 45\nFrameRate: 55.4\n"
    )
    for number in (1, 2):
        patient(tmp_path, number, info)
    manifest = read_camus(str(tmp_path))
    table = manifest.table
    assert manifest.patients_known
    assert manifest.warnings == ()
    assert "split" not in table
    assert table["sample_id"].tolist()[:4] == [
        f"patient0001_{view}_{phase}" for view in ("A2C", "A4C") for phase in ("ED", "ES")
    ]
    row = table.iloc[3]
    assert row["source"] == "patient0001/patient0001_4CH_ES.nii.gz"
    assert row["mask"] == "patient0001/patient0001_4CH_ES_gt.nii.gz"
    assert (row["ef"], row["es_frame"], row["fps"], row["age"]) == (45, 19, 55.4, 56)
    assert (row["image_quality"], row["sex"]) == ("Good", "F")
    assert Path(manifest.paths[3]).is_file()


def test_the_older_release(tmp_path: Path) -> None:
    folder = tmp_path / "training" / "patient0007"
    folder.mkdir(parents=True)
    for phase in ("ED", "ES"):
        for gt in ("", "_gt"):
            for suffix in ("mhd", "raw"):
                (folder / f"patient0007_4CH_{phase}{gt}.{suffix}").touch()
    (folder / "patient0007_4CH_sequence.mhd").touch()
    text = "ED: 1\nES: 18\nLVedv: 100.5\nLVesv: 40.2\nLVef: 60\nImageQuality: Poor\n"
    (folder / "Info_4CH.cfg").write_text(text)
    table = read_camus(str(tmp_path)).table
    assert table["source"].tolist() == [
        f"training/patient0007/patient0007_4CH_{phase}.mhd" for phase in ("ED", "ES")
    ]
    assert table["ef"].tolist() == [60, 60]
    assert table["edv_ml"].tolist() == [100.5, 100.5]
    assert table["esv_ml"].tolist() == [40.2, 40.2]


def test_phases_without_a_file_are_found_in_the_cine(tmp_path: Path) -> None:
    write(
        tmp_path / "patient0003",
        "patient0003_4CH_half_sequence.nii.gz",
        "patient0003_4CH_half_sequence_gt.nii.gz",
        "patient0003_2CH_half_sequence.nii.gz",
    )
    (tmp_path / "patient0003" / "Info_4CH.cfg").write_text("ED: 12\nES: 1\nEF: 51\n")
    manifest = read_camus(str(tmp_path))
    assert manifest.table["view"].tolist() == ["A4C", "A4C"]
    assert manifest.table["frame"].tolist() == ["11", "0"]
    assert any("not both phases of both views" in text for text in manifest.warnings)


def cine(frames: int = 12) -> np.ndarray:
    """A cine whose frames are all different, (T, H, W)."""
    return np.random.default_rng(0).integers(0, 200, (frames, 40, 36)).astype(np.uint8)


def outlines(frames: int = 12) -> np.ndarray:
    """A label map for each of them, the cavity one row deeper in every frame."""
    maps = np.zeros((frames, 40, 36), np.uint8)
    for number in range(frames):
        maps[number, 5 : 12 + number, 8:20] = 1
    return maps


@pytest.mark.parametrize(
    "missing",
    [(), ("ED", "ES"), ("ED_gt", "ES_gt"), ("ED", "ES_gt"), ("ED", "ES", "half_sequence_gt")],
)
@pytest.mark.parametrize("axes", [2, 3])
def test_pictures_and_label_maps_are_found_wherever_they_are(
    tmp_path: Path, missing: tuple[str, ...], axes: int
) -> None:
    frames, maps = cine(), outlines()
    folder = tmp_path / "patient0004"
    folder.mkdir()
    numbers = {"ED": 1, "ES": 9}  # counted from 1
    for name, pixels in (("", frames), ("_gt", maps)):
        files = {f"{phase}{name}": pixels[n - 1] for phase, n in numbers.items()}
        if axes == 3:
            files = {key: one[None] for key, one in files.items()}
        for what, array in {**files, f"half_sequence{name}": pixels}.items():
            if what not in missing:
                image = nibabel.Nifti1Image(array.T, np.eye(4))
                (folder / f"patient0004_4CH_{what}.nii.gz").write_bytes(image.to_bytes())
    (folder / "Info_4CH.cfg").write_text("ED: 1\nES: 9\nEF: 51\n")
    manifest = read_camus(str(tmp_path))
    decoder = SegmentDecoder(preprocess=SegmentPreprocess(image_size=32))
    assert manifest.table["phase"].tolist() == ["ED", "ES"]
    for place, number in enumerate(numbers.values()):
        picture, mask = (Path(each[place]) for each in (manifest.paths, manifest.masks))
        [sample] = decoder.decode_labelled(
            picture.read_bytes(), mask.read_bytes(), manifest.table["frame"].iloc[place] or None
        )
        assert np.array_equal(sample.picture, frames[number - 1])
        assert np.array_equal(sample.arrays[REFERENCE], maps[number - 1])
        assert sample.facts["is_cine"] == 0 or sample.facts["chosen"] == 1


def test_a_label_map_in_a_cine_needs_the_number_of_its_frame(tmp_path: Path) -> None:
    write(
        tmp_path / "patient0003",
        "patient0003_4CH_ED.nii.gz",
        "patient0003_4CH_half_sequence_gt.nii.gz",
    )
    manifest = read_camus(str(tmp_path))
    assert manifest.table["mask"].tolist() == [""]
    assert manifest.table["frame"].tolist() == [""]


def test_what_is_missing_or_torn_is_said(tmp_path: Path) -> None:
    one, two = patient(tmp_path, 1), patient(tmp_path, 2, views="4")
    (tmp_path / one / "Info_2CH.cfg").write_text("EF: 50\n")
    (tmp_path / two / f"{two}_4CH_ES_gt.nii.gz").unlink()
    manifest = read_camus(str(tmp_path))
    assert manifest.table["ef"].tolist() == [45] * 6
    assert manifest.table["mask"].eq("").sum() == 1
    said = " ".join(manifest.warnings)
    assert "patient0001: ef is 45.0 by Info_4CH.cfg, which counts, and 50.0" in said
    assert "1 patient(s) have not both phases of both views: patient0002." in said
    assert "1 frame(s) have no label map: patient0002_A4C_ES." in said


def test_the_official_division(tmp_path: Path) -> None:
    for number in range(1, 5):
        patient(tmp_path / "database_nifti", number)
    lists = tmp_path / "database_split"
    lists.mkdir()
    (lists / "subgroup_training.txt").write_text("patient0001\n")
    (lists / "subgroup_validation.txt").write_text("patient0002\n")
    (lists / "subgroup_testing.txt").write_text("patient0003\n")
    manifest = read_camus(str(tmp_path))
    splits = manifest.table.groupby("patient_id")["split"].unique().map(list).tolist()
    assert splits == [["train"], ["validation"], ["test"], ["train"]]
    assert any("1 patient(s) stand in no list" in text for text in manifest.warnings)
    (lists / "subgroup_testing.txt").write_text("patient0003\npatient0001\n")
    with pytest.raises(ValueError, match="patient0001 is in two lists"):
        read_camus(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "reason"),
    [("ED: 1\nEF: high\n", "line 2: ef is 'high'"), ("EF: 450\n", r"line 1: ef is 450, outside")],
)
def test_a_text_file_that_is_wrong_is_named(tmp_path: Path, text: str, reason: str) -> None:
    name = patient(tmp_path, 1)
    (tmp_path / name / "Info_4CH.cfg").write_text(text)
    with pytest.raises(ValueError, match=f"Info_4CH.cfg, {reason}"):
        read_camus(str(tmp_path))


def test_another_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "echo.nii.gz").touch()
    with pytest.raises(ValueError, match=r"patient0001_4CH_ED\.nii\.gz"):
        read_camus(str(tmp_path))
    assert not is_camus(["a/echo.nii.gz"])
    assert is_camus(["a/patient0001_4CH_ED.nii.gz"])


def test_the_same_from_a_bucket(tmp_path: Path, s3: str) -> None:
    from cardioray import storage

    patient(tmp_path, 1)
    for file in tmp_path.rglob("*.*"):
        storage.write_bytes(storage.join(s3, str(file.relative_to(tmp_path))), file.read_bytes())
    local, remote = read_camus(str(tmp_path)), read_camus(s3)
    assert remote.content_hash == local.content_hash
    assert all(path.startswith(s3) for path in remote.paths)


@pytest.mark.samples
def test_real_patients(samples: Path) -> None:
    manifest = read_camus(str(samples / "camus"))
    table = manifest.table
    assert len(table) == 200
    assert table["patient_id"].nunique() == 50
    assert table["mask"].ne("").all()
    assert table.groupby("patient_id")["ef"].nunique().eq(1).all()
    assert table["ef"].between(5, 70).all()
    assert set(table["image_quality"]) <= {"Good", "Medium", "Poor"}
