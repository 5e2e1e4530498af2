"""How many photographs a second the page's web server answers, by workers and threads.

    python tests/benchmarks/bench_web.py --clients 4 --requests 24

Needs the extra `web`. For each combination a server of its own is started on loopback; several
clients post the same JPEG at a fixed depth, one request after another each.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

httpx: Any = importlib.import_module("httpx")  # of the extra `web`
PAGE = Path(__file__).parents[2] / "docs" / "guides" / "web_server.md"
START_SECONDS = 400  # that a server may take to answer for the first time


class Setting(NamedTuple):
    """One way to serve.

    Attributes:
        workers: Processes.
        slots: Requests that compute at a time, in each process.
        threads: That PyTorch uses in each request.
    """

    workers: int
    slots: int
    threads: int


SETTINGS = (Setting(1, 1, 1), Setting(1, 1, 2), Setting(1, 2, 1), Setting(2, 1, 1))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--requests", type=int, default=24, help="in all, for each setting")
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--size", default="320x180")
    parser.add_argument("--rounds", type=int, default=2, help="of which the fastest counts")
    options = parser.parse_args()
    width, height = (int(side) for side in options.size.split("x"))
    photo = made_jpeg(width, height)
    print("| workers | slots | threads | photographs a second | median wait (ms) | MB |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for setting in SETTINGS:
        rate, wait, memory = measure(setting, photo, options)
        row = (*setting, f"{rate:.2f}", f"{1e3 * wait:.0f}", f"{memory:.0f}")
        print("| " + " | ".join(str(each) for each in row) + " |", flush=True)


def made_jpeg(width: int, height: int) -> bytes:
    """Smooth structure, as a JPEG."""
    coarse = np.random.default_rng(0).integers(0, 256, (9, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def measure(
    setting: Setting, photo: bytes, options: argparse.Namespace
) -> tuple[float, float, float]:
    """Photographs a second, median seconds of a request, and MB of all processes."""
    _, _, rest = PAGE.read_text(encoding="utf-8").partition("```python\n")
    program, _, _ = rest.partition("```\n")
    program = program.replace("set_num_threads(1)", f"set_num_threads({setting.threads})")
    program = program.replace(", max_ms=500", "")  # the depth is given: nothing is to be measured
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        Path(folder, "server.py").write_text(program, encoding="utf-8")
        command = [sys.executable, "-m", "uvicorn", "server:app", "--port", str(port)]
        command += ["--workers", str(setting.workers), "--log-level", "warning"]
        environment = {**os.environ, "SLOTS": str(setting.slots)}
        process = subprocess.Popen(command, cwd=folder, env=environment)
        try:
            url = f"http://127.0.0.1:{port}/upscale?depth={options.depth}"
            wait_for(url, photo)
            rounds = [ask_all(url, photo, options) for _ in range(options.rounds)]
            memory = memory_of(process.pid)
        finally:
            process.terminate()
            process.wait()
    rate, wait = max(rounds)
    return rate, wait, memory


def wait_for(url: str, photo: bytes) -> None:
    """Post until the server answers, a few times over, so that every worker is warm."""
    deadline = time.monotonic() + START_SECONDS
    answers = 0
    while answers < 4:
        try:
            answers += post(url, photo) > 0
        except httpx.HTTPError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def post(url: str, photo: bytes) -> float:
    """Seconds of one request."""
    start = time.perf_counter()
    answer = httpx.post(url, files={"photo": ("photo.jpg", photo)}, timeout=START_SECONDS)
    answer.raise_for_status()
    return time.perf_counter() - start


def ask_all(url: str, photo: bytes, options: argparse.Namespace) -> tuple[float, float]:
    """Photographs a second, and the median seconds of a request."""
    waits: list[float] = []

    def client() -> None:
        for _ in range(options.requests // options.clients):
            waits.append(post(url, photo))

    threads = [threading.Thread(target=client) for _ in range(options.clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    return len(waits) / seconds, sorted(waits)[len(waits) // 2]


def memory_of(pid: int) -> float:
    """Resident MB of a process and its children, on Linux."""
    total = 0.0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        except OSError:  # it has ended
            continue
        if int(lines["Pid"]) == pid or int(lines["PPid"]) == pid:
            total += int(lines.get("VmRSS", "0").split()[0]) * 1024 / 1e6
    return total


if __name__ == "__main__":
    main()
