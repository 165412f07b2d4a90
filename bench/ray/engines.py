#!/usr/bin/env python3
"""A hundred simulated engines behind the router, in real time, against one of them.

    bench/ray/engines.py [--replicas 10] [--engines 10] [--clients 4] [--places 5] [--tokens 200] [--step 0.05]
                         [--seconds 60] [--output FILE]

Each Ray replica holds several engines on the simulated device, which make a token for each request every `step`
seconds. Clients ask one request after the other, `clients` for each engine: with `places` requests that an engine
computes at once, they ask for clients / places of the capacity. The same load is put on one engine behind the same
router first. Reported: throughput against the engines' number times one engine's, the 99th percentile of latency against
one engine's, and the processor time of the router's choice alone and of the whole process that
routes, sends and reads. Needs root: Ray runs in namespaces of its own, as in
tests/ray.
"""

import argparse
import asyncio
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "tests" / "ray"), str(Path(__file__).resolve().parent)]
os.environ.setdefault("QUIRE_BINARY", str(ROOT / "build" / "quire"))
os.environ.setdefault("QUIRE_LIBRARY", str(ROOT / "build" / "libquire.so"))


def outside():
    """Starts this file again inside namespaces, with Ray's environment from the first instruction."""
    from cluster import environment

    home = tempfile.mkdtemp(prefix="qr", dir="/tmp")
    variables = {**os.environ, **environment(home), "QUIRE_BENCH_INSIDE": "1"}
    variables["PYTHONPATH"] += os.pathsep + str(Path(__file__).resolve().parent)
    command = ["unshare", "-n", "-m", "-p", "-f", "--mount-proc", "--kill-child", "sh", "-c", 'ip link set lo up; exec "$@"', "sh",
               sys.executable, __file__, *sys.argv[1:]]
    try:
        return subprocess.run(command, env=variables, timeout=1500).returncode
    finally:
        shutil.rmtree(home, ignore_errors=True)


def body_of(seed, tokens):
    return json.dumps({"prompt": [1, 2, 3, 4 + seed % 100], "seed": seed, "max_tokens": tokens, "ignore_eos": True}).encode()


class Client:
    """Takes a slot by the router, then the engine of that replica which it has given the fewest requests."""

    def __init__(self, handle, options):
        self.handle, self.options, self.open, self.failures, self.most = handle, options, {}, 0, 0

    async def choose(self, request, avoid, stack):
        from quire.ray.ingress import choose_replica

        replica = await choose_replica(self.handle, request, avoid, stack)
        replica.address = min(replica.metadata["natives"], key=lambda address: self.open.get(address, 0))
        self.open[replica.address] = self.open.get(replica.address, 0) + 1
        self.most = max(self.most, self.open[replica.address])
        stack.callback(lambda: self.open.__setitem__(replica.address, self.open[replica.address] - 1))
        return replica

    async def ask(self, seed):
        from quire.ray.forward import Request
        from quire.ray.ingress import Counters, exchange

        request = Request("POST", "/v1/completions", [(b"content-type", b"application/json"), (b"x-session-id", b"%d" % seed)], body_of(seed, self.options.tokens))
        begin = time.monotonic()
        async with AsyncExitStack() as stack:
            reply = await exchange(request, self.choose, stack, Counters())
            body = b"".join([piece async for piece in reply.chunks])
        self.failures += reply.status != 200 or b'"length"' not in body
        return begin, time.monotonic()

    async def run(self, count):
        """`count` clients until the window is over; it begins after the first round."""
        warm = self.options.tokens * self.options.step
        start = time.monotonic()
        begin, end = start + warm, start + warm + self.options.seconds
        asked = []

        async def one(number):
            await asyncio.sleep(warm * number / count)  # not all in step
            seed = number
            while time.monotonic() < end:
                asked.append(await self.ask(seed))
                seed += count

        cpu = time.process_time()
        await asyncio.gather(*[one(i) for i in range(count)])
        cpu = time.process_time() - cpu
        # A request that a border of the window cuts counts with the share of it inside.
        shares = [max(0.0, min(ended, end) - max(began, begin)) / (ended - began) for began, ended in asked]
        times = sorted(ended - began for began, ended in asked if began >= begin and ended <= end)
        return {"requests": len(asked), "failures": self.failures, "most_at_one_engine": self.most, "tokens_per_s": self.options.tokens * sum(shares) / (end - begin),
                "latency_p50_s": times[len(times) // 2], "latency_p99_s": times[int(len(times) * 0.99)], "latency_max_s": times[-1],
                "cpu_ms_per_request_of_the_routing_process": 1e3 * cpu / len(asked)}


def processor_seconds():
    """Of all processes in these namespaces: Ray, the engines, this one."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def app_of(options, replicas, engines, name):
    from load import TINY, TINY_OPTIONS
    from ray import serve

    from engine_group import EngineGroup
    from quire.ray.app import router_config
    from quire.ray.config import AppConfig

    config = AppConfig(model=TINY, served_model_name="tiny", gpus_per_replica=0, cpus_per_replica=0.1, num_replicas=replicas,
                       max_num_seqs=options.places * engines, max_ongoing_requests=4 * options.places * engines,
                       server_options={**TINY_OPTIONS, "device": f"sim:overhead={options.step}", "log-level": "warn"})
    deployment = serve.deployment(EngineGroup).options(
        name=name, num_replicas=replicas, ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=config.max_ongoing_requests,
        health_check_period_s=10, health_check_timeout_s=30, request_router_config=router_config(config))
    return deployment.bind(config, engines, options.places)


async def router_alone(replicas):
    """Processor time of one choice, without the slot's message."""
    from quire.ray.router import EngineRouter

    class Replica:
        def __init__(self, number):
            self.replica_id = type("Id", (), {"unique_id": f"r{number}"})()
            self.routing_stats = {"running": number, "waiting": 0, "kv_usage": 0.1}

    router = EngineRouter.__new__(EngineRouter)
    router.initialize_state(max_num_seqs=50)
    router._replica_queue_len_cache = type("Cache", (), {"get": lambda self, key: 3})()
    wanted = type("Pending", (), {"kwargs": {"prefix": list(range(8)), "avoid": []}})()
    candidates = [Replica(i) for i in range(replicas)]
    begin = time.process_time()
    for _ in range(5000):
        await router.choose_replicas(candidates, wanted)
    return (time.process_time() - begin) / 5000


async def measure(options):
    from ray import serve

    results = {}
    for name, replicas, engines in (("One", 1, 1), ("Many", options.replicas, options.engines)):
        handle = serve.get_deployment_handle(name, name.lower())
        busy, began = processor_seconds(), time.monotonic()
        results[name.lower()] = await Client(handle, options).run(options.clients * replicas * engines)
        results[name.lower()]["processors_busy_with_it"] = (processor_seconds() - busy) / (time.monotonic() - began) / os.cpu_count()
    results["router_ms_per_request"] = 1e3 * await router_alone(options.replicas)
    return results


def inside(options):
    import ray
    from cluster import GCS, Cluster, run_app
    from ray import serve

    Cluster(head_cpus=8)
    ray.init(address=GCS, log_to_driver=False)
    serve.start(proxy_location="Disabled")
    serve.run(app_of(options, 1, 1, "One"), name="one", route_prefix=None)
    run_app(app_of(options, options.replicas, options.engines, "Many"), name="many", route_prefix=None)
    results = asyncio.run(measure(options))
    count = options.replicas * options.engines
    one, many = results["one"], results["many"]
    results["linear"] = many["tokens_per_s"] / (count * one["tokens_per_s"])
    results["p99_against_one"] = many["latency_p99_s"] / one["latency_p99_s"] - 1
    document = {"what": f"{count} simulated engines behind the router against one", "options": vars(options), "share_of_capacity": options.clients / options.places,
                "machine": f"{platform.machine()}, {os.cpu_count()} CPUs", **results}
    print(json.dumps(document, indent=1))
    if options.output:
        Path(options.output).write_text(json.dumps(document, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, kind, value in (("replicas", int, 10), ("engines", int, 10), ("clients", int, 4), ("places", int, 5), ("tokens", int, 200),
                              ("step", float, 0.05), ("seconds", float, 60.0), ("output", str, None)):
        parser.add_argument(f"--{name}", type=kind, default=value)
    options = parser.parse_args()
    if os.environ.get("QUIRE_BENCH_INSIDE") != "1":
        sys.exit(outside())
    inside(options)


if __name__ == "__main__":
    main()
