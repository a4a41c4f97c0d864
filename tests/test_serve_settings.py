"""What a server accepts and refuses before it starts; no cluster needed."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.types import Message, Receive, Scope, Send

from cardioray import config
from cardioray.serve.app import build
from cardioray.serve.auth import KeyRing, hash_key, new_key, read_keys, require_keys
from cardioray.serve.deploy import page_settings, serve_bundles, write_serve_config
from cardioray.serve.haproxy_guard import keep_on_loopback, wide_binds
from cardioray.serve.page_app import build_page
from cardioray.serve.proxy import MAX_BODY, ProxyGuard, request_id_from
from cardioray.serve.serve_file import PAGE, check_serve_file
from cardioray.serve.settings import (
    NamedBundle,
    PageSettings,
    ServerSettings,
    ServeSettings,
    is_loopback,
)

ROOT = Path(__file__).resolve().parents[1]
FFR_YAML = ROOT / "serve_configs" / "ffr.yaml"


def settings(**changes: Any) -> ServeSettings:
    return config.parse(ServeSettings, {"task": "ffr", "bundles": ["b"], **changes})


# Settings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_batch": 4}, "Unknown setting 'max_batch'"),
        ({"scaling": {"max_replica": 4}}, "Did you mean 'max_replicas'"),
        ({"limits": {"max_bytes": 0}}, "greater than or equal to 1"),
        ({"scaling": {"min_replicas": 3}}, r"max_replicas \(2\) is below min_replicas \(3\)"),
        ({"max_ongoing_requests": 15}, r"below twice max_batch_size \(8\)"),
        ({"bundles": []}, "name at least one bundle"),
        ({"layout": "sideways"}, "'auto', 'together' or 'apart'"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        settings(**changes)
    with pytest.raises(ValueError, match=words):
        build({"task": "ffr", "bundles": ["b"], **changes})


def test_bundles_are_paths_or_named_paths() -> None:
    both = settings(bundles=["a", {"path": "b", "name": "other"}]).named_bundles
    assert both == (NamedBundle(path="a"), NamedBundle(path="b", name="other"))


@pytest.mark.parametrize(
    ("layout", "gpus", "apart"),
    [
        ("auto", 0, False),
        ("auto", 0.5, True),
        ("together", 1, False),
        ("apart", 0, True),
    ],
)
def test_the_layout_follows_the_device(layout: str, gpus: float, apart: bool) -> None:
    chosen = settings(layout=layout, gpus=gpus)
    assert chosen.apart is apart
    deployments = build(config.to_dict(chosen))._bound_deployment
    assert (len(deployments.init_args) == 2) is apart


@pytest.mark.parametrize("layout", ["together", "apart"])
def test_a_replica_with_room_is_not_waited_for(layout: str) -> None:
    # Serve's own waits double up to half a second: with 32 clients and room for 16, a replica stood
    # still more than half of the time.
    app = build({"task": "ffr", "bundles": ["b"], "layout": layout})
    first = app._bound_deployment
    network = [argument for argument in first.init_args if not isinstance(argument, dict)]
    assert len(network) == (layout == "apart")
    for bound in (first, *(inner._bound_deployment for inner in network)):
        router = bound._deployment_config.request_router_config
        waits = [router.initial_backoff_s * router.backoff_multiplier**n for n in range(9)]
        assert max(min(wait, router.max_backoff_s) for wait in waits) <= 0.02


def test_variables_in_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def bundle_of(path: str) -> str:
        bound = build({"task": "ffr", "bundles": [path]})._bound_deployment
        return str(bound.init_args[0]["bundles"][0]["path"])

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CARDIORAY_FFR_BUNDLE", raising=False)
    assert bundle_of("${CARDIORAY_FFR_BUNDLE:-runs/x}") == str(tmp_path / "runs" / "x")
    monkeypatch.setenv("CARDIORAY_FFR_BUNDLE", "s3://models/y")
    assert bundle_of("${CARDIORAY_FFR_BUNDLE:-runs/x}") == "s3://models/y"
    with pytest.raises(ValueError, match="no variable NOWHERE"):
        bundle_of("${NOWHERE}/x")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.4", False),
        ("example.org", False),
        ("", False),
        (None, False),
    ],
)
def test_loopback(host: str | None, loopback: bool) -> None:
    assert is_loopback(host) is loopback


# Keys


def test_a_new_key_opens_and_others_do_not() -> None:
    (key, digest), (other, _) = new_key(), new_key()
    ring = KeyRing((hash_key("older key"), digest))
    assert digest == hash_key(key)
    assert ring.accepts(key)
    assert not ring.accepts(other)
    assert not ring.accepts(digest)
    assert not ring.accepts("")


def test_keys_come_from_files_and_the_environment(tmp_path: Path) -> None:
    digests = [hash_key(str(i)) for i in range(4)]
    named, given = tmp_path / "named", tmp_path / "given"
    named.write_text(f"# reading room\n{digests[0]}  station 1\n\n{digests[1].upper()}\n")
    given.write_text(digests[2])
    ring = read_keys(
        str(named),
        {
            "CARDIORAY_API_KEYS_SHA256": f"{digests[3]}, {digests[0]}",
            "CARDIORAY_API_KEYS_SHA256_FILE": str(given),
        },
    )
    assert sorted(ring.hashes) == sorted(digests)


def test_a_key_in_clear_text_is_refused_and_not_repeated(tmp_path: Path) -> None:
    key, _ = new_key()
    with pytest.raises(ValueError, match="entry 1 does not begin with a SHA-256") as caught:
        read_keys(None, {"CARDIORAY_API_KEYS_SHA256": key})
    assert key not in str(caught.value)
    with pytest.raises(ValueError, match="cannot be read"):
        read_keys(str(tmp_path / "absent"), {})


def test_no_keys_no_listening_beyond_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    require_keys("127.0.0.1", KeyRing())
    require_keys("0.0.0.0", KeyRing((hash_key("k"),)))
    monkeypatch.delenv("CARDIORAY_API_KEYS_SHA256", raising=False)
    monkeypatch.delenv("CARDIORAY_API_KEYS_SHA256_FILE", raising=False)
    with pytest.raises(ValueError, match=r"listen on 0\.0\.0\.0.*no API keys.*serve-key"):
        serve_bundles([settings()], ServerSettings(host="0.0.0.0"))


def test_request_ids() -> None:
    assert request_id_from("A-1_b.c:d") == "A-1_b.c:d"
    for wrong in (None, "", "two words", "line\nfeed", "x" * 129, "é"):
        fresh = request_id_from(wrong)
        assert fresh != wrong
        assert request_id_from(fresh) == fresh


# Config files of Serve


def changed_yaml(tmp_path: Path, change: str, value: Any) -> str:
    document = yaml.safe_load(FFR_YAML.read_text())
    node: Any = document
    *path, last = [int(part) if part.isdigit() else part for part in change.split(".")]
    for part in path:
        node = node[part] if isinstance(node, list) else node.setdefault(part, {})
    node[last] = value
    file = tmp_path / "changed.yaml"
    file.write_text(yaml.safe_dump(document))
    return str(file)


def test_the_shipped_config_is_right() -> None:
    schema = check_serve_file(str(FFR_YAML))
    assert schema.http_options.host == "127.0.0.1"
    assert schema.applications[0].route_prefix == "/v1/ffr"


def test_the_shipped_config_serves_what_the_demo_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CARDIORAY_FFR_BUNDLE", raising=False)
    assert "cardioray demo --out runs/demo" in (ROOT / "Makefile").read_text()
    args = check_serve_file(str(FFR_YAML)).applications[0].args
    (found,) = build(args)._bound_deployment.init_args[0]["bundles"]
    assert found["path"] == str(tmp_path / "runs" / "demo" / "compare")


@pytest.mark.parametrize(
    ("change", "value", "words"),
    [
        ("http_option", {}, "Did you mean 'http_options'"),
        ("http_options.hosts", "x", "http_options.hosts: Unknown key"),
        ("applications.0.routeprefix", "/", "applications.0.routeprefix: Unknown key"),
        ("applications.0.args.max_batchsize", 4, "Did you mean 'max_batch_size'"),
        ("applications.0.args.limits", {"max_byte": 1}, "Did you mean 'max_bytes'"),
        ("applications.0.route_prefix", "/ffr", "task ffr is served at /v1/ffr"),
        (
            "applications.0.deployments",
            [{"name": "Answerer", "autoscaling_config": {"max_replica": 2}}],
            r"deployments.0.autoscaling_config.max_replica: Unknown key",
        ),
        (
            "applications.0.deployments",
            [{"name": "Answerer", "ray_actor_options": {"num_cpu": 2}}],
            r"deployments.0.ray_actor_options.num_cpu: Unknown key",
        ),
        ("applications.0.deployments", [{"name": "Answer"}], "Did you mean 'Answerer'"),
        ("applications.1.route_prefix", "/page", "the page is served at /"),
        ("applications.1.args", {"max_byte": 1}, "Did you mean 'max_bytes'"),
        ("applications.1.deployments", [{"name": "Answerer"}], "Known: Page"),
        ("http_options.port", "many", "http_options.port"),
    ],
)
def test_faults_of_a_config_file(tmp_path: Path, change: str, value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_serve_file(changed_yaml(tmp_path, change, value))


def test_a_written_config_file_says_the_same(tmp_path: Path) -> None:
    wanted = settings(
        bundles=["/models/a", {"path": "s3://m/b", "name": "b"}],
        max_batch_size=4,
        scaling={"max_replicas": 5},
    )
    file = write_serve_config([wanted], str(tmp_path / "serve.yaml"), ServerSettings(port=8123))
    schema = check_serve_file(file)
    assert schema.http_options.port == 8123
    assert schema.http_options.host == "127.0.0.1"
    assert config.parse(ServeSettings, schema.applications[0].args) == wanted


# The page


@pytest.mark.parametrize(
    "file", sorted((ROOT / "serve_configs").glob("*.yaml")), ids=lambda f: f.stem
)
def test_every_shipped_config_has_the_page_last(file: Path) -> None:
    *tasks, page = check_serve_file(str(file)).applications
    assert tasks
    assert all(task.route_prefix.startswith("/v1/") for task in tasks)
    assert (page.name, page.route_prefix) == (PAGE, "/")


def test_a_config_file_is_written_with_the_page_or_without(tmp_path: Path) -> None:
    file = str(tmp_path / "serve.yaml")
    write_serve_config([settings()], file, page=PageSettings(max_bytes=5))
    _, page = check_serve_file(file).applications
    assert page.args == {"max_bytes": 5}
    write_serve_config([settings()], file)
    assert len(check_serve_file(file).applications) == 1


def test_one_key_opens_the_page_and_the_tasks() -> None:
    one, other = settings(api_keys_file="one"), settings(task="image", api_keys_file="other")
    assert page_settings([one, one]).api_keys_file == "one"
    assert page_settings([settings()]).api_keys_file is None
    with pytest.raises(ValueError, match="different api_keys_file"):
        page_settings([one, other])


def test_the_page_takes_no_core_and_settings_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYS", "/keys")
    deployment = build_page({"api_keys_file": "${KEYS}/hashes"})._bound_deployment
    assert deployment.ray_actor_options["num_cpus"] == 0
    assert deployment.init_args[0]["api_keys_file"] == "/keys/hashes"
    with pytest.raises(ValueError, match="Did you mean 'upload_s'"):
        build_page({"uploads": 1})


def test_the_page_loads_no_network() -> None:
    code = "import cardioray.serve.page_app, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# HAProxy


def test_haproxy_is_kept_on_loopback() -> None:
    written = (
        "frontend prometheus\n    bind :9101\n"
        "frontend http_frontend\n    bind *:8000\n"
        "listen stats\n  bind *:8404\n  stats enable\n"
    )
    assert keep_on_loopback(written, ["9101", "8404"]) == (
        "frontend prometheus\n    bind 127.0.0.1:9101\n"
        "frontend http_frontend\n    bind *:8000\n"
        "listen stats\n  bind 127.0.0.1:8404\n  stats enable\n"
    )


def test_haproxy_is_not_started_where_it_would_listen_widely() -> None:
    changed = "listen stats\n  bind [::]:8404 v4v6\n  bind 127.0.0.1:9101\n  bind *:8000\n"
    assert keep_on_loopback(changed, ["9101", "8404"]) == changed
    assert wide_binds(changed, ["9101", "8404"]) == ["bind [::]:8404 v4v6"]


# What proxies take in


def through_guard(
    body: list[bytes], headers: list[tuple[bytes, bytes]]
) -> tuple[int, bytes, list[str]]:
    """Status and body that a client gets, and the kinds of messages that reached the server."""
    seen: list[str] = []

    async def server(scope: Scope, receive: Receive, send: Send) -> None:
        more = True
        while more:
            message = await receive()
            seen.append(message["type"])
            if message["type"] == "http.disconnect":
                return
            more = message.get("more_body", False)
        start = {"type": "http.response.start", "status": 200, "headers": []}
        await send(start)
        await send({"type": "http.response.body", "body": b"fine"})

    messages = [
        {"type": "http.request", "body": piece, "more_body": number < len(body)}
        for number, piece in enumerate(body, 1)
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
    asyncio.run(ProxyGuard(server)(scope, receive, send))
    answer = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], answer, seen


def test_a_proxy_takes_in_no_more_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MAX_BODY, "100")
    assert through_guard([b"x" * 60, b"x" * 40], [])[:2] == (200, b"fine")
    status, answer, seen = through_guard([b"x" * 60, b"x" * 41, b"x" * 60], [])
    assert (status, seen) == (413, ["http.request", "http.disconnect"])
    assert json.loads(answer)["type"] == "urn:cardioray:problem:too-large"
    status, answer, seen = through_guard([b""], [(b"content-length", b"101")])
    assert (status, seen) == (413, [])
    assert "at most 100 bytes" in json.loads(answer)["detail"]
