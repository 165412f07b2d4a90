"""stories260K over HTTP: the recorded greedy runs, from both containers."""
import json

import pytest

from conftest import shared_folder

FORMS = ["hf", "gguf/stories260K-f32.gguf"]


@pytest.mark.parametrize("form", FORMS, ids=["safetensors", "gguf"])
def test_the_recorded_runs_come_back(start, form):
    folder = shared_folder() / "data" / "weights" / "stories260K"
    expected = json.loads((folder / "expected.json").read_text())["generations"]
    one = start(model=str(folder / form))
    longest = one.get("/v1/models").json()["data"][0]["max_model_len"]  # the GGUF says 128
    for run in expected:
        wanted = run["greedy_ids"][: longest - len(run["prompt_ids"])]
        body = {"prompt": run["prompt_ids"], "temperature": 0, "max_tokens": len(wanted), "return_token_ids": True}
        choice = one.post("/v1/completions", body).json()["choices"][0]
        ids = choice["token_ids"]
        assert [token for token in ids if token not in (1, 2)] == [token for token in wanted if token not in (1, 2)]


def test_a_checkpoint_without_tokenizer_takes_ids_only(start):
    folder = shared_folder() / "data" / "weights" / "stories260K"
    one = start(model=str(folder / "hf-bf16"))
    reply = one.post("/v1/completions", {"prompt": [1, 403, 407], "max_tokens": 4, "temperature": 0, "return_token_ids": True, "logprobs": 1})
    assert reply.status_code == 200, reply.text
    assert len(reply.json()["choices"][0]["token_ids"]) == 4
    assert one.post("/v1/completions", {"prompt": "text", "max_tokens": 4}).status_code == 400
    assert one.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}).status_code == 400
    assert one.post("/tokenize", {"prompt": "text"}).status_code == 400
