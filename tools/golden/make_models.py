#!/usr/bin/env python3
"""Small random-weight checkpoints saved by transformers, with its F32 logits and greedy tokens.

    python3 -m venv /tmp/venv-golden && /tmp/venv-golden/bin/pip install -r tools/golden/requirements.txt
    /tmp/venv-golden/bin/python tools/golden/make_models.py tests/golden/models [NAME...]

Formats: tests/golden/models/README.md. The same script, packages and processor give the same files.
"""
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import (LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config,
                          Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM)

from transformers.utils import logging

from gguf_out import write_gguf

PROMPT, GREEDY, VOCAB = 40, 16, 128
MARGIN = 0.01  # the greedy choice leads by this share of the largest logit, so that rounding cannot flip it

FAMILY = {"llama": (LlamaConfig, LlamaForCausalLM), "mistral": (MistralConfig, MistralForCausalLM),
          "qwen2": (Qwen2Config, Qwen2ForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}

LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}


def case(name, family, hidden, heads, kv_heads, layers=2, ff=96, tied=False, rope=None, **extra):
    out = dict(name=name, family=family, store="float32", spelling=5, shard=None, gguf=None, file_type=0, split=0)
    for key in ("store", "spelling", "shard", "gguf", "file_type", "split"):
        if key in extra:
            out[key] = extra.pop(key)
    out["config"] = dict(hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=kv_heads,
                         num_hidden_layers=layers, intermediate_size=ff, vocab_size=VOCAB, tie_word_embeddings=tied,
                         max_position_embeddings=128, bos_token_id=1, eos_token_id=VOCAB - 1,
                         rope_parameters=rope or {"rope_type": "default", "rope_theta": 10000.0}, **extra)
    return out


def all_as(kind):
    """Matrices in one type, vectors F32, as llama.cpp does."""
    return lambda name, shape: kind if len(shape) == 2 else "F32"


def q4_k_m(name, shape):
    """llama.cpp's mix: V and the MLP's way down better than the rest, the head in Q6_K."""
    if len(shape) < 2:
        return "F32"
    return "Q6_K" if name.startswith("output") or "attn_v" in name or "ffn_down" in name else "Q4_K"


def q5_k_mix(name, shape):
    if len(shape) < 2:
        return "F32"
    return "Q6_K" if name.startswith("token_embd") else "Q5_K"


CASES = [
    # Llama: rope kinds, head counts, both spellings, tied and untied, biases, dtypes.
    case("llama-mha", "llama", 64, 4, 4, spelling=4),
    case("llama-odd-heads", "llama", 56, 7, 7, ff=88, spelling=4, tied=True),
    case("llama-gqa3-linear", "llama", 72, 9, 3, rope=LINEAR, tied=True, spelling=4, ff=80),
    case("llama-gqa4-llama3", "llama", 64, 8, 2, rope=LLAMA3, tied=True),
    case("llama-gqa4-llama3-old", "llama", 64, 4, 1, rope=LLAMA3, spelling=4, head_dim=24),
    case("llama-gqa8-yarn", "llama", 64, 8, 1, rope=YARN),
    case("llama-bias-bf16", "llama", 64, 4, 2, attention_bias=True, mlp_bias=True, store="bfloat16"),
    case("mistral-window-sharded", "mistral", 64, 4, 2, sliding_window=8, shard="120KB"),
    case("mistral-full-f16", "mistral", 64, 8, 2, sliding_window=None, spelling=4, store="float16"),
    case("qwen2-bias", "qwen2", 72, 6, 2, tied=True, spelling=4),
    case("qwen2-window", "qwen2", 64, 4, 4, layers=3, use_sliding_window=True, sliding_window=6, max_window_layers=1),
    case("qwen2-yarn-old", "qwen2", 64, 4, 1, rope=YARN, spelling=4),
    case("qwen3-qknorm", "qwen3", 48, 4, 2, head_dim=16),
    case("qwen3-gqa8-bf16", "qwen3", 64, 8, 1, head_dim=12, tied=True, store="bfloat16", spelling=4),
    # GGUF: every rope kind, permutation, every block format, a split set.
    case("gguf-llama-f32", "llama", 64, 8, 2, gguf=all_as("F32")),
    case("gguf-llama-llama3-f16", "llama", 64, 4, 1, rope=LLAMA3, tied=True, gguf=all_as("F16"), file_type=1),
    case("gguf-llama-linear-bf16", "llama", 96, 6, 2, rope=LINEAR, gguf=all_as("BF16"), file_type=32),
    case("gguf-llama-yarn-q8_0", "llama", 64, 4, 2, rope=YARN, gguf=all_as("Q8_0"), file_type=7),
    case("gguf-llama-q4_0", "llama", 96, 6, 3, tied=True, gguf=all_as("Q4_0"), file_type=2),
    case("gguf-llama-q4_1", "llama", 96, 3, 1, tied=True, gguf=all_as("Q4_1"), file_type=3),
    case("gguf-llama-q5_0", "llama", 64, 4, 4, gguf=all_as("Q5_0"), file_type=8),
    case("gguf-llama-q5_1", "llama", 64, 4, 4, gguf=all_as("Q5_1"), file_type=9),
    case("gguf-llama-q4_k_m", "llama", 256, 8, 2, ff=256, gguf=q4_k_m, file_type=15),
    case("gguf-llama-q5_k", "llama", 256, 4, 1, ff=256, tied=True, gguf=q5_k_mix, file_type=17),
    case("gguf-mistral-window-split", "mistral", 64, 4, 2, sliding_window=8, gguf=all_as("F32"), split=8),
    case("gguf-qwen2-q8_0", "qwen2", 64, 4, 2, tied=True, gguf=all_as("Q8_0"), file_type=7),
    case("gguf-qwen2-yarn-f32", "qwen2", 72, 6, 2, rope=YARN, gguf=all_as("F32")),
    case("gguf-qwen3-f32", "qwen3", 48, 4, 2, head_dim=16, gguf=all_as("F32")),
    case("gguf-qwen3-q4_1", "qwen3", 64, 4, 1, head_dim=32, tied=True, gguf=all_as("Q4_1"), file_type=3),
]


def randomize(model, seed, tied):
    """Weights that make every part matter: larger than transformers' initial ones, norms away from 1. A tied
    embedding is small, or every token would predict itself."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=g)
            if "norm" in name:
                p.copy_(1 + 0.2 * noise)
            elif name.endswith(".bias"):
                p.copy_(0.3 * noise)
            elif "embed_tokens" in name:
                p.copy_((0.12 if tied else 0.6) * noise)
            else:
                p.copy_(noise * 1.2 / p.shape[1] ** 0.5)
    return model


def build(c, seed):
    config_class, model_class = FAMILY[c["family"]]
    model = randomize(model_class._from_config(config_class(**c["config"]), attn_implementation="eager"), seed,
                      c["config"]["tie_word_embeddings"])
    return model.to(getattr(torch, c["store"])).eval()


def reference(model, prompt):
    """Greedy tokens by a full forward each, and the logits of all positions that were fed."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(GREEDY):
            logits = model(torch.tensor([ids]), use_cache=False).logits[0]
            ids.append(int(logits[-1].argmax()))
        logits = model(torch.tensor([ids[:-1]]), use_cache=False).logits[0]
        exact = model.double()(torch.tensor([ids[:-1]]), use_cache=False).logits[0]
        model.float()
    top = logits[PROMPT - 1:].topk(2, dim=1).values
    margin = float((top[:, 0] - top[:, 1]).min() / logits.abs().max())
    noise = float((logits.double() - exact).abs().max() / exact.abs().max())
    return np.array(ids[PROMPT:], np.int32), logits.float().numpy(), margin, noise


def to_old_spelling(path, c):
    """config.json as transformers 4 wrote it."""
    config = json.loads(path.read_text())
    rope = dict(config.pop("rope_parameters"))
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    if kind == "llama3":
        config["rope_scaling"] = {"rope_type": kind, **rope}
    else:
        config["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    config["transformers_version"] = "4.44.0"
    path.write_text(json.dumps(config, indent=2) + "\n")


def save(c, model, folder):
    """Writes the checkpoint; returns (path within the root, a float32 model of what the file holds)."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if c["gguf"] is None:
        model.save_pretrained(folder, **({"max_shard_size": c["shard"]} if c["shard"] else {}))
        if c["spelling"] == 4:
            to_old_spelling(folder / "config.json", c)
        read = type(model).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        return folder.name, read
    file = folder / "model.gguf"
    state = write_gguf(file, model.float(), c["gguf"], c["file_type"], c["split"])
    model.load_state_dict({**state, **({"lm_head.weight": state["model.embed_tokens.weight"]}
                                       if c["config"]["tie_word_embeddings"] else {})}, strict=True)
    first = sorted(folder.glob("*.gguf"))[0]
    return f"{folder.name}/{first.name}", model.eval()


def clear(ids, logits, margin, noise):
    return margin > MARGIN and len(set(ids.tolist())) > 5


def make(c, root, prompt):
    for seed in range(1000, 1400):
        model = build(c, seed)
        if c["gguf"] is None and not clear(*reference(build(c, seed).float(), prompt)):
            continue
        path, read = save(c, model, root / c["name"])
        ids, logits, margin, noise = reference(read, prompt)
        if clear(ids, logits, margin, noise):
            break
    else:
        raise SystemExit(f"{c['name']}: no seed gives a clear greedy run")
    expected = root / "expected" / f"{c['name']}.bin"
    expected.parent.mkdir(exist_ok=True)
    expected.write_bytes(prompt.tobytes() + ids.tobytes() + logits.astype("<f4").tobytes())
    print(f"{c['name']:28} seed {seed} margin {margin:.3f} largest logit {abs(logits).max():.2f} "
          f"F32 noise against F64 {noise:.1e}", flush=True)
    return f"{c['name']} {path} {PROMPT} {GREEDY} {VOCAB}\n"


def main():
    root = Path(sys.argv[1])
    only = sys.argv[2:]
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    prompt = np.random.default_rng(7).integers(3, VOCAB - 1, PROMPT).astype("<i4")
    manifest = root / "manifest.txt"
    lines = dict((line.split()[0], line) for line in manifest.read_text().splitlines(True)
                 if not line.startswith("#")) if manifest.exists() else {}
    for c in CASES:
        if not only or c["name"] in only:
            lines[c["name"]] = make(c, root, prompt)
    known = [c["name"] for c in CASES]
    manifest.write_text("# name path prompt_count greedy_count vocab (README.md)\n" +
                        "".join(lines[name] for name in known if name in lines))


if __name__ == "__main__":
    main()
