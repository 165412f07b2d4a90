"""Streams that go on elsewhere: cut after every mark, the rest joins to the bytes of the undisturbed stream."""
import json
import re
import socket

import httpx
import pytest

CLIENT = httpx.Client(timeout=120)
MARK = re.compile(rb"^: quire (\d+) (\d+) ([\d,]*)( closed)?\n\n", re.M)


def stream(one, path, body, **headers):
    """The bytes of a stream with marks, and its headers."""
    with CLIENT.stream("POST", one.url + path, json=body, headers={"X-Quire-Marks": "1", **headers}) as reply:
        raw = b"".join(reply.iter_bytes())
        assert reply.status_code == 200, raw
        return raw, reply.headers


def unmarked(raw):
    return MARK.sub(b"", raw)


def resumption(body, headers, seen):
    """The request that goes on behind `seen`, which ends with a mark."""
    marks = MARK.findall(seen)
    ids = [int(i) for _, _, listed, _ in marks for i in listed.split(b",") if i]
    resume = {"created": int(headers["X-Quire-Created"]), "text_bytes": int(marks[-1][1]), "opened": True, "closed": bool(marks[-1][3])}
    return {**body, "seed": int(headers["X-Quire-Seed"]), "output_prefix_ids": ids, "resume": resume}


def joined(raw):
    """What a client makes of a stream, however it was cut into chunks."""
    got = {"text": "", "ids": [], "logprobs": [], "roles": 0, "usage": [], "finish": [], "heads": set()}
    events = unmarked(raw).split(b"\n\n")
    assert events[-1] == b"" and events[-2] == b"data: [DONE]"
    for event in events[:-2]:
        chunk = json.loads(event.removeprefix(b"data: "))
        got["heads"].add((chunk["id"], chunk["created"], chunk["object"], chunk["model"], chunk["system_fingerprint"]))
        if chunk.get("usage"):
            chunk["usage"].pop("prompt_tokens_details")
            got["usage"].append(chunk["usage"])
        for choice in chunk["choices"]:
            delta = choice.get("delta", choice)
            got["roles"] += "role" in delta
            got["text"] += delta.get("content") or delta.get("text") or ""
            got["ids"] += choice.get("token_ids") or []
            if choice["logprobs"]:
                lists = choice["logprobs"]
                got["logprobs"] += lists["content"] if "content" in lists else list(zip(*(lists[key] for key in ("tokens", "token_logprobs", "text_offset"))))
            if choice["finish_reason"]:
                got["finish"].append((choice["finish_reason"], choice.get("stop_reason")))
    return got


def check_every_cut(one, path, body, every=1):
    headers = {"X-Request-Id": "the-same"}
    raw, reply_headers = stream(one, path, body, **headers)
    wanted = joined(raw)
    ends = [mark.end() for mark in MARK.finditer(raw)]
    assert len(ends) > 1 and len(wanted["finish"]) == 1
    for end in {*ends[::every], *ends[-2:]}:
        again = resumption(body, reply_headers, raw[:end])
        rest, rest_headers = stream(one, path, again, **headers)
        assert joined(raw[:end] + rest) == wanted, (end, again)
        assert rest_headers["X-Quire-Fingerprint"] == reply_headers["X-Quire-Fingerprint"]
    return wanted


@pytest.fixture(scope="module")
def sim(server):
    """Random tokens: characters in pieces, special tokens; slow enough that they come one by one."""
    from conftest import Server
    one = Server("--device", "sim:overhead=4e-3")
    yield one
    one.stop()


CHAT = {"messages": [{"role": "user", "content": "Tell a story."}], "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
TEXT = {"prompt": "Once", "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True, "max_tokens": 40}


def test_text_of_every_kind_of_piece_goes_on(sim):
    wanted = check_every_cut(sim, "/v1/completions", {**TEXT, "seed": 0})
    assert wanted["usage"] == [{"prompt_tokens": 1, "completion_tokens": 40, "total_tokens": 41}]
    assert check_every_cut(sim, "/v1/chat/completions", {**CHAT, "max_tokens": 16, "seed": 5}, every=2)["roles"] == 1


def test_a_stop_string_that_was_held_back_is_found_behind_the_cut(sim):
    whole = check_every_cut(sim, "/v1/completions", {**TEXT, "seed": 8}, every=20)["text"]
    middle = len(whole) // 2
    near = whole[middle - 9:middle - 1] + "\u0001"  # held back, then not it
    for stop in (whole[middle:middle + 6], whole[middle - 20:middle + 20]):
        wanted = check_every_cut(sim, "/v1/completions", {**TEXT, "seed": 8, "stop": [near, stop]}, every=2)
        assert wanted["finish"] == [("stop", stop)] and wanted["text"] == whole[:whole.index(stop)]


def test_penalties_limits_and_logprobs_go_on(server):
    body = {**TEXT, "prompt": "The capital of France is", "ignore_eos": False, "temperature": 0.8, "seed": 3, "max_tokens": 20, "min_tokens": 15,
            "presence_penalty": 0.7, "repetition_penalty": 1.2, "logprobs": 2, "echo": True, "return_token_ids": True}
    wanted = check_every_cut(server, "/v1/completions", body, every=7)
    assert len(wanted["logprobs"]) > 20  # the prompt's too
    chat = {**CHAT, "temperature": 0.7, "max_tokens": 20, "logprobs": True, "top_logprobs": 2}
    check_every_cut(server, "/v1/chat/completions", chat, every=9)  # its seed comes from the header


def test_the_client_sees_no_marks_unless_it_asks(server):
    with httpx.stream("POST", server.url + "/v1/completions", json=TEXT, timeout=60) as reply:
        assert b": quire" not in b"".join(reply.iter_bytes()) and "X-Quire-Created" not in reply.headers
    assert "fingerprint" in server.get("/version").json()


def test_a_whole_reply_can_begin_with_given_output(sim):
    body = {"prompt": "Once", "max_tokens": 12, "seed": 4, "ignore_eos": True, "return_token_ids": True}
    whole = sim.post("/v1/completions", body).json()
    ids = whole["choices"][0]["token_ids"]
    rest = sim.post("/v1/completions", {**body, "output_prefix_ids": ids[:5]}).json()
    assert rest["choices"][0]["token_ids"] == ids[5:] and rest["usage"]["completion_tokens"] == 12
    assert whole["choices"][0]["text"].endswith(rest["choices"][0]["text"])


@pytest.mark.parametrize("more, param", [
    ({"output_prefix_ids": [1], "n": 2, "seed": 1}, "output_prefix_ids"),
    ({"output_prefix_ids": [1]}, "seed"),
    ({"output_prefix_ids": [-1], "seed": 1}, "output_prefix_ids"),
    ({"output_prefix_ids": "1", "seed": 1}, "output_prefix_ids"),
    ({"resume": 1}, "resume"),
    ({"resume": {}}, "resume"),
    ({"resume": {"created": 1, "text_bytes": -1}, "seed": 1}, "resume"),
    ({"resume": {"created": 1, "text_bytes": 0, "opened": 1}, "seed": 1}, "resume"),
    ({"resume": {"created": 1, "text_bytes": 0}, "seed": 1, "stream": False, "stream_options": None}, "resume"),
    ({"resume": {"created": 1, "text_bytes": 0}, "prompt": ["a", "b"], "seed": 1}, "resume"),
])
def test_what_cannot_be_resumed_is_refused_by_name(sim, more, param):
    reply = sim.post("/v1/completions", {**TEXT, **more})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == param, reply.text


def test_text_bytes_beyond_the_text_do_no_harm(sim):
    body = {**TEXT, "seed": 1, "output_prefix_ids": [5, 6], "resume": {"created": 7, "text_bytes": 1 << 40, "opened": False}}
    raw, _ = stream(sim, "/v1/completions", body)
    assert joined(raw)["usage"][0]["completion_tokens"] == 40


def test_connections_have_probes_and_a_time_limit(start):
    """The kernel ends a connection whose peer is silent; what a cut network does is tests/ray's."""
    one = start("--device", "sim", "--peer-timeout", "4000")
    with socket.create_connection(("127.0.0.1", one.port)):
        import subprocess
        text = subprocess.run(["ss", "-tno", "state", "established", f"( sport = :{one.port} )"], capture_output=True, text=True)
        if text.returncode != 0:
            pytest.skip("no ss here")
        assert "keepalive" in text.stdout
    assert one.get("/version").status_code == 200


def test_reasoning_goes_on_inside_its_block(start, tmp_path):
    """The splitter of answers sees what the client has, so a cut inside a block is no break in it."""
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<think>{% endif %}"
    one = start("--device", "sim:overhead=4e-3", "--chat-template", template, "--reasoning-parser", "think")
    body = {**CHAT, "max_tokens": 24, "seed": 11}
    raw, headers = stream(one, "/v1/chat/completions", body, **{"X-Request-Id": "same"})
    reasoning = lambda raw: "".join(json.loads(e.removeprefix(b"data: "))["choices"][0]["delta"].get("reasoning", "")
                                    for e in unmarked(raw).split(b"\n\n")[:-2] if b'"delta"' in e)
    wanted = reasoning(raw)
    assert len(wanted) > 20 and joined(raw)["text"] == ""
    for mark in list(MARK.finditer(raw))[::5]:
        seen = raw[:mark.end()]
        rest, _ = stream(one, "/v1/chat/completions", resumption(body, headers, seen), **{"X-Request-Id": "same"})
        assert reasoning(seen + rest) == wanted and joined(seen + rest)["text"] == ""
