"""A running `quire serve` for the end-to-end tests.

QUIRE_BINARY names the program (default build/quire); the model comes from QUIRE_TEST_MODEL, QUIRE_MODEL_FILE or the
user's cache. Without a program or a model the tests are skipped, and say so.
"""
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).resolve().parent))


def binary_path():
    path = Path(os.environ.get("QUIRE_BINARY", ROOT / "build" / "quire"))
    if not path.exists():
        pytest.skip(f"no program at {path}: run make")
    return str(path)


def model_path():
    named = os.environ.get("QUIRE_TEST_MODEL") or os.environ.get("QUIRE_MODEL_FILE")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quire" / "models"
    found = named or next((str(p) for p in sorted(cache.glob("*.gguf"))), None)
    if not found or not Path(found).exists():
        pytest.skip("no model: set QUIRE_TEST_MODEL or let tools/fetch_model.py get the default one")
    return found


def shared_folder():
    path = Path(os.environ.get("QR_SHARED_DIR", ROOT.parent / "shared"))
    if not path.exists():
        pytest.skip("the shared data is not in this tree")
    return path


class Server:
    """`quire serve` on a free port; its log is kept for the failure report."""

    def __init__(self, *options, model=None, name="test", port=0):
        self.name = name
        command = [binary_path(), "serve", model or model_path(), "--port", str(port), "--served-model-name", name,
                   *options]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.PIPE, text=True, errors="replace")
        self.lines = []
        self.ready = threading.Event()
        self.port = 0
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        if not self.ready.wait(60) or not self.port:
            self.process.kill()
            raise RuntimeError("the server did not start:\n" + "".join(self.lines[-20:]))
        self.url = f"http://127.0.0.1:{self.port}"

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line)
            match = re.search(r"quire serves .* on http://[^ ]*:(\d+)", line)
            if match:
                self.port = int(match.group(1))
                self.ready.set()
        self.ready.set()

    def client(self, **options):
        options = {"api_key": "none", "max_retries": 0, "timeout": 120, **options}
        return openai.OpenAI(base_url=self.url + "/v1", **options)

    def get(self, path, **options):
        return httpx.get(self.url + path, timeout=60, **options)

    def post(self, path, body, **options):
        return httpx.post(self.url + path, json=body, timeout=120, **options)

    def metric(self, name):
        """Sum over the samples of one metric."""
        total = 0.0
        for line in self.get("/metrics").text.splitlines():
            if re.match(re.escape(name) + r"[{ ]", line):
                total += float(line.rsplit(" ", 1)[1])
        return total

    def busy(self):
        return self.metric("vllm:num_requests_running") + self.metric("vllm:num_requests_waiting")

    def wait_idle(self, seconds=30):
        end = time.monotonic() + seconds
        while self.busy() > 0:
            assert time.monotonic() < end, "requests still run"
            time.sleep(0.02)

    def stop(self, how=signal.SIGTERM, seconds=40):
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self.reader.join(5)


@pytest.fixture(scope="session")
def server():
    running = Server()
    yield running
    code = running.stop()
    assert code == 0, "".join(running.lines[-20:])


@pytest.fixture(scope="session")
def client(server):
    return server.client()


@pytest.fixture
def start():
    """start(*options): a server of the test's own."""
    started = []

    def launch(*options, **more):
        started.append(Server(*options, **more))
        return started[-1]

    yield launch
    for one in started:
        if one.process.poll() is None:
            one.stop(signal.SIGKILL)
