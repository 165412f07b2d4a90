"""The direct path: a program inside the cluster talks to a replica's own port, with nothing of Python between.

    from ray import serve
    from quire.ray.direct import direct

    engines = serve.get_deployment_handle("Engine", "default")
    async with direct(engines, session="user-7") as url:
        client = openai.AsyncOpenAI(base_url=url + "/v1", api_key="none")
        ...

The router chooses as it does for the ingress, and the slot that it reserves is held until the block is left: Serve
counts it as a running request, and a replica that is to stop waits for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from quire.ray.forward import Request
from quire.ray.ingress import prefix_keys


@asynccontextmanager
async def direct(engines: Any, *, session: str | None = None, body: bytes = b"") -> AsyncIterator[str]:
    """The URL of the replica that the router chose for this session, or for the prompt in this request body."""
    headers = [(b"x-session-id", session.encode())] if session is not None else []
    async with engines.choose_replica(prefix=prefix_keys(Request("POST", "/", headers, body))) as chosen:
        yield f"http://{chosen.replica_metadata['native']}"
