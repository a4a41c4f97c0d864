"""A cluster that `ray start --head` started: jobs/*.py are submitted, serve_configs/ served."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
from ray_cluster import end_tree, heed_interrupts
from tiny_bundles import renamed
from typer.main import get_command

from cardioray.bundle import open_bundle
from cardioray.cli import app
from cardioray.data.shards import ShardSet
from cardioray.machine import free_port
from cardioray.model_store import LEADERBOARD, ranked_bundles
from cardioray.phantoms.angiogram import PRESETS, write_angiograms

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
START_SECONDS = 180
JOBS = ("prepare", "train", "compare", "evaluate", "predict")
TINY = (
    "--set=preprocess.image_size=32",
    "--set=train.epochs=1",
    "--set=train.batch_size=8",
    *("--set=split.train=0.4", "--set=split.validation=0.2"),
    *("--set=split.calibration=0.2", "--set=split.test=0.2"),
    "--set=split.min_calibration_patients=2",
)


@dataclass(frozen=True)
class Cluster:
    """A head node of our own."""

    address: str
    dashboard: str
    folder: Path
    env: dict[str, str]
    served: Path
    """What CARDIORAY_FFR_BUNDLE names there: the bundle that a job will leave."""

    def succeeds(self, *words: str) -> None:
        """Submit a job and see it through to its end."""
        job = self.submit(*words)
        assert job.returncode == 0, job.stdout + job.stderr
        # The command ends with 0, too, where it lost sight of a job that has not ended.
        assert "succeeded" in job.stdout, job.stdout + job.stderr

    def submit(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / "ray"), "job", "submit", "--address", self.dashboard]
        command += ["--working-dir", str(self.folder), "--", "python", *words]
        return self.call(*command)

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=self.env, capture_output=True, text=True, timeout=400, check=False
        )


def wait_until_up(url: str, head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert head.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{url}/api/jobs/", timeout=5):
                # The dashboard answers before the node itself is there.
                if "Ray runtime started" in log.read_text():
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.5)
    pytest.fail(f"the dashboard did not come up: {log.read_text()}")


@pytest.fixture(scope="module")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """`ray start --head --block` in a process group of its own, which is ended as a group."""
    folder = tmp_path_factory.mktemp("submitted")
    for name in ("cardioray", "jobs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    # Ray's sockets live below it, and the path of a socket has at most 107 bytes.
    temporary = Path(tempfile.mkdtemp(prefix="crj"))
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    port, dashboard, agent, client, metrics = (free_port() for _ in range(5))
    url = f"http://127.0.0.1:{dashboard}"
    served = folder.parent / "runs" / "bundles" / "test_resnet"
    env |= {
        "CARDIORAY_FFR_BUNDLE": str(served),
        "RAY_AUTH_MODE": "disabled",
        "RAY_DASHBOARD_ADDRESS": url,
        "RAY_TMPDIR": str(temporary),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray counts the memory of every process of the machine against its own workers.
        "RAY_memory_monitor_refresh_ms": "0",
        # As on a cluster that a command starts for itself.
        "RAY_idle_worker_killing_time_threshold_ms": "60000",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "REPORTER_UPDATE_INTERVAL_MS": "30000",
        "PATH": f"{BIN}{os.pathsep}{env['PATH']}",
    }
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", "--num-gpus=0"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"]
    command += [f"--port={port}", f"--dashboard-port={dashboard}", f"--temp-dir={temporary}"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"]
    command += [f"--metrics-export-port={metrics}", "--object-store-memory=200000000"]
    log = folder.parent / "head.log"
    with log.open("wb") as stream:
        head = subprocess.Popen(
            command, env=env, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        wait_until_up(url, head, log)
        yield Cluster(f"127.0.0.1:{port}", url, folder, env, served)
    finally:
        # Asked to end, `ray start --block` takes half a minute.
        end_tree(head.pid)
        head.wait(timeout=30)
        shutil.rmtree(temporary, ignore_errors=True)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_jobs_make_a_model_that_serve_run_and_serve_deploy_bring_to_answer(
    ray_head: Cluster, tmp_path: Path
) -> None:
    data, shards, bundle = tmp_path / "phantoms", tmp_path / "shards", ray_head.served
    write_angiograms(str(data), 24, seed=4, config=PRESETS.get("clear"))
    pictures = sorted(data.rglob("*.png"))

    prepare = ["jobs/prepare.py", "ffr", str(data), "--out", str(shards)]
    ray_head.succeeds(*prepare, "--set=preprocess.image_size=32")
    assert ShardSet.open(str(shards)).index.num_samples == len(pictures)

    runs = str(bundle.parents[1])
    compare = ["jobs/compare.py", "ffr", "--data", str(shards), "--out", runs, *TINY]
    ray_head.succeeds(*compare, "--backbones", "test_resnet", "--folds", "2", "--no-asha")
    assert [open_bundle(place).name for place in ranked_bundles(runs)] == ["test_resnet"]

    answers = tmp_path / "answers.csv"
    ray_head.succeeds("jobs/predict.py", str(bundle), str(pictures[0]), "--out", str(answers))
    [row] = pd.read_csv(answers).to_dict("records")

    def answers_as_the_job_did() -> None:
        answer = answer_of(url, pictures[0])
        assert answer["model"] == row["model"] == "test_resnet"
        assert answer["ffr"]["class"] == row["ffr_class"]
        assert answer["ffr"]["probability"] == pytest.approx(row["ffr_probability"], abs=0.01)

    settings, url = config_on_a_free_port(ray_head.folder / "ffr.yaml")
    running = subprocess.Popen(
        ["serve", "run", str(settings), "--address", ray_head.address],
        env=ray_head.env,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )
    try:
        answers_as_the_job_did()
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=120) == 0
    finally:
        end_tree(running.pid)
    with pytest.raises(httpx.TransportError):
        httpx.post(url, content=pictures[0].read_bytes())

    deployed = ray_head.call("serve", "deploy", str(settings), "--address", ray_head.dashboard)
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    answers_as_the_job_did()

    add_a_second(Path(runs))
    best = ["cardioray", "deploy", runs, "--top", "2", "--port", str(httpx.URL(url).port)]
    deployed = ray_head.call(*best)
    assert f"ffr answers at {url}" in deployed.stdout, deployed.stdout + deployed.stderr
    page = str(httpx.URL(url).join("/"))
    assert f"The page for browsers is at {page}" in deployed.stdout
    [told] = httpx.get(f"{page}api/tasks", timeout=60).json()
    assert (told["task"], len(told["models"])) == ("ffr", 2)
    assert answer_of(url, pictures[0])["model"] == "test_resnet"
    assert answer_of(f"{url}?model=second", pictures[0])["model"] == "second"


def add_a_second(runs: Path) -> None:
    """Put a copy of a comparison's winner on its second place: training another takes a minute."""
    renamed(runs / "bundles" / "test_resnet", runs / "bundles" / "second", "second")
    file = runs / LEADERBOARD
    record = json.loads(file.read_text())
    [row] = record["rows"]
    record["rows"].append({**row, "bundle": "bundles/second"})
    file.write_text(json.dumps(record))


def config_on_a_free_port(file: Path) -> tuple[Path, str]:
    """serve_configs/ffr.yaml with another port, and where it answers."""
    text = (ROOT / "serve_configs" / "ffr.yaml").read_text()
    port = free_port()
    file.write_text(text.replace("port: 8000", f"port: {port}"))
    return file, f"http://127.0.0.1:{port}/v1/ffr"


def answer_of(url: str, picture: Path) -> dict[str, Any]:
    """What a server says of a picture, once it is up."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            response = httpx.post(url, files={"file": picture.read_bytes()}, timeout=60)
            if response.status_code == 200:
                return dict(response.json())
        time.sleep(0.5)
    pytest.fail(f"{url} did not answer")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_job_that_fails_says_why_and_ends_with_an_error(
    ray_head: Cluster, tmp_path: Path
) -> None:
    words = ["ffr", "--data", str(tmp_path / "nothing"), "--out", str(tmp_path / "runs")]
    failed = ray_head.submit("jobs/train.py", *words)
    assert failed.returncode != 0
    assert "does not exist" in failed.stdout + failed.stderr


def command(name: str) -> Any:
    """The command of `cardioray` that a job is."""
    group: Any = get_command(app)
    return group.commands["data"].commands[name] if name == "prepare" else group.commands[name]


@pytest.mark.parametrize("name", JOBS)
def test_a_job_has_the_options_of_its_command(name: str) -> None:
    options = {text for p in command(name).params for text in p.opts}
    shown = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / f"{name}.py"), "--help"],
        env={**os.environ, "COLUMNS": "200", "TERM": "dumb"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    long = {option for option in options if option.startswith("--")}
    assert long
    assert {option for option in long if option not in shown} == set()


def submissions() -> list[str]:
    """What is submitted on the pages and in the jobs' own words."""
    pages = [
        *sorted((ROOT / "docs").glob("*.md")),
        ROOT / "README.md",
        *(ROOT / "jobs").glob("*.py"),
    ]
    text = "\n".join(page.read_text() for page in pages).replace("\\\n", " ")
    return re.findall(r"^ray job submit .*-- python jobs/(\w+\.py .*)$", text, re.MULTILINE)


def test_a_job_that_is_written_down_can_be_parsed() -> None:
    written = submissions()
    assert {words.partition(".")[0] for words in written} == set(JOBS)
    for words in written:
        name, *arguments = shlex.split(words)
        command(name.removesuffix(".py")).make_context(name, arguments)
