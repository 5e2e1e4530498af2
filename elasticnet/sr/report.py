"""What a finished training shows: the table per depth, the elastic curve, one crop at every depth."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from elasticnet.card import DepthCost, depth_costs
from elasticnet.runs import write_atomic, write_json
from elasticnet.sr.benchmark import Scores, bicubic, evaluate, evaluate_bicubic, predict_depths
from elasticnet.sr.data import PairSet
from elasticnet.sr.figures import crop_comparison, elastic_curve
from elasticnet.wrapper import ElasticWrapper

SIZE = (1280, 720)  # width and height of the output for which MACs and latency are given, as the field does


def markdown_table(costs: Sequence[DepthCost], scores: Mapping[int, Scores], baseline: Scores) -> str:
    """Return the Markdown table of depth, parameters, MACs, ms, PSNR-Y, SSIM-Y and gain over bicubic."""
    rows = [
        "| depth | parameters | GMACs | ms | PSNR-Y (dB) | SSIM-Y | gain over bicubic (dB) |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        f"| bicubic | | | | {baseline.psnr:.2f} | {baseline.ssim:.4f} | |",
    ]
    for cost in costs:
        score = scores[cost.depth]
        rows.append(
            f"| {cost.depth} | {cost.parameters:,} | {cost.macs / 1e9:.2f} | {cost.ms:.0f} | {score.psnr:.2f} "
            f"| {score.ssim:.4f} | {score.psnr - baseline.psnr:+.2f} |"
        )
    return "\n".join(rows) + "\n"


def write_report(
    folder: str | os.PathLike[str],
    net: ElasticWrapper,
    pairs: PairSet,
    title: str,
    device: torch.device | str = "cpu",
) -> str:
    """Score every depth of `net` on `pairs`, write table.md, table.json, curve.png and crops.png; return the table."""
    folder, scale = Path(folder), pairs.scale
    width, height = (side // scale for side in SIZE)
    baseline = evaluate_bicubic(pairs)
    scores = evaluate(net, pairs, device=device, progress=True)
    costs = depth_costs(net, torch.rand(1, 3, height, width, device=device))

    caption = f"{title}; {len(pairs)} images; MACs and ms at {width}x{height} -> {width * scale}x{height * scale}"
    table = f"{caption}\n\n{markdown_table(costs, scores, baseline)}"
    write_atomic(folder / "table.md", table)
    rows = [{**cost._asdict(), **scores[cost.depth]._asdict()} for cost in costs]
    write_json(
        folder / "table.json",
        {
            "title": title,
            "images": pairs.names,
            "lr_size": [width, height],
            "bicubic": baseline._asdict(),
            "rows": rows,
        },
    )
    elastic_curve(
        folder / "curve.png",
        {"one network, cut to each depth": {depth: score.psnr for depth, score in scores.items()}},
        {"bicubic": baseline.psnr},
        title=title,
        ylabel="PSNR-Y (dB)",
    )
    lr = pairs.lr(0)
    images = {"bicubic": bicubic(lr, scale)}
    images |= {f"depth {depth}": image for depth, image in predict_depths(net, lr, device=device).items()}
    crop_comparison(folder / "crops.png", pairs.hr(0), images, title=pairs.names[0])
    return table
