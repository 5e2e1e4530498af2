"""What a benchmark or a finished training leaves behind: tables (Markdown, CSV, JSON), figures."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from elasticnet._files import write_atomic, write_json
from elasticnet._tables import aligned, table
from elasticnet.card.timing import Timing, unsteady
from elasticnet.sr.benchmark.evaluation import benchmark
from elasticnet.sr.benchmark.others import OtherMethod
from elasticnet.sr.benchmark.records import Benchmark, ImageScore, Row
from elasticnet.sr.benchmark.scores import (
    BASELINES,
    Depth,
    baseline_name,
    bicubic,
    predict_depths,
)
from elasticnet.sr.benchmark.sets import with_compressed
from elasticnet.sr.data.pair_set import MAX_LISTED, PairSet
from elasticnet.sr.data.read_rgb import read_rgb
from elasticnet.sr.inference.scale import scale_of
from elasticnet.wrapper import ElasticWrapper

Nets = Sequence[tuple[str, nn.Module]]
Sets = Sequence[tuple[str, PairSet]]
MAX_CROPS = 7  # depths shown in one figure
EXACT = "exact"  # instead of an infinite PSNR, where not one image has another
COST_TITLES = {"parameters": "parameters", "macs": "GMACs", "ms": "ms"}  # by field of Row

# What a line of the table shows: scale, network, depth (None for bicubic).
_LineKey = tuple[int, str, Depth | None]


class _Layout(NamedTuple):
    """Which columns the table has."""

    sets: list[str]
    costs: list[str]
    with_scale: bool
    with_network: bool
    with_gain: bool
    channels: str
    baseline: str


def markdown_table(result: Benchmark) -> str:
    """Return the means as a Markdown table: a line for each depth, bicubic above them.

    Each data set has its columns. Those of scale and network are there where they differ, those of
    costs and gain where there are any. At scale 1 the input stands in bicubic's place.

    Args:
        result: What `benchmark` returned.
    """
    layout = _layout(result)
    rows: dict[_LineKey, dict[str, Row]] = {}  # each line's rows, by data set
    for row in result.rows:
        rows.setdefault((row.scale, row.network, row.depth), {})[row.data] = row
    lines = [_header(layout)]
    for key in sorted(rows, key=lambda key: key[0]):  # by scale, otherwise as they came
        scale, _, _ = key
        baselines = rows[scale, baseline_name(scale), None]
        lines.append(_line(layout, key, rows[key], baselines))
    return table(lines, left=len(_leading_titles(layout)))


def markdown_tables(result: Benchmark, *, padded: bool = False) -> str:
    """Return the table of `markdown_table`, or one for each quality of JPEG under its heading.

    Args:
        result: What `benchmark` returned.
        padded: Whether the columns are padded to one width, for a terminal.
    """
    texts: list[str] = []
    for heading, part in by_jpeg_quality(result).items():
        text = markdown_table(part)
        if padded:
            text = aligned(text)
        if heading:
            text = f"{heading}:\n\n{text}"
        texts.append(text)
    return "\n".join(texts)


def by_jpeg_quality(result: Benchmark) -> dict[str, Benchmark]:
    """Return the parts of a result whose LR images are compressed alike, by a heading for each.

    Args:
        result: What `benchmark` returned.

    Returns:
        The whole result under an empty heading, where no set was compressed. In a part the sets
        have the names of those that they were made of, so that all parts have the same columns.
    """
    qualities: dict[str, int] = result.settings.get("jpeg_quality", {})
    if not qualities:
        return {"": result}
    parts: dict[str, Benchmark] = {}
    for row in result.rows:
        quality = qualities.get(row.data)
        heading = "not compressed"
        data = row.data
        if quality is not None:
            heading = f"JPEG quality {quality}"
            data = row.data.removesuffix(f"-q{quality}")
        part = parts.setdefault(heading, result._replace(rows=[]))
        part.rows.append(row._replace(data=data))
    return parts


def caption(result: Benchmark, title: str) -> str:
    """Return one line that says what the table's numbers depend on.

    Args:
        result: What `benchmark` returned.
        title: The beginning of the line.
    """
    settings = result.settings
    qualities: dict[str, int] = settings.get("jpeg_quality", {})
    images: dict[str, set[str]] = {}
    for score in result.images:
        if score.data in qualities:
            continue  # the same images once more, after compression
        images.setdefault(score.data, set()).add(score.image)
    counted: list[str] = []
    for name, each in images.items():
        noun = "image" if len(each) == 1 else "images"
        counted.append(f"{name} ({len(each)} {noun})")
    scored = ", ".join(counted) or "no image scored"
    text = f"{title}; {scored}; protocol {settings['protocol']}"
    if qualities:
        listed = ", ".join(str(quality) for quality in dict.fromkeys(qualities.values()))
        text += f"; also after JPEG of quality {listed} (4:2:0, Pillow {settings['pillow']})"
    if settings["self_ensemble"]:
        text += "; x8 self-ensemble"
    if "dtype" in settings:
        text += f"; computed in {settings['dtype']}"
    if any(row.macs is not None for row in result.rows):
        width, height = settings["output_size"]
        text += f"; MACs and ms of one pass to {width}x{height} on {settings['device']}"
    if any(row.ms_spread is not None for row in result.rows):
        text += " (median ± half the distance between the quartiles)"
    if result.remaining > 0:
        text += f"; NOT FINISHED, images still to be scored: {result.remaining}"
    return text


def warnings_of(result: Benchmark) -> list[str]:
    """Return a warning where the measured times are not to be relied on.

    Args:
        result: What `benchmark` returned.
    """
    timings: dict[str, Timing] = {}
    for row in result.rows:
        if row.ms is not None:
            timings[f"{row.network} x{row.scale} depth {row.depth}"] = Timing(row.ms, row.ms_spread)
    return unsteady(timings)


def page(result: Benchmark, title: str) -> str:
    """Return the caption, the Markdown table or tables, and the warnings.

    Args:
        result: What `benchmark` returned.
        title: As in `caption`.
    """
    text = f"{caption(result, title)}\n\n{markdown_tables(result)}"
    for warning in warnings_of(result):
        text += f"\nwarning: {warning}\n"
    return text


def write_tables(folder: str | os.PathLike[str], result: Benchmark, title: str) -> None:
    """Write table.md and table.csv (means), images.csv (every image) and table.json (all of it).

    Args:
        folder: Where they go; it exists.
        result: What `benchmark` returned, or what there is of it so far; table.md and table.json
            then say so.
        title: As in `caption`.
    """
    folder = Path(folder)
    write_atomic(folder / "table.md", page(result, title))
    write_atomic(folder / "table.csv", _csv(Row._fields, result.rows))
    write_atomic(folder / "images.csv", _csv(ImageScore._fields, result.images))
    content: dict[str, Any] = {
        "title": title,
        "settings": result.settings,
        "rows": [row._asdict() for row in result.rows],
        "images": [score._asdict() for score in result.images],
        "skipped": [each._asdict() for each in result.skipped],
    }
    if result.remaining > 0:
        content["remaining"] = result.remaining
    write_json(folder / "table.json", content)


def write_figures(
    folder: str | os.PathLike[str],
    result: Benchmark,
    nets: Nets,
    sets: Sets,
    device: torch.device | str = "cpu",
    others: Sequence[OtherMethod] = (),
) -> None:
    """Draw <set>_x<scale>_curve.png, ..._parameters.png and ..._crops.png of each data set.

    The crops are of the image where bicubic interpolation scores lowest. Without nets there are
    only crops.

    Args:
        folder: Where they go; it exists.
        result: What `benchmark` returned for these nets and sets.
        nets: (label, net) each.
        sets: (name, pairs) each.
        device: Where the nets are.
        others: Images of other methods, which stand among the crops.
    """
    for name, pairs in sets:
        prefix = Path(folder, f"{name}_x{pairs.scale}_")
        _draw(str(prefix), result, nets, name, pairs, device, others)


def write_report(
    folder: str | os.PathLike[str],
    net: ElasticWrapper,
    pairs: PairSet,
    title: str,
    device: torch.device | str = "cpu",
    *,
    jpeg_qualities: Sequence[int] = (),
    costs: bool = True,
    figures: bool = True,
) -> str:
    """Score every depth of one net, and write the table and the figures.

    These are table.md, table.json, curve.png, parameters.png and crops.png.

    Args:
        folder: Where they go; it exists.
        net: On `device`.
        pairs: Images at the net's scale.
        title: The net's label, and the beginning of the caption.
        device: Where the net is.
        jpeg_qualities: Qualities at which the images are scored after JPEG compression, too; each
            has a table of its own, in table.json under "compressed". The figures show the images
            as they are.
        costs: Whether multiply-accumulates and milliseconds are measured, too.
        figures: Whether the figures are drawn.

    Returns:
        The table with its caption.
    """
    name = "validation"
    nets = [(title, net)]
    sets = with_compressed([(name, pairs)], jpeg_qualities)
    result = benchmark(nets, sets, device=device, costs=costs, progress=True)
    text = page(result, title)
    for each in result.skipped[:MAX_LISTED]:
        text += f"\nleft out: {each.image}: {each.reason}\n"
    if len(result.skipped) > MAX_LISTED:
        text += f"\nleft out: {len(result.skipped)} in all; table.json names them\n"
    write_atomic(Path(folder, "table.md"), text)
    baseline, *rows = (row._asdict() for row in result.rows if row.data == name)
    content = {
        "title": title,
        "images": list(dict.fromkeys(score.image for score in result.images)),
        "skipped": [each._asdict() for each in result.skipped],
        "settings": result.settings,
        baseline["network"]: baseline,
        "rows": rows,
    }
    if jpeg_qualities:
        content["compressed"] = [row._asdict() for row in result.rows if row.data != name]
    write_json(Path(folder, "table.json"), content)
    if figures:
        _draw(str(Path(folder)) + os.sep, result, nets, name, pairs, device)
    return text


# --- the table


def _layout(result: Benchmark) -> _Layout:
    rows = result.rows
    networks = {row.network for row in rows} - set(BASELINES)
    return _Layout(
        sets=list(dict.fromkeys(row.data for row in rows)),  # each once, in order
        costs=[name for name in COST_TITLES if any(getattr(row, name) is not None for row in rows)],
        with_scale=len({row.scale for row in rows}) > 1,
        with_network=len(networks) > 1,
        with_gain=len(networks) > 0,
        channels="RGB" if result.settings["protocol"] == "rgb" else "Y",
        baseline="/".join(dict.fromkeys(baseline_name(row.scale) for row in rows)),
    )


def _leading_titles(layout: _Layout) -> list[str]:
    """The columns that say which depth of what a line is about."""
    titles: list[str] = []
    if layout.with_scale:
        titles.append("scale")
    if layout.with_network:
        titles.append("network")
    titles.append("depth")
    return titles


def _header(layout: _Layout) -> list[str]:
    cells = _leading_titles(layout)
    cells += [COST_TITLES[name] for name in layout.costs]
    for name in layout.sets:
        of_which = f"{name} " if len(layout.sets) > 1 else ""
        cells.append(f"{of_which}PSNR-{layout.channels} (dB)")
        cells.append(f"SSIM-{layout.channels}")
        if layout.with_gain:
            cells.append(f"gain over {layout.baseline} (dB)")
    return cells


def _line(
    layout: _Layout, key: _LineKey, rows: Mapping[str, Row], baselines: Mapping[str, Row]
) -> list[str]:
    """One line of the table; `rows` and bicubic's `baselines` are by data set."""
    scale, network, depth = key
    cells: list[str] = []
    if layout.with_scale:
        cells.append(f"x{scale}")
    if layout.with_network:
        cells.append(network)
    cells.append(network if depth is None else str(depth))
    any_row = next(iter(rows.values()))  # the costs are the same on every data set
    cells += [_cost_cell(name, any_row) for name in layout.costs]
    for name in layout.sets:
        cells += _score_cells(layout, rows.get(name), baselines.get(name))
    return cells


def _score_cells(layout: _Layout, row: Row | None, baseline: Row | None) -> list[str]:
    """PSNR, SSIM and, where the table has it, the gain; empty where the set has no such scale."""
    if row is None or baseline is None:
        psnr, ssim, gain = "", "", ""
    else:
        psnr = f"{row.psnr:.2f}" if math.isfinite(row.psnr) else EXACT
        ssim = f"{row.ssim:.4f}"
        gain_in_db = row.psnr - baseline.psnr
        has_gain = row.depth is not None and math.isfinite(gain_in_db)
        gain = f"{gain_in_db:+.2f}" if has_gain else ""
    return [psnr, ssim, gain] if layout.with_gain else [psnr, ssim]


def _cost_cell(name: str, row: Row) -> str:
    value = getattr(row, name)
    if value is None:
        return ""
    if name == "macs":
        return f"{value / 1e9:.2f}"
    if name == "ms":
        spread = "" if row.ms_spread is None else f" ± {row.ms_spread:.0f}"
        return f"{value:.0f}{spread}"
    return f"{value:,}"


def _csv(fields: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(fields)
    writer.writerows(rows)
    return text.getvalue()


# --- the figures


def _draw(
    prefix: str,
    result: Benchmark,
    nets: Nets,
    name: str,
    pairs: PairSet,
    device: torch.device | str,
    others: Sequence[OtherMethod] = (),
) -> None:
    """Draw the figures of one data set at one scale into files whose paths begin with `prefix`."""
    rows = [row for row in result.rows if row.data == name and row.scale == pairs.scale]
    _draw_curves(prefix, rows, f"{name} x{pairs.scale}", result.settings["protocol"])
    _draw_crops(prefix, result, nets, name, pairs, device, others)


def _draw_curves(prefix: str, rows: Sequence[Row], title: str, protocol: str) -> None:
    """Draw PSNR against depth and against parameters; nothing where no network was scored."""
    from elasticnet.sr.benchmark.figures import elastic_curve, parameter_dots

    baselines: dict[str, float] = {}  # drawn as a horizontal line: what has no depths
    curves: dict[str, dict[int, float]] = {}
    dots: dict[str, dict[str, tuple[float, float]]] = {}
    for row in rows:
        if not math.isfinite(row.psnr):
            continue  # there is no place for it on the axis
        if isinstance(row.depth, int):
            curves.setdefault(row.network, {})[row.depth] = row.psnr
        else:
            baselines[row.network] = row.psnr
        if row.parameters is not None:
            dots.setdefault(row.network, {})[str(row.depth)] = (row.parameters, row.psnr)
    ylabel = "PSNR-RGB (dB)" if protocol == "rgb" else "PSNR-Y (dB)"
    if curves:
        elastic_curve(f"{prefix}curve.png", curves, baselines, title, ylabel)
    if dots:
        parameter_dots(f"{prefix}parameters.png", dots, title=title, ylabel=ylabel)


def _draw_crops(
    prefix: str,
    result: Benchmark,
    nets: Nets,
    name: str,
    pairs: PairSet,
    device: torch.device | str,
    others: Sequence[OtherMethod],
) -> None:
    """Draw a crop of the image that is hardest for bicubic, as all others and networks make it."""
    from elasticnet.sr.benchmark.figures import crop_comparison

    settings = result.settings
    index = _hardest_for_bicubic(result, name, pairs)
    if index is None:
        return
    lr = pairs.lr(index)
    images = {baseline_name(pairs.scale): bicubic(lr, pairs.scale, settings["border"])}
    for other in others:
        made = other.images.get((name, pairs.scale, pairs.names[index]))
        if made is not None:
            images[other.name] = read_rgb(made.path)
    shown = [(label, net) for label, net in nets if scale_of(net) == pairs.scale]
    for label, net in shown:
        predicted = predict_depths(
            net, lr, _shown_depths(result, label, net), device, settings["self_ensemble"]
        )
        before = f"{label}\n" if len(shown) > 1 else ""
        for depth, image in predicted.items():
            words = f"depth {depth}" if isinstance(depth, int) else f"{depth} network"
            images[before + words] = image
    crop_comparison(
        f"{prefix}crops.png",
        pairs.hr(index),
        images,
        title=f"{pairs.names[index]}, {name} x{pairs.scale}",
    )


def _hardest_for_bicubic(result: Benchmark, name: str, pairs: PairSet) -> int | None:
    """The index of the image where bicubic interpolation has the lowest PSNR; None without any."""
    scores: dict[str, float] = {}
    for score in result.images:
        if score.data == name and score.scale == pairs.scale and score.depth is None:
            scores[score.image] = score.psnr
    if not scores:
        return None
    hardest = min(scores, key=lambda image: scores[image])
    return pairs.names.index(hardest)


def _shown_depths(result: Benchmark, label: str, net: nn.Module) -> list[int] | None:
    """At most `MAX_CROPS` of the depths that were scored; None for a net that has none."""
    from elasticnet.sr.benchmark.figures import evenly

    scale = scale_of(net)
    depths = {
        row.depth
        for row in result.rows
        if row.network == label and row.scale == scale and isinstance(row.depth, int)
    }
    return evenly(depths, MAX_CROPS) if depths else None
