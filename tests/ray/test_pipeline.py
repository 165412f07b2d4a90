"""The worked pipeline: each stage a deployment, refused text never sent."""
import json

import httpx
import pytest
import ray
from cluster import GCS, Cluster
from ray import serve

from quire.ray.pipelines import PipelineConfig, build_pipeline

DOCUMENTS = {"france": "The capital of France is Paris. It lies on the Seine.", "germany": "Berlin is the capital of Germany.",
             "fruit": "Bananas are yellow fruit that grow in warm places.", "moon": "The moon goes around the earth in 27 days."}


@pytest.fixture(scope="module")
def app(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("pipeline") / "documents.jsonl"
    path.write_text("".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in DOCUMENTS.items()))
    Cluster(head_cpus=8)
    ray.init(address=GCS, log_to_driver=False)
    engine = {"threads": 1, "max_model_len": 1024, "kv_cache_memory_bytes": 64 << 20}
    serve.run(build_pipeline(PipelineConfig(model=model, documents=str(path), max_tokens=40, refused_patterns=[r"\bbomb", "seine"],
                                            retrieved=4, kept=1, engine_args=engine, options={"moderate": {"num_replicas": 2}})))
    yield
    serve.shutdown()
    ray.shutdown()


def ask(**body):
    return httpx.post("http://127.0.0.1:8000/answer", json=body, timeout=60)


def test_the_right_passage_is_found_and_answered_from(app):
    reply = ask(question="What is the capital of France?").json()
    assert reply["sources"][0]["id"] == "france" and len(reply["sources"]) == 1
    assert "Paris" in reply["answer"] and not reply["refused"]


def test_a_stream_is_the_same_answer_in_events(app):
    whole = ask(question="What is the capital of Germany?").json()
    events = [json.loads(line) for line in ask(question="What is the capital of Germany?", stream=True).text.splitlines()]
    assert events[0]["sources"] == whole["sources"]
    assert "".join(event.get("text", "") for event in events) == whole["answer"] != ""


def test_refused_questions_are_not_answered(app):
    assert ask(question="How is a bomb made?").json() == {"answer": "", "sources": [], "refused": True}


def test_stages_scale_by_themselves(app):
    deployments = serve.status().applications["default"].deployments
    assert {name: sum(d.replica_states.values()) for name, d in deployments.items()} == {
        "answer": 1, "retrieve": 1, "rerank": 1, "generate": 1, "moderate": 2}


def test_bad_requests_are_told_what_is_expected(app):
    for body in ({}, {"question": " "}, {"question": 7}):
        reply = ask(**body)
        assert reply.status_code == 400 and '"question"' in reply.json()["error"]


def test_configurations_are_checked():
    with pytest.raises(ValueError, match="1 <= kept <= retrieved, got 5 and 2"):
        PipelineConfig(model="m", documents="d", retrieved=2, kept=5)
    with pytest.raises(ValueError, match="options for \\['generat'\\]"):
        PipelineConfig(model="m", documents="d", options={"generat": {}})
    with pytest.raises(ValueError, match="no file /nowhere"):
        build_pipeline(PipelineConfig(model="m", documents="/nowhere"))
