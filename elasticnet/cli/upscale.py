"""`elasticnet upscale`: enlarge photographs, at a chosen depth or the deepest that fits a
budget.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import torch
from tqdm import tqdm

from elasticnet.checkpoint import load
from elasticnet.cli.arguments import check_device

if TYPE_CHECKING:
    from pathlib import Path

    from elasticnet.cli.upscale_jobs import Job
    from elasticnet.sr.inference.plan import UpscalePlan

# of an image of (height, width); and a word about it
ChooseDepth = Callable[[tuple[int, int]], "tuple[UpscalePlan, str]"]
Number = TypeVar("Number", int, float)
EXTENSIONS = ("png", "jpg", "jpeg", "webp", "tif", "tiff")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from elasticnet.sr.models.pretrained import packaged

    parser = commands.add_parser(
        "upscale", help="enlarge photographs: files, folders, globs, standard input"
    )
    parser.description = (
        "Enlarge photographs with everything that belongs to them: alpha, 16 bits, EXIF, colour profile, DPI. "
        "Several images, a folder or a glob go into the folder OUT under their own names. The exit status is 0, "
        "1 when some of several images could not be used, 2 for bad input, 130 after Ctrl-C."
    )
    add = parser.add_argument
    add(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="images, folders of images, globs, or - for standard input",
    )
    add(
        "-o",
        "--out",
        required=True,
        metavar="OUT",
        help="a file, a folder for several images, or - (standard output)",
    )
    add(
        "--scale",
        type=int,
        help=f"how many times as long each side becomes; {packaged()}; default: that of --weights",
    )
    add(
        "--weights",
        metavar="FILE",
        help="a checkpoint that elasticnet.save wrote, instead of the package's",
    )
    budget = parser.add_argument_group("depth", "how much of the network runs; default: all of it")
    budget.add_argument(
        "--depth", type=int, metavar="N", help="the first N blocks, of five in the package"
    )
    budget.add_argument(
        "--max-ms",
        type=_positive(float),
        metavar="T",
        help="the deepest that takes at most T ms an image",
    )
    budget.add_argument(
        "--max-memory",
        type=_positive(float),
        metavar="MB",
        help="the deepest that takes at most MB megabytes",
    )
    add(
        "--tile",
        type=_tile,
        default="auto",
        help="LR pixels a side of what runs at a time, 'whole', or 'auto' (default)",
    )
    add(
        "--self-ensemble",
        action="store_true",
        help="mean over the eight symmetries of the input; eight times slower",
    )
    add(
        "--format",
        choices=EXTENSIONS,
        metavar="EXT",
        help=f"of images in a folder or on a pipe: {', '.join(EXTENSIONS)}",
    )
    add(
        "--quality", type=_percent, metavar="Q", help="of JPEG and lossy WebP, 1 to 100; default 95"
    )
    add("--lossless", action="store_true", help="write WebP without loss")
    add("--force", action="store_true", help="overwrite outputs that exist")
    add(
        "--max-pixels",
        type=_positive(int),
        metavar="N",
        help="read images of up to N pixels; default: Pillow's limit",
    )
    add(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="default here: %(default)s",
    )
    add("--quiet", action="store_true", help="no progress and no notes, only errors")
    add(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show the traceback of an error",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    try:
        return _run(options)
    except KeyboardInterrupt:
        if options.debug:
            raise
        print(
            "elasticnet: interrupted; images that were not finished have left nothing behind",
            file=sys.stderr,
        )
        return 130  # what a shell reports after Ctrl-C


def _run(options: argparse.Namespace) -> int:
    from elasticnet.cli.upscale_jobs import make_folder, plan_jobs

    jobs = plan_jobs(options.inputs, options.out, options.format, force=options.force)
    _check_options(options, jobs)
    plan, weights = _plan(options)
    make_folder(jobs, options.out)
    choose: ChooseDepth = lambda size: (plan, "")  # noqa: E731
    if options.max_ms or options.max_memory:
        from elasticnet.cli.upscale_depth import DepthChooser

        choose = DepthChooser(plan, weights, max_ms=options.max_ms, max_memory=options.max_memory)
    several = len(jobs) > 1
    failed: list[str] = []
    # disable=None: no bars where standard error is not a terminal
    for job in tqdm(jobs, "images", unit="image", disable=options.quiet or not several or None):
        try:
            for note in _upscale(job, choose, options):
                if not options.quiet:
                    tqdm.write(note, file=sys.stderr)
        except (OSError, ValueError) as error:
            if not several:
                raise
            if options.debug:
                traceback.print_exc()
            failed.append(str(error) if job.name in str(error) else f"{job.name}: {error}")
            tqdm.write(f"elasticnet: {failed[-1]}", file=sys.stderr)
    if failed:
        print(
            f"elasticnet: {len(failed)} of {len(jobs)} images could not be upscaled:",
            file=sys.stderr,
        )
        for message in failed:
            print(f"  {message}", file=sys.stderr)
    return 1 if failed else 0


def _upscale(job: Job, choose: ChooseDepth, options: argparse.Namespace) -> list[str]:
    """Enlarge one image and write it; returns what there is to say about it."""
    from elasticnet.sr.data.images import ImageError
    from elasticnet.sr.photo import read_photo
    from elasticnet.sr.photo.upscale import upscale_photo
    from elasticnet.sr.photo.write import FORMATS, check_fits, write_photo

    source = io.BytesIO(sys.stdin.buffer.read()) if job.source is None else job.source
    with _without_chatter():
        photo = read_photo(source, max_pixels=options.max_pixels)
    format = job.format or (photo.format if photo.format in FORMATS.values() else "PNG")
    folder = job.target.parent if job.target else None
    try:
        plan, reason = choose(photo.size)
        check_fits(photo, format, plan.scale)
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
    height, width = large.size
    summary = f"{job.target or 'standard output'}: {width}x{height}, depth {plan.depth}{reason}"
    return [*(f"{job.name}: {note}" for note in (*large.notes, *lost)), summary]


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Drop what C libraries print: libtiff comments on damaged files before the error that is
    raised.
    """
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
def _output(job: Job, force: bool) -> Iterator[BinaryIO]:
    """A seekable file that becomes the target, or goes to standard output, when all went well."""
    from elasticnet.sr.photo.write import replacing

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
def _tile_bar(job: Job, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    name = job.source.name if job.source else job.name
    with tqdm(desc=name, unit="tile", leave=False, disable=quiet or None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.refresh()

        yield progress


def _plan(options: argparse.Namespace) -> tuple[UpscalePlan, str | Path]:
    """What the network will do with images, and its file."""
    from elasticnet.sr.inference.plan import plan_upscale
    from elasticnet.sr.models.pretrained import packaged, weights_file

    if options.weights is None and options.scale is None:
        raise ValueError(f"no --scale: give it ({packaged()}), or the --weights of a network")
    weights = options.weights or weights_file(options.scale)
    check_device(options.device)
    net = load(weights, options.depth, device=options.device)
    plan = plan_upscale(net, tile=options.tile, self_ensemble=options.self_ensemble)
    if options.scale not in (None, plan.scale):
        raise ValueError(
            f"--scale {options.scale}: {weights} enlarges {plan.scale} times; leave --scale out"
        )
    return plan, weights


def _check_options(options: argparse.Namespace, jobs: Sequence[Job]) -> None:
    formats = {job.format for job in jobs}
    if options.depth is not None and (options.max_ms or options.max_memory):
        raise ValueError(
            f"--depth {options.depth} beside a budget: give either a depth, or --max-ms and --max-memory"
        )
    if options.lossless and not formats & {"WEBP", None}:
        raise ValueError(
            f"--lossless: no output is WebP, and the others have no such choice ({options.out})"
        )
    if options.quality is not None and (options.lossless or not formats & {"JPEG", "WEBP", None}):
        raise ValueError(
            f"--quality {options.quality}: no output is JPEG or lossy WebP; leave it out"
        )
    if None in (job.source for job in jobs) and sys.stdin is None:
        raise ValueError("-: standard input is closed; name a file")
    if None in (job.target for job in jobs) and sys.stdout is None:
        raise ValueError("-o -: standard output is closed; name a file")
    if None in (job.target for job in jobs) and sys.stdout.isatty():
        raise ValueError("-o -: an image would go to the terminal; pipe it on, or name a file")


def _tile(text: str) -> int | str | None:
    if text in ("auto", "whole"):
        return None if text == "whole" else "auto"
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected auto, whole, or LR pixels a side")
    return int(text)


def _percent(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 1 to 100")
    return int(text)


def _positive(kind: Callable[[str], Number]) -> Callable[[str], Number]:
    def positive(text: str) -> Number:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text}: expected a number above 0")
        return value

    positive.__name__ = kind.__name__  # what argparse calls it when the text is no number
    return positive
