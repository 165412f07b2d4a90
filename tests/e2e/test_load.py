"""Many clients, clients that leave, a full queue, restarts and ends."""
import asyncio
import signal
import socket
import threading
import time

import httpx
import pytest

LONG = {"prompt": "Tell me a very long story.", "max_tokens": 2000, "ignore_eos": True}


def test_200_clients_at_once_get_what_each_gets_alone(server):
    prompts = [f"The number {i % 10} is" for i in range(200)]
    bodies = [{"prompt": prompt, "max_tokens": 6, "temperature": 0.8, "seed": 9, "stream": i % 2 == 0} for i, prompt in enumerate(prompts)]

    def text_of(reply):
        assert reply.status_code == 200, reply.text
        if not reply.headers["content-type"].startswith("text/event-stream"):
            return reply.json()["choices"][0]["text"]
        import json
        chunks = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
        assert reply.text.endswith("data: [DONE]\n\n")
        return "".join(chunk["choices"][0]["text"] for chunk in chunks)

    async def all_at_once():
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=200)
        async with httpx.AsyncClient(base_url=server.url, timeout=180, limits=limits) as http:
            return await asyncio.gather(*(http.post("/v1/completions", json=body) for body in bodies))

    alone = {i: text_of(server.post("/v1/completions", bodies[i])) for i in range(10)}
    replies = asyncio.run(all_at_once())
    assert [text_of(reply) for reply in replies] == [alone[i % 10] for i in range(200)]
    server.wait_idle()


def raw_request(server, body):
    import json
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    connection.sendall(head.encode() + data)
    return connection


@pytest.mark.parametrize("how", ["close", "half-close", "reset"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_leaves_frees_its_request(server, how, stream):
    server.wait_idle()
    connection = raw_request(server, LONG | {"stream": stream})
    end = time.monotonic() + 20
    while server.metric("vllm:num_requests_running") < 1:
        assert time.monotonic() < end
        time.sleep(0.01)
    if stream:
        assert connection.recv(20).startswith(b"HTTP/1.1 200")
    if how == "half-close":
        connection.shutdown(socket.SHUT_WR)
    elif how == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()
    else:
        connection.close()
    server.wait_idle(20)
    connection.close()


def test_a_storm_of_aborts_leaves_nothing_behind(server):
    for _ in range(4):
        connections = [raw_request(server, LONG | {"stream": i % 2 == 0, "n": 1 + i % 3}) for i in range(25)]
        time.sleep(0.05)
        for connection in connections:
            connection.close()
    server.wait_idle(30)
    assert server.post("/v1/completions", {"prompt": "Still", "max_tokens": 2}).status_code == 200


def test_overload_is_a_429_with_retry_after(start):
    small = start("--max-num-seqs", "1", "--max-waiting", "3")
    statuses, headers = [], []

    def ask():
        reply = small.post("/v1/completions", {"prompt": "Hello", "max_tokens": 30, "ignore_eos": True})
        statuses.append(reply.status_code)
        headers.append(reply.headers)

    threads = [threading.Thread(target=ask) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200, 429}
    assert all("retry-after" in header for header, status in zip(headers, statuses) if status == 429)
    assert statuses.count(200) >= 3
    assert small.get("/health").status_code == 200
    assert small.post("/v1/completions", {"prompt": "Hello", "max_tokens": 2}).status_code == 200


def test_sigterm_lets_requests_finish(start):
    one = start()
    result = {}

    def ask():
        with httpx.stream("POST", one.url + "/v1/completions", json=LONG | {"max_tokens": 60, "stream": True}, timeout=60) as reply:
            for line in reply.iter_lines():
                result.setdefault("begun", threading.Event()).set()
                result["last"] = line or result.get("last")

    result["begun"] = threading.Event()
    thread = threading.Thread(target=ask)
    thread.start()
    assert result["begun"].wait(30)
    one.process.send_signal(signal.SIGTERM)
    thread.join(60)
    assert result["last"] == "data: [DONE]"
    assert one.process.wait(20) == 0
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", one.port), timeout=2)


def test_a_second_sigterm_ends_at_once(start):
    one = start()
    connection = raw_request(one, LONG | {"stream": True})
    assert connection.recv(20).startswith(b"HTTP/1.1 200")
    one.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert one.process.poll() is None
    began = time.monotonic()
    one.process.send_signal(signal.SIGTERM)
    one.process.wait(20)
    assert time.monotonic() - began < 20  # the drain would take 30
    connection.close()


def test_a_killed_server_starts_again_on_its_port(start):
    first = start()
    body = {"prompt": "The moon", "max_tokens": 8, "temperature": 0}
    text = first.post("/v1/completions", body).json()["choices"][0]["text"]
    connection = raw_request(first, LONG | {"stream": True})
    assert connection.recv(20)
    first.stop(signal.SIGKILL)
    second = start(port=first.port)
    assert second.port == first.port
    assert second.post("/v1/completions", body).json()["choices"][0]["text"] == text
    connection.close()


def test_a_taken_port_is_refused_before_the_model_is_loaded(start):
    first = start()
    with pytest.raises(RuntimeError, match="bind"):
        start(port=first.port)
