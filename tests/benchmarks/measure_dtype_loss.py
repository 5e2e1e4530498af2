"""What float16 and bfloat16 cost in PSNR: the packaged networks at every depth.

    python tests/benchmarks/measure_dtype_loss.py SETS... [--weights asrn-x4 ...]

It writes elasticnet/sr/weights/dtype_losses.json, from which `--dtype auto` knows whether a dtype
is good enough. SETS are data sets such as Set5 and B100; a loss is the largest of their means, in
dB (matlab-y), below the same network in float32. Run it after weights have changed.
"""

from __future__ import annotations

import argparse
import json

import torch
from tqdm import tqdm

from elasticnet import load
from elasticnet._files import write_json
from elasticnet.checkpoint.packaged import packaged_files
from elasticnet.sr.benchmark import evaluate, load_sets, scale_of
from elasticnet.sr.inference.dtype_loss import LOSSES_FILE, digest_of_weights


def main() -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="+", help="folders of data sets")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"])
    parser.add_argument("--weights", nargs="+", default=list(packaged_files()))
    options = parser.parse_args()
    known = json.loads(LOSSES_FILE.read_text()) if LOSSES_FILE.exists() else {}
    for name in tqdm(options.weights, disable=None):
        file = packaged_files()[name]
        losses = {dtype: losses_of(str(file), options.sets, dtype) for dtype in options.dtypes}
        # those of the file that this one replaced are of no use
        known = {digest: entry for digest, entry in known.items() if entry["name"] != name}
        known[digest_of_weights(file)] = {"name": name, **losses}
        print(name, losses, flush=True)
        write_json(LOSSES_FILE, known)


def losses_of(file: str, sets: list[str], dtype: str) -> dict[str, dict[str, float]]:
    """Return by data set and depth how many dB a network loses in a dtype."""
    net = load(file)
    losses: dict[str, dict[str, float]] = {}
    for name, pairs in load_sets(sets, [scale_of(net)]):
        exact = evaluate(net, pairs, ssim=False)
        narrow = evaluate(net, pairs, ssim=False, compute_dtype=getattr(torch, dtype))
        losses[name] = {
            str(depth): round(exact[depth].psnr - narrow[depth].psnr, 5) for depth in exact
        }
    return losses


if __name__ == "__main__":
    main()
