"""What several test processes need and takes long to make: the first one makes it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def _root() -> Path:
    """A folder of this run of the tests, whichever of its processes asks."""
    return Path(tempfile.gettempdir()) / f"cardioray-shared-{os.environ['CARDIORAY_TEST_RUN']}"


def made_once(name: str, make: Callable[[Path], Path]) -> tuple[Path, Path]:
    """A folder that one process has filled, and what `make` gave for it.

    Args:
        name: of what is made.
        make: fills the folder, and gives a path in it.
    """
    folder = _root() / name
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "made.txt"
    with FileLock(_root() / f"{name}.lock"):
        if not done.exists():
            done.write_text(str(make(folder)))
    return folder, Path(done.read_text())


def remove_shared() -> None:
    """End of the run: take the folder away."""
    shutil.rmtree(_root(), ignore_errors=True)
