"""Write the tables and figures of docs/results.md, models.md and speed.md from the measurements in
docs/results/.

    python recipes/results.py                      rewrite what stands between the markers in these
    pages python recipes/results.py --check              write nothing; exit status 1 when something
    is out of date

Numbers are never typed: every table is made of the JSON files that recipes/record.py takes from run
folders, and of what tests/benchmarks/bench_cpu.py writes; a test runs --check.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from types import FunctionType
from typing import Any

from elasticnet._files import write_atomic
from elasticnet._tables import table
from elasticnet.training.options import as_command

RECIPES = Path(__file__).parent
DOCS = RECIPES.parent / "docs"
SETS = ("Set5", "Set14", "B100")
ALL_SETS = (*SETS, "Urban100", "Manga109")
PHOTO = "astronaut"  # of those that scikit-image carries; by NASA, in the public domain
# record: weights
SHIPPED = {"x2": "asrn_x2", "x3": "asrn_x3", "x4": "asrn_x4", "x4-published": "asrn_x4_published"}
DSL_PSD = "DSL + PSD"
WITHOUT_EFFECT = ("out", "keep", "tensorboard", "save_every", "log_every")  # on what is trained
Records = dict[str, dict[str, Any]]
Presets = dict[str, dict[str, Any]]  # preset -> option -> value; records["presets"]


def decibels(scores: Iterable[float]) -> list[str]:
    return [f"{score:.2f}" for score in scores]


def gained(base: str, lines: Iterable[tuple[str, float, Sequence[float]]]) -> str:
    """A table of (label, PSNR of the input or of bicubic, PSNR by depth), with the gain in a row of
    its own.
    """
    rows = []
    for label, start, scores in lines:
        rows.append([f"{label}: PSNR (dB)", f"{start:.2f}", *decibels(scores)])
        rows.append([f"{label}: gain (dB)", "", *(f"{score - start:+.2f}" for score in scores)])
    return table([["", base, *(f"depth {depth}" for depth in range(1, len(rows[-1]) - 1))], *rows])


def psnr(record: dict[str, Any]) -> list[float]:
    """PSNR of every depth in the final table of a run."""
    return [row["psnr"] for row in record["table"]["rows"]]


def budget(record: dict[str, Any]) -> str:
    options = record["options"]
    return f"{options['steps']:,} steps, batch {options['batch_size']}, patches of {options['patch_size']}"


def tasks(records: Records) -> str:
    lines = []
    for name, setting in (("denoise", "noise_sigma"), ("deblur", "blur_sigma")):
        label = f"{name}, sigma {records[name]['options'][setting]:g}"
        lines.append((label, records[name]["table"]["input"]["psnr"], psnr(records[name])))
    made = f"{budget(records['denoise'])} each; scored on {records['denoise']['options']['valid']}."
    return f"{gained('input', lines)}\n{made}"


def degradations(records: Records) -> str:
    lines = []
    for record in (records["bd-x3"], records["dn-x3"]):
        scores = [score(record, "Set5", depth) for depth in depths_of(record)]
        lines.append((record["options"]["degradation"], score(record, "Set5", None), scores))
    return f"{gained('bicubic', lines)}\nSet5 x3; {budget(records['bd-x3'])} each."


def growth(records: Records) -> str:
    shallow, grown, longer = records["growth-3"], records["growth-5"], records["growth-3-longer"]
    depths = [row["depth"] for row in grown["table"]["rows"]]
    start = list(grown["scores"][0]["psnr"].values())

    def line(label: str, scores: Sequence[float]) -> list[str]:
        return [label, *decibels(scores), *[""] * (len(depths) - len(scores))]

    steps, more = shallow["options"]["steps"], grown["options"]["steps"]
    rows = [
        line(f"3 blocks, {steps:,} steps", psnr(shallow)),
        line("grown to 5, before training", start),
        line(f"grown to 5, {more:,} steps more", psnr(grown)),
        line(f"3 blocks, {more:,} steps more", psnr(longer)),
    ]
    made = f"PSNR-Y in dB on {grown['options']['valid']} x{grown['options']['scale']}; {budget(grown)} each time."
    return f"{table([['network', *(f'depth {depth}' for depth in depths)], *rows])}\n{made}"


CUT, ELASTIC = "ordinary, cut short", "elastic"
STEPS = {"train": "ordinary", "srcnn": "SRCNN", "tune": "elastic"}


def curves(record: dict[str, Any]) -> tuple[dict[str, dict[int, float]], dict[str, float]]:
    """PSNR by depth of the cut and the elastic network of recipes/sr_retrofit.py; its baselines."""
    found: dict[str, dict[int | None, float]] = {}
    for row in record["table"]["rows"]:
        found.setdefault(row["network"], {})[row["depth"]] = row["psnr"]
    lines = {"bicubic": found["bicubic"][None], "SRCNN": found["SRCNN"][1]}
    return {
        name: {depth: psnr for depth, psnr in found[name].items() if depth}
        for name in (ELASTIC, CUT)
    }, lines


def retrofit(records: Records) -> str:
    parts = []
    for model in ("edsr", "rcan"):
        record = records[f"retrofit-{model}"]
        by_depth, lines = curves(record)
        rows = [
            [f"{CUT} (dB)", *decibels(by_depth[CUT].values())],
            [f"{ELASTIC} (dB)", *decibels(by_depth[ELASTIC].values())],
            [
                f"{ELASTIC}, over SRCNN (dB)",
                *(f"{psnr - lines['SRCNN']:+.2f}" for psnr in by_depth[ELASTIC].values()),
            ],
        ]
        options, sizes = record["options"], record["table"]["network"][1]
        steps = ", ".join(f"{options[f'{kind}_steps']:,} {what}" for kind, what in STEPS.items())
        parts.append(
            f"{table([[model.upper(), *(f'depth {depth}' for depth in by_depth[CUT])], *rows])}\n"
            f"{', '.join(f'{name} {psnr:.2f}' for name, psnr in lines.items())}; {options['valid'][0]} "
            f"x{sizes['scale']}; {sizes['channels']} channels; steps: {steps}.\n\n"
            f"![{model.upper()}, cut and elastic](images/retrofit_{model}.png)"
        )
    return "\n\n".join(parts)


def score(record: dict[str, Any], data: str, depth: int | None, what: str = "psnr") -> float:
    """PSNR or SSIM of a depth (None: bicubic) on one of the sets that it was scored on."""
    return next(row[what] for row in record["sets"] if (row["data"], row["depth"]) == (data, depth))


def changed(options: dict[str, Any], presets: Presets, usual: dict[str, Any] | None = None) -> str:
    """Return what a run's options change of the usual ones, as a command line has it.

    The usual ones are by default those of the run's preset; it is then named, too.
    """
    base = presets[options["preset"]] if usual is None else usual
    # older records lack the options that were added since
    complete = {**options, **presets["paper"], **options}
    compared = {name: complete[name] for name in complete if name in base}
    unused = [] if options["variant"] == "full" else ["psd_weight"]
    words = as_command(compared, base, [*WITHOUT_EFFECT, *unused])
    return words if usual is not None else f"--preset {options['preset']} {words}"


def choices(records: Records) -> str:
    """The short trainings that decided on the recipe, by the photographs that were held out of the
    training images.
    """
    names = sorted(
        (name for name in records if name.startswith("choice-")),
        key=lambda name: int(name.split("-")[1]),
    )
    tried = [records[name] for name in names]
    presets = records["presets"]
    every = [presets["paper"] | record["options"] for record in tried]
    usual = {
        key: Counter(of[key] for of in every).most_common(1)[0][0]
        for key in sorted(set().union(*every))
    }
    rows = []
    for record in tried:
        held_out, label = record["scores"][-1]["psnr"], changed(record["options"], presets, usual)
        ends = [
            score(record, "Set5", int(depth)) for depth in sorted({min(held_out), max(held_out)})
        ]
        scores = [
            *[""] * (5 - len(held_out)),
            *decibels(held_out.values()),
            *[""] * (2 - len(ends)),
            *decibels(ends),
        ]
        rows.append([f"`{label}`" if label else "the usual options (below)", *scores])
    header = [
        "options",
        *(f"depth {depth}" for depth in range(1, 6)),
        "Set5, shallowest",
        "Set5, deepest",
    ]
    made = "PSNR-Y in dB, depths on the held-out photographs. What a row does not name:"
    return f"{table([header, *rows])}\n{made} `{changed(usual, presets)}`."


def seeds_of(records: Records, name: str) -> list[dict[str, Any]]:
    """The record of this name, and those of the same training with other seeds, by seed."""
    found = [
        record for key, record in records.items() if re.fullmatch(f"{name}(-seed[0-9]+)?", key)
    ]
    return sorted(found, key=lambda record: record["options"]["seed"])


def comparison(records: Records) -> str:
    """Elastic networks beside one that is cut short and beside one network for each depth, at one
    budget.
    """
    kinds = {
        "ss": "SS, cut short",
        "dsl": "DSL",
        "full": DSL_PSD,
        "normalised": f"{DSL_PSD}, equal weights",
    }
    kinds |= {"rising": f"{DSL_PSD}, rising, affine", "rising-dsl": "DSL, rising from 1/2, affine"}
    kinds |= {"dsl-nine": "DSL, 9/10 on the deepest", "skipless": f"{DSL_PSD}, no bicubic skip"}
    runs = {kind: seeds_of(records, f"x4-{kind}") for kind in kinds}
    alone = {depth: seeds_of(records, f"x4-alone-{depth}") for depth in range(1, 5)} | {
        5: runs["ss"]
    }
    parts = []
    for data in SETS:
        limit = [
            fmean(score(record, data, depth) for record in found) for depth, found in alone.items()
        ]
        rows = [["SS, a network for each depth", *decibels(limit)]]
        for kind, found in runs.items():
            scores = [[score(record, data, depth) for depth in alone] for record in found]
            for record, line in zip(found, scores, strict=True):
                rows.append([f"{kinds[kind]}, seed {record['options']['seed']}", *decibels(line)])
            if found and kind != "ss":
                regret = [
                    fmean(ours) - theirs for *ours, theirs in zip(*scores, limit, strict=True)
                ]
                rows.append(
                    [f"{kinds[kind]}: regret", *(f"{round(lost, 2) + 0.0:+.2f}" for lost in regret)]
                )
        parts.append(table([[f"{data} x4", *(f"depth {depth}" for depth in alone)], *rows]))
    budgets = {budget(record) for found in (*alone.values(), *runs.values()) for record in found}
    made = f"PSNR-Y in dB; {' or '.join(sorted(budgets))} for each network."
    return "\n".join(
        [*parts, f"{made} Regret: elastic minus that depth alone, each the mean of its seeds."]
    )


def depths_of(record: dict[str, Any]) -> list[int]:
    return sorted({row["depth"] for row in record["sets"]} - {None})


def shipped(records: Records) -> str:
    """Costs, PSNR and SSIM per depth of every packaged network, beside what is published of it and
    of others.
    """
    published, parts = records["published"], []
    for name, weights in SHIPPED.items():
        record, scale = records[name], name[:2]
        measured, costs = {row["data"] for row in record["sets"]}, {None: ["bicubic", "", ""]}
        for row in record["table"]["rows"]:
            costs[row["depth"]] = [
                str(row["depth"]),
                f"{row['parameters']:,}",
                f"{row['macs'] / 1e9:.2f}",
            ]
        rows, asrn = [], published["asrn"].get(scale, {})
        for depth, cells in costs.items():
            theirs = {
                data: values[str(depth)] for data, values in asrn.items() if str(depth) in values
            }
            theirs = theirs if depth else published["methods"]["bicubic"][scale]
            for data in ALL_SETS:
                if data not in measured:
                    cells.append("not measured")
                    continue
                ours = (
                    f"{score(record, data, depth):.2f} / {score(record, data, depth, 'ssim'):.4f}"
                )
                cells.append(f"{ours} ({theirs[data]:.2f})" if data in theirs else ours)
            rows.append(cells)
        for method, values in published["methods"].items():
            if method != "bicubic" and name in values:  # once for each scale
                found = [
                    f"({values[scale][data]:.2f})" if data in values[scale] else ""
                    for data in ALL_SETS
                ]
                rows.append([method, f"{values['parameters'] // 1000}K", "", *found])
        parts.append(table([[f"`{weights}`, depth", "parameters", "GMACs", *ALL_SETS], *rows]))
        start = f", started from {Path(init).stem}" if (init := record["options"]["init"]) else ""
        parts.append(f"{budget(record)}{start}; GMACs for an output of 1280x720.\n")
    sources = f"In brackets: published PSNR. {published['source']} ({', '.join(published['asrn'])} alone)."
    return "\n".join([*parts, f"{sources} {published['sources']}."])


def cards(records: Records) -> str:
    """What differs between the packaged files: a model card for each."""
    parts = []
    for name, weights in SHIPPED.items():
        record = records[name]
        options, hours = record["options"], record["scores"][-1]["seconds"] / 3600
        best = max(record["scores"], key=lambda line: sum(line["psnr"].values()))
        scores = " ".join(decibels(score(record, "Set5", depth) for depth in depths_of(record)))
        skip = "" if options["skip"] == "none" else f", skip {options['skip']}"
        rows = [
            [
                "network",
                f"ASRN x{options['scale']}, {options['num_blocks']} blocks of {options['channels']}{skip}",
            ],
            [
                "Set5 PSNR-Y by depth (dB)",
                f"{scores}; [every number](results.md#the-networks-in-the-package)",
            ],
            ["budget", f"{budget(record)}; {hours:.1f} hours"],
            [
                "kept",
                f"step {best['step']:,}, whose mean over depths on the held-out photographs was the best",
            ],
            ["hardware", record["machine"]],
            ["seed", options["seed"]],
            ["command", f"`python recipes/asrn_div2k.py {changed(options, records['presets'])}`"],
            ["log", f"[{name}.json](results/{name}.json)"],
        ]
        parts.append(f"## `{weights}.safetensors`\n\n{table([['', ''], *rows], left=2)}")
    return "\n".join(parts).rstrip()


def cpu(records: Records) -> str:
    """What tests/benchmarks/bench_cpu.py measured: every way and depth, then the variations at the
    deepest depth.
    """
    record = records["cpu"]
    rows, given_back = record["rows"], records["cpu-memory-given-back"]["rows"]
    deepest = max(row["depth"] for row in rows)
    ways = dict.fromkeys((row["way"], row["precision"]) for row in rows)
    found = {(row["way"], row["precision"], row["depth"]): row for row in rows}
    lines, variations = [], []
    for way, precision in ways:
        row = found[way, precision, deepest]
        here = [row["ms"] for row in rows if (row["way"], row["precision"]) == (way, precision)]
        rate = [f"{row['gmacs_per_second']:.0f}", f"{row['of_peak']:.0%}"]
        if len(here) == deepest:
            share = f"{found[way, precision, 1]['of_deepest']:.0%}"
            lines.append([f"{way}, {precision}", *(f"{ms:.0f}" for ms in here), *rate, share])
        else:
            variations.append([f"{way}, {precision}", f"{row['ms']:.0f}", *rate])
    for row in given_back:
        if (row["way"], row["depth"]) == ("eager", deepest):
            label = f"memory given back, {row['precision']}"
            variations.append(
                [
                    label,
                    f"{row['ms']:.0f}",
                    f"{row['gmacs_per_second']:.0f}",
                    f"{row['of_peak']:.0%}",
                ]
            )
    depths = [f"depth {depth}, ms" for depth in range(1, deepest + 1)]
    rates = ["GMAC/s at the deepest", "of the peak"]
    peaks = "; ".join(
        f"{name} {rate:.0f}" for name, rate in record["product_gmacs_per_second"].items()
    )
    made = f"Matrix products, GMAC/s: {peaks}. {record['machine']}; {record['settings']['repeats']} rounds."
    shares = table([["", *depths, *rates, "depth 1 of the deepest"], *lines])
    variations.insert(0, [f"eager, depth {deepest}", "ms", "GMAC/s", "of the peak"])
    return f"{shares}\n{made}\n\n{table(variations)}".rstrip()


PAGES: dict[str, tuple[FunctionType, ...]] = {  # by section, each named as its function
    "results.md": (shipped, comparison, degradations, choices, retrofit, tasks, growth),
    "models.md": (cards,),
    "speed.md": (cpu,),
}


def draw(records: Records) -> None:
    from elasticnet.sr.benchmark.figures import elastic_curve

    images = DOCS / "images"
    images.mkdir(exist_ok=True)
    for model in ("edsr", "rcan"):
        record = records[f"retrofit-{model}"]
        title = f"{model.upper()}, {record['options']['valid'][0]} x{record['table']['network'][1]['scale']}"
        elastic_curve(images / f"retrofit_{model}.png", *curves(record), title, "PSNR-Y (dB)")
    draw_asrn(records, images)


def draw_asrn(records: Records, images: Path) -> None:
    """The packaged network beside one that is cut short, by parameters beside published ones, and
    in pictures.
    """
    from elasticnet.sr import asrn
    from elasticnet.sr.benchmark import bicubic, predict_depths
    from elasticnet.sr.benchmark.figures import crop_comparison, elastic_curve, parameter_dots
    from elasticnet.sr.data import pairs_from_arrays, scikit_image_photos

    def on_set5(name: str) -> dict[int, float]:
        found = seeds_of(records, name)
        return {
            depth: fmean(score(record, "Set5", depth) for record in found)
            for depth in depths_of(found[0])
        }

    elastic, ss = {f"elastic, {DSL_PSD}": on_set5("x4-full")}, on_set5("x4-ss")
    alone = {depth: on_set5(f"x4-alone-{depth}")[depth] for depth in range(1, 5)} | {5: ss[5]}
    title = f"ASRN, Set5 x4, {records['x4-full']['options']['steps']:,} steps"
    baseline = {"bicubic": score(records["x4-full"], "Set5", None)}
    balances = elastic | {
        "equal weights": on_set5("x4-normalised"),
        "DSL, 9/10 on the deepest": on_set5("x4-dsl-nine"),
    }
    elastic_curve(
        images / "asrn_x4_alone.png",
        balances | {"trained alone": alone},
        None,
        title,
        "PSNR-Y (dB)",
    )
    elastic_curve(
        images / "asrn_x4_cut.png", elastic | {"SS, cut short": ss}, baseline, title, "PSNR-Y (dB)"
    )

    methods = records["published"]["methods"]
    ours = [row for row in records["x4"]["sets"] if row["data"] == "Set5" and row["depth"]]
    theirs = {
        name: (of["parameters"], of["x4"]["Set5"])
        for name, of in methods.items()
        if name != "bicubic"
    }
    theirs["ASRN"] = (ours[-1]["parameters"], records["published"]["asrn"]["x4"]["Set5"]["5"])
    dots = {f"depth {row['depth']}": (row["parameters"], row["psnr"]) for row in ours}
    series = {"ASRN, one training": dots, "published": theirs}
    parameter_dots(images / "asrn_x4_parameters.png", series, True, "Set5 x4", "PSNR-Y (dB)")

    pairs = pairs_from_arrays({PHOTO: scikit_image_photos()[PHOTO]}, 4)
    predicted = predict_depths(asrn(4, pretrained=True), pairs.lr(0))
    crops = {
        "bicubic": bicubic(pairs.lr(0), 4),
        **{f"depth {depth}": image for depth, image in predicted.items()},
    }
    crop_comparison(
        images / "asrn_x4_crops.png", pairs.hr(0), crops, title=f"{PHOTO} x4 (scikit-image)"
    )


def written(name: str, page: str, records: Records) -> str:
    """The page with every section between its two markers made anew."""
    for make in PAGES[name]:
        section = make.__name__
        begin, end = f"<!-- made by recipes/results.py: {section} -->", f"<!-- end: {section} -->"
        before, _, rest = page.partition(begin)
        _, ended, after = rest.partition(end)
        if not ended or begin in rest or end in after:
            raise ValueError(f"docs/{name}: expected the two markers of section {section!r} once")
        page = f"{before}{begin}\n{make(records)}\n{end}{after}"
    return page


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="exit status 1 when a page is out of date"
    )
    options = parser.parse_args(arguments)
    records = {
        path.stem: json.loads(path.read_text())
        for path in sorted((DOCS / "results").glob("*.json"))
    }
    outdated = False
    for name in PAGES:
        page = (DOCS / name).read_text()
        if (made := written(name, page, records)) == page:
            continue
        outdated = True
        if options.check:
            print(f"docs/{name} is out of date: run python recipes/results.py", file=sys.stderr)
        else:
            write_atomic(DOCS / name, made)
    if not options.check:
        draw(records)
    return int(options.check and outdated)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyError as error:
        sys.exit(
            f"error: docs/results/ has nothing named {error}: recipes/record.py takes records from runs"
        )
