"""Engine settings tuned on Ray Tune: the most requests a second that keep a service level (goodput).

    from quire.ray.tune import Workload, search, write_config

    workload = Workload(prompts=256, input_len=512, output_len=128, request_rate=8, ttft_ms=400, tpot_ms=60)
    space = {"max-num-batched-tokens": [512, 1024, 2048, 4096], "max-num-seqs": [16, 32, 64, 128, 256]}
    winner = search("path/to/checkpoint", space, workload)
    write_config(winner, "tuned.yaml")  # quire serve path/to/checkpoint --config tuned.yaml

Optuna proposes, ASHA ends early what is behind: a trial's first rung replays a part of the workload, each further rung
a larger part, the last one all of it. Names and values are options of `quire bench` (docs/options.md). A setting with
which the engine does not start, or does not fit the memory, scores zero and its message is logged.
"""

from __future__ import annotations

import itertools
import json
import logging
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from quire.ray.process import find_program

logger = logging.getLogger(__name__)

Setting = str | int | float | bool
Space = Mapping[str, Sequence[Setting]]


@dataclass(frozen=True)
class Workload:
    """Requests of random tokens that arrive as a Poisson process, and the service level of one that counts."""

    prompts: int
    input_len: int
    output_len: int
    request_rate: float  # requests a second
    ttft_ms: float = 0  # latest first token; 0: any
    tpot_ms: float = 0  # longest mean time between tokens; 0: any

    def options(self, prompts: int) -> list[str]:
        return [
            f"--num-prompts={prompts}",
            f"--input-len={self.input_len}",
            f"--output-len={self.output_len}",
            f"--request-rate={self.request_rate}",
            f"--goodput-ttft-ms={self.ttft_ms}",
            f"--goodput-tpot-ms={self.tpot_ms}",
        ]


@dataclass(frozen=True)
class Measured:
    goodput: float  # requests a second in time
    engine_seconds: float  # how long the engine ran for this number


@dataclass(frozen=True)
class Winner:
    """The best settings, by the whole workload, and what finding them took."""

    settings: dict[str, Setting]
    goodput: float
    trials: int
    engine_seconds: float


def measure(model: str, settings: Mapping[str, Setting], workload: Workload, prompts: int | None = None) -> Measured:
    """One engine, one replay of `prompts` requests (default all). Zero goodput where the engine refuses the settings."""
    options = [f"--{name}={json.dumps(value) if isinstance(value, bool) else value}" for name, value in settings.items()]
    command = [find_program(), "bench", "online", model, *workload.options(prompts or workload.prompts), *options, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        logger.warning("settings %s: %s", dict(settings), done.stderr.strip())
        return Measured(0.0, 0.0)
    result = json.loads(done.stdout)
    return Measured(float(result["goodput_requests_per_s"]), float(result["elapsed_s"]))


def _rung_prompts(workload: Workload, rung: int, rungs: int, reduction: int) -> int:
    return max(1, int(workload.prompts // reduction ** (rungs - rung)))


class _Trial(tune.Trainable):
    """One configuration; step r replays the part of rung r. Actors are reused: a new one costs 1.5 s."""

    def setup(self, config: dict[str, Any]) -> None:
        self._config, self._seconds = config, 0.0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, float]:
        config = self._config
        prompts = _rung_prompts(config["_workload"], self.training_iteration + 1, config["_rungs"], config["_reduction"])
        settings = {**config["_fixed"], **{name: value for name, value in config.items() if not name.startswith("_")}}
        result = measure(config["_model"], settings, config["_workload"], prompts)
        self._seconds += result.engine_seconds
        return {"goodput": result.goodput, "engine_seconds": self._seconds}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        Path(checkpoint_dir, "seconds").write_text(str(self._seconds), encoding="utf-8")

    def load_checkpoint(self, checkpoint: Any) -> None:
        self._seconds = float(Path(checkpoint, "seconds").read_text(encoding="utf-8"))


def search(
    model: str,
    space: Space,
    workload: Workload,
    *,
    fixed: Mapping[str, Setting] | None = None,
    trials: int = 64,
    rungs: int = 3,
    reduction: int = 4,
    concurrent: int = 1,
    resources: Mapping[str, float] | None = None,
    seed: int = 0,
    storage_path: str | None = None,
) -> Winner:
    """The best of `trials` configurations of `space`; `fixed` settings apply to all.

    Rung r of `rungs` replays prompts / reduction^(rungs - r) requests, and the best 1/reduction of a rung goes on.
    `concurrent` trials run at once with `resources` each (default one CPU): on one machine they disturb each other, so
    more than one is for clusters. Raises ValueError for an empty space and RuntimeError when no configuration ran.
    """
    if not space or not all(space.values()):
        raise ValueError(f"tune: every setting of the space needs values, got {dict(space)}")
    values: dict[str, Any] = {name: tune.choice(list(options)) for name, options in space.items()}
    constants = {"_model": model, "_fixed": dict(fixed or {}), "_workload": workload, "_rungs": rungs, "_reduction": reduction}
    tuner = tune.Tuner(
        tune.with_resources(_Trial, dict(resources or {"cpu": 1})),
        param_space={**values, **constants},
        tune_config=tune.TuneConfig(
            metric="goodput",
            mode="max",
            num_samples=trials,
            max_concurrent_trials=concurrent,
            reuse_actors=True,
            search_alg=OptunaSearch(seed=seed),
            scheduler=ASHAScheduler(max_t=rungs, grace_period=1, reduction_factor=reduction),
        ),
        run_config=tune.RunConfig(verbose=0, storage_path=storage_path, stop={"training_iteration": rungs}),
    )
    grid = tuner.fit()
    results = [grid[i] for i in range(len(grid))]
    whole = [r for r in results if r.metrics and r.metrics.get("training_iteration") == rungs and r.metrics["goodput"] > 0]
    if not whole:
        raise RuntimeError(f"tune: none of {trials} configurations got through the whole workload; see the log")
    best = max(whole, key=_goodput)
    seconds = sum([float((result.metrics or {}).get("engine_seconds", 0)) for result in results])
    return Winner({name: (best.config or {})[name] for name in space}, _goodput(best), len(results), seconds)


def _goodput(result: tune.Result) -> float:
    return float((result.metrics or {}).get("goodput", 0))


def exhaustive(model: str, space: Space, workload: Workload, *, fixed: Mapping[str, Setting] | None = None) -> Winner:
    """Every configuration, one after the other, over the whole workload: for small spaces, and to judge search()."""
    best: Winner | None = None
    seconds, count = 0.0, 0
    for values in itertools.product(*space.values()):
        settings = dict(zip(space, values, strict=True))
        result = measure(model, {**(fixed or {}), **settings}, workload)
        seconds, count = seconds + result.engine_seconds, count + 1
        if best is None or result.goodput > best.goodput:
            best = Winner(settings, result.goodput, count, seconds)
    if best is None or best.goodput == 0:
        raise RuntimeError("tune: no configuration ran; see the log")
    return Winner(best.settings, best.goodput, count, seconds)


def write_config(winner: Winner, path: str) -> None:
    """A file for `quire serve --config`."""
    lines = [f"# {winner.goodput:.3f} requests a second in time, the best of {winner.trials} configurations"]
    lines += [f"{name}: {json.dumps(value) if isinstance(value, bool) else value}" for name, value in winner.settings.items()]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
