"""quire run-batch: OpenAI batch files, refused lines, kill -9 in the middle."""
import json
import subprocess
import time
from pathlib import Path

import pytest

from conftest import ROOT, binary_path

MODEL = ROOT / "tests" / "golden" / "models" / "llama-gqa4-llama3"
SLOW = ["--device", "sim:overhead=4e-3", "--max-num-seqs", "4"]


def request(custom_id, url="/v1/completions", method="POST", **body):
    body = {"prompt": [3, 4, 5], "max_tokens": 5, "return_token_ids": True, "ignore_eos": True, **body}
    return json.dumps({"custom_id": custom_id, "method": method, "url": url, "body": body})


def run_batch(source, target, *options, **more):
    return subprocess.run([binary_path(), "run-batch", "-i", str(source), "-o", str(target), *options, str(MODEL)],
                          capture_output=True, text=True, timeout=120, **more)


def start_batch(source, target, *options):
    return subprocess.Popen([binary_path(), "run-batch", "-i", str(source), "-o", str(target), *options, str(MODEL)],
                            stderr=subprocess.DEVNULL)


def lines_of(path: Path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture
def batch(tmp_path):
    """80 requests of their own prompts, some seeded, one refused by the server, one no request at all."""
    source = tmp_path / "in.jsonl"
    lines = [request(f"r{i}", prompt=[3 + i, 7, 9], max_tokens=10 + i % 7, **({"seed": i} if i % 3 == 0 else {})) for i in range(80)]
    lines[11] = request("refused", max_tokens=-4)
    lines[37] = '{"custom_id": "no request"}'
    source.write_text("\n".join(lines) + "\n")
    return source


def test_every_line_has_its_answer_in_order(tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join([
        request("a"), request("b", max_tokens=-1), "", request("c", method="GET"), "no JSON", request("d", url="/v1/files"),
        request("e", stream=True), json.dumps([1]), request("f", model="another"), request("g", seed=5), request("h", n=2)]))
    done = run_batch(source, target)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["custom_id"] for row in rows] == ["a", "b", "c", None, "d", "e", None, "f", "g", "h"]
    statuses = [row["response"] and row["response"]["status_code"] for row in rows]
    assert statuses == [200, 400, None, None, None, None, None, 404, 200, 200]
    assert rows[0]["error"] is None and len(rows[0]["response"]["body"]["choices"][0]["token_ids"]) == 5
    assert rows[1]["error"]["error"]["param"] == "max_tokens" == rows[1]["response"]["body"]["error"]["param"]
    assert "POST" in rows[2]["error"]["message"] and "stream" in rows[5]["error"]["message"]
    assert rows[8]["response"]["body"]["choices"][0]["seed"] == 5
    assert len(rows[9]["response"]["body"]["choices"]) == 2
    assert not (tmp_path / "out.jsonl.partial").exists() and not (tmp_path / "out.jsonl.tmp").exists()


def test_killed_and_started_again_it_gives_the_same_bytes(batch, tmp_path):
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    assert run_batch(batch, whole, *SLOW).returncode == 0
    partial = tmp_path / "broken.jsonl.partial"
    for at_least in (10, 35, 60):
        process = start_batch(batch, broken, *SLOW)
        end = time.monotonic() + 60
        while lines_of(partial) < at_least and time.monotonic() < end:
            time.sleep(0.005)
        process.kill()
        process.wait()
        assert not broken.exists() and at_least <= lines_of(partial) <= 80
    with partial.open("ab") as file:
        file.write(b'{"line":79,"output":{"id"')  # torn
    assert run_batch(batch, broken, *SLOW).returncode == 0
    assert broken.read_bytes() == whole.read_bytes()
    assert lines_of(whole) == 80


def test_a_journal_of_another_run_is_refused(batch, tmp_path):
    target = tmp_path / "out.jsonl"
    partial = tmp_path / "out.jsonl.partial"
    process = start_batch(batch, target, *SLOW)
    while lines_of(partial) < 3:
        time.sleep(0.005)
    second = run_batch(batch, target, *SLOW)
    assert second.returncode == 2 and "another run" in second.stderr
    process.kill()
    process.wait()
    other = run_batch(batch, target, *SLOW, "--seed", "7")
    assert other.returncode == 2 and "another input, model or option" in other.stderr
    partial.unlink()
    assert run_batch(batch, target, "--device", "sim:overhead=0", "--seed", "7").returncode == 0


def test_wrong_files_are_named(batch, tmp_path):
    assert "-i IN.jsonl" in subprocess.run([binary_path(), "run-batch", str(MODEL)], capture_output=True, text=True).stderr
    assert "one file" in run_batch(batch, batch).stderr
    missing = run_batch(tmp_path / "none.jsonl", tmp_path / "out.jsonl")
    assert missing.returncode == 1 and "none.jsonl" in missing.stderr
    nowhere = run_batch(batch, tmp_path / "no" / "out.jsonl")
    assert nowhere.returncode == 1 and "out.jsonl.partial" in nowhere.stderr
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    assert run_batch(empty, tmp_path / "out.jsonl").returncode == 0 and (tmp_path / "out.jsonl").read_bytes() == b""
