"""Tensor parallelism over CPU ranks: `quire serve --tensor-parallel-size N` of the default model."""
import subprocess
import time

import httpx
import openai
import pytest
from conftest import binary_path, model_path

# A question whose answer is clear: three ranks choose otherwise where two tokens are as good as each other.
QUESTION = [{"role": "user", "content": "What is the capital city of France, in one word?"}]


def chat(client, **options):
    return client.chat.completions.create(model="test", messages=QUESTION, temperature=0, max_tokens=24, **options)


def test_three_ranks_chat_as_one_does(server, start):
    three = start("--tensor-parallel-size", "3", "--max-model-len", "512", "--max-num-seqs", "8")
    alone, together = chat(server.client()), chat(three.client())
    assert alone.choices[0].message.content == "The capital city of France is Paris."  # every choice leads by 0.8
    assert together.choices[0].message.content == alone.choices[0].message.content
    assert together.usage.prompt_tokens == alone.usage.prompt_tokens
    assert together.system_fingerprint != alone.system_fingerprint
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chat(three.client(), stream=True) if chunk.choices)
    assert streamed == together.choices[0].message.content
    metrics = three.get("/metrics").text
    assert all(f'rank="{rank}",kind="kv"' in metrics for rank in range(3)) and 'rank="3"' not in metrics
    assert three.stop() == 0


def test_a_failing_rank_ends_the_server_and_is_named(start, monkeypatch):
    monkeypatch.setenv("QUIRE_TEST_FAULT_RANK", "1")
    monkeypatch.setenv("QUIRE_TEST_FAULT_STEP", "4")
    broken = start("--tensor-parallel-size", "3", "--max-model-len", "512", "--max-num-seqs", "8")
    assert broken.get("/health").status_code == 200
    with pytest.raises(openai.APIError, match="rank 1"):
        for _ in chat(broken.client(), stream=True):
            pass
    try:
        assert broken.get("/health").status_code == 503
    except httpx.TransportError:
        pass  # it has gone already
    began = time.monotonic()
    assert broken.process.wait(10) == 1
    broken.reader.join(5)
    assert time.monotonic() - began < 10
    assert any("device failed" in line for line in broken.lines)


def test_an_impossible_split_is_refused_with_the_numbers():
    command = [binary_path(), "serve", model_path(), "--port", "0", "--tensor-parallel-size", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "2 ranks cannot share 9 query heads" in done.stderr
