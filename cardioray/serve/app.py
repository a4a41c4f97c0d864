"""How Serve builds the application of one task.

`cardioray.serve.app:build` is what a Serve config names as `import_path`; its `args` are
`ServeSettings`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import AutoscalingConfig, BackpressureConfig, RequestRouterConfig

from cardioray import config
from cardioray.serve.replica import Answerer, ModelReplica
from cardioray.serve.settings import Scaling, ServeSettings, located

# Time a replica has to finish what it holds once Serve wants it gone.
GRACEFUL_SHUTDOWN_S = 60.0
# By default Serve collects figures every 10 s and averages 30 s: too slow for a burst of studies.
METRICS_INTERVAL_S = 1.0
LOOK_BACK_S = 5.0
# A proxy that found every replica full asks again after this time. Serve's own waits grow to 0.5 s,
# in which replicas that have room again stand still.
ASK_AGAIN_S = 0.01


def build(args: Mapping[str, Any]) -> Application:
    """Make the application that `args` describe.

    Args:
        args: `ServeSettings` in their written form. In paths, `${NAME}` and `${NAME:-default}`
            stand for variables of the environment.

    Raises:
        ValueError: for an unknown key or a wrong value; names the key.
    """
    settings = _located(config.parse(ServeSettings, args))
    written = config.to_dict(settings)
    common: dict[str, Any] = {
        "max_ongoing_requests": settings.max_ongoing_requests,
        "max_queued_requests": settings.max_queued_requests,
        "backpressure_config": BackpressureConfig(
            status_code=503, retry_after_s=settings.retry_after_s
        ),
        "request_router_config": RequestRouterConfig(
            initial_backoff_s=ASK_AGAIN_S, backoff_multiplier=1, max_backoff_s=ASK_AGAIN_S
        ),
        # Serve's own access log writes paths and request ids as the client sends them.
        "logging_config": {"enable_access_log": False},
        "health_check_period_s": 5.0,
        "health_check_timeout_s": 30.0,
        "graceful_shutdown_timeout_s": GRACEFUL_SHUTDOWN_S,
        "graceful_shutdown_wait_loop_s": 0.5,
        "max_constructor_retry_count": 2,  # a bundle that is wrong stays wrong
    }
    with_network: dict[str, Any] = {"num_cpus": settings.cpus, "num_gpus": settings.gpus}
    answerer = _deployment(serve.ingress()(Answerer))
    if not settings.apart:
        options = _scaled(settings.scaling) | {"ray_actor_options": with_network}
        return answerer.options(**common, **options).bind(written)
    network = _deployment(ModelReplica).options(
        **common, **_scaled(settings.scaling), ray_actor_options=with_network
    )
    decoding = {"num_cpus": settings.ingress_cpus}
    return answerer.options(
        **common, **_scaled(settings.ingress_scaling), ray_actor_options=decoding
    ).bind(written, network.bind(written))


def _deployment(kind: type) -> Deployment:
    deployment: Any = serve.deployment(kind)
    assert isinstance(deployment, Deployment)
    return deployment


def _scaled(scaling: Scaling) -> dict[str, Any]:
    if scaling.min_replicas == scaling.max_replicas:
        return {"num_replicas": scaling.min_replicas}
    with warnings.catch_warnings():
        # The interval is to move into variables that this release does not read yet.
        warnings.filterwarnings("ignore", "The `metrics_interval_s`", DeprecationWarning)
        return {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=scaling.min_replicas,
                max_replicas=scaling.max_replicas,
                target_ongoing_requests=scaling.target_ongoing_requests,
                upscale_delay_s=scaling.upscale_delay_s,
                downscale_delay_s=scaling.downscale_delay_s,
                metrics_interval_s=METRICS_INTERVAL_S,
                look_back_period_s=LOOK_BACK_S,
            )
        }


def _located(settings: ServeSettings) -> ServeSettings:
    """The settings with variables filled in and local paths absolute, for other working folders."""
    bundles = [
        {"path": located(item.path), **({"name": item.name} if item.name else {})}
        for item in settings.named_bundles
    ]
    changes: dict[str, Any] = {"bundles": bundles}
    for name in ("follow", "systoles_from", "api_keys_file"):
        if value := getattr(settings, name):
            changes[name] = located(value)
    return config.parse(ServeSettings, config.to_dict(settings) | changes)
