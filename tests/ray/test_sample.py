"""examples/ as tests, on a fresh Ray that `ray start --head` started: the field's sample as it is, and the YAML file."""
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import ray
from cluster import BIN, ROOT, Cluster, wait_until
from load import tiny_text_model
from ray import serve

URL = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_text_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", autouse=True)
def cluster():
    Cluster(head_cpus=4, head_gpus=8)
    yield
    ray.shutdown()


def run_sample(model):
    """The script as anyone starts it; again when Serve gave up on its proxy too early, as cluster.run_app does."""
    for _ in range(3):
        done = subprocess.run([sys.executable, str(ROOT / "examples" / "ray_serve_sample.py"), model], capture_output=True, text=True, timeout=400)
        if "HTTP proxies not available" not in done.stderr:
            break
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_sample_serves_on_four_replicas_of_two_gpus(model):
    run_sample(model)

    ask = {"prompt": "Hello", "max_tokens": 12, "temperature": 0}
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda _: httpx.post(URL, json=ask, timeout=120).text, range(8)))
    assert texts[0] and texts == texts[:1] * 8

    with httpx.stream("POST", URL, json={**ask, "max_tokens": 40}, timeout=120) as reply:
        pieces = [piece for piece in reply.iter_text()]
    assert len(pieces) > 1 and "".join(pieces).startswith(texts[0])

    ray.init(address="auto", log_to_driver=False)
    states = serve.status().applications["default"].deployments["TextGenerator"].replica_states
    assert states == {"RUNNING": 4}
    assert ray.available_resources().get("GPU", 0) == 0
    serve.delete("default")


def test_the_yaml_file_runs(model, tmp_path):
    text = (ROOT / "examples" / "ray_serve.yaml").read_text()
    named = "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert named in text
    file = tmp_path / "serve.yaml"
    file.write_text(text.replace(named, model))
    with subprocess.Popen([str(BIN / "serve"), "run", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT) as process:
        try:
            wait_until(lambda: _models() == ["smollm2"], 300, "the application of the YAML file")
            ask = {"model": "smollm2", "prompt": "Hello", "max_tokens": 8, "ignore_eos": True}
            assert httpx.post(URL + "/v1/completions", json=ask, timeout=60).json()["usage"]["completion_tokens"] == 8
        finally:
            process.kill()


def _models():
    try:
        return [m["id"] for m in httpx.get(URL + "/v1/models", timeout=5).json()["data"]]
    except (httpx.HTTPError, ValueError, KeyError):
        return []
