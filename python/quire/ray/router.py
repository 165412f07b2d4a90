"""Which replica gets a request: load, KV use, and who has seen the prompt's beginning."""

from __future__ import annotations

import random
import time
import zlib
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

_OWNERS_MAX = 65536  # blocks remembered
_UNSEEN_S = 0.05  # as long a choice may not yet show in the replica's count


class Affinity:
    """Which replica was last sent each block of a prompt; blocks are chained checksums, so a key stands for a prefix."""

    def __init__(self, limit: int = _OWNERS_MAX) -> None:
        self._owners: OrderedDict[int, str] = OrderedDict()
        self._limit = limit

    def shares(self, prefix: Sequence[int]) -> dict[str, float]:
        """For each replica the share of the prompt that it has been sent."""
        found: dict[str, float] = {}
        for key in prefix:
            owner = self._owners.get(key)
            if owner is None:
                break
            found[owner] = found.get(owner, 0.0) + 1.0 / len(prefix)
        return found

    def remember(self, prefix: Sequence[int], replica: str) -> None:
        for key in prefix:
            self._owners[key] = replica
            self._owners.move_to_end(key)
        while len(self._owners) > self._limit:
            self._owners.popitem(last=False)


def cost(weights: Mapping[str, float], stats: Mapping[str, float], sent: float, max_num_seqs: int, share: float) -> float:
    """Lower is better; 1.0 is a full replica. See quire.ray.config.Routing."""
    queued = max(stats.get("running", 0.0) + stats.get("waiting", 0.0), sent)
    return weights["load"] * queued / max_num_seqs + weights["kv"] * stats.get("kv_usage", 0.0) - weights["affinity"] * share


class EngineRouter(RequestRouter):
    """Ranks replicas by cost. Groups are singletons: inside a group Serve would decide by its own count alone.

    Keywords of `choose_replica`: prefix (checksums, see quire.ray.ingress.prefix_keys) and avoid (replica ids that have
    just failed this request; they come last).
    """

    def initialize_state(self, max_num_seqs: int = 64, **weights: float) -> None:
        self._max_num_seqs = max_num_seqs
        self._weights = {"load": 1.0, "kv": 0.5, "affinity": 0.5, **weights}
        self._affinity = Affinity()
        self._just_sent: deque[tuple[float, str]] = deque()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        wants = pending_request.kwargs if pending_request is not None else {}
        prefix: Sequence[int] = wants.get("prefix") or ()
        avoid = wants.get("avoid") or ()
        shares, sent = self._affinity.shares(prefix), self._sent_counts()
        ranked = []
        for replica in candidate_replicas:
            name = replica.replica_id.unique_id
            known = self.replica_queue_len_cache.get(replica.replica_id) or 0
            price = cost(self._weights, replica.routing_stats or {}, known + sent.get(name, 0), self._max_num_seqs, shares.get(name, 0.0))
            ranked.append((name in avoid, price, tie_break(prefix, name), name, replica))
        ranked.sort(key=lambda row: row[:4])
        if ranked:
            self._just_sent.append((time.monotonic(), ranked[0][3]))
            self._affinity.remember(prefix, ranked[0][3])
        return [[row[4]] for row in ranked]

    def _sent_counts(self) -> dict[str, int]:
        """Choices too fresh to be in a replica's own count: a burst would else go to one replica."""
        oldest = time.monotonic() - _UNSEEN_S
        while self._just_sent and self._just_sent[0][0] < oldest:
            self._just_sent.popleft()
        counts: dict[str, int] = {}
        for _time, name in self._just_sent:
            counts[name] = counts.get(name, 0) + 1
        return counts


def tie_break(prefix: Sequence[int], name: str) -> float:
    """Among equals a prompt's first block decides, so that several ingresses agree; without one, chance does."""
    return zlib.crc32(name.encode(), prefix[0] & 0xFFFFFFFF) if prefix else random.random()
