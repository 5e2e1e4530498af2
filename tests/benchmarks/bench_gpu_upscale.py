"""The folded head's rounding under TF32, and `upscale` of a large image at each depth, on a GPU.

    python tests/benchmarks/bench_gpu_upscale.py [--size 4000x3000] [--json FILE] [--quick]

CUDA may round the factors of float32 products and convolutions to TF32, by settings of PyTorch. The
folded head is compared with its layers in float64 on the CPU under each setting. Its kernels must
be within 1e-5 wherever products may not be rounded, whatever convolutions may (that is PyTorch's
default); the images must be so where neither may. Differences are parts of the largest value.

Then an image of noise is enlarged by the packaged net, as `elasticnet upscale` does it, without
reading and writing files: seconds and peak memory.
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import numpy as np
import torch
from gpu_training import SCALE, forget_peak, make_gpu_parser, peak_megabytes, write_checked
from harness import synchronize
from torch import Tensor

from elasticnet.sr import asrn
from elasticnet.sr.inference.tiling import upscale_array
from elasticnet.sr.inference.upscale_plan import plan_upscale
from elasticnet.sr.models.heads import DeconvHead

TOLERANCE = 1e-5
HEAD_SIDE = 64  # of the features, in pixels
QUICK_SIZE = "64x48"
WARM_UP_SIDE = 256
DTYPES = {"float32": None, "bfloat16": torch.bfloat16}


def main() -> None:
    """Measure both, print, write JSON."""
    parser = make_gpu_parser(__doc__)
    parser.add_argument("--size", default="4000x3000", help="of the image, WIDTHxHEIGHT")
    options = parser.parse_args()
    heads = head_differences(options.device)
    for row in heads:
        print(", ".join(f"{name} {value}" for name, value in row.items()))
    upscaled = upscale_rows(options)
    write_checked(options, ok=all(row["ok"] for row in heads), heads=heads, upscale=upscaled)


def head_differences(device: torch.device) -> list[dict[str, Any]]:
    """Return how far the folded head is from its layers in float64, for each setting."""
    torch.manual_seed(0)
    head = asrn(SCALE, num_blocks=1, init="default").head.eval()
    assert isinstance(head, DeconvHead)
    features = torch.randn(1, head.reduce.in_channels, HEAD_SIDE, HEAD_SIDE)
    exact = copy.deepcopy(head).double()
    with torch.no_grad():
        exact_kernel, _ = exact.folded_kernels()
        exact.fold = False
        exact_image = exact(features.double())
    head = head.to(device)
    features = features.to(device)

    rows: list[dict[str, Any]] = []
    for products in (False, True):
        for convolutions in (False, True):
            torch.backends.cuda.matmul.allow_tf32 = products
            torch.backends.cudnn.allow_tf32 = convolutions
            with torch.no_grad():
                kernel, _ = head.folded_kernels()
                image = head(features)
            kernel_difference = difference(kernel, exact_kernel)
            image_difference = difference(image, exact_image)
            kernel_ok = products or kernel_difference <= TOLERANCE
            image_ok = products or convolutions or image_difference <= TOLERANCE
            rows.append(
                {
                    "products in TF32": products,
                    "convolutions in TF32": convolutions,
                    "kernel": kernel_difference,
                    "image": image_difference,
                    "ok": kernel_ok and image_ok,
                }
            )
    torch.backends.cuda.matmul.allow_tf32 = False  # PyTorch's defaults
    torch.backends.cudnn.allow_tf32 = True
    return rows


def difference(found: Tensor, exact: Tensor) -> float:
    """Return the largest difference, as a part of the largest exact value."""
    return ((found.cpu().double() - exact).abs().max() / exact.abs().max()).item()


def upscale_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return seconds and peak memory for each depth and dtype."""
    size = QUICK_SIZE if options.quick else options.size
    width, height = (int(side) for side in size.split("x"))
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = np.empty((SCALE * height, SCALE * width, 3), dtype=np.uint8)
    net = asrn(SCALE, pretrained=True)
    rows: list[dict[str, Any]] = []
    for name, compute_dtype in DTYPES.items():
        for depth in net.taps:
            plan = plan_upscale(
                net, depth=depth, device=options.device, compute_dtype=compute_dtype
            )
            upscale_array(image[:WARM_UP_SIDE, :WARM_UP_SIDE], plan)
            forget_peak(options.device)
            start = time.perf_counter()
            upscale_array(image, plan, out=out)
            synchronize(options.device)
            row = {
                "size": size,
                "dtype": name,
                "depth": depth,
                "seconds": time.perf_counter() - start,
                "peak_mb": peak_megabytes(options.device),
            }
            print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            rows.append(row)
    return rows


if __name__ == "__main__":
    main()
