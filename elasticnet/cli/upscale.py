"""`elasticnet upscale`: enlarge photographs, at a chosen depth or the deepest within a budget."""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tqdm import tqdm

from elasticnet._files import message_of
from elasticnet.before_torch import INTERRUPTED
from elasticnet.cli.arguments import add_debug, add_device, positive_count, resolve_device
from elasticnet.cli.printable import printable
from elasticnet.sr.models.pretrained import packaged, weights_file

if TYPE_CHECKING:
    from elasticnet.cli.arguments import Commands
    from elasticnet.cli.upscale_jobs import Job
    from elasticnet.sr.inference.upscale_plan import UpscalePlan

    # from (height, width) of an image to the plan for it, and what there is to say about it
    ChoosePlan = Callable[[tuple[int, int]], tuple[UpscalePlan, str]]

MIN_TILE = 16  # LR pixels; smaller tiles are nearly all margin and take hours
EXTENSIONS = ("png", "jpg", "jpeg", "webp", "tif", "tiff")
SOME_FAILED = 1  # exit status


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
        "profile, DPI. Several images, a folder or a glob go into the folder OUT under their own "
        "names. The exit status is 0, 1 when some of several images could not be used, 2 for bad "
        "input, 130 after Ctrl-C."
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
        nargs="+",
        metavar="INPUT",
        help="images, folders of images, globs, or - for standard input",
    )
    group.add_argument(
        "-o",
        "--out",
        required=True,
        metavar="OUT",
        help="a file, a folder (one that is there, or a name that ends in /; several images need "
        "one), or - (standard output)",
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
        type=int,
        help=f"how many times as long each side becomes; {packaged()}; default: that of --weights",
    )
    group.add_argument(
        "--weights",
        metavar="FILE",
        help="a checkpoint of any registered architecture that enlarges images: a path, or the "
        "name of a packaged net such as asrn-x4; default: the package's for --scale",
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
        help="the deepest that takes at most T ms an image",
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
        "--self-ensemble",
        action="store_true",
        help="mean over the eight symmetries of the input; eight times slower",
    )
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


def run(options: argparse.Namespace) -> int:
    """Upscale what the command line names.

    Args:
        options: The parsed command line.

    Returns:
        The exit status: 0, or 1 when some of several images could not be upscaled, or 130 after
        Ctrl-C.
    """
    try:
        return _upscale_all(options)
    except KeyboardInterrupt:
        if options.debug:
            raise
        _say("elasticnet: interrupted; images that were not finished have left nothing behind")
        return INTERRUPTED


def _upscale_all(options: argparse.Namespace) -> int:
    from elasticnet.cli.upscale_jobs import make_folder, plan_jobs

    found = plan_jobs(
        options.inputs,
        options.out,
        options.format,
        force=options.force,
        skip_existing=options.skip_existing,
    )
    if not found.jobs:  # every output exists
        _say_notes(found.notes, options.quiet)
        return 0
    _check_options(options, found.jobs)
    weights = _weights(options)
    plan = _plan(weights, options)
    make_folder(found.jobs, options.out)
    _say_notes(found.notes, options.quiet)
    if options.weights is None:
        _say_notes([f"network: {weights}"], options.quiet)
    choose_plan = _plan_chooser(plan, weights, options)
    is_single = found.num_images == 1
    failures = _upscale_each(found.jobs, is_single, plan.scale, choose_plan, options)
    if not failures:
        return 0
    _say_failures(failures, len(found.jobs))
    return SOME_FAILED


def _upscale_each(
    jobs: Sequence[Job],
    is_single: bool,
    scale: int,
    choose_plan: ChoosePlan,
    options: argparse.Namespace,
) -> list[str]:
    """Do all jobs and return what failed, a line each; an error of a single image is raised."""
    hide_bar = True if options.quiet or is_single else None  # None: not where it is no terminal
    failures: list[str] = []
    for job in tqdm(jobs, "images", unit="image", disable=hide_bar):
        try:
            notes = _upscale_one(job, scale, choose_plan, options)
        except (OSError, ValueError) as error:
            if is_single:
                raise
            if options.debug:
                traceback.print_exc()
            message = message_of(error)
            if job.name not in message:
                message = f"{job.name}: {message}"
            failures.append(message)
            _say(f"elasticnet: {message}")
        else:
            _say_notes(notes, options.quiet)
    return failures


def _say_notes(notes: Sequence[str], quiet: bool) -> None:
    if quiet:
        return
    for note in notes:
        _say(note)


def _say_failures(failures: Sequence[str], num_jobs: int) -> None:
    """Say at the end how many images failed, and name the first of them again."""
    from elasticnet.cli.upscale_jobs import MAX_LISTED

    _say(f"elasticnet: {len(failures)} of {num_jobs} images could not be upscaled:")
    for message in failures[:MAX_LISTED]:
        _say(f"  {message}")
    if len(failures) > MAX_LISTED:
        _say(f"  and {len(failures) - MAX_LISTED} more, named above")


def _upscale_one(
    job: Job, scale: int, choose_plan: ChoosePlan, options: argparse.Namespace
) -> list[str]:
    """Enlarge one image and write it; returns what there is to say about it."""
    from elasticnet.cli.upscale_jobs import why_absent
    from elasticnet.sr.photo import ImageError, read_photo
    from elasticnet.sr.photo.upscale import upscale_photo
    from elasticnet.sr.photo.writing import FORMATS, check_fits, write_photo

    if job.source is not None and not job.source.exists():  # a broken link, or gone since
        raise FileNotFoundError(why_absent(job.source))
    source = io.BytesIO(sys.stdin.buffer.read()) if job.source is None else job.source
    with _silenced_c_libraries():
        photo = read_photo(source, max_pixels=options.max_pixels)
    format = job.format
    if format is None:  # a pipe gets the format of the input, if that can be written
        format = photo.format if photo.format in FORMATS.values() else "PNG"
    folder = job.target.parent if job.target else None
    try:
        check_fits(photo, format, scale)  # before a budget measures anything
        plan, cost = choose_plan(photo.size)
        with _output(job, options.force) as file, _tile_bar(job, options.quiet) as progress:
            large = upscale_photo(photo, plan, progress=progress, folder=folder)
            del photo  # its memory goes before a large result is encoded
            lost = write_photo(
                large,
                file,
                format,
                quality=options.quality,
                lossless=options.lossless,
                folder=folder,
            )
    except ValueError as error:
        raise ImageError(f"{job.name}: {error}") from error
    except MemoryError as error:
        raise OSError(f"{job.name}: {error or 'out of memory'}") from error
    notes = [f"{job.name}: {note}" for note in (*large.notes, *lost)]
    height, width = large.size
    target = job.target or "standard output"
    return [*notes, f"{target}: {width}x{height}, depth {plan.depth}{cost}"]


# --- the network


def _weights(options: argparse.Namespace) -> str | Path:
    """The file of the network."""
    from elasticnet.checkpoint.packaged import source_of

    if options.weights is not None:
        return source_of(options.weights)
    if options.scale is None:
        raise ValueError(f"no --scale: give it ({packaged()}), or the --weights of a network")
    return weights_file(options.scale)


def _plan(weights: str | Path, options: argparse.Namespace) -> UpscalePlan:
    """The plan for the whole network, or for --depth blocks of it."""
    from elasticnet.checkpoint import load
    from elasticnet.sr.inference.upscale_plan import plan_upscale

    device = resolve_device(options.device)
    net = load(weights, options.depth, device=device)
    tile = options.tile
    if isinstance(tile, int) and tile < MIN_TILE:
        tile = MIN_TILE
        if not options.quiet:
            _say(f"elasticnet: --tile {options.tile}: tiles of {MIN_TILE}, the smallest, are used")
    plan = plan_upscale(net, tile=tile, self_ensemble=options.self_ensemble)
    if options.scale not in (None, plan.scale):
        raise ValueError(
            f"--scale {options.scale}: {weights} enlarges {plan.scale} times; leave --scale out"
        )
    return plan


def _plan_chooser(
    plan: UpscalePlan, weights: str | Path, options: argparse.Namespace
) -> ChoosePlan:
    """What chooses the plan for each image: a budget, or nothing at all."""
    if options.max_ms is None and options.max_memory is None:

        def same_for_all(_size: tuple[int, int]) -> tuple[UpscalePlan, str]:
            return plan, ""

        return same_for_all
    from elasticnet.cli.upscale_depth import DepthChooser

    return DepthChooser(plan, weights, max_ms=options.max_ms, max_memory=options.max_memory)


# --- input and output


@contextmanager
def _silenced_c_libraries() -> Generator[None, None, None]:
    """Drop what C libraries print: libtiff comments on damaged files before the error is raised."""
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # there is no standard error to keep clean
        yield
        return
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def _output(job: Job, force: bool) -> Generator[BinaryIO, None, None]:
    """A seekable file that becomes the target, or goes to standard output, when all went well."""
    from elasticnet._files import replacing

    if job.target is not None:
        with replacing(job.target, overwrite=force) as file:
            yield file
        return
    with tempfile.TemporaryFile() as file:
        yield file
        file.seek(0)
        shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()


@contextmanager
def _tile_bar(job: Job, quiet: bool) -> Generator[Callable[[int, int], None], None, None]:
    """A bar over the tiles of one image, and the function that moves it."""
    name = job.source.name if job.source else job.name
    with tqdm(desc=name, unit="tile", leave=False, disable=quiet or None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.n = done
            bar.refresh()

        yield progress


def _say(message: str) -> None:
    """Print one line on standard error, above the progress bars."""
    tqdm.write(printable(message), file=sys.stderr)


# --- what is checked


def _check_options(options: argparse.Namespace, jobs: Sequence[Job]) -> None:
    """Refuse options that contradict each other or fit no output."""
    if options.depth is not None and (options.max_ms or options.max_memory):
        raise ValueError(
            f"--depth {options.depth} beside a budget: give either a depth, or --max-ms and "
            "--max-memory"
        )
    formats = {job.format for job in jobs}
    format_is_open = None in formats  # that of the input, which is not read yet
    if options.lossless and not format_is_open and "WEBP" not in formats:
        raise ValueError(
            f"--lossless: no output is WebP, and the others have no such choice ({options.out})"
        )
    has_quality = format_is_open or "JPEG" in formats or "WEBP" in formats
    if options.quality is not None and (options.lossless or not has_quality):
        raise ValueError(
            f"--quality {options.quality}: no output is JPEG or lossy WebP; leave it out"
        )
    _check_pipes(jobs)


def _check_pipes(jobs: Sequence[Job]) -> None:
    """Refuse standard input and output that are closed, and images that would go to a terminal."""
    if any(job.source is None for job in jobs) and sys.stdin is None:
        raise ValueError("-: standard input is closed; name a file")
    if all(job.target is not None for job in jobs):
        return
    if sys.stdout is None:
        raise ValueError("-o -: standard output is closed; name a file")
    if sys.stdout.isatty():
        raise ValueError("-o -: an image would go to the terminal; pipe it on, or name a file")


def _tile(text: str) -> int | str | None:
    """The value of --tile as a plan takes it."""
    if text == "auto":
        return "auto"
    if text == "whole":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected auto, whole, or LR pixels a side")
    return int(text)


def _percent(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 1 to 100")
    return int(text)


def _positive_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0  # refused below with what came
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return value
