"""Time of psnr_y and ssim_y beside scikit-image, on images of three sizes.

    python tests/benchmarks/bench_metrics.py [--repeats 7] [--json FILE]

Times are medians in milliseconds; ratios are scikit-image's over ours. Both give the same SSIM to
1e-12.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from harness import (
    machine_name,
    make_parser,
    medians_ms,
    require_at_least,
    time_in_turn,
    write_report,
)
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from elasticnet.sr.metrics import psnr_y, rgb_to_y, ssim_y

SIZES = ((512, 512), (768, 1024), (1356, 2040))  # height and width: Set5, Urban100, DIV2K
SHAVE = 4
HALF_WINDOW = 5  # pixels at the border where the window of SSIM does not fit whole


def shaved_luma(image: np.ndarray) -> np.ndarray:
    """Return the luma without the border."""
    return rgb_to_y(image)[SHAVE:-SHAVE, SHAVE:-SHAVE]


def scikit_psnr(sr: np.ndarray, hr: np.ndarray) -> float:
    """Return the same as psnr_y, computed by scikit-image."""
    return float(peak_signal_noise_ratio(shaved_luma(hr), shaved_luma(sr), data_range=255))


def scikit_ssim(sr: np.ndarray, hr: np.ndarray) -> float:
    """Return the same as ssim_y, computed by scikit-image."""
    mean_and_map = structural_similarity(
        shaved_luma(sr),
        shaved_luma(hr),
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    similarity = mean_and_map[1]
    inside = similarity[HALF_WINDOW:-HALF_WINDOW, HALF_WINDOW:-HALF_WINDOW]
    return float(inside.mean())


def measure(height: int, width: int, repeats: int) -> dict[str, Any]:
    """Return the row of one size."""
    generator = np.random.default_rng(0)
    hr = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    sr = np.clip(hr + generator.normal(0, 20, hr.shape), 0, 255).astype(np.uint8)
    assert abs(ssim_y(sr, hr, SHAVE) - scikit_ssim(sr, hr)) < 1e-12
    cases: dict[str, Callable[[], float]] = {
        "psnr_y": partial(psnr_y, sr, hr, SHAVE),
        "scikit-image PSNR": partial(scikit_psnr, sr, hr),
        "ssim_y": partial(ssim_y, sr, hr, SHAVE),
        "scikit-image SSIM": partial(scikit_ssim, sr, hr),
    }
    ms = medians_ms(time_in_turn(cases, repeats))
    return {
        "image": f"{width}×{height}",
        "ms": ms,
        "PSNR ratio": ms["scikit-image PSNR"] / ms["psnr_y"],
        "SSIM ratio": ms["scikit-image SSIM"] / ms["ssim_y"],
    }


def main() -> None:
    """Measure, print the table, write JSON if asked."""
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="rounds; one more warms up")
    options = parser.parse_args()
    require_at_least(parser, options, 1, "repeats")

    machine = machine_name()
    rows = [measure(height, width, options.repeats) for height, width in SIZES]
    print(f"{machine}; RGB uint8 on luma, median milliseconds; ratio: scikit-image / ours")
    print("image      psnr_y  scikit  ratio  ssim_y  scikit  ratio")
    for row in rows:
        ms = row["ms"]
        print(
            f"{row['image']:<10} "
            f"{ms['psnr_y']:>6.1f}  {ms['scikit-image PSNR']:>6.1f}  {row['PSNR ratio']:>5.2f}  "
            f"{ms['ssim_y']:>6.1f}  {ms['scikit-image SSIM']:>6.1f}  {row['SSIM ratio']:>5.2f}"
        )
    write_report(options, machine, rows=rows)


if __name__ == "__main__":
    main()
