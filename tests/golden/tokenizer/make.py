#!/usr/bin/env python3
"""Writes families.jsonl: small tokenizers of every family with what the PyPI package `tokenizers` answers.

    python3 make.py [SHARED_DIR]

One JSON object a line: name, tokenizer (a tokenizer.json), cases of [text, special, ids, decoded].  The families of
differential.py, and the real ones cut down to their first merges or pieces (from the shared data).
"""
import json
import os
import random
import sys

from tokenizers import Tokenizer

import differential

HERE = os.path.dirname(os.path.abspath(__file__))
BYTES = [chr(b) for b in list(range(0x21, 0x7F)) + list(range(0xA1, 0xAD)) + list(range(0xAE, 0x100))]
BYTES += [chr(0x100 + i) for i in range(68)]


def cut_bpe(config, merges_kept):
    model, byte_level = config["model"], "ByteLevel" in json.dumps(config["pre_tokenizer"])
    merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    suffix = model.get("end_of_word_suffix") or ""
    keep = {c for c in BYTES} | {c + suffix for c in BYTES} if byte_level else \
        {t for t in model["vocab"] if len(t) == 1 and ord(t) < 0x500 or t.startswith("<0x") or t in ("▁", model["unk_token"])}
    kept = []
    for left, right in merges:
        if left in keep and right in keep and len(kept) < merges_kept:
            keep.add(left + right)
            kept.append([left, right])
    order = sorted((t for t in model["vocab"] if t in keep), key=model["vocab"].get)
    model["vocab"] = {t: i for i, t in enumerate(order)}
    model["merges"] = [" ".join(m) for m in kept]


def cut(config, kept):
    model = config["model"]
    if isinstance(model["vocab"], list):
        model["vocab"] = model["vocab"][:kept]
    elif "merges" in model:
        cut_bpe(config, kept)
    else:
        words = sorted(model["vocab"], key=model["vocab"].get)
        words = [w for w in words if w.startswith("[") or len(w) < 3] + words[1996:1996 + kept]
        model["vocab"] = {w: i for i, w in enumerate(dict.fromkeys(words))}
    known = set(p[0] for p in model["vocab"]) if isinstance(model["vocab"], list) else set(model["vocab"])
    added = [t for t in config["added_tokens"] if t["content"] in known] + \
            [t for t in config["added_tokens"] if t["content"] not in known][:6]
    size = len(model["vocab"])
    for token in added:
        if token["content"] not in known:
            token["id"], size = size, size + 1
        elif isinstance(model["vocab"], dict):
            token["id"] = model["vocab"][token["content"]]
    config["added_tokens"] = added
    config["padding"] = config["truncation"] = None
    post = json.dumps(config["post_processor"])
    ids = {t["content"]: t["id"] for t in added}
    if "TemplateProcessing" in post or "Processing" in post:
        def fix(node):
            if isinstance(node, dict):
                if "ids" in node and node.get("id") in ids:
                    node["ids"] = [ids[node["id"]]]
                for key, value in node.items():
                    if key in ("sep", "cls") and value[0] in ids:
                        node[key] = [value[0], ids[value[0]]]
                    fix(value)
            elif isinstance(node, list):
                for item in node:
                    fix(item)
        fix(config["post_processor"])
    return config


def real_families(shared):
    for name, kept in (("gpt-2", 700), ("llama-3", 700), ("qwen2.5", 700), ("gpt-oss", 700), ("mistral-nemo", 500), ("deepseek", 500),
                       ("clip", 400), ("roberta-base", 400), ("llama-2", 700), ("phi-3-mini", 400), ("bert-base-uncased", 600),
                       ("t5-small", 1500)):
        with open("%s/data/tokenizers/%s/tokenizer.json" % (shared, name), encoding="utf-8") as file:
            config = cut(json.load(file), kept)
        yield name, Tokenizer.from_str(json.dumps(config)), config
    config = cut(json.load(open("%s/data/tokenizers/gpt-2/tokenizer.json" % shared, encoding="utf-8")), 400)
    config["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True},
                                                                     config["pre_tokenizer"]]}
    yield "smollm", Tokenizer.from_str(json.dumps(config)), config


def cases_of(name, tokenizer, config, count):
    rng = random.Random("golden " + name)
    specials = [t["content"] for t in config["added_tokens"]]
    normalized = {t["id"] for t in config["added_tokens"] if t["normalized"]}
    cases = []
    while len(cases) < count:
        text, special = differential.random_text(rng, specials), rng.random() < 0.5
        ids = tokenizer.encode(text, add_special_tokens=special).ids
        decoded = None if normalized.intersection(ids) else tokenizer.decode(ids, skip_special_tokens=special)
        cases.append([text, special, ids, decoded])
    return cases


def main():
    shared = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("QR_SHARED_DIR", HERE + "/../../../../shared")
    families = [(n, t, json.loads(t.to_str())) for n, t in differential.made_families()] + list(real_families(shared))
    with open(HERE + "/families.jsonl", "w", encoding="utf-8") as out:
        for name, tokenizer, config in families:
            real = name in ("smollm",) or "-" in name and " " not in name or name in ("deepseek", "clip", "qwen2.5")
            cases = cases_of(name, tokenizer, config, 60 if real else 16)
            json.dump({"name": name, "cases": cases, "tokenizer": config}, out, ensure_ascii=False, separators=(",", ":"))
            out.write("\n")


if __name__ == "__main__":
    main()
