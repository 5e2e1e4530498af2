"""Times psnr_y and ssim_y beside scikit-image: python tests/benchmarks/bench_metrics.py [--json
PATH]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from elasticnet.sr.metrics import psnr_y, rgb_to_y, ssim_y

SIZES = ((512, 512), (768, 1024), (1356, 2040))  # Set5, Urban100, DIV2K
SHAVE = 4


def milliseconds(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median time of each function; they take turns, so that a busy machine slows all
    alike.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if turn:  # the first turn warms up
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def shaved_luma(image: np.ndarray) -> np.ndarray:
    return rgb_to_y(image)[SHAVE:-SHAVE, SHAVE:-SHAVE]


def scikit_psnr(sr: np.ndarray, hr: np.ndarray) -> float:
    return float(peak_signal_noise_ratio(shaved_luma(hr), shaved_luma(sr), data_range=255))


def scikit_ssim(sr: np.ndarray, hr: np.ndarray) -> float:
    full = structural_similarity(
        shaved_luma(sr),
        shaved_luma(hr),
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )[1]
    return float(full[5:-5, 5:-5].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the table to this file as well")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()

    generator = np.random.default_rng(0)
    rows = []
    for height, width in SIZES:
        hr = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        sr = np.clip(hr + generator.normal(0, 20, hr.shape), 0, 255).astype(np.uint8)
        assert abs(ssim_y(sr, hr, SHAVE) - scikit_ssim(sr, hr)) < 1e-12
        times = milliseconds(
            {
                "psnr_y": lambda sr=sr, hr=hr: psnr_y(sr, hr, SHAVE),
                "scikit-image PSNR": lambda sr=sr, hr=hr: scikit_psnr(sr, hr),
                "ssim_y": lambda sr=sr, hr=hr: ssim_y(sr, hr, SHAVE),
                "scikit-image SSIM": lambda sr=sr, hr=hr: scikit_ssim(sr, hr),
            },
            options.repeats,
        )
        rows.append(
            {
                "image": f"{width}×{height}",
                "ms": {name: round(value, 2) for name, value in times.items()},
                "PSNR ratio": round(times["scikit-image PSNR"] / times["psnr_y"], 2),
                "SSIM ratio": round(times["scikit-image SSIM"] / times["ssim_y"], 2),
            }
        )

    print("RGB uint8 on luma, median milliseconds; ratios are scikit-image / ours, equal to 1e-12")
    print("image      psnr_y  scikit  ratio  ssim_y  scikit  ratio")
    for row in rows:
        ms = row["ms"]
        print(
            f"{row['image']:<10} {ms['psnr_y']:>6.1f}  {ms['scikit-image PSNR']:>6.1f}  {row['PSNR ratio']:>5.2f}"
            f"  {ms['ssim_y']:>6.1f}  {ms['scikit-image SSIM']:>6.1f}  {row['SSIM ratio']:>5.2f}"
        )
    if options.json:
        versions = {
            "numpy": np.__version__,
            "scikit-image": version("scikit-image"),
            "torch": torch.__version__,
        }
        report = {
            "machine": platform.machine(),
            "torch_threads": torch.get_num_threads(),
            "repeats": options.repeats,
            "versions": versions,
            "rows": rows,
        }
        options.json.write_text(
            json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
