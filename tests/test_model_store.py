"""The model store, in a folder and in a bucket of a real S3 server."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from cardioray import storage
from cardioray.bundle import (
    REQUIRED_KEYS,
    SUMS,
    BundleError,
    copy_bundle,
    dump_json,
    open_bundle,
    seal,
)
from cardioray.model_store import (
    bundle_place,
    list_models,
    production,
    production_path,
    promote,
    ranked_bundles,
    rollback,
)
from cardioray.serve.deploy import application_settings, write_serve_config
from cardioray.serve.serve_file import check_serve_file
from cardioray.storage import ChangedMeanwhile


def make_bundle(folder: Path, name: str, task: str = "ffr", created: str = "2026-01-01") -> str:
    folder.mkdir(parents=True)
    values = dict.fromkeys(REQUIRED_KEYS, "x") | {
        "name": name,
        "task": task,
        "created": created,
        "cardioray_bundle_format": 1,
        "warnings": [],
    }
    (folder / "metadata.json").write_bytes(dump_json(values))
    for file in ("config.yaml", "model.safetensors", "README.md"):
        (folder / file).write_text(name)
    seal(folder)
    return str(folder)


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "store")
    return f"{request.getfixturevalue('s3')}/models"


def test_promotions_and_rollbacks(store: str, tmp_path: Path) -> None:
    first = make_bundle(tmp_path / "a", "first", created="2026-01-01")
    second = make_bundle(tmp_path / "b", "second", created="2026-01-02")
    assert production(store, "ffr") is None
    stored = promote(store, first)
    assert stored.folder == f"first-{open_bundle(first).identity}"
    assert production_path(store, "ffr") == stored.path
    assert open_bundle(stored.path).name == "first"
    promote(store, second)
    assert [(m.name, m.in_production) for m in list_models(store)] == [
        ("first", False),
        ("second", True),
    ]
    back = rollback(store, "ffr")
    assert back.folder == stored.folder
    assert [p.action for p in back.history] == ["promote", "promote", "rollback"]
    with pytest.raises(ValueError, match="no earlier production model"):
        rollback(store, "ffr")


def test_a_stored_bundle_is_promoted_by_its_name(store: str, tmp_path: Path) -> None:
    first = promote(store, make_bundle(tmp_path / "a", "first"))
    promote(store, make_bundle(tmp_path / "b", "second"))
    promote(store, first.folder)
    pointer = production(store, "ffr")
    assert pointer is not None
    assert pointer.folder == first.folder
    with pytest.raises(ValueError, match=rf"Did you mean '{first.folder}'\?"):
        promote(store, f"{first.folder}x")


def test_networks_of_a_fused_bundle_are_no_models(store: str, tmp_path: Path) -> None:
    fused = tmp_path / "fused"
    make_bundle(fused, "fused", task="echo-cmr")
    make_bundle(fused / "members" / "A4C", "A4C", task="echo-cmr")
    seal(fused)
    promoted = promote(store, str(fused))
    assert [model.folder for model in list_models(store)] == [promoted.folder]
    with pytest.raises(ValueError, match="A4C"):
        promote(store, "A4C")


def test_promoting_what_is_in_production_changes_nothing(store: str, tmp_path: Path) -> None:
    first = make_bundle(tmp_path / "a", "first")
    promote(store, first)
    before = production(store, "ffr")
    promote(store, first)
    assert production(store, "ffr") == before


def test_tasks_have_productions_of_their_own(store: str, tmp_path: Path) -> None:
    promote(store, make_bundle(tmp_path / "a", "first"))
    promote(store, make_bundle(tmp_path / "b", "other", task="image"))
    assert {m.task: m.in_production for m in list_models(store)} == {"ffr": True, "image": True}
    assert [m.name for m in list_models(store, "image")] == ["other"]
    with pytest.raises(ValueError, match="no production model of task 'ecg'.*models promote"):
        production_path(store, "ecg")


def test_a_damaged_bundle_is_not_promoted(store: str, tmp_path: Path) -> None:
    promote(store, make_bundle(tmp_path / "a", "first"))
    damaged = make_bundle(tmp_path / "b", "second")
    Path(damaged, "model.safetensors").write_text("changed")
    with pytest.raises(BundleError, match="changed after the bundle was sealed"):
        promote(store, damaged)
    assert production_path(store, "ffr").rsplit("/", 1)[-1].startswith("first-")


def test_a_half_copied_bundle_is_copied_again(store: str, tmp_path: Path) -> None:
    source = make_bundle(tmp_path / "a", "first")
    target = storage.join(store, "ffr", f"first-{open_bundle(source).identity}")
    storage.write_bytes(storage.join(target, "metadata.json"), b"{")
    assert list_models(store) == []  # without its sums a folder is no bundle
    promote(store, source)
    assert open_bundle(target).name == "first"


def test_the_second_of_two_writers_is_told(store: str) -> None:
    file = storage.join(store, "pointer.json")
    storage.write_if_unchanged(file, b"one", None)
    data, version = storage.read_versioned(file)
    assert data == b"one"
    with pytest.raises(ChangedMeanwhile):
        storage.write_if_unchanged(file, b"late first", None)
    storage.write_if_unchanged(file, b"two", version)
    with pytest.raises(ChangedMeanwhile):
        storage.write_if_unchanged(file, b"three", version)
    assert storage.read_bytes(file) == b"two"
    storage.remove(file)
    with pytest.raises(ChangedMeanwhile):
        storage.write_if_unchanged(file, b"four", version)


@pytest.mark.parametrize("written", range(5))
def test_a_copy_that_was_killed_has_no_sums(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    source = make_bundle(tmp_path / "a", "first")
    target = f"{store}/copy"
    write, files = storage.write_bytes, []

    def killed(path: str, data: bytes) -> None:
        if len(files) == written:
            raise KeyboardInterrupt
        files.append(path)
        write(path, data)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(storage, "write_bytes", killed)
        copy_bundle(source, target)
    assert storage.exists(f"{target}/{SUMS}") == (written == 5)
    copy_bundle(source, target)
    assert open_bundle(target).name == "first"


def make_comparison(folder: str, tmp_path: Path) -> str:
    """What deploying reads of a finished comparison: the leaderboard, and two bundles."""
    rows: list[dict[str, Any]] = [{"name": "second", "bundle": None}]
    for name in ("first", "third"):
        storage.copy_folder(make_bundle(tmp_path / name, name), f"{folder}/bundles/{name}")
        rows.append({"name": name, "bundle": f"bundles/{name}"})
    storage.write_bytes(f"{folder}/leaderboard.json", json.dumps({"rows": rows}).encode())
    return folder


def test_bundles_of_a_comparison_are_found_wherever_it_lies(store: str, tmp_path: Path) -> None:
    comparison = make_comparison(store, tmp_path)
    assert ranked_bundles(comparison) == [f"{store}/bundles/first", f"{store}/bundles/third"]
    moved = str(tmp_path / "elsewhere")
    storage.copy_folder(comparison, moved)
    storage.remove(comparison)
    assert [open_bundle(path).name for path in ranked_bundles(moved)] == ["first", "third"]
    assert bundle_place(moved) == f"{moved}/bundles/first"
    assert bundle_place(f"{moved}/bundles/third") == f"{moved}/bundles/third"
    assert promote(f"{tmp_path}/store", moved).name == "first"


def test_a_comparison_is_written_as_a_serve_config(store: str, tmp_path: Path) -> None:
    comparison = make_comparison(store, tmp_path)
    file = storage.join(comparison, "serve.yaml")
    write_serve_config(application_settings(ranked_bundles(comparison)), file)
    args = check_serve_file(file).applications[0].args
    assert args == {"task": "ffr", "bundles": ranked_bundles(comparison)}
    assert [each.bundles for each in application_settings([comparison])] == [
        (f"{store}/bundles/first",)
    ]


def test_a_comparison_without_a_bundle_is_no_bundle(store: str) -> None:
    row = {"name": "first", "bundle": None}
    storage.write_bytes(f"{store}/leaderboard.json", json.dumps({"rows": [row]}).encode())
    with pytest.raises(ValueError, match="a comparison without a bundle"):
        bundle_place(store)


def test_copies_from_a_bucket_do_not_stay(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (make_bundle(tmp_path / name, name) for name in ("first", "second"))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    storage.copy_folder(first, f"{s3}/first")
    promote(f"{s3}/store", f"{s3}/first")
    promote(f"{s3}/store", second)
    rollback(f"{s3}/store", "ffr")
    assert list(temporary.iterdir()) == []
