"""`elasticnet benchmark`: PSNR and SSIM per depth on data sets, beside bicubic interpolation."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import torch

from elasticnet import ElasticWrapper
from elasticnet.checkpoint import load
from elasticnet.cli.arguments import check_device
from elasticnet.registry import names
from elasticnet.sr.degrade import KINDS, SIGMAS
from elasticnet.sr.metrics import PROTOCOLS
from elasticnet.sr.resize import BORDERS

SCALES = (2, 3, 4)  # of the bicubic baselines


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "benchmark", help="PSNR and SSIM per depth on data sets, beside bicubic"
    )
    parser.description = (
        "Score networks on data sets, at every depth, beside bicubic interpolation; without a network, bicubic alone. "
        "The exit status is 1 when an image could not be used."
    )
    add = parser.add_argument
    add("files", nargs="*", metavar="FILE", help="checkpoints; each is scored at its own scale")
    add(
        "--model",
        choices=names(),
        help="a built-in network at its untrained start, instead of checkpoints",
    )
    add("--data", nargs="+", required=True, metavar="DIR", help="data sets in any known layout")
    add(
        "--scales",
        "--scale",
        nargs="+",
        type=int,
        help="default: those of the checkpoints, or 2 3 4 without any",
    )
    add("--depths", nargs="+", type=int, help="default: every depth that carries a prediction")
    add(
        "--degradation",
        choices=KINDS,
        default="BI",
        help="how LR is made where the data set has no files for it",
    )
    add("--blur-sigma", type=float, metavar="PIXELS", help="of the blur of BD; default: 1.6")
    add(
        "--noise-sigma",
        type=float,
        metavar="LEVELS",
        help="of the noise of DN, on the 0..255 scale; default: 30",
    )
    add(
        "--protocol",
        choices=PROTOCOLS,
        default="matlab-y",
        help="what is compared, and how much is shaved off",
    )
    add("--self-ensemble", action="store_true", help="mean over the eight symmetries of the input")
    add(
        "--border",
        choices=BORDERS,
        default="symmetric",
        help="outside of images: bicubic, and LR that is made",
    )
    add("--save-images", metavar="DIR", help="save every scored image as PNG")
    add(
        "--out",
        metavar="DIR",
        help="write tables (Markdown, CSV, JSON) and figures; files of a run before are replaced",
    )
    add("--no-cost", action="store_true", help="do not measure MACs and time")
    add(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="default here: %(default)s",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from elasticnet._tables import aligned
    from elasticnet.sr.benchmark import benchmark, load_sets, scale_of
    from elasticnet.sr.benchmark.report import caption, markdown_table, write_figures, write_tables

    nets = _networks(options)
    scales = options.scales or sorted({scale_of(net) for _, net in nets}) or SCALES
    for folder in filter(None, (options.out, options.save_images)):
        Path(folder).mkdir(parents=True, exist_ok=True)  # now, and not when everything is scored
    choices = {"protocol": options.protocol, "border": options.border}
    sigmas = {name: getattr(options, name) for name in SIGMAS.values()}
    sets = load_sets(options.data, scales, degradation=options.degradation, **choices, **sigmas)
    result = benchmark(
        nets,
        sets,
        depths=options.depths,
        self_ensemble=options.self_ensemble,
        device=options.device,
        costs=not options.no_cost,
        images_dir=options.save_images,
        progress=True,
        **choices,
    )
    result.settings["degradation"] = options.degradation
    result.settings.update((name, sigma) for name, sigma in sigmas.items() if sigma is not None)
    title = f"{', '.join(dict.fromkeys(label for label, _ in nets)) or 'bicubic'}, {options.degradation}"
    print(f"\n{caption(result, title)}\n\n{aligned(markdown_table(result))}")
    if options.out:
        write_tables(options.out, result, title)
        if importlib.util.find_spec("matplotlib"):
            write_figures(options.out, result, nets, sets, options.device)
        else:
            print(
                'no figures without matplotlib: pip install "elastic-depth[figures]"',
                file=sys.stderr,
            )
    if result.skipped:
        print(f"elasticnet: images left out: {len(result.skipped)}", file=sys.stderr)
        for data, scale, image, reason in result.skipped:
            print(f"  {data} x{scale} {image}: {reason}", file=sys.stderr)
    return 1 if result.skipped else 0


def _networks(options: argparse.Namespace) -> list[tuple[str, ElasticWrapper]]:
    """Return the nets that the options name, on their device, each with a label."""
    import elasticnet.sr
    from elasticnet.sr.benchmark import distinct_names

    check_device(options.device)
    if options.model is None:
        named = zip(distinct_names(options.files), options.files, strict=True)
        return [(label, load(file, device=options.device)) for label, file in named]
    if options.files or not options.scales:
        wrong = (
            f"--model {options.model} beside {options.files[0]}"
            if options.files
            else f"--model {options.model}"
        )
        raise ValueError(f"{wrong}: give either checkpoints, or --model with --scale")
    torch.manual_seed(0)
    build = getattr(elasticnet.sr, options.model)
    return [
        (f"{options.model} (untrained)", build(scale).to(options.device))
        for scale in options.scales
    ]
