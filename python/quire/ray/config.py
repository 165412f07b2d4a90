"""What an application is made of; the `args:` of a Serve YAML file are these fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Union

from quire.ray import settings

OptionValue = Union[str, int, float, bool, list[str]]


@dataclass(frozen=True)
class Routing:
    """How a replica is chosen. Costs are in units of "a full replica"; the lowest sum wins.

    load: requests running, waiting and just sent there, divided by max_num_seqs.
    kv: share of its KV blocks that are held.
    affinity: taken off in proportion to the share of the prompt that was last sent there. With 0.5 a replica that knows
        the whole prompt is preferred until it is half a load fuller than the emptiest.
    """

    load: float = 1.0
    kv: float = 0.5
    affinity: float = 0.5


@dataclass(frozen=True)
class Autoscaling:
    """Replicas between min and max by what the engines measure; see quire.ray.autoscale."""

    min_replicas: int = 1
    max_replicas: int = 4
    waiting_per_replica: float = 4.0  # requests that wait for a place, above which one more replica is started
    running_share: float = 0.8  # of max_num_seqs
    kv_usage: float = 0.85
    first_token_s: float | None = None  # 90th percentile of the time to first token; None: not looked at
    upscale_delay_s: float = 1.0
    downscale_delay_s: float = 30.0


@dataclass(frozen=True)
class AppConfig:
    """One model behind OpenAI's routes on Ray Serve.

    `server_options` are options of `quire serve` by their names, such as {"max-model-len": 4096}; a list repeats one.
    """

    model: str
    served_model_name: str | None = None
    tensor_parallel_size: int = 1
    num_replicas: int = 1
    autoscaling: Autoscaling | None = None
    gpus_per_replica: float | None = None  # default tensor_parallel_size; 0 for CPUs
    cpus_per_replica: float = 1.0
    max_num_seqs: int = 64
    max_ongoing_requests: int = 512  # a replica given as many is passed over by the router
    server_options: Mapping[str, OptionValue] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    max_surge_percent: int = 0  # replicas of a new version started before old ones stop: needs free devices
    ingress_replicas: int = 1
    ingress_cpus: float = 0.5
    ingress_resources: Mapping[str, float] = field(default_factory=dict)  # to say where: {"node:__internal_head__": 0.01}
    routing: Routing = field(default_factory=Routing)
    health_check_period_s: float = settings.HEALTH_PERIOD_S
    health_check_timeout_s: float = settings.HEALTH_TIMEOUT_S
    drain_timeout_s: float = settings.DRAIN_TIMEOUT_S
    resources: Mapping[str, float] = field(default_factory=dict)  # Ray's custom resources of a replica

    def __post_init__(self) -> None:
        for name in ("tensor_parallel_size", "num_replicas", "max_num_seqs", "max_ongoing_requests", "ingress_replicas"):
            _check(isinstance(getattr(self, name), int) and getattr(self, name) >= 1, f"{name} must be an integer >= 1, got {getattr(self, name)!r}")
        _check(bool(self.model), "model is expected: a folder, a .gguf file or ORG/NAME")
        scaling = self.autoscaling
        if scaling is not None:
            _check(0 <= scaling.min_replicas <= scaling.max_replicas, f"autoscaling: 0 <= min_replicas ({scaling.min_replicas}) <= max_replicas ({scaling.max_replicas}) must hold")
        for name in ("host", "port", "max-num-seqs", "tensor-parallel-size", "served-model-name"):
            _check(name not in self.server_options, f"server_options: {name} has a field of its own or is set by the replica")

    @property
    def gpus(self) -> float:
        return float(self.tensor_parallel_size) if self.gpus_per_replica is None else self.gpus_per_replica

    @property
    def name(self) -> str:
        return self.served_model_name or self.model

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> AppConfig:
        """From YAML or JSON; an unknown name is an error that lists the known ones."""
        known = dict(values)
        for name, kind in (("routing", Routing), ("autoscaling", Autoscaling)):
            if isinstance(known.get(name), Mapping):
                known[name] = make(kind, known[name], name)
        result = make(cls, known, "args")
        assert isinstance(result, cls)
        return result


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(f"AppConfig: {message}")


def make(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    names = [f.name for f in fields(kind)]
    unknown = [name for name in values if name not in names]
    _check(not unknown, f"{where}: {', '.join(map(str, unknown))} is unknown; there are {', '.join(names)}")
    return kind(**values)
