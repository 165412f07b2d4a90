"""The command line: documentation that is current, errors that help, settings files."""
import json
import signal
import subprocess

import openai
import pytest
from conftest import ROOT, Server, binary_path, model_path


def quire(*arguments, **options):
    return subprocess.run([binary_path(), *arguments], capture_output=True, text=True, timeout=120, **options)


def test_the_options_page_is_what_help_says():
    made = subprocess.run(["sh", ROOT / "tools" / "options_doc.sh", binary_path()], capture_output=True, text=True, check=True)
    assert made.stdout == (ROOT / "docs" / "options.md").read_text(), "tools/options_doc.sh build/quire >docs/options.md"


def test_unknown_options_suggest_the_nearest():
    result = quire("serve", "x", "--max-model-length", "8")
    assert result.returncode == 2 and "did you mean --max-model-len?" in result.stderr
    assert "did you mean --help?" in quire("run", "--hlep").stderr
    assert "--port: a whole number is expected, got 'http'" in quire("serve", "x", "--port", "http").stderr


def test_options_of_vllm_are_refused_by_name_or_passed_over():
    for option in ("--ssl-keyfile", "--pipeline-parallel-size", "--quantization"):
        result = quire("serve", "x", option, "2")
        assert result.returncode != 0 and f"{option}: " in result.stderr and "not served yet" in result.stderr
    result = quire("run", model_path(), "Hi", "--trust-remote-code", "--swap-space", "4", "--max-tokens", "2")
    assert result.returncode == 0 and "--swap-space means nothing here" in result.stderr


def test_run_answers_and_chats(tmp_path):
    answer = quire("run", model_path(), "What is the capital of France?", "--temperature", "0")
    assert answer.returncode == 0 and "Paris" in answer.stdout
    chat = quire("run", model_path(), "--temperature", "0", "--max-tokens", "12", input="Hi\n/clear\nHi\n/exit\n")
    lines = chat.stdout.splitlines()
    assert chat.returncode == 0 and len(lines) >= 2 and lines[: len(lines) // 2] == lines[len(lines) // 2 :]


def test_settings_files_are_read_and_the_command_line_wins(tmp_path):
    settings = tmp_path / "quire.yaml"
    settings.write_text(f"# a comment\nmodel: {model_path()}\nmax-model-len: 512\nmax_num_seqs: 3\n")
    plan = json.loads(quire("inspect", "--config", str(settings), "--max-num-seqs", "5", "--json").stdout)["plan"]
    assert plan["max_model_len"] == 512 and plan["max_num_seqs"] == 5
    settings.write_text(json.dumps({"max-model-len": 256}))
    plan = json.loads(quire("inspect", model_path(), "--config", str(settings), "--json").stdout)["plan"]
    assert plan["max_model_len"] == 256
    settings.write_text("max-model-length: 3\n")
    assert "quire.yaml: line 1" in quire("inspect", model_path(), "--config", str(settings)).stderr


def test_inspect_refuses_what_cannot_fit_with_the_numbers():
    result = quire("inspect", model_path(), "--kv-cache-memory-bytes", "1000GiB")
    assert result.returncode != 0 and "KV" in result.stderr and "kv_bytes" in result.stdout


def test_tokenize_round_trips():
    ids = json.loads(quire("tokenize", model_path(), "Hello world", "--json").stdout)
    assert quire("tokenize", model_path(), "--decode", " ".join(map(str, ids))).stdout == "Hello world\n"


def test_bench_online_counts_requests_in_time():
    common = ("bench", "online", model_path(), "--num-prompts", "6", "--input-len", "16", "--output-len", "4", "--request-rate", "50", "--json")
    easy = json.loads(quire(*common, "--goodput-ttft-ms", "60000").stdout)
    assert easy["in_time_percent"] == 100 and easy["goodput_requests_per_s"] == easy["requests_per_s"] > 0
    hard = json.loads(quire(*common, "--goodput-ttft-ms", "0.000001").stdout)
    assert hard["in_time_percent"] == 0 and hard["goodput_requests_per_s"] == 0 and hard["first_token_p50_ms"] > 0
    assert "must not be negative, got -1" in quire("bench", "online", model_path(), "--request-rate", "-1").stderr


def test_bench_reports_a_share_of_the_limit():
    result = json.loads(quire("bench", "latency", model_path(), "--num-iters", "1", "--output-len", "16", "--json").stdout)
    assert result["decode_tokens_per_s_median"] > 0 and 0 < result["share_of_read_limit_percent"] < 200


def test_bench_rows_measures_several_things_in_one_engine():
    result = quire("bench", "rows", model_path(), "--rows", "step:2:16:24,load:3:8:4,first:16:2,long:40:6", "--json")
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)
    assert rows["step:2:16:24"]["ms_per_step"] > 0 and rows["load:3:8:4"]["output_tokens_per_s"] > 0
    assert rows["first:16:2"]["first_token_ms"] > 0 and rows["long:40:6"]["tokens_per_s"] > 0 and "limits" in rows
    for bad in ("step:2:16", "first:", "first:0", "rows:1", "load:1:2:3:4", "step:1:2:x"):
        result = quire("bench", "rows", model_path(), "--rows", bad)
        assert result.returncode == 2 and f"got '{bad}'" in result.stderr


def test_exit_with_stdin_ends_with_the_pipe():
    command = [binary_path(), "serve", model_path(), "--port", "0", "--exit-with-stdin"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert any("quire serves" in line for line in process.stderr)
        process.stdin.close()
        assert process.wait(20) == -signal.SIGKILL


def test_a_lost_device_fails_requests_cleanly_and_ends_the_process(monkeypatch):
    monkeypatch.setenv("QUIRE_TEST_FAULT_STEP", "4")
    server = Server("--device", "cpu")
    with pytest.raises(openai.InternalServerError) as failure:
        server.client().completions.create(model="test", prompt="Hello", max_tokens=50)
    assert failure.value.code == "device_failed" and "broken for a test" in str(failure.value)
    assert server.process.wait(20) == 1
