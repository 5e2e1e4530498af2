"""Write the tables and figures of the docs' pages from the measurements in docs/results/.

    python recipes/results.py             rewrite what stands between the markers of the pages, and
                                          draw the figures
    python recipes/results.py --check     write nothing; exit status 1 when a page is out of date

Numbers are never typed: every table is made of JSON files. recipes/record.py takes them from run
folders, and published.py, complexity.py, head_to_head.py, interpolate.py and tests/benchmarks/
write others; a test runs --check.
"""

from __future__ import annotations

import elasticnet.before_torch  # sets what must be set before torch is imported

# isort: split
import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

from elasticnet._files import write_atomic
from elasticnet._tables import table
from elasticnet.sr.data.licences import licence_line
from elasticnet.training.options import as_command
from elasticnet.training.program import run_program

if TYPE_CHECKING:
    from torch import nn

    from elasticnet.sr.benchmark.figures import Image

DOCS = Path(__file__).parents[1] / "docs"
SETS = ("Set5", "Set14", "B100")
OPEN_SETS = (*SETS, "Urban100")  # those that no application is needed for
ALL_SETS = (*OPEN_SETS, "Manga109")
SCALES = ("x2", "x3", "x4")
FIGURE_SET = "Urban100"  # of the figure on the page of results
PHOTO = "astronaut"  # of those that scikit-image carries; by NASA, in the public domain
SS_WEIGHTS = "x3-ss-seed1.safetensors"  # trained for the deepest tap alone; beside the records
# the record of each packaged file of weights
SHIPPED = {
    "x2": "asrn_x2",
    "x3": "asrn_x3",
    "x4": "asrn_x4",
    "x2-photo": "asrn_x2_photo",
    "x4-photo": "asrn_x4_photo",
    "x4-published": "asrn_x4_published",
}
# what the networks for compressed images are measured on, and how strongly it is compressed
JPEG_SET = "B100"
JPEG_DEPTHS = (1, 3, 5)
QUALITIES = (90, 75, 50, 30)
# the photographs that were held out of each folder of training photographs
HELD_OUT_SETS = {"structures_valid": "20 of `train_free`", "train_valid10": "10 of `train`"}
DSL_PSD = "DSL + PSD"
# the trainings that are compared, by what follows x4- in their records' names
KINDS = {
    "ss": "SS, cut short",
    "dsl": "DSL",
    "full": DSL_PSD,
    "normalised": f"{DSL_PSD}, equal weights",
    "rising": f"{DSL_PSD}, rising, affine",
    "rising-dsl": "DSL, rising from 1/2, affine",
    "dsl-nine": "DSL, 9/10 on the deepest",
    "skipless": f"{DSL_PSD}, no bicubic skip",
}
# those at x3, by what follows x3- in their records' names
KINDS_AT_X3 = {
    "ss": "SS, cut short",
    "dsl": "DSL",
    "full": DSL_PSD,
    "best": "the preset best",
}
# how the paper calls three of them, and the table that has them
PUBLISHED_KINDS = {
    "the paper's SS, cut short": ("ASRN (SS)", 4),
    "the paper's DSL": ("ASRN (DSL)", 4),
    "the paper's DSL + PSD": ("ASRN", 5),
}
# parts of a block by the option of the recipe that takes each out, and in Table 3 of the paper
PARTS = {
    "fusion": "fusion_layer",
    "residual_links": "residual_like_connection",
    "shuffle": "channel_shuffle",
    "residual": "residual_learning",
}
PART_NAMES = {
    "fusion_layer": "fusion layer",
    "residual_like_connection": "residual-like connection",
    "channel_shuffle": "channel shuffle",
    "residual_learning": "residual learning",
}
# the cases of that table by their records' names, and two more
CASES = {
    "parts-64-no-fusion": 1,
    "parts-64-no-links": 2,
    "parts-64-no-shuffle": 3,
    "parts-64-no-residual": 4,
    "parts-64": 5,
    "parts-96-no-fusion": None,
    "parts-96-no-links": None,
    "parts-96": 6,
    "parts-10-blocks": 7,
}
# the networks in a record of sr_retrofit.py, and what its options call their steps
CUT = "ordinary, cut short"
ELASTIC = "elastic"
STEPS = {"train_steps": "ordinary", "srcnn_steps": "SRCNN", "tune_steps": "elastic"}
# networks of recipes/complexity.py that Table 7 of the paper has under another name
IN_TABLE_7 = {"ASRN, 5 blocks": "ASRN (Ours)", "ASRN, 25 blocks": "ASRN (25B, Ours)"}
SMALL_NETWORK = 900_000  # parameters; the figures of small and of large networks meet here
# what an option meant before it existed, where that is not what the preset "paper" says
VALUES_AT_FIRST = {"output_loss": "l1"}
# options without an effect on what is trained
WITHOUT_EFFECT = (
    "out",
    "keep",
    "tensorboard",
    "save_every",
    "log_every",
    "cache_dir",
    "cache",
    "costs",
    "figures",
    "cuda_graph",
)

Record = dict[str, Any]
Records = dict[str, Record]  # by their files' names
Presets = dict[str, dict[str, Any]]  # preset -> option -> value
Dots = dict[str, tuple[float, float]]  # parameters and PSNR by name
Scores = dict[str, dict[str, float]]  # published PSNR and SSIM by data set


# --- what records hold


def psnr_of_run(record: Record) -> list[float]:
    """Return the PSNR of every depth in the final table of a run."""
    return [row["psnr"] for row in record["table"]["rows"]]


def score(record: Record, data: str, depth: int | None, measure: str = "psnr") -> float:
    """Return the PSNR or SSIM of a depth (None: bicubic) on a data set that it was scored on."""
    for row in record["sets"]:
        if row["data"] == data and row["depth"] == depth:
            return row[measure]
    raise KeyError(f"{data} at depth {depth}")


def depths_of(record: Record) -> list[int]:
    """Return the depths that were scored on data sets."""
    depths = {row["depth"] for row in record["sets"]}
    return sorted(depths - {None})


def seeds_of(records: Records, name: str) -> list[Record]:
    """Return the record of this name, and those of the same training with other seeds, by seed."""
    same_training = re.compile(f"{re.escape(name)}(-seed[0-9]+)?")
    found = [record for key, record in records.items() if same_training.fullmatch(key)]
    return sorted(found, key=lambda record: record["options"]["seed"])


def mean_score(found: Iterable[Record], data: str, depth: int) -> float:
    """Return the mean PSNR of several seeds."""
    return fmean(score(record, data, depth) for record in found)


def alone_by_depth(records: Records) -> dict[int, list[Record]]:
    """Return the seeds of the networks that were trained for one depth each."""
    alone = {depth: seeds_of(records, f"x4-alone-{depth}") for depth in range(1, 5)}
    alone[5] = seeds_of(records, "x4-ss")  # "SS, cut short" is trained for its deepest depth
    return alone


# --- what is published


def printed_scores(
    published: Record,
    method: str,
    scale: int,
    *,
    table_number: int = 1,
    blocks: int | None = None,
    degradation: str = "BI",
) -> Scores:
    """Return what one row of the paper prints, by data set; empty where it prints no such row.

    Args:
        published: The content of published.json.
        method: As the paper names it.
        scale: Of the row.
        table_number: Of the paper's table.
        blocks: Of an ASRN; None for any other method.
        degradation: "BI", "BD" or "DN".
    """
    wanted = {
        "table": table_number,
        "method": method,
        "scale": scale,
        "blocks": blocks,
        "degradation": degradation,
    }
    for row in published["scores"]:
        if all(row[key] == value for key, value in wanted.items()):
            return row["scores"]
    return {}


def printed_bicubic(published: Record, mode: str) -> Scores:
    """Return what the paper prints of bicubic interpolation.

    Args:
        published: The content of published.json.
        mode: The scale, with a degradation other than BI before it: "x3" or "BD x3".
    """
    *degradation, scale = mode.split()
    if degradation:
        return printed_scores(
            published,
            "Bicubic",
            scale_number(scale),
            table_number=2,
            degradation=degradation[0],
        )
    return printed_scores(published, "Bicubic", scale_number(scale))


def printed_asrn(published: Record, scale: str, depth: int) -> Scores:
    """Return what the paper prints of its complete ASRN at a depth.

    Table 5 has every depth at x3 and x4. At x2 only Table 1 has a row, of the whole network.

    Args:
        published: The content of published.json.
        scale: Such as "x3".
        depth: The number of blocks.
    """
    number = scale_number(scale)
    by_depth = printed_scores(published, "ASRN", number, table_number=5, blocks=depth)
    return by_depth or printed_scores(published, "ASRN", number, blocks=depth)


def scale_number(scale: str) -> int:
    """Return 3 for "x3"."""
    return int(scale.removeprefix("x"))


class Method(NamedTuple):
    """Published scores of a network that is not ours.

    Attributes:
        label: Its name, and whose numbers these are.
        parameters: None where they are not printed.
        psnr: By data set, in dB.
    """

    label: str
    parameters: int | None
    psnr: dict[str, float]


def published_methods(published: Record, reprinted: Record, scale: str) -> list[Method]:
    """Return what is published of other networks: by the paper's Table 1, then by other papers.

    Both stand beside each other where they differ.

    Args:
        published: The content of published.json.
        reprinted: The content of reprinted.json.
        scale: Such as "x3".
    """
    methods: list[Method] = []
    for row in published["scores"]:
        is_of_scale = row["table"] == 1 and row["scale"] == scale_number(scale)
        if is_of_scale and row["method"] != "Bicubic" and row["blocks"] is None:
            psnr = {data: printed["psnr"] for data, printed in row["scores"].items()}
            methods.append(Method(f"{row['method']}, Table 1", row["parameters"], psnr))
    for name, values in reprinted["methods"].items():
        if scale in values:
            methods.append(Method(f"{name}, reprinted", values["parameters"], values[scale]))
    return methods


# --- words and cells


def decibels(scores: Iterable[float]) -> list[str]:
    """Return cells of PSNR."""
    return [f"{score:.2f}" for score in scores]


def depth_headers(depths: Iterable[int]) -> list[str]:
    """Return the headers of columns that are depths."""
    return [f"depth {depth}" for depth in depths]


def budget(record: Record) -> str:
    """Return what a training cost, in words."""
    options = record["options"]
    return (
        f"{options['steps']:,} steps, batch {options['batch_size']}, "
        f"patches of {options['patch_size']}"
    )


def changed(
    options: Mapping[str, Any], presets: Presets, usual: Mapping[str, Any] | None = None
) -> str:
    """Return what a run's options change of the usual ones, as a command line has it.

    The usual ones are by default those of the run's preset, which is then named, too.
    """
    base = presets[options["preset"]] if usual is None else usual
    # Older records lack options that were added since; most had the values of the preset "paper".
    # A base of older records lacks them, too.
    at_first = {**presets["paper"], **VALUES_AT_FIRST}
    added_since = {name: each for name, each in at_first.items() if name not in options}
    complete = {**options, **added_since}
    compared = {name: value for name, value in complete.items() if name in base}
    skipped: list[str] = [*WITHOUT_EFFECT]
    if options["variant"] != "full":
        skipped.append("psd_weight")
    if complete["output_weight"] == 0:
        skipped.append("output_loss")
    words = as_command(compared, base, skipped)
    if usual is not None:
        return words
    return f"--preset {options['preset']} {words}"


# --- results.md: ours beside the paper


def overview(records: Records) -> str:
    """PSNR of the packaged networks at every scale and depth, beside what the paper prints."""
    published = records["published"]
    how_to_measure = {"Manga109": "Manga109 ([how to measure it](#manga109))"}
    titles = [how_to_measure.get(data, data) for data in ALL_SETS]
    lines = [["network", "parameters", *titles]]
    for scale in SCALES:
        record = records[scale]
        lines.append([f"{scale}, bicubic", "", *cells_beside(record, published, scale, None)])
        for depth, cost in costs_alone(record).items():
            label = "1 block" if depth == 1 else f"{depth} blocks"
            cells = cells_beside(record, published, scale, depth)
            lines.append([f"{scale}, {label}", f"{cost.parameters:,}", *cells])
    made = (
        "PSNR-Y in dB; in brackets the paper's; **bold**: ours is ahead. "
        f"{standing_sentences(records)}"
    )
    return f"{table(lines)}\n{made}"


class CostAlone(NamedTuple):
    """What a depth costs where it is used alone.

    Attributes:
        parameters: Their number.
        macs: Multiply-accumulates for an output of 1280x720.
    """

    parameters: int
    macs: int


def costs_alone(record: Record) -> dict[int, CostAlone]:
    """Return what each depth of a run's network costs alone, as an exported file has it.

    A tap's own convolution costs nothing there, since the head takes it into its first layer.

    Args:
        record: Of a run of asrn_div2k.py.
    """
    options = record["options"]
    return counted_costs(
        scale=options["scale"],
        num_blocks=options["num_blocks"],
        channels=options["channels"],
        upsampler=options["upsampler"],
        skip=options["skip"],
    )


@cache
def counted_costs(
    scale: int, num_blocks: int, channels: int, upsampler: str, skip: str
) -> dict[int, CostAlone]:
    """Return what each depth of an ASRN costs alone; nothing is computed for it.

    Args:
        scale: The enlargement.
        num_blocks: Of the network.
        channels: Of its body.
        upsampler: Its shared head.
        skip: As the recipe's option has it: "none" or "bicubic".
    """
    import torch

    from elasticnet.card.counting import count_macs, count_parameters
    from elasticnet.sr import asrn
    from elasticnet.sr.benchmark.costs import OUTPUT_SIZE

    skip_of_net = None if skip == "none" else skip
    net = asrn(scale, num_blocks, channels=channels, upsampler=upsampler, skip=skip_of_net).eval()
    net.to("meta")  # tensors without values
    width, height = (side // scale for side in OUTPUT_SIZE)
    example = torch.zeros(1, 3, height, width, device="meta")
    costs: dict[int, CostAlone] = {}
    for depth in net.taps:
        costs[depth] = CostAlone(count_parameters(net, depth), count_macs(net, example, depth))
    return costs


def cells_beside(record: Record, published: Record, scale: str, depth: int | None) -> list[str]:
    """Return a cell for each data set: our PSNR, bold if it is ahead, and the paper's."""
    theirs = published_scores(published, scale, depth)
    measured = sets_of(record)
    cells: list[str] = []
    for data in ALL_SETS:
        printed = f" ({theirs[data]:.2f})" if data in theirs else ""
        if data not in measured:
            cells.append(f"–{printed}")
            continue
        ours = round(score(record, data, depth), 2)
        is_ahead = depth is not None and data in theirs and ours > theirs[data]
        cells.append(f"**{ours:.2f}**{printed}" if is_ahead else f"{ours:.2f}{printed}")
    return cells


def sets_of(record: Record) -> set[str]:
    """Return the data sets that a record has scores of."""
    return {row["data"] for row in record["sets"]}


def standing(records: Records) -> str:
    """What each packaged network is ahead of the paper's at the same depth, or behind, in dB."""
    lines = [["ours less the paper's (dB)", *ALL_SETS]]
    for scale in SCALES:
        for depth, by_data in differences_from_paper(records, scale).items():
            cells: list[str] = []
            for data in ALL_SETS:
                cells.append(f"{by_data[data] / 100:+.2f}" if data in by_data else "")
            lines.append([f"{scale}, depth {depth}", *cells])
    return f"{table(lines)}\n{standing_sentences(records)}"


def differences_from_paper(records: Records, scale: str) -> dict[int, dict[str, int]]:
    """Return ours less the paper's in hundredths of a dB, by depth and data set.

    Only what is measured here and printed there.
    """
    record = records[scale]
    found: dict[int, dict[str, int]] = {}
    for depth in depths_of(record):
        by_data: dict[str, int] = {}
        for data, theirs in published_scores(records["published"], scale, depth).items():
            if data in sets_of(record):
                by_data[data] = hundredths(score(record, data, depth)) - hundredths(theirs)
        if by_data:
            found[depth] = by_data
    return found


def standing_sentences(records: Records) -> str:
    """Return how often ours is ahead of the paper's at each scale, level, and behind."""
    sentences: list[str] = []
    for scale in SCALES:
        every: list[int] = []
        for by_data in differences_from_paper(records, scale).values():
            every += by_data.values()
        sentences.append(standing_sentence(scale, every))
    return " ".join(sentences)


def hundredths(psnr: float) -> int:
    """Return PSNR in hundredths of a dB, in which papers print it."""
    return round(100 * psnr)


def standing_sentence(scale: str, differences: Sequence[int]) -> str:
    """Return how many of the differences from the paper are gains, and how many losses."""
    ahead = sum(difference > 0 for difference in differences)
    behind = sum(difference < 0 for difference in differences)
    level = len(differences) - ahead - behind
    return (
        f"At {scale}, of {len(differences)} values ours is ahead in {ahead}, level in {level} and "
        f"behind in {behind}."
    )


# --- the pages of studies


class Gain(NamedTuple):
    """A row of a table of gains: PSNR of the input or of bicubic, and PSNR by depth."""

    label: str
    start: float
    scores: Sequence[float]


def table_of_gains(base: str, gains: Sequence[Gain]) -> str:
    """Return a table of PSNR by depth, each with what it gains over `base` in a row of its own."""
    depths = range(1, len(gains[0].scores) + 1)
    rows = [["", base, *depth_headers(depths)]]
    for gain in gains:
        rows.append([f"{gain.label}: PSNR (dB)", f"{gain.start:.2f}", *decibels(gain.scores)])
        differences = [f"{score - gain.start:+.2f}" for score in gain.scores]
        rows.append([f"{gain.label}: gain (dB)", "", *differences])
    return table(rows)


def tasks(records: Records) -> str:
    """Denoising, deblurring and, once it has been run, dehazing, beside the input."""
    labels = {
        "denoise": f"denoise, sigma {records['denoise']['options']['noise_sigma']:g}",
        "deblur": f"deblur, sigma {records['deblur']['options']['blur_sigma']:g}",
    }
    if "dehaze" in records:
        labels["dehaze"] = "dehaze"
    gains: list[Gain] = []
    for name, label in labels.items():
        start = records[name]["table"]["input"]["psnr"]
        gains.append(Gain(label, start, psnr_of_run(records[name])))
    scored_on = records["denoise"]["options"]["valid"]
    (shared_budget,) = {budget(records[name]) for name in labels}
    made = f"{shared_budget} each; scored on {scored_on}."
    return f"{table_of_gains('input', gains)}\n{made}"


def degradations(records: Records) -> str:
    """Other degradations than bicubic, beside bicubic enlargement."""
    gains: list[Gain] = []
    runs = [records["bd-x3"], records["dn-x3"]]
    for record in runs:
        scores = [score(record, "Set5", depth) for depth in depths_of(record)]
        start = score(record, "Set5", None)
        gains.append(Gain(record["options"]["degradation"], start, scores))
    published = records["published"]
    bicubic: list[str] = []
    asrn: list[str] = []
    for kind in ("BD", "DN"):
        printed = printed_bicubic(published, f"{kind} x3")
        bicubic.append(f"{kind} {printed['Set5']['psnr']:.2f}")
        printed = printed_scores(published, "ASRN", 3, table_number=2, blocks=5, degradation=kind)
        asrn.append(f"{kind} {printed['Set5']['psnr']:.2f}")
    (shared_budget,) = {budget(record) for record in runs}
    made = (
        f"Set5 x3; {shared_budget} each. Published PSNR of bicubic interpolation: "
        f"{', '.join(bicubic)}; of the paper's ASRN, trained in full: {', '.join(asrn)} "
        "([Table 2](paper.md#blur-and-noise-table-2))."
    )
    return f"{table_of_gains('bicubic', gains)}\n{made}"


def baselines(records: Records) -> str:
    """Published bicubic interpolation, ours, and the way that reproduces the published numbers."""
    lines = [["bicubic interpolation", "published", "`benchmark`", "as published"]]
    for row in records["bicubic"]["baselines"]:
        mode = row["mode"]
        printed = printed_bicubic(records["published"], mode)[row["data"]]
        label = mode if " " in mode else f"BI {mode}"
        lines.append(
            [
                f"{label}, {row['data']}",
                f"{printed['psnr']:.2f} / {printed['ssim']:.4f}",
                f"{row['benchmark']['psnr']:.3f} / {row['benchmark']['ssim']:.4f}",
                f"{row['as_published']['psnr']:.3f} / {row['as_published']['ssim']:.4f}",
            ]
        )
    return table(lines).rstrip()


def noise(records: Records) -> str:
    """Every way of making the noise of DN that was tried."""
    published = printed_bicubic(records["published"], "DN x3")
    printed = [f"{published[data]['psnr']:.2f} / {published[data]['ssim']:.4f}" for data in SETS]
    lines = [["bicubic interpolation, DN x3", *SETS], ["published", *printed]]
    cells_of: dict[str, list[str]] = {}
    for row in records["bicubic"]["tried"]:
        cell = f"{row['psnr']:.3f} / {row['ssim']:.4f}"
        if row["psnr_deviation"] is not None:
            cell += f" (± {row['psnr_deviation']:.3f})"
        cells_of.setdefault(row["way"], []).append(cell)
    lines += [[way, *cells] for way, cells in cells_of.items()]
    made = (
        f"PSNR-Y in dB and SSIM; NumPy's noise: mean and deviation of "
        f"{records['bicubic']['seeds']} seeds."
    )
    return f"{table(lines)}\n{made}"


def growth(records: Records) -> str:
    """A network that was grown, beside one that was not."""
    shallow = records["growth-3"]
    grown = records["growth-5"]
    steps = shallow["options"]["steps"]
    more = grown["options"]["steps"]
    before_training = list(grown["scores"][0]["psnr"].values())
    rows = {
        f"3 blocks, {steps:,} steps": psnr_of_run(shallow),
        "grown to 5, before training": before_training,
        f"grown to 5, {more:,} steps more": psnr_of_run(grown),
        f"3 blocks, {more:,} steps more": psnr_of_run(records["growth-3-longer"]),
    }
    depths = [row["depth"] for row in grown["table"]["rows"]]
    lines = [["network", *depth_headers(depths)]]
    for label, scores in rows.items():
        deeper = [""] * (len(depths) - len(scores))
        lines.append([label, *decibels(scores), *deeper])
    options = grown["options"]
    made = f"PSNR-Y in dB on {options['valid']} x{options['scale']}; {budget(grown)} each time."
    return f"{table(lines)}\n{made}"


class Curves(NamedTuple):
    """What recipes/sr_retrofit.py came to: PSNR by depth, and PSNR of what it is compared with."""

    cut: dict[int, float]
    elastic: dict[int, float]
    baselines: dict[str, float]


def curves(record: Record) -> Curves:
    """Return the curves of a record."""
    cut: dict[int, float] = {}
    elastic: dict[int, float] = {}
    baselines: dict[str, float] = {}
    for row in record["table"]["rows"]:
        if row["network"] in ("bicubic", "SRCNN"):
            baselines[row["network"]] = row["psnr"]
        elif row["network"] == CUT:
            cut[row["depth"]] = row["psnr"]
        elif row["network"] == ELASTIC:
            elastic[row["depth"]] = row["psnr"]
    return Curves(cut, elastic, baselines)


def retrofit_title(record: Record) -> str:
    """Return the data set and the scale of a record of sr_retrofit.py."""
    _, arguments = record["table"]["network"]
    return f"{record['options']['valid'][0]} x{arguments['scale']}"


def retrofit(records: Records) -> str:
    """EDSR and RCAN, cut and elastic."""
    parts: list[str] = []
    for model in ("edsr", "rcan"):
        record = records[f"retrofit-{model}"]
        found = curves(record)
        over_srcnn = [psnr - found.baselines["SRCNN"] for psnr in found.elastic.values()]
        rows = [
            [model.upper(), *depth_headers(found.cut)],
            [f"{CUT} (dB)", *decibels(found.cut.values())],
            [f"{ELASTIC} (dB)", *decibels(found.elastic.values())],
            [f"{ELASTIC}, over SRCNN (dB)", *(f"{over:+.2f}" for over in over_srcnn)],
        ]
        baselines = ", ".join(f"{name} {psnr:.2f}" for name, psnr in found.baselines.items())
        _, arguments = record["table"]["network"]
        steps = [f"{record['options'][option]:,} {label}" for option, label in STEPS.items()]
        parts.append(
            f"{table(rows)}\n"
            f"{baselines}; {retrofit_title(record)}; {arguments['channels']} channels; "
            f"steps: {', '.join(steps)}.\n\n"
            f"![{model.upper()}, cut and elastic](../images/retrofit_{model}.png)"
        )
    return "\n\n".join(parts)


def choices(records: Records) -> str:
    """The short trainings that decided on the recipe, by the held-out photographs."""
    names = [name for name in records if name.startswith("choice-")]
    names.sort(key=lambda name: int(name.split("-")[1]))
    tried = [records[name] for name in names]
    presets = records["presets"]
    usual = usual_options([{**presets["paper"], **record["options"]} for record in tried])

    depths = range(1, 6)
    lines = [["options", *depth_headers(depths), "Set5, shallowest", "Set5, deepest"]]
    for record in tried:
        command = changed(record["options"], presets, usual)
        label = f"`{command}`" if command else "the usual options (below)"
        lines.append([label, *choice_cells(record, len(depths))])
    made = "PSNR-Y in dB, depths on the held-out photographs. What a row does not name:"
    return f"{table(lines)}\n{made} `{changed(usual, presets)}`."


def usual_options(every: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return each option's most frequent value."""
    names = sorted({name for options in every for name in options})
    usual: dict[str, Any] = {}
    for name in names:
        counts = Counter(json.dumps(options[name]) for options in every)  # lists have no hash
        [(value, _)] = counts.most_common(1)
        usual[name] = json.loads(value)
    return usual


def choice_cells(record: Record, num_depths: int) -> list[str]:
    """Return the last scores on the held-out photographs, and those of both ends on Set5.

    A network with a single tap has its scores in the columns of the deepest one.
    """
    held_out = record["scores"][-1]["psnr"]  # by depth, which is text in JSON
    no_depth = [""] * (num_depths - len(held_out))
    depths = [int(depth) for depth in held_out]
    ends = sorted({min(depths), max(depths)})
    on_set5 = [score(record, "Set5", depth) for depth in ends]
    no_end = [""] * (2 - len(ends))
    return [*no_depth, *decibels(held_out.values()), *no_end, *decibels(on_set5)]


# --- short trainings: of photographs, of the cost of exits, of self-distillation

HELD_OUT = "structures_valid"
SWEEP_SETS = {"Set5": "Set5", "Set14": "Set14", "B100": "B100", HELD_OUT: "held out"}


def photographs(records: Records) -> str:
    """The same training on other photographs and patches, at both ends of the depths."""
    rows = {
        "`train`": "train",
        "`train_free`": "free",
        "`train_free` without copyleft": "permissive",
        "`train_free`, patches of 64": "free-p64",
        "`train_free`, patches of 96": "free-p96",
        "`train_free`, 8,000 steps": "free-8k",
    }
    lines = [["trained on", "seeds", *(f"{label}, 1 / 5" for label in SWEEP_SETS.values())]]
    for label, name in rows.items():
        found = seeds_of(records, f"sweep-photos-{name}")
        cells = [both_ends(found, data) for data in SWEEP_SETS]
        lines.append([label, str(len(found)), *cells])
    long_runs = seeds_of(records, "x4-full")
    cells = [both_ends(long_runs, data) for data in SETS]
    lines.append(["`train`, 8,000 steps", str(len(long_runs)), *cells, ""])
    return table(lines)


def both_ends(found: Sequence[Record], data: str) -> str:
    """Return the mean PSNR of some seeds at depth 1 and at depth 5."""
    return " / ".join(decibels(mean_score(found, data, depth) for depth in (1, 5)))


def exits_cost(records: Records) -> str:
    """By how much each way to train an elastic network is behind networks trained alone."""
    ways = {
        "DSL, weights 1/taps": "sweep-psd-dsl",
        "a last fusion for each depth": "sweep-regret-tap-fusion",
        "gradients of equal norm": "sweep-regret-balanced",
        "both": "sweep-regret-tap-fusion-bal",
        "gradients and taps of equal weight": "sweep-regret-balanced-equal",
        "the deepest first, then all": "sweep-regret-deepest-first",
        "the deepest in every second step": "sweep-regret-alternating",
        "one tap in turn": "sweep-regret-rotating",
        "the ends and one other tap": "sweep-regret-sandwich",
        "output distillation by L1, weight 0.5": "sweep-regret-output",
        "output distillation by squares, weight 5": "sweep-regret-output-mse-5",
        "output distillation by squares, weight 20": "sweep-regret-output-mse-20",
        "squares, weight 2, and last fusions": "sweep-regret-output-mse-2-fusion",
        "squares, weight 5, and last fusions": "sweep-regret-output-mse-5-fusion",
        "the same, seed 1": "sweep-regret-output-mse-5-fusion-seed1",
        "output distillation from the self-ensemble": "sweep-regret-output-x8",
        "twice the batch": "sweep-regret-twice-the-batch",
        "twice the steps": "sweep-regret-twice-the-steps",
    }
    depths = (1, 3, 5)
    alone = {depth: records[f"sweep-regret-alone-{depth}"] for depth in depths}
    lines = [["", *(f"{label}, 1 / 3 / 5" for label in SWEEP_SETS.values())]]
    limits = {data: [score(alone[depth], data, depth) for depth in depths] for data in SWEEP_SETS}
    lines.append(["each depth alone, dB", *(" / ".join(decibels(limits[data])) for data in limits)])
    for label, name in ways.items():
        if name not in records:  # not trained yet
            continue
        cells: list[str] = []
        for data, limit in limits.items():
            scores = [score(records[name], data, depth) for depth in depths]
            gains = [mine - best for mine, best in zip(scores, limit, strict=True)]
            cells.append(" / ".join(f"{gain:+.2f}" for gain in gains))
        lines.append([label, *cells])
    return table(lines)


def exits_cost_of_8000_steps(records: Records) -> str:
    """Every depth of two ways to train an elastic network, after 8,000 steps."""
    ways = {
        "DSL + PSD": "sweep-photos-free-8k",
        "squares, weight 5, and last fusions": "sweep-regret-output-mse-5-fusion-8k",
    }
    lines = [["", *(f"{label}, depths 1 to 5" for label in SWEEP_SETS.values())]]
    for label, name in ways.items():
        record = records[name]
        cells: list[str] = []
        for data in SWEEP_SETS:
            scores = [score(record, data, depth) for depth in depths_of(record)]
            cells.append(" ".join(decibels(scores)))
        lines.append([label, *cells])
    return table(lines)


def adaptive_tiles(records: Records) -> str:
    """What a depth of its own for each tile could save, by way to run and rule to choose."""
    rows = records["adaptive-tiles"]["rows"]
    cases = list(dict.fromkeys((row["data"], row["tile"]) for row in rows))
    columns = list(dict.fromkeys((row["way"], row["rule"]) for row in rows))
    found = {(row["data"], row["tile"], row["way"], row["rule"]): row for row in rows}
    names = {"structures_valid": "held out", "B100": "B100"}
    titles = [f"{way}, {rule}" for way, rule in columns]
    lines = [["photographs", "tile", "depth (oracle)", *titles]]
    for data, tile in cases:
        depth = found[data, tile, "free", "oracle"]["mean_depth"]
        cells = [f"{found[data, tile, way, rule]['saving']:.2f}" for way, rule in columns]
        lines.append([names[data], str(tile), f"{depth:.1f}", *cells])
    return table(lines)


def distillation_sweep(records: Records) -> str:
    """Forms and weights of the self-distillation beside training without it."""
    without = records["sweep-psd-dsl"]
    found: list[tuple[str, Record]] = []
    for form in ("norm", "squared", "power2", "cosine"):
        for share in (1, 5, 20):
            name = f"sweep-psd-{form}-{share}"
            if (form, share) == ("norm", 5):
                name = "sweep-photos-free"  # the same options
            if name in records:
                found.append((form, records[name]))
    columns = [f"{label}, 1 / 5" for label in SWEEP_SETS.values()]
    lines = [["form", "λ", "share of the gradient", *columns]]
    bare = [both_ends([without], data) for data in SWEEP_SETS]
    lines.append(["none (DSL), dB", "0", "0", *bare])
    for form, record in found:
        cells: list[str] = []
        for data in SWEEP_SETS:
            gains = [score(record, data, at) - score(without, data, at) for at in (1, 5)]
            cells.append(" / ".join(f"{gain:+.2f}" for gain in gains))
        lines.append([form, f"{record['options']['psd_weight']:g}", mean_share(record), *cells])
    return table(lines)


def mean_share(record: Record) -> str:
    """Return the share of self-distillation in the blocks' gradient, its mean over the log."""
    shares = [line["psd_share"] for line in record["scores"] if "psd_share" in line]
    shares += record.get("psd_shares", [])  # those on lines without scores
    return f"{100 * fmean(shares):.1f} %" if shares else "not logged"


# --- classifiers of digits: self-distillation, a convolutional network, other methods, exits

# what each run of cnn_digits.py changes, by what follows cnn-digits- in its record's name
CNN_CHANGES = {
    "base": "none: 100 steps, rate 1e-3, 32 channels, weights 1/6",
    "steps": "400 steps",
    "rate": "rate 5e-3",
    "width": "64 channels",
    "equal": "weights 1 for every depth",
    "half": "weight 1/2 for the deepest",
    "most": "weight 9/10 for the deepest",
    "group": "GroupNorm in the blocks",
    "none": "no normalisation in the blocks",
    "head-shared": "BatchNorm in the shared head",
    "head-recalibrated": "the same, statistics measured for each depth",
    "adapters": "a 1×1 convolution for each depth",
    "positions": "the head sees all positions",
    "rate-steps": "400 steps, rate 5e-3",
    "long-positions": "400 steps, all positions",
}


def spread_cell(value: Mapping[str, Any], form: str = ".1f") -> str:
    """Return the mean and the standard deviation of several seeds, as a table of a run has them."""
    return f"{value['mean']:{form}} ± {value['spread']:.1f}"


def sweep_by_form(records: Records, prefix: str) -> list[tuple[str, Record]]:
    """Return each record of a sweep of self-distillation behind its form, by rising weight."""
    found: list[tuple[str, Record]] = []
    for form in ("norm", "squared", "power2", "cosine"):
        of_form = [each for name, each in records.items() if name.startswith(f"{prefix}-{form}-")]
        of_form.sort(key=lambda record: record["options"]["psd_weight"])
        found += [(form, record) for record in of_form]
    return found


def digits_sweep(records: Records) -> str:
    """Forms and weights of the self-distillation on digits, beside deep supervision alone."""
    found = sweep_by_form(records, "digits-psd")
    first = found[0][1]["table"]
    depths = list(first["accuracy"]["dsl"])
    lines = [["form", "λ", "share of the gradient", *(f"depth {depth}" for depth in depths)]]
    accuracy = first["accuracy"]["dsl"]
    lines.append(["none (DSL), %", "0", "0", *(spread_cell(accuracy[depth]) for depth in depths)])
    for form, record in found:
        (difference,) = record["table"]["differences"].values()
        weight = f"{record['options']['psd_weight']:g}"
        cells = [spread_cell(difference[depth], "+.1f") for depth in depths]
        lines.append([form, weight, mean_share(record), *cells])
    return table(lines)


def language_sweep(records: Records) -> str:
    """Forms and weights of the self-distillation of a language model, beside DSL alone."""
    of_dsl = records["gpt-psd-dsl"]["table"]["bits_per_byte"]["elastic"]
    lines = [["form", "λ", "share of the gradient", *(f"depth {depth}" for depth in of_dsl)]]
    lines.append(["none (DSL), bits", "0", "0", *(f"{bits:.3f}" for bits in of_dsl.values())])
    second_seed = ("none (DSL), seed 1", records["gpt-psd-dsl-seed1"])
    for label, record in [second_seed, *sweep_by_form(records, "gpt-psd")]:
        bits = record["table"]["bits_per_byte"]["elastic"]
        share = "0" if record["options"]["psd_weight"] == 0 else mean_share(record)
        differences = [f"{bits[depth] - of_dsl[depth]:+.3f}" for depth in of_dsl]
        lines.append([label, f"{record['options']['psd_weight']:g}", share, *differences])
    return table(lines)


def cnn_factors(records: Records) -> str:
    """A convolutional network on digits: what each change does to an elastic one."""
    lines = [
        [
            "changed",
            "ordinary, full depth, %",
            "elastic − ordinary",
            "one block alone, %",
            "elastic − alone, depth 1",
        ]
    ]
    for name, label in CNN_CHANGES.items():
        record = records.get(f"cnn-digits-{name}")
        if record is None:  # not trained yet
            continue
        accuracy = record["table"]["accuracy"]
        differences = record["table"]["differences"]
        deepest = str(record["options"]["num_blocks"])
        lines.append(
            [
                label,
                spread_cell(accuracy["ordinary"][deepest]),
                spread_cell(differences["full depth"], "+.1f"),
                spread_cell(accuracy["single"]["1"]),
                spread_cell(differences["depth 1"], "+.1f"),
            ]
        )
    return table(lines)


def head_to_head(records: Records) -> str:
    """Ways to train one network for every depth, each written with this library's pieces."""
    record = records["head-to-head"]
    methods = record["table"]["methods"]
    depths = list(methods["alone"]["accuracy"])
    lines = [["test accuracy, %", *(f"depth {depth}" for depth in depths), "mean of all depths"]]
    for name in record["options"]["methods"]:  # in the order of the recipe
        method = methods[name]
        accuracy = method["accuracy"]
        by_seed = zip(*(accuracy[depth]["seeds"] for depth in depths), strict=True)
        means = [fmean(each) for each in by_seed]
        of_all = {"mean": fmean(means), "spread": stdev(means)}
        cells = [spread_cell(accuracy[depth]) for depth in depths]
        lines.append([method["label"], *cells, spread_cell(of_all)])
    return table(lines)


def measured_exits(records: Records) -> str:
    """Accuracy and time of a classifier with exits, beside fixed depths and smaller networks."""
    ways: dict[str, list[Record]] = records["exits-digits"]["ways"]
    full_name = [name for name in ways if name.startswith("elastic, depth")][-1]
    full = mean_times(ways[full_name])
    lines = [
        [
            "",
            "accuracy, %",
            "mean depth",
            "an image: median, ms",
            "95th percentile, ms",
            "images a second in batches",
            "times the full net's",
        ]
    ]
    for name, runs in ways.items():
        accuracy = [run["accuracy"] for run in runs]
        times = mean_times(runs)
        lines.append(
            [
                name,
                spread_cell({"mean": fmean(accuracy), "spread": stdev(accuracy)}),
                f"{fmean(run['mean_depth'] for run in runs):.2f}",
                f"{times['single_ms']:.2f}",
                f"{times['single_ms_95']:.2f}",
                f"{1000 / times['batch_ms']:,.0f}",
                f"{full['batch_ms'] / times['batch_ms']:.2f}",
            ]
        )
    return table(lines)


def mean_times(runs: Sequence[Record]) -> dict[str, float]:
    """Return the mean over the runs of each time of a way."""
    names = ("single_ms", "single_ms_95", "batch_ms")
    return {name: fmean(run[name] for run in runs) for name in names}


# --- studies/alone.md and models.md


def comparison(records: Records) -> str:
    """Elastic networks beside one cut short and one network for each depth, at one budget."""
    alone = alone_by_depth(records)
    runs = {kind: seeds_of(records, f"x4-{kind}") for kind in KINDS}
    parts: list[str] = []
    for data in SETS:
        limit = {depth: mean_score(found, data, depth) for depth, found in alone.items()}
        lines = [
            [f"{data} x4", *depth_headers(alone)],
            ["SS, a network for each depth", *decibels(limit.values())],
        ]
        for kind, found in runs.items():
            lines += comparison_rows(kind, found, data, limit)
        lines += published_comparison(records["published"], data, depths=list(limit))
        parts.append(table(lines))

    every = [record for found in (*alone.values(), *runs.values()) for record in found]
    budgets = sorted({budget(record) for record in every})
    parts.append(
        f"PSNR-Y in dB; {' or '.join(budgets)} for each network. "
        "Regret: elastic minus that depth alone, each the mean of its seeds. In brackets: the "
        "paper's networks, Tables 4 and 5, trained in full."
    )
    return "\n".join(parts)


def comparison_x3(records: Records) -> str:
    """The ways to train one network for every depth at x3, beside Tables 4 and 5 of the paper."""
    depths = range(1, 6)
    runs = {name: seeds_of(records, f"x3-{kind}") for kind, name in KINDS_AT_X3.items()}
    parts: list[str] = []
    for data in OPEN_SETS:
        lines = [[f"{data} x3", *depth_headers(depths)]]
        for name, found in runs.items():
            for record in found:
                if data not in sets_of(record):
                    continue
                cells = decibels(score(record, data, depth) for depth in depths)
                lines.append([f"{name}, seed {record['options']['seed']}", *cells])
        lines += published_comparison(records["published"], data, depths, scale=3)
        parts.append(table(lines))
    (shared_budget,) = {budget(record) for found in runs.values() for record in found}
    parts.append(
        f"PSNR-Y in dB; {shared_budget}, on `train_free`. In brackets: the paper's networks, "
        "trained in full."
    )
    return "\n".join(parts)


def published_comparison(
    published: Record, data: str, depths: Sequence[int], scale: int = 4
) -> list[list[str]]:
    """Return what the paper prints of its own comparison: a row for each way of training."""
    rows: list[list[str]] = []
    for label, (method, table_number) in PUBLISHED_KINDS.items():
        cells: list[str] = []
        for depth in depths:
            printed = printed_scores(
                published, method, scale, table_number=table_number, blocks=depth
            )
            cells.append(f"({printed[data]['psnr']:.2f})" if data in printed else "")
        rows.append([label, *cells])
    return rows


def comparison_rows(
    kind: str, found: Sequence[Record], data: str, limit: Mapping[int, float]
) -> list[list[str]]:
    """Return a row for each seed of one kind, and one for what it loses beside the limit."""
    rows: list[list[str]] = []
    for record in found:
        scores = [score(record, data, depth) for depth in limit]
        rows.append([f"{KINDS[kind]}, seed {record['options']['seed']}", *decibels(scores)])
    if found and kind != "ss":  # of "ss" only the deepest depth is trained, and that is the limit
        cells: list[str] = []
        for depth, best in limit.items():
            regret = round(mean_score(found, data, depth) - best, 2)
            cells.append(f"{regret + 0.0:+.2f}")  # + 0.0: no -0.00
        rows.append([f"{KINDS[kind]}: regret", *cells])
    return rows


def shipped(records: Records) -> str:
    """Costs, PSNR and SSIM per depth of every packaged network, beside published ones."""
    published = records["published"]
    reprinted = records["reprinted"]
    parts: list[str] = []
    for name, weights in SHIPPED.items():
        record = records[name]
        scale, _, _ = name.partition("-")  # "x4" of "x4-published"
        lines = [[f"`{weights}`, depth", "parameters", "GMACs", *ALL_SETS]]
        lines += our_rows(record, published, scale)
        if name in SCALES:  # published methods stand once for each scale
            lines += published_rows(published_methods(published, reprinted, scale))
        parts.append(table(lines))
        parts.append(f"{budget(record)}{beginning(record)}; GMACs for an output of 1280x720.")
        parts.append(f"{set14_note(record, published, scale)}\n")
    authors = [f"{name}: {method['source']}" for name, method in reprinted["methods"].items()]
    parts.append(
        "In brackets: published PSNR. ASRN and bicubic interpolation, and other networks where "
        f"Table 1 is named: Tables 1 and 5 of {published['source']}. Reprinted: "
        f"{reprinted['source']} ({'; '.join(authors)})."
    )
    return "\n".join(parts)


def set14_note(record: Record, published: Record, scale: str) -> str:
    """Return the sentence that stands beside every comparison on Set14 with published numbers."""
    theirs = printed_bicubic(published, scale)["Set14"]["psnr"]
    ours = score(record, "Set14", None)
    return (
        f"On Set14 published bicubic interpolation has {theirs:.2f} dB and ours {ours:.2f}, as a "
        "file of the papers differs: see [gains](bicubic.md#gains-over-bicubic-interpolation)."
    )


def over_bicubic(records: Records) -> str:
    """What the packaged networks and published ones gain over bicubic, each over its own."""
    published = records["published"]
    parts: list[str] = []
    for scale in SCALES:
        record = records[scale]
        measured = [data for data in ALL_SETS if data in sets_of(record)]
        lines = [[f"{scale}, gain over bicubic (dB)", *measured]]
        for depth in depths_of(record):
            theirs = published_scores(published, scale, depth)
            cells: list[str] = []
            for data in measured:
                ours = score(record, data, depth) - score(record, data, None)
                in_brackets = published_gain(published, scale, data, theirs)
                cells.append(f"{ours:+.2f}{in_brackets}")
            lines.append([f"depth {depth}", *cells])
        for method in published_methods(published, records["reprinted"], scale):
            cells = [
                published_gain(published, scale, data, method.psnr).strip() for data in measured
            ]
            lines.append([method.label, *cells])
        parts.append(table(lines))
    return "\n".join(parts).rstrip()


def published_gain(published: Record, scale: str, data: str, scores: Mapping[str, float]) -> str:
    """Return in brackets what published PSNR gains over published bicubic; empty if not printed."""
    if data not in scores:
        return ""
    gain = scores[data] - printed_bicubic(published, scale)[data]["psnr"]
    return f" ({gain:+.2f})"


def our_rows(record: Record, published: Record, scale: str) -> list[list[str]]:
    """Return a row for bicubic and for each depth, with what is published of the same."""
    measured = sets_of(record)
    costs: dict[int | None, list[str]] = {None: ["bicubic", "", ""]}
    for depth, cost in costs_alone(record).items():
        costs[depth] = [str(depth), f"{cost.parameters:,}", f"{cost.macs / 1e9:.2f}"]

    rows: list[list[str]] = []
    for depth, cells in costs.items():
        row = list(cells)
        theirs = published_scores(published, scale, depth)
        for data in ALL_SETS:
            in_brackets = f" ({theirs[data]:.2f})" if data in theirs else ""
            if data not in measured:
                row.append(f"–{in_brackets}")
                continue
            ssim = score(record, data, depth, "ssim")
            row.append(f"{score(record, data, depth):.2f} / {ssim:.4f}{in_brackets}")
        rows.append(row)
    return rows


def published_scores(published: Record, scale: str, depth: int | None) -> dict[str, float]:
    """Return the published PSNR of ASRN at a depth, or of bicubic, by data set."""
    if depth is None:
        printed = printed_bicubic(published, scale)
    else:
        printed = printed_asrn(published, scale, depth)
    return {data: scores["psnr"] for data, scores in printed.items()}


def published_rows(methods: Iterable[Method]) -> list[list[str]]:
    """Return a row for each published method of a scale."""
    rows: list[list[str]] = []
    for method in methods:
        parameters = "" if method.parameters is None else short_count(method.parameters)
        psnr = method.psnr
        cells = [f"({psnr[data]:.2f})" if data in psnr else "" for data in ALL_SETS]
        rows.append([method.label, parameters, "", *cells])
    return rows


# --- studies/paper.md: the paper as printed


def read_with_care(records: Records) -> str:
    """The numbered places of the paper where a value is in doubt."""
    places = records["published"]["read_with_care"]
    return "\n".join(f"{place['number']}. {place['text']}" for place in places)


def not_said(records: Records) -> str:
    """What no sentence of the paper tells."""
    return "\n".join(f"- {topic}" for topic in records["published"]["not_said"])


def printed_depths(records: Records) -> str:
    """Every depth of the paper's networks: SS and DSL of Table 4, the complete one of Table 5."""
    chosen = [
        row
        for row in records["published"]["scores"]
        if row["table"] == 4 or (row["table"] == 5 and row["method"] == "ASRN")
    ]
    chosen.sort(key=lambda row: (row["scale"], row["method"], row["blocks"]))
    labels = [f"x{row['scale']}, {row['method']} {row['blocks']}B" for row in chosen]
    return printed_table(labels, chosen)


def printed_degradations(records: Records) -> str:
    """Table 2."""
    chosen = [row for row in records["published"]["scores"] if row["table"] == 2]
    labels = [f"{row['degradation']} x{row['scale']}, {row['method']}" for row in chosen]
    return printed_table(labels, chosen)


def printed_table(labels: Sequence[str], rows: Sequence[Record]) -> str:
    """Return rows as printed, and the notes of those that have to be read with care."""
    lines = [["", *ALL_SETS]]
    notes: list[str] = []
    for label, row in zip(labels, rows, strict=True):
        scores = row["scores"]
        cells: list[str] = []
        for data in ALL_SETS:
            in_cell = ""
            if data in scores:
                in_cell = f"{scores[data]['psnr']:.2f} / {scores[data]['ssim']:.4f}"
            cells.append(in_cell)
        lines.append([label, *cells])
        if "note" in row:
            notes.append(f"- {label}: {row['note']}")
    printed = table(lines).rstrip()
    if not notes:
        return printed
    return "\n".join([printed, "", *notes])


def printed_ablation(records: Records) -> str:
    """Table 3; a part whose mark the scan has lost counts as there."""
    lines = [["case", "without", "blocks", "channels", "PSNR (dB), Urban100 x3"]]
    for row in records["published"]["ablation"]:
        taken_out = [name for key, name in PART_NAMES.items() if row[key] is False]
        psnr = f"{row['psnr']:.2f}"
        cells = [", ".join(taken_out), row["mab_number"], row["channel_number"], psnr]
        lines.append([row["case"], *cells])
    return table(lines, left=2).rstrip()


# --- studies/parts.md


def block_parts(records: Records) -> str:
    """The cases of Table 3 that were trained, beside what it prints."""
    printed = {row["case"]: f"({row['psnr']:.2f})" for row in records["published"]["ablation"]}
    waiting = [
        str(case) for name, case in CASES.items() if case is not None and name not in records
    ]
    titles = ["without", "blocks", "channels", "parameters", "B100", "Urban100"]
    lines: list[list[object]] = [["case", *titles, "the paper's"]]
    runs = {name: records[name] for name in CASES if name in records}
    for name, record in runs.items():
        options = record["options"]
        taken_out = [PART_NAMES[part] for option, part in PARTS.items() if not options[option]]
        depth = options["num_blocks"]
        cells: list[object] = [", ".join(taken_out), depth, options["channels"]]
        cells.append(f"{score(record, 'B100', depth, 'parameters'):,}")
        cells += decibels(score(record, data, depth) for data in ("B100", "Urban100"))
        case = CASES[name]
        lines.append(["" if case is None else case, *cells, printed.get(case, "")])
    (shared_budget,) = {budget(record) for record in runs.values()}
    made = f"PSNR-Y in dB at x3; {shared_budget}, on `train_free`, one seed."
    if waiting:
        made += f" Cases not trained yet: {', '.join(waiting)}."
    return f"{table(lines, left=2)}\n{made}"


# --- studies/complexity.md and studies/large.md: what networks cost


def complexity(records: Records) -> str:
    """Parameters, MACs and time that recipes/complexity.py measured, beside Table 7."""
    record = records["complexity"]
    printed = {row["method"]: row for row in records["published"]["complexity"]}
    header = ["network", "parameters", "GMACs", "ms"]
    lines = [[*header, "Table 7: parameters", "FLOPs", "ms"]]
    for row in record["rows"]:
        theirs = printed.pop(IN_TABLE_7.get(row["network"], row["network"]), None)
        ours = [f"{row['parameters']:,}", f"{row['macs'] / 1e9:.2f}", f"{row['ms']:,.0f}"]
        lines.append([row["network"], *ours, *table_7_cells(theirs)])
    for method, theirs in printed.items():
        lines.append([method, "", "", "", *table_7_cells(theirs)])
    settings = record["settings"]
    side = settings["output_side"]
    made = (
        f"Ours: x{settings['scale']}, an output of {side}x{side}, processor time of one thread, "
        f"median of {settings['repeats']}; {record['machine']}."
    )
    return f"{table(lines)}\n{made}"


def table_7_cells(row: Record | None) -> list[str]:
    """Return the cells of a method of Table 7; empty for one that is not in it."""
    if row is None:
        return ["", "", ""]
    milliseconds = 1000 * row["seconds"]
    parameters = short_count(row["parameters"])
    return [parameters, f"{row['flops'] / 1e9:.1f}G", f"{milliseconds:.0f}"]


def flops(records: Records) -> str:
    """The FLOPs that Table 7 prints, beside those of the sizes that could be meant."""
    # GMACs by scale, number of blocks, size, and whether the head is folded
    counted: dict[tuple[int, int, str, bool], float] = {}
    rows = records["complexity"]["explaining"]
    smallest = min(row["lr_side"] for row in rows)
    for row in rows:
        size = "64x64 LR" if row["lr_side"] == smallest else "1024x1024 output"
        counted[row["scale"], row["blocks"], size, row["fold"]] = row["macs"] / 1e9
    printed = {row["method"]: row["flops"] / 1e9 for row in records["published"]["complexity"]}

    lines = [
        [
            "ASRN",
            "1024x1024 output, GMACs: plain head",
            "folded",
            "64x64 LR, GFLOPs at two a MAC: plain head",
            "folded",
            "printed",
        ]
    ]
    for blocks, method in ((5, "ASRN (Ours)"), (25, "ASRN (25B, Ours)")):
        for scale in (2, 3, 4):
            large = [counted[scale, blocks, "1024x1024 output", fold] for fold in (False, True)]
            small = [2 * counted[scale, blocks, "64x64 LR", fold] for fold in (False, True)]
            cells = [f"{giga:.1f}" for giga in large] + [f"{giga:.2f}" for giga in small]
            lines.append([f"x{scale}, {blocks} blocks", *cells, f"{printed[method]:.1f}G"])
    return table(lines).rstrip()


def printed_large(records: Records) -> str:
    """Table 6."""
    chosen = [row for row in records["published"]["scores"] if row["table"] == 6]
    labels: list[str] = []
    for row in chosen:
        blocks = "" if row["blocks"] is None else f" {row['blocks']}B"
        labels.append(f"x{row['scale']}, {row['method']}{blocks}, {short_count(row['parameters'])}")
    return printed_table(labels, chosen)


def training_steps(records: Records) -> str:
    """Counts, memory and time of one training step of deep networks."""
    record = records["training-steps"]
    printed: dict[int, str] = {}  # by number of blocks
    for row in records["published"]["scores"]:
        is_of_asrn = row["table"] in (5, 6) and row["scale"] == 4 and row["blocks"] is not None
        if is_of_asrn and row["parameters"] is not None:
            printed[row["blocks"]] = short_count(row["parameters"])
    lines = [["x4", "parameters", "published", "activations of the blocks", "memory (MB)", "s"]]
    for row in record["rows"]:
        kept = "computed again" if row["checkpoint_blocks"] else "kept"
        cells = [f"{row['parameters']:,}", printed.get(row["blocks"], ""), kept]
        megabytes = f"{row['bytes'] / 1e6:,.0f}"
        lines.append([f"{row['blocks']} blocks", *cells, megabytes, f"{row['ms'] / 1000:.1f}"])
    settings = record["settings"]
    repeats = settings["repeats"]
    measured = "measured once" if repeats == 1 else f"median of {repeats}"
    made = (
        f"One step of batch {settings['batch_size']}, patches of {settings['patch_size']}, a "
        "prediction after every block, in float32. Memory: by how much the process grew at most; "
        f"time: processor time of one thread, {measured}; {record['machine']}."
    )
    return f"{table(lines)}\n{made}"


# --- models.md


def cards(records: Records) -> str:
    """What differs between the packaged files: a model card for each."""
    parts: list[str] = []
    for name, weights in SHIPPED.items():
        rows = card_rows(name, records[name], records["presets"], runs_before(records, name))
        parts.append(f"## `{weights}.safetensors`\n\n{table([['', ''], *rows], left=2)}")
    return "\n".join(parts).rstrip()


def beginning(record: Record) -> str:
    """Return what a run began with, to follow its budget; nothing for random weights."""
    if "after" in record:
        return f", started from the end of {record['after']}"
    init = record["options"]["init"]
    return f", started from {Path(init).stem}" if init else ""


def runs_before(records: Records, name: str) -> Records:
    """Return the records of the runs that a run went on from, the first run first."""
    before: Records = {}
    while "after" in records[name]:
        name = records[name]["after"]
        before = {name: records[name], **before}
    return before


def card_rows(
    name: str, record: Record, presets: Presets, before: Records | None = None
) -> list[list[str]]:
    """Return the rows of one model card; `before` holds the runs that its run went on from."""
    options = record["options"]
    skip = "" if options["skip"] == "none" else f", skip {options['skip']}"
    network = f"ASRN x{options['scale']}, {options['num_blocks']} blocks of {options['channels']}"
    scores = " ".join(decibels(score(record, "Set5", depth) for depth in depths_of(record)))
    hours = record["scores"][-1]["seconds"] / 3600
    # a run that starts from trained weights scores them first, as step 0; it does not keep them
    validations = [line for line in record["scores"] if line["step"] > 0]
    best = max(validations, key=lambda line: sum(line["psnr"].values()))
    if "after" in record:  # where a repetition of the earlier run, under its record's name, writes
        options = options | {"init": f"runs/{record['after']}/{Path(options['init']).name}"}
    photographs: list[list[str]] = []
    if "photographs" in record:  # runs on photographs whose terms are known
        photographs.append(["photographs", licence_line(record["photographs"])])
    kept = f"step {best['step']:,}"
    if len(validations) > 1:
        kept += ", whose mean over depths on the held-out photographs was the best"
    if "interpolated" in record:  # what ships lies between the start of the training and its end
        way = record["interpolated"]
        kept += (
            f"; what ships lies [{way['share']:.0%} of the way](training.md#between-two-networks) "
            f"to it from `{way['start']}`"
        )
        if "head_share" in way:
            kept += f", the shared head {way['head_share']:.0%}"
    return [
        ["network", f"{network}{skip}"],
        [
            "Set5 PSNR-Y by depth (dB)",
            f"{scores}; [every number](studies/packaged.md)",
        ],
        *[
            ["went on from", f"[{each}.json](results/{each}.json): {budget(run)}"]
            for each, run in (before or {}).items()
        ],
        ["budget", f"{budget(record)}; {hours:.1f} hours"],
        ["kept", kept],
        *photographs,
        ["hardware", record["machine"]],
        ["seed", options["seed"]],
        ["command", f"`python recipes/asrn_div2k.py {changed(options, presets)}`"],
        ["log", f"[{name}.json](results/{name}.json)"],
    ]


def compressed(records: Records) -> str:
    """Gains over bicubic interpolation of the same compressed images, by JPEG quality."""
    parts: list[str] = []
    for scale in ("x2", "x4"):
        nets = {f"asrn-{scale}": scale, f"asrn-{scale}:photo": f"{scale}-photo"}
        header = [f"{JPEG_SET}, JPEG quality"]
        for label in nets:
            header += [f"`{label}`, depth {depth}" for depth in JPEG_DEPTHS]
        lines = [header]
        for quality, data in jpeg_sets().items():
            cells: list[str] = []
            for name in nets.values():
                start = score(records[name], data, None)
                for depth in JPEG_DEPTHS:
                    cells.append(f"{score(records[name], data, depth) - start:+.2f}")
            lines.append([quality, *cells])
        parts.append(table(lines))
    return "\n".join(parts).rstrip()


def behind(records: Records) -> str:
    """What the networks for compressed images lose on images that are not compressed, by depth."""
    lines: list[list[str]] = []
    for scale in ("x2", "x4"):
        clean, photo = records[scale], records[f"{scale}-photo"]
        depths = depths_of(photo)
        if not lines:
            lines.append(["not compressed (dB)", "", *depth_headers(depths)])
        for data in OPEN_SETS:
            losses = [score(photo, data, depth) - score(clean, data, depth) for depth in depths]
            cells = [f"{loss:+.3f}" for loss in losses]
            lines.append([f"`asrn-{scale}:photo` less `asrn-{scale}`", data, *cells])
    return table(lines, left=2)


def between(records: Records) -> str:
    """Gains of networks between the weights for clean photographs and for compressed ones, x4."""
    rows: list[dict[str, Any]] = records["photo-shares-x4"]["rows"]
    start = {row["data"]: row["psnr"] for row in rows if row["depth"] is None}
    header = ["x4, share"]
    cells: dict[str, list[str]] = {}  # by share
    for data in start:
        _, _, quality = data.partition("-q")
        label = f"quality {quality}" if quality else "not compressed"
        header += [f"{label}, depth {depth}" for depth in JPEG_DEPTHS]
        for row in rows:
            if row["data"] == data and row["depth"] in JPEG_DEPTHS:
                gain = row["psnr"] - start[data]
                cells.setdefault(row["network"], []).append(f"{gain:+.2f}")
    return table([header, *([share, *gains] for share, gains in cells.items())])


def jpeg_sets() -> dict[str, str]:
    """Return the names of the compressed copies of a data set in records, by quality."""
    return {"not compressed": JPEG_SET} | {f"{each}": f"{JPEG_SET}-q{each}" for each in QUALITIES}


def replaced(records: Records) -> str:
    """The packaged networks beside those that they replaced, on photographs held out of both."""
    depths = range(1, 6)
    lines = [["", *depth_headers(depths)]]
    for scale in SCALES:
        new, old = records[scale], records[f"{scale}-train"]
        for data, of in HELD_OUT_SETS.items():
            scores = [score(new, data, depth) for depth in depths]
            before = [score(old, data, depth) for depth in depths]
            cells: list[str] = []
            for psnr, psnr_before in zip(scores, before, strict=True):
                difference = round(psnr - psnr_before, 2) + 0.0  # no -0.00
                cells.append(f"{psnr:.2f} ({difference:+.2f})")
            lines.append([f"{scale}, {of}", *cells])
    return table(lines).rstrip()


# --- asrn.md


def counts(records: Records) -> str:
    """Parameters that the paper prints, beside ours."""
    from elasticnet.sr import asrn

    published = records["published"]
    lines = [["network", "published", "where", "ours"]]
    for scale in SCALES:
        net = asrn(scale_number(scale))
        for depth in reversed(net.taps):
            row = printed_count(published, scale_number(scale), depth)
            if row is not None:
                label = "1 block" if depth == 1 else f"{depth} blocks"
                parameters = parameters_of(net.truncate(depth))
                lines.append(count_row(f"{scale}, {label}", row, parameters))
    lines.append(part_row(published, "x2, shared head", "B", parameters_of(asrn(2).head)))
    module_a = asrn(2, upsampler="subpixel").head
    lines.append(part_row(published, "x2, module A", "A", parameters_of(module_a)))
    for row in published["scores"]:
        if row["table"] == 6 and row["blocks"] is not None:
            net = asrn(row["scale"], row["blocks"])
            label = f"x{row['scale']}, {row['blocks']} blocks"
            lines.append(count_row(label, row, parameters_of(net)))
    made = "Damaged: the cell cannot be read in our copy of the paper."
    return f"{table(lines)}\n{made}"


def printed_count(published: Record, scale: int, depth: int) -> Record | None:
    """Return the row that prints an ASRN's parameters: of Table 5, or of Table 1 at x2."""
    for table_number in (5, 1):
        for row in published["scores"]:
            found = (row["table"], row["method"], row["scale"], row["blocks"])
            if found == (table_number, "ASRN", scale, depth):
                return row
    return None


def count_row(label: str, row: Record, parameters: int) -> list[str]:
    """Return a row of the table of counts."""
    printed = "damaged" if row["parameters"] is None else short_count(row["parameters"])
    return [label, printed, f"Table {row['table']}", f"{parameters:,}"]


def part_row(published: Record, label: str, module: str, parameters: int) -> list[str]:
    """Return a row of the table of counts for a module whose count stands in a sentence."""
    for sentence in published["sentences"]:
        if sentence["topic"] == f"upsample parameters {module}":
            [printed] = re.findall(rf"module {module}\D*?(\d+K)", sentence["quote"])
            section, _, _ = sentence["section"].partition(" ")
            return [label, printed, f"Section {section.rstrip('.')}", f"{parameters:,}"]
    raise KeyError(f"upsample parameters {module}")


def parameters_of(module: nn.Module) -> int:
    """Return how many parameters a module has."""
    return sum(parameter.numel() for parameter in module.parameters())


def short_count(parameters: int) -> str:
    """Return a count as the paper prints it: 244K, 1.8M."""
    if parameters >= 1_000_000:
        return f"{parameters / 1e6:.1f}M"
    return f"{parameters // 1000}K"


# --- speed.md


def cpu(records: Records) -> str:
    """What bench_cpu.py measured: every way and depth, then variations at the deepest depth."""
    record = records["cpu"]
    rows = record["rows"]
    deepest = max(row["depth"] for row in rows)
    rows_by_label: dict[str, list[Record]] = {}  # each shallowest first
    for row in rows:
        rows_by_label.setdefault(f"{row['way']}, {row['precision']}", []).append(row)

    rates = ["GMAC/s at the deepest", "of the peak"]
    columns = [f"{header}, ms" for header in depth_headers(range(1, deepest + 1))]
    lines = [["", *columns, *rates, "depth 1 of the deepest"]]
    variations = [[f"eager, depth {deepest}", "ms", "GMAC/s", "of the peak"]]
    for label, found in rows_by_label.items():
        at_deepest = found[-1]
        was_run_at_every_depth = len(found) == deepest
        if was_run_at_every_depth:
            milliseconds = [f"{row['ms']:.0f}" for row in found]
            share = f"{found[0]['of_deepest']:.0%}"
            lines.append([label, *milliseconds, *rate_cells(at_deepest), share])
        else:
            variations.append([label, f"{at_deepest['ms']:.0f}", *rate_cells(at_deepest)])
    for row in records["cpu-memory-given-back"]["rows"]:
        if row["way"] == "eager" and row["depth"] == deepest:
            label = f"memory given back, {row['precision']}"
            variations.append([label, f"{row['ms']:.0f}", *rate_cells(row)])

    products = record["product_gmacs_per_second"]
    peaks = "; ".join(f"{name} {rate:.0f}" for name, rate in products.items())
    repeats = record["settings"]["repeats"]
    made = f"Matrix products, GMAC/s: {peaks}. {record['machine']}; {repeats} rounds."
    return f"{table(lines)}\n{made}\n\n{table(variations)}".rstrip()


def rate_cells(row: Record) -> list[str]:
    """Return how fast it computes, and its share of what the machine's matrix products reach."""
    return [f"{row['gmacs_per_second']:.0f}", f"{row['of_peak']:.0%}"]


def layout(records: Records) -> str:
    """What bench_layout.py measured: layouts, dtypes and `Upscaler`, then ONNX Runtime."""
    lines = [["one image, depth 5", "dtype", "ms", "times the bare network"]]
    for name in ("layout", "layout-onnx"):
        for row in records[name]["rows"]:
            is_onnx = row["way"].startswith("onnx")
            if is_onnx == (name == "layout-onnx"):  # the rest of the second run is in the first
                cells = [row["way"], row["dtype"], f"{row['ms']:.0f}", f"{row['of_bare']:.2f}"]
                lines.append(cells)
    record = records["layout"]
    machine = record["machine"].removesuffix(", float32")
    made = f"{machine}; {record['settings']['rounds']} rounds of processes that took turns."
    return f"{table(lines, left=2)}\n{made}"


def peers(records: Records) -> str:
    """What bench_peers.py measured on two kinds of processors: ASRN beside other small networks."""
    parts: list[str] = []
    for name in ("peers", "peers-avx2"):
        record = records[name]
        lines = [["network", "parameters", "dtype", "ms", "times ASRN at depth 5"]]
        for row in record["rows"]:
            numbers = [f"{row['ms']:.0f}", f"{row['times_ours']:.2f}"]
            lines.append([row["network"], f"{row['parameters']:,}", row["dtype"], *numbers])
        parts.append(f"{table(lines)}\n{machine_and_rounds(record)}")
    return "\n\n".join(parts)


def block_ways(records: Records) -> str:
    """What bench_block.py measured: other ways to run one block."""
    record = records["block"]
    found: dict[str, list[str]] = {}
    for row in record["rows"]:  # all ways in float32, then all in bfloat16
        found.setdefault(row["way"], [row["way"]])
        found[row["way"]] += [f"{row['ms']:.1f}", f"{row['of_now']:.2f}"]
    title = ["one block", "float32, ms", "times as it is", "bfloat16, ms", "times as it is"]
    return f"{table([title, *found.values()])}\n{machine_and_rounds(record)}"


def machine_and_rounds(record: Record) -> str:
    """Return the line below a table of times."""
    machine = record["machine"].removesuffix(", float32")
    return f"{machine}; {record['settings']['rounds']} rounds."


# --- figures


def draw(records: Records) -> None:
    """Draw all figures into docs/images."""
    images = DOCS / "images"
    images.mkdir(exist_ok=True)
    draw_retrofit(records, images)
    draw_depths(records, images)
    draw_parameters(records, images)
    draw_sizes(records, images)
    draw_crops(images)
    draw_crops_beside_ss(images)


def draw_retrofit(records: Records, images: Path) -> None:
    """EDSR and RCAN, cut and elastic."""
    from elasticnet.sr.benchmark.figures import elastic_curve

    for model in ("edsr", "rcan"):
        record = records[f"retrofit-{model}"]
        found = curves(record)
        elastic_curve(
            images / f"retrofit_{model}.png",
            {ELASTIC: found.elastic, CUT: found.cut},
            found.baselines,
            title=f"{model.upper()}, {retrofit_title(record)}",
            ylabel="PSNR-Y (dB)",
        )


def draw_depths(records: Records, images: Path) -> None:
    """ASRN by depth, beside the ordinary network cut short and networks trained alone."""
    from elasticnet.sr.benchmark.figures import elastic_curve

    def on_set5(name: str) -> dict[int, float]:
        found = seeds_of(records, name)
        return {depth: mean_score(found, "Set5", depth) for depth in depths_of(found[0])}

    elastic = {f"elastic, {DSL_PSD}": on_set5("x4-full")}
    alone = {
        depth: mean_score(found, "Set5", depth) for depth, found in alone_by_depth(records).items()
    }
    title = f"ASRN, Set5 x4, {records['x4-full']['options']['steps']:,} steps"
    cut = "SS, cut short"
    elastic_curve(
        images / "asrn_x4_alone.png",
        {
            **elastic,
            "equal weights": on_set5("x4-normalised"),
            "DSL, 9/10 on the deepest": on_set5("x4-dsl-nine"),
            "trained alone": alone,
        },
        title=title,
        ylabel="PSNR-Y (dB)",
    )
    elastic_curve(
        images / "asrn_x4_cut.png",
        {**elastic, cut: on_set5("x4-ss")},
        {"bicubic": score(records["x4-full"], "Set5", None)},
        title=title,
        ylabel="PSNR-Y (dB)",
    )
    elastic_curve(
        images / "asrn_x3_cut.png",
        {"elastic, the preset best": on_set5("x3-best"), cut: on_set5("x3-ss")},
        {"bicubic": score(records["x3-best"], "Set5", None)},
        title=f"ASRN, Set5 x3, {records['x3-best']['options']['steps']:,} steps",
        ylabel="PSNR-Y (dB)",
    )


def draw_parameters(records: Records, images: Path) -> None:
    """PSNR against parameters: every depth of ours and of the paper's, and other networks."""
    from elasticnet.sr.benchmark.figures import parameter_dots

    published = records["published"]
    theirs: Dots = {}
    for row in published["scores"]:
        is_another = row["table"] == 1 and row["scale"] == 4 and row["blocks"] is None
        if is_another and row["parameters"] is not None and FIGURE_SET in row["scores"]:
            theirs[row["method"]] = (row["parameters"], row["scores"][FIGURE_SET]["psnr"])

    ours: Dots = {}
    paper: Dots = {}
    for depth, cost in costs_alone(records["x4"]).items():
        ours[f"{depth}"] = (cost.parameters, score(records["x4"], FIGURE_SET, depth))
        # Ours has the parameters of the published network at each depth.
        printed = printed_asrn(published, "x4", depth)[FIGURE_SET]
        paper[f"{depth}"] = (cost.parameters, printed["psnr"])
    parameter_dots(
        images / "asrn_x4_parameters.png",
        {
            "ours, by number of blocks": ours,
            "the paper's, by number of blocks": paper,
            "other networks, Table 1 of the paper": theirs,
        },
        log=True,
        title=f"{FIGURE_SET} x4",
        ylabel="PSNR-Y (dB)",
    )


def draw_sizes(records: Records, images: Path) -> None:
    """Small and large networks, as Fig. 13 of the paper shows them, each in a figure of its own."""
    from elasticnet.sr.benchmark.figures import parameter_dots

    series = sized_dots(records, data="Urban100")
    for name, is_shown in (("small", is_small), ("large", is_large)):
        shown: dict[str, Dots] = {}
        for label, dots in series.items():
            inside: Dots = {}
            for key, (parameters, psnr) in dots.items():
                if is_shown(parameters):
                    inside[key] = (parameters, psnr)
            if inside:
                shown[label] = inside
        path = images / f"sizes_{name}.png"
        is_wide = name == "large"  # from 1M to 9.5M, most of them near 1M
        parameter_dots(path, shown, log=is_wide, title="Urban100 x4", ylabel="PSNR-Y (dB)")


def sized_dots(records: Records, data: str) -> dict[str, Dots]:
    """Return parameters and PSNR at x4: of Tables 1, 5 and 6, and of the packaged network."""
    asrn: Dots = {}
    others: Dots = {}
    for row in records["published"]["scores"]:
        is_of_figure = row["table"] in (1, 5, 6) and row["scale"] == 4
        if not is_of_figure or row["parameters"] is None or data not in row["scores"]:
            continue
        dot = (row["parameters"], row["scores"][data]["psnr"])
        if row["blocks"] is None:
            others[row["method"]] = dot
        elif row["method"] == "ASRN":
            asrn[f"{row['blocks']}B"] = dot
    ours: Dots = {}
    for depth, cost in costs_alone(records["x4"]).items():
        ours[f"{depth}"] = (cost.parameters, score(records["x4"], data, depth))
    # By size, so that each label is put near its dot before those of its larger neighbours.
    others = dict(sorted(others.items(), key=lambda item: item[1]))
    return {"the paper's, by blocks": asrn, "other networks": others, "ours, by blocks": ours}


def is_small(parameters: float) -> bool:
    """Return whether a network belongs into the figure of small ones."""
    return parameters < SMALL_NETWORK


def is_large(parameters: float) -> bool:
    """Return whether a network belongs into the figure of large ones."""
    return parameters >= SMALL_NETWORK


def draw_crops(images: Path) -> None:
    """A piece of a photograph at every depth of the packaged network."""
    from elasticnet.sr import asrn
    from elasticnet.sr.benchmark import bicubic
    from elasticnet.sr.benchmark.figures import crop_comparison

    hr, lr = photo_pair(scale=4)
    crops = {"bicubic": bicubic(lr, 4), **by_depth("depth", asrn(4, pretrained=True), lr)}
    title = f"{PHOTO} x4 (scikit-image)"
    crop_comparison(images / "asrn_x4_crops.png", hr, crops, title=title)


def draw_crops_beside_ss(images: Path) -> None:
    """The same for a network trained for its deepest tap and cut short, above an elastic one."""
    from elasticnet.sr import asrn
    from elasticnet.sr.benchmark import bicubic
    from elasticnet.sr.benchmark.figures import crop_comparison

    hr, lr = photo_pair(scale=3)
    ss = elasticnet.load(DOCS / "results" / SS_WEIGHTS).with_taps(None)
    crops = {  # HR stands before the first of them, so that bicubic begins the second row
        **by_depth("SS, depth", ss, lr),
        "bicubic": bicubic(lr, 3),
        **by_depth("elastic, depth", asrn(3, pretrained=True), lr),
    }
    title = f"{PHOTO} x3 (scikit-image)"
    crop_comparison(images / "asrn_x3_ss_crops.png", hr, crops, title=title)


def photo_pair(scale: int) -> tuple[Image, Image]:
    """Return a photograph that may be published, and what is enlarged of it: HR and LR."""
    from elasticnet.sr.data import pairs_from_arrays, scikit_image_photos

    pairs = pairs_from_arrays({PHOTO: scikit_image_photos()[PHOTO]}, scale)
    return pairs.hr(0), pairs.lr(0)


def by_depth(name: str, net: nn.Module, lr: Image) -> dict[str, Image]:
    """Return what every depth of a network makes of an image, by name and depth."""
    from elasticnet.sr.benchmark import predict_depths

    return {f"{name} {depth}": image for depth, image in predict_depths(net, lr).items()}


# --- pages

# the sections of each page; a section is named as its function
PAGES: dict[str, tuple[FunctionType, ...]] = {
    "results.md": (overview,),
    "studies/packaged.md": (standing, shipped),
    "studies/bicubic.md": (over_bicubic, baselines, noise),
    "studies/alone.md": (comparison, comparison_x3),
    "studies/blur_and_noise.md": (degradations,),
    "studies/recipe.md": (choices,),
    "studies/photographs.md": (photographs,),
    "studies/regret.md": (exits_cost, exits_cost_of_8000_steps),
    "studies/distillation.md": (distillation_sweep,),
    "studies/ordinary.md": (retrofit,),
    "studies/other_tasks.md": (tasks,),
    "studies/growth.md": (growth,),
    "studies/parts.md": (block_parts,),
    "studies/complexity.md": (complexity, flops),
    "studies/large.md": (printed_large, training_steps),
    "studies/paper.md": (
        not_said,
        read_with_care,
        printed_depths,
        printed_degradations,
        printed_ablation,
    ),
    "studies/head_to_head.md": (head_to_head,),
    "studies/adaptive_tiles.md": (adaptive_tiles,),
    "guides/vit_digits.md": (digits_sweep,),
    "guides/language_models.md": (language_sweep,),
    "guides/cnn_digits.md": (cnn_factors,),
    "guides/exits.md": (measured_exits,),
    "models.md": (replaced, compressed, behind, between, cards),
    "asrn.md": (counts,),
    "speed.md": (cpu, layout, block_ways, peers),
}


def written(name: str, page: str, records: Records) -> str:
    """Return the page with every section between its two markers made anew."""
    for make in PAGES[name]:
        section = make.__name__
        begin = f"<!-- made by recipes/results.py: {section} -->"
        end = f"<!-- end: {section} -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"docs/{name}: expected the two markers of section {section!r} once")
        before, _, rest = page.partition(begin)
        _, ended, after = rest.partition(end)
        if not ended:
            raise ValueError(f"docs/{name}: the markers of section {section!r} are interchanged")
        page = f"{before}{begin}\n{make(records)}\n{end}{after}"
    return page


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="exit status 1 when a page is out of date"
    )
    return parser.parse_args(arguments)


def main(options: argparse.Namespace) -> None:
    """Write the pages and figures, or check the pages.

    Args:
        options: Of the command line.

    Raises:
        SystemExit: With status 1, if --check finds a page that is out of date.
        ValueError: A record, or a value in one, is missing, or the markers of a section are.
    """
    files = sorted((DOCS / "results").glob("*.json"))
    records = {path.stem: json.loads(path.read_text()) for path in files}
    try:
        outdated = outdated_pages(records)
    except KeyError as error:
        raise ValueError(
            f"docs/results/ has nothing named {error}: recipes/record.py takes records from runs"
        ) from error

    if options.check:
        for name in outdated:
            print(f"docs/{name} is out of date: run python recipes/results.py", file=sys.stderr)
        if outdated:
            raise SystemExit(1)
        return
    for name, new_text in outdated.items():
        write_atomic(DOCS / name, new_text)
    draw(records)


def outdated_pages(records: Records) -> dict[str, str]:
    """Return the new text of every page that would change, by its name."""
    outdated: dict[str, str] = {}
    for name in PAGES:
        page = (DOCS / name).read_text()
        new_text = written(name, page, records)
        if new_text != page:
            outdated[name] = new_text
    return outdated


if __name__ == "__main__":
    run_program(main, parse)
