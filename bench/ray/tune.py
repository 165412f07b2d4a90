#!/usr/bin/env python3
"""Does the search find what trying everything finds? A grid of 1,000 configurations of simulated engines.

    PYTHONPATH=python python3 bench/ray/tune.py [--json FILE] [--parallel 4] [--trials 80]

The device is the roofline of an H100 ten times as fast, the shape Llama-3.1-8B, the measure goodput of requests that
arrive in real time: on a busy machine give this command priority (nice -n -18). The grid is tried whole, `--parallel`
engines at once (they sleep), then quire.ray.tune searches it; both winners are measured again five times and their
medians compared.
"""
import argparse
import concurrent.futures
import dataclasses
import itertools
import json
import os
import statistics
import tempfile
import time

import ray

from quire.ray import tune

SHAPE = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
         "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
         "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 5e5, "torch_dtype": "bfloat16"}
FIXED = {"device": "sim:flops=5.934e15,bandwidth=2.68e13,overhead=2e-5", "load-format": "dummy", "max-model-len": 4096}
SPACE = {
    "max-num-batched-tokens": [256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192],
    "max-num-seqs": [4, 8, 12, 16, 24, 32, 48, 64, 96, 128],
    "long-prefill-token-threshold": [64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048],
}
WORKLOAD = tune.Workload(prompts=128, input_len=2048, output_len=128, request_rate=130, ttft_ms=40, tpot_ms=2)


def again(model, settings):
    return statistics.median(tune.measure(model, {**FIXED, **settings}, WORKLOAD).goodput for _ in range(5))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--trials", type=int, default=80)
    options = parser.parse_args()
    model = tempfile.mkdtemp(prefix="quire-shape-")
    with open(os.path.join(model, "config.json"), "w", encoding="utf-8") as file:
        json.dump(SHAPE, file)
    grid = [dict(zip(SPACE, values)) for values in itertools.product(*SPACE.values())]
    with concurrent.futures.ThreadPoolExecutor(options.parallel) as pool:
        measured = list(pool.map(lambda settings: tune.measure(model, {**FIXED, **settings}, WORKLOAD), grid))
    order = sorted(range(len(grid)), key=lambda i: -measured[i].goodput)
    # The best of a thousand noisy numbers is too good: the first ten are measured again before one is called the winner.
    best = max((grid[i] for i in order[:10]), key=lambda settings: again(model, settings))

    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 << 20, log_to_driver=False)
    began = time.monotonic()
    found = tune.search(model, SPACE, WORKLOAD, fixed=FIXED, trials=options.trials)
    result = {
        "workload": dataclasses.asdict(WORKLOAD),
        "fixed": FIXED,
        "grid": len(grid),
        "grid_engine_s": sum(m.engine_seconds for m in measured),
        "grid_winner": best,
        "grid_goodput": again(model, best),
        "grid_goodput_quantiles": [measured[order[int(q * (len(grid) - 1))]].goodput for q in (0, 0.01, 0.1, 0.5, 0.9)],
        "search_trials": found.trials,
        "search_engine_s": found.engine_seconds,
        "search_wall_s": time.monotonic() - began,
        "search_winner": found.settings,
        "search_goodput": again(model, found.settings),
    }
    result["goodput_ratio"] = result["search_goodput"] / result["grid_goodput"]
    result["engine_time_ratio"] = result["search_engine_s"] / result["grid_engine_s"]
    for name, value in result.items():
        print(f"{name:24} {value}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
