"""A replica with several engines in it: what bench/ray/engines.py deploys."""

import asyncio

from quire.ray.engine_server import EngineServer, serve_arguments
from quire.ray.load import Load, LoadMeter
from quire.ray.process import ServerProcess


class EngineGroup(EngineServer):
    async def __init__(self, config, engines, places):
        self.config = config
        arguments = [w for w in serve_arguments(config, "127.0.0.1")]
        arguments[arguments.index("--max-num-seqs") + 1] = str(places)
        self._servers = [await ServerProcess.start(arguments, config.environment) for _ in range(engines)]
        self.natives = [f"127.0.0.1:{server.port}" for server in self._servers]
        self._meter, self._load_lock = LoadMeter(), asyncio.Lock()

    def record_replica_metadata(self):
        return {"native": self.natives[0], "natives": self.natives}

    async def check_health(self):
        for server in self._servers:
            server.check()

    async def _load(self):
        """The router's own count is exact here: one process sends everything."""
        return Load()

    async def record_routing_stats(self):
        return {}

    async def __del__(self):
        for server in getattr(self, "_servers", ()):
            server.kill()
