"""Tool calls and reasoning as the real OpenAI client sees them: the server over scripted answers of every style.

The scripts are calls and texts made here, and, where the shared data is, the calls and texts that a production server has
recorded (model-outputs/tgi-snapshots), each written down in the syntax of each style.
"""
import json
import subprocess
from pathlib import Path

import httpx
import openai
import pytest

from conftest import binary_path, shared_folder

WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {
    "city": {"type": "string"}, "days": {"type": "integer"}, "more": {"type": "object"}}}}}
NOW = {"type": "function", "function": {"name": "now"}}
TOOLS = [WEATHER, NOW]
CALLS = [("get_weather", {"city": "Z\u00fcrich \"old\"\n\\ town \U0001f642", "days": 3, "more": {"a": [1, None, True, -2.5]}}), ("now", {})]


def xml_value(value):
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def written(style, calls):
    """Calls as a model of that style writes them."""
    texts = [(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in calls]
    if style == "hermes":
        return "\n".join(f'<tool_call>\n{{"name": "{name}", "arguments": {text}}}\n</tool_call>' for name, text in texts)
    if style == "llama3_json":
        return "; ".join(f'{{"name": "{name}", "parameters": {text}}}' for name, text in texts)
    if style == "mistral":
        return "".join(f"[TOOL_CALLS]{name}[ARGS]{text}" for name, text in texts)
    if style == "pythonic":
        return "[" + ", ".join(f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
                               for name, arguments in calls) + "]"
    if style == "harmony":
        return "<|start|>assistant".join(f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{text}<|call|>"
                                         for name, text in texts)
    assert style == "qwen3_coder"
    return "\n".join("<tool_call>\n<function=" + name + ">\n" +
                     "".join(f"<parameter={key}>\n{xml_value(value)}\n</parameter>\n" for key, value in arguments.items()) +
                     "</function>\n</tool_call>" for name, arguments in calls)


STYLES = ["hermes", "qwen3_coder", "llama3_json", "pythonic", "mistral", "harmony"]


class Scripted:
    def __init__(self, program, folder, style, reasoning, event_bytes, template="no template"):
        path = Path(folder) / f"{style}-{reasoning}-{event_bytes}.jinja"
        path.write_text(template, encoding="utf-8")
        self.process = subprocess.Popen([program, path, style, reasoning, str(event_bytes)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}"
        self.client = openai.OpenAI(base_url=self.url + "/v1", api_key="none", max_retries=0, timeout=60)

    def whole(self, script, **options):
        return self.client.chat.completions.create(model="fake", messages=[{"role": "user", "content": script}], **options)

    def streamed(self, script, **options):
        """(reasoning, content, [(name, arguments)], finish reason, completion tokens) of a stream."""
        reasoning, content, calls, finish, usage, ids = "", "", [], None, None, []
        for chunk in self.client.chat.completions.create(model="fake", messages=[{"role": "user", "content": script}], stream=True,
                                                         stream_options={"include_usage": True}, **options):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                delta = choice.delta
                assert getattr(delta, "reasoning", None) == getattr(delta, "reasoning_content", None)
                reasoning += getattr(delta, "reasoning", None) or ""
                content += delta.content or ""
                for call in delta.tool_calls or []:
                    if call.id:
                        assert call.index == len(calls) and call.type == "function" and call.function.name
                        ids.append(call.id)
                        calls.append([call.function.name, ""])
                    calls[call.index][1] += call.function.arguments
                finish = choice.finish_reason or finish
        assert len(set(ids)) == len(ids)
        return reasoning, content, [tuple(call) for call in calls], finish, usage.completion_tokens

    def check(self, script, **options):
        """What the client sees of the whole reply; the stream has to say the same."""
        reply = self.whole(script, **options)
        choice = reply.choices[0]
        message = choice.message
        calls = [(call.function.name, call.function.arguments) for call in message.tool_calls or []]
        seen = (getattr(message, "reasoning", None) or "", message.content or "", calls, choice.finish_reason, reply.usage.completion_tokens)
        assert self.streamed(script, **options) == seen
        assert message.content is None or message.content or not (calls or seen[0])
        return seen

    def close(self):
        self.process.stdin.close()
        assert self.process.wait(30) == 0


@pytest.fixture(scope="module")
def scripted(tmp_path_factory):
    program = Path(binary_path()).parent / "scripted_server"
    if not program.exists():
        pytest.skip(f"no program at {program}: run make")
    running = {}

    def get(style, reasoning="none", event_bytes=0, template="no template"):
        key = (style, reasoning, event_bytes, template)
        if key not in running:
            running[key] = Scripted(str(program), tmp_path_factory.mktemp("scripted"), *key)
        return running[key]

    yield get
    for server in running.values():
        server.close()


def parsed(calls):
    return [(name, json.loads(arguments)) for name, arguments in calls]


@pytest.mark.parametrize("event_bytes", [0, 1, 7])
@pytest.mark.parametrize("style", STYLES)
def test_calls_of_every_style_reach_the_client(scripted, style, event_bytes):
    server = scripted(style, "none" if style == "harmony" else "think", event_bytes)
    thought = "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant" if style == "harmony" else "<think>\nLet me see.\n</think>\n\n"
    script = thought + written(style, CALLS)
    reasoning, content, calls, finish, tokens = server.check(script, tools=TOOLS)
    assert (reasoning, content, parsed(calls), finish) == ("Let me see.", "", CALLS, "tool_calls")
    assert tokens == len(script.encode())
    assert server.check(script, tools=TOOLS, parallel_tool_calls=False)[2] == calls[:1]
    assert server.check(script, tools=TOOLS, extra_body={"include_reasoning": False})[0] == ""
    if style != "harmony":  # its channels are marks in any case
        assert server.check(script, tools=TOOLS, tool_choice="none")[1:4] == (written(style, CALLS), [], "stop")
        assert server.check(script)[1:4] == (written(style, CALLS), [], "stop")


@pytest.mark.parametrize("style", STYLES)
def test_a_named_function_is_called(scripted, style):
    server = scripted(style)
    whole = written(style, CALLS[:1])
    choice = {"type": "function", "function": {"name": "get_weather"}}
    body = {"messages": [{"role": "user", "content": ""}], "tools": TOOLS, "tool_choice": choice}
    opening = httpx.post(server.url + "/apply-template", json=body).json()["prompt"].split("\x1e", 1)[1]
    rest = json.dumps(CALLS[0][1]) + "}]" if style == "mistral" else whole[len(opening):]  # the older form needs no [ARGS]
    _, content, calls, finish, tokens = server.check(rest, tools=TOOLS, tool_choice=choice)
    assert (content, parsed(calls), finish) == ("", CALLS[:1], "stop")
    assert tokens == len(rest.encode())


def test_styles_come_from_the_chat_template(scripted):
    server = scripted("auto", "auto", 0, "{% if tools %}<tool_call>{% endif %}</think>")
    assert server.check("<think>a</think>" + written("hermes", CALLS), tools=TOOLS)[:1] == ("a",)
    with pytest.raises(openai.BadRequestError) as refused:
        scripted("auto", "auto", 0, "plain").whole("x", tools=TOOLS, tool_choice="required")
    assert "--tool-call-parser" in str(refused.value) and refused.value.param == "tool_choice"


def test_the_clients_stream_helper_reads_the_calls(scripted):
    with scripted("hermes").client.chat.completions.stream(model="fake", tools=TOOLS, messages=[
            {"role": "user", "content": "Sure. " + written("hermes", CALLS)}]) as stream:
        for _ in stream:
            pass
        message = stream.get_final_completion().choices[0].message
    assert message.content == "Sure."
    assert parsed((call.function.name, call.function.arguments) for call in message.tool_calls) == CALLS


# ---- what a production server has recorded ----

def recorded(folder):
    """Texts and calls in the snapshots: streams joined, whatever their shape."""
    texts, calls = set(), []
    for path in sorted((folder / "data" / "model-outputs" / "tgi-snapshots").rglob("*.json")):
        snapshot = json.loads(path.read_text(encoding="utf-8"))
        pieces, arguments, name = [], [], None
        for item in snapshot if isinstance(snapshot, list) else [snapshot]:
            if not isinstance(item, dict):
                continue
            if isinstance(item.get("generated_text"), str):
                texts.add(item["generated_text"])
            for choice in item.get("choices") or []:
                message = choice.get("message") or choice.get("delta") or {"content": choice.get("text")}
                pieces.append(message.get("content") or "")
                for call in message.get("tool_calls") or []:
                    function = call["function"]
                    name = name or function.get("name")
                    arguments.append(function["arguments"] if isinstance(function["arguments"], str) else json.dumps(function["arguments"]))
        texts.add("".join(pieces))
        try:
            found = json.loads("".join(arguments)) if arguments else None
        except ValueError:
            found = None
        if isinstance(found, dict) and name:
            calls.append((name, found))
    return sorted(text for text in texts if text.strip()), calls


def test_recorded_answers_pass_as_they_are(scripted):
    texts, _ = recorded(shared_folder())
    assert len(texts) >= 30
    for style in ("hermes", "qwen3_coder", "llama3_json", "mistral", "pythonic"):
        server = scripted(style, "think", 5)
        for text in texts:
            assert server.check(text, tools=TOOLS)[:4] == ("", text, [], "stop"), (style, text)


def test_recorded_calls_come_back_from_every_style(scripted):
    texts, calls = recorded(shared_folder())
    assert len(calls) >= 4
    for style in STYLES:
        server = scripted(style, "none", 3)
        for name, arguments in calls:
            tool = {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {
                key: {"type": "string" if isinstance(value, str) else "number" if isinstance(value, (int, float)) else "object"}
                for key, value in arguments.items()}}}}
            _, _, found, finish, _ = server.check(written(style, [(name, arguments)]), tools=[tool])
            assert (parsed(found), finish) == ([(name, arguments)], "tool_calls"), style
