from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pandas as pd
import pytest
import tiny_training as tiny
from ray_cluster import end_tree

from cardioray import storage
from cardioray.data import cluster
from cardioray.data.pipeline import PrepareConfig, _PartPlan, _WritePart, prepare
from cardioray.data.reading import read_rows, take_rows
from cardioray.data.shards import ROWS_PER_PART, ShardSet
from cardioray.phantoms.angiogram import PRESETS, write_angiograms
from cardioray.training.settings import RunConfig

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TASK = tiny.tiny_run().task
SMALL_PARTS = PrepareConfig(sources_per_part=16)


def prepared(pictures: Path, out: Path | str, settings: PrepareConfig = SMALL_PARTS) -> ShardSet:
    return prepare(TASK, TASK.read_manifest(str(pictures), None), str(out), settings)


def times(folder: Path) -> dict[str, int]:
    return {str(f): f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()}


def test_a_second_call_does_nothing_and_a_change_does(ray_local: None, tmp_path: Path) -> None:
    pictures, out = tiny.write_pictures(tmp_path / "pictures"), tmp_path / "shards"
    first = prepared(pictures, out)
    assert len(first.index.parts) == 4
    assert first.index.num_samples == tiny.PATIENTS * tiny.FRAMES
    assert (out / "quarantine.csv").read_text() == "source,reason\n"
    before = times(out)
    assert prepared(pictures, out).index == first.index
    assert times(out) == before

    other = RunConfig.build("ffr", {}, [*tiny.TINY, "preprocess.image_size=40"]).task
    manifest = TASK.read_manifest(str(pictures), None)
    larger = prepare(other, manifest, str(out), SMALL_PARTS)
    assert larger.index.columns == {"image": [40, 40, 1]}
    assert larger.index.dataset_hash != first.index.dataset_hash

    (pictures / "p00_0.png").write_bytes((pictures / "p01_0.png").read_bytes())
    changed = prepared(pictures, out)
    assert changed.index.dataset_hash not in (first.index.dataset_hash, larger.index.dataset_hash)


def test_parts_of_the_replaced_shards_stay_and_older_ones_go(
    ray_local: None, tmp_path: Path
) -> None:
    pictures, out = tiny.write_pictures(tmp_path / "pictures", patients=8), tmp_path / "shards"

    def of_size(pixels: int) -> ShardSet:
        task = RunConfig.build("ffr", {}, [*tiny.TINY, f"preprocess.image_size={pixels}"]).task
        return prepare(task, TASK.read_manifest(str(pictures), None), str(out))

    def parts() -> set[str]:
        return {f"data/{file.name}" for file in (out / "data").glob("part-*.parquet")}

    first, second = of_size(32), of_size(40)
    assert parts() == {*first.index.parts, *second.index.parts}
    # A training that opened the first shards goes on reading them.
    rows = first.samples["row"].to_numpy()
    assert take_rows(first, rows, TASK.columns)["image"].shape == (16, 32, 32, 1)
    third = of_size(48)
    assert parts() == {*second.index.parts, *third.index.parts}
    assert {file.stem for file in (out / "data").glob("*.json")} == {
        Path(part).stem for part in parts()
    }
    # Turning back to the replaced settings decodes nothing again.
    before = times(out / "data")
    assert of_size(40).index == second.index
    after = times(out / "data")
    assert {f: t for f, t in after.items() if "samples-" not in f} == {
        f: t for f, t in before.items() if "samples-" not in f
    }


def test_a_finished_call_tries_again_what_it_could_not_fetch(
    ray_local: None, tmp_path: Path
) -> None:
    pictures, out = tiny.write_pictures(tmp_path / "pictures", patients=4), tmp_path / "shards"
    lost = pictures / "p00_0.png"
    lost.unlink()
    lost.symlink_to(lost)
    calls: list[int] = []
    for _ in range(2):
        manifest = TASK.read_manifest(str(pictures), None)
        settings = PrepareConfig(max_bad=0.5)
        shards = prepare(TASK, manifest, str(out), settings, lambda done, _: calls.append(done))
        assert (shards.index.num_bad, shards.index.num_unfetched) == (1, 1)
    assert len(calls) == 2


def test_bad_files_go_to_quarantine_up_to_a_limit(ray_local: None, tmp_path: Path) -> None:
    pictures, out = tiny.write_pictures(tmp_path / "pictures"), tmp_path / "shards"
    (pictures / "p03_1.png").write_text("this is no picture")
    (pictures / "p04_0.png").unlink()
    with pytest.raises(
        ValueError, match=r"2 of 64 sources cannot be read, more than max_bad = 1"
    ) as e:
        prepared(pictures, out)
    assert "p03_1.png" in str(e.value)
    assert "p04_0.png" in str(e.value)
    with pytest.raises(ValueError, match="holds no finished shards"):
        ShardSet.open(str(out))
    # A path that gives an error of the system costs itself, too.
    (pictures / "p05_0.png").unlink()
    (pictures / "p05_0.png").mkdir()
    with pytest.raises(ValueError, match=r"3 of 64 sources(.|\n)*p05_0\.png: .*Is a directory"):
        prepared(pictures, out)
    (pictures / "p05_0.png").rmdir()
    (pictures / "p05_0.png").write_bytes((pictures / "p05_1.png").read_bytes())

    tolerant = prepared(pictures, out, PrepareConfig(sources_per_part=16, max_bad=0.05))
    lines = (out / "quarantine.csv").read_text().splitlines()
    assert lines[0] == "source,reason"
    assert [("p03_1.png" in line or "p04_0.png" in line) for line in lines[1:]] == [True, True]
    assert tolerant.index.num_bad == 2
    assert tolerant.index.num_samples == tiny.PATIENTS * tiny.FRAMES - 2
    with pytest.raises(ValueError, match="2 of 64 sources cannot be read, more than max_bad = 1"):
        prepared(pictures, out)
    assert ShardSet.open(str(out)).index == tolerant.index


def test_shards_know_where_they_are_whatever_the_working_folder(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tune gives every trial a working folder of its own.
    monkeypatch.chdir(tmp_path)
    made = prepared(tiny.write_pictures(tmp_path / "pictures"), "shards")
    assert made.path == str(tmp_path / "shards")
    assert ShardSet.open("shards").path == made.path


def test_shards_stay_valid_until_others_replace_them(ray_local: None, tmp_path: Path) -> None:
    pictures, out = tiny.write_pictures(tmp_path / "pictures"), tmp_path / "shards"
    whole = prepared(pictures, out)
    good = (pictures / "p03_1.png").read_bytes()
    (pictures / "p03_1.png").write_text("this is no picture")
    with pytest.raises(ValueError, match="1 of 64 sources cannot be read"):
        prepared(pictures, out)
    still = ShardSet.open(str(out))
    assert still.index == whole.index
    rows = still.samples["row"].to_numpy()
    assert len(take_rows(still, rows, TASK.columns)["image"]) == 64
    (pictures / "p03_1.png").write_bytes(good)
    again = prepared(pictures, out)
    assert again.index.dataset_hash == whole.index.dataset_hash


def test_a_part_that_does_not_fit_lies_in_several_files(ray_local: None, tmp_path: Path) -> None:
    pictures = tiny.write_pictures(tmp_path / "pictures")
    whole = prepared(pictures, tmp_path / "whole")
    bytes_of_one = whole.index.array_bytes // whole.index.num_samples
    few = PrepareConfig(sources_per_part=16, part_mb=5 * bytes_of_one / 1e6)
    cut = prepared(pictures, tmp_path / "cut", few)
    assert len(whole.index.parts) == 4
    assert len(cut.index.parts) == 16  # 5 + 5 + 5 + 1 samples of each part
    assert cut.index.dataset_hash == whole.index.dataset_hash
    pd.testing.assert_frame_equal(cut.samples, whole.samples)
    rows = whole.samples["row"].to_numpy()
    for wanted in (rows, rows[[4, 5, 15, 16, 40, 63]]):
        images = [take_rows(shards, wanted, TASK.columns)["image"] for shards in (cut, whole)]
        np.testing.assert_array_equal(*images)


def test_what_could_not_be_fetched_is_tried_again(tmp_path: Path) -> None:
    pictures = tiny.write_pictures(tmp_path / "pictures", patients=2)
    good, damaged = pictures / "p00_0.png", pictures / "p00_1.png"
    data = good.read_bytes()
    good.unlink()
    good.symlink_to(good)  # too many levels of symbolic links: no word about a picture
    damaged.write_bytes(b"")
    plan = _PartPlan(0, "data/part-00000-x", [0, 1], [str(good), str(damaged)], [None, None])
    write = _WritePart(TASK.decoder, str(tmp_path / "out"), 10**6)

    def result() -> dict[str, Any]:
        return dict(json.loads(write({"plan": json.dumps(vars(plan))})["result"]))

    assert len(result()["bad"]) == 2
    assert result()["files"] == []
    good.unlink()
    good.write_bytes(data)
    [(source, reason)] = result()["bad"]
    assert (source, "empty" in reason) == (str(damaged), True)
    damaged.write_bytes(data)  # prepare would notice; the part alone trusts what it decoded
    assert len(result()["bad"]) == 1


DRIVER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import tiny_training as tiny
from ray_cluster import local_cluster
from cardioray.data.pipeline import PrepareConfig, prepare

def stop(done, total):
    Path(sys.argv[4]).touch()
    time.sleep(600)

with local_cluster(num_cpus=1):
    task = tiny.tiny_run().task
    manifest = task.read_manifest(sys.argv[2], None)
    prepare(task, manifest, sys.argv[3], PrepareConfig(sources_per_part=16), on_progress=stop)
"""


def test_a_killed_call_leaves_nothing_trusted_and_is_taken_up(
    ray_local: None, tmp_path: Path
) -> None:
    pictures = tiny.write_pictures(tmp_path / "pictures")
    whole = prepared(pictures, tmp_path / "whole")
    out, reached = tmp_path / "killed", tmp_path / "reached"
    arguments = [str(Path(__file__).parent), str(pictures), str(out), str(reached)]
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, *arguments])
    try:
        tiny.wait_for(reached.exists)
    finally:
        end_tree(driver.pid)
        driver.wait()
    assert not (out / "shards.json").exists()
    finished = {str(f): f.stat().st_mtime_ns for f in out.glob("data/*.json")}
    assert finished
    again = prepared(pictures, out)
    assert again.index == whole.index
    assert {f: Path(f).stat().st_mtime_ns for f in finished} == finished


def test_read_rows_gives_the_rows_asked_for(ray_local: None, tmp_path: Path) -> None:
    shards = tiny.tiny_shards(tmp_path)
    pictures = [
        (tmp_path / "pictures" / source).read_bytes() for source in shards.samples["source"]
    ]
    wanted = shards.samples["row"].to_numpy()[[0, 3, 20, 21, 63]]
    assert len(np.unique(wanted // ROWS_PER_PART)) == 3
    got = {}
    for batch in read_rows(shards, wanted, TASK.columns).iter_batches(batch_format="numpy"):
        got |= dict(zip(batch["row"], batch["image"], strict=True))
    assert sorted(got) == list(wanted)
    for row, position in zip(wanted, [0, 3, 20, 21, 63], strict=True):
        [sample] = TASK.decoder.decode(pictures[position], None)
        np.testing.assert_array_equal(got[row], sample.arrays["image"])


def test_from_a_bucket_to_a_bucket(ray_local: None, s3: str, tmp_path: Path) -> None:
    pictures = tiny.write_pictures(tmp_path / "pictures", patients=6)
    storage.copy_folder(str(pictures), f"{s3}/pictures")
    manifest = TASK.read_manifest(f"{s3}/pictures", None)
    remote = prepare(TASK, manifest, f"{s3}/shards", SMALL_PARTS)
    local = prepared(pictures, tmp_path / "shards")
    assert remote.index.dataset_hash == local.index.dataset_hash
    rows = remote.samples["row"].to_numpy()[2:5]
    [batch] = read_rows(remote, rows, TASK.columns).iter_batches(batch_format="numpy")
    assert list(batch["row"]) == list(rows)

    client, bucket = boto3.client("s3"), s3.removeprefix("s3://")
    stamp = client.head_object(Bucket=bucket, Key="shards/shards.json")["LastModified"]
    prepare(TASK, manifest, f"{s3}/shards", SMALL_PARTS)
    assert client.head_object(Bucket=bucket, Key="shards/shards.json")["LastModified"] == stamp


def test_phantoms_become_shards(ray_local: None, tmp_path: Path) -> None:
    write_angiograms(str(tmp_path / "phantoms"), 4, seed=1, config=PRESETS.get("clear"))
    shards = prepared(tmp_path / "phantoms", tmp_path / "shards")
    assert shards.samples["patient_id"].nunique() == 4
    assert shards.samples["ffr"].between(0, 1).all()


def test_one_machine_needs_no_shared_storage(ray_local: None) -> None:
    cluster.require_shared("anywhere", shared=False)
    cluster.require_shared("s3://bucket/anywhere", shared=False)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"sources_per_part": 0}, "at least 1"),
        ({"max_bad": 2.0}, "between 0 and 1"),
        ({"part_mb": 0}, "above 0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        PrepareConfig(**settings)
