"""Traffic splitting: versions of a model side by side, with weights that change live and a guard that takes them back.

    config = SplitConfig(
        versions={"old": AppConfig(model="/models/a"), "new": AppConfig(model="/models/b")},
        weights={"old": 0.95, "new": 0.05}, stable="old", guard=Guard())
    serve.run(build_split_app(config))
    set_weights({"old": 0.5, "new": 0.5})          # in effect at every ingress when it returns

Each version is a deployment of its own, scaled and updated by itself; the ingress chooses. A request stays with a version
by its `X-Session-Id`, or by the beginning of its prompt, so that a conversation does not change model: weighted
rendezvous hashing moves only the sessions that a change of weights has to move. A reply says in `X-Quire-Version` who
gave it.

The guard looks at each version but the stable one: when too many of its requests fail, or its first token takes too
long beside the stable version's, its weight goes to the stable one, at every ingress. Each decision is a line in the
log, is counted in /metrics, and can be read back by `handle.broadcast("split_state")`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

from ray import serve

from quire.ray.app import engine_deployment, ingress_deployment
from quire.ray.config import AppConfig, make
from quire.ray.forward import Lost, Reply, Request, Unreachable
from quire.ray.ingress import Ingress, Replica, choose_replica, exchange, prefix_keys
from quire.ray.resume import Attempt

_log = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Guard:
    """When a version is rolled back. Looked at twice a second, over what happened in the last window_s."""

    window_s: float = 30.0
    requests_min: int = 20  # of the version, and of the stable one for comparisons
    error_rate: float = 0.05  # share of requests that failed or were answered with 5xx
    latency_ratio: float = 2.0  # 90th percentile of the time to the first byte, beside the stable version's
    latency_margin_s: float = 0.1  # and as much longer at least
    latency_s: float | None = None  # a bound of its own; None: only the comparison


@dataclass(frozen=True)
class SplitConfig:
    """Versions by name. The ingress is set up by the stable version's AppConfig."""

    versions: Mapping[str, AppConfig]
    weights: Mapping[str, float]
    stable: str
    guard: Guard | None = field(default_factory=Guard)

    def __post_init__(self) -> None:
        if self.stable not in self.versions:
            raise ValueError(f"SplitConfig: stable: {self.stable!r} is none of the versions {sorted(self.versions)}")
        check_weights(self.weights, self.versions)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> SplitConfig:
        """From YAML or JSON."""
        known = dict(values)
        known["versions"] = {
            name: v if isinstance(v, AppConfig) else AppConfig.from_mapping(v) for name, v in dict(known.get("versions") or {}).items()
        }
        if isinstance(known.get("guard"), Mapping):
            known["guard"] = make(Guard, known["guard"], "guard")
        result = make(cls, known, "args")
        assert isinstance(result, cls)
        return result


def check_weights(weights: Mapping[str, float], versions: Collection[str]) -> None:
    """Raises ValueError; weights need not sum to one."""
    unknown = sorted(set(weights) - set(versions))
    if unknown:
        raise ValueError(f"weights: {', '.join(unknown)}: no such version; there are {', '.join(sorted(versions))}")
    wrong = {name: w for name, w in weights.items() if not (isinstance(w, (int, float)) and math.isfinite(w) and w >= 0)}
    if wrong or not sum(weights.values()) > 0:
        raise ValueError(f"weights: numbers >= 0 with a sum > 0 are expected, got {dict(weights)}")


def build_split_app(config: SplitConfig | Mapping[str, Any]) -> serve.Application:
    """The splitting ingress over one engine deployment a version, named Engine-VERSION."""
    if not isinstance(config, SplitConfig):
        config = SplitConfig.from_mapping(config)
    engines = {name: engine_deployment(version, f"Engine-{name}").bind(version) for name, version in config.versions.items()}
    return ingress_deployment(config.versions[config.stable], kind=SplitIngress).bind(config, engines)


def set_weights(weights: Mapping[str, float], app_name: str = "default") -> None:
    """At every ingress when it returns. From a program; inside a running loop await set_weights_async."""
    handle = serve.get_deployment_handle("Ingress", app_name)
    handle.broadcast("set_weights", dict(weights), time.time_ns()).results()


async def set_weights_async(weights: Mapping[str, float], app_name: str = "default") -> None:
    handle = serve.get_deployment_handle("Ingress", app_name)
    await handle.broadcast("set_weights", dict(weights), time.time_ns()).results_async()


# ---- Which version ----


def session_of(request: Request) -> bytes | None:
    """What a conversation has in common: its session, or the first block of its prompt."""
    session = request.header(b"x-session-id")
    if session is not None:
        return session
    keys = prefix_keys(request)
    return b"%d" % keys[0] if keys else None


def pick(weights: Mapping[str, float], session: bytes | None) -> str:
    """Weighted rendezvous: each version draws by the session's hash, the best draw wins."""
    best, winner = math.inf, ""
    for name, weight in weights.items():
        if weight <= 0:
            continue
        if session is None:
            draw = random.random()
        else:
            digest = blake2b(session, digest_size=8, key=name.encode()[:64]).digest()
            draw = int.from_bytes(digest, "big") / 2**64
        cost = -math.log(max(draw, 1e-18)) / weight
        if cost < best:
            best, winner = cost, name
    return winner


# ---- What a version does ----


class Record:
    """Requests of one version: outcomes in the window, and when those began that have not been answered."""

    def __init__(self) -> None:
        self.outcomes: deque[tuple[float, float | None]] = deque()  # (when, seconds to the first byte; None: failed)
        self.pending: dict[object, float] = {}
        self.requests = self.failures = 0

    def begin(self, now: float) -> object:
        ticket = object()
        self.pending[ticket] = now
        self.requests += 1
        return ticket

    def end(self, ticket: object, now: float, ok: bool) -> None:
        began = self.pending.pop(ticket, now)
        self.outcomes.append((now, now - began if ok else None))
        self.failures += not ok

    def forget(self, ticket: object) -> None:
        """The client left: no fault of the version's."""
        self.pending.pop(ticket, None)

    def clear(self) -> None:
        self.outcomes.clear()

    def count(self, now: float, window_s: float) -> int:
        while self.outcomes and self.outcomes[0][0] < now - window_s:
            self.outcomes.popleft()
        return len(self.outcomes)

    def error_rate(self) -> float:
        return sum(seconds is None for _, seconds in self.outcomes) / max(1, len(self.outcomes))

    def latency(self, now: float) -> float:
        """90th percentile; a request that waits for longer than most counts with what it has waited so far."""
        times = sorted(seconds for _, seconds in self.outcomes if seconds is not None)
        if times:
            times = sorted(times + [now - began for began in self.pending.values() if now - began > times[len(times) // 2]])
        return times[math.ceil(0.9 * len(times)) - 1] if times else 0.0


def verdict(guard: Guard, version: Record, stable: Record, now: float) -> str | None:
    """Why the version has to go, or None."""
    count = version.count(now, guard.window_s)
    if count < guard.requests_min:
        return None
    rate = version.error_rate()
    if rate > guard.error_rate:
        return f"error rate {rate:.3f} of {count} requests is over {guard.error_rate}"
    latency = version.latency(now)
    if guard.latency_s is not None and latency > guard.latency_s:
        return f"first byte after {latency:.3f} s (90th percentile) is over {guard.latency_s}"
    if stable.count(now, guard.window_s) < guard.requests_min:
        return None
    usual = stable.latency(now)
    if latency > guard.latency_ratio * usual and latency > usual + guard.latency_margin_s:
        return f"first byte after {latency:.3f} s (90th percentile) beside {usual:.3f} s of the stable version"
    return None


# ---- The ingress ----


class SplitIngress(Ingress):
    """An ingress with a handle a version."""

    def __init__(self, config: SplitConfig, engines: Mapping[str, Any]) -> None:
        super().__init__(engines[config.stable])
        self.split = config
        self.handles = dict(engines)
        self.records = {name: Record() for name in engines}
        self.weights: dict[str, float] = {name: float(config.weights.get(name, 0)) for name in engines}
        self.epoch = 0  # of the weights: nanoseconds of who set them; an older change does not undo a newer
        self.decisions: deque[dict[str, Any]] = deque(maxlen=100)
        self.decision_counts = {"set": 0, "rollback": 0}
        self._watching: asyncio.Task[None] | None = None

    # -- decisions --

    async def set_weights(self, weights: Mapping[str, float], epoch: int) -> bool:
        """False: newer ones are in effect already."""
        check_weights(weights, self.handles)
        return self._decide("set", dict(weights), epoch, "asked for")

    async def take_rollback(self, weights: Mapping[str, float], epoch: int, reason: str) -> bool:
        """Another ingress has found a reason."""
        return self._decide("rollback", dict(weights), epoch, reason)

    async def split_state(self) -> dict[str, Any]:
        return {"weights": dict(self.weights), "epoch": self.epoch, "decisions": list(self.decisions)}

    def _decide(self, kind: str, weights: dict[str, float], epoch: int, reason: str) -> bool:
        if epoch <= self.epoch:
            return False
        self.epoch = epoch
        self.weights = {name: float(weights.get(name, 0)) for name in self.handles}
        for record in self.records.values():
            record.clear()
        decision = {"decision": kind, "weights": dict(self.weights), "reason": reason, "epoch": epoch}
        self.decisions.append(decision)
        self.decision_counts[kind] += 1
        _log.warning("split %s", json.dumps(decision))
        return True

    def check(self, now: float) -> tuple[dict[str, float], str] | None:
        """What the guard wants: the weights, and why."""
        guard, stable = self.split.guard, self.split.stable
        if guard is None:
            return None
        for name, weight in self.weights.items():
            if name == stable or weight <= 0:
                continue
            reason = verdict(guard, self.records[name], self.records[stable], now)
            if reason is not None:
                return {**self.weights, name: 0.0, stable: self.weights[stable] + weight}, f"{name}: {reason}"
        return None

    async def _watch(self) -> None:
        await self._learn()
        while True:
            await asyncio.sleep(0.5)
            wanted = self.check(time.monotonic())
            if wanted is None:
                continue
            weights, reason = wanted
            epoch = time.time_ns()
            self._decide("rollback", weights, epoch, reason)
            with contextlib.suppress(Exception):  # an ingress that cannot be told has a guard of its own
                await self._peers().broadcast("take_rollback", weights, epoch, reason).results_async()

    async def _learn(self) -> None:
        """An ingress that starts later takes the weights of the others."""
        with contextlib.suppress(Exception):
            for state in await self._peers().broadcast("split_state").results_async():
                self._decide("set", state["weights"], state["epoch"], "learned from another ingress")

    @staticmethod
    def _peers() -> Any:
        context = serve.get_replica_context()
        return serve.get_deployment_handle(context.deployment, context.app_name)

    # -- requests --

    def attempt_for(self, request: Request) -> Attempt:
        """Chosen once: a stream that is resumed goes on with the version that it began with."""
        if self._watching is None:
            self._watching = asyncio.get_running_loop().create_task(self._watch())
        version = pick(self.weights, session_of(request))

        async def attempt(request: Request, stack: AsyncExitStack, avoid: Collection[str] = ()) -> Reply:
            try:
                return await self._measured(version, request, stack, avoid)
            except Unreachable:
                if version == self.split.stable or b"output_prefix_ids" in request.body:
                    raise
                return await self._measured(self.split.stable, request, stack, avoid)

        return attempt

    async def _measured(self, version: str, request: Request, stack: AsyncExitStack, avoid: Collection[str]) -> Reply:
        record = self.records[version]
        ticket = record.begin(time.monotonic())

        async def choose(request: Request, avoid: Collection[str], stack: AsyncExitStack) -> Replica:
            return await choose_replica(self.handles[version], request, avoid, stack)

        try:
            reply = await exchange(request, choose, stack, self.counters, avoid)
        except Unreachable:
            record.end(ticket, time.monotonic(), False)
            raise
        except BaseException:
            record.forget(ticket)
            raise
        record.end(ticket, time.monotonic(), reply.status < 500)
        headers = [*reply.headers, (b"x-quire-version", version.encode())]
        return replace(reply, headers=headers, chunks=_watched(reply, record))

    def metrics(self) -> str:
        rows = [super().metrics()]
        for name, record in self.records.items():
            rows.append(f'quire_split_weight{{version="{name}"}} {self.weights[name]}\n')
            rows.append(f'quire_split_requests_total{{version="{name}"}} {record.requests}\n')
            rows.append(f'quire_split_failures_total{{version="{name}"}} {record.failures}\n')
        rows += [f'quire_split_decisions_total{{kind="{kind}"}} {count}\n' for kind, count in self.decision_counts.items()]
        return "".join(rows)


async def _watched(reply: Reply, record: Record) -> AsyncIterator[bytes]:
    """A reply that breaks counts as a failure of its version, though it may go on elsewhere."""
    try:
        async for piece in reply.chunks:
            yield piece
    except Lost:
        record.failures += 1
        record.outcomes.append((time.monotonic(), None))
        raise


__all__ = ["Guard", "SplitConfig", "build_split_app", "set_weights", "set_weights_async"]
