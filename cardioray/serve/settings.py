"""Settings of a served application and of the server it runs on."""

from __future__ import annotations

import ipaddress
import math
import os
import re
from typing import Literal

from pydantic import Field

from cardioray import storage
from cardioray.config import config

MIB = 2**20
_VARIABLE = re.compile(r"\$\{([A-Z][A-Z0-9_]*)(?::-([^}]*))?\}")


@config
class Limits:
    """What one request may hold. A request beyond a limit is answered with 4xx.

    Attributes:
        max_bytes: of the whole body.
        max_files: in one multipart upload.
        max_frames: over all files of a study; of a cine, what is beyond it is left out.
        max_windows: of a cine, evenly spread; what bounds the time for a long one.
        max_overlays: frames of a study that get an overlay; the first ones.
        upload_s: seconds an upload may take.
        decode_s: seconds that decoding one file may take, where it is done in a process of its own
            because decoders of its kind hang or crash on some files.
        decode_mb: memory of that process.
    """

    max_bytes: int = Field(default=64 * MIB, ge=1)
    max_files: int = Field(default=256, ge=1)
    max_frames: int = Field(default=256, ge=1)
    max_windows: int = Field(default=64, ge=1)
    max_overlays: int = Field(default=4, ge=1)
    upload_s: float = Field(default=60.0, gt=0)
    decode_s: float = Field(default=30.0, gt=0)
    decode_mb: int = Field(default=4096, ge=512)


@config
class Scaling:
    """How many replicas of a deployment there are.

    Attributes:
        min_replicas: kept when idle.
        max_replicas: most that load can bring up; equal to `min_replicas` for a fixed number.
        target_ongoing_requests: requests a replica works on or holds in its queue, on average,
            before another one is started.
        upscale_delay_s: how long the load has to last.
        downscale_delay_s: how long a replica has to be superfluous before it is stopped.
    """

    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=2, ge=1)
    target_ongoing_requests: float = Field(default=8.0, gt=0)
    upscale_delay_s: float = Field(default=3.0, ge=0)
    downscale_delay_s: float = Field(default=60.0, ge=0)

    def __post_init__(self) -> None:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas ({self.max_replicas}) is below min_replicas ({self.min_replicas})."
            )


@config
class NamedBundle:
    """A bundle and the name it answers to.

    Attributes:
        path: local directory or s3:// prefix.
        name: for `?model=`; the bundle's own name by default.
    """

    path: str
    name: str | None = None


@config
class ServeSettings:
    """One application: the models that answer one task at `/v1/<task>`.

    Attributes:
        task: the task; every bundle has to be of it.
        bundles: models; the first answers by default, `?model=NAME` picks another.
        follow: model store whose production bundle of this task answers by default, ahead of
            `bundles`; a promotion or rollback is followed while requests are answered.
        follow_every_s: seconds between two looks at the store.
        systoles_from: bundle of `lv-seg` in whose outlines bundles of `echo-ef` find their beats;
            by default they are told by the predictions.
        runtime: "auto" is OpenVINO where the bundle has it and there is no GPU, else torch.
        precision: "auto" is bf16 where the device is faster so.
        layout: "together" keeps decoding and model in one replica, "apart" has CPU replicas decode
            for GPU replicas; "auto" is apart where `gpus` is above 0.
        cpus: CPU cores of a replica that holds the model, which is also its number of threads.
        gpus: GPUs of a replica that holds the model, fractions allowed.
        ingress_cpus: CPU cores of a decoding replica where they are apart.
        scaling: replicas that hold the model.
        ingress_scaling: decoding replicas where they are apart.
        max_batch_size: frames that go through the network at once.
        batch_wait_ms: how long an idle model waits for a batch to fill. While it is busy, requests
            gather anyway, so that 0 loses nothing on a CPU.
        max_ongoing_requests: requests a replica holds, those that wait for its model included; at
            least twice `max_batch_size`.
        max_queued_requests: requests each proxy holds back for a full application; the next one
            is answered with 503 and Retry-After.
        retry_after_s: what Retry-After says.
        limits: what one request may hold.
        access_log: write a line a request into the replica's log.
        api_keys_file: file with the SHA-256 of API keys; see docs/serving.md.
    """

    task: str
    bundles: tuple[str | NamedBundle, ...] = ()
    follow: str | None = None
    follow_every_s: float = Field(default=5.0, gt=0)
    systoles_from: str | None = None
    runtime: Literal["auto", "openvino", "torch"] = "auto"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    layout: Literal["auto", "together", "apart"] = "auto"
    cpus: float = Field(default=1.0, gt=0)
    gpus: float = Field(default=0.0, ge=0)
    ingress_cpus: float = Field(default=1.0, gt=0)
    scaling: Scaling = Scaling()
    ingress_scaling: Scaling = Scaling()
    max_batch_size: int = Field(default=8, ge=1, le=32)
    batch_wait_ms: float = Field(default=0.0, ge=0, le=1000)
    max_ongoing_requests: int = Field(default=32, ge=1)
    max_queued_requests: int = Field(default=64, ge=1)
    retry_after_s: int = Field(default=1, ge=1)
    limits: Limits = Limits()
    access_log: bool = True
    api_keys_file: str | None = None

    def __post_init__(self) -> None:
        if not self.bundles and not self.follow:
            raise ValueError("bundles: name at least one bundle, or a model store with follow.")
        if self.systoles_from:
            from cardioray.tasks.echo_ef import EchoEfTask  # with torch, which the page is without

            if self.task != EchoEfTask.name:
                raise ValueError(
                    f"systoles_from: applications of {EchoEfTask.name} alone look for systoles, "
                    f"and this one answers {self.task}."
                )
        if self.max_ongoing_requests < 2 * self.max_batch_size:
            raise ValueError(
                f"max_ongoing_requests ({self.max_ongoing_requests}) is below twice "
                f"max_batch_size ({self.max_batch_size}): a replica could never fill a batch "
                "while it computes another one."
            )

    @property
    def apart(self) -> bool:
        """Whether decoding and model live in different replicas."""
        return self.layout == "apart" or (self.layout == "auto" and self.gpus > 0)

    @property
    def named_bundles(self) -> tuple[NamedBundle, ...]:
        """The bundles in one form."""
        return tuple(b if isinstance(b, NamedBundle) else NamedBundle(path=b) for b in self.bundles)

    @property
    def threads(self) -> int:
        """Threads of one forward pass on a CPU."""
        return max(1, math.floor(self.cpus))


@config
class PageSettings:
    """The application at `/`: the page in front of every task, and the ECG questionnaire.

    Attributes:
        max_bytes: of the files of a request that asks which task they suit; what a task takes is
            a matter of its own limits.
        upload_s: seconds such an upload may take.
        max_ongoing_requests: requests that the application works on at a time.
        max_queued_requests: requests each proxy holds back for it; the next one gets 503.
        access_log: write a line a request into the replica's log.
        api_keys_file: file with the SHA-256 of API keys; the one that the tasks have.
    """

    max_bytes: int = Field(default=256 * MIB, ge=1)
    upload_s: float = Field(default=120.0, gt=0)
    max_ongoing_requests: int = Field(default=32, ge=1)
    max_queued_requests: int = Field(default=64, ge=1)
    access_log: bool = True
    api_keys_file: str | None = None


@config
class ServerSettings:
    """The server that carries the applications.

    Attributes:
        host: address to listen on; beyond loopback API keys are required.
        port: HTTP port.
        mode: "default" is Ray Serve's own proxy; "fast" is the HAProxy that Ray ships, with
            several times its throughput and the costs that docs/serving.md lists.
        stats_port: HAProxy's status page in fast mode, on loopback.
        metrics_port: HAProxy's own Prometheus figures in fast mode, on loopback.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    mode: Literal["default", "fast"] = "default"
    stats_port: int = Field(default=8404, ge=1, le=65535)
    metrics_port: int = Field(default=9101, ge=1, le=65535)

    @property
    def url(self) -> str:
        """Where a client on this machine reaches the server."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def is_loopback(host: str | None) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False  # None (every interface) or a host name, which may resolve to anything


def located(path: str) -> str:
    """A path of a setting, absolute and with variables of the environment filled in.

    Args:
        path: local or s3://; `${NAME}` and `${NAME:-default}` stand for variables.

    Raises:
        ValueError: for a variable that is not there.
    """

    def value(match: re.Match[str]) -> str:
        name, default = match.groups()
        found = os.environ.get(name, default)
        if found is None:
            raise ValueError(f"{path}: the environment has no variable {name}.")
        return found

    return storage.absolute(_VARIABLE.sub(value, path))
