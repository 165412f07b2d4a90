"""`build_app`: from a config to a Serve application.

    from ray import serve
    from quire.ray import AppConfig, build_app

    serve.run(build_app(AppConfig(model="/models/m", num_replicas=4, tensor_parallel_size=2)))

or, in a YAML file for `serve run` and `serve deploy`: `import_path: quire.ray:build_app` with the fields under `args:`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from quire.ray import settings
from quire.ray.autoscale import EnginePolicy
from quire.ray.config import AppConfig
from quire.ray.engine_server import EngineServer
from quire.ray.ingress import Ingress


def build_app(config: AppConfig | Mapping[str, Any]) -> serve.Application:
    """The ingress over one engine deployment."""
    if not isinstance(config, AppConfig):
        config = AppConfig.from_mapping(config)
    return ingress_deployment(config).bind(engine_deployment(config).bind(config))


def engine_deployment(config: AppConfig, name: str = "Engine") -> serve.Deployment:
    """The replicas. Serve starts one on whatever node has the CPUs and GPUs, and replaces it when its health fails."""
    options: dict[str, Any] = {"num_replicas": config.num_replicas}
    if config.autoscaling is not None:
        options = {"autoscaling_config": autoscaling_config(config)}
    deployment: serve.Deployment = serve.deployment(EngineServer)  # type: ignore[assignment]  # their decorator is typed as its own factory
    return deployment.options(
        name=name,
        ray_actor_options={"num_cpus": config.cpus_per_replica, "num_gpus": config.gpus, "resources": dict(config.resources)},
        max_ongoing_requests=config.max_ongoing_requests,
        health_check_period_s=config.health_check_period_s,
        health_check_timeout_s=config.health_check_timeout_s,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=config.drain_timeout_s,
        max_surge_percent=config.max_surge_percent,
        request_router_config=router_config(config),
        **options,
    )


def ingress_deployment(config: AppConfig, name: str = "Ingress", kind: type[Ingress] = Ingress) -> serve.Deployment:
    """The ASGI objects: small, without a GPU; one on each node when there are as many as nodes."""
    deployment: serve.Deployment = serve.deployment(serve.ingress()(kind))  # type: ignore[assignment]
    return deployment.options(
        name=name,
        num_replicas=config.ingress_replicas,
        ray_actor_options={"num_cpus": config.ingress_cpus, "resources": dict(config.ingress_resources)},
        max_surge_percent=100,  # a redeployment without a moment in which none listens
        max_ongoing_requests=8192,
        health_check_period_s=config.health_check_period_s,
        health_check_timeout_s=config.health_check_timeout_s,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=config.drain_timeout_s,
    )


def router_config(config: AppConfig) -> RequestRouterConfig:
    fields: dict[str, Any] = {
        "request_router_class": "quire.ray.router:EngineRouter",
        "request_router_kwargs": {"max_num_seqs": config.max_num_seqs, **asdict(config.routing)},
        "request_routing_stats_period_s": settings.STATS_PERIOD_S,
        "request_routing_stats_timeout_s": settings.HEALTH_TIMEOUT_S,
    }
    return RequestRouterConfig(**fields)


def autoscaling_config(config: AppConfig) -> AutoscalingConfig:
    scaling = config.autoscaling
    assert scaling is not None
    return AutoscalingConfig(
        min_replicas=scaling.min_replicas,
        max_replicas=scaling.max_replicas,
        upscale_delay_s=scaling.upscale_delay_s,
        downscale_delay_s=scaling.downscale_delay_s,
        metrics_interval_s=settings.STATS_PERIOD_S,
        look_back_period_s=2 * settings.STATS_PERIOD_S,
        aggregation_function="max",
        policy=AutoscalingPolicy(  # type: ignore[no-untyped-call]
            policy_function=EnginePolicy,
            policy_kwargs={
                "max_num_seqs": config.max_num_seqs,
                "waiting_per_replica": scaling.waiting_per_replica,
                "running_share": scaling.running_share,
                "kv_usage": scaling.kv_usage,
                "first_token_s": scaling.first_token_s,
            },
        ),
    )
