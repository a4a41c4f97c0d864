"""The command line through its entry point."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ray_cluster import heed_interrupts

from cardioray import cli, doctor, storage
from cardioray.config import Failed
from cardioray.data.shards import FORMAT_VERSION, ShardIndex, write_index
from cardioray.storage import ChangedMeanwhile


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


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one message of a command that ends with 1, and no trace."""
    assert run(*words) == 1
    shown = " ".join(capsys.readouterr().err.split())
    assert shown.startswith("Error: ")
    assert "Traceback" not in shown
    return shown.removeprefix("Error: ")


def test_yaml_that_is_none_is_named(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check = ("data", "check", "ffr", str(class_folders))
    shown = error_of(capsys, *check, "--set", "train.epochs=[1")
    assert shown.startswith("Setting 'epochs=[1' is no YAML: line 1: expected ',' or ']'")
    file = tmp_path / "settings.yaml"
    file.write_text("train: [1\n")
    assert "settings.yaml is no YAML: line 2: " in error_of(capsys, *check, "--config", str(file))
    file.write_text("- train\n")
    assert "holds no sections" in error_of(capsys, *check, "--config", str(file))
    file.write_bytes(b"\xff\x00\x81")
    assert "settings.yaml is no YAML: " in error_of(capsys, *check, "--config", str(file))


def test_settings_lie_in_a_bucket(
    s3: str, class_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check = ("data", "check", "ffr", str(class_folders), "--config", f"{s3}/settings.yaml")
    assert f"{s3}/settings.yaml does not exist" in error_of(capsys, *check)
    storage.write_bytes(f"{s3}/settings.yaml", b"train: {epochs: 0}")
    assert "epochs: Input should be greater" in error_of(capsys, *check)
    storage.write_bytes(f"{s3}/settings.yaml", b"frames: all")
    assert run(*check) == 0
    assert "24 frames read" in capsys.readouterr().out


def test_the_demo_takes_no_bucket(capsys: pytest.CaptureFixture[str]) -> None:
    shown = error_of(capsys, "demo", "--out", "s3://bucket/demo")
    assert shown == "The demo works in a local folder, and s3://bucket/demo is a bucket's."


def test_a_bucket_out_of_reach_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # the port of "discard"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert "Could not connect" in error_of(capsys, "data", "check", "ffr", "s3://bucket/set")


@pytest.mark.parametrize(
    "raised",
    [Failed("try again"), ChangedMeanwhile("try again"), ConnectionError("try again")],
)
def test_what_users_can_act_on_is_one_message(
    raised: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "diagnose", raiser(raised))
    assert error_of(capsys, "doctor") == "try again"


@pytest.mark.parametrize("raised", [RuntimeError("a bug"), TypeError("a bug"), KeyError("a bug")])
def test_a_bug_keeps_its_trace(raised: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "diagnose", raiser(raised))
    monkeypatch.setattr(sys, "argv", ["cardioray", "doctor"])
    with pytest.raises(type(raised), match="a bug"):
        cli.main()


def raiser(error: Exception) -> Callable[..., None]:
    def fail(**_: object) -> None:
        raise error

    return fail


def test_ctrl_c_ends_with_130_and_no_trace(tmp_path: Path) -> None:
    fifo = tmp_path / "manifest.csv"
    os.mkfifo(fifo)
    command = [sys.executable, "-c", "from cardioray.cli import main; main()"]
    with subprocess.Popen(
        [*command, "data", "check", "ffr", str(fifo)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    ) as waiting:
        writer = os.open(fifo, os.O_WRONLY)  # comes back when the command reads
        waiting.send_signal(signal.SIGINT)
        _, shown = waiting.communicate(timeout=60)
        os.close(writer)
    assert waiting.returncode == 130
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("bundle", "--data", "set", "--task", "ffr"), "--task"),
        (("bundle", "--data", "set", "--set", "frames=all"), "--set"),
        (("--predictions", "t.csv", "--task", "ffr", "--data", "set"), "--data"),
        (("--predictions", "t.csv", "--task", "ffr", "--patient-from", "(P)"), "--patient-from"),
        (("--predictions", "t.csv", "--task", "ffr", "--runtime", "torch"), "--runtime"),
    ],
)
def test_evaluate_refuses_what_would_change_nothing(
    words: tuple[str, ...], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert error_of(capsys, "evaluate", *words).startswith(f"Leave out {option}: ")


@pytest.mark.parametrize("command", ["train", "compare"])
@pytest.mark.parametrize("option", [("--max-bad", "0.5"), ("--patient-from", "(P)")])
def test_finished_shards_take_no_options_of_files(
    command: str, option: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = ShardIndex(
        format_version=FORMAT_VERSION,
        task="ffr",
        request_hash="",
        dataset_hash="",
        decode_settings={},
        columns={},
        parts=[],
        num_samples=0,
        num_bad=0,
        array_bytes=0,
        patients_known=True,
        warnings=[],
    )
    write_index(str(tmp_path), index)
    words = (command, "ffr", "--data", str(tmp_path), "--out", str(tmp_path / "out"), *option)
    assert error_of(capsys, *words) == f"Leave out {option[0]}: {tmp_path} holds finished shards."
