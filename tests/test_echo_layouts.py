"""Echo data as people keep it: EchoNet's lists and manifests of videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cardioray.data.check import check_manifest
from cardioray.data.echo_layouts import read_echo_manifest, read_tracings, traced_area
from cardioray.data.segment_layouts import read_segment_manifest
from cardioray.data.video_writing import encode_video
from cardioray.targets import BinaryTarget
from cardioray.tasks import make_task
from cardioray.tasks.echo_ef import EDV_TARGET, EF_TARGET

WMA = BinaryTarget(name="wma", positive="abnormal", negative="normal", label_column="Wall_Motion")


def clip(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    return encode_video(rng.integers(0, 255, (6, 48, 48)).astype(np.uint8), 50.0)


def write_echonet(
    folder: Path,
    *,
    count: int = 10,
    name: str = "0X{:04X}",
    suffix: str = "",
    splits: list[Any] | None = None,
    videos: str = "Videos",
    **columns: Any,
) -> Path:
    (folder / videos).mkdir(parents=True)
    names = [name.format(number) for number in range(count)]
    for number, name in enumerate(names):
        (folder / videos / f"{name}.avi").write_bytes(clip(number))
    table = pd.DataFrame(
        {
            "FileName": [name + suffix for name in names],
            "EF": np.linspace(20, 70, count),
            "ESV": 40.0,
            "EDV": 100.0,
            "FPS": 50,
            "Split": splits or ["TRAIN"] * (count - 4) + ["VAL", "val", "TEST", "Test"],
            "Extra": "x",
            **columns,
        }
    )
    table.to_csv(folder / "FileList.csv", index=False)
    return folder


@pytest.mark.parametrize("suffix", ["", ".avi"])
@pytest.mark.parametrize("videos", ["Videos", "."])
@pytest.mark.parametrize("given", ["folder", "file"])
def test_echonets_layout_is_read(tmp_path: Path, suffix: str, videos: str, given: str) -> None:
    folder = write_echonet(tmp_path / "set", suffix=suffix, videos=videos)
    data = folder if given == "folder" else folder / "FileList.csv"
    manifest = read_echo_manifest(str(data), [EF_TARGET, EDV_TARGET])
    assert len(manifest) == 10
    assert all(Path(path).is_file() for path in manifest.paths)
    assert manifest.table["split"].value_counts().to_dict() == {
        "train": 6, "validation": 2, "test": 2,
    }  # fmt: skip
    assert manifest.table["patient_id"].is_unique
    assert "patient of its own" in manifest.warnings[0]
    assert EF_TARGET.encode(manifest.table)[0] == 20
    assert manifest.table["Extra"].eq("x").all()


def test_a_name_of_digits_keeps_its_zeros(tmp_path: Path) -> None:
    folder = write_echonet(tmp_path, name="{:04d}")
    lines = [
        f"{number:04d}.avi,1,1,9,{9 + number},{frame}" for number in (0, 7) for frame in (1, 3)
    ]
    text = "FileName,X1,Y1,X2,Y2,Frame\n" + "\n".join(lines)
    (folder / "VolumeTracings.csv").write_text(text)
    manifest = read_echo_manifest(str(folder), [EF_TARGET])
    assert manifest.table["patient_id"].tolist() == [f"{number:04d}" for number in range(10)]
    assert all(Path(path).is_file() for path in manifest.paths)
    tracings = read_tracings(str(folder / "VolumeTracings.csv"))
    assert tracings["name"].tolist() == ["0000", "0000", "0007", "0007"]


def test_fold_numbers_become_splits(tmp_path: Path) -> None:
    folder = write_echonet(tmp_path, splits=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    manifest = read_echo_manifest(str(folder), [EF_TARGET])
    assert manifest.table["split"].tolist() == ["train"] * 8 + ["validation", "test"]
    assert any("fold 9 is taken as test" in text for text in manifest.warnings)


def test_tracings_tell_diastole_from_systole(tmp_path: Path) -> None:
    folder = write_echonet(tmp_path, count=6)
    lines = []
    for name, large, small in (("0X0000", 30, 12), ("0X0001", 5, 40)):
        for frame, width in ((large, 30.0), (small, 18.0)):
            lines.append((f"{name}.avi", 50, 20, 50, 90, frame))
            lines += [
                (f"{name}.avi", 50 - width / 2, y, 50 + width / 2, y, frame)
                for y in range(25, 90, 10)
            ]
    columns = ["FileName", "X1", "Y1", "X2", "Y2", "Frame"]
    pd.DataFrame(lines, columns=columns).to_csv(folder / "VolumeTracings.csv", index=False)
    manifest = read_echo_manifest(str(folder), [EF_TARGET])
    table = manifest.table.set_index("patient_id")
    assert table.loc["0X0000", ["ed_frame", "es_frame"]].tolist() == [30, 12]
    assert table.loc["0X0001", ["ed_frame", "es_frame"]].tolist() == [5, 40]
    assert table.loc["0X0002", "ed_frame"] == -1
    assert any("4 of 6 videos have no tracing" in text for text in manifest.warnings)
    broken = pd.DataFrame([("0X0000.avi", 1, 2, "three", 4, 5)], columns=columns)
    broken.to_csv(folder / "VolumeTracings.csv", index=False)
    with pytest.raises(ValueError, match="row 1: x2='three' is no number"):
        read_tracings(str(folder / "VolumeTracings.csv"))


def test_tracings_of_other_videos_outline_none(tmp_path: Path) -> None:
    folder = write_echonet(tmp_path, count=6)
    lines = [("OTHER.avi", 40, y, 60, y, frame) for frame in (3, 9) for y in range(25, 90, 10)]
    columns = ["FileName", "X1", "Y1", "X2", "Y2", "Frame"]
    pd.DataFrame(lines, columns=columns).to_csv(folder / "VolumeTracings.csv", index=False)
    with pytest.raises(ValueError, match="traces two frames of none of the 6 videos"):
        read_segment_manifest(str(folder), [EF_TARGET])


def square(name: str, frame: int, side: float) -> list[tuple[Any, ...]]:
    corners = [(0.0, 0.0), (side, 0.0), (side, side), (0.0, side)]
    return [(name, 20 + x, 30 + y, frame) for x, y in corners]


def test_contours_of_the_paediatric_release_are_read(tmp_path: Path) -> None:
    folder = write_echonet(tmp_path, count=6, splits=[0, 1, 2, 3, 4, 5])
    points = [
        *square("0X0000.avi", 12, 30.0),
        *square("0X0000.avi", 30, 50.0),
        *square("0X0001.avi", 40, 50.0),
        ("0X0001.avi", None, None, "No Systolic"),
        ("0X0002.avi", None, None, "No Diastolic"),
        *square("0X0003.avi", 7, 40.0),
        ("0X0003.avi", 20.0, 30.0, 9),
    ]
    path = folder / "VolumeTracings.csv"
    columns = ["FileName", "X", "Y", "Frame"]
    pd.DataFrame(points, columns=columns).to_csv(path, index=False)
    manifest = read_echo_manifest(str(folder), [EF_TARGET])
    table = manifest.table.set_index("patient_id")
    assert table.loc["0X0000", ["ed_frame", "es_frame"]].tolist() == [30, 12]
    assert (table["ed_frame"].drop("0X0000") == -1).all(), "one frame tells no phase, nor a point"
    assert any(
        "2 row(s) of VolumeTracings.csv have no frame number (No Diastolic, No Systolic)" in text
        for text in manifest.warnings
    )
    assert any("5 of 6 videos have no tracing" in text for text in manifest.warnings)

    lines = read_tracings(str(path))
    assert list(lines) == ["name", "frame", "x", "y"]
    assert len(lines) == 17
    own = lines[lines["name"] == "0X0000"]
    assert traced_area(own[own["frame"] == 30]) == pytest.approx(2500.0)


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        ([("a", None, None, "No Systolic"), ("a", 1, "two", 5)], "row 2: y='two' is no number"),
        ([("a", 1, 2, 5), ("a", 1, None, 5)], "row 2: y='' is no number"),
        ([("a", 1, 2, 5.5)], "row 1: frame='5.5' is no whole number"),
        ([("a.avi", 1, 2)], r"no column frame\. Tracings are lines .* or contours"),
    ],
)
def test_wrong_contours_are_named(
    tmp_path: Path, points: list[tuple[Any, ...]], reason: str
) -> None:
    path = tmp_path / "VolumeTracings.csv"
    columns = ["FileName", "X", "Y", "Frame"][: len(points[0])]
    pd.DataFrame(points, columns=columns).to_csv(path, index=False)
    with pytest.raises(ValueError, match=reason):
        read_tracings(str(path))


def test_only_a_videos_ending_is_taken_off_its_name(tmp_path: Path) -> None:
    names = ["1.2.840.1", "1.2.840.2", "1.2.840.3.avi", "scan.AVI"]
    files = ["1.2.840.1.avi", "1.2.840.2", "1.2.840.3.avi", "scan.AVI"]
    for number, file in enumerate(files):
        (tmp_path / file).write_bytes(clip(number))
    listed = pd.DataFrame({"FileName": names, "EF": [50.0, 55.0, 60.0, 65.0]})
    listed.to_csv(tmp_path / "FileList.csv", index=False)
    points = [
        point
        for number, name in enumerate(["1.2.840.1.avi", "1.2.840.2", "1.2.840.3", "scan"])
        for point in (*square(name, number, 20.0), *square(name, number + 10, 10.0))
    ]
    tracings = pd.DataFrame(points, columns=["FileName", "X", "Y", "Frame"])
    tracings.to_csv(tmp_path / "VolumeTracings.csv", index=False)
    table = read_echo_manifest(str(tmp_path), [EF_TARGET]).table
    assert table["source"].tolist() == files
    assert table["patient_id"].tolist() == ["1.2.840.1", "1.2.840.2", "1.2.840.3", "scan"]
    assert table["ed_frame"].tolist() == [0, 1, 2, 3]
    assert table["es_frame"].tolist() == [10, 11, 12, 13]


@pytest.mark.parametrize("label", ["TARGET", "LABEL", "Wall_Motion"])
@pytest.mark.parametrize("style", ["readme", "code"])
def test_a_cmr_manifest_is_read(tmp_path: Path, label: str, style: str) -> None:
    for number in range(6):
        (tmp_path / f"v{number}.avi").write_bytes(clip(number))
    names = [f"v{number}" for number in range(6)]
    table = pd.DataFrame({label: [0, 1, 0, 1, None, 1], "frames": 6})
    if style == "readme":
        table = table.assign(Study_Unique_ID=list("aabbcc"), Video_Unique_ID=names)
    else:
        table = table.assign(
            filename=[f"{name}.avi" for name in names],
            mrn=[1, 1, 2, 2, 3, 3],
            split=["train", "train", "val", "val", "test", "test"],
        )
    table.to_csv(tmp_path / "cmr.csv", index=False)
    manifest = read_echo_manifest(str(tmp_path / "cmr.csv"), [WMA])
    assert len(manifest) == 5
    assert all(Path(path).is_file() for path in manifest.paths)
    if style == "readme":
        assert manifest.table["study_id"].tolist() == list("aabbc")
    else:
        assert manifest.table["patient_id"].tolist() == ["1", "1", "2", "2", "3"]


def write_confidences(folder: Path, **columns: Any) -> str:
    count = len(next(iter(columns.values())))
    for number in range(count):
        (folder / f"v{number}.avi").write_bytes(clip(number))
    table = pd.DataFrame(
        {
            "filename": [f"v{number}.avi" for number in range(count)],
            "split": "train",
            "frames": 6,
            "LABEL": [number % 2 for number in range(count)],
            "mrn": range(count),
            **columns,
        }
    )
    table.to_csv(folder / "cmr.csv", index=False)
    return str(folder / "cmr.csv")


def test_confidences_of_views_name_the_view(tmp_path: Path) -> None:
    columns: dict[str, Any] = {
        "A4C": [0.9, 0.2, 0.1, 0.4, None, 0.0],
        "a2c": [0.05, 0.7, 0.1, 0.4, 0.3, 0.0],
        "PLAX ": [0.05, 0.1, 0.8, 0.2, None, 0.0],
        "quality": 5,
    }
    path = write_confidences(tmp_path, **columns)
    manifest = read_echo_manifest(path, [WMA])
    assert manifest.table["view"].tolist() == ["A4C", "A2C", "PLAX", "", "A2C", ""]
    assert WMA.encode(manifest.table).tolist() == [0, 1, 0, 1, 0, 1]
    assert any(
        "highest confidence of A4C, A2C, PLAX; the least sure row has 0.3" in text
        for text in manifest.warnings
    )
    assert any("2 row(s) have no single highest confidence" in text for text in manifest.warnings)
    chosen = make_task("echo-cmr", {"views": ["A2C"]}).read_manifest(path, None)
    assert chosen.table["source"].tolist() == ["v1.avi", "v4.avi"]
    # The label of a CMR manifest is not taken for the view that another task asks about.
    views = make_task("echo-view").read_manifest(path, None).table
    assert views["view"].tolist() == ["A4C", "A2C", "PLAX", "A2C"]

    said = read_echo_manifest(write_confidences(tmp_path, view=["A3C"] * 6, **columns), [WMA])
    assert said.table["view"].eq("A3C").all(), "a view that is given stands"
    assert not said.warnings


def test_what_only_resembles_confidences_tells_no_view(tmp_path: Path) -> None:
    alone = read_echo_manifest(write_confidences(tmp_path, A4C=[0.9, 0.2], A4C_ml=[8, 9]), [WMA])
    assert "view" not in alone.table
    assert any("column A4C is not read as the confidence" in text for text in alone.warnings)
    wanted = BinaryTarget(name="seen", positive="yes", negative="no", label_column="A4C")
    path = write_confidences(tmp_path, A4C=[0, 1], A2C=[0.5, 0.5])
    assert "view" not in read_echo_manifest(path, [wanted]).table
    for cells, shown in (([0.5, "high"], "A4C='high'"), ([0.5, 92.1], "A4C='92.1'")):
        path = write_confidences(tmp_path, A4C=cells, A2C=[0.5, 0.1])
        with pytest.raises(ValueError, match=f"row 2: {shown} is no confidence between 0 and 1"):
            read_echo_manifest(path, [WMA])
    path = write_confidences(tmp_path, A4C=[0.5, 0.1], a4c=[0.5, 0.1])
    with pytest.raises(ValueError, match="'A4C' and 'a4c' are of one view"):
        read_echo_manifest(path, [WMA])


def test_missing_labels_of_one_head_do_not_take_the_row(tmp_path: Path) -> None:
    folder = write_echonet(tmp_path, count=6, EDV=[None, 100, 100, 100, 100, 100])
    manifest = read_echo_manifest(str(folder), [EF_TARGET, EDV_TARGET])
    assert len(manifest) == 6
    assert np.isnan(EDV_TARGET.encode(manifest.table)[0])


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"EF": [55, 56, 57, 58, 59, "60%"]}, r"row 6: EF='60%' is no number"),
        ({"EF": [55, 56, 57, 58, 59, 160]}, r"row 6: EF=160 is outside"),
        ({"Split": ["TRAIN"] * 5 + ["exam"]}, r"row\(s\) 6: Unknown split 'exam'"),
        ({"FileName": [f"none{i}" for i in range(6)]}, r"names 6 videos .* none of them"),
    ],
)
def test_what_is_wrong_is_named_by_row_and_column(
    tmp_path: Path, columns: dict[str, Any], reason: str
) -> None:
    folder = write_echonet(tmp_path, count=6, **columns)
    with pytest.raises(ValueError, match=reason):
        read_echo_manifest(str(folder), [EF_TARGET])


def test_a_check_reads_videos_and_prints_what_the_literature_prints(tmp_path: Path) -> None:
    folder = write_echonet(tmp_path, count=12)
    (folder / "Videos" / "0X0001.avi").write_bytes(clip(1)[:900])
    (folder / "Videos" / "0X0002.avi").write_bytes(clip(0))
    task = make_task("echo-ef")
    manifest = task.read_manifest(str(folder), None)
    report = check_manifest(manifest, *task.targets, splits=task.split, decoder=task.decoder)
    assert len(report.unreadable) == 1
    assert "cut off" in report.unreadable[0][1]
    assert report.pixel_types == {"AVI, 50 fps": 11}
    assert report.sizes == {"48 x 48": 11}
    assert any("equal frames" in text for text in (*report.errors, *report.warnings))
    train = next(number for number in report.numbers if number.split == "train")
    assert train.mean == pytest.approx(np.linspace(20, 70, 12)[:8].mean(), rel=1e-5)
    assert train.below[35] == 4


def test_views_are_chosen(tmp_path: Path) -> None:
    rows = []
    for number, view in enumerate(["A4C", "4CH", "PLAX", "a4c", "4CH", ""]):
        (tmp_path / f"v{number}.avi").write_bytes(clip(number))
        rows.append(
            {"source": f"v{number}.avi", "view": view, "ef": 50 + number, "patient_id": "p"}
        )
    pd.DataFrame(rows).to_csv(tmp_path / "manifest.csv", index=False)
    chosen = make_task("echo-ef").read_manifest(str(tmp_path), None)
    assert chosen.table["source"].tolist() == ["v0.avi", "v3.avi"]
    assert chosen.warnings == (
        "4 row(s) are not of view A4C and are left out: 4CH (2), PLAX (1), none (1).",
    )
    every = make_task("echo-ef", {"views": []}).read_manifest(str(tmp_path), None)
    assert len(every) == 6
    assert not every.warnings
    found = r"No row is of view A3C or A2C; there are 4CH \(2\), A4C \(1\), PLAX \(1\), a4c \(1\)"
    with pytest.raises(ValueError, match=found):
        make_task("echo-ef", {"views": ["A3C", "A2C"]}).read_manifest(str(tmp_path), None)


def test_a_list_that_says_nothing_of_the_question_gives_way_to_the_manifest(
    tmp_path: Path,
) -> None:
    folder = write_echonet(tmp_path, count=5)
    rows = [
        {"source": f"Videos/0X{number:04d}.avi", "patient_id": f"p{number}", "wma": number % 2}
        for number in range(5)
    ]
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    assert "ef" in {c.lower() for c in make_task("echo-ef").read_manifest(str(folder), None).table}
    found = make_task("echo-cmr").read_manifest(str(folder), None).table
    assert found["patient_id"].tolist() == [f"p{number}" for number in range(5)]
    assert found["wma"].tolist() == [0, 1, 0, 1, 0]
    (folder / "manifest.csv").unlink()
    with pytest.raises(ValueError, match="needs a column 'wma'"):
        make_task("echo-cmr").read_manifest(str(folder), None)
