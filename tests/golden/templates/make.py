#!/usr/bin/env python3
"""Makes the files of this folder: python3 make.py SHARED BENCH_DIR. Needs PyPI jinja2 (tools/jinja_diff.py says how).

templates.jsonl   {"name", "template"}: chat templates as their checkpoints ship them
contexts.json     conversations by name, from ../shared
expected.jsonl    {"template", "case", "text" | "error"}: recorded in ../shared by Jinja2 3.1.6
language.jsonl    {"name", "template", "context", "options", "output" | "error"}: cases of huggingface.js, as Jinja2
generated.jsonl   {"template", "context", "output" | "error"}: from tools/jinja_diff.py's generator, as Jinja2"""
import json
import os
import random
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../../../tools"))
import jinja_diff  # noqa: E402

NOW = 1721995200
CHOSEN = """chujiezheng/chatml chujiezheng/llama-2-chat chujiezheng/llama-3-instruct chujiezheng/mistral-instruct
chujiezheng/gemma-it chujiezheng/alpaca chujiezheng/phi-3 llama.cpp/meta-llama-Llama-3.1-8B-Instruct
llama.cpp/meta-llama-Llama-3.2-3B-Instruct llama.cpp/Qwen-Qwen2.5-7B-Instruct llama.cpp/Qwen-Qwen3-0.6B
llama.cpp/Qwen3-Coder llama.cpp/Qwen3.5-4B llama.cpp/HuggingFaceTB-SmolLM3-3B llama.cpp/openai-gpt-oss-120b
llama.cpp/NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use llama.cpp/mistralai-Mistral-Nemo-Instruct-2407
llama.cpp/Mistral-Small-3.2-24B-Instruct-2506 llama.cpp/deepseek-ai-DeepSeek-V3.1 llama.cpp/deepseek-ai-DeepSeek-V3.2
llama.cpp/google-gemma-2-2b-it llama.cpp/microsoft-Phi-3.5-mini-instruct llama.cpp/ibm-granite-granite-4.0
llama.cpp/CohereForAI-c4ai-command-r-plus-tool_use llama.cpp/moonshotai-Kimi-K2 llama.cpp/GLM-4.6
llama.cpp/meetkai-functionary-medium-v3.1 llama.cpp/Apertus-8B-Instruct llama.cpp/google-gemma-4-31B-it
llama.cpp/deepseek-ai-DeepSeek-R1-Distill-Llama-8B vllm/tool_chat_template_hermes vllm/tool_chat_template_llama3.2_pythonic
vllm/tool_chat_template_mistral_parallel vllm/tool_chat_template_llama4_pythonic vllm/tool_chat_template_granite
vllm/tool_chat_template_deepseekv31 mistral-common/v3 mistral-common/v7 mistral-common/v13_think mistral-common/v15_image_think
ollama/glimmer_chat_template""".split()
# SmolLM2-135M-Instruct's, as its GGUF holds it.
SMOLLM2 = ("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
           "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
           "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
           "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def write(name, rows):
    with open(os.path.join(HERE, name), "w", encoding="utf-8") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def render(case, options=None):
    env = jinja_diff.environment()
    for key, value in (options or {}).items():
        setattr(env, key, value)
    return jinja_diff.expected(env, case)


def main():
    data = os.path.join(sys.argv[1], "data/chat-templates")
    contexts = json.load(open(os.path.join(data, "goldens/contexts.json"), encoding="utf-8"))
    templates = [{"name": n, "template": open(f"{data}/{n}.jinja", encoding="utf-8", newline="").read()} for n in CHOSEN]
    templates.append({"name": "smollm2", "template": SMOLLM2})
    expected = []
    for line in open(f"{data}/goldens/goldens.jsonl", encoding="utf-8"):
        row = json.loads(line)
        name = row["template"].removeprefix("chat-templates/").removesuffix(".jinja")
        if name in CHOSEN:
            expected.append({**row, "template": name})
    for case, context in contexts.items():
        got = render({"template": SMOLLM2, "context": context})
        row = {"template": "smollm2", "case": case}
        expected.append({**row, "text": got["output"]} if "output" in got else {**row, **got})
    write("templates.jsonl", templates)
    write("expected.jsonl", expected)
    json.dump(contexts, open(os.path.join(HERE, "contexts.json"), "w", encoding="utf-8"), ensure_ascii=False, indent=0)
    language = []
    for line in open(f"{data}/hf-jinja/templates.jsonl", encoding="utf-8"):
        row = json.loads(line)
        if "\0" in json.dumps(row).replace("\\u0000", "\0"):
            continue  # NUL in a key: our JSON refuses it
        got = render(row, row["options"])
        language.append({**{k: row[k] for k in ("name", "template", "context", "options")}, **got})
    write("language.jsonl", language)
    generated, env = [], jinja_diff.environment()
    for index in range(2200):
        rng = random.Random(77000003 + index)
        generator = jinja_diff.Generator(rng)
        template = "{{ " + generator.expr(3) + " }}" if rng.random() < 0.6 else generator.body(3)
        case = {"template": template, "context": jinja_diff.context(rng)}
        got = jinja_diff.expected(env, case)
        foreign = jinja_diff.FOREIGN.search(got.get("output", ""))
        if "skip" in got or foreign or "nofilter" in template or (len(template) > 1200):
            continue
        if ("output" in got and jinja_diff.utf8(got["output"])) or index % 40 == 0:
            generated.append({**case, **got})
    write("generated.jsonl", generated)


main()
