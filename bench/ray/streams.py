"""Paced SSE streams against one address: what arrives, when the first byte does. The client counts bytes, it parses nothing."""

import asyncio
import json
import statistics
import time
from dataclasses import dataclass, field

EVENT = b'"token_ids":['


@dataclass
class Result:
    events: int = 0
    bytes: int = 0
    first: list[float] = field(default_factory=list)
    failed: int = 0
    seconds: float = 0.0

    def summary(self) -> dict[str, float]:
        first = sorted(self.first) or [0.0]
        return {
            "events": self.events,
            "seconds": round(self.seconds, 3),
            "events_per_s": round(self.events / self.seconds),
            "mbytes_per_s": round(self.bytes / self.seconds / 1e6, 2),
            "first_token_ms_p50": round(1e3 * statistics.median(first), 2),
            "first_token_ms_p90": round(1e3 * first[int(0.9 * (len(first) - 1))], 2),
            "failed": self.failed,
        }


async def one(result: Result, address: str, tokens: int, number: int) -> None:
    """A request of HTTP/1.1 over a connection of its own, read until its last event."""
    host, _, port = address.rpartition(":")
    body = json.dumps({"prompt": [1, 2, 3, 4 + number % 64], "seed": number, "max_tokens": tokens, "ignore_eos": True,
                       "return_token_ids": True, "stream": True}).encode()
    begin = time.monotonic()
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (address.encode(), len(body)) + body)
    tail, seen = b"", False
    while True:
        piece = await reader.read(1 << 18)
        if not piece:
            result.failed += 1
            break
        result.bytes += len(piece)
        count = piece.count(EVENT)
        if count and not seen:
            seen = True
            result.first.append(time.monotonic() - begin)
        result.events += count
        tail = (tail + piece)[-64:]
        if b"[DONE]" in tail:
            break
    writer.transport.abort()


async def run(address: str, streams: int, tokens: int, ramp_s: float) -> Result:
    """`streams` at once, their starts spread over ramp_s."""
    result = Result()
    begin = time.monotonic()

    async def later(number: int) -> None:
        await asyncio.sleep(ramp_s * number / streams)
        await one(result, address, tokens, number)

    await asyncio.gather(*[later(i) for i in range(streams)])
    result.seconds = time.monotonic() - begin
    return result
