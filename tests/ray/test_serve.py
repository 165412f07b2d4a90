"""build_app on a fresh cluster: the OpenAI routes, whole events, errors, health."""
import httpx
import openai
import pytest
import ray
from cluster import GCS, Cluster
from ray import serve

from quire.ray import AppConfig, build_app

URL = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def app(model):
    Cluster(head_cpus=8)
    ray.init(address=GCS, log_to_driver=False)
    config = AppConfig(model=model, served_model_name="m", num_replicas=2, gpus_per_replica=0, max_num_seqs=8,
                       server_options={"max-model-len": 512, "kv-cache-memory-bytes": "64MiB"})
    serve.run(build_app(config))
    yield
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="module")
def client(app):
    return openai.OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0, timeout=60)


def test_whole_and_streamed_replies_are_the_same(client):
    ask = {"model": "m", "prompt": "The capital of France is", "max_tokens": 12, "temperature": 0}
    whole = client.completions.create(**ask).choices[0].text
    pieces = [chunk.choices[0].text for chunk in client.completions.create(**ask, stream=True)]
    assert "Paris" in whole and "".join(pieces) == whole


def test_models_health_and_errors_come_from_the_server(client):
    assert [m.id for m in client.models.list()] == ["m"]
    assert httpx.get(URL + "/health").json() == {"status": "ok"}
    reply = httpx.post(URL + "/v1/completions", json={"model": "m", "prompt": "x", "temperature": -1})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "temperature"
    assert httpx.get(URL + "/v1/nothing").status_code == 404
    assert httpx.post(URL + "/v1/completions", content=b"x" * (17 << 20), timeout=30).status_code == 413
    assert "quire_ingress_requests_total" in httpx.get(URL + "/metrics").text
