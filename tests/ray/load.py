"""Streaming load that counts what goes wrong: lost, repeated and failed, and the longest gap in any stream."""
import asyncio
import json
import time
from pathlib import Path

import httpx

# Two layers and no tokenizer, with a longer context than it has; and on a device that only keeps time, which makes a token
# every 10 ms for each stream at next to no cost.
TINY = str(Path(__file__).resolve().parents[1] / "golden" / "models" / "llama-mha")
TINY_OPTIONS = {"hf-overrides": '{"max_position_embeddings": 4096}', "kv-cache-memory-bytes": "32MiB"}
OPTIONS = {**TINY_OPTIONS, "device": "sim:overhead=0.01"}
URL = "http://127.0.0.1:8000"


def completion(seed, tokens, **more):
    return {"prompt": [1, 2, 3, 4 + seed], "seed": seed, "temperature": 1, "max_tokens": tokens, "ignore_eos": True,
            "return_token_ids": True, "stream": True, **more}


class Stream:
    """One request: its token ids as they came, and its longest gap."""

    def __init__(self):
        self.ids, self.gap, self.first, self.failure, self.ended = [], 0.0, None, None, False

    async def run(self, client, body, url=URL):
        begin = last = time.monotonic()
        rest = b""
        try:
            async with client.stream("POST", url + "/v1/completions", json=body) as reply:
                async for piece in reply.aiter_bytes():
                    now = time.monotonic()
                    if self.first is not None:
                        self.gap = max(self.gap, now - last)
                    last = now
                    if reply.status_code != 200:
                        self.failure = f"{reply.status_code} {piece[:200]!r}"
                        continue
                    *events, rest = (rest + piece).split(b"\n\n")
                    self._take(events)
                    if self.ids and self.first is None:
                        self.first = now - begin
            if not self.failure and not (self.ended and rest == b""):
                self.failure = "the stream ended before [DONE]"
        except httpx.HTTPError as error:
            self.failure = f"{type(error).__name__}: {error}"
        return self

    def _take(self, events):
        for event in events:
            if event == b"data: [DONE]":
                self.ended = True
                continue
            assert event.startswith(b"data: {"), event
            body = json.loads(event[6:])
            if "error" in body:
                self.failure = body["error"]["message"]
            for choice in body.get("choices", ()):
                self.ids += choice.get("token_ids") or ()


class Load:
    """`streams` clients that ask one after the other until stopped; every reply is compared with its reference."""

    def __init__(self, streams=6, tokens=300, url=URL, pause=0.05):
        self.streams, self.tokens, self.url, self.pause = streams, tokens, url, pause
        self.client = httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None))
        self.done, self.references, self.tasks, self.stopping = [], {}, [], False

    async def __aenter__(self):
        for seed in range(4):
            reference = await self.ask(seed)
            assert reference.failure is None and len(reference.ids) == self.tokens, (reference.failure, len(reference.ids))
            self.references[seed] = reference.ids
        self.tasks = [asyncio.create_task(self._client(i)) for i in range(self.streams)]
        return self

    async def ask(self, seed, tokens=None):
        return await Stream().run(self.client, completion(seed, tokens or self.tokens), self.url)

    async def _client(self, number):
        while not self.stopping:
            seed = number % 4
            stream = await self.ask(seed)
            stream.seed = seed
            self.done.append(stream)
            await asyncio.sleep(self.pause)

    async def __aexit__(self, *_):
        self.stopping = True
        await asyncio.gather(*self.tasks)
        await self.client.aclose()

    def report(self):
        failed = [s.failure for s in self.done if s.failure]
        lost = repeated = 0
        for stream in self.done:
            expected = self.references[stream.seed]
            if not stream.failure:
                lost += max(0, len(expected) - len(stream.ids))
                repeated += max(0, len(stream.ids) - len(expected))
                lost += sum(a != b for a, b in zip(stream.ids, expected))
        report = {"requests": len(self.done), "failed": len(failed), "lost": lost, "repeated": repeated,
                  "longest_gap_s": round(max(s.gap for s in self.done), 2), "reasons": sorted(set(failed))}
        print("load:", json.dumps(report))
        return report


def tiny_text_model(folder):
    """TINY with a tokenizer of single characters, for what wants text: its heads can be shared by two ranks."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for file in Path(TINY).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    characters = ["Ġ" if code == 32 else chr(code) for code in range(32, 127)]
    vocabulary = characters + [f"<{i}>" for i in range(config["vocab_size"] - len(characters))]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": level, "post_processor": None, "decoder": level,
                 "model": {"type": "BPE", "vocab": {token: i for i, token in enumerate(vocabulary)}, "merges": []}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return str(folder)
