"""Files on a local disk or in an S3 bucket, behind the same few functions.

A path is a text: a local path or `s3://bucket/key`. Columnar data goes through pyarrow
filesystems (`filesystem`), whole objects through boto3. Both read the usual AWS settings,
`AWS_ENDPOINT_URL` included, so any S3-compatible store works.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import boto3
import pyarrow.fs as pafs
from botocore.exceptions import BotoCoreError, ClientError

_S3 = "s3://"
_MISSING = {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}
_CREATION = threading.Lock()


def is_remote(path: str) -> bool:
    """Whether a path names an object in a bucket rather than a local file."""
    return path.startswith(_S3)


def join(base: str, *parts: str) -> str:
    """Append parts to a local or s3:// path."""
    if is_remote(base):
        return "/".join([base.rstrip("/"), *(part.strip("/") for part in parts)])
    return str(Path(base, *parts))


def absolute(path: str) -> str:
    """The path with `~` and the working folder resolved; s3:// paths are returned as they are."""
    return path if is_remote(path) else str(Path(path).expanduser().resolve())


def filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow filesystem of a path and the path as that filesystem writes it."""
    if not is_remote(path):
        return pafs.LocalFileSystem(), absolute(path)
    endpoint = urlparse(os.environ.get("AWS_ENDPOINT_URL", ""))
    settings: dict[str, Any] = {}
    if endpoint.netloc:
        settings = {"endpoint_override": endpoint.netloc, "scheme": endpoint.scheme}
    if region := os.environ.get("AWS_REGION", os.environ.get("AWS_DEFAULT_REGION")):
        settings["region"] = region
    return pafs.S3FileSystem(**settings), path.removeprefix(_S3).rstrip("/")


def read_bytes(path: str) -> bytes:
    """Read one whole file.

    Raises:
        FileNotFoundError: when there is none.
        PermissionError: when it may not be read.
        OSError: when it cannot be reached.
    """
    if not is_remote(path):
        return Path(path).read_bytes()
    bucket, key = _split(path)
    with _as_os_errors(path):
        body: bytes = _client().get_object(Bucket=bucket, Key=key)["Body"].read()
    return body


def write_bytes(path: str, data: bytes | memoryview) -> None:
    """Write one whole file; a reader sees the old content or the new, never a part."""
    if is_remote(path):
        bucket, key = _split(path)
        with _as_os_errors(path):
            _client().put_object(Bucket=bucket, Key=key, Body=bytes(data))
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        Path(temporary).chmod(0o644)
        os.replace(temporary, target)  # noqa: PTH105 (atomic on one filesystem)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


class ChangedMeanwhile(OSError):  # noqa: N818 (says what happened)
    """Someone else wrote the file between our reading and our writing it."""


def read_versioned(path: str) -> tuple[bytes, str]:
    """Read one whole file, and a text that changes with its content, for `write_if_unchanged`.

    Raises:
        FileNotFoundError: when there is none.
    """
    if not is_remote(path):
        data = Path(path).read_bytes()
        return data, hashlib.sha256(data).hexdigest()
    bucket, key = _split(path)
    with _as_os_errors(path):
        answer = _client().get_object(Bucket=bucket, Key=key)
        return answer["Body"].read(), str(answer["ETag"])


def write_if_unchanged(path: str, data: bytes, version: str | None) -> None:
    """Replace a file unless someone else did so first.

    Args:
        path: the file.
        data: its new content.
        version: what `read_versioned` gave; None where the file was not there.

    Raises:
        ChangedMeanwhile: when the file is not as it was; nothing was written.
    """
    if is_remote(path):
        _put_if_unchanged(path, data, version)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        present = read_versioned(path)[1] if target.exists() else None
        if present != version:
            raise ChangedMeanwhile(f"{path} was changed by someone else; look at it and try again.")
        write_bytes(path, data)


def _put_if_unchanged(path: str, data: bytes, version: str | None) -> None:
    bucket, key = _split(path)
    condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
    with _as_os_errors(path):
        try:
            _client().put_object(Bucket=bucket, Key=key, Body=data, **condition)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            # A deleted object answers a condition on its content with NoSuchKey.
            changed = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409", *_MISSING}
            if code not in changed:
                raise
            text = f"{path} was changed by someone else; look at it and try again."
            raise ChangedMeanwhile(text) from error


def exists(path: str) -> bool:
    """Whether a file, a folder, or any object below an s3:// prefix is there."""
    if not is_remote(path):
        return Path(path).exists()
    bucket, key = _split(path)
    try:
        with _as_os_errors(path):
            _client().head_object(Bucket=bucket, Key=key)
    except FileNotFoundError:
        return next(iter(_walk(path)), None) is not None
    return True


def list_files(path: str, suffixes: Sequence[str] = ()) -> list[str]:
    """All files below a folder or prefix, sorted, as full paths.

    Hidden files and folders (a leading dot) are left out.

    Args:
        path: folder or prefix.
        suffixes: endings to keep, any case, such as (".png", ".dcm"); empty keeps all.

    Raises:
        FileNotFoundError: when a local folder does not exist.
    """
    endings = tuple(suffix.lower() for suffix in suffixes)
    return sorted(
        full
        for full, relative in _walk(path)
        if not any(piece.startswith(".") for piece in relative.split("/"))
        and (not endings or relative.lower().endswith(endings))
    )


def fingerprints(paths: Sequence[str]) -> list[str]:
    """A text per file that changes when the file does, without reading it.

    Local files: size and time of change; objects in a bucket: their entity tag. A file that does
    not exist has the fingerprint "missing", one that may not be looked at "denied", and a local one
    that gives another error "unreadable".
    """
    with ThreadPoolExecutor(max_workers=16) as pool:
        return list(pool.map(_fingerprint, paths))


def _fingerprint(path: str) -> str:
    try:
        if is_remote(path):
            bucket, key = _split(path)
            with _as_os_errors(path):
                return str(_client().head_object(Bucket=bucket, Key=key)["ETag"])
        status = Path(path).stat()
    except FileNotFoundError:
        return "missing"
    except PermissionError:
        return "denied"
    except OSError:
        if is_remote(path):  # nothing else would be reached either
            raise
        return "unreadable"
    return f"{status.st_size}:{status.st_mtime_ns}"


def remove(path: str) -> None:
    """Delete a file or everything below a folder or prefix; nothing happens when it is absent."""
    if not is_remote(path):
        target = Path(path)
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
        return
    below = [full for full, _ in _walk(path)]
    for full in [*below, path] if _split(path)[1] else below:
        bucket, key = _split(full)
        with _as_os_errors(full):
            _client().delete_object(Bucket=bucket, Key=key)


def copy_folder(source: str, target: str) -> None:
    """Copy every file below a folder or prefix to another one, local or remote either way."""
    for file in list_files(source):
        relative = file[len(source.rstrip("/")) :].lstrip("/")
        write_bytes(join(target, relative), read_bytes(file))


def _walk(path: str) -> Iterator[tuple[str, str]]:
    """Every file below a folder or prefix: full path, and path relative to it with "/"."""
    if is_remote(path):
        bucket, prefix = _split(path)
        prefix = f"{prefix.rstrip('/')}/" if prefix else ""
        with _as_os_errors(path):
            listing = _client().get_paginator("list_objects_v2")
            for page in listing.paginate(Bucket=bucket, Prefix=prefix):
                for item in page.get("Contents", []):
                    yield f"{_S3}{bucket}/{item['Key']}", item["Key"][len(prefix) :]
        return
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"{path} is no folder.")
    for base, _, names in os.walk(root):
        for name in names:
            file = Path(base, name)
            yield str(file), file.relative_to(root).as_posix()


def _split(path: str) -> tuple[str, str]:
    bucket, _, key = path.removeprefix(_S3).partition("/")
    return bucket, key


def _client() -> Any:
    # boto3 clients are not to be shared over a fork; one a process and endpoint is enough.
    # Clients are for many threads, but boto3's session, which makes them, is for one.
    with _CREATION:
        return _cached_client(os.getpid(), os.environ.get("AWS_ENDPOINT_URL"))


@functools.lru_cache(maxsize=4)
def _cached_client(process: int, endpoint: str | None) -> Any:
    return boto3.client("s3", endpoint_url=endpoint)


@contextlib.contextmanager
def _as_os_errors(path: str) -> Iterator[None]:
    """Turn what S3 and the way to it answer into the errors that a local file gives."""
    try:
        yield
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in _MISSING:
            raise FileNotFoundError(f"{path} does not exist.") from error
        if code in {"403", "AccessDenied"}:
            text = f"{path}: access denied; check the AWS credentials and the bucket."
            raise PermissionError(text) from error
        raise OSError(f"{path}: {error}") from error
    except BotoCoreError as error:  # no connection, no credentials
        raise OSError(f"{path}: {error}") from error
