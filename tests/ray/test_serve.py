"""build_app on one Ray, one node: the routes, and under streaming load a killed replica, a hung server, a new version,
scaling out and in."""
import asyncio
import os
import signal
import time
from pathlib import Path

import httpx
import pytest
import ray
from cluster import GCS, Cluster, run_app
from load import OPTIONS, TINY, URL, Load, completion
from ray import serve

from quire.ray import build_app
from quire.ray.direct import direct

CONFIG = {"model": TINY, "served_model_name": "tiny", "num_replicas": 2, "gpus_per_replica": 0, "max_num_seqs": 16, "drain_timeout_s": 20.0}


@pytest.fixture(scope="module", autouse=True)
def app():
    Cluster(head_cpus=8)
    ray.init(address=GCS, log_to_driver=False)
    run_app(build_app({**CONFIG, "server_options": OPTIONS}))
    yield
    ray.shutdown()


async def replicas():
    return [r for r in await serve.get_deployment_handle("Engine", "default").broadcast("describe").results_async()]


def is_gone(pid):
    """Ended, though nobody may have waited for it in this pid namespace."""
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or "State:\tZ" in status.read_text()


async def wait_for_replicas(count, seconds, without=()):
    end = time.monotonic() + seconds
    while True:
        try:
            now = await replicas()
        except Exception:  # one of them has just died
            now = []
        if len(now) == count and not {r["native"] for r in now} & set(without):
            return now
        assert time.monotonic() < end, f"{len(now)} of {count} replicas after {seconds} s"
        await asyncio.sleep(0.2)


def test_the_routes_are_the_servers():
    assert [m["id"] for m in httpx.get(URL + "/v1/models").json()["data"]] == ["tiny"]
    assert httpx.get(URL + "/health").json() == {"status": "ok"}
    assert httpx.get(URL + "/v1/nothing").status_code == 404
    reply = httpx.post(URL + "/v1/completions", json={**completion(0, 5), "temperature": -1})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "temperature"
    whole = httpx.post(URL + "/v1/completions", json={**completion(0, 5), "stream": False})
    assert whole.json()["usage"]["completion_tokens"] == 5 and whole.headers["x-quire-seed"] == "0"
    assert httpx.post(URL + "/v1/completions", content=b"x" * (17 << 20), timeout=60).status_code == 413
    assert "quire_ingress_requests_total" in httpx.get(URL + "/metrics").text


def test_load_spreads_and_prompts_stay():
    async def run():
        async with Load(streams=8, tokens=50, pause=0) as load:
            await asyncio.sleep(2)
        report = load.report()
        assert report["failed"] == report["lost"] == report["repeated"] == 0
        counts = [httpx.get(f"http://{r['native']}/metrics").text for r in await replicas()]
        served = [sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("vllm:request_success_total")) for text in counts]
        assert len(served) == 2 and min(served) > 0, served

    asyncio.run(run())


def test_the_direct_path_holds_a_slot():
    async def run():
        async with direct(serve.get_deployment_handle("Engine", "default"), session="s") as url:
            assert url[len("http://"):] in [r["native"] for r in await replicas()]
            async with Load(streams=2, tokens=100, url=url) as load:
                await asyncio.sleep(0.5)
            report = load.report()
        assert report["failed"] == report["lost"] == report["repeated"] == 0

    asyncio.run(run())


def test_killed_replica():
    """Its open streams go on elsewhere (test_resume.py has the whole of it); nothing fails."""
    async def run():
        async with Load() as load:
            await asyncio.sleep(1)
            victim = (await replicas())[0]
            killed = time.monotonic()
            os.kill(victim["pid"], signal.SIGKILL)
            after = [await load.ask(0, 20) for _ in range(10)]
            answered = time.monotonic() - killed
            assert not any(s.failure for s in after)
            await wait_for_replicas(2, 60, without=[victim["native"]])
            print(f"replaced after {time.monotonic() - killed:.1f} s; 10 new requests answered within {answered:.2f} s")
        report = load.report()
        assert report["failed"] == report["lost"] == report["repeated"] == 0
        assert is_gone(victim["server_pid"])

    asyncio.run(run())


def test_hung_server_is_replaced_and_its_new_requests_go_elsewhere():
    async def run():
        victim = (await replicas())[0]
        async with Load(streams=0, tokens=20) as load:
            os.kill(victim["server_pid"], signal.SIGSTOP)
            streams = await asyncio.wait_for(asyncio.gather(*[load.ask(i) for i in range(8)]), 60)
        assert [s.failure for s in streams] == [None] * 8
        await wait_for_replicas(2, 60, without=[victim["native"]])

    asyncio.run(run())


def test_new_version():
    async def run():
        before = await replicas()
        async with Load() as load:
            await asyncio.sleep(0.5)
            options = {**OPTIONS, "max-model-len": 2048}
            await asyncio.to_thread(serve.run, build_app({**CONFIG, "server_options": options}))
            await wait_for_replicas(2, 60, without=[r["native"] for r in before])
        report = load.report()
        assert report["failed"] == report["lost"] == report["repeated"] == 0

    asyncio.run(run())


def test_scaling_out_and_in():
    scaling = {"min_replicas": 1, "max_replicas": 3, "waiting_per_replica": 2, "upscale_delay_s": 0.5, "downscale_delay_s": 2}
    config = {**CONFIG, "max_num_seqs": 4, "autoscaling": scaling, "server_options": OPTIONS}

    async def run():
        await asyncio.to_thread(serve.run, build_app(config))
        await wait_for_replicas(1, 60)
        async with Load(streams=1, tokens=300, pause=0) as trickle:
            async with Load(streams=24, tokens=300, pause=0) as load:
                begin = time.monotonic()
                await wait_for_replicas(3, 90)
                print(f"1 -> 3 replicas in {time.monotonic() - begin:.1f} s")
            begin = time.monotonic()
            await wait_for_replicas(1, 90)
            print(f"3 -> 1 replicas in {time.monotonic() - begin:.1f} s after the load went")
        for report in (load.report(), trickle.report()):
            assert report["failed"] == report["lost"] == report["repeated"] == 0

    asyncio.run(run())
