# settings: haproxy throughput
"""The same application behind HAProxy, with Serve's throughput settings: nothing fails, also while a replica is killed."""
import asyncio
import os
import signal

import ray
from cluster import GCS, Cluster, run_app
from load import OPTIONS, TINY, Load
from ray import serve

from quire.ray import build_app


def test_streams_outlive_a_killed_replica():
    Cluster(head_cpus=8)
    ray.init(address=GCS, log_to_driver=False)
    assert os.environ["RAY_SERVE_ENABLE_HA_PROXY"] == "1" and os.environ["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"

    async def run():
        async with Load(streams=6, tokens=100) as load:
            await asyncio.sleep(2)
            engines = serve.get_deployment_handle("Engine", "default")
            victim = (await engines.broadcast("describe").results_async())[0]
            os.kill(victim["pid"], signal.SIGKILL)
            await asyncio.sleep(3)
        report = load.report()
        assert report["requests"] > load.streams
        assert report["failed"] == report["lost"] == report["repeated"] == 0, report

    config = {"model": TINY, "served_model_name": "tiny", "num_replicas": 2, "gpus_per_replica": 0, "max_num_seqs": 16}
    run_app(build_app({**config, "server_options": OPTIONS}))
    asyncio.run(run())
    ray.shutdown()
