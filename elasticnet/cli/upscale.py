"""`elasticnet upscale`: enlarge photographs, at a chosen depth or the deepest within a budget."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from elasticnet.before_torch import INTERRUPTED
from elasticnet.cli.arguments import AUTO_DEVICE, add_debug, add_device, add_dtype, positive_count
from elasticnet.sr.models.pretrained import packaged

if TYPE_CHECKING:
    from elasticnet.cli.arguments import Commands
    from elasticnet.cli.upscale_jobs import Job, JobPlan
    from elasticnet.sr.photo.output_size import OutputSize

EXTENSIONS = ("png", "jpg", "jpeg", "webp", "tif", "tiff", "gif")
SOME_FAILED = 1  # exit status
PIPE = "-"
TORCH = "torch"  # --engine
ONNX_ENGINE = "onnxruntime"
ONNX_SUFFIX = ".onnx"
BESIDE_SUFFIX = "_large"  # of results that lie beside their images


def add_parser(commands: Commands) -> None:
    """Add the subcommand to the command line.

    Args:
        commands: What `ArgumentParser.add_subparsers` returned.
    """
    parser = commands.add_parser(
        "upscale", help="enlarge photographs: files, folders, globs, standard input"
    )
    parser.description = (
        "Enlarge photographs with everything that belongs to them: alpha, 16 bits, EXIF, colour "
        "profile, DPI. GIF, APNG and animated WebP are enlarged frame by frame. Several images, a "
        "folder or a glob go into the folder OUT under their own names; without -o each result "
        "lies beside its image. The exit status is 0, 1 when some of several images could not be "
        "used, 2 for bad input, 130 after Ctrl-C."
    )
    _add_images(parser)
    _add_network(parser)
    _add_depth(parser)
    _add_running(parser)
    _add_format(parser)
    parser.add_argument(
        "--quiet", action="store_true", help="no progress and no notes, only errors"
    )
    add_debug(parser)
    parser.set_defaults(run=run)


def _add_images(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("images")
    group.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="images, folders of images, globs, or - for standard input",
    )
    group.add_argument(
        "-o",
        "--out",
        metavar="OUT",
        help="a file, a folder (one that is there, or a name that ends in /; several images need "
        "one), or - (standard output); default: beside each image, with --suffix",
    )
    group.add_argument(
        "--suffix",
        metavar="TEXT",
        help="what results in a folder have behind their names: _x4 makes photo_x4.jpg of "
        f"photo.jpg; default: nothing in OUT, and {BESIDE_SUFFIX} beside the images",
    )
    group.add_argument(
        "--recursive",
        action="store_true",
        help="also the images in folders of a folder; OUT gets the same folders",
    )
    group.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="of all images that are named, the I-th of N parts, such as 3/16: N machines that are "
        "given the same images divide them without asking each other",
    )
    group.add_argument(
        "--frames",
        type=_frame_size,
        metavar="WxH",
        help="instead of images: raw frames of this size from standard input to standard output, "
        "three bytes a pixel (rgb24), as video programs pipe them",
    )
    existing = group.add_mutually_exclusive_group()
    existing.add_argument("--force", action="store_true", help="overwrite outputs that exist")
    existing.add_argument(
        "--skip-existing",
        action="store_true",
        help="leave outputs that exist as they are, so that an interrupted run goes on",
    )
    group.add_argument(
        "--max-pixels",
        type=positive_count,
        metavar="N",
        help="read images of up to N pixels; default: Pillow's limit",
    )


def _add_network(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("network")
    group.add_argument(
        "--scale",
        type=_scale,
        metavar="S",
        help=f"how many times as long each side becomes, such as 4 or 3.5; {packaged()}, and what "
        "lies between is made by the next larger one and resized; default: that of --weights",
    )
    group.add_argument(
        "--to",
        type=_box,
        metavar="WxH",
        help="instead of --scale: as large as fits into W by H pixels, such as 3840x2160, without "
        "stretching or cutting; Wx and xH give one side alone",
    )
    group.add_argument(
        "--weights",
        metavar="FILE",
        help="a checkpoint of any registered architecture that enlarges images: a path, or the "
        "name of a packaged net such as asrn-x4; or an ONNX file that `elasticnet export` wrote; "
        "default: the package's for --scale",
    )
    group.add_argument(
        "--engine",
        choices=(TORCH, ONNX_ENGINE),
        help="what runs the network: torch; or onnxruntime, which runs exported files and needs no "
        "PyTorch; default: onnxruntime for --weights FILE.onnx",
    )


def _add_depth(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("depth", "how much of the network runs; default: all of it")
    group.add_argument(
        "--depth", type=int, metavar="N", help="the first N blocks, of five in the package"
    )
    group.add_argument(
        "--max-ms",
        type=_positive_number,
        metavar="T",
        help="the deepest with which an image takes at most T ms, reading and writing included; of "
        "an animation, a frame",
    )
    group.add_argument(
        "--max-memory",
        type=_positive_number,
        metavar="MB",
        help="the deepest that takes at most MB megabytes (10^6 bytes)",
    )


def _add_running(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how it runs")
    group.add_argument(
        "--tile",
        type=_tile,
        default="auto",
        help="LR pixels a side of what runs at a time, 'whole', or 'auto' (default): what is "
        "fastest within the free memory",
    )
    group.add_argument(
        "--tile-batch",
        type=_tile_batch,
        default="auto",
        metavar="N",
        help="tiles of a row that run at once; default: auto, one on a CPU, and on a GPU as many "
        "small ones as make a large one",
    )
    group.add_argument(
        "--self-ensemble",
        action="store_true",
        help="mean over the eight symmetries of the input; eight times slower",
    )
    add_dtype(group)
    add_device(group)


def _add_format(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output format")
    group.add_argument(
        "--format",
        choices=EXTENSIONS,
        metavar="EXT",
        help=f"of images in a folder or on a pipe: {', '.join(EXTENSIONS)}; default: that of the "
        "input, and of a file its extension",
    )
    group.add_argument(
        "--quality",
        type=_percent,
        metavar="Q",
        help="of JPEG and lossy WebP, 1 to 100; default: 95",
    )
    group.add_argument("--lossless", action="store_true", help="write WebP without loss")
    group.add_argument(
        "--png-level",
        type=_png_level,
        metavar="N",
        help="how hard PNG is packed: 0 (not at all), 1 (fast, the default), 2 to 9 (smaller and "
        "slower; photographs become about as small at 1)",
    )


def run(options: argparse.Namespace) -> int:
    """Upscale what the command line names.

    Args:
        options: The parsed command line.

    Returns:
        The exit status: 0, or 1 when some of several images could not be upscaled, or 130 after
        Ctrl-C.
    """
    try:
        _check_network(options)
        _check_engine(options)
        if options.frames is not None:
            return _upscale_frames(options)
        return _upscale_all(options)
    except KeyboardInterrupt:
        if options.debug:
            raise
        message = "elasticnet: interrupted; images that were not finished have left nothing behind"
        print(message, file=sys.stderr)
        return INTERRUPTED


def _upscale_all(options: argparse.Namespace) -> int:
    from elasticnet.cli.upscale_jobs import make_folders

    output_size = _output_size(options)
    found = _plan_jobs(options)
    if not found.jobs:  # every output exists
        if not options.quiet:
            for note in found.notes:
                print(note, file=sys.stderr)
        return 0
    _check_options(options, found.jobs)
    from elasticnet.cli.upscale_networks import Networks
    from elasticnet.cli.upscale_run import Runner, say_failures

    networks = Networks(options, output_size)
    networks.check()
    make_folders(found.jobs, options.out)
    runner = Runner(networks, options)
    runner.say_notes(found.notes)
    if found.num_images == 1:
        runner.run_single(found.jobs[0])
        return 0
    failures = runner.run_all(found.jobs)
    if not failures:
        return 0
    say_failures(failures, len(found.jobs))
    return SOME_FAILED


def _plan_jobs(options: argparse.Namespace) -> JobPlan:
    """Which images become which files."""
    from elasticnet.cli.upscale_jobs import plan_jobs

    if not options.inputs:
        raise ValueError("no INPUT: name images, folders, globs, or - for standard input")
    suffix = options.suffix
    if suffix is None:
        suffix = BESIDE_SUFFIX if options.out is None else ""
    return plan_jobs(
        options.inputs,
        options.out,
        options.format,
        suffix=suffix,
        recursive=options.recursive,
        shard=options.shard,
        force=options.force,
        skip_existing=options.skip_existing,
    )


def _output_size(options: argparse.Namespace) -> OutputSize | None:
    """What --scale or --to say; None for what the network makes."""
    from elasticnet.sr.photo.output_size import OutputSize

    if options.to is not None:
        width, height = options.to
        box = OutputSize(width=width, height=height)
        if options.scale is not None:
            raise ValueError(f"--scale {options.scale:g} beside {box.in_words}: give one of them")
        return box
    if options.scale is None:
        return None
    return OutputSize(times=options.scale)


def _upscale_frames(options: argparse.Namespace) -> int:
    """Enlarge raw frames from standard input to standard output."""
    _check_frame_options(options)
    from elasticnet.cli.upscale_frames import upscale_frames
    from elasticnet.cli.upscale_networks import Networks

    networks = Networks(options, _output_size(options))
    width, height = options.frames
    upscale_frames(networks, (height, width), sys.stdin.buffer, sys.stdout.buffer, options.quiet)
    return 0


# --- what is checked


def _check_network(options: argparse.Namespace) -> None:
    """Raise unless the options name a network, or a size that chooses one."""
    if options.weights is None and options.scale is None and options.to is None:
        raise ValueError(
            f"no --scale: give it ({packaged()}), --to WxH, or the --weights of a network"
        )


def _check_engine(options: argparse.Namespace) -> None:
    """Decide on the engine, and refuse what an exported file cannot do."""
    is_exported = options.weights is not None and options.weights.lower().endswith(ONNX_SUFFIX)
    if options.engine is None:
        options.engine = ONNX_ENGINE if is_exported else TORCH
    if options.engine == TORCH:
        if is_exported:
            raise ValueError(
                f"--engine {TORCH}: {options.weights} is an exported file; --engine {ONNX_ENGINE} "
                "runs it"
            )
        return
    if not is_exported:
        raise ValueError(
            f"--engine {ONNX_ENGINE}: give it an exported file, --weights FILE{ONNX_SUFFIX}; "
            f"`elasticnet export asrn-x4 -o FILE{ONNX_SUFFIX}` makes one"
        )
    for name in ("max_ms", "max_memory", "self_ensemble", "dtype"):
        if getattr(options, name):
            option = name.replace("_", "-")
            raise ValueError(f"--{option}: {options.weights} is run as it is; leave it out")
    if options.device not in (AUTO_DEVICE, "cpu"):
        raise ValueError(f"--device {options.device}: exported files run on the CPU; leave it out")


def _check_frame_options(options: argparse.Namespace) -> None:
    """Refuse what has no meaning for raw frames, and pipes that are none."""
    width, height = options.frames
    given = f"--frames {width}x{height}"
    if options.inputs not in ([], [PIPE]) or options.out not in (None, PIPE):
        raise ValueError(
            f"{given}: frames come from standard input and go to standard output; leave INPUT and "
            "-o out"
        )
    for name in ("suffix", "recursive", "shard", "format", "quality", "lossless"):
        if getattr(options, name):
            raise ValueError(f"{given}: --{name} has no meaning for raw frames; leave it out")
    _check_depth(options)
    if sys.stdin is None:
        raise ValueError(f"{given}: standard input is closed; pipe frames into it")
    _check_standard_output(given)


def _check_options(options: argparse.Namespace, jobs: Sequence[Job]) -> None:
    """Refuse options that contradict each other or fit no output."""
    _check_depth(options)
    formats = {job.format for job in jobs}
    if None not in formats:  # otherwise the input's own decides, which is not read yet
        _check_format_options(options, formats)
    if options.quality is not None and options.lossless:
        raise ValueError(f"--quality {options.quality}: --lossless has none; leave one of them out")
    if any(job.source is None for job in jobs) and sys.stdin is None:
        raise ValueError("-: standard input is closed; name a file")
    if any(job.target is None for job in jobs):
        _check_standard_output("-o -")


def _check_format_options(options: argparse.Namespace, formats: Collection[str | None]) -> None:
    """Refuse options of formats that are not written."""
    if options.lossless and "WEBP" not in formats:
        raise ValueError(
            f"--lossless: no output is WebP, and the others have no such choice ({options.out})"
        )
    if options.quality is not None and not {"JPEG", "WEBP"} & set(formats):
        raise ValueError(
            f"--quality {options.quality}: no output is JPEG or lossy WebP; leave it out"
        )
    if options.png_level is not None and "PNG" not in formats:
        raise ValueError(f"--png-level {options.png_level}: no output is PNG; leave it out")


def _check_depth(options: argparse.Namespace) -> None:
    """Refuse a depth beside a budget that chooses one."""
    if options.depth is not None and (options.max_ms or options.max_memory):
        raise ValueError(
            f"--depth {options.depth} beside a budget: give either a depth, or --max-ms and "
            "--max-memory"
        )


def _check_standard_output(given: str) -> None:
    """Refuse a standard output that is closed, or that would show an image as text."""
    if sys.stdout is None:
        raise ValueError(f"{given}: standard output is closed; name a file, or pipe it on")
    if sys.stdout.isatty():
        raise ValueError(f"{given}: an image would go to the terminal; pipe it on, or name a file")


def _tile(text: str) -> int | str | None:
    """The value of --tile as a plan takes it."""
    if text == "auto":
        return "auto"
    if text == "whole":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected auto, whole, or LR pixels a side")
    return int(text)


def _tile_batch(text: str) -> int | str:
    """The value of --tile-batch as a plan takes it."""
    return text if text == "auto" else positive_count(text)


def _percent(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 1 to 100")
    return int(text)


def _png_level(text: str) -> int:
    if len(text) != 1 or not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected 0 to 9")
    return int(text)


def _positive_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0  # refused below with what came
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return value


def _scale(text: str) -> float:
    """The value of --scale."""
    value = _positive_number(text)
    if value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 1")
    return value


def _shard(text: str) -> tuple[int, int]:
    """The number of a part and how many there are, such as 3/16."""
    match = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", text)
    if match is None or int(match[1]) > int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r}: expected I/N with I from 1 to N, such as 3/16")
    return int(match[1]), int(match[2])


def _frame_size(text: str) -> tuple[int, int]:
    """Width and height, such as 1280x720."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}: expected WIDTHxHEIGHT, such as 1280x720")
    return int(match[1]), int(match[2])


def _box(text: str) -> tuple[int | None, int | None]:
    """Width and height of --to, of which one may be absent: 3840x2160, 3840x, x2160."""
    match = re.fullmatch(r"([1-9]\d{0,8})?x([1-9]\d{0,8})?", text)
    if match is None or text == "x":
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected WIDTHxHEIGHT, WIDTHx or xHEIGHT, such as 3840x2160"
        )
    width = int(match[1]) if match[1] else None
    height = int(match[2]) if match[2] else None
    return width, height
