"""The engine deployment: a replica is a `quire serve` of its own and the answers to Serve's questions about it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from quire.ray import settings
from quire.ray.config import AppConfig
from quire.ray.forward import Request, Unreachable, forward
from quire.ray.load import Load, LoadMeter
from quire.ray.process import ServerProcess


class EngineServer:
    """One model on this replica's devices, served on a port of the node's address.

    Requests do not come through this object: the ingress, or a client with a reserved slot, talks to `native`. Serve
    counts the reserved slots, so it knows the replica's load and waits for them before it stops the replica.
    """

    async def __init__(self, config: AppConfig) -> None:  # type: ignore[misc]  # Serve awaits it
        import ray.util

        self.config = config
        host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        self._server = await ServerProcess.start(serve_arguments(config, host), config.environment)
        self.native = f"[{host}]:{self._server.port}" if ":" in host else f"{host}:{self._server.port}"
        self._meter = LoadMeter()
        self._load_lock = asyncio.Lock()

    def record_replica_metadata(self) -> dict[str, Any]:
        """Published once with the replica: where it is reached."""
        return {"native": self.native}

    async def describe(self) -> dict[str, Any]:
        """For people and tests: who this replica is and what it does; `handle.broadcast("describe")` asks all."""
        return {"native": self.native, "pid": os.getpid(), "server_pid": self._server.pid, **asdict(await self._load())}

    async def check_health(self) -> None:
        """Raises when the process is gone, or when the engine has work and no step ends."""
        self._server.check()
        status, body = await self._get("/health", self.config.health_check_timeout_s * 0.8)
        if status != 200:
            raise RuntimeError(f"{self.native}/health: {status} {body.decode(errors='replace')}")

    async def record_routing_stats(self) -> dict[str, float]:
        load = await self._load()
        return {"running": load.running, "waiting": load.waiting, "kv_usage": load.kv_usage}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        load = await self._load()
        return {"running": load.running, "waiting": load.waiting, "kv_usage": load.kv_usage, "first_token_s": load.first_token_s}

    async def _load(self) -> Load:
        """The engine's own counters, asked for once however many want them at the moment."""
        async with self._load_lock:
            if self._meter.age_s(time.monotonic()) > settings.STATS_PERIOD_S / 2:
                status, body = await self._get("/metrics", settings.HEALTH_TIMEOUT_S)
                if status == 200:
                    self._meter.take(body.decode(), time.monotonic())
            return self._meter.load

    async def _get(self, path: str, seconds: float) -> tuple[int, bytes]:
        key = self.config.server_options.get("api-key")
        headers = [(b"authorization", b"Bearer " + str(key[0] if isinstance(key, list) else key).encode())] if key else []

        async def ask() -> tuple[int, bytes]:
            async with forward(Request("GET", path, headers, b""), self.native) as reply:
                return reply.status, b"".join([piece async for piece in reply.chunks])

        try:
            return await asyncio.wait_for(ask(), seconds)
        except (Unreachable, asyncio.TimeoutError) as error:
            raise RuntimeError(f"{self.native}{path}: {error or 'no answer in time'}") from error

    async def __del__(self) -> None:
        """Serve calls it after the last slot was given back; what still runs may finish."""
        if hasattr(self, "_server"):
            await self._server.stop(self.config.drain_timeout_s)


def serve_arguments(config: AppConfig, host: str) -> list[str]:
    """The command line of `quire serve` after the verb."""
    values: dict[str, Any] = {
        "host": host,
        "port": 0,
        "served-model-name": config.name,
        "max-num-seqs": config.max_num_seqs,
        "threads": max(1, int(config.cpus_per_replica)),
        "max-connections": config.max_ongoing_requests + 64,
        "max-connections-per-address": config.max_ongoing_requests + 64,
        "shutdown-timeout": int(config.drain_timeout_s * 1000),
        "peer-timeout": settings.PEER_TIMEOUT_MS,
        "access-log": False,
    }
    if config.tensor_parallel_size > 1:
        values["tensor-parallel-size"] = config.tensor_parallel_size
    return [config.model, *option_arguments({**values, **config.server_options})]


def option_arguments(options: Mapping[str, Any]) -> list[str]:
    arguments: list[str] = []
    for name, value in options.items():
        if isinstance(value, bool):
            arguments.append(f"--{name}" if value else f"--no-{name}")
            continue
        for item in value if isinstance(value, list) else [value]:
            arguments += [f"--{name}", str(item)]
    return arguments
