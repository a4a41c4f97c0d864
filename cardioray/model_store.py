"""Bundles in a folder or bucket, which of them is in production, and those of a comparison.

    <store>/<task>/<name>-<identity>/   a bundle
    <store>/<task>/production.json      which one is in production, and which ones were

A bundle is copied and verified before the pointer names it, and the pointer is replaced as a
whole, so that a reader always finds a complete model. Two people who promote at the same time do
not overwrite each other: the second is told.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cardioray import storage
from cardioray.bundle import (
    METADATA,
    SUMS,
    BundleError,
    copy_bundle,
    dump_json,
    now,
    open_bundle,
)
from cardioray.registry import unknown_name

POINTER = "production.json"
LEADERBOARD = "leaderboard.json"
FORMAT_VERSION = 1


def ranked_bundles(comparison: str) -> list[str]:
    """Paths of the bundles that a comparison made, the winner's first.

    The leaderboard names them relative to itself, so that the folder can be moved or copied.

    Args:
        comparison: folder or prefix with leaderboard.json.

    Raises:
        FileNotFoundError: when there is no leaderboard.
    """
    record = json.loads(storage.read_bytes(storage.join(comparison, LEADERBOARD)))
    named = [row["bundle"] for row in record["rows"] if row["bundle"]]
    return [storage.join(comparison, name) for name in named]


def bundle_place(path: str) -> str:
    """Where the bundle is that a path means: there, or for a comparison its winner's place.

    Raises:
        ValueError: when the path is a comparison without a bundle.
    """
    if not storage.exists(storage.join(path, LEADERBOARD)):
        return path
    places = ranked_bundles(path)
    if not places:
        raise ValueError(f"{path} is a comparison without a bundle; run it again.")
    return places[0]


@dataclass(frozen=True)
class Promotion:
    """One change of the production model.

    Attributes:
        folder: name of the bundle's folder, `<name>-<identity>`.
        at: when, ISO 8601 in UTC.
        action: "promote" or "rollback".
    """

    folder: str
    at: str
    action: str


@dataclass(frozen=True)
class Production:
    """The content of production.json.

    Attributes:
        folder: name of the folder of the bundle in production.
        stack: folders that were promoted before it and not rolled back, the oldest first.
        history: every change, the oldest first.
    """

    folder: str
    stack: tuple[str, ...] = ()
    history: tuple[Promotion, ...] = ()
    format_version: int = field(default=FORMAT_VERSION, kw_only=True)


@dataclass(frozen=True)
class StoredModel:
    """A bundle of a store.

    Attributes:
        path: its folder or prefix.
        task: its task.
        name: its name.
        folder: last part of the path.
        created: when it was made, as its metadata says.
        in_production: whether production.json names it.
    """

    path: str
    task: str
    name: str
    folder: str
    created: str
    in_production: bool


def list_models(store: str, task: str | None = None) -> list[StoredModel]:
    """The complete bundles of a store, by task and then by age.

    Bundles inside a bundle are a part of it: the networks of one that fuses views.

    Args:
        store: folder or s3:// prefix.
        task: only those of one task.

    Raises:
        FileNotFoundError: when the folder does not exist.
    """
    models = []
    pointers: dict[str, Production | None] = {}
    folders = {file[: -len(SUMS)].rstrip("/") for file in storage.list_files(store, [SUMS])}
    for folder in sorted(folders):
        if any(above in folders for above in _above(folder)):
            continue
        metadata = json.loads(storage.read_bytes(storage.join(folder, METADATA)))
        of_task = str(metadata["task"])
        if task is not None and of_task != task:
            continue
        if of_task not in pointers:
            pointers[of_task] = production(store, of_task)
        pointer = pointers[of_task]
        name = folder.rsplit("/", 1)[-1]
        models.append(
            StoredModel(
                path=folder,
                task=of_task,
                name=str(metadata["name"]),
                folder=name,
                created=str(metadata["created"]),
                in_production=pointer is not None and pointer.folder == name,
            )
        )
    return sorted(models, key=lambda model: (model.task, model.created, model.folder))


def _above(folder: str) -> Iterator[str]:
    """The folders that a folder lies in, the nearest first."""
    while "/" in folder:
        folder = folder.rsplit("/", 1)[0]
        yield folder


def production(store: str, task: str) -> Production | None:
    """Which bundle of a task is in production; None when none is.

    Raises:
        ValueError: when another version of CardioRay wrote the pointer.
    """
    return _read(store, task)[0]


def production_path(store: str, task: str) -> str:
    """Path of the bundle of a task that is in production.

    Raises:
        ValueError: when none is; says how to promote one.
    """
    pointer = production(store, task)
    if pointer is None:
        raise ValueError(
            f"{store} has no production model of task {task!r}. Promote one with: "
            f"cardioray models promote {store} BUNDLE"
        )
    return storage.join(store, task, pointer.folder)


def promote(store: str, bundle: str) -> StoredModel:
    """Put a bundle into production.

    Args:
        store: folder or s3:// prefix.
        bundle: path of a bundle, which is copied into the store; or the folder name of one that is
            in the store, `<name>-<identity>`.

    Raises:
        BundleError: when the bundle is damaged; the model in production stays.
        ValueError: when there is no such bundle.
        ChangedMeanwhile: when someone else promoted at the same moment.
    """
    model = _find(store, bundle) if _is_folder_name(bundle) else _add(store, bundle)
    pointer, version = _read(store, model.task)
    if pointer is not None and pointer.folder == model.folder:
        return model
    stack = (*pointer.stack, pointer.folder) if pointer else ()
    _write(store, model.task, model.folder, stack, "promote", pointer, version)
    return model


def rollback(store: str, task: str) -> Production:
    """Put the bundle that was in production before the present one back.

    Raises:
        ValueError: when there is none before it.
        ChangedMeanwhile: when someone else changed the pointer at the same moment.
    """
    pointer, version = _read(store, task)
    if pointer is None or not pointer.stack:
        raise ValueError(f"{store}: task {task!r} has no earlier production model to go back to.")
    *stack, folder = pointer.stack
    _verify(storage.join(store, task, folder))
    return _write(store, task, folder, tuple(stack), "rollback", pointer, version)


def _is_folder_name(bundle: str) -> bool:
    return "/" not in bundle and not Path(bundle).is_dir()


def _find(store: str, folder: str) -> StoredModel:
    models = {model.folder: model for model in list_models(store)}
    if folder not in models:
        raise unknown_name("bundle", folder, models)
    _verify(models[folder].path)
    return models[folder]


def _add(store: str, path: str) -> StoredModel:
    """Copy a bundle into the store and verify the copy; a damaged earlier copy is replaced."""
    with tempfile.TemporaryDirectory(prefix="cardioray-store-") as scratch:
        bundle = open_bundle(bundle_place(path), Path(scratch))
        folder = f"{bundle.name}-{bundle.identity}"
        target = storage.join(store, bundle.task, folder)
        if not _is_intact(target, bundle.identity):
            copy_bundle(str(bundle.path), target)
            _verify(target)
    return StoredModel(
        path=target,
        task=bundle.task,
        name=bundle.name,
        folder=folder,
        created=str(bundle.metadata["created"]),
        in_production=False,
    )


def _is_intact(target: str, identity: str) -> bool:
    if not storage.exists(storage.join(target, SUMS)):
        return False
    try:
        return _verify(target) == identity
    except BundleError:
        return False


def _verify(path: str) -> str:
    """Read a bundle whole, from a bucket into a folder that goes again; gives its identity.

    Raises:
        BundleError: when it is damaged.
    """
    with tempfile.TemporaryDirectory(prefix="cardioray-store-") as scratch:
        return open_bundle(path, Path(scratch)).identity


def _read(store: str, task: str) -> tuple[Production | None, str | None]:
    file = storage.join(store, task, POINTER)
    try:
        data, version = storage.read_versioned(file)
    except FileNotFoundError:
        return None, None
    values: dict[str, Any] = json.loads(data)
    if values.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{file} has format {values.get('format_version')}, this version of CardioRay reads "
            f"{FORMAT_VERSION}."
        )
    history = tuple(Promotion(**entry) for entry in values["history"])
    pointer = Production(values["folder"], tuple(values["stack"]), history)
    return pointer, version


def _write(
    store: str,
    task: str,
    folder: str,
    stack: tuple[str, ...],
    action: str,
    before: Production | None,
    version: str | None,
) -> Production:
    history = before.history if before else ()
    pointer = Production(folder, stack, (*history, Promotion(folder, now(), action)))
    file = storage.join(store, task, POINTER)
    storage.write_if_unchanged(file, dump_json(asdict(pointer)), version)
    return pointer
