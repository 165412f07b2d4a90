"""Work without a server: generation over a dataset, corpus cleaning that is killed and started again, tuning."""
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
from cluster import GCS, Cluster, wait_until

from quire.ray import cleaning, data, tune


@pytest.fixture(scope="module", autouse=True)
def cluster():
    Cluster(head_cpus=6)
    ray.init(address=GCS, log_to_driver=False)
    yield
    ray.shutdown()


ENGINE = {"max_model_len": 256, "threads": 1, "kv_cache_memory_bytes": 16 << 20}


def test_every_row_comes_out_once_though_an_actor_is_killed(model):
    killed = []
    rows = ray.data.from_items([{"i": i, "prompt": f"Count from {i}:"} for i in range(96)], override_num_blocks=12)
    answered = data.generate(rows, model=model, engine_args=ENGINE, sampling_params={"max_tokens": 6, "temperature": 0},
                             min_engines=2, batch_size=8)
    seen = {}
    for batch in answered.iter_batches(batch_size=8):
        for i, text, tokens in zip(batch["i"], batch["generated_text"], batch["completion_tokens"]):
            assert i not in seen and tokens == 6
            seen[int(i)] = text
        if len(seen) >= 16 and not killed:
            killed.append(kill_an_engine())
    assert sorted(seen) == list(range(96)) and killed[0]
    again = data.generate(ray.data.from_items([{"i": 5, "prompt": "Count from 5:"}]), model=model, engine_args=ENGINE,
                          sampling_params={"max_tokens": 6, "temperature": 0}).take_all()
    assert again[0]["generated_text"] == seen[5], "greedy answers do not depend on batch, actor or loss"


def kill_an_engine():
    """SIGKILL to one of the pool's workers; its pid, or 0 when the pool is gone already."""
    found = subprocess.run(["pgrep", "-f", "MapWorker"], capture_output=True, text=True).stdout.split()
    if not found:
        return 0
    os.kill(int(found[0]), signal.SIGKILL)
    return int(found[0])


def test_a_missing_column_is_named(model):
    rows = ray.data.from_items([{"text": "x"}])
    with pytest.raises(Exception, match="no column 'prompt', only \\['text'\\]"):
        data.generate(rows, model=model, engine_args=ENGINE).take_all()


# ---- Corpus cleaning ----

CLEAN = """
import ray, sys
from quire.ray.cleaning import Cleaning, clean
ray.init(address={gcs!r}, log_to_driver=False)
print(clean(Cleaning(inputs=[{inputs!r}], output={output!r}, tokenizer={tokenizer!r}, rows_per_part=50, duplicate_buckets=3, min_chars=10)))
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for name, step in (("a", 1), ("b", 3)):
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for i in range(400):
                text = f"document {i * step % 290} cafe\u0301 \x07 ends here   \r\n" * (i % 3) or "short"
                file.write(json.dumps({"text": text}) + "\n")
    return folder


def start(corpus, output, model):
    program = CLEAN.format(gcs=GCS, inputs=str(corpus / "*.jsonl"), output=str(output), tokenizer=model)
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def tables(output):
    return {path.name: pq.read_table(path).to_pydict() for path in sorted(Path(output).glob("part-*.parquet"))}


def test_a_killed_cleaning_ends_as_an_undisturbed_one(corpus, tmp_path, model):
    whole = start(corpus, tmp_path / "whole", model)
    report, errors = whole.communicate(timeout=200)
    assert whole.returncode == 0, errors
    killed_after = []
    for stage, suffix in (("read", "*.json"), ("unique", "*.parquet")):
        run = start(corpus, tmp_path / "killed", model)
        folder = tmp_path / "killed" / ".stages" / stage
        wait_until(lambda: any(folder.glob(suffix)) or run.poll() is not None, 100, f"the stage {stage}")
        run.send_signal(signal.SIGKILL)
        run.communicate()
        killed_after.append(run.returncode)
    assert killed_after[0] == -signal.SIGKILL
    last = start(corpus, tmp_path / "killed", model)
    report_again, errors = last.communicate(timeout=200)
    assert last.returncode == 0, errors
    assert report_again == report and tables(tmp_path / "killed") == tables(tmp_path / "whole")
    print(report.strip(), "ends of the disturbed runs:", killed_after)

    texts = list(itertools.chain.from_iterable(table["text"] for table in tables(tmp_path / "whole").values()))
    assert len(texts) == len(set(texts)) > 100 and all(len(text) >= 10 and "\r" not in text and "\x07" not in text for text in texts)
    assert texts[0] == "document 1 caf\u00e9  ends here" and not list((tmp_path / "whole").glob(".part*"))


def test_what_is_wrong_with_a_corpus_is_said(tmp_path, model):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"txt": 1}\n')
    with pytest.raises(Exception, match="bad.jsonl: line 2: no string 'text'"):
        cleaning.clean(cleaning.Cleaning(inputs=[str(bad)], output=str(tmp_path / "out"), tokenizer=model))
    with pytest.raises(ValueError, match="no file matches"):
        cleaning.clean(cleaning.Cleaning(inputs=[str(tmp_path / "*.parquet")], output=str(tmp_path / "o"), tokenizer=model))
    with pytest.raises(ValueError, match="begun with another min_chars"):
        cleaning.clean(cleaning.Cleaning(inputs=[str(bad)], output=str(tmp_path / "out"), tokenizer=model, min_chars=1))


# ---- Tuning ----

# An H100's roofline sped up 20 times; the shape of Llama-3.1-8B.
DEVICE = "sim:flops=1.187e16,bandwidth=5.36e13,overhead=1e-5"
SHAPE = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
         "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
         "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 5e5, "torch_dtype": "bfloat16"}


def test_tune_finds_settings_that_serve_takes(tmp_path):
    (tmp_path / "shape").mkdir()
    (tmp_path / "shape" / "config.json").write_text(json.dumps(SHAPE))
    workload = tune.Workload(prompts=48, input_len=256, output_len=32, request_rate=200, ttft_ms=2000)
    fixed = {"device": DEVICE, "load-format": "dummy", "max-model-len": 1024}
    began = time.monotonic()
    winner = tune.search(str(tmp_path / "shape"), {"max-num-seqs": [1, 32], "max-num-batched-tokens": [64, 2048, -7]}, workload,
                         fixed=fixed, trials=8, rungs=2, storage_path=str(tmp_path / "results"))
    print(f"tune: {winner} in {time.monotonic() - began:.1f} s")
    # One sequence at a time cannot serve 200 requests a second; a negative budget does not start, and is no winner.
    assert winner.settings["max-num-seqs"] == 32 and winner.settings["max-num-batched-tokens"] > 0 and winner.trials == 8
    tune.write_config(winner, str(tmp_path / "tuned.yaml"))
    program = os.environ["QUIRE_BINARY"]
    done = subprocess.run([program, "inspect", str(tmp_path / "shape"), "--device", DEVICE, "--load-format", "dummy", "--max-model-len", "1024",
                           "--config", str(tmp_path / "tuned.yaml"), "--json"], capture_output=True, text=True)
    assert done.returncode == 0 and str(winner.settings["max-num-batched-tokens"]) in done.stdout, done.stderr
