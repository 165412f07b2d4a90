"""Streams under load on a cluster of network namespaces: a killed replica, a killed node, a cut network. Nothing is lost
or repeated, no request fails, and no stream stands still for more than ten seconds."""
import asyncio
import os
import signal
import sys
import time

import httpx
import pytest
import ray
from cluster import GCS, Cluster, run_app, wait_until
from load import TINY, TINY_OPTIONS, URL, Load
from ray import serve

from quire.ray import build_app

GAP_MAX_S = 10.0
# A token each 50 ms, drawn from a hash of what stands before it: a wrong resume shows in all that follows.
OPTIONS = {**TINY_OPTIONS, "device": "sim:overhead=0.05"}
CONFIG = {"model": TINY, "served_model_name": "tiny", "num_replicas": 2, "gpus_per_replica": 1, "cpus_per_replica": 0.5, "ingress_resources": {"node:__internal_head__": 0.01}, "max_num_seqs": 16,
          "server_options": OPTIONS}


@pytest.fixture(scope="module")
def cluster():
    """The way in on the head; three workers with a place each, of which one is spare."""
    made = Cluster(workers=3, head_cpus=4, worker={"cpus": 2, "gpus": 1})
    ray.init(address=GCS, log_to_driver=False)
    run_app(build_app(CONFIG))
    yield made
    ray.shutdown()


async def replicas():
    return list(await serve.get_deployment_handle("Engine", "default").broadcast("describe").results_async())


async def wait_for_replicas(count, seconds, without=()):
    end = time.monotonic() + seconds
    while True:
        try:
            now = await asyncio.wait_for(replicas(), 5)
        except Exception:  # one of them has just died
            now = []
        if len(now) == count and not {r["native"] for r in now} & set(without):
            return now
        assert time.monotonic() < end, f"{len(now)} of {count} replicas after {seconds} s"
        await asyncio.sleep(0.2)


def resumed():
    text = httpx.get(URL + "/metrics", timeout=30).text
    return {name: float(line.split()[-1]) for line in text.splitlines() for name in ("resumed_total", "resumed_inexact_total", "lost_total")
            if line.startswith(f"quire_ingress_{name} ")}


async def under_load(what, break_it):
    """Breaks the busiest replica under the load of six streams of six seconds each."""
    before = resumed()
    async with Load(streams=6, tokens=120) as load:
        victim = {"running": 0}
        while victim["running"] < 2:
            victim = max(await replicas(), key=lambda r: r["running"])
        broken = time.monotonic()
        break_it(victim)
        await asyncio.sleep(12)
    report, after = load.report(), resumed()
    count = after["resumed_total"] - before["resumed_total"]
    print(f"{what}: {report['requests']} streams, {report['failed']} failed, {report['lost']} tokens lost, {report['repeated']} repeated, "
          f"longest gap {report['longest_gap_s']} s, {count:.0f} resumed")
    assert report["failed"] == report["lost"] == report["repeated"] == 0, report
    assert count > 0 and after["lost_total"] == before["lost_total"] == 0 and after["resumed_inexact_total"] == 0
    assert report["longest_gap_s"] <= GAP_MAX_S
    await wait_for_replicas(2, 240, without=[victim["native"]])
    print(f"{what}: full strength within {time.monotonic() - broken:.1f} s")


def node_of(cluster, victim):
    return next(node for node in cluster.nodes if victim["native"].startswith(node.ip + ":"))


def test_replica_killed(cluster):
    asyncio.run(under_load("replica killed", lambda victim: os.kill(host_pid(cluster, victim), signal.SIGKILL)))


def host_pid(cluster, victim):
    """The replica's pid as this namespace sees it."""
    node = node_of(cluster, victim)
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/status") as status:
                ids = next(line.split()[1:] for line in status if line.startswith("NSpid:"))
            same = os.readlink(f"/proc/{entry}/ns/pid") == os.readlink(f"/proc/{node.pid}/ns/pid")
        except (OSError, StopIteration):
            continue
        if same and int(ids[-1]) == victim["pid"]:
            return int(entry)
    raise AssertionError(f"no process {victim['pid']} on {node.ip}")


def test_node_killed(cluster):
    asyncio.run(under_load("node killed", lambda victim: node_of(cluster, victim).kill()))
    cluster.add(cpus=2, gpus=1)


def test_network_cut(cluster):
    cut = {}

    def cut_link(victim):
        cut.update(victim)
        node_of(cluster, victim).cut()

    asyncio.run(under_load("network cut", cut_link))
    # The isolated replica has stopped computing, be it that its clients acknowledged nothing or that Ray has ended it.
    wait_until(lambda: running_at(node_of(cluster, cut), cut["native"]) == 0, 20, "it computes on")


def running_at(node, native):
    """What a server says to a process on its own node; 0 when there is no server any more."""
    program = f"""
import urllib.request
try:
    text = urllib.request.urlopen("http://{native}/metrics", timeout=5).read().decode()
except OSError:
    text = ""
print(sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("vllm:num_requests_running{{")))
"""
    return float(node.run([sys.executable, "-c", program]))
