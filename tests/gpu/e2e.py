#!/usr/bin/env python3
"""`quire serve` on the GPU, over HTTP: streams, concurrency, equal answers, metrics, a client that leaves, a GPU that
fails. Uses the openai client where it is installed, besides plain HTTP. Ends with one line of counts.

    e2e.py QUIRE MODEL [OPTIONS OF quire serve...]
"""
import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable


class Server:
    def __init__(self, command: list[str], **environment: str) -> None:
        self.process = subprocess.Popen([*command, "--port", "0", "--served-model-name", "m"], stdout=subprocess.DEVNULL,
                                        stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
        self.log: list[str] = []
        self.port = 0
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            found = re.search(r"quire serves .* on http://[^ ]*:(\d+)", line)
            if found:
                self.port = int(found.group(1))
                break
        assert self.port, "the server did not start:\n" + "".join(self.log[-10:])
        threading.Thread(target=self.drain, daemon=True).start()

    def drain(self) -> None:
        assert self.process.stderr is not None
        self.log.extend(self.process.stderr)

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        text = None if body is None else json.dumps(body)
        connection.request(method, path, text, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        answer = reply.read().decode()
        connection.close()
        return reply.status, answer

    def complete(self, prompt: Any, **fields: Any) -> dict[str, Any]:
        status, text = self.request("POST", "/v1/completions", {"model": "m", "prompt": prompt, "temperature": 0, **fields})
        assert status == 200, f"{status}: {text[:300]}"
        answer: dict[str, Any] = json.loads(text)
        return answer

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(30)


def text_of(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["text"])


def ids_of(seed: int, count: int) -> list[int]:
    return [100 + (seed * 7919 + i * 104729) % 2000 for i in range(count)]


# ---- Checks: each takes a running server ---------------------------------------------------------------------------

def streams_equal_whole_replies(server: Server) -> None:
    whole = text_of(server.complete(ids_of(1, 50), max_tokens=40, ignore_eos=True))
    status, text = server.request("POST", "/v1/completions", {"model": "m", "prompt": ids_of(1, 50), "max_tokens": 40,
                                                              "temperature": 0, "ignore_eos": True, "stream": True})
    pieces = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert status == 200 and text.rstrip().endswith("data: [DONE]")
    assert "".join(str(p["choices"][0]["text"]) for p in pieces) == whole


def many_at_once_equal_one_alone(server: Server) -> None:
    bodies = [{"max_tokens": 10 + i % 50, "ignore_eos": True, "temperature": 0.8 * (i % 2), "seed": i} for i in range(96)]
    prompts = [ids_of(i, 5 + 13 * (i % 40)) for i in range(96)]
    alone = [text_of(server.complete(p, **b)) for p, b in list(zip(prompts, bodies))[:12]]
    with ThreadPoolExecutor(96) as pool:
        together = list(pool.map(lambda job: server.complete(job[0], **job[1]), zip(prompts, bodies)))
    assert [text_of(a) for a in together[:12]] == alone
    assert all(a["usage"]["completion_tokens"] == b["max_tokens"] for a, b in zip(together, bodies))


def penalties_and_logprobs_are_served(server: Server) -> None:
    fields = {"max_tokens": 24, "ignore_eos": True, "seed": 3, "temperature": 0.7, "repetition_penalty": 1.3,
              "logit_bias": {"150": -100}, "logprobs": 3}
    first, second = (server.complete(ids_of(5, 30), **fields) for _ in range(2))
    assert text_of(first) == text_of(second) and len(first["choices"][0]["logprobs"]["token_logprobs"]) == 24


def a_client_that_leaves_frees_its_place(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", "/v1/completions", json.dumps({"model": "m", "prompt": ids_of(9, 20), "max_tokens": 3000,
                                                              "ignore_eos": True, "stream": True}),
                       {"Content-Type": "application/json"})
    connection.getresponse().read(200)
    connection.close()
    deadline = time.time() + 10
    while time.time() < deadline:
        _, text = server.request("GET", "/metrics")
        running = next(float(line.split()[-1]) for line in text.splitlines() if line.startswith("vllm:num_requests_running"))
        if running == 0:
            return
        time.sleep(0.05)
    raise AssertionError("the request of a client that left still runs")


def metrics_tell_of_the_gpu(server: Server) -> None:
    _, text = server.request("GET", "/metrics")
    values = {line.split("{")[0]: float(line.split()[-1]) for line in text.splitlines() if line.startswith("quire:")}
    assert values["quire:device_busy_seconds_total"] > 0 and values["quire:roof_seconds_total"] > 0
    assert 0 < values["quire:roof_share"] < 1.2, values
    assert server.request("GET", "/health")[0] == 200


def the_openai_client_is_content(server: Server) -> None:
    try:
        import openai
    except ImportError:
        print("  (no openai client here)")
        return
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)
    stream = client.completions.create(model="m", prompt="Once upon a time", max_tokens=20, stream=True)
    assert sum(len(event.choices) for event in stream) > 0


def a_lost_gpu_ends_the_process(command: list[str]) -> None:
    server = Server(command, QUIRE_TEST_FAULT_STEP="12")
    status, text = server.request("POST", "/v1/completions", {"model": "m", "prompt": ids_of(1, 20), "max_tokens": 100,
                                                              "ignore_eos": True})
    assert status == 500 and json.loads(text)["error"]["code"] == "device_failed", text
    assert server.process.wait(30) == 1
    assert any("device failed" in line for line in server.log), server.log[-3:]


def main() -> None:
    command = [sys.argv[1], "serve", sys.argv[2], "--device", "cuda", *sys.argv[3:]]
    checks: list[Callable[[Server], None]] = [streams_equal_whole_replies, many_at_once_equal_one_alone,
                                              penalties_and_logprobs_are_served, a_client_that_leaves_frees_its_place,
                                              metrics_tell_of_the_gpu, the_openai_client_is_content]
    failed = 0
    server = Server(command)
    named: list[tuple[str, Callable[[], None]]] = [(c.__name__, lambda c=c: c(server)) for c in checks]  # type: ignore[misc]
    named.append(("a_lost_gpu_ends_the_process", lambda: a_lost_gpu_ends_the_process(command)))
    for name, check in named:
        try:
            check()
            print(f"{name}: ok", flush=True)
        except Exception as error:  # noqa: BLE001 - a test's failure is reported, the others still run
            failed += 1
            print(f"{name}: FAILED: {error!r}", flush=True)
    code = server.stop()
    failed += code != 0
    print(f"{len(named)} checks, {failed} failed; the server ended with {code}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
