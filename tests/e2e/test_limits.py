"""Bad inputs: each costs its sender a clear error, and nobody else anything."""
import json
import socket

import pytest

FIELDS = {
    "n": [0, -1, 129, 2**31, 2**63 - 1, 1.5, "1", [], True],
    "best_of": [2, 10**9],
    "logprobs": [-1, 10**9, "3", True],
    "prompt_logprobs": [-1, 2**31],
    "max_tokens": [-1, 0, 2**31, 2**63 - 1, 1.5, "8"],
    "min_tokens": [-1, 17, 2**63 - 1],
    "temperature": [-1, 1e308, "hot", [0]],
    "top_p": [0, -1, 2, 1e308],
    "top_k": [-2, 2**63 - 1, 0.5],
    "min_p": [-0.1, 1.1],
    "repetition_penalty": [0, -1, 1e308],
    "presence_penalty": [3, -1e308],
    "frequency_penalty": [-2.01],
    "seed": [1.5, "x"],
    "stop": ["", [""], [5], ["x"] * 65, "x" * 5000],
    "bad_words": ["x", [""], [1]],
    "stop_token_ids": [[-1], [2**31], ["a"], 5],
    "allowed_token_ids": [[], [-1], [2**40]],
    "logit_bias": [{"-1": 1}, {"99999999": 1}, {"a": 1}, {"1": 1e308}, {"1": "x"}, []],
    "prompt": [None, [], [[]], {}, 7, [-1], [2**31], [1.5], ["a", 1], [[1], "a"], [None]],
    "stream_options": [{"include_usage": True}, 5],
    "response_format": [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"schema": {}}}, "json"],
    "structured_outputs": [{"regex": "(a+)+$"}, {"grammar": "root ::= root"}, {"choice": ["a"] * 10}],
    "guided_json": [{"type": "stsring"}],
    "suffix": ["x"],
    "prompt_embeds": ["AAAA"],
    "use_beam_search": [True],
    "truncate_prompt_tokens": [-2],
    "cache_salt": ["", "x" * 2000],
    "request_id": ["a b", "é", "x" * 500],
}


@pytest.mark.parametrize("field,value", [pytest.param(f, v, id=f"{f}-{i}") for f, vs in FIELDS.items() for i, v in enumerate(vs)])
def test_a_bad_value_is_a_400_that_names_the_field(server, field, value):
    reply = server.post("/v1/completions", {"prompt": "x", field: value})
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert error["param"] == field and field in error["message"]
    assert "0x" not in error["message"] and "/" not in error["message"]


RAW = {
    "nan": b'{"prompt":"x","temperature":NaN}', "infinity": b'{"prompt":"x","temperature":Infinity}',
    "too large": b'{"prompt":"x","temperature":1e999}', "minus infinity": b'{"prompt":"x","top_p":-Infinity}',
    "duplicate keys": b'{"prompt":"x","n":1,"n":1}', "nul": b'{"prompt":"a\\u0000b"}', "nul byte": b'{"prompt":"a\0b"}',
    "not utf-8": b'{"prompt":"\xff\xfe"}', "deep": b'{"prompt":' + b"[" * 100000, "deep object": b'{"a":' * 100000,
    "million prompts": b'{"prompt":[' + b'"a",' * 1000000 + b'"a"]}', "million fields": b"{" + b",".join(b'"k%d":1' % i for i in range(100000)) + b"}",
    "empty": b"", "array": b"[]", "text": b"hello", "cut": b'{"prompt":"x', "two": b'{"prompt":"x"}{}',
}


@pytest.mark.parametrize("body", [pytest.param(v, id=k) for k, v in RAW.items()])
def test_a_body_that_is_no_request_is_a_400(server, body):
    reply = server.get("/health")
    assert reply.status_code == 200
    import httpx
    reply = httpx.post(server.url + "/v1/completions", content=body, headers={"Content-Type": "application/json"}, timeout=60)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["message"]


CHATS = [
    {}, {"messages": None}, {"messages": []}, {"messages": "hi"}, {"messages": [1]}, {"messages": [{}]}, {"messages": [{"role": "user"}]},
    {"messages": [{"role": "", "content": "x"}]}, {"messages": [{"role": "user", "content": 1}]}, {"messages": [{"content": "x"}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]},
    {"messages": [{"role": "user", "content": "x"}], "chat_template": "{% for i in range(10**9) %}{% endfor %}"},
    {"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"tokenize": True}},
    {"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]},
    {"messages": [{"role": "user", "content": "x"}], "tool_choice": {"type": "function", "function": {"name": "f"}}},
    {"messages": [{"role": "user", "content": "x"}], "top_logprobs": 5},
    {"messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 10**6},
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("body", CHATS, ids=range(len(CHATS)))
def test_a_bad_chat_is_a_400_streamed_or_not(server, body, stream):
    reply = server.post("/v1/chat/completions", body | {"stream": stream})
    assert reply.status_code == 400, reply.text
    assert reply.headers["content-type"] == "application/json"


HARMLESS = [
    {"prompt": ""}, {"prompt": "\ud800".encode("utf-16", "surrogatepass").decode("utf-16", "replace")}, {"prompt": "x", "temperature": -0.0},
    {"prompt": "<|im_end|><|endoftext|>"}, {"prompt": "x", "unknown": {"a": [1]}}, {"prompt": "x", "n": None, "stop": None, "seed": None},
    {"prompt": "a" * 4000}, {"prompt": "🎉" * 300}, {"prompt": "x", "logit_bias": {}}, {"prompt": "x", "user": "me"},
]


@pytest.mark.parametrize("body", HARMLESS, ids=range(len(HARMLESS)))
def test_odd_but_legal_requests_are_served(server, body):
    reply = server.post("/v1/completions", body | {"max_tokens": 2})
    assert reply.status_code in (200, 400), reply.text
    # An empty prompt has nothing to start from where the tokenizer adds no BOS; all others are served.
    assert reply.status_code == 200 or body["prompt"] == ""


def test_a_prompt_longer_than_the_context_is_a_400(server):
    limit = server.get("/v1/models").json()["data"][0]["max_model_len"]
    for stream in (False, True):
        reply = server.post("/v1/completions", {"prompt": [5] * (limit + 1), "max_tokens": 4, "stream": stream})
        assert reply.status_code == 400 and str(limit) in reply.json()["error"]["message"]
    assert server.post("/v1/completions", {"prompt": [5] * (limit + 1), "max_tokens": 4, "truncate_prompt_tokens": 8}).status_code == 200


def test_unknown_models_and_routes_are_404(server):
    reply = server.post("/v1/completions", {"model": "gpt-4", "prompt": "x"})
    assert reply.status_code == 404 and reply.json()["error"]["code"] == "model_not_found"
    assert server.get("/v1/nothing").status_code == 404
    assert server.get("/v1/completions").status_code == 405


def raw(server, data, read=65536):
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        try:
            connection.sendall(data)
        except OSError:
            pass  # refused in the middle: the reply is what counts
        out = b""
        while piece := connection.recv(read):
            out += piece
        return out


def test_oversized_parts_are_refused_by_their_own_status(server):
    assert raw(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: " + b"a" * (5 << 20)).startswith(b"HTTP/1.1 431")
    assert raw(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 10000 + b"\r\n").startswith(b"HTTP/1.1 431")
    assert raw(server, b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.1 414")
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    assert raw(server, head + b"Content-Length: 1073741824\r\n\r\n").startswith(b"HTTP/1.1 413")
    endless = head + b"Transfer-Encoding: chunked\r\n\r\n" + (b"100000\r\n" + b"a" * 0x100000 + b"\r\n") * 20
    assert raw(server, endless).startswith(b"HTTP/1.1 413")
    assert raw(server, head.replace(b"application/json", b"text/plain") + b"Content-Length: 2\r\n\r\n{}").startswith(b"HTTP/1.1 415")
    assert server.get("/health").status_code == 200


def test_the_key_guards_every_spelling_of_every_route(start):
    locked = start("--api-key", "s3cret")
    for path in ("/v1/models", "/metrics", "/version", "/", "/app.js", "/tokenize", "/nothing"):
        assert locked.get(path).status_code == 401, path
        assert locked.get(path, headers={"Authorization": "Bearer s3cre"}).status_code == 401
    for target in (b"//v1/models", b"/v1/../v1/models", b"/health/../v1/models", b"/%2e/v1/models", b"/v1%2fmodels", b"http://x/v1/models",
                   b"http://127.0.0.1/health/../v1/models", b"/health%00/v1/models", b"/v1/models;/health", b"/v1/models?/health"):
        reply = raw(locked, b"GET " + target + b" HTTP/1.1\r\nHost: health\r\nConnection: close\r\n\r\n")
        assert reply.split(b" ")[1] in (b"401", b"400"), target
    assert locked.get("/health").status_code == 200
    assert locked.get("/v1/models", headers={"Authorization": "Bearer s3cret"}).status_code == 200
    assert locked.client(api_key="s3cret").models.list().data
    assert locked.get("/", auth=("any", "s3cret")).status_code == 200


def test_metrics_have_vllms_names_and_move(server):
    before = server.metric("vllm:generation_tokens_total")
    assert server.post("/v1/completions", {"prompt": "x", "max_tokens": 5, "ignore_eos": True}).status_code == 200
    assert server.metric("vllm:generation_tokens_total") - before == 5
    text = server.get("/metrics").text
    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "vllm:prompt_tokens_total",
                 "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total", "vllm:num_preemptions_total",
                 "vllm:request_success_total", "vllm:time_to_first_token_seconds_bucket", "vllm:inter_token_latency_seconds_bucket",
                 "vllm:e2e_request_latency_seconds_bucket", "vllm:request_prompt_tokens_bucket", "vllm:request_generation_tokens_bucket",
                 "vllm:iteration_tokens_total_bucket", "vllm:request_queue_time_seconds_bucket", "http_requests_total"):
        assert name + "{" in text, name
    assert 'model_name="test"' in text and 'engine="0"' in text


def test_health_generate_makes_a_token(server):
    assert server.get("/health_generate").status_code == 200
    assert server.get("/ping").status_code == 200


def test_error_shape_through_the_client(server):
    import openai
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().chat.completions.create(model="test", messages=[{"role": "user", "content": "x"}], temperature=-1)
    assert caught.value.param == "temperature" and json.loads(caught.value.response.content)["error"]["type"] == "invalid_request_error"
