#!/usr/bin/env python3
"""Measures Quire on this CPU next to its limits and, when a peer is given, next to the peer in the same run.

    bench/cpu/run.py --model 1b-q8_0=PATH.gguf [--model ...] [--peer-dir BIN_FOLDER_OF_IK_OR_LLAMA_CPP] [--repeat 5]
                     [--wrap "chrt -f 10"] [--out bench/results/cpu.json]

For each model: prefill of 512 tokens, decode after 128, batched decode at 1..32 sequences, a burst of 16 requests over
HTTP (128 in, 64 out) and exec to first token. Runs of Quire and of the peer alternate, so that a drift of the machine
hits both; medians and the median of the pairwise ratios are reported. --wrap goes before every measured command of
both sides (a busy machine: `chrt -f 10`).
"""

import argparse
import json
import os
import re
import shlex
import socket
import statistics
import subprocess
import threading
import time
from pathlib import Path

THREADS = 2


class Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.wrap = shlex.split(args.wrap)
        self.port = args.port

    def run(self, *command: str, both: bool = False) -> str:
        stderr = subprocess.STDOUT if both else subprocess.PIPE
        return subprocess.run([*self.wrap, *command], stdout=subprocess.PIPE, stderr=stderr, text=True, check=True, timeout=900, cwd="/tmp").stdout

    # ---- Quire ----

    def quire_latency(self, model: str, prompt: int, output: int, batch: int) -> dict:
        text = self.run(
            self.args.quire, "bench", "latency", model, "--input-len", str(prompt), "--output-len", str(output), "--batch-size", str(batch), "--num-iters", "1",
            "--max-model-len", "2048", "--kv-cache-memory-bytes", "1GiB", "--threads", str(THREADS), "--json",
        )  # fmt: skip
        return json.loads(text)

    def quire_server(self, model: str) -> list[str]:
        self.port += 1  # the one before may be in TIME_WAIT
        return [*self.wrap, self.args.quire, "serve", model, "--port", str(self.port), "--served-model-name", "m", "--max-model-len", "2048",
                "--kv-cache-memory-bytes", "1GiB", "--threads", str(THREADS), "--log-level", "error"]  # fmt: skip

    # ---- The peer ----

    def peer(self, name: str) -> str:
        return str(Path(self.args.peer_dir) / name)

    def peer_bench(self, model: str, prompt: int, output: int) -> dict:
        text = self.run(self.peer("llama-bench"), "-m", model, "-p", str(prompt), "-n", str(output), "-t", str(THREADS), "-r", "1", *self.args.peer_flags)
        found = dict(re.findall(r"\|\s+((?:pp|tg)\d+) \|\s+([\d.]+)", text))
        return {"prefill": float(found[f"pp{prompt}"]), "decode": float(found[f"tg{output}"])}

    def peer_batched(self, model: str, batch: int) -> float:
        text = self.run(self.peer("llama-batched-bench"), "-m", model, "-t", str(THREADS), "-c", str(256 * max(batch, 8)), "-npp", "128", "-ntg", "64",
                        "-npl", str(batch), *[f for f in self.args.peer_flags if f != "1"], both=True)  # fmt: skip
        row = [line for line in text.splitlines() if re.match(r"\|\s+128 \|", line)][-1]
        return float(row.split("|")[8])

    def peer_server(self, model: str) -> list[str]:
        self.port += 1
        return [*self.wrap, self.peer("llama-server"), "-m", model, "--port", str(self.port), "-t", str(THREADS), "--no-warmup", "-c", "4096", "-np", "16",
                *[f for f in self.args.peer_flags if f != "1"]]  # fmt: skip

    # ---- HTTP ----

    def stream(self, index: int, prompt: int, output: int, out: list) -> None:
        ids = [(index * 7919 + i * 104729) % 40000 + 100 for i in range(prompt)]
        body = json.dumps({"model": "m", "prompt": ids, "max_tokens": output, "n_predict": output, "temperature": 0, "stream": True, "ignore_eos": True}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        times = []
        with socket.create_connection(("127.0.0.1", self.port), timeout=600) as s:
            s.sendall(head + body)
            rest = b""
            while chunk := s.recv(65536):
                now = time.perf_counter()
                rest += chunk
                times += [now] * rest.count(b"data: {")
                rest = rest[rest.rfind(b"\n") + 1 :]
        out[index] = times

    def wait_for_server(self) -> None:
        for _ in range(60000):
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.001)
        raise SystemExit("the server did not start")

    def burst(self, command: list[str], count: int = 16, prompt: int = 128, output: int = 64) -> dict:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/tmp")
        try:
            self.wait_for_server()
            warm: list = [None]
            for _ in range(100):  # llama-server answers 503 while it loads
                self.stream(0, 8, 4, warm)
                if warm[0]:
                    break
                time.sleep(0.05)
            out: list = [None] * count
            threads = [threading.Thread(target=self.stream, args=(i, prompt, output, out)) for i in range(count)]
            start = time.perf_counter()
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            end = max(times[-1] for times in out)
            first = sorted(times[0] - start for times in out)
            gaps = sorted(b - a for times in out for a, b in zip(times, times[1:]))
            return {
                "output_tokens_per_s": count * output / (end - start),
                "first_token_p50_s": statistics.median(first),
                "first_token_max_s": first[-1],
                "between_tokens_p50_ms": 1e3 * statistics.median(gaps),
            }
        finally:
            process.terminate()
            process.wait()

    def first_token(self, command: list[str]) -> float:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/tmp")
        try:
            while True:
                out: list = [None]
                try:
                    self.stream(0, 32, 1, out)
                except OSError:
                    pass
                if out[0]:
                    return 1e3 * (out[0][0] - start)
                time.sleep(0.001)
        finally:
            process.terminate()
            process.wait()

    # ---- One model ----

    def pairs(self, ours, theirs) -> dict:
        """Alternating runs of two callables that return dicts of numbers; theirs may be None."""
        mine, other = [], []
        for _ in range(self.args.repeat):
            mine.append(ours())
            if theirs is not None:
                other.append(theirs())
        result = {}
        for key in mine[0]:
            a = [m[key] for m in mine]
            result[key] = {"quire": statistics.median(a), "quire_runs": a}
            if other and key in other[0]:
                b = [o[key] for o in other]
                ratio = statistics.median(x / y for x, y in zip(a, b)) if all(b) else float("nan")
                result[key] |= {"peer": statistics.median(b), "peer_runs": b, "ratio": ratio}
        return result

    def model(self, path: str) -> dict:
        with_peer = self.args.peer_dir is not None

        def prefill_and_decode() -> dict:
            prefill, decode = self.quire_latency(path, 512, 1, 1), self.quire_latency(path, 128, 64, 1)
            return {
                "prefill": prefill["prefill_tokens_per_s_median"],
                "decode": decode["decode_tokens_per_s_max"],
                "decode_share_of_read_limit_percent": decode["share_of_read_limit_percent"],
            }

        result = {"prefill_512_and_decode_128": self.pairs(prefill_and_decode, (lambda: self.peer_bench(path, 512, 64)) if with_peer else None)}
        for batch in self.args.batches:
            ours = lambda b=batch: {"tokens_per_s": self.quire_latency(path, 128, 64, b)["decode_tokens_per_s_max"]}
            theirs = (lambda b=batch: {"tokens_per_s": self.peer_batched(path, b)}) if with_peer else None
            result[f"batched_decode_{batch}"] = self.pairs(ours, theirs)
        result["burst_16_of_128_64"] = self.pairs(lambda: self.burst(self.quire_server(path)), (lambda: self.burst(self.peer_server(path))) if with_peer else None)
        result["exec_to_first_token"] = self.pairs(
            lambda: {"ms": self.first_token(self.quire_server(path))}, (lambda: {"ms": self.first_token(self.peer_server(path))}) if with_peer else None
        )
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", required=True, help="NAME=PATH")
    parser.add_argument("--quire", default="build/quire")
    parser.add_argument("--peer-dir")
    parser.add_argument("--peer-flags", type=shlex.split, default=["-rtr", "1"])
    parser.add_argument("--peer-name", default="ik_llama.cpp")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--batches", type=lambda s: [int(x) for x in s.split(",")], default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--port", type=int, default=18130)
    parser.add_argument("--wrap", default="")
    parser.add_argument("--out")
    args = parser.parse_args()
    args.quire = os.path.abspath(args.quire)
    bench = Bench(args)
    limits = json.loads(bench.run(args.quire, "bench", "limits", "--threads", str(THREADS), "--json"))
    report = {"date": time.strftime("%Y-%m-%d"), "command": " ".join(os.sys.argv), "peer": args.peer_name if args.peer_dir else None, "limits": limits, "models": {}}
    for item in args.model:
        name, path = item.split("=", 1)
        report["models"][name] = bench.model(os.path.abspath(path))
        for measure, values in report["models"][name].items():
            for key, v in values.items():
                print(f"{name:14} {measure:28} {key:36} quire {v['quire']:10.2f}" + (f"   peer {v['peer']:10.2f}   ratio {v['ratio']:.2f}" if "peer" in v else ""), flush=True)
        if args.out:
            Path(args.out).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
