"""One behaviour on a local disk and on an S3 server."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cardioray import storage


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path)
    bucket: str = request.getfixturevalue("s3")
    return f"{bucket}/some/prefix"


def test_bytes_come_back_as_they_were_written(root: str) -> None:
    path = storage.join(root, "runs", "a", "metrics.json")
    data = bytes(range(256)) * 100
    storage.write_bytes(path, b"old")
    storage.write_bytes(path, data)
    assert storage.read_bytes(path) == data
    assert storage.list_files(root) == [path]


def test_missing_file_is_a_file_not_found_error(root: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        storage.read_bytes(storage.join(root, "nothing.json"))


def test_a_bucket_out_of_reach_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # the port of "discard"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for call in (storage.read_bytes, storage.exists, storage.list_files, storage.remove):
        with pytest.raises(OSError, match=r"s3://bucket/key.*127\.0\.0\.1:9"):
            call("s3://bucket/key")
    with pytest.raises(OSError, match="Could not connect"):
        storage.write_bytes("s3://bucket/key", b"")


class Forbidding(BaseHTTPRequestHandler):
    """An S3 server that lets nobody in."""

    def do_GET(self) -> None:
        self.send_response(403)
        self.end_headers()

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


def test_a_file_that_may_not_be_read(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Forbidding) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        assert storage.fingerprints([f"{s3}/key"]) == ["denied"]
        for call in (storage.exists, storage.read_bytes):
            with pytest.raises(PermissionError, match="check the AWS credentials"):
                call(f"{s3}/key")
        server.shutdown()


def test_a_link_that_leads_nowhere_has_a_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    paths = [str(tmp_path / name) for name in ("loop", "dangling")]
    assert storage.fingerprints(paths) == ["unreadable", "missing"]


def test_the_first_client_is_made_by_one_thread_at_a_time(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(f"{s3}/key", b"x")
    storage._cached_client.cache_clear()
    made = boto3.client
    under_way, most = 0, 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        time.sleep(0.05)
        client = made(*args, **kwargs)
        under_way -= 1
        return client

    monkeypatch.setattr(boto3, "client", counted)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(storage.read_bytes, [f"{s3}/key"] * 8)) == {b"x"}
    assert most == 1


def test_exists_knows_files_and_folders_but_not_beginnings_of_names(root: str) -> None:
    storage.write_bytes(storage.join(root, "run-12", "log.csv"), b"x")
    assert storage.exists(storage.join(root, "run-12", "log.csv"))
    assert storage.exists(storage.join(root, "run-12"))
    assert not storage.exists(storage.join(root, "run-1"))
    assert not storage.exists(storage.join(root, "run-12", "log"))


def test_listing_is_sorted_recursive_and_leaves_hidden_files_out(root: str) -> None:
    for name in ("b/2.PNG", "b/1.png", "a.dcm", ".hidden.png", "b/.cache/3.png", "c.txt"):
        storage.write_bytes(storage.join(root, name), b"x")
    everything = [storage.join(root, name) for name in ("a.dcm", "b/1.png", "b/2.PNG", "c.txt")]
    assert storage.list_files(root) == sorted(everything)
    pictures = [storage.join(root, name) for name in ("b/1.png", "b/2.PNG")]
    assert storage.list_files(root, (".png",)) == pictures


def test_listing_does_not_take_a_sibling_that_starts_alike(root: str) -> None:
    storage.write_bytes(storage.join(root, "fold1", "x"), b"1")
    storage.write_bytes(storage.join(root, "fold10", "x"), b"10")
    assert storage.list_files(storage.join(root, "fold1")) == [storage.join(root, "fold1", "x")]


def test_remove_takes_a_file_or_a_folder_and_nothing_beside_it(root: str) -> None:
    for name in ("old/a", "old/sub/b", "older/c", "d"):
        storage.write_bytes(storage.join(root, name), b"x")
    storage.remove(storage.join(root, "old"))
    storage.remove(storage.join(root, "d"))
    storage.remove(storage.join(root, "never-there"))
    assert storage.list_files(root) == [storage.join(root, "older", "c")]


def test_folders_are_copied_between_disk_and_bucket(root: str, tmp_path: Path, s3: str) -> None:
    source = storage.join(root, "bundle")
    storage.write_bytes(storage.join(source, "metadata.json"), b"{}")
    storage.write_bytes(storage.join(source, "plots", "roc.png"), b"png")
    for target in (storage.join(s3, "copy"), str(tmp_path / "copy")):
        storage.copy_folder(source, target)
        assert storage.read_bytes(storage.join(target, "plots", "roc.png")) == b"png"
        assert len(storage.list_files(target)) == 2


def test_parquet_goes_through_the_filesystem_of_the_path(root: str) -> None:
    table = pa.table({"pixels": np.arange(12, dtype=np.uint8), "y": np.linspace(0, 1, 12)})
    filesystem, path = storage.filesystem(storage.join(root, "shards", "part-0.parquet"))
    filesystem.create_dir(path.rpartition("/")[0], recursive=True)
    pq.write_table(table, path, filesystem=filesystem)
    assert storage.exists(storage.join(root, "shards", "part-0.parquet"))
    assert pq.read_table(path, filesystem=filesystem).equals(table)


def test_more_objects_than_one_answer_of_s3_holds(s3: str) -> None:
    for number in range(1003):
        storage.write_bytes(f"{s3}/frames/{number:04d}.png", b"")
    assert len(storage.list_files(f"{s3}/frames")) == 1003


def test_join_and_absolute() -> None:
    assert storage.join("s3://bucket/runs/", "a", "b.json") == "s3://bucket/runs/a/b.json"
    assert storage.join("runs", "a", "b.json") == str(Path("runs", "a", "b.json"))
    assert storage.absolute("s3://bucket/x") == "s3://bucket/x"
    assert storage.absolute("runs") == str(Path.cwd() / "runs")
    assert storage.is_remote("s3://bucket/x")
    assert not storage.is_remote("/data/s3:/x")


def test_missing_local_folder_is_no_empty_list(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        storage.list_files(str(tmp_path / "nowhere"))


def test_failed_local_write_keeps_the_old_content_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    storage.write_bytes(str(path), b"old")
    with pytest.raises(TypeError):
        storage.write_bytes(str(path), "text is not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_bucket_is_named(s3: str) -> None:
    with pytest.raises(OSError, match="no-such-bucket"):
        storage.read_bytes("s3://no-such-bucket/file")
