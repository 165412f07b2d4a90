"""Parts of quire.ray without a cluster: what is sent and read byte by byte, costs, the policy, config, types."""
import asyncio
import json
import os
import re
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from quire.ray import AppConfig, settings
from quire.ray.autoscale import EnginePolicy
from quire.ray.engine_server import serve_arguments
from quire.ray.forward import Lost, Request, Unreachable, forward
from quire.ray.ingress import Counters, prefix_keys
from quire.ray.load import LoadMeter, parse_metrics, quantile
from quire.ray.resume import Progress, continuation, lasting, read_marks

ROOT = Path(__file__).resolve().parents[2]


def ask(pieces, request=None):
    """What forward makes of a server that writes these pieces and closes: (what it was sent, reply or error)."""
    request = request or Request("POST", "/v1/x?a=1", [(b"x-a", b"b"), (b"connection", b"keep-alive")], b"{}")
    seen = {}

    async def serve(reader, writer):
        seen["head"] = await reader.readuntil(b"\r\n\r\n")
        seen["body"] = await reader.readexactly(len(request.body))
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.02)
        writer.close()

    async def run():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        address = "127.0.0.1:%d" % server.sockets[0].getsockname()[1]
        got = []
        try:
            async with forward(request, address) as reply:
                async for piece in reply.chunks:
                    got.append(piece)
            return seen, reply.status, reply.headers, got, None
        except (Lost, Unreachable) as error:
            return seen, None, None, got, error
        finally:
            server.close()

    return asyncio.run(run())


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def test_a_request_goes_out_as_http_1_0_without_hop_headers():
    seen, status, headers, got, error = ask([b"HTTP/1.1 201 X\r\nContent-Length: 3\r\nX-Y: z\r\n\r\n", b"abc"])
    assert seen["head"].startswith(b"POST /v1/x?a=1 HTTP/1.0\r\n") and b"x-a: b\r\n" in seen["head"] and b"keep-alive" not in seen["head"]
    assert seen["body"] == b"{}" and status == 201 and (b"x-y", b"z") in headers and b"".join(got) == b"abc" and error is None


def test_a_stream_is_cut_only_between_events():
    got = ask([STREAM + b"data: 1\n\nda", b"ta: 2\n\ndata: 3\n", b"\ndata: [DO", b"NE]\n\n"])[3]
    assert got == [b"data: 1\n\n", b"data: 2\n\n", b"data: 3\n\n", b"data: [DONE]\n\n"]


@pytest.mark.parametrize("pieces, kind, kept", [
    ([], Unreachable, []),
    ([b"HTTP/1.1 200"], Unreachable, []),
    ([b"nonsense\r\n\r\n"], Unreachable, []),
    ([STREAM + b"data: 1\n\ndata: 2"], Lost, [b"data: 1\n\n"]),
    ([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"], Lost, [b"abc"]),
])
def test_what_breaks_is_told_apart(pieces, kind, kept):
    got, error = ask(pieces)[3:]
    assert isinstance(error, kind) and got == kept


def test_nobody_there_is_unreachable():
    async def run():
        async with forward(Request("GET", "/", [], b""), "127.0.0.1:1"):
            pass

    with pytest.raises(Unreachable, match="127.0.0.1:1"):
        asyncio.run(run())


def test_prefix_keys_follow_the_bytes_of_the_prompt():
    def keys(text, model="m", headers=()):
        return prefix_keys(Request("POST", "/", list(headers), f'{{"model":"{model}","prompt":"{text}"}}'.encode()))

    short, long, other = keys("a" * 600), keys("a" * 1200), keys("b" * 600)
    assert len(short) == 2 and len(long) == 4 and long[:2] == short and short[0] != other[0]
    assert keys("a" * 600, model="longer-name") == short
    assert len(keys("hi")) == 1 and keys("hi") != keys("ho")
    assert keys("hi", headers=[(b"x-session-id", b"s")]) == keys("ho", headers=[(b"x-session-id", b"s")])
    assert prefix_keys(Request("GET", "/v1/models", [], b"")) == []


METRICS = """# HELP x
vllm:num_requests_running{{model_name="m"}} 3
vllm:num_requests_waiting{{model_name="m"}} 2
vllm:kv_cache_usage_perc{{model_name="m"}} 0.25
vllm:time_to_first_token_seconds_bucket{{model_name="m",le="0.1"}} {0}
vllm:time_to_first_token_seconds_bucket{{model_name="m",le="1"}} {1}
vllm:time_to_first_token_seconds_bucket{{model_name="m",le="+Inf"}} {1}
"""


def test_load_is_of_the_last_seconds():
    sums, buckets = parse_metrics(METRICS.format(5, 6))
    assert sums["vllm:num_requests_running"] == 3 and buckets == {0.1: 5, 1: 6, float("inf"): 6}
    assert quantile({}, buckets, 0.5) == 0.1 and quantile({}, buckets, 0.9) == 1 and quantile(buckets, buckets, 0.9) == 0
    meter = LoadMeter()
    meter.take(METRICS.format(100, 100), 0.0)
    assert (meter.load.running, meter.load.waiting, meter.load.kv_usage, meter.load.first_token_s) == (3, 2, 0.25, 0)
    meter.take(METRICS.format(100, 110), 1.0)
    assert meter.load.first_token_s == 1
    meter.take(METRICS.format(100, 110), 20.0)
    meter.take(METRICS.format(100, 110), 21.0)
    assert meter.load.first_token_s == 0


def test_the_policy_follows_its_largest_signal():
    policy = EnginePolicy(max_num_seqs=10, waiting_per_replica=4, running_share=0.8, kv_usage=0.8, first_token_s=0.5)
    assert policy.replicas(2, {}) == 0
    assert policy.replicas(2, {"running": [4, 4]}) == 1
    assert policy.replicas(2, {"running": [9, 8]}) == 3
    assert policy.replicas(2, {"running": [10, 10], "waiting": [9, 0]}) == 5
    assert policy.replicas(2, {"running": [1, 1], "kv_usage": [0.95, 0.1]}) == 3
    assert policy.replicas(2, {"running": [1, 1], "first_token_s": [2.0, 0.1]}) == 4
    assert policy.replicas(2, {"running": [0, 0], "first_token_s": [2.0, 0.1]}) == 0


def test_config_names_what_is_wrong():
    config = AppConfig.from_mapping({"model": "m", "tensor_parallel_size": 2, "routing": {"kv": 1.0}, "autoscaling": {"max_replicas": 8}})
    assert config.gpus == 2 and config.routing.kv == 1.0 and config.autoscaling.max_replicas == 8
    with pytest.raises(ValueError, match="num_replica is unknown.*num_replicas"):
        AppConfig.from_mapping({"model": "m", "num_replica": 2})
    with pytest.raises(ValueError, match="num_replicas must be an integer >= 1, got 0"):
        AppConfig(model="m", num_replicas=0)
    with pytest.raises(ValueError, match="min_replicas"):
        AppConfig.from_mapping({"model": "m", "autoscaling": {"min_replicas": 5, "max_replicas": 2}})
    with pytest.raises(ValueError, match="server_options: port"):
        AppConfig(model="m", server_options={"port": 1})


def test_options_become_a_command_line():
    config = AppConfig(model="m.gguf", tensor_parallel_size=2, server_options={"api-key": ["a", "b"], "enable-prefix-caching": False})
    words = serve_arguments(config, "10.0.0.1")
    assert words[0] == "m.gguf" and words[words.index("--host") + 1] == "10.0.0.1"
    assert words[words.index("--tensor-parallel-size") + 1] == "2"
    assert [words[i + 1] for i, w in enumerate(words) if w == "--api-key"] == ["a", "b"] and "--no-enable-prefix-caching" in words


def test_settings_print_exports():
    done = subprocess.run([sys.executable, "-m", "quire.ray.settings", "--haproxy"], capture_output=True, text=True, check=True, cwd=ROOT / "python")
    lines = done.stdout.splitlines()
    assert "export RAY_health_check_period_ms=500" in lines and "export RAY_SERVE_ENABLE_HA_PROXY=1" in lines
    assert len(lines) == len(settings.environment(haproxy=True))


def test_importing_quire_does_not_import_ray():
    code = "import sys, quire, quire.ray, quire.ray.settings; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "python")


def test_the_package_is_typed():
    pytest.importorskip("mypy", reason="mypy is not installed: ./dev test does it")
    pytest.importorskip("ray", reason="Ray is not installed: ./dev test does it")
    done = subprocess.run([sys.executable, "-m", "mypy"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


# ---- Streams that outlive their replica ----

TINY = str(ROOT / "tests" / "golden" / "models" / "llama-mha")


class Engines:
    """Servers in this namespace that count to hash; a token each `step` seconds."""

    def __init__(self, count, step=0.01, **options):
        words = [w for name, value in options.items() for w in (f"--{name.replace('_', '-')}", str(value))]
        command = [os.environ["QUIRE_BINARY"], "serve", TINY, "--device", f"sim:overhead={step}", "--port", "0", *words]
        self.processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(count)]
        self.addresses = [f"127.0.0.1:{self._port(p)}" for p in self.processes]

    @staticmethod
    def _port(process):
        for line in process.stderr:
            if match := re.search(r"quire serves .* on http://\S+:(\d+) ", line):
                return match.group(1)
        raise AssertionError("no server")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()
            process.stderr.close()


def stream_through(engines, body, kill_after=(), headers=()):
    """`lasting` over the servers in turn; the server that gives it is killed when so many pieces have come."""
    async def run():
        counters, order, pieces = Counters(), iter(range(len(engines.addresses))), []

        async def attempt(request, stack, avoid=()):
            number = next(order)
            reply = await stack.enter_async_context(forward(request, engines.addresses[number]))
            reply.replica = str(number)
            return reply

        kills = list(kill_after)
        async with AsyncExitStack() as stack:
            request = Request("POST", "/v1/completions", [(b"content-type", b"application/json"), *headers], json.dumps(body).encode())
            reply = await lasting(request, attempt, stack, counters)
            async for piece in reply.chunks:
                pieces.append(piece)
                if kills and len(pieces) >= kills[0]:
                    kills.pop(0)
                    engines.processes[counters.resumed].kill()
        return reply, b"".join(pieces), counters

    return asyncio.run(run())


ASK = {"prompt": [1, 2, 3], "stream": True, "max_tokens": 60, "ignore_eos": True, "return_token_ids": True, "stream_options": {"include_usage": True}}


def ids_of(raw):
    events = [json.loads(e.removeprefix(b"data: ")) for e in raw.split(b"\n\n") if e.startswith(b"data: {")]
    return [i for e in events for c in e["choices"] for i in c.get("token_ids") or ()], events


def test_a_stream_outlives_two_servers_and_the_client_sees_nothing():
    with Engines(1) as one:
        _, whole, _ = stream_through(one, {**ASK, "seed": 5})
    with Engines(3) as three:
        reply, raw, counters = stream_through(three, {**ASK, "seed": 5}, kill_after=(3, 8))
    ids, events = ids_of(raw)
    assert counters.resumed == 2 and counters.resumed_inexact == 0 and ids == ids_of(whole)[0] and len(ids) == 60
    assert b": quire" not in raw and raw.endswith(b"data: [DONE]\n\n") and raw.count(b"[DONE]") == 1
    assert len({(e["id"], e["created"]) for e in events}) == 1 and events[-1]["usage"]["completion_tokens"] == 60
    assert sum(bool(c.get("prompt_token_ids")) for e in events for c in e["choices"]) == 1
    assert not any(name.startswith(b"x-quire-c") for name, _ in reply.headers)


def test_marks_are_shown_to_whom_asks_for_them():
    with Engines(2) as two:
        _, raw, counters = stream_through(two, {**ASK, "seed": 5}, kill_after=(2,), headers=[(b"x-quire-marks", b"1")])
    assert counters.resumed == 1 and raw.count(b"\n: quire 0 ") > 3


def test_an_engine_with_other_bits_is_counted():
    with Engines(1) as first, Engines(1, 0.011) as second:
        first.addresses += second.addresses
        _, raw, counters = stream_through(first, {**ASK, "seed": 5}, kill_after=(2,))
        assert counters.resumed == counters.resumed_inexact == 1 and len(ids_of(raw)[0]) == 60


def test_a_stream_of_several_choices_is_lost():
    with Engines(2) as two, pytest.raises(Lost, match="several choices"):
        stream_through(two, {**ASK, "n": 2, "seed": 1}, kill_after=(2,))


def test_marks_are_read_in_the_end_only():
    marks = [b": quire 0 0 4,5\n\n", b": quire 0 7 \n\n", b": quire 0 9 6 closed\n\n"]
    assert read_marks(marks) == Progress([4, 5, 6], 9, True)
    request = Request("POST", "/v1/completions", [(b"x-request-id", b"old")], b'{"prompt": "a", "output_prefix_ids": [1], "temperature": 0.5}')
    headers = [(b"x-quire-seed", b"77"), (b"x-quire-created", b"5"), (b"x-request-id", b"given")]
    again = continuation(request, headers, marks)
    assert json.loads(again.body) == {"prompt": "a", "temperature": 0.5, "seed": 77, "output_prefix_ids": [1, 4, 5, 6],
                                      "resume": {"created": 5, "text_bytes": 9, "opened": True, "closed": True}}
    assert again.headers == [(b"x-request-id", b"given")]
    assert json.loads(continuation(request, headers, []).body) == {"prompt": "a", "output_prefix_ids": [1], "temperature": 0.5, "seed": 77}


# ---- Traffic splitting ----


def test_weights_move_only_the_sessions_they_must():
    splitting = pytest.importorskip("quire.ray.splitting")
    sessions = [b"%d" % i for i in range(4000)]
    before = {s: splitting.pick({"a": 0.9, "b": 0.1}, s) for s in sessions}
    after = {s: splitting.pick({"a": 0.5, "b": 0.5}, s) for s in sessions}
    assert before == {s: splitting.pick({"b": 0.1, "a": 0.9}, s) for s in sessions}
    assert abs(sum(v == "b" for v in before.values()) / 4000 - 0.1) < 0.03
    assert abs(sum(v == "b" for v in after.values()) / 4000 - 0.5) < 0.03
    assert all(after[s] == "b" for s in sessions if before[s] == "b")  # nobody goes against the change
    assert {splitting.pick({"a": 0, "b": 2}, s) for s in sessions} == {"b"}
    assert 100 < sum(splitting.pick({"a": 1, "b": 1}, None) == "a" for _ in range(400)) < 300


@pytest.mark.parametrize("weights", [{}, {"a": 0}, {"a": -1}, {"a": float("nan")}, {"a": "1"}, {"c": 1}])
def test_wrong_weights_are_refused(weights):
    splitting = pytest.importorskip("quire.ray.splitting")
    with pytest.raises(ValueError, match="weights"):
        splitting.check_weights(weights, ["a", "b"])
    with pytest.raises(ValueError, match="stable"):
        splitting.SplitConfig(versions={"a": AppConfig(model="m")}, weights={"a": 1}, stable="b")


def test_split_config_from_yaml():
    splitting = pytest.importorskip("quire.ray.splitting")
    config = splitting.SplitConfig.from_mapping({"versions": {"a": {"model": "m"}, "b": {"model": "n", "num_replicas": 2}}, "stable": "a",
                                                 "weights": {"a": 1, "b": 1}, "guard": {"window_s": 5}})
    assert config.versions["b"].num_replicas == 2 and config.guard.window_s == 5
    with pytest.raises(ValueError, match="speed"):
        splitting.SplitConfig.from_mapping({"versions": {"a": {"model": "m"}}, "stable": "a", "weights": {"a": 1}, "guard": {"speed": 5}})


def record_of(splitting, times, failures=0, now=100.0):
    record = splitting.Record()
    for seconds in [*times, *[None] * failures]:
        record.end(record.begin(now - (seconds or 0)), now, seconds is not None)
    return record


def test_the_guard_weighs_errors_and_latency():
    splitting = pytest.importorskip("quire.ray.splitting")
    guard, now = splitting.Guard(), 100.0
    usual = record_of(splitting, [0.1] * 40)
    judge = lambda record, guard=guard, stable=usual: splitting.verdict(guard, record, stable, now)
    assert judge(record_of(splitting, [0.1] * 40)) is None
    assert judge(record_of(splitting, [5.0] * 10)) is None  # too few to say
    assert "error rate 0.100 of 40" in judge(record_of(splitting, [0.1] * 36, 4))
    assert "0.500 s" in judge(record_of(splitting, [0.5] * 40)) and "0.100 s of the stable" in judge(record_of(splitting, [0.5] * 40))
    assert judge(record_of(splitting, [0.5] * 40), stable=record_of(splitting, [0.1] * 5)) is None
    assert judge(record_of(splitting, [0.19] * 40)) is None and judge(record_of(splitting, [0.003] * 40), stable=record_of(splitting, [0.001] * 40)) is None
    assert "over 0.3" in judge(record_of(splitting, [0.5] * 40), splitting.Guard(latency_s=0.3), splitting.Record())
    hanging = record_of(splitting, [0.1] * 20)
    for _ in range(20):
        hanging.begin(now - 7)
    assert "7.000 s" in judge(hanging)
    assert splitting.verdict(guard, record_of(splitting, [5.0] * 40, now=60.0), usual, now) is None  # long ago
