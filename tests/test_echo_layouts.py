"""Echo data as people keep it: EchoNet's lists and manifests of videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cardioray.data.check import check_manifest
from cardioray.data.echo_layouts import read_echo_manifest, read_tracings
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
    suffix: str = "",
    splits: list[Any] | None = None,
    videos: str = "Videos",
    **columns: Any,
) -> Path:
    (folder / videos).mkdir(parents=True)
    names = [f"0X{number:04X}" for number in range(count)]
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
        ({"Split": ["TRAIN"] * 5 + ["exam"]}, "Unknown split 'exam'"),
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
    for number, view in enumerate(["A4C", "A2C", "PLAX", "a4c"]):
        (tmp_path / f"v{number}.avi").write_bytes(clip(number))
        rows.append(
            {"source": f"v{number}.avi", "view": view, "ef": 50 + number, "patient_id": "p"}
        )
    pd.DataFrame(rows).to_csv(tmp_path / "manifest.csv", index=False)
    chosen = make_task("echo-ef").read_manifest(str(tmp_path), None)
    assert chosen.table["source"].tolist() == ["v0.avi", "v3.avi"]
    with pytest.raises(ValueError, match="No row is of view A3C"):
        make_task("echo-ef", {"views": ["A3C"]}).read_manifest(str(tmp_path), None)


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
