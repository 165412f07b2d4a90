"""Each test file of this folder runs in namespaces of its own, with one Ray.

Outside, a file is one item that starts `unshare ... pytest FILE`; inside, it is an ordinary test file. Network and
pid namespaces keep Ray's ports and processes from everything else: when the inner pytest ends, the kernel ends what it
started. That needs root; without it the files are skipped.
"""
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSIDE = os.environ.get("QUIRE_RAY_TEST_INSIDE") == "1"
UNSHARE = ["unshare", "-n", "-m", "-p", "-f", "--mount-proc", "--kill-child"]
SECONDS_MAX = 600

os.environ.setdefault("QUIRE_BINARY", str(ROOT / "build" / "quire"))
os.environ.setdefault("QUIRE_LIBRARY", str(ROOT / "build" / "libquire.so"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(ROOT / "python"))

import cluster  # noqa: E402


def why_not():
    """A word on why these tests cannot run here, or None."""
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("ip") is None or shutil.which("nsenter") is None:
        return "tests/ray need root, unshare, nsenter and ip for namespaces of their own"
    if subprocess.run([*UNSHARE, "true"], capture_output=True).returncode != 0:
        return "tests/ray need the right to make namespaces (CAP_SYS_ADMIN)"
    if subprocess.run([sys.executable, "-c", "import ray.serve"], capture_output=True).returncode != 0:
        return "Ray is not installed: ./dev test does it"
    for name in ("QUIRE_BINARY", "QUIRE_LIBRARY"):
        if not os.path.exists(os.environ[name]):
            return f"no {os.environ[name]}: run make"
    return None


class IsolatedFile(pytest.File):
    def collect(self):
        yield IsolatedItem.from_parent(self, name="isolated")


class IsolatedItem(pytest.Item):
    """One pytest of one file, in its own namespaces."""

    def runtest(self):
        reason = why_not()
        if reason:
            pytest.skip(reason)
        home = tempfile.mkdtemp(prefix="qr", dir="/tmp")  # short: Ray's sockets live below it
        keyword = self.config.getoption("keyword")
        words = ["-k", keyword] if keyword else []
        command = f"ip link set lo up; exec {sys.executable} -m pytest -q -s -rs --tb=short -W ignore -p no:cacheprovider {self.path} \"$@\""
        first = self.path.read_text().split("\n", 1)[0]
        asked = {name: name in first for name in ("haproxy", "throughput")} if first.startswith("# settings:") else {}
        environment = {**os.environ, "QUIRE_MODEL_FILE": find_model() or "", **cluster.environment(home, **asked), "QUIRE_RAY_TEST_INSIDE": "1"}
        try:
            done = subprocess.run([*UNSHARE, "sh", "-c", command, "sh", *words], cwd=ROOT, env=environment, timeout=SECONDS_MAX,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        finally:
            if not os.environ.get("QUIRE_RAY_KEEP"):
                shutil.rmtree(home, ignore_errors=True)
        print(done.stdout)
        if done.returncode == 5:
            pytest.skip("no test of it was asked for")
        if done.returncode != 0:
            raise IsolatedFailure(done.stdout)

    def repr_failure(self, excinfo):
        return str(excinfo.value)

    def reportinfo(self):
        return self.path, 0, self.path.name


class IsolatedFailure(Exception):
    pass


if not INSIDE:

    def pytest_pycollect_makemodule(module_path, parent):
        if module_path.name in ("test_units.py",):
            return None
        return IsolatedFile.from_parent(parent, path=module_path)


def find_model():
    named = os.environ.get("QUIRE_TEST_MODEL") or os.environ.get("QUIRE_MODEL_FILE")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quire" / "models"
    return named or next((str(p) for p in sorted(cache.glob("*.gguf"))), None)


@pytest.fixture(scope="session")
def model():
    found = find_model()
    if not found:
        pytest.skip("no model: set QUIRE_TEST_MODEL or let tools/fetch_model.py get the default one")
    return found
