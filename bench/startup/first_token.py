#!/usr/bin/env python3
"""From exec to the first streamed token, over HTTP: starts the server, retries the connect every millisecond, sends a
32-id /v1/completions and stops the clock at the first SSE token. Prints each run and the median, in milliseconds.

    first_token.py [--runs 7] [--model-name NAME] [--port 18123] -- SERVER COMMAND...   ({port} is replaced)
"""

import argparse
import json
import socket
import statistics
import subprocess
import time


def one_run(command: list[str], port: int, name: str) -> float:
    body = json.dumps({"model": name, "prompt": list(range(100, 132)), "max_tokens": 4, "temperature": 0, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    start = time.perf_counter()
    process = subprocess.Popen([w.replace("{port}", str(port)) for w in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while time.perf_counter() - start < 60:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=30) as s:
                    s.sendall(head + body)
                    seen = b""
                    while b"data: {" not in seen:
                        chunk = s.recv(4096)
                        if not chunk:
                            break
                        seen += chunk
                    if b"data: {" in seen:
                        return 1e3 * (time.perf_counter() - start)
            except OSError:
                pass
            time.sleep(0.001)
        raise SystemExit("no token in 60 s")
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--port", type=int, default=18123)
    parser.add_argument("--model-name", default="m")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    one_run(args.command, args.port, args.model_name)  # warms the page cache
    runs = [one_run(args.command, args.port, args.model_name) for _ in range(args.runs)]
    print(json.dumps({"first_token_ms": [round(r, 1) for r in runs], "median_ms": round(statistics.median(runs), 1)}))


if __name__ == "__main__":
    main()
