"""cluster.yaml against Ray's own schema, and what must hold beyond it. Nothing contacts AWS."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from cardioray.serve.proxy import VARIABLES

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def cluster() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return loaded


def nodes(cluster: dict[str, Any]) -> dict[str, Any]:
    kinds: dict[str, Any] = cluster["available_node_types"]
    return kinds


def commands(cluster: dict[str, Any], *keys: str) -> str:
    return "\n".join(command for key in keys for command in cluster[key])


def validate(cluster: dict[str, Any]) -> None:
    validate_config(prepare_config(copy.deepcopy(cluster)))


def test_rays_schema_accepts_it(cluster: dict[str, Any]) -> None:
    validate(cluster)


@pytest.mark.parametrize("place", ["top", "node type"])
def test_rays_schema_refuses_an_unknown_key(cluster: dict[str, Any], place: str) -> None:
    if place == "top":
        cluster["idle_timeout_minuts"] = 5
        wanted = "idle_timeout_minuts"
    else:
        nodes(cluster)["decode"]["max_worker"] = 3
        wanted = "max_worker"
    with pytest.raises(ValidationError, match=wanted):
        validate(cluster)


def test_a_head_that_is_no_node_type_is_refused(cluster: dict[str, Any]) -> None:
    cluster["head_node_type"] = "haed"
    with pytest.raises(ValueError, match="head_node_type"):
        validate(cluster)


def test_the_head_takes_no_work(cluster: dict[str, Any]) -> None:
    head = nodes(cluster)[cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert not head["node_config"]["InstanceType"].startswith(("g", "p"))
    assert "InstanceMarketOptions" not in head["node_config"], "a spot head would end the cluster"


def test_decoding_scales_on_cpus_and_gpus_are_spot(cluster: dict[str, Any]) -> None:
    workers = {k: v for k, v in nodes(cluster).items() if k != cluster["head_node_type"]}
    gpus = {k: v for k, v in workers.items() if v["node_config"]["InstanceType"].startswith("g")}
    assert gpus
    for node in gpus.values():
        assert re.match(r"g[56]\.", node["node_config"]["InstanceType"])
        assert node["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert workers.keys() - gpus.keys(), "decoding has nodes of its own"
    assert all(w["min_workers"] == 0 and w["max_workers"] > 1 for w in workers.values())
    assert cluster["max_workers"] == sum(w["max_workers"] for w in workers.values())


def test_authentication_is_on_wherever_ray_starts(cluster: dict[str, Any]) -> None:
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [command for command in cluster[key] if "ray start" in command]
        assert len(starts) == 1
        assert "RAY_AUTH_MODE=token ray start" in starts[0]
    setup = commands(cluster, "setup_commands")
    assert "RAY_AUTH_MODE=token" in setup, "`ray exec` and jobs need the mode too"
    assert "/home/ubuntu/.ray/auth_token" in cluster["file_mounts"]
    assert "chmod 600 ~/.ray/auth_token" in setup


def test_every_node_is_ready_to_serve(cluster: dict[str, Any]) -> None:
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        before = commands(cluster, key).partition("ray start")[0]
        for name, value in VARIABLES.items():
            assert f"export {name}={value};" in before


def test_nothing_but_ssh_is_reached_from_outside(cluster: dict[str, Any]) -> None:
    starts = commands(cluster, "head_start_ray_commands", "worker_start_ray_commands")
    assert "--dashboard-host=127.0.0.1" in starts
    assert "0.0.0.0" not in (ROOT / "cluster.yaml").read_text()
    for name, node in nodes(cluster).items():
        settings = node["node_config"]
        assert settings["SecurityGroupIds"], f"{name}: Ray's own group opens port 22 to the world"
        assert settings["MetadataOptions"]["HttpTokens"] == "required", name
        assert all(disk["Ebs"]["Encrypted"] for disk in settings["BlockDeviceMappings"]), name


def test_storage_rights_come_from_the_instance_not_from_keys(cluster: dict[str, Any]) -> None:
    assert all(n["node_config"]["IamInstanceProfile"]["Name"] for n in nodes(cluster).values())
    assert not re.search(r"AKIA|aws_secret|ACCESS_KEY", (ROOT / "cluster.yaml").read_text())


def test_the_nodes_install_the_package_with_the_tested_versions(cluster: dict[str, Any]) -> None:
    assert cluster["file_mounts"]["/home/ubuntu/cardioray-dist"] == "dist"
    setup = commands(cluster, "setup_commands")
    assert "-c ~/cardioray-dist/constraints.txt ~/cardioray-dist/cardioray-*.whl" in setup
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^wheel:.*\n(\t.*\n)*\t.*-w dist", makefile, re.MULTILINE)
    assert "cp constraints.txt dist/" in makefile
