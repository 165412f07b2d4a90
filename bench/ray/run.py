#!/usr/bin/env python3
"""What the way through Ray Serve costs, against the replica's own port, in one run on one Ray.

    bench/ray/run.py [--haproxy] [--throughput] [--streams 128] [--tokens 600] [--output FILE]

A replica on the simulated device makes a token every 10 ms for each of the streams. Three paths are measured one after
the other, each twice, the better run counts (the other is in the file): the replica's native port, Serve's proxy, and
the native port as fast as it goes. Needs root: Ray runs in namespaces of its own, as in tests/ray.
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
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "tests" / "ray"), str(Path(__file__).resolve().parent)]
os.environ.setdefault("QUIRE_BINARY", str(ROOT / "build" / "quire"))
os.environ.setdefault("QUIRE_LIBRARY", str(ROOT / "build" / "libquire.so"))
STEP_S = 0.01
RAMP_S = 4.0


def outside(options):
    """Starts this file again inside namespaces, with Ray's environment from the first instruction."""
    from cluster import environment

    home = tempfile.mkdtemp(prefix="qr", dir="/tmp")
    variables = {**os.environ, **environment(home, haproxy=options.haproxy, throughput=options.throughput), "QUIRE_BENCH_INSIDE": "1"}
    command = ["unshare", "-n", "-m", "-p", "-f", "--mount-proc", "--kill-child", "sh", "-c", 'ip link set lo up; exec "$@"', "sh",
               sys.executable, __file__, *sys.argv[1:]]
    try:
        return subprocess.run(command, env=variables, timeout=900).returncode
    finally:
        shutil.rmtree(home, ignore_errors=True)


def cpu_seconds():
    """CPU time of what runs here so far, by part of the path."""
    parts = {"ProxyActor": "proxy", "Ingress": "ingress", "Engine": "replica actor", "quire": "server", "haproxy": "haproxy", "ServeController": "controller"}
    total = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text().replace("\0", " ")
            ticks = (folder / "stat").read_text().rpartition(")")[2].split()[11:13]
        except OSError:
            continue
        name = next((part for key, part in parts.items() if key in words.split(" -", 1)[0]), "client" if "run.py" in words else "other")
        total[name] = total.get(name, 0.0) + sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    return total


async def run_counted(streams, *arguments):
    before = cpu_seconds()
    summary = (await streams.run(*arguments)).summary()
    after = cpu_seconds()
    return {**summary, "cpu_s": {name: round(value - before.get(name, 0.0), 2) for name, value in after.items() if value - before.get(name, 0.0) >= 0.01}}


async def measure(options):
    import streams
    from ray import serve

    replicas = await serve.get_deployment_handle("Engine", "default").broadcast("describe").results_async()
    fast = await serve.get_deployment_handle("Engine", "fast").broadcast("describe").results_async()
    paths = {"native": replicas[0]["native"], "serve": "127.0.0.1:8000"}
    results = {}
    for _ in range(2):
        for name, address in paths.items():
            results.setdefault(name, []).append(await run_counted(streams, address, options.streams, options.tokens, RAMP_S))
    for _ in range(2):
        result = await run_counted(streams, fast[0]["native"], options.streams, 4000, 0.0)
        results.setdefault("native_unpaced", []).append({**result, "tokens_per_s": round(options.streams * 4000 / result["seconds"])})
    return results


def report(options, results):
    wanted = options.streams / STEP_S
    ideal_s = options.tokens * STEP_S + RAMP_S
    best = {name: max(runs, key=lambda r: r.get("tokens_per_s", r["events_per_s"])) for name, runs in results.items()}
    native, through = best["native"], best["serve"]
    for row in (native, through):
        row["tokens_per_s"] = round(options.streams * options.tokens / row["seconds"])
        row["delivered_share"] = round(min(1.0, ideal_s / row["seconds"]), 4)
    return {
        "what": "SSE through Ray Serve against the replica's native port, one run",
        "command": " ".join(["bench/ray/run.py", *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} CPUs shared with other work (load average {os.getloadavg()[0]:.1f} at the end, own nice {os.nice(0)}), {platform.machine()}",
        "settings": {"haproxy": options.haproxy, "throughput": options.throughput},
        "streams": options.streams, "tokens": options.tokens, "paced_tokens_per_s": wanted,
        "native": native, "serve": through, "native_unpaced": best["native_unpaced"],
        "serve_against_native": {
            "delivered": round(native["seconds"] / through["seconds"], 4),
            "added_first_token_ms_p50": round(through["first_token_ms_p50"] - native["first_token_ms_p50"], 2),
        },
        "all_runs": results,
    }


def inside(options):
    import ray
    from cluster import GCS, Cluster, run_app
    from load import TINY
    from ray import serve

    from quire.ray import build_app

    Cluster(head_cpus=8)
    ray.init(address=GCS, log_to_driver=False)
    server = {"hf-overrides": '{"max_position_embeddings": 8192}', "kv-cache-memory-bytes": "2GiB"}
    config = {"model": TINY, "served_model_name": "tiny", "gpus_per_replica": 0, "max_num_seqs": 256}
    run_app(build_app({**config, "server_options": {**server, "device": f"sim:overhead={STEP_S}"}}))
    serve.run(build_app({**config, "server_options": {**server, "device": "sim:overhead=0"}}), name="fast", route_prefix="/fast")
    text = json.dumps(report(options, asyncio.run(measure(options))), indent=1)
    print(text)
    if options.output:
        Path(options.output).write_text(text + "\n")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--haproxy", action="store_true")
    parser.add_argument("--throughput", action="store_true")
    parser.add_argument("--streams", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=600)
    parser.add_argument("--output")
    options = parser.parse_args()
    return inside(options) if os.environ.get("QUIRE_BENCH_INSIDE") else outside(options)


if __name__ == "__main__":
    sys.exit(main())
