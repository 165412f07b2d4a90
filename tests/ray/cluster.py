"""A Ray cluster of network namespaces: a head here and workers with addresses of their own.

Runs only inside the namespaces that conftest.py makes around each test file: everything that is started, is gone with
them. `ray stop` is never called: it would end every Ray on the host.
"""
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

from quire.ray import settings

ROOT = Path(__file__).resolve().parents[2]
HEAD = "10.231.0.1"
GCS = f"{HEAD}:6379"
BIN = Path(sys.executable).parent
# Reaps what it inherits, being process 1 of a node's namespace, and otherwise sleeps.
SLEEPER = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); print('up', flush=True); signal.pause()"


def sh(command, **options):
    return subprocess.run(command, shell=True, check=True, capture_output=True, text=True, **options)


def environment(home, **more):
    """The environment of every process of one Ray, the driver's from its first instruction: private HOME, explicit
    token, Quire's failure detection."""
    return {
        **settings.environment(**more),
        "HOME": str(home),
        "PYTHONPATH": os.pathsep.join((str(ROOT / "python"), str(ROOT / "tests" / "ray"))),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TMPDIR": str(home),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # a loaded machine starts the proxy in more than 5 s
    }


class Node:
    """A worker: network and pid namespaces of its own, an address, a raylet."""

    def __init__(self, number, **resources):
        self.number, self.ip = number, f"10.231.0.{number + 1}"
        self.process = subprocess.Popen(
            ["unshare", "-n", "-p", "-f", "--mount-proc", "--kill-child", sys.executable, "-c", SLEEPER],
            stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "up\n"
        self.pid = int(sh(f"pgrep -P {self.process.pid}").stdout)
        self._connect()
        self.start_raylet(**resources)

    def _connect(self):
        n, pid = self.number, self.pid
        sh(f"ip link add v{n} type veth peer name e{n}; ip link set v{n} master br0 up; ip link set e{n} netns {pid}")
        sh(f"nsenter -t {pid} -n sh -c 'ip link set lo up; ip link set e{n} name eth0; ip addr add {self.ip}/24 dev eth0;"
           f" ip link set eth0 up; ip route add default via {HEAD}'")

    def start_raylet(self, cpus=4, gpus=2, resources=None):
        options = ["--num-cpus", str(cpus), "--num-gpus", str(gpus), "--resources", json.dumps(resources or {})]
        self.run([str(BIN / "ray"), "start", "--address", GCS, "--node-ip-address", self.ip,
                  "--object-store-memory", str(80 << 20), *options])

    def run(self, command):
        inside = ["nsenter", "-t", str(self.pid), "-n", "-p", "-m", "--wd=" + os.getcwd(), *command]
        done = subprocess.run(inside, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def cut(self):
        sh(f"ip link set v{self.number} down")

    def mend(self):
        sh(f"ip link set v{self.number} up")

    def kill(self):
        """The host dies: every process of it at once, its address too."""
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait(20)


class Cluster:
    """The head in this namespace, then `workers` nodes."""

    def __init__(self, workers=0, head_cpus=4, head_gpus=0, worker=None):
        sh(f"ip link add br0 type bridge; ip addr add {HEAD}/24 dev br0; ip link set br0 up; ip route add default dev br0")
        command = [str(BIN / "ray"), "start", "--head", "--node-ip-address", HEAD, "--port", "6379", "--include-dashboard=false",
                   "--num-cpus", str(head_cpus), "--num-gpus", str(head_gpus), "--object-store-memory", str(80 << 20)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stdout + done.stderr
        self.nodes = [Node(i + 1, **(worker or {})) for i in range(workers)]

    def add(self, **resources):
        self.nodes.append(Node(len(self.nodes) + 1, **resources))
        return self.nodes[-1]


def run_app(app, **options):
    """serve.run; a machine whose processors are all busy may start Serve's proxy later than Serve waits for it."""
    from ray import serve
    for left in (2, 1, 0):
        try:
            return serve.run(app, **options)
        except TimeoutError:
            if left == 0:
                raise


def wait_until(condition, seconds, what):
    """Waits for a true value and returns it."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.1)
