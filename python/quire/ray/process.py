"""`quire serve` as the child of a replica: started on a free port, ended with its parent whatever happens to it."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from quire.ray import settings

_READY = re.compile(rb"quire serves .* on http://\S+:(\d+) ")
_log = logging.getLogger("ray.serve")


def find_program() -> str:
    """The program of QUIRE_BINARY, of the wheel, of the source tree or of PATH, in this order."""
    package = Path(__file__).resolve().parent.parent
    for path in (os.environ.get("QUIRE_BINARY"), package / "quire", package.parent.parent / "build" / "quire", shutil.which("quire")):
        if path and os.access(path, os.X_OK) and os.path.isfile(path):
            return str(path)
    raise FileNotFoundError("no program `quire`: set QUIRE_BINARY, install the wheel or put it into PATH")


class ServerProcess:
    """A running server. `--exit-with-stdin` ties it to this process: a SIGKILL here closes the pipe and ends it too."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, last_lines: deque[str]) -> None:
        self._process, self.port, self._last_lines = process, port, last_lines
        self._reader: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, arguments: Sequence[str], environment: Mapping[str, str]) -> ServerProcess:
        """Returns when the server listens; raises RuntimeError with its last lines when it ends before."""
        process = await asyncio.create_subprocess_exec(
            find_program(),
            "serve",
            *arguments,
            "--exit-with-stdin",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **environment},
        )
        server = cls(process, 0, deque(maxlen=20))
        try:
            await asyncio.wait_for(server._wait_ready(), settings.START_TIMEOUT_S)
        except BaseException:
            server.kill()
            raise
        server._reader = asyncio.get_running_loop().create_task(server._keep_log())
        return server

    async def _wait_ready(self) -> None:
        while line := await self._next_line():
            if match := _READY.search(line):
                self.port = int(match.group(1))
                return
        code = await self._process.wait()
        raise RuntimeError(f"quire serve ended with {code}: " + " | ".join(self._last_lines))

    async def _next_line(self) -> bytes:
        assert self._process.stderr is not None
        line = await self._process.stderr.readline()
        if line:
            self._last_lines.append(line.decode(errors="replace").rstrip())
            _log.info("%s", self._last_lines[-1])
        return line

    async def _keep_log(self) -> None:
        while await self._next_line():
            pass

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Raises when the process has ended."""
        if self._process.returncode is not None:
            raise RuntimeError(f"quire serve ended with {self._process.returncode}: " + " | ".join(self._last_lines))

    def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()

    async def stop(self, seconds: float) -> None:
        """SIGTERM: no new connections, what runs may finish; SIGKILL after `seconds`."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self._process.wait(), seconds)
            except asyncio.TimeoutError:
                self.kill()
                await self._process.wait()
