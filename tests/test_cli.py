"""The command line through its entry point."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cardioray import cli


def run(*words: str) -> int:
    """Exit status of `cardioray WORDS`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cardioray", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return int(ended.value.code or 0)


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    """Three patients of each class in each of two splits, a picture each, and no manifest."""
    noise = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("FFRH", "FFRL"):
            folder = tmp_path / "set" / split / name
            folder.mkdir(parents=True)
            for number in range(6):
                picture = noise.integers(0, 256, (24, 24), np.uint8)
                Image.fromarray(picture).save(folder / f"{split}{name}{number}_0.png")
    return tmp_path / "set"


def test_class_folders_are_checked(class_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data", "check", "ffr", str(class_folders), "--set", "frames=all") == 0
    shown = capsys.readouterr().out
    assert "24 rows, 24 patients, 24 frames read" in shown
    assert "reading" in shown
    assert "100%" in shown
    assert "no errors" in shown


def test_a_file_that_cannot_be_read_is_an_error(
    class_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (class_folders / "train" / "FFRH" / "trainFFRH0_0.png").write_text("no picture")
    assert run("data", "check", "ffr", str(class_folders)) == 1
    shown = capsys.readouterr().out
    assert "1 of 24 files cannot be read." in shown
    assert "23 frames read" in shown
