"""Quire on Ray Serve: replicas, routing and autoscaling; needs `ray[serve]>=2.60,<3`.

Nothing of a cluster is re-made here: placement, start and stop, health, rolling updates and autoscaling are Serve's.
`import quire` does not import Ray, and neither does this package until one of its names is used: `quire.ray.settings`
has to be read before Ray starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quire.ray.config import AppConfig, Autoscaling, Routing

if TYPE_CHECKING:
    from quire.ray.app import build_app
    from quire.ray.splitting import Guard, SplitConfig, build_split_app, set_weights

__all__ = ["AppConfig", "Autoscaling", "Guard", "Routing", "SplitConfig", "build_app", "build_split_app", "set_weights"]


def __getattr__(name: str) -> Any:
    if name == "build_app":
        from quire.ray.app import build_app

        return build_app
    if name in ("Guard", "SplitConfig", "build_split_app", "set_weights"):
        from quire.ray import splitting

        return getattr(splitting, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
