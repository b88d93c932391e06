"""Requests a second and their latency: `cnnlab serve` beside `mlflow models serve`, in turn, in one run.

    python benchmarks/serving.py models:/cnnlab-cifar10@champion cifar10/test --clients 50 --seconds 10

Run in the folder of the store. Files go to `/classify` as they are, arrays of one image to `/invocations` as JSON. The
clients are in one process beside the server, on the same cores; load is the machine's before each measurement, and CPU
milliseconds are the server's for one request, which other jobs on the machine change least.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from rich.console import Console
from rich.table import Table

COMMANDS = {
    "cnnlab": [sys.executable, "-m", "cnnlab", "serve", "--model"],
    "mlflow": [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local", "-m"],
}


class Client(asyncio.Protocol):
    """Sends the next request as soon as the last one is answered, on one connection; minds nothing but the status."""

    def __init__(self, requests, until, seconds, statuses):
        self.requests, self.until, self.seconds, self.statuses = requests, until, seconds, statuses
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport
        self.ask()

    def ask(self):
        self.answer = b""
        self.transport.write(next(self.requests))
        self.asked = time.perf_counter()

    def data_received(self, data):
        self.answer += data
        head, end, body = self.answer.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        now = time.perf_counter()
        self.seconds.append(now - self.asked)
        self.statuses[head[9:12].decode()] += 1
        if now < self.until:
            self.ask()
        else:
            self.transport.close()

    def connection_lost(self, error):
        if time.perf_counter() < self.until:
            self.statuses["lost"] += 1
        self.done.set_result(None)


def requests_to(path, bodies, kind, first):
    """Without end, the whole bytes of one request after the other."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: "
    whole = [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]
    while True:
        yield whole[first % len(whole)]
        first += 1


async def measure(port, path, bodies, kind, clients, seconds):
    """`(requests a second, their latencies in seconds, answers by status)`."""
    loop, latencies, statuses = asyncio.get_running_loop(), [], Counter()
    start = time.perf_counter()
    made = [
        await loop.create_connection(
            lambda i=i: Client(requests_to(path, bodies, kind, i * 7), start + seconds, latencies, statuses),
            "127.0.0.1",
            port,
        )
        for i in range(clients)
    ]
    await asyncio.gather(*(client.done for _, client in made))
    return len(latencies) / (time.perf_counter() - start), np.array(latencies), statuses


@contextmanager
def served(name, model, port):
    """A server in a process of its own, from its first answer on."""
    # MLflow looks for uvicorn on the path.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": "sqlite:///mlruns/mlflow.db"}
    process = subprocess.Popen(
        [*COMMANDS[name], model, "--port", str(port)],
        env=environment if name == "mlflow" else None,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
                break
            except OSError:
                if process.poll() is not None:
                    raise SystemExit(f"{name} ended with status {process.returncode}") from None
                time.sleep(0.2)
        yield psutil.Process(process.pid)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def json_of(path, side):
    """One picture as the body of a request to `/invocations`."""
    image = np.asarray(Image.open(path).convert("RGB").resize((side, side)))
    return json.dumps({"inputs": [image.tolist()]}).encode()


def cpu_seconds(process):
    """Of a process and those that it started."""
    return sum(sum(one.cpu_times()[:2]) for one in (process, *process.children(recursive=True)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="URI of a registered model")
    parser.add_argument("pictures", type=Path, help="folder of pictures, of which 500 are sent")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--port", type=int, default=5871)
    parser.add_argument("--side", type=int, default=32, help="of the model's images, in pixels")
    parser.add_argument("--only", choices=COMMANDS, help="one of the servers")
    options = parser.parse_args()

    files = sorted(path for path in options.pictures.rglob("*") if path.is_file())
    pictures = [path.read_bytes() for path in files[:: max(1, len(files) // 500)]]
    arrays = [json_of(path, options.side) for path in files[:: max(1, len(files) // 100)]]
    work = {"files": ("/classify", pictures, "image/jpeg"), "arrays": ("/invocations", arrays, "application/json")}
    table = Table("server", "requests", "a second", "p50 ms", "p99 ms", "CPU ms each", "answers", "load before")
    for name in [options.only] if options.only else COMMANDS:
        with served(name, options.model, options.port) as process:
            for what, (path, bodies, kind) in work.items():
                if (name, what) == ("mlflow", "files"):
                    continue  # it takes none
                asyncio.run(measure(options.port, path, bodies, kind, options.clients, 2))  # warm
                load, before = os.getloadavg()[0], cpu_seconds(process)
                rate, latencies, statuses = asyncio.run(
                    measure(options.port, path, bodies, kind, options.clients, options.seconds)
                )
                cpu = 1000 * (cpu_seconds(process) - before) / len(latencies)
                p50, p99 = np.percentile(latencies * 1000, (50, 99))
                answers = ", ".join(f"{count:,} x {status}" for status, count in sorted(statuses.items()))
                row = (f"{rate:,.1f}", f"{p50:,.1f}", f"{p99:,.1f}", f"{cpu:.2f}", answers, f"{load:.1f}")
                table.add_row(name, what, *row)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
