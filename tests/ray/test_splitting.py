"""Two versions under load: weights changed live, sessions that stay, a version made slow that the guard takes back."""
import asyncio
import os
import signal
import time

import httpx
import pytest
import ray
from cluster import GCS, Cluster, run_app
from load import TINY, TINY_OPTIONS, URL, completion
from ray import serve

from quire.ray.config import AppConfig
from quire.ray.splitting import Guard, SplitConfig, build_split_app, set_weights_async

VERSION = {"model": TINY, "served_model_name": "tiny", "gpus_per_replica": 0, "cpus_per_replica": 0.5, "max_num_seqs": 32,
           "server_options": {**TINY_OPTIONS, "device": "sim:overhead=0.005"}}


@pytest.fixture(scope="module", autouse=True)
def app():
    Cluster(head_cpus=8)
    ray.init(address=GCS, log_to_driver=False)
    guard = Guard(window_s=10, requests_min=15, latency_ratio=3, latency_margin_s=0.15)
    run_app(build_split_app(SplitConfig(versions={"a": AppConfig(**VERSION), "b": AppConfig(**VERSION)}, weights={"a": 1, "b": 0}, stable="a", guard=guard)))
    yield
    ray.shutdown()


class Load:
    """Short streams of new sessions; who gave each, and what failed."""

    def __init__(self, clients=6):
        self.clients, self.seen, self.failures, self.tasks = clients, [], [], []
        self.client = httpx.AsyncClient(timeout=60)

    async def ask(self, session):
        began = time.monotonic()
        reply = await self.client.post(URL + "/v1/completions", json=completion(0, 10), headers={"x-session-id": session})
        if reply.status_code != 200 or not reply.text.endswith("data: [DONE]\n\n") or '"error"' in reply.text:
            self.failures.append(f"{reply.status_code} {reply.text[-200:]}")
        self.seen.append((began, reply.headers.get("x-quire-version")))
        return reply.headers.get("x-quire-version")

    async def _run(self, number):
        for i in range(1 << 30):
            try:
                await self.ask(f"{number}-{i}")
            except httpx.HTTPError as error:
                self.failures.append(repr(error))

    async def __aenter__(self):
        self.tasks = [asyncio.create_task(self._run(i)) for i in range(self.clients)]
        return self

    async def __aexit__(self, *_):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.client.aclose()

    def versions(self, since=0.0):
        return [v for at, v in self.seen if at >= since]

    async def wait_for(self, count, since, seconds=30):
        end = time.monotonic() + seconds
        while len(self.versions(since)) < count:
            assert time.monotonic() < end, "the load stands still"
            await asyncio.sleep(0.05)


async def state():
    return (await serve.get_deployment_handle("Ingress", "default").broadcast("split_state").results_async())[0]


def test_weights_change_live_and_nothing_fails():
    async def run():
        async with Load() as load:
            await load.wait_for(20, 0)
            assert set(load.versions()) == {"a"}
            for weights, wanted in (({"a": 1, "b": 1}, {"a", "b"}), ({"b": 1}, {"b"}), ({"a": 1}, {"a"})):
                asked = time.monotonic()
                await set_weights_async(weights)
                done = time.monotonic()
                await load.wait_for(40, done)
                late = [at - asked for at, v in load.seen if at > asked and v not in wanted]
                print(f"weights {weights}: set in {done - asked:.3f} s, the last request by the old ones began {max(late, default=0.0):.3f} s after the call")
                assert set(load.versions(done)) == wanted
        assert load.failures == []

    asyncio.run(run())


def test_sessions_stay_with_their_version():
    async def run():
        load = Load()
        await set_weights_async({"a": 1, "b": 1})
        first = [await load.ask(f"s{i}") for i in range(20)]
        assert set(first) == {"a", "b"} and first == [await load.ask(f"s{i}") for i in range(20)]
        await set_weights_async({"a": 1, "b": 3})
        moved = [(was, now) for was, now in zip(first, [await load.ask(f"s{i}") for i in range(20)]) if was != now]
        assert all(move == ("a", "b") for move in moved) and load.failures == []
        await load.client.aclose()

    asyncio.run(run())


def test_wrong_weights_change_nothing():
    async def run():
        before = (await state())["weights"]
        for wrong in ({"c": 1}, {"a": -1}, {}):
            with pytest.raises(Exception, match="weights"):
                await set_weights_async(wrong)
        assert (await state())["weights"] == before

    asyncio.run(run())


def test_a_version_made_slow_is_rolled_back():
    """The fault: version b's server is stopped for most of the time."""
    async def run():
        server = (await serve.get_deployment_handle("Engine-b", "default").broadcast("describe").results_async())[0]["server_pid"]
        await set_weights_async({"a": 1, "b": 1})
        async with Load() as load:
            await load.wait_for(80, time.monotonic())
            assert (await state())["weights"] == {"a": 1.0, "b": 1.0}  # as good as the other: the guard leaves it
            slow = time.monotonic()
            while (now := await state())["weights"]["b"] > 0:
                assert time.monotonic() < slow + 60, "not rolled back"
                os.kill(server, signal.SIGSTOP)
                await asyncio.sleep(0.8)
                os.kill(server, signal.SIGCONT)
                await asyncio.sleep(0.1)
            back = time.monotonic()
            await load.wait_for(20, back)
            assert set(load.versions(back)) == {"a"} and now["weights"] == {"a": 2.0, "b": 0.0}
        print(f"rolled back {back - slow:.1f} s after it became slow: {now['decisions'][-1]['reason']}")
        assert load.failures == [] and now["decisions"][-1]["decision"] == "rollback" and "first byte" in now["decisions"][-1]["reason"]
        text = httpx.get(URL + "/metrics", timeout=30).text
        assert 'quire_split_decisions_total{kind="rollback"} 1' in text and 'quire_split_weight{version="b"} 0.0' in text

    asyncio.run(run())
