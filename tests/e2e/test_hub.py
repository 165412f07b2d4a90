"""`quire pull` and hub names against a server on this machine that speaks the hub's routes."""
import hashlib
import json
import os
import signal
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from conftest import ROOT, binary_path

MODELS = ROOT / "tests" / "golden" / "models"
COMMIT = "89abcdef" * 5
LARGE = 10000  # files of this size on are the hub's large ones


class Hub(ThreadingHTTPServer):
    """Repositories are folders; `slow` spreads each large file over so many seconds."""

    daemon_threads = True

    def __init__(self, **repos):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos = {name.replace("__", "/"): Path(folder) for name, folder in repos.items()}
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.token, self.slow, self.asked = None, 0, []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        pass  # clients that are killed in the middle are part of the test


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def reply(self, code, body, **headers):
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.send_slowly(body)

    def send_slowly(self, body):
        if not self.server.slow or len(body) < LARGE:
            self.wfile.write(body)
            return
        step = len(body) // 50 + 1
        for at in range(0, len(body), step):
            self.wfile.write(body[at:at + step])
            time.sleep(self.server.slow / 50)

    def describe(self, folder):
        siblings = []
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            data = file.read_bytes()
            row = {"rfilename": str(file.relative_to(folder)), "size": len(data),
                   "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
            if len(data) >= LARGE:
                row["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            siblings.append(row)
        return json.dumps({"sha": COMMIT, "siblings": siblings}).encode()

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Range")))
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self.reply(401, b"no")
        for name, folder in self.server.repos.items():
            if self.path == f"/api/models/{name}/revision/main?blobs=true":
                return self.reply(200, self.describe(folder))
            if self.path.startswith(f"/{name}/resolve/{COMMIT}/"):
                data = (folder / self.path.split("/", 5)[5]).read_bytes()
                wanted = self.headers.get("Range")
                if not wanted:
                    return self.reply(200, data)
                begin = int(wanted[6:-1])
                return self.reply(206, data[begin:], Content_Range=f"bytes {begin}-{len(data) - 1}/{len(data)}")
        return self.reply(404, b"no")


@pytest.fixture
def hub():
    server = Hub(tiny__llama=MODELS / "llama-mha", tiny__gguf=MODELS / "gguf-llama-q4_1")
    yield server
    server.shutdown()


def environment(hub, cache, **more):
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    return {**env, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache), "HOME": str(cache), **more}


def quire(hub, cache, *arguments, **more):
    return subprocess.run([binary_path(), *arguments], env=environment(hub, cache, **more), text=True,
                          capture_output=True, timeout=60)


def snapshot(cache, name):
    return cache / f"models--{name.replace('/', '--')}" / "snapshots" / COMMIT


def test_pull_prints_the_folder_and_inspect_opens_the_name(hub, tmp_path):
    done = quire(hub, tmp_path, "pull", "tiny/llama")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == snapshot(tmp_path, "tiny/llama")
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        assert (snapshot(tmp_path, "tiny/llama") / name).read_bytes() == (MODELS / "llama-mha" / name).read_bytes()
    hub.shutdown()
    shown = quire(hub, tmp_path, "inspect", "tiny/llama", HF_HUB_OFFLINE="1")
    assert shown.returncode == 0, shown.stderr
    assert "parameters" in shown.stdout and "86336" in shown.stdout


def test_a_gguf_repository_gives_the_file(hub, tmp_path):
    done = quire(hub, tmp_path, "pull", "tiny/gguf")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == snapshot(tmp_path, "tiny/gguf") / "model.gguf"


def test_a_killed_pull_goes_on_where_it_was(hub, tmp_path):
    hub.slow = 5
    first = subprocess.Popen([binary_path(), "pull", "tiny/llama"], env=environment(hub, tmp_path),
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    blobs = tmp_path / "models--tiny--llama" / "blobs"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not any(p.stat().st_size > 20000 for p in blobs.glob("*.incomplete")):
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    part = next(p for p in blobs.glob("*.incomplete") if p.stat().st_size > 20000)
    have = part.stat().st_size
    hub.slow, hub.asked = 0, []
    done = quire(hub, tmp_path, "pull", "tiny/llama")
    assert done.returncode == 0, done.stderr
    assert (f"/tiny/llama/resolve/{COMMIT}/model.safetensors", f"bytes={have}-") in hub.asked
    assert (snapshot(tmp_path, "tiny/llama") / "model.safetensors").read_bytes() == (
        MODELS / "llama-mha" / "model.safetensors").read_bytes()


def test_two_programs_at_once_download_each_file_once(hub, tmp_path):
    hub.slow = 1
    both = [subprocess.Popen([binary_path(), "pull", "tiny/llama"], env=environment(hub, tmp_path),
                             stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for one in both:
        _, text = one.communicate(timeout=60)
        assert one.returncode == 0, text
    assert sum("model.safetensors" in path for path, _ in hub.asked) == 1


def test_refusals_are_one_line_and_a_bad_exit(hub, tmp_path):
    for name, words in (("tiny/none", "not found"), ("none", "ORG/NAME"), ("tiny/gguf:Q8_0", "no GGUF file Q8_0")):
        done = quire(hub, tmp_path, "pull", name)
        assert done.returncode != 0
        assert words in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    hub.token = "hf_x"
    assert "HF_TOKEN" in quire(hub, tmp_path, "pull", "tiny/llama").stderr
    assert quire(hub, tmp_path, "pull", "tiny/llama", HF_TOKEN="hf_x").returncode == 0
    done = quire(hub, tmp_path, "serve", "tiny/gguf", HF_HUB_OFFLINE="1")
    assert done.returncode != 0 and "offline" in done.stderr
