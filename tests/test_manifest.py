"""Reading manifests from every layout."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from cardioray import storage
from cardioray.data.manifest import Manifest, read_manifest
from cardioray.phantoms.angiogram import PRESETS, write_angiograms
from cardioray.targets import RegressionTarget
from cardioray.tasks.ffr import FFR_TARGET as FFR

ROWS = pd.DataFrame(
    {
        "sample_id": ["a", "b", "c"],
        "patient_id": ["007", "007", "7"],
        "source": ["x/1.png", "x/2.png", "/elsewhere/3.dcm"],
        "ffr": [0.70, 0.75, 0.91],
        "frame": ["", "3", "10-20"],
        "age": [61, 61, 70],
    }
)


def write(table: pd.DataFrame, path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".xlsx":
        table.to_excel(path, index=False)
    else:
        table.to_parquet(path)
    return str(path)


def touch(root: Path, *names: str) -> str:
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    return str(root)


@pytest.mark.parametrize("suffix", [".csv", ".xlsx", ".parquet"])
@pytest.mark.parametrize("as_folder", [False, True])
def test_tables(tmp_path: Path, suffix: str, as_folder: bool) -> None:
    path = write(ROWS, tmp_path / f"manifest{suffix}")
    manifest = read_manifest(str(tmp_path) if as_folder else path, [FFR])
    assert manifest.base == str(tmp_path)
    assert manifest.patients_known
    assert manifest.warnings == ()
    table = manifest.table
    assert table["patient_id"].tolist() == ["007", "007", "7"], "leading zeros stay"
    assert table["frame"].tolist() == ["", "3", "10-20"]
    assert table["age"].tolist() == [61, 61, 70], "extra columns are kept"
    assert FFR.encode(table).tolist() == [1.0, 1.0, 0.0]
    assert manifest.paths == [
        str(tmp_path / "x/1.png"), str(tmp_path / "x/2.png"), "/elsewhere/3.dcm",
    ]  # fmt: skip


def test_all_formats_give_the_same_manifest(tmp_path: Path) -> None:
    manifests = [
        read_manifest(write(ROWS, tmp_path / f"m{suffix}"), [FFR])
        for suffix in (".csv", ".xlsx", ".parquet")
    ]
    assert len({manifest.content_hash for manifest in manifests}) == 1


def test_spreadsheet_numbers_are_identifiers(tmp_path: Path) -> None:
    table = ROWS.assign(patient_id=[7.0, 7.0, 12.0], sample_id=[1, 2, 3], frame=[1, 2, 3])
    for suffix in (".xlsx", ".parquet"):
        read = read_manifest(write(table, tmp_path / f"m{suffix}"), [FFR]).table
        assert read["patient_id"].tolist() == ["7", "7", "12"]
        assert read["sample_id"].tolist() == ["1", "2", "3"]
        assert read["frame"].tolist() == ["1", "2", "3"]


def test_csv_of_other_spellings(tmp_path: Path) -> None:
    text = "\ufeffSource;Patient ID;Label;View\na.png;01;FFRL;LAO\nb.png;02;ffrh;RAO\n"
    (tmp_path / "m.csv").write_text(text, encoding="utf-8")
    table = read_manifest(str(tmp_path / "m.csv"), [FFR]).table
    assert table["patient_id"].tolist() == ["01", "02"]
    assert FFR.encode(table).tolist() == [1.0, 0.0]
    assert table["view"].tolist() == ["LAO", "RAO"]


def test_missing_sample_ids_are_derived_stably(tmp_path: Path) -> None:
    table = ROWS.drop(columns="sample_id")
    first = read_manifest(write(table, tmp_path / "a.csv"), [FFR]).table
    second = read_manifest(write(table[::-1], tmp_path / "b.csv"), [FFR]).table
    assert first["sample_id"].is_unique
    assert set(first["sample_id"]) == set(second["sample_id"])
    partly = ROWS.assign(sample_id=["a", None, ""])
    ids = read_manifest(write(partly, tmp_path / "c.csv"), [FFR]).table["sample_id"].tolist()
    assert ids[0] == "a"
    assert ids[1:] == first["sample_id"].tolist()[1:]


def test_content_hash_ignores_order_and_place_only(tmp_path: Path) -> None:
    original = read_manifest(write(ROWS, tmp_path / "a" / "m.csv"), [FFR])
    moved = read_manifest(write(ROWS[::-1], tmp_path / "b" / "m.csv"), [FFR])
    changed = read_manifest(write(ROWS.assign(ffr=[0.7, 0.75, 0.92]), tmp_path / "m.csv"), [FFR])
    assert original.content_hash == moved.content_hash
    assert original.content_hash != changed.content_hash


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sample_id": ["a", "b", "a"]}, r"rows 1, 3 share the sample_id 'a' \(source 'x/1.png'"),
        ({"source": ["x", None, ""]}, r"row\(s\) 2, 3: no source"),
        ({"patient_id": ["1", "", "2"]}, r"row\(s\) 2: no patient_id"),
        ({"frame": ["1", "last", ""]}, "row 2: frame 'last' is none of"),
        ({"split": ["train", "", "test"]}, r"row\(s\) 2: no split"),
        (
            {"split": ["tset", "train", "tset"]},
            r"row\(s\) 1, 3: Unknown split 'tset'. Did you mean 'test'",
        ),
        ({"label": ["FFRL", "maybe", ""]}, "row 2: label='maybe' is none of the classes"),
        ({"label": ["FFRH", "", ""]}, "row 1: label='FFRH' contradicts ffr"),
        ({"ffr": [None, None, None]}, "No row of the manifest has a label or value for 'ffr'"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_manifest(write(ROWS.assign(**change), tmp_path / "m.csv"), [FFR])


def test_wrong_tables(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere.csv does not exist"):
        read_manifest(str(tmp_path / "nowhere.csv"), [FFR])
    with pytest.raises(ValueError, match="nowhere does not exist"):
        read_manifest(str(tmp_path / "nowhere"), [FFR])
    with pytest.raises(ValueError, match="needs a column 'label' or 'ffr'"):
        read_manifest(write(ROWS.drop(columns="ffr"), tmp_path / "a.csv"), [FFR])
    with pytest.raises(ValueError, match="none of the columns source, study_id and patient_id"):
        read_manifest(write(ROWS[["ffr", "age"]], tmp_path / "b.csv"), [FFR])
    twice = ROWS.assign(**{"Patient ID": "x"})
    with pytest.raises(ValueError, match="column 'patient_id' twice"):
        read_manifest(write(twice, tmp_path / "c.csv"), [FFR])
    (tmp_path / "d.csv").write_bytes("source,ffr\nHerzkranzgefäß.png,0.7\n".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        read_manifest(str(tmp_path / "d.csv"), [FFR])
    for name in ("e.csv", "e.xlsx", "e.parquet"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ValueError, match="cannot be read as a table"):
            read_manifest(str(tmp_path / name), [FFR])


def test_rows_without_label_are_left_out_and_counted(tmp_path: Path) -> None:
    manifest = read_manifest(write(ROWS.assign(ffr=[0.7, None, 0.9]), tmp_path / "m.csv"), [FFR])
    assert manifest.table["sample_id"].tolist() == ["a", "c"]
    assert manifest.warnings == ("1 row(s) without label and value are left out.",)


def test_split_names(tmp_path: Path) -> None:
    names = ["Train", "TRAINING", "val", "Valid", "dev", "calib", "Calibration", "test"]
    table = pd.DataFrame({"source": [f"{i}.png" for i in range(8)], "split": names, "ffr": 0.7})
    table["patient_id"] = table.index.astype(str)
    read = read_manifest(write(table, tmp_path / "m.csv"), [FFR]).table
    assert read["split"].tolist() == [
        "train", "train", "validation", "validation", "validation", "calibration", "calibration",
        "test",
    ]  # fmt: skip
    empty = read_manifest(write(table.assign(split=""), tmp_path / "n.csv"), [FFR]).table
    assert "split" not in empty


def test_folder_per_class_with_splits(tmp_path: Path) -> None:
    root = touch(
        tmp_path, "Train/FFRH/P1_1.png", "Train/FFRL/P2_1.png", "test/ffrl/sub/P3_1.png",
        "test/FFRH/P4_1.png", "test/FFRH/.DS_Store",
    )  # fmt: skip
    manifest = read_manifest(root, [FFR], patient_from=r"^(P\d+)_")
    table = manifest.table.set_index("source")
    assert table["patient_id"].to_dict() == {
        "Train/FFRH/P1_1.png": "P1", "Train/FFRL/P2_1.png": "P2",
        "test/FFRH/P4_1.png": "P4", "test/ffrl/sub/P3_1.png": "P3",
    }  # fmt: skip
    assert table["split"].tolist() == ["train", "train", "test", "test"]
    assert FFR.encode(manifest.table).tolist() == [0.0, 1.0, 0.0, 1.0]
    assert manifest.patients_known


def test_folder_per_class_without_splits_or_patients(tmp_path: Path) -> None:
    root = touch(tmp_path, "FFRH/1.png", "FFRL/1.png", "notes.txt")
    manifest = read_manifest(root, [FFR])
    assert "split" not in manifest.table
    assert not manifest.patients_known
    assert manifest.table["patient_id"].is_unique
    assert "1 file(s) outside the class folders are ignored: notes.txt" in manifest.warnings[0]
    assert "leakage between splits cannot be excluded" in manifest.warnings[1]


def test_folder_names_that_are_no_class(tmp_path: Path) -> None:
    root = touch(tmp_path, "FFRH/1.png", "FFRM/1.png", "test/LCX/1.png")
    with pytest.raises(ValueError, match=r"other folders \(FFRM, LCX\).*ffrh, ffrl"):
        read_manifest(root, [FFR])
    with pytest.raises(ValueError, match="no class folder"):
        read_manifest(touch(tmp_path / "flat", "1.png"), [FFR])
    number = RegressionTarget(name="ffr_value", value_column="ffr")
    with pytest.raises(ValueError, match="'ffr_value' is a number"):
        read_manifest(root, [number])


def test_mixed_depth_of_class_folders_is_refused(tmp_path: Path) -> None:
    root = touch(tmp_path, "FFRH/1.png", "test/FFRL/1.png")
    with pytest.raises(ValueError, match=r"row\(s\) 1: no split"):
        read_manifest(root, [FFR])


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(P", "no regular expression"),
        ("P[0-9]+", "needs a group"),
        (r"^(A\d+)", "finds no patient in 1 of 2 file names: B1.png"),
    ],
)
def test_patient_patterns_that_fail(tmp_path: Path, pattern: str, reason: str) -> None:
    root = touch(tmp_path, "FFRH/A1.png", "FFRL/B1.png")
    with pytest.raises(ValueError, match=reason):
        read_manifest(root, [FFR], patient_from=pattern)


def test_named_group_and_contradicting_pattern(tmp_path: Path) -> None:
    root = touch(tmp_path / "a", "FFRH/x_P1.png", "FFRL/y_P2.png")
    manifest = read_manifest(root, [FFR], patient_from=r"(x|y)_(?P<patient>P\d)")
    assert manifest.table["patient_id"].tolist() == ["P1", "P2"]
    with pytest.raises(ValueError, match="has patient ids; leave out"):
        read_manifest(write(ROWS, tmp_path / "m.csv"), [FFR], patient_from="(.)")


def test_several_manifests_in_one_folder(tmp_path: Path) -> None:
    write(ROWS, tmp_path / "manifest.csv")
    write(ROWS, tmp_path / "manifest.xlsx")
    with pytest.raises(ValueError, match="Several tables"):
        read_manifest(str(tmp_path), [FFR])


@pytest.fixture
def dicom_folder(tmp_path: Path) -> Path:
    """Five pictures of three patients, a report and a note."""
    for patient, files in {"010": 2, "11": 2, "12": 1}.items():
        for index in range(files):
            dataset = dcmread(get_testdata_file("MR_small.dcm", download=False))
            dataset.PatientID, dataset.StudyInstanceUID = patient, f"1.2.{int(patient)}.{index}"
            file = tmp_path / "studies" / patient / f"{patient}_{index}.dcm"
            file.parent.mkdir(parents=True, exist_ok=True)
            dataset.save_as(file)
    shutil.copy(get_testdata_file("reportsi.dcm", download=False), tmp_path / "report.dcm")
    (tmp_path / "note.txt").write_text("hello")
    return tmp_path


def test_dicom_folder_with_labels_by_patient(dicom_folder: Path) -> None:
    labels = pd.DataFrame({"patient_id": ["010", "11", "99"], "ffr": [0.7, 0.9, 0.8]})
    write(labels, dicom_folder / "labels.csv")
    manifest = read_manifest(str(dicom_folder), [FFR])
    assert manifest.table["patient_id"].tolist() == ["010", "010", "11", "11"]
    assert manifest.table["study_id"].tolist() == ["1.2.10.0", "1.2.10.1", "1.2.11.0", "1.2.11.1"]
    assert FFR.encode(manifest.table).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert manifest.patients_known
    orphan, absent = manifest.warnings
    assert "1 DICOM picture(s) without a row in the table: studies/12/12_0.dcm" in orphan
    assert "1 patient_id(s) of the table without a picture: 99" in absent
    assert all(Path(path).exists() for path in manifest.paths)


def test_dicom_folder_with_labels_by_study_or_by_name(dicom_folder: Path) -> None:
    studies = pd.DataFrame({"study_id": ["1.2.10.1", "1.2.12.0"], "label": ["FFRL", "FFRH"]})
    table = read_manifest(write(studies, dicom_folder / "export.xlsx"), [FFR]).table
    assert table["source"].tolist() == ["studies/010/010_1.dcm", "studies/12/12_0.dcm"]
    assert table["patient_id"].tolist() == ["010", "12"]
    (dicom_folder / "export.xlsx").unlink()
    names = pd.DataFrame({"patient_id": ["010_1"], "label": ["FFRL"]})
    path = write(names, dicom_folder / "labels.csv")
    named = read_manifest(path, [FFR], patient_from=r"(.*)\.dcm").table
    assert named["source"].tolist() == ["studies/010/010_1.dcm"]


@pytest.mark.parametrize("layout", ["folders", "table"])
def test_patients_are_read_from_dicom_whatever_the_layout(
    dicom_folder: Path, tmp_path_factory: pytest.TempPathFactory, layout: str
) -> None:
    data = tmp_path_factory.mktemp("data")
    files = sorted((dicom_folder / "studies").rglob("*.dcm"))
    for file in files:
        side = "FFRL" if file.name.startswith("010") else "FFRH"
        (data / side).mkdir(exist_ok=True)
        shutil.copy(file, data / side / f"{hashlib.sha256(file.name.encode()).hexdigest()}.dcm")
    if layout == "table":
        rows = [(f"{p.parent.name}/{p.name}", p.parent.name) for p in data.rglob("*.dcm")]
        write(pd.DataFrame(rows, columns=["source", "label"]), data / "manifest.csv")
    manifest = read_manifest(str(data), [FFR])
    assert sorted(manifest.table["patient_id"]) == ["010", "010", "11", "11", "12"]
    assert manifest.patients_known
    assert not manifest.warnings


def test_dicom_files_of_unnamed_patients_are_grouped_by_study(dicom_folder: Path) -> None:
    (dicom_folder / "studies" / "010").rename(dicom_folder / "studies" / "FFRL")
    for file in (dicom_folder / "studies").rglob("*.dcm"):
        dataset = dcmread(file)
        if file.name.startswith("11"):
            dataset.PatientID, dataset.StudyInstanceUID = "", "1.2.11"
            dataset.save_as(file)
    (dicom_folder / "studies" / "11").rename(dicom_folder / "studies" / "FFRH")
    shutil.rmtree(dicom_folder / "studies" / "12")
    manifest = read_manifest(str(dicom_folder / "studies"), [FFR])
    assert sorted(manifest.table["patient_id"]) == ["010", "010", "1.2.11", "1.2.11"]
    assert not manifest.patients_known
    assert "No patient is known for 2 of 4 row(s)" in manifest.warnings[0]


def test_a_study_stands_for_a_patient_that_a_table_does_not_name(tmp_path: Path) -> None:
    table = ROWS.drop(columns="patient_id").assign(study_id=["A", "A", "B"])
    manifest = read_manifest(write(table, tmp_path / "m.csv"), [FFR])
    assert manifest.table["patient_id"].tolist() == ["A", "A", "B"]
    assert not manifest.patients_known


def test_a_dicom_file_that_is_cut_off_is_named(dicom_folder: Path) -> None:
    labels = pd.DataFrame({"patient_id": ["010", "11", "12"], "ffr": [0.7, 0.9, 0.8]})
    write(labels, dicom_folder / "labels.csv")
    file = dicom_folder / "studies" / "11" / "11_1.dcm"
    file.write_bytes(file.read_bytes()[:600])
    manifest = read_manifest(str(dicom_folder), [FFR])
    assert len(manifest) == 4
    [warning] = manifest.warnings
    assert "1 file(s) that cannot be read are left out: studies/11/11_1.dcm" in warning


def test_phantoms_stay_phantoms_without_their_manifest(tmp_path: Path) -> None:
    out = tmp_path / "phantoms"
    config = PRESETS.get("clear")
    write_angiograms(str(out), 4, seed=0, config=config, folder_per_class=True, num_workers=1)
    (out / "manifest.csv").unlink()
    manifest = read_manifest(str(out), [FFR], patient_from="^(P[0-9]+-[0-9]+)_")
    assert manifest.table["phantom"].all()
    assert not manifest.warnings


@pytest.mark.parametrize("quote", ["", '"'])
def test_decimal_commas_of_a_spreadsheet(tmp_path: Path, quote: str) -> None:
    path = tmp_path / "m.csv"
    rows = [("1.png", "0,75"), ("2.png", "0,85"), ("3.png", "")]
    lines = [f"{name};{quote}{value}{quote};3,5 mm, short" for name, value in rows]
    path.write_text("source;ffr;note\n" + "\n".join(lines))
    table = read_manifest(str(path), [FFR]).table
    assert table["ffr"].tolist() == [0.75, 0.85]
    assert table["note"][0] == "3,5 mm, short"


def test_dicom_labels_that_match_nothing(dicom_folder: Path) -> None:
    labels = pd.DataFrame({"patient_id": ["A", "A"], "ffr": [0.7, 0.9]})
    with pytest.raises(ValueError, match="patient_id 'A' twice"):
        read_manifest(write(labels, dicom_folder / "labels.csv"), [FFR])
    with pytest.raises(ValueError, match="None of the 5 DICOM pictures"):
        read_manifest(write(labels[:1], dicom_folder / "labels.csv"), [FFR])


def test_paths_do_not_depend_on_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(ROWS, tmp_path / "set" / "manifest.csv")
    monkeypatch.chdir(tmp_path)
    for data in ("set", "set/manifest.csv"):
        assert read_manifest(data, [FFR]).paths[0] == str(tmp_path / "set/x/1.png")
    monkeypatch.chdir(tmp_path / "set")
    assert read_manifest("manifest.csv", [FFR]).base == str(tmp_path / "set")


def test_s3_sources_stay(tmp_path: Path) -> None:
    table = ROWS.assign(source=["s3://bucket/1.png", "2.png", "/data/3.png"])
    manifest = read_manifest(write(table, tmp_path / "m.csv"), [FFR])
    assert manifest.paths == ["s3://bucket/1.png", str(tmp_path / "2.png"), "/data/3.png"]


def test_a_bucket_reads_like_a_folder(s3: str, tmp_path: Path) -> None:
    local = touch(tmp_path, "train/FFRH/P1_1.png", "test/FFRL/P2_1.png")
    storage.copy_folder(local, f"{s3}/classes")
    pattern = "^(P[0-9])"
    remote = read_manifest(f"{s3}/classes", [FFR], patient_from=pattern)
    assert remote.content_hash == read_manifest(local, [FFR], patient_from=pattern).content_hash
    assert all(storage.exists(path) for path in remote.paths)
    storage.copy_folder(write_folder(tmp_path / "t"), f"{s3}/table")
    for data in (f"{s3}/table", f"{s3}/table/manifest.csv"):
        manifest: Manifest = read_manifest(data, [FFR])
        assert manifest.base == f"{s3}/table"
        assert manifest.paths[0] == f"{s3}/table/x/1.png"
        assert np.array_equal(FFR.encode(manifest.table), [1.0, 1.0, 0.0])


def write_folder(folder: Path) -> str:
    write(ROWS, folder / "manifest.csv")
    return str(folder)


def test_dicom_headers_are_read_from_a_bucket(s3: str, dicom_folder: Path) -> None:
    labels = pd.DataFrame({"patient_id": ["010", "11", "12"], "ffr": [0.7, 0.9, 0.8]})
    write(labels, dicom_folder / "labels.csv")
    storage.copy_folder(str(dicom_folder), f"{s3}/dicom")
    remote = read_manifest(f"{s3}/dicom", [FFR])
    assert remote.content_hash == read_manifest(str(dicom_folder), [FFR]).content_hash
    assert len(remote) == 5
