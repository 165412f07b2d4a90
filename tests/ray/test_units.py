"""Parts of quire.ray without a cluster: what is sent and read byte by byte, costs, the policy, config, types."""
import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from quire.ray import AppConfig, settings
from quire.ray.autoscale import EnginePolicy
from quire.ray.engine_server import serve_arguments
from quire.ray.forward import Lost, Request, Unreachable, forward
from quire.ray.ingress import prefix_keys
from quire.ray.load import LoadMeter, parse_metrics, quantile

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
