"""The doctor: judgements of given facts, and a look at the machine the tests run on."""

from __future__ import annotations

import io
import os
import platform
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from rich.console import Console

from cardioray import doctor, machine
from cardioray.doctor import Diagnosis, Row
from cardioray.machine import Gpu


def shown(*rows: Row, width: int = 200) -> str:
    stream = io.StringIO()
    doctor.print_diagnosis(Diagnosis(rows), Console(file=stream, width=width))
    return stream.getvalue()


def test_the_environment_of_the_tests_can_do_the_main_job() -> None:
    diagnosis = doctor.diagnose()
    problems = [row for row in diagnosis.rows if row.state == "problem"]
    assert diagnosis.ok, problems
    found = {row.name: row.finding for row in diagnosis.rows}
    assert found["torchvision operators"] == "load"
    assert found["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert found["ray"].startswith("2.60.")
    assert "CPUs" in found["ray cluster"] or "RAY_ADDRESS" in found["ray cluster"]


def test_one_problem_is_enough_to_fail_and_missing_options_are_not() -> None:
    fine, missing = Row("a", "1"), Row("b", "none", "optional", "pip install b")
    assert Diagnosis((fine, missing)).ok
    assert not Diagnosis((fine, missing, Row("c", "too old", "problem", "update c"))).ok


def test_the_print_out_has_every_finding_the_advice_and_the_verdict() -> None:
    text = shown(Row("mlflow", "missing", "optional", "pip install 'cardioray[tracking]'"))
    assert "mlflow: pip install 'cardioray[tracking]'" in text, "brackets are no markup"
    assert "The main job can run here." in text
    text = shown(Row("python", "3.9.1", "problem", "CardioRay needs Python 3.11 or later."))
    assert "!! python" in text
    assert "3.9.1" in text
    assert "cannot run here" in text


@pytest.mark.parametrize(
    ("version", "state"), [((3, 10, 14), "problem"), ((3, 11, 0), "ok"), ((3, 13, 1), "ok")]
)
def test_python_version(version: tuple[int, int, int], state: str) -> None:
    assert doctor.python_row(version).state == state


def test_missing_and_outdated_libraries_come_with_the_command_that_helps() -> None:
    wanted = [Requirement("torch>=2.11"), Requirement("ray[serve]>=2.60,<2.61"), Requirement("x>1")]
    versions = {"torch": "2.13.0+cpu", "ray": "2.9.0"}
    torch, ray, x, others = doctor.library_rows(wanted, versions.get)
    assert (torch.state, torch.finding) == ("ok", "2.13.0+cpu")
    assert (ray.state, ray.finding) == ("problem", "2.9.0, not supported")
    assert ray.advice == "pip install 'ray[serve]<2.61,>=2.60'"
    assert (x.state, x.finding, x.advice) == ("problem", "missing", "pip install 'x>1'")
    assert others.finding.startswith("0 ")


def test_a_package_that_is_not_installed_is_a_problem() -> None:
    (row,) = doctor.library_rows([], {}.get)
    assert row.state == "problem"
    assert "make install" in row.advice


def test_requirements_are_those_of_this_platform_without_extras() -> None:
    names = {requirement.name for requirement in doctor.core_requirements()}
    assert {"ray", "torch", "pandas"} <= names
    assert not {"pytest", "mlflow-skinny"} & names
    assert "av" in names
    has_wheel = platform.machine() == "x86_64" and sys.platform == "linux"
    assert ("decord" in names) == has_wheel


def test_every_requirement_is_imported_by_the_names_it_brings() -> None:
    requirements = doctor.core_requirements()
    brought = set(doctor.modules_of(requirements))
    assert {"ray", "torch", "cv2", "yaml", "PIL", "sklearn", "gdcm", "pytorch_grad_cam"} <= brought
    assert not {"pytest", "mlflow"} & brought
    for requirement in requirements:
        assert doctor.modules_of([requirement]), f"{requirement} brings nothing to import"


def test_a_requirement_that_is_installed_and_broken_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "crooked.py").write_text("raise OSError('libcrooked.so.1: cannot open')")
    about = tmp_path / "Crooked_Library-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: Crooked_Library\nVersion: 1.0\n")
    (about / "RECORD").write_text("crooked.py,,\nCrooked_Library-1.0.dist-info/METADATA,,\n")
    modules = doctor.modules_of([Requirement("crooked-library>=1")])
    (row,) = doctor.import_rows({name: doctor.import_error(name) for name in modules}, None)
    assert (row.name, row.state) == ("import crooked", "problem")
    assert "libcrooked" in row.finding


def test_torchvision_beside_a_cpu_only_torch_is_named() -> None:
    error = "operator torchvision::nms does not exist"
    row = doctor.torchvision_row("2.13.0+cpu", "0.28.0", error)
    assert row.state == "problem"
    assert "torch 2.13.0+cpu beside torchvision 0.28.0" in row.advice
    assert "CPU-only" in row.advice
    assert "pip install" in row.advice


def test_other_torchvision_errors_are_shown_as_they_are() -> None:
    row = doctor.torchvision_row("2.15.0", None, "No module named 'torchvision'")
    assert row.state == "problem"
    assert "No module named 'torchvision'" in row.finding
    assert "CPU-only" not in row.advice


def test_modules_that_only_repeat_torchvisions_error_are_left_out() -> None:
    nms = "operator torchvision::nms does not exist"
    errors = {"timm": nms, "cv2": "libGL.so.1: cannot open", "openvino": None}
    (row,) = doctor.import_rows(errors, torchvision_error=nms)
    assert (row.name, row.state) == ("import cv2", "problem")
    assert "libGL" in row.finding


def test_import_errors_of_every_kind_are_caught_and_cut_to_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_operators.py").write_text("raise RuntimeError('no operator\\nlong trace')")
    (tmp_path / "broken_library.py").write_text("raise OSError('libavutil.so not found')")
    assert doctor.import_error("broken_operators") == "no operator"
    assert doctor.import_error("broken_library") == "libavutil.so not found"
    assert "No module named" in str(doctor.import_error("no_such_module_anywhere"))
    assert doctor.import_error("json") is None


def test_gpus() -> None:
    ampere, turing = Gpu("A100", 79.6, (8, 0)), Gpu("T4", 14.6, (7, 5))
    row = doctor.gpu_row([ampere, turing], driver=True)
    assert row.finding == "A100, 80 GiB, bf16; T4, 15 GiB, no bf16"
    assert doctor.gpu_row([], driver=False).state == "ok"
    hidden = doctor.gpu_row([], driver=True)
    assert hidden.state == "optional"
    assert "CUDA_VISIBLE_DEVICES" in hidden.advice


@pytest.mark.parametrize(
    ("flags", "state", "text"),
    [
        ({"avx2", "avx512_bf16", "amx_bf16"}, "ok", "amx_bf16: training"),
        ({"avx2", "avx512_bf16"}, "ok", "float32, since bf16 would be slower"),
        ({"avx2", "avx512_bf16", "sse4a"}, "ok", "avx512_bf16: training and serving in bf16 pays"),
        ({"asimd", "bf16"}, "ok", "bf16 pays"),
        ({"avx2", "avx512f"}, "ok", "float32"),
        ({"sse4_2"}, "optional", "neither"),
        (set(), "ok", "unknown"),
    ],
)
def test_cpu_features(flags: set[str], state: str, text: str) -> None:
    row = doctor.cpu_row(frozenset(flags))
    assert row.state == state
    assert text in row.finding


def test_little_of_anything_is_said() -> None:
    assert doctor.cores_row(1).state == "optional"
    assert doctor.memory_row(2.0).state == "problem"
    assert doctor.memory_row(16.0).state == "ok"
    small = doctor.shared_memory_row(0.06, memory_gib=16.0)
    assert small.state == "optional"
    assert "--shm-size=5g" in small.advice
    assert doctor.shared_memory_row(8.0, memory_gib=16.0).state == "ok"
    assert doctor.shared_memory_row(None, memory_gib=16.0).state == "ok"
    assert doctor.disk_row(Path("/x"), 0.5).state == "problem"
    assert doctor.disk_row(Path("/x"), None).state == "problem"
    assert doctor.disk_row(Path("/x"), 50).state == "ok"


def test_optional_parts_say_how_to_get_them() -> None:
    row = doctor.optional_row("no_such_module", "reads minds", "pip install minds")
    assert (row.state, row.advice) == ("optional", "pip install minds")
    assert doctor.optional_row("json", "reads JSON", "").state == "ok"


def test_what_is_called_optional_is_used_somewhere() -> None:
    package = Path(doctor.__file__).parent
    sources = [file.read_text() for file in package.rglob("*.py") if file.name != "doctor.py"]
    rows = doctor.optional_rows()
    assert rows
    for row in rows:
        assert any(row.name in source for source in sources), f"nothing uses {row.name}"


class TestMachine:
    @pytest.mark.parametrize(
        ("key", "flags"), [("flags\t\t", "fpu avx2 avx512_bf16"), ("Features\t", "fp asimd bf16")]
    )
    def test_flags_of_intel_amd_and_arm(self, tmp_path: Path, key: str, flags: str) -> None:
        file = tmp_path / "cpuinfo"
        file.write_text(f"processor\t: 0\n{key}: {flags}\n\nprocessor\t: 1\n")
        assert machine.cpu_flags(file) == frozenset(flags.split())
        assert machine.cpu_flags(tmp_path / "none") == frozenset()

    def test_a_free_port_is_given_once_and_to_nobody_else(self) -> None:
        ports = {machine.free_port() for _ in range(50)}
        assert len(ports) == 50
        for port in ports:
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", port))
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            assert max(ports) < listener.getsockname()[1]

    def test_a_containers_limits_count(self, tmp_path: Path) -> None:
        machine_cores, machine_gib = (
            machine.usable_cores(tmp_path),
            machine.usable_memory_gib(tmp_path),
        )
        (tmp_path / "cpu.max").write_text("150000 100000\n")
        (tmp_path / "memory.max").write_text(f"{2**30}\n")
        assert machine.usable_cores(tmp_path) == 1
        assert machine.usable_memory_gib(tmp_path) == 1.0
        (tmp_path / "cpu.max").write_text("50000 100000\n")
        assert machine.usable_cores(tmp_path) == 1
        (tmp_path / "cpu.max").write_text("max 100000\n")
        (tmp_path / "memory.max").write_text("max\n")
        assert machine.usable_cores(tmp_path) == machine_cores
        assert machine.usable_memory_gib(tmp_path) == machine_gib

    def test_first_cgroup_version(self, tmp_path: Path) -> None:
        (tmp_path / "memory").mkdir()
        (tmp_path / "memory" / "memory.limit_in_bytes").write_text(f"{3 * 2**29}")
        assert machine.usable_memory_gib(tmp_path) == 1.5

    def test_free_space(self, tmp_path: Path) -> None:
        assert (machine.free_gib(tmp_path) or 0) > 0
        assert machine.free_gib(tmp_path / "nowhere") is None


def test_a_cluster_that_would_be_joined_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nowhere")
    assert "would join nowhere" in doctor.local_ray_row(2).finding


def test_what_ray_counts_is_shown_and_more_than_the_process_may_use_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 3, "object_store_memory": 2147483648}')
    row = doctor.local_ray_row(3)
    assert row.state == "ok"
    assert row.finding.startswith("would start one here with 3 CPUs, 0 GPUs, 2.0 GiB object store")
    row = doctor.local_ray_row(1)
    assert row.state == "optional"
    assert """RAY_OVERRIDE_RESOURCES='{"CPU": 1}'""" in row.advice
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", "three")
    row = doctor.local_ray_row(3)
    assert row.state == "problem"
    assert "RAY_OVERRIDE_RESOURCES" in row.advice


CONNECT = """
import ray, sys
from cardioray import doctor
before = doctor.ray_view()
assert not ray.is_initialized(), "looking starts nothing"
ray.init(address="local", _temp_dir=sys.argv[1], include_dashboard=False)
row = doctor.cluster_row()
assert ray.is_initialized(), "a connection that was there before is kept"
print(row.state, row.finding)
started = ray.cluster_resources()
assert {k: v for k, v in before.items() if k != "memory"} == {
    k: v for k, v in started.items() if k != "memory"  # what is free changes all the time
}
ray.shutdown()
import os
import platform
os.environ["RAY_ADDRESS"] = "nowhere"
row = doctor.cluster_row()
assert not ray.is_initialized()
print(row.state, row.finding, row.advice)
"""


@pytest.mark.ray
def test_connected_the_cluster_is_listed_and_kept() -> None:
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",
        "RAY_OVERRIDE_RESOURCES": '{"CPU": 3, "object_store_memory": 200000000}',
    }
    environment.pop("RAY_ADDRESS", None)
    with tempfile.TemporaryDirectory(prefix="cr-", dir="/tmp") as temp:  # socket paths are short
        done = subprocess.run(
            [sys.executable, "-c", CONNECT, temp],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    connected, refused = done.stdout.splitlines()[-2:]
    assert connected.startswith("ok 1 nodes: 3 CPUs, 0 GPUs")
    assert refused.startswith("problem nowhere: Invalid address")
    assert "ray start --head" in refused
