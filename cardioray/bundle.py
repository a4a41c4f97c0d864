"""A bundle: a trained model as a directory that explains itself.

This module reads, writes and verifies the files; it knows nothing of what they mean. Everything
is JSON, YAML, safetensors, OpenVINO IR, PNG or Markdown; nothing in a bundle can run code.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from cardioray import storage
from cardioray.scratch import process_folder

FORMAT_VERSION = 1
SUMS = "SHA256SUMS"
METADATA = "metadata.json"
CONFIG = "config.yaml"
MODEL = "model.safetensors"
CARD = "README.md"
# Folder of the bundles that a bundle is composed of, where it has no network of its own.
MEMBERS = "members"

# MONAI's bundle specification names the first block; the rest is CardioRay's.
REQUIRED_KEYS = (
    "version",
    "task",
    "description",
    "authors",
    "copyright",
    "pytorch_version",
    "numpy_version",
    "network_data_format",
    "intended_use",
    "cardioray_version",
    "cardioray_bundle_format",
    "name",
    "created",
    "dataset_hash",
    "git_revision",
    "library_versions",
    "warnings",
)


class BundleError(ValueError):
    """A bundle that cannot be trusted or read; the text says which file and why."""


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on the local disk.

    Attributes:
        path: the directory.
        place: where it was opened from: that directory, or an s3:// prefix.
        metadata: the content of metadata.json.
    """

    path: Path
    place: str
    metadata: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The model's name, as answers and `?model=` give it."""
        return str(self.metadata["name"])

    @property
    def task(self) -> str:
        """Name of the task the model answers."""
        return str(self.metadata["task"])

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the bundles it is composed of, in the folder `members`; () for one network."""
        return tuple(self.metadata.get(MEMBERS, ()))

    def member(self, name: str) -> Bundle:
        """One of them, verified."""
        assert name in self.members
        return open_bundle(str(self.path / MEMBERS / name))

    @property
    def identity(self) -> str:
        """A short hash over every file of the bundle."""
        return hashlib.sha256((self.path / SUMS).read_bytes()).hexdigest()[:12]

    def config(self) -> dict[str, Any]:
        """The content of config.yaml."""
        loaded = yaml.safe_load((self.path / CONFIG).read_text())
        assert isinstance(loaded, dict)
        return loaded

    def json(self, name: str) -> Any:
        """The content of one of the JSON files.

        Raises:
            BundleError: when the bundle has no such file.
        """
        file = self.path / name
        if not file.is_file():
            raise BundleError(f"{self.path}: {name} is missing; the bundle is not complete.")
        return json.loads(file.read_text())


def dump_json(value: Any) -> bytes:
    """JSON as bundles write it: indented, UTF-8, with null for what is not a finite number."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def copy_bundle(source: str, target: str) -> None:
    """Copy a sealed bundle, its sums last: a folder that has them is complete.

    Args:
        source: the bundle, local or s3://.
        target: where to; what is there is removed first.
    """
    storage.remove(target)
    files = storage.list_files(source)
    own = storage.join(source, SUMS)
    for file in sorted(files, key=lambda file: file == own):
        relative = file[len(source) :].lstrip("/")
        storage.write_bytes(storage.join(target, relative), storage.read_bytes(file))


def seal(folder: Path) -> Bundle:
    """Write SHA256SUMS over every file of a finished bundle directory, and verify it.

    Raises:
        BundleError: when a required file or metadata key is missing.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / SUMS)
    lines = [f"{_sha256(p)}  {p.relative_to(folder).as_posix()}\n" for p in files]
    storage.write_bytes(str(folder / SUMS), "".join(lines).encode())
    return open_bundle(str(folder))


def open_bundle(path: str, cache: Path | None = None) -> Bundle:
    """Verify a bundle and open it; one in a bucket is copied to a local folder first.

    Args:
        path: local directory or s3:// prefix.
        cache: where to keep the copy of a remote bundle; by default until this process ends.

    Raises:
        BundleError: when a file is missing, added or changed, a key is missing, or the format is
            newer than this version of CardioRay reads.
    """
    if storage.is_remote(path):
        folder = Path(tempfile.mkdtemp(prefix="cardioray-bundle-", dir=cache or process_folder()))
        storage.copy_folder(path, str(folder))
    else:
        folder = Path(path).expanduser()
    if not (folder / METADATA).is_file():
        raise BundleError(f"{path} is no bundle: it has no {METADATA}.")
    _verify_sums(folder, path)
    metadata = json.loads((folder / METADATA).read_text())
    missing = [key for key in REQUIRED_KEYS if key not in metadata]
    if missing:
        raise BundleError(f"{path}: {METADATA} lacks {', '.join(missing)}.")
    if metadata["cardioray_bundle_format"] != FORMAT_VERSION:
        raise BundleError(
            f"{path} has bundle format {metadata['cardioray_bundle_format']}, this version of "
            f"CardioRay reads format {FORMAT_VERSION}; install the version that wrote it "
            f"({metadata['cardioray_version']}) or export the model again."
        )
    needed = MEMBERS if metadata.get(MEMBERS) else MODEL
    for name in (CONFIG, needed, CARD):
        if not (folder / name).exists():
            raise BundleError(f"{path}: {name} is missing; the bundle is not complete.")
    return Bundle(path=folder, place=path, metadata=metadata)


def now() -> str:
    """The present time as bundles write it: ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _verify_sums(folder: Path, shown: str) -> None:
    sums = folder / SUMS
    if not sums.is_file():
        raise BundleError(f"{shown}: {SUMS} is missing; the bundle was not finished.")
    expected = {}
    for line in sums.read_text().splitlines():
        digest, _, name = line.partition("  ")
        expected[name] = digest
    present = {
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p != sums
    }
    for name in sorted(expected.keys() | present):
        if name not in present:
            raise BundleError(f"{shown}: {name} is missing, though {SUMS} lists it.")
        if name not in expected:
            raise BundleError(f"{shown}: {name} is not listed in {SUMS}; remove it.")
        if _sha256(folder / name) != expected[name]:
            raise BundleError(f"{shown}: {name} was changed after the bundle was sealed.")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
