"""`elasticnet export`: one depth of a checkpoint, or every one, as ONNX, torch.export program or
smaller checkpoint.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from elasticnet import ElasticWrapper
    from elasticnet.export import Exported

FORMATS = ("onnx", "torch", "safetensors")
ALL = "all"


class Cost(NamedTuple):
    """What int8 costs on a data set: mean PSNR of the net and of the file, in dB."""

    data: str
    net: float
    file: float


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "export", help="write one depth, or every one, as ONNX, torch.export or safetensors"
    )
    parser.description = (
        "Write one depth of a checkpoint, or every one, to a file that stands alone: onnx, torch (a torch.export "
        "program, .pt2, that runs without this library) or safetensors (a checkpoint cut to that depth). Batch, height "
        "and width stay open. Each file is run and compared with the network at several sizes before it is written; "
        "where they differ by more than 1e-4, nothing is."
    )
    add = parser.add_argument
    add(
        "file",
        metavar="FILE",
        help="a checkpoint of a built-in architecture: a path, an http(s) URL, or hf://...",
    )
    depths = parser.add_mutually_exclusive_group()
    depths.add_argument(
        "--depth",
        type=_depth,
        metavar="N",
        help="the first N blocks, or 'all'; default: the deepest",
    )
    depths.add_argument(
        "--all-depths",
        action="store_const",
        const=ALL,
        dest="depth",
        help="the same as --depth all",
    )
    add("--format", choices=FORMATS, help="default: by the suffix of OUT, otherwise onnx")
    add(
        "-o",
        "--out",
        metavar="OUT",
        help="a file, or a folder for several depths; default: beside FILE, with _dN after its name",
    )
    add(
        "--fold",
        action=argparse.BooleanOptionalAction,
        help="the head as one convolution and a pixel shuffle, and what else folds exactly; default for onnx and torch",
    )
    add(
        "--int8",
        action="store_true",
        help="weights as 8-bit integers (onnx, torch); prints what that costs in PSNR",
    )
    add(
        "--data",
        metavar="DIR",
        help="a data set in any known layout: the cost of --int8 is measured on it, too",
    )
    add("--force", action="store_true", help="overwrite files that exist")
    add(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show the traceback of an error",
    )
    parser.set_defaults(run=run)


def _depth(text: str) -> int | str:
    if text != ALL and not text.lstrip("-").isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a depth, or {ALL}")
    return ALL if text == ALL else int(text)


def run(options: argparse.Namespace) -> int:
    from elasticnet.checkpoint import load, read_header
    from elasticnet.export import check_target, export, require, resolve_format

    several = options.depth == ALL
    format = _format(options)
    _check_options(options, format)
    try:
        require(format)
    except ImportError as error:
        raise ValueError(str(error)) from error
    header = read_header(options.file)
    net = load(options.file, None if several else options.depth)
    depths = net.taps if several else net.taps[-1:]
    targets = [_target(options, format, depth) for depth in depths]
    for target in targets:
        resolve_format(target, format)
        if target.exists() and os.path.exists(options.file) and target.samefile(options.file):
            raise ValueError(
                f"{target} is the checkpoint itself, whose other depths would be lost: choose another -o"
            )
        try:
            check_target(target, options.force)
        except FileExistsError:
            raise FileExistsError(
                f"{target} exists: use --force to overwrite it, or choose another -o"
            ) from None
    pairs = _pairs(options, net)

    written = []
    for depth, target in zip(depths, targets, strict=True):
        print(
            f"depth {depth}: tracing and checking" if format != "safetensors" else f"depth {depth}",
            file=sys.stderr,
        )
        choices = {"depth": depth, "format": format, "overwrite": options.force}
        if format == "safetensors":
            choices["metadata"] = header["notes"]
        else:
            choices |= {"fold": options.fold is not False, "int8": options.int8}
        result = export(net, target, **choices)
        written.append(result)
        print(_summary(result))
        for cost in _costs(net, result, pairs):
            print(
                f"  {cost.data}: {cost.net:.3f} dB as float, {cost.file:.3f} dB as int8, {cost.file - cost.net:+.3f} dB"
            )
    if several:
        print(f"\n{_table(written)}")
    return 0


def _format(options: argparse.Namespace) -> str:
    from elasticnet.export import FORMATS

    if options.out == "":
        raise ValueError("-o: the name is empty; name a file or a folder")
    suffix = (
        Path(options.out).suffix.lower() if options.out and not Path(options.out).is_dir() else ""
    )
    if suffix and not options.format and options.depth != ALL and suffix not in FORMATS.values():
        raise ValueError(
            f"-o {options.out}: a suffix among {', '.join(FORMATS.values())}, or --format, says what to write"
        )
    return options.format or next(
        (name for name, each in FORMATS.items() if each == suffix), "onnx"
    )


def _check_options(options: argparse.Namespace, format: str) -> None:
    if format == "safetensors" and (options.int8 or options.fold is not None):
        wrong = "--int8" if options.int8 else "--fold" if options.fold else "--no-fold"
        raise ValueError(
            f"{wrong} with --format safetensors: a checkpoint keeps its weights; take onnx or torch"
        )
    if options.data and not options.int8:
        raise ValueError(
            f"--data {options.data}: it measures what --int8 costs; add --int8, or leave it out"
        )


def _target(options: argparse.Namespace, format: str, depth: int) -> Path:
    from elasticnet.export import FORMATS

    several = options.depth == ALL
    stem = re.sub(
        r"[^\w.-]+", "_", options.file.rstrip("/").rpartition("/")[2].removesuffix(".safetensors")
    )
    name = f"{stem}_d{depth}{FORMATS[format]}"
    if options.out is None:
        return Path(name) if "://" in options.file else Path(options.file).parent / name
    out = Path(options.out)
    if several and (out.suffix.lower() in FORMATS.values() or out.is_file()):
        raise ValueError(f"-o {out}: one file for several depths; name a folder")
    if several:
        out.mkdir(parents=True, exist_ok=True)
    return out / name if out.is_dir() else out


def _pairs(options: argparse.Namespace, net: ElasticWrapper) -> list:
    from elasticnet.sr.benchmark import load_sets, scale_of

    return load_sets([options.data], [scale_of(net)]) if options.data else []


def _costs(net: ElasticWrapper, result: Exported, sets: list) -> list[Cost]:
    """The mean PSNR-Y of net and file on each data set."""
    from torch import nn

    from elasticnet import ElasticWrapper
    from elasticnet.export import runner
    from elasticnet.sr.benchmark import evaluate

    if not sets:
        return []

    class File(nn.Module):
        """The file as a head, so that it is scored as the net is."""

        run = staticmethod(runner(result.path))

        def forward(self, x):
            return self.run(x)

    file = ElasticWrapper([nn.Identity()], File())
    costs = []
    for name, pairs in sets:
        before = evaluate(net, pairs, depths=[result.depth], ssim=False, progress=True)[
            result.depth
        ]
        costs.append(
            Cost(name, before.psnr, evaluate(file, pairs, ssim=False, progress=True)[1].psnr)
        )
    return costs


def _summary(result: Exported) -> str:
    """One line about a file."""
    shapes = ", ".join("x".join(map(str, shape)) for shape in result.shapes)
    checked = f"max difference {result.difference:.2g} on {shapes}" if shapes else "weights equal"
    axes = f"; open: {', '.join(result.axes.values())}" if result.axes else ""
    cost = "" if result.int8_psnr is None else f"; int8 against float: {result.int8_psnr:.1f} dB"
    return f"{result.path}: {result.size / 1e6:.3f} MB, {checked}{axes}{cost}"


def _table(written: list[Exported]) -> str:
    from elasticnet._tables import aligned, table

    int8 = written[0].int8_psnr is not None
    head = [
        "depth",
        "parameters",
        "MB",
        "max difference",
        *(["int8 against float (dB)"] if int8 else []),
        "file",
    ]
    rows = [head]
    for each in written:
        row = [
            str(each.depth),
            f"{each.parameters:,}",
            f"{each.size / 1e6:.3f}",
            f"{each.difference:.2g}",
        ]
        rows.append([*row, *([f"{each.int8_psnr:.1f}"] if int8 else []), str(each.path)])
    return aligned(table(rows, left=0))
