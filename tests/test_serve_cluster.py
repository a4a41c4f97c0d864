"""Several applications on one cluster: overload, keys, lost replicas, production, both layouts."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from ray import serve
from ray.serve.config import HTTPOptions
from served import logged, png, replica_pids, serving_cluster
from tiny_bundles import renamed, tiny_bundle

import cardioray
from cardioray import config, storage
from cardioray.bundle import BundleError
from cardioray.machine import free_port
from cardioray.model_store import promote, rollback
from cardioray.scratch import process_folder
from cardioray.serve import hosting
from cardioray.serve.app import build
from cardioray.serve.auth import new_key
from cardioray.serve.deploy import application_settings, serve_bundles
from cardioray.serve.hosting import check_ready, describe, load_local, load_remote
from cardioray.serve.settings import ServerSettings, ServeSettings

pytestmark = pytest.mark.ray

ONE = {"min_replicas": 1, "max_replicas": 1}
TWO = {"min_replicas": 2, "max_replicas": 2}


@dataclass(frozen=True)
class Stage:
    """A cluster with Serve on it, and two bundles."""

    port: int
    tiny: Path
    second: Path

    @contextlib.contextmanager
    def application(self, name: str, **changes: Any) -> Iterator[str]:
        """An application under a route of its own; gives its URL."""
        args = {"task": "ffr", "precision": "fp32", "cpus": 0.5, "scaling": ONE, **changes}
        args.setdefault("bundles", [str(self.tiny)] if "follow" not in changes else [])
        serve.run(build(args), name=name, route_prefix=f"/{name}")
        try:
            yield f"http://127.0.0.1:{self.port}/{name}"
        finally:
            serve.delete(name)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    port = free_port()
    with serving_cluster():
        second = tmp_path_factory.mktemp("bundles") / "second"
        renamed(tiny_bundle(), second, "second")
        serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
        yield Stage(port, tiny_bundle(), second)


@dataclass(frozen=True)
class Failure:
    """A request that was not answered with 200."""

    request_id: str
    began: float
    ended: float


@dataclass
class Load:
    """Clients that ask one question after another and try once more where they get no answer."""

    url: str
    clients: int = 8
    retries: int = 1
    statuses: Counter[int] = field(default_factory=Counter)
    models: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    given_up: int = 0

    @contextlib.contextmanager
    def running(self) -> Iterator[Load]:
        stop = threading.Event()
        with ThreadPoolExecutor(self.clients) as pool:
            tasks = [pool.submit(self._ask, stop, seed) for seed in range(self.clients)]
            try:
                yield self
            finally:
                stop.set()
        for task in tasks:
            task.result()

    def _ask(self, stop: threading.Event, seed: int) -> None:
        data = png(seed)
        with httpx.Client(timeout=60) as client:
            while not stop.is_set():
                for _ in range(1 + self.retries):
                    request_id, began = uuid.uuid4().hex, time.monotonic()
                    answer = self._once(client, data, request_id)
                    if answer is not None and answer.status_code == 200:
                        self.models.append(answer.json()["model"])
                        break
                    self.failures.append(Failure(request_id, began, time.monotonic()))
                    time.sleep(0.05)
                else:
                    self.given_up += 1

    def _once(self, client: httpx.Client, data: bytes, request_id: str) -> httpx.Response | None:
        try:
            answer = client.post(self.url, content=data, headers={"X-Request-ID": request_id})
        except httpx.TransportError:
            return None
        self.statuses[answer.status_code] += 1
        return answer


def wait_for(condition: Callable[[], bool], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@dataclass(frozen=True)
class Guarded:
    """An application with a short queue and two keys."""

    url: str
    keys: tuple[str, str]
    hashes: tuple[str, str]


@pytest.fixture(scope="module")
def guarded(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    (one, one_hash), (two, two_hash) = new_key(), new_key()
    file = tmp_path_factory.mktemp("guarded") / "keys"
    file.write_text(f"{one_hash} reading room\n{two_hash} ward 3\n")
    small = {"max_batch_size": 1, "max_ongoing_requests": 2, "max_queued_requests": 3}
    with stage.application("guarded", **small, retry_after_s=7, api_keys_file=str(file)) as url:
        yield Guarded(url, (one, two), (one_hash, two_hash))


def test_beyond_its_queue_a_server_says_when_to_come_back(guarded: Guarded) -> None:
    def ask() -> httpx.Response:
        headers = {"X-API-Key": guarded.keys[0]}
        return httpx.post(guarded.url, content=png(), headers=headers, timeout=60)

    with ThreadPoolExecutor(40) as pool:
        answers = [task.result() for task in [pool.submit(ask) for _ in range(200)]]
    counted = Counter(answer.status_code for answer in answers)
    assert set(counted) == {200, 503}
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert refused.headers["Retry-After"] == "7"
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert refused.json()["request_id"] == refused.headers["X-Request-ID"]
    assert ask().status_code == 200


def test_keys_are_asked_for(guarded: Guarded) -> None:
    stranger, _ = new_key()

    def status(headers: Mapping[str, str], path: str = "") -> int:
        if path:
            return httpx.get(f"{guarded.url}{path}", headers=headers).status_code
        return httpx.post(guarded.url, content=png(), headers=headers).status_code

    for key in guarded.keys:
        assert status({"Authorization": f"Bearer {key}"}) == 200
        assert status({"Authorization": f"bearer {key}"}) == 200
        assert status({"X-API-Key": key}) == 200
    wrong = [{}, {"X-API-Key": stranger}, {"X-API-Key": guarded.hashes[0]}, {"X-API-Key": ""}]
    wrong += [{"Authorization": f"Basic {guarded.keys[0]}"}, {"Authorization": "Bearer"}]
    for headers in wrong:
        assert status(headers) == 401
    assert status({}, "/models") == 401
    assert status({}, "/card") == 401
    assert [status({}, p) for p in ("/live", "/ready", "/docs", "/openapi.json")] == [200] * 4
    answer = httpx.post(guarded.url, content=png())
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert "X-API-Key" in answer.json()["detail"]


def test_a_killed_replica_costs_the_requests_it_was_answering_and_no_others(stage: Stage) -> None:
    with stage.application("pair", scaling=TWO) as url:
        before = replica_pids("pair")
        lost, other = before
        with Load(url, clients=8).running() as load:
            wait_for(lambda: load.statuses[200] > 50)
            killing = time.monotonic()
            os.kill(before[lost], signal.SIGKILL)
            killed = time.monotonic()
            wait_for(lambda: len(set(replica_pids("pair")) - set(before)) == 1)
            done = load.statuses[200]
            wait_for(lambda: load.statuses[200] > done + 50)
        assert load.given_up == 0
        # What failed was under way when the replica was lost, and not with the other one.
        assert all(each.began < killed and killing < each.ended for each in load.failures)
        answered = logged(other)
        assert answered.count("POST predict 200") > 50
        assert not any(each.request_id in answered for each in load.failures)


def test_production_is_followed_without_a_failed_request(stage: Stage, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    promote(store, str(stage.tiny))
    with (
        stage.application("follower", follow=store, follow_every_s=0.3) as url,
        Load(url, clients=4, retries=0).running() as load,
    ):
        wait_for(lambda: len(load.models) > 20)
        promote(store, str(stage.second))
        wait_for(lambda: load.models[-1] == "second")
        assert httpx.get(f"{url}/models").json()[0]["name"] == "second"
        rollback(store, "ffr")
        wait_for(lambda: load.models[-1] == "tiny")
        # What cannot be read is not followed, and what answers goes on.
        (tmp_path / "store" / "ffr" / "production.json").write_text("{}")
        time.sleep(1)
        done = len(load.models)
        wait_for(lambda: len(load.models) > done + 20)
    assert load.failures == []
    assert set(load.statuses) == {200}


def test_decoding_and_network_apart_answer_the_same(stage: Stage, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    promote(store, str(stage.tiny))
    apart = {"layout": "apart", "ingress_cpus": 0.5, "ingress_scaling": ONE, "follow": store}
    pinned = [str(stage.second)]
    with stage.application("apart", **apart, follow_every_s=0.3, bundles=pinned) as url:
        assert httpx.get(f"{url}/ready", timeout=60).json()["models"] == ["tiny", "second"]
        predictor = cardioray.load(stage.tiny, precision="fp32", num_threads=1)
        files = [png(seed) for seed in range(3)]
        parts = [("files", ("x", data, "image/png")) for data in files]
        answer = httpx.post(url, files=parts, timeout=60).json()
        expected = predictor.predict(files)["ffr"]["probability_per_frame"]
        np.testing.assert_allclose(answer["ffr"]["probability_per_frame"], expected, atol=1e-6)
        assert httpx.post(url, content=png(), params={"model": "second"}).status_code == 200
        overlay = httpx.post(url, content=png(), params={"overlay": "gradcam"}, timeout=60)
        assert overlay.json()["overlays"][0]["png"].startswith("data:image/png")
        other = renamed(stage.tiny, tmp_path / "third", "third")
        with Load(url, clients=4, retries=0).running() as load:
            wait_for(lambda: len(load.models) > 10)
            promote(store, str(other.path))
            wait_for(lambda: load.models[-1] == "third")
        assert load.failures == []
        assert len(replica_pids("apart")) == 2


@pytest.mark.parametrize(
    ("changes", "runtime"),
    [
        ({"gpus": 1}, "torch"),  # a decoding replica has no GPU and would take OpenVINO itself
        ({"gpus": 0}, "openvino"),
        ({"gpus": 1, "runtime": "openvino"}, "openvino"),
        ({"gpus": 0, "runtime": "torch"}, "torch"),
    ],
)
def test_apart_the_runtime_is_that_of_the_network(
    stage: Stage, changes: dict[str, Any], runtime: str
) -> None:
    written = {"task": "ffr", "bundles": [str(stage.tiny)], "layout": "apart", **changes}
    settings = config.parse(ServeSettings, written)
    model = load_remote(str(stage.tiny), None, settings, None)  # type: ignore[arg-type]
    assert describe(model, True)["runtime"] == runtime


def test_apart_a_network_that_no_replica_has_is_not_ready(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent:
        """In the place of a handle whose replicas are gone."""

        @property
        def prepare(self) -> Silent:
            return self

        async def remote(self, *_: object) -> None:
            await asyncio.sleep(60)

    settings = config.parse(
        ServeSettings, {"task": "ffr", "bundles": [str(stage.tiny)], "layout": "apart"}
    )
    model = load_remote(str(stage.tiny), None, settings, Silent())  # type: ignore[arg-type]
    monkeypatch.setattr(hosting, "READY_WITHIN_S", 0.05)
    with pytest.raises(RuntimeError, match="No replica has the network of model tiny ready"):
        asyncio.run(check_ready([model]))


def test_a_replica_that_gets_no_gpu_says_so(stage: Stage) -> None:
    settings = config.parse(ServeSettings, {"task": "ffr", "bundles": [str(stage.tiny)], "gpus": 1})
    with pytest.raises(ValueError, match="asks for 1 GPU a replica, and PyTorch finds none"):
        load_local(str(stage.tiny), None, settings, None, None)  # type: ignore[arg-type]


def test_a_model_takes_its_copy_from_a_bucket_along(stage: Stage, s3: str) -> None:
    storage.copy_folder(str(stage.tiny), f"{s3}/tiny")
    storage.copy_folder(str(stage.tiny), f"{s3}/damaged")
    storage.write_bytes(f"{s3}/damaged/README.md", b"changed")
    settings = config.parse(ServeSettings, {"task": "ffr", "bundles": ["b"], "layout": "apart"})
    before = set(process_folder().iterdir())
    model = load_remote(f"{s3}/tiny", None, settings, None)  # type: ignore[arg-type]
    (copy,) = set(process_folder().iterdir()) - before
    assert model.bundle.path.parent == copy
    with pytest.raises(BundleError):
        load_remote(f"{s3}/damaged", None, settings, None)  # type: ignore[arg-type]
    del model
    gc.collect()
    assert set(process_folder().iterdir()) == before


def test_what_cannot_start_says_why(stage: Stage, tmp_path: Path) -> None:
    twice = [str(stage.tiny), str(stage.tiny)]
    settings = config.parse(ServeSettings, {"task": "ffr", "bundles": twice, "cpus": 0.5})
    with pytest.raises(RuntimeError, match=r"ffr did not start: .*Two bundles answer to .*'tiny'"):
        serve_bundles([settings], ServerSettings(port=stage.port))
    damaged = renamed(stage.tiny, tmp_path / "damaged", "damaged")
    (damaged.path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"model\.safetensors was changed after"):
        application_settings([str(damaged.path)])
    with pytest.raises(ValueError, match="mode 'default', and 'fast' was asked for"):
        serve_bundles([settings], ServerSettings(port=stage.port, mode="fast"))
    with pytest.raises(ValueError, match=f"listens on 127.0.0.1:{stage.port}; it does not move"):
        serve_bundles([settings], ServerSettings(port=free_port()))
