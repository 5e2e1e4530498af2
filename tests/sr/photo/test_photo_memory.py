"""Peak memory of a whole run of the command on a photograph of 48 megapixels, in a process of its
own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

MAKE = """
import sys
import numpy as np
from PIL import Image
from elasticnet import save
from elasticnet.sr import asrn

height, width, alpha = map(int, sys.argv[1:])
rows, columns = np.mgrid[:height:4, :width:4]
planes = [rows % 256, columns % 256, (rows + columns) % 256]
if alpha:
    planes.append((columns > width // 3) * 255)
image = Image.fromarray(np.dstack(planes).astype(np.uint8))
image.resize((width, height)).save("in.png", compress_level=1)
save(asrn(2, num_blocks=1, channels=8), "net.safetensors")
"""

# What maps the result's own file is RssFile, which is left out; everything else counts.
RUN = """
import re, sys, threading, time
from elasticnet.cli import main

peak = 0

def look():
    global peak
    while True:
        with open("/proc/self/status") as file:
            found = dict(re.findall(r"(Rss\\w+):\\s+(\\d+)", file.read()))
        peak = max(peak, int(found["RssAnon"]) + int(found["RssShmem"]))
        time.sleep(0.01)

threading.Thread(target=look, daemon=True).start()
files = ["in.png", "-o", sys.argv[1], "--weights", "net.safetensors"]
status = main(["upscale", *files, "--max-pixels", "100000000"])
print(status, peak)
"""


def peak_gigabytes(folder: Path, height: int, width: int, alpha: bool, target: str) -> float:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def run(program: str, *arguments: str) -> str:
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.run(
            command, cwd=folder, env=environment, check=True, capture_output=True, text=True
        ).stdout

    run(MAKE, str(height), str(width), str(int(alpha)))
    status, peak = map(int, run(RUN, target).split())
    assert status == 0
    assert (folder / target).stat().st_size > 10_000
    return peak * 1024 / 1e9


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads /proc/self/status, which Linux has"
)
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("target", "alpha"),
    [("out.png", False), ("out.jpg", False), ("out.tif", False), ("out.png", True)],
)
def test_48_megapixels_stay_below_one_and_a_half_gigabytes(
    tmp_path: Path, target: str, alpha: bool
) -> None:
    """Reading, a small network at x2 and writing: at most 1.5 GB beside the result, which is a
    mapped file.
    """
    peak = peak_gigabytes(tmp_path, 6000, 8000, alpha, target)
    print(f"{target}, alpha {alpha}: {peak:.2f} GB beside the result")
    assert peak < 1.5
