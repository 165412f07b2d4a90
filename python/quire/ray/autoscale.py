"""How many replicas: a policy for Serve's autoscaler over what the engines measure.

Serve pickles this module by value into its controller, so it imports nothing of quire.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class EnginePolicy:
    """The largest of what each signal asks for, with the engines' current number as the unit.

    waiting: one replica more per `waiting_per_replica` requests that wait for a place.
    running: as many as bring the running requests under `running_share` of their places.
    kv_usage, first_token_s: in proportion to how far the worst replica is above its bound.
    Serve applies the delays and the bounds.
    """

    def __init__(
        self,
        max_num_seqs: int,
        waiting_per_replica: float,
        running_share: float,
        kv_usage: float,
        first_token_s: float | None = None,
    ) -> None:
        self.places = max_num_seqs * running_share
        self.waiting_per_replica = waiting_per_replica
        self.kv_usage = kv_usage
        self.first_token_s = first_token_s

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        metrics: Mapping[str, Mapping[Any, float]] = context.aggregated_metrics or {}
        wanted = self.replicas(len(context.running_replicas), {name: list(values.values()) for name, values in metrics.items()})
        if context.total_num_requests > 0:
            wanted = max(wanted, 1)  # from zero: the request that waits in a handle is the only signal
        return wanted, dict(context.policy_state or {})

    def replicas(self, now: int, metrics: Mapping[str, list[float]]) -> int:
        """The decision alone; `metrics` holds a value a replica for each name."""
        running, waiting = sum(metrics.get("running", ())), sum(metrics.get("waiting", ()))
        wanted = math.ceil(running / self.places)
        if waiting > 0:
            wanted = max(wanted, now + math.ceil(waiting / self.waiting_per_replica)) if waiting >= self.waiting_per_replica else max(wanted, now)
        if running > 0:
            wanted = max(wanted, _in_proportion(now, metrics.get("kv_usage", ()), self.kv_usage))
            if self.first_token_s is not None:
                wanted = max(wanted, _in_proportion(now, metrics.get("first_token_s", ()), self.first_token_s))
        return wanted


def _in_proportion(now: int, values: Any, bound: float) -> int:
    worst = max(values, default=0.0)
    return math.ceil(now * min(2.0, worst / bound)) if worst > bound else 0
