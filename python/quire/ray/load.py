"""A replica's load from the text of its /metrics."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

_WINDOW_S = 5.0
_FIRST_TOKEN = "vllm:time_to_first_token_seconds_bucket"
_QUANTILE = 0.9


@dataclass(frozen=True)
class Load:
    """What routing and autoscaling look at."""

    running: float = 0.0
    waiting: float = 0.0
    kv_usage: float = 0.0
    first_token_s: float = 0.0  # 90th percentile over the last seconds; 0 when there was no first token


def parse_metrics(text: str) -> tuple[dict[str, float], dict[float, float]]:
    """Samples summed by name, and the buckets of the time to first token."""
    sums: dict[str, float] = {}
    buckets: dict[float, float] = {}
    for line in text.splitlines():
        if not line or line[0] == "#":
            continue
        left, _, value = line.rpartition(" ")
        name, _, labels = left.partition("{")
        if name == _FIRST_TOKEN:
            edge = float(labels.partition('le="')[2].partition('"')[0])
            buckets[edge] = buckets.get(edge, 0.0) + float(value)
        else:
            sums[name] = sums.get(name, 0.0) + float(value)
    return sums, buckets


def quantile(before: dict[float, float], after: dict[float, float], share: float) -> float:
    """Upper edge of the bucket that holds this quantile of what came between two readings; 0 when nothing came."""
    counts = [(edge, after[edge] - before.get(edge, 0.0)) for edge in sorted(after)]
    if not counts or counts[-1][1] <= 0:
        return 0.0
    wanted, last = share * counts[-1][1], 0.0
    for edge, count in counts:
        if edge == float("inf"):
            return last
        last = edge
        if count >= wanted:
            return edge
    return last


class LoadMeter:
    """Readings of the last seconds; first tokens are those of the window, not of the process' life."""

    def __init__(self) -> None:
        self.load = Load()
        self._readings: deque[tuple[float, dict[float, float]]] = deque()

    def age_s(self, now: float) -> float:
        return now - self._readings[-1][0] if self._readings else float("inf")

    def take(self, text: str, now: float) -> None:
        sums, buckets = parse_metrics(text)
        while len(self._readings) > 1 and self._readings[1][0] <= now - _WINDOW_S:
            self._readings.popleft()
        before = self._readings[0][1] if self._readings else buckets
        self._readings.append((now, buckets))
        self.load = Load(
            sums.get("vllm:num_requests_running", 0.0),
            sums.get("vllm:num_requests_waiting", 0.0),
            sums.get("vllm:kv_cache_usage_perc", 0.0),
            quantile(before, buckets, _QUANTILE),
        )
