"""`elasticnet profile`: measure a checkpoint's depth card on this machine and store it in the
file.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

import torch

from elasticnet.cli.arguments import check_device, count, threads

DTYPES = ("float32", "bfloat16")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "profile", help="measure what each depth of a checkpoint costs on this machine"
    )
    parser.description = (
        "Measure, per depth and on this machine: parameters, MACs, latency, peak memory, throughput, and PSNR and SSIM "
        "where data is given. The depth card goes into FILE, in place of an earlier one of the same machine, and as "
        "Markdown, JSON and a figure beside it. The exit status is 1 when an image could not be used."
    )
    add = parser.add_argument
    add("file", metavar="FILE", help="a checkpoint of a built-in architecture")
    add(
        "--size",
        type=_size,
        default=(640, 360),
        metavar="WxH",
        help="of the input, in pixels; default 640x360",
    )
    add("--data", metavar="DIR", help="a data set in any known layout, for PSNR and SSIM")
    add(
        "--repeats",
        type=count,
        default=40,
        metavar="N",
        help="passes timed at each depth; default 40",
    )
    add(
        "--seconds",
        type=_seconds,
        default=60.0,
        metavar="T",
        help="begin no new round of passes after T; default 60",
    )
    add("--threads", type=threads, metavar="N", help="of the CPU; default: as many as torch takes")
    add(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="default here: %(default)s",
    )
    add("--dtype", choices=DTYPES, default="float32")
    add(
        "--no-memory",
        action="store_true",
        help="leave peak memory out (on a CPU it takes a process of its own)",
    )
    add(
        "--no-store",
        action="store_true",
        help="leave FILE as it is; the card is only printed, and written into --out",
    )
    add(
        "--out",
        metavar="DIR",
        help="where FILE's .card.md, .card.json and .card.png go; default: beside FILE",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from elasticnet._tables import aligned
    from elasticnet.card import measure, store_card
    from elasticnet.card.measuring import limited_threads
    from elasticnet.card.report import caption, markdown_table, write_report
    from elasticnet.checkpoint import load, read_header
    from elasticnet.registry import names
    from elasticnet.sr.benchmark import evaluate, load_sets, scale_of
    from elasticnet.sr.models.pretrained import WEIGHTS

    header = read_header(options.file)
    if header["architecture"] not in names():
        raise ValueError(
            f"{options.file}: architecture {header['architecture']!r} is not built in ({', '.join(names())}): measure "
            "it in Python with elasticnet.card.measure(net, example), and store_card(file, card)"
        )
    remote = "://" in options.file
    if remote and not options.no_store:
        raise ValueError(
            f"{options.file}: a card can only be stored in a local file: download it, or pass --no-store"
        )
    if not options.no_store and WEIGHTS.resolve() in Path(options.file).resolve().parents:
        raise ValueError(
            f"{options.file}: belongs to the installed package: profile a copy of it, or pass --no-store"
        )
    folder = options.out or ("" if remote else str(Path(options.file).parent))
    for target in (options.out, None if options.no_store else Path(options.file).parent):
        if target:
            # now, and not when everything is measured
            Path(target).mkdir(parents=True, exist_ok=True)
            if not os.access(target, os.W_OK):
                raise PermissionError(
                    f"{target}: cannot be written to: pass --no-store and another --out"
                )
    check_device(options.device)

    net = load(options.file, device=options.device)
    scale = scale_of(net)
    net = net.to(getattr(torch, options.dtype))
    quality = label = None
    skipped: list[tuple[str, str]] = []
    with limited_threads(options.threads):
        if options.data:
            ((name, pairs),) = load_sets([options.data], [scale])
            quality, skipped = (
                evaluate(net, pairs, device=options.device, progress=True),
                list(pairs.skipped),
            )
            label = f"{name} x{scale}, {len(pairs)} images, protocol matlab-y"
        width, height = options.size
        card = measure(
            net,
            torch.rand(1, 3, height, width, device=options.device).to(
                getattr(torch, options.dtype)
            ),
            repeats=options.repeats,
            seconds=options.seconds,
            memory=not options.no_memory,
            quality=quality,
            data=label,
            progress=True,
        )
    print(f"{caption(card)}\n\n{aligned(markdown_table(card))}")
    for warning in card.warnings:
        print(f"warning: {warning}")
    if folder and (options.out or not options.no_store):
        stem = Path(options.file).name.removesuffix(".safetensors")
        print(f"written: {', '.join(map(str, write_report(card, folder, stem)))}")
    if not options.no_store:
        store_card(options.file, card)
        print(f"stored in {options.file}")
    for image, reason in skipped:
        print(f"elasticnet: image left out: {image}: {reason}", file=sys.stderr)
    return 1 if skipped else 0


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    if not match:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected WIDTHxHEIGHT in pixels, such as 640x360"
        )
    return int(match[1]), int(match[2])


def _seconds(text: str) -> float:
    try:
        if (seconds := float(text)) > 0:
            return seconds
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r}: expected a number of seconds above 0")
