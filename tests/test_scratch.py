"""Temporary folders of processes: removed when the process ends, or by whoever comes next."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cardioray import scratch

HOLDER = """
import sys, time
from cardioray.scratch import process_folder
folder = process_folder()
(folder / "tensors").write_bytes(b"x")
print(folder, flush=True)
if sys.argv[1] == "stay":
    time.sleep(600)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def holder(folder: Path, what: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, what],
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_process_that_ends_by_itself_leaves_nothing(temporary: Path) -> None:
    process = holder(temporary, "go")
    name, _ = process.communicate(timeout=60)
    assert Path(name.strip()).parent == temporary
    assert list(temporary.iterdir()) == []


def test_folders_of_killed_processes_go_and_those_in_use_stay(temporary: Path) -> None:
    killed, alive = holder(temporary, "stay"), holder(temporary, "stay")
    assert killed.stdout is not None
    assert alive.stdout is not None
    try:
        left, used = Path(killed.stdout.readline().strip()), Path(alive.stdout.readline().strip())
        other = temporary / "somebody-elses"
        other.mkdir()
        scratch.remove_abandoned()
        assert left.exists()
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        scratch.remove_abandoned()
        assert not left.exists()
        assert (used / "tensors").exists()
        assert other.exists()
    finally:
        for process in (killed, alive):
            process.kill()
            process.communicate()
    scratch.remove_abandoned()
    assert list(temporary.iterdir()) == [other]
