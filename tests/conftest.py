"""Fixtures every test file shares."""

from __future__ import annotations

import itertools
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from hypothesis import settings

# Before anything imports ray: a cluster of the tests needs no token, and none is to be left behind.
os.environ["RAY_AUTH_MODE"] = "disabled"
# Names this run of the tests for all of its processes, which inherit it.
os.environ.setdefault("CARDIORAY_TEST_RUN", str(os.getpid()))

# Before anything imports torch: processes that share the tests share the cores. Threads that wait
# for one another on cores that others hold make a second of work a minute.
_processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
if _processes > 1:
    _threads = max(1, len(os.sched_getaffinity(0)) // _processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(_threads))

ROOT = Path(__file__).resolve().parents[1]

# The same examples in every run, and no verdict that depends on how busy the machine is.
settings.register_profile("cardioray", deadline=None, derandomize=True)
settings.load_profile("cardioray")


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder of real samples, or a skip that says where it was looked for."""
    folder = Path(os.environ.get("CARDIORAY_SAMPLES", ROOT.parent / "shared" / "data"))
    if not (folder / "README.md").exists():
        pytest.skip(f"no real samples at {folder} (set CARDIORAY_SAMPLES)")
    return folder


# Files whose tests find one cluster up; one process runs all files of a group. What a cluster takes
# to start, and what its own processes take while it is there, is 25 s of a core.
GROUPS = {
    "test_echo_training": "training",
    "test_ecg_bundle": "training",
    "test_export": "training",
    "test_interrupt": "training",
    "test_keyframe_answers": "training",
    "test_keyframe_commands": "training",
    "test_keyframe_serving": "training",
    "test_keyframes": "training",
    "test_lv_seg": "training",
    "test_outline_results": "training",
    "test_phantom_camus": "training",
    "test_phantom_ecg": "training",
    "test_phantom_echo": "training",
    "test_pipeline": "training",
    "test_progress": "training",
    "test_training_loop": "training",
    "test_training_tracking": "training",
    "test_study": "training",
    "test_training_workers": "training",
    "test_tuning": "training",
    "test_demo": "training",
    "test_inference": "serving",
    "test_page": "serving",
    "test_serve_cluster": "serving",
    "test_serve_echo": "serving",
    "test_serve_fast": "serving",
    "test_serve_http": "serving",
}


def group_of(path: str | Path) -> str:
    """Group of a file of tests; most are a group of their own."""
    stem = Path(path).stem
    return GROUPS.get(stem, stem)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand whole groups to the processes that share the tests."""
    from xdist.scheduler import LoadFileScheduling

    class LoadGroupScheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid.split("::", 1)[0])

    return LoadGroupScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups first, then long files, so that processes that share the tests end together."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def place(item: pytest.Item) -> tuple[bool, bool, str]:
        grouped = item.path.stem in GROUPS
        return not grouped, item.path not in slow, group_of(item.path) if grouped else ""

    items.sort(key=place)


@pytest.hookimpl(trylast=True)  # after the fixtures of the file
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End a group's cluster after its last test."""
    if nextitem is None or group_of(nextitem.path) != group_of(item.path):
        from ray_cluster import end_kept_cluster

        end_kept_cluster()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Take away what the processes of a run have made for one another."""
    if not hasattr(session.config, "workerinput"):
        from shared import remove_shared

        remove_shared()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skip for want of what CI has is a failure there.

    Samples where CARDIORAY_REQUIRE_SAMPLES is 1, a browser where CARDIORAY_REQUIRE_BROWSER is 1.
    """
    report = yield
    needs_samples = "samples" in item.fixturenames or item.get_closest_marker("samples")
    needs = {
        "CARDIORAY_REQUIRE_SAMPLES": needs_samples,
        "CARDIORAY_REQUIRE_BROWSER": "browser" in item.fixturenames,
    }
    for variable, needed in needs.items():
        if report.skipped and needed and os.environ.get(variable) == "1":
            report.outcome = "failed"
            report.longrepr = f"skipped, though {variable}=1: {call.excinfo}"
    return report


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """URL of a real S3 protocol server on loopback, on a free port."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def _reach_s3(patch: pytest.MonkeyPatch, s3_endpoint: str) -> None:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CONFIG_FILE"):
        patch.delenv(name, raising=False)
    patch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    patch.setenv("AWS_ACCESS_KEY_ID", "test")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")


_bucket_numbers = itertools.count(1)


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of an empty bucket, with the AWS_* environment that reaches it set for this test.

    Processes that are started during the test inherit the environment; a Ray cluster that runs
    already does not, and needs it in its runtime_env.
    """
    _reach_s3(monkeypatch, s3_endpoint)
    bucket = f"cardioray-test-{next(_bucket_numbers)}"
    boto3.client("s3", endpoint_url=s3_endpoint).create_bucket(Bucket=bucket)
    return f"s3://{bucket}"


@pytest.fixture(scope="module")
def ray_local(s3_endpoint: str) -> Iterator[None]:
    """A local cluster of 4 CPUs and 2 fake GPUs, whose workers reach the S3 server."""
    from ray_cluster import keep_cluster

    with pytest.MonkeyPatch.context() as patch:
        _reach_s3(patch, s3_endpoint)
        keep_cluster(num_cpus=4, num_gpus=2)
        yield


# Bundles of key frames, which the tests of their answers, commands and servers share.


@pytest.fixture(scope="module")
def keyframe_shards(ray_local: None) -> Any:
    """The folder that `camus` lies in, and the shards made of it."""
    from tiny_keyframes import prepared

    return prepared()


@pytest.fixture(scope="module")
def keyframe_heads(ray_local: None) -> Any:
    """A bundle of heads on features."""
    from tiny_keyframes import heads

    return heads()


@pytest.fixture(scope="module")
def keyframe_predictor(keyframe_heads: Any) -> Any:
    """Answers of the heads."""
    from tiny_keyframes import predictor_of

    return predictor_of(keyframe_heads)


@pytest.fixture(scope="module")
def keyframe_network(ray_local: None) -> Any:
    """A bundle of a network that says the number itself."""
    from tiny_keyframes import network

    return network()


@pytest.fixture(scope="module")
def network_predictor(keyframe_network: Any) -> Any:
    """Answers of the network."""
    from tiny_keyframes import predictor_of

    return predictor_of(keyframe_network, num_threads=1)
