"""`elasticnet export`: one depth of a checkpoint, or every one, as a file that stands alone."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from elasticnet.before_torch import import_torch
from elasticnet.cli.arguments import add_cache, add_debug, report_skipped

if TYPE_CHECKING:
    from elasticnet import ElasticWrapper
    from elasticnet.cli.arguments import Commands
    from elasticnet.export import Axes, AxisSpec, Exported
    from elasticnet.sr.data.pair_set import PairSet

# those of elasticnet.export, which cannot be imported here: --help must not load PyTorch
FORMATS = ("onnx", "torch", "safetensors")
DEFAULT_FORMAT = "onnx"
ALL_DEPTHS = "all"

NO_AXIS = "none"  # what --axis says where every length is the example's

# those of elasticnet.export, as the formats
DTYPES = ("float32", "float16")

DESCRIPTION = (
    "Write one depth of a checkpoint, or every one, to a file that stands alone. Batch, height and "
    "width stay open where the network allows; --axis says which lengths may vary instead, and "
    "--size fixes all of them for runtimes that want one shape. Each file is run and compared with "
    "the network at several sizes before it is written; where they differ by more than 1e-4 (with "
    "--dtype float16: two steps of 255), nothing is. PyTorch's exporter takes several seconds a "
    "depth; its steps are named on standard error. The exit status is 1 when an image of --data "
    "could not be used."
)


class Cost(NamedTuple):
    """What rounded weights cost on a data set.

    Attributes:
        data: The data set's name.
        net_psnr: The network's mean PSNR in dB.
        file_psnr: The file's mean PSNR in dB.
    """

    data: str
    net_psnr: float
    file_psnr: float


class AskedAxis(NamedTuple):
    """What one `--axis` says.

    Attributes:
        input: The input's name; None for the first input.
        axis: Counted from 0.
        name: What the axis is called in the file.
        least: The smallest length.
        most: The largest length; None for no limit.
    """

    input: str | None
    axis: int
    name: str
    least: int
    most: int | None


def add_parser(commands: Commands) -> None:
    """Add the subcommand and its options.

    Args:
        commands: What `ArgumentParser.add_subparsers` returned.
    """
    parser = commands.add_parser(
        "export",
        help="write one depth, or every one, as ONNX, torch.export or safetensors",
        description=DESCRIPTION,
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        help="a checkpoint of a registered architecture: a path, the name of a packaged net such "
        "as asrn-x4, an http(s) URL, or hf://...",
    )
    _add_depth_options(parser)
    _add_axis_option(parser)
    _add_output_options(parser)
    _add_weight_options(parser)
    add_debug(parser)
    parser.set_defaults(run=run)


def _add_depth_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is exported")
    depths = group.add_mutually_exclusive_group()
    depths.add_argument(
        "--depth",
        type=_depth,
        metavar="N",
        help="the first N blocks, or 'all'; default: the deepest",
    )
    depths.add_argument(
        "--all-depths",
        action="store_const",
        const=ALL_DEPTHS,
        dest="depth",
        help="the same as --depth all",
    )


def _add_axis_option(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which inputs the file takes (onnx, torch)")
    group.add_argument(
        "--axis",
        dest="axes",
        type=_axis,
        action="append",
        metavar="AXIS=NAME[:LEAST:MOST]",
        help=(
            "an axis that may have any length, counted from 0, and its name; with bounds, any "
            "length between them: 1=tokens:2:512. Axes of further inputs with the same position "
            "and length go along; or name the input, too: attention_mask.1=tokens. May be "
            f"repeated. {NO_AXIS!r}: every length is the example's. Default: batch, and height "
            "and width of images, where the network allows"
        ),
    )
    group.add_argument(
        "--size",
        type=_size,
        metavar="HxW",
        help=(
            "one image of this height and width and nothing else, such as 120x160, for runtimes "
            "that want fixed shapes (OpenCV 4, TFLite, Core ML)"
        ),
    )


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is written")
    group.add_argument(
        "--format",
        choices=FORMATS,
        help=(
            "onnx; torch: a torch.export program (.pt2), which runs with PyTorch alone; "
            "safetensors: a checkpoint cut to the depth. Default: by the suffix of OUT, "
            "otherwise onnx"
        ),
    )
    group.add_argument(
        "-o",
        "--out",
        metavar="OUT",
        help=(
            "a file, or a folder for several depths; default: beside FILE, with _dN after its name"
        ),
    )
    group.add_argument("--force", action="store_true", help="overwrite files that exist")
    group.add_argument(
        "--opset",
        type=int,
        metavar="N",
        help=(
            "the version of the ONNX operators, from 18, for runtimes that do not know newer ones; "
            "default: what PyTorch's exporter writes"
        ),
    )


def _add_weight_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how the weights are written (onnx, torch)")
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default=DTYPES[0],
        help=(
            "float16 (onnx alone): half the size, computed in float16 where the device can; inputs "
            "and outputs stay float32; default: float32"
        ),
    )
    group.add_argument(
        "--fold",
        action=argparse.BooleanOptionalAction,
        help=(
            "replace what folds exactly, such as a head by one convolution and a pixel shuffle; "
            "this is the default"
        ),
    )
    group.add_argument(
        "--int8",
        action="store_true",
        help=(
            "as 8-bit integers in the blocks, 16-bit in stem and head; prints the signal-to-noise "
            "ratio in dB against the float network"
        ),
    )
    group.add_argument(
        "--data",
        metavar="DIR",
        help="with --int8, a data set of images: prints the PSNR of network and file on it, too",
    )
    add_cache(group)


def _depth(text: str) -> int | str:
    """The value of --depth: a number, or 'all'."""
    if text == ALL_DEPTHS:
        return ALL_DEPTHS
    if not text.lstrip("-").isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a depth, or {ALL_DEPTHS}")
    return int(text)


def _axis(text: str) -> AskedAxis | None:
    """The value of --axis; None for 'none'."""
    if text == NO_AXIS:
        return None
    found = re.fullmatch(
        r"((?P<input>\w+)\.)?(?P<axis>\d+)=(?P<name>\w+)(:(?P<least>\d*):(?P<most>\d*))?", text
    )
    if found is None:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected AXIS=NAME or AXIS=NAME:LEAST:MOST, such as 1=tokens:2:512, "
            f"or {NO_AXIS}"
        )
    return AskedAxis(
        input=found["input"],
        axis=int(found["axis"]),
        name=found["name"],
        least=int(found["least"] or 1),
        most=int(found["most"]) if found["most"] else None,
    )


def _size(text: str) -> tuple[int, int]:
    """The value of --size: height and width."""
    found = re.fullmatch(r"(?P<height>[1-9]\d*)[x×](?P<width>[1-9]\d*)", text)
    if found is None:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected HEIGHTxWIDTH in pixels of the input, such as 120x160"
        )
    return int(found["height"]), int(found["width"])


def _axes(asked: Sequence[AskedAxis | None] | None) -> Axes | None:
    """What `export` takes for `axes`."""
    if asked is None:
        return None
    of_first: dict[int, AxisSpec] = {}
    by_input: dict[str, dict[int, AxisSpec]] = {}
    for each in asked:
        if each is None:
            continue
        axes = of_first if each.input is None else by_input.setdefault(each.input, {})
        if each.axis in axes:
            raise ValueError(f"--axis {each.axis}={each.name}: this axis was given before")
        axes[each.axis] = (each.name, each.least, each.most)
    if by_input and of_first:
        raise ValueError(
            f"--axis {next(iter(of_first))}: name the input of each axis, or of none; "
            "the first input is called 'input'"
        )
    if None in asked and len(asked) > 1:
        raise ValueError(f"--axis {NO_AXIS}: it stands alone")
    return by_input or of_first


def run(options: argparse.Namespace) -> int:
    """Export what the options say; all targets are checked before the first one is written.

    Args:
        options: The parsed command line.

    Returns:
        The exit status: 1 where images of --data were left out, otherwise 0.

    Raises:
        ValueError: Options contradict each other, or the file is no checkpoint.
    """
    import_torch()
    from elasticnet.checkpoint import load, read_header
    from elasticnet.export import export

    format = _format(options)
    _check_options(options, format)
    axes = _axes(options.axes)
    _require(format)
    notes = read_header(options.file)["notes"]
    several = options.depth == ALL_DEPTHS
    net = load(options.file, depth=None if several else options.depth)
    depths = net.taps if several else net.taps[-1:]
    targets = _targets(options, format, depths)
    data_sets = _data_sets(options, net)

    written: list[Exported] = []
    for depth, target in targets.items():
        with _steps_on_stderr():
            result = export(
                net,
                target,
                depth=depth,
                format=format,
                axes=axes,
                size=options.size,
                fold=options.fold is not False,  # None where neither --fold nor --no-fold is given
                int8=options.int8,
                dtype=options.dtype,
                opset=options.opset,
                overwrite=options.force,
                # what a file of the other formats says comes from the architecture
                metadata=notes if format == "safetensors" else _seen_by(net, depth),
            )
        written.append(result)
        print(_summary(result))
        for cost in _costs(net, result, data_sets):
            print(_cost_line(cost))
    if several:
        print()
        print(_table(written))
    return report_skipped([each for _, pairs in data_sets for each in pairs.skipped])


class _StderrHandler(logging.Handler):
    """Prints what the library logs; to the standard error of the moment, which a test replaces."""

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), file=sys.stderr)


@contextmanager
def _steps_on_stderr() -> Generator[None, None, None]:
    """Print each step of an export inside a `with` block, since a step takes several seconds."""
    logger = logging.getLogger("elasticnet.export")
    handler = _StderrHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def _seen_by(net: ElasticWrapper, depth: int) -> dict[str, Any]:
    """What a network of images that enlarges them says for tiles; nothing of other networks."""
    from elasticnet.registry import architecture_of
    from elasticnet.sr.inference.receptive_field import footprint

    architecture = architecture_of(net)
    if architecture is None or architecture.extras.get("channels") != "RGB":
        return {}
    seen = footprint(net, depth)
    return {"reach": seen.reach, "bytes_per_pixel": round(seen.bytes_per_pixel)}


# --- before anything is written


def _format(options: argparse.Namespace) -> str:
    """The format that the options say, or the suffix of OUT."""
    from elasticnet.export import SUFFIXES

    if options.out == "":
        raise ValueError("-o: the name is empty; name a file or a folder")
    if options.format is not None:
        return options.format
    if options.out is None or Path(options.out).is_dir():
        return DEFAULT_FORMAT
    suffix = Path(options.out).suffix.lower()
    for name, each in SUFFIXES.items():
        if suffix == each:
            return name
    # a folder for several depths may have any name, with a dot in it, too
    if suffix != "" and options.depth != ALL_DEPTHS:
        raise ValueError(
            f"-o {options.out}: a suffix among {', '.join(SUFFIXES.values())}, or --format, "
            "says what to write"
        )
    return DEFAULT_FORMAT


def _check_options(options: argparse.Namespace, format: str) -> None:
    """Refuse options that have no meaning together."""
    if format == "safetensors":
        if options.int8:
            _refuse_for_checkpoint("--int8")
        if options.axes is not None:
            _refuse_for_checkpoint("--axis")
        if options.size is not None:
            _refuse_for_checkpoint("--size")
        if options.fold is not None:
            _refuse_for_checkpoint("--fold" if options.fold else "--no-fold")
    if options.size is not None and options.axes is not None:
        raise ValueError("--size with --axis: a file of one size has no open axes; choose one")
    if options.data and not options.int8:
        raise ValueError(
            f"--data {options.data}: it measures what --int8 costs; add --int8, or leave it out"
        )


def _refuse_for_checkpoint(option: str) -> None:
    raise ValueError(
        f"{option} with --format safetensors: a checkpoint keeps its weights, and takes what the "
        "network takes; choose onnx or torch"
    )


def _require(format: str) -> None:
    """Refuse a format whose packages are not installed, as wrong input and not as a fault."""
    from elasticnet.export import require

    try:
        require(format)
    except ImportError as error:
        raise ValueError(str(error)) from error


def _targets(options: argparse.Namespace, format: str, depths: Sequence[int]) -> dict[int, Path]:
    """The file for each depth; all of them can be written."""
    from elasticnet._files import check_target
    from elasticnet.export import SUFFIXES, resolve_format

    folder, name = _folder_and_name(options, format)
    targets: dict[int, Path] = {}
    for depth in depths:
        target = folder / (name or f"{_stem(options.file)}_d{depth}{SUFFIXES[format]}")
        resolve_format(target, format)  # refuses a suffix of another format
        if target.exists() and os.path.exists(options.file) and target.samefile(options.file):
            raise ValueError(
                f"{target} is the checkpoint itself, whose other depths would be lost: "
                "choose another -o"
            )
        check_target(target, overwrite=options.force)
        targets[depth] = target
    return targets


def _folder_and_name(options: argparse.Namespace, format: str) -> tuple[Path, str | None]:
    """Where the files go, and the name of a single one where -o gives it."""
    if options.out is None:
        # what comes from the network goes into the current folder
        folder = Path() if "://" in options.file else Path(options.file).parent
        return folder, None
    from elasticnet._files import make_writable_folder
    from elasticnet.export import SUFFIXES

    out = Path(options.out)
    if options.depth == ALL_DEPTHS:
        if out.suffix.lower() in SUFFIXES.values() or out.is_file():
            raise ValueError(f"-o {out}: one file for several depths; name a folder")
        make_writable_folder(out)
    if out.is_dir():
        return out, None
    return out.parent, out.name


def _stem(file: str) -> str:
    """The checkpoint's name without suffix, as a file's name may be: of a URL, its last part."""
    last = file.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w.-]+", "_", last.removesuffix(".safetensors"))


# --- what int8 costs on images


def _data_sets(options: argparse.Namespace, net: ElasticWrapper) -> list[tuple[str, PairSet]]:
    """The data set of --data at the network's scale, with its name; empty without --data."""
    if not options.data:
        return []
    from elasticnet.sr.benchmark import load_sets, lr_lines, scale_of

    sets = load_sets(
        [options.data], [scale_of(net)], cache_dir=options.cache_dir, cache=options.cache
    )
    for line in lr_lines(sets):
        print(line)
    return sets


def _costs(
    net: ElasticWrapper, result: Exported, data_sets: Sequence[tuple[str, PairSet]]
) -> list[Cost]:
    """The mean PSNR of network and file on each data set."""
    if not data_sets:
        return []
    from torch import Tensor, nn

    from elasticnet.export import runner
    from elasticnet.sr.benchmark import FULL, evaluate

    run_file = runner(result.path)

    class ExportedFile(nn.Module):
        """The file as a module, so that it is scored as the network is."""

        def forward(self, x: Tensor) -> Tensor:
            return run_file(x)

    costs: list[Cost] = []
    for name, pairs in data_sets:
        of_net = evaluate(net, pairs, depths=[result.depth], ssim=False, progress=True)
        of_file = evaluate(ExportedFile(), pairs, ssim=False, progress=True)
        cost = Cost(data=name, net_psnr=of_net[result.depth].psnr, file_psnr=of_file[FULL].psnr)
        costs.append(cost)
    return costs


# --- what is printed


def _summary(result: Exported) -> str:
    """One line about a file."""
    parts = [f"{result.path}: {result.size / 1e6:.3f} MB"]
    if result.shapes:
        shapes = ", ".join(_by_x(shape) for shape in result.shapes)
        parts.append(f", max difference {result.difference:.2g} on {shapes}")
    else:
        parts.append(", weights equal")
    if len(result.inputs) > 1:
        parts.append(f"; inputs: {', '.join(result.inputs)}")
    open_lengths = _open_lengths(result)
    if open_lengths:
        parts.append(f"; open: {', '.join(open_lengths)}")
    if result.int8_snr is not None:
        parts.append(f"; int8 against float: {result.int8_snr:.1f} dB")
    return "".join(parts)


def _open_lengths(result: Exported) -> list[str]:
    """The names of the open axes, with their bounds."""
    names = [
        length for shape in result.inputs.values() for length in shape if isinstance(length, str)
    ]
    described: list[str] = []
    for name in dict.fromkeys(names):  # each once
        least, most = result.bounds.get(name, (1, None))
        if most is not None:
            name = f"{name} ({least} to {most})"
        elif least > 1:
            name = f"{name} ({least} or more)"
        described.append(name)
    return described


def _by_x(shape: Sequence[int]) -> str:
    return "x".join(str(length) for length in shape)


def _cost_line(cost: Cost) -> str:
    return (
        f"  {cost.data}: {cost.net_psnr:.3f} dB as float, {cost.file_psnr:.3f} dB as int8, "
        f"{cost.file_psnr - cost.net_psnr:+.3f} dB"
    )


def _table(written: Sequence[Exported]) -> str:
    """All files side by side, as a Markdown table."""
    from elasticnet._tables import aligned, table

    head = ["depth", "parameters", "MB", "max difference"]
    if written[0].int8_snr is not None:
        head.append("int8 against float (dB)")
    rows = [[*head, "file"]]
    for result in written:
        row = [
            str(result.depth),
            f"{result.parameters:,}",
            f"{result.size / 1e6:.3f}",
            f"{result.difference:.2g}",
        ]
        if result.int8_snr is not None:
            row.append(f"{result.int8_snr:.1f}")
        rows.append([*row, str(result.path)])
    return aligned(table(rows, left=0))
