"""Key frames as data name them: CAMUS, EchoNet's tracings, tables of pictures and of cines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_segments as tiny

from cardioray.data.keyframe_layouts import ED, ES, MID, half_way, read_keyframe_manifest
from cardioray.inference.keyframes import median_beat, positional_frames
from cardioray.tasks import make_task

TARGETS = make_task("keyframe-ef").targets


def cines(folder: Path, **columns: list[object]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"cine{number}.avi" for number in range(len(next(iter(columns.values()))))]
    for name in names:
        (folder / name).touch()
    path = folder / "cines.csv"
    pd.DataFrame({"filename": names, "ef": [50.0] * len(names), **columns}).to_csv(path)
    return str(path)


def test_camus_has_no_middle_frame_and_keeps_its_label_maps(tmp_path: Path) -> None:
    manifest = read_keyframe_manifest(str(tiny.write_camus(tmp_path / "camus", 2)), TARGETS)
    table = manifest.table
    assert sorted(set(table["phase"])) == [ED, ES]
    assert sorted(set(table["view"])) == ["A2C", "A4C"]
    assert table["outlined"].all()
    task = make_task("keyframe-ef")
    assert set(table["view"][task.takes_part(table)]) == {"A4C"}


def test_a_cine_gives_three_frames_of_one_study(tmp_path: Path) -> None:
    table = read_keyframe_manifest(cines(tmp_path, ed_frame=[4], es_frame=[21]), TARGETS).table
    assert table["phase"].tolist() == [ED, ES, MID]
    assert table["frame"].tolist() == ["4", "21", "12"]
    assert table["study_id"].nunique() == 1
    assert table["sample_id"].is_unique
    assert not table["outlined"].any()


def test_a_middle_frame_that_is_named_wins(tmp_path: Path) -> None:
    path = cines(tmp_path, ed_frame=[0], es_frame=[10], mid_frame=[3])
    assert read_keyframe_manifest(path, TARGETS).table["frame"].tolist() == ["0", "10", "3"]


def test_cines_without_key_frames_are_left_out_and_counted(tmp_path: Path) -> None:
    path = cines(tmp_path, ed_frame=[4, np.nan], es_frame=[21, 9])
    manifest = read_keyframe_manifest(path, TARGETS)
    assert len(manifest) == 3
    assert "1 cine(s) without key frames are left out." in manifest.warnings


def test_a_table_of_pictures_names_phases_in_any_words(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").touch()
    table = pd.DataFrame(
        {
            "source": ["a.png", "b.png", "c.png"],
            "phase": ["Diastole", "es", "MF"],
            "view": ["4CH", "A4C", ""],
            "study_id": ["s", "s", "s"],
            "patient_id": ["p", "p", "p"],
            "ef": [61, 61, 61],
        }
    )
    table.to_csv(tmp_path / "frames.csv", index=False)
    found = read_keyframe_manifest(str(tmp_path / "frames.csv"), TARGETS).table
    assert found["phase"].tolist() == [ED, ES, MID]
    assert found["view"].tolist() == ["A4C", "A4C", ""]
    # A frame whose view nobody says is taken for the wanted one.
    assert make_task("keyframe-ef").takes_part(found).all()


def test_an_unknown_phase_is_named_with_its_row(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    pd.DataFrame({"source": ["a.png"], "phase": ["late"], "ef": [50]}).to_csv(
        tmp_path / "frames.csv"
    )
    with pytest.raises(ValueError, match=r"row 1: phase='late' is none of ED, ES, MID"):
        read_keyframe_manifest(str(tmp_path / "frames.csv"), TARGETS)


def test_data_that_name_no_key_frames_say_how_to_find_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cardioray data keyframes"):
        read_keyframe_manifest(cines(tmp_path, split=["train"]), TARGETS)


def test_echonets_tracings_give_the_frames_and_the_one_between(tmp_path: Path) -> None:
    (tmp_path / "Videos").mkdir()
    (tmp_path / "Videos" / "a.avi").touch()
    pd.DataFrame({"FileName": ["a"], "Split": ["TRAIN"], "EF": [55.0]}).to_csv(
        tmp_path / "FileList.csv", index=False
    )
    lines = [("a.avi", 20, 10, 20, 90, frame) for frame in (46, 61)]
    for frame, reach in ((46, 10), (61, 6)):
        lines += [("a.avi", 20 - reach, y, 20 + reach, y, frame) for y in range(20, 90, 10)]
    columns = ["FileName", "X1", "Y1", "X2", "Y2", "Frame"]
    pd.DataFrame(lines, columns=columns).to_csv(tmp_path / "VolumeTracings.csv", index=False)
    table = read_keyframe_manifest(str(tmp_path), TARGETS).table.set_index("phase")
    frames = table["frame"].astype(int)
    assert {frames[ED], frames[ES]} == {46, 61}
    assert frames[MID] == half_way(46, 61) == 53
    assert table["study_id"].nunique() == 1
    assert table["outlined"].to_dict() == {ED: True, ES: True, MID: False}


@pytest.mark.parametrize("count", [3, 4, 30, 165])
def test_frames_by_position_are_in_the_cine_and_in_the_published_order(count: int) -> None:
    ed, es, middle = positional_frames(count)
    assert 0 <= es <= middle <= ed < count
    assert (ed, es, middle) == (2 * count // 3, count // 3, count // 2)


def test_the_beat_that_shrinks_by_the_median_is_taken() -> None:
    depth = np.repeat([0.2, 0.5, 0.35], 25)
    areas = 100 * (1 - depth * (1 - np.cos(2 * np.pi * np.arange(75) / 25)) / 2)
    found = median_beat(areas, fps=25.0)
    assert isinstance(found, list)
    ed, es, middle = found
    assert 50 <= es < 75
    assert areas[es] < areas[ed]
    assert middle == half_way(ed, es)


def test_a_cine_without_a_cavity_shows_no_beat() -> None:
    assert "no beat" in str(median_beat(np.full(20, np.nan), 25.0))
