"""Temporary folders of processes that may be killed: whoever comes next removes what they left.

A training worker is ended by force when its trial is stopped, so no code of its own can tidy up.
Each process holds a lock on its folder, which the system lets go when the process ends, however it
ends. A folder whose lock is free belongs to nobody.
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "cardioray-scratch-"


@functools.cache
def process_folder() -> Path:
    """This process's own temporary folder, made on the first call and removed when it ends.

    Folders that processes of this machine left behind are removed first.
    """
    remove_abandoned()
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        # Held by the open file until this process ends.
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Between making and locking it, another process may have taken it for an abandoned one.
        if folder.exists():
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            return folder
        os.close(lock)


def remove_abandoned() -> None:
    """Remove the folders of processes that are gone; those in use, and other users', stay."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Somebody else may remove it at the same time.
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(lock)
