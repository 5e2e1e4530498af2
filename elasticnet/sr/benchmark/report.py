"""What a benchmark or a finished training leaves behind: tables as Markdown, CSV and JSON, and the
figures.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from elasticnet._files import write_atomic, write_json
from elasticnet._tables import table
from elasticnet.sr.benchmark import (
    BASELINES,
    Benchmark,
    ImageScore,
    Row,
    baseline_name,
    benchmark,
    bicubic,
    predict_depths,
    scale_of,
)
from elasticnet.sr.data import PairSet
from elasticnet.wrapper import ElasticWrapper

Nets = Sequence[tuple[str, ElasticWrapper]]
Sets = Sequence[tuple[str, PairSet]]
MOST_CROPS = 7  # depths shown in one figure


def markdown_table(result: Benchmark) -> str:
    """Return the means as a Markdown table: a line for each depth, bicubic above it, and columns
    for each data set.

    The columns of scale and network are there where they differ, those of costs and gain where
    there are any. At scale 1 the input stands in bicubic's place.
    """
    rows = result.rows
    sets = list(dict.fromkeys(row.data for row in rows))
    several_scales = len({row.scale for row in rows}) > 1
    networks = {row.network for row in rows} - {*BASELINES}
    over = "/".join(dict.fromkeys(baseline_name(row.scale) for row in rows))
    costs = [
        name
        for name in ("parameters", "macs", "ms")
        if any(getattr(row, name) is not None for row in rows)
    ]
    titles = {"parameters": "parameters", "macs": "GMACs", "ms": "ms"}
    header = (
        ["scale"] * several_scales
        + ["network"] * (len(networks) > 1)
        + ["depth"]
        + [titles[c] for c in costs]
    )
    leading = len(header) - len(costs)
    channels = "RGB" if result.settings["protocol"] == "rgb" else "Y"
    for name in sets:
        header.append(f"{name} PSNR-{channels} (dB)" if len(sets) > 1 else f"PSNR-{channels} (dB)")
        header += [f"SSIM-{channels}"] + [f"gain over {over} (dB)"] * bool(networks)

    found = {(row.scale, row.network, row.depth, row.data): row for row in rows}
    lines = [header]
    for scale, network, depth in sorted(
        dict.fromkeys(key[:3] for key in found), key=lambda key: key[0]
    ):
        here = [found.get((scale, network, depth, name)) for name in sets]
        first = next(row for row in here if row)
        cells = (
            [f"x{scale}"] * several_scales
            + [network] * (len(networks) > 1)
            + [str(depth or network)]
        )
        cells += [_cost(name, getattr(first, name)) for name in costs]
        for row in here:
            if row is None:
                cells += [""] * (2 + bool(networks))
                continue
            gain = row.psnr - found[scale, baseline_name(scale), None, row.data].psnr
            cells += [f"{row.psnr:.2f}", f"{row.ssim:.4f}"] + [
                f"{gain:+.2f}" if depth else ""
            ] * bool(networks)
        lines.append(cells)
    return table(lines, leading)


def caption(result: Benchmark, title: str) -> str:
    """Return one line that says what the table's numbers hang on."""
    images: dict[str, set[str]] = {}
    for score in result.images:
        images.setdefault(score.data, set()).add(score.image)
    counted = ", ".join(
        f"{name} ({len(each)} image{'s' * (len(each) > 1)})" for name, each in images.items()
    )
    settings = result.settings
    text = f"{title}; {counted}; protocol {settings['protocol']}"
    if settings["self_ensemble"]:
        text += "; x8 self-ensemble"
    if any(row.macs is not None for row in result.rows):
        width, height = settings["output_size"]
        text += f"; MACs and ms of one pass to {width}x{height} on {settings['device']}"
    return text


def write_tables(folder: str | os.PathLike[str], result: Benchmark, title: str) -> None:
    """Write table.md and table.csv (means), images.csv (every image) and table.json (all of it)
    into `folder`.
    """
    folder = Path(folder)
    write_atomic(folder / "table.md", f"{caption(result, title)}\n\n{markdown_table(result)}")
    write_atomic(folder / "table.csv", _csv(Row._fields, result.rows))
    write_atomic(folder / "images.csv", _csv(ImageScore._fields, result.images))
    lists = {"rows": result.rows, "images": result.images, "skipped": result.skipped}
    values = {name: [entry._asdict() for entry in entries] for name, entries in lists.items()}
    write_json(folder / "table.json", {"title": title, "settings": result.settings, **values})


def write_figures(
    folder: str | os.PathLike[str],
    result: Benchmark,
    nets: Nets,
    sets: Sets,
    device: torch.device | str = "cpu",
) -> None:
    """Draw for each data set and scale <set>_x<scale>_curve.png, ..._parameters.png and
    ..._crops.png into `folder`.

    The crops are of the image where bicubic interpolation scores lowest. Without nets there are
    only crops.
    """
    for name, pairs in sets:
        _draw(Path(folder), f"{name}_x{pairs.scale}_", result, nets, name, pairs, device)


def write_report(
    folder: str | os.PathLike[str],
    net: ElasticWrapper,
    pairs: PairSet,
    title: str,
    device: torch.device | str = "cpu",
) -> str:
    """Score every depth of `net` on `pairs`; return the table, and write it and the figures into
    `folder`.

    table.md, table.json, curve.png, parameters.png and crops.png.
    """
    folder, name, nets = Path(folder), "validation", [(title, net)]
    result = benchmark(nets, [(name, pairs)], device=device, progress=True)
    table = f"{caption(result, title)}\n\n{markdown_table(result)}"
    write_atomic(folder / "table.md", table)
    baseline, *rows = (row._asdict() for row in result.rows)
    about = {"title": title, "images": pairs.names, "settings": result.settings}
    write_json(folder / "table.json", {**about, baseline["network"]: baseline, "rows": rows})
    _draw(folder, "", result, nets, name, pairs, device)
    return table


def _draw(
    folder: Path,
    prefix: str,
    result: Benchmark,
    nets: Nets,
    name: str,
    pairs: PairSet,
    device: torch.device | str,
) -> None:
    from elasticnet.sr.benchmark.figures import (
        crop_comparison,
        elastic_curve,
        evenly,
        parameter_dots,
    )

    rows = [row for row in result.rows if (row.data, row.scale) == (name, pairs.scale)]
    finite = [row for row in rows if math.isfinite(row.psnr)]
    baselines = {row.network: row.psnr for row in finite if row.depth is None}
    curves: dict[str, dict[int, float]] = {}
    dots: dict[str, dict[str, tuple[float, float]]] = {}
    for row in finite:
        if row.depth is not None:
            curves.setdefault(row.network, {})[row.depth] = row.psnr
            dots.setdefault(row.network, {})[str(row.depth)] = (row.parameters or 0, row.psnr)
    title = f"{name} x{pairs.scale}"
    if curves:
        ylabel = "PSNR-RGB (dB)" if result.settings["protocol"] == "rgb" else "PSNR-Y (dB)"
        elastic_curve(folder / f"{prefix}curve.png", curves, baselines, title, ylabel)
        parameter_dots(folder / f"{prefix}parameters.png", dots, title=title, ylabel=ylabel)

    scores = {
        score.image: score.psnr
        for score in result.images
        if (score.data, score.scale, score.depth) == (name, pairs.scale, None)
    }
    index = pairs.names.index(min(scores, key=lambda image: scores[image]))
    lr, settings = pairs.lr(index), result.settings
    images = {baseline_name(pairs.scale): bicubic(lr, pairs.scale, settings["border"])}
    mine = [(label, net) for label, net in nets if scale_of(net) == pairs.scale]
    for label, net in mine:
        depths = evenly(
            [row.depth for row in rows if row.network == label and row.depth], MOST_CROPS
        )
        predicted = predict_depths(net, lr, depths, device, settings["self_ensemble"])
        start = f"{label}\n" if len(mine) > 1 else ""
        images |= {f"{start}depth {depth}": image for depth, image in predicted.items()}
    crop_comparison(
        folder / f"{prefix}crops.png",
        pairs.hr(index),
        images,
        title=f"{pairs.names[index]}, {title}",
    )


def _cost(name: str, value: Any) -> str:
    if value is None:
        return ""
    return {"parameters": f"{value:,}", "macs": f"{value / 1e9:.2f}", "ms": f"{value:.0f}"}[name]


def _csv(fields: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(fields)
    writer.writerows(rows)
    return text.getvalue()
