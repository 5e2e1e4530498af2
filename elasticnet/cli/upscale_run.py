"""The work of `elasticnet upscale`: images are read and written beside the network.

While the network enlarges one image, the next one is read and the last one is written, each in a
thread of its own. No more than these three images are held. Small images are enlarged and written
side by side, each on one core.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, ParamSpec, TypeVar

from tqdm import tqdm

from elasticnet._files import message_of, replacing
from elasticnet.cli.printable import printable
from elasticnet.cli.upscale_jobs import MAX_LISTED, Job, why_absent
from elasticnet.cli.upscale_networks import Network, Networks
from elasticnet.cli.upscale_workers import OneCoreWorkers
from elasticnet.sr.inference.tile_engine import TileEngine
from elasticnet.sr.inference.tile_layout import is_small
from elasticnet.sr.photo import ImageError, Photo, read_photo
from elasticnet.sr.photo.animation import (
    Animation,
    check_animation_fits,
    is_animated,
    read_animation,
    upscale_animation,
    write_animation,
)
from elasticnet.sr.photo.costs import PhotoCosts
from elasticnet.sr.photo.png_writer import FAST_LEVEL
from elasticnet.sr.photo.upscale import upscale_photo
from elasticnet.sr.photo.writing import FORMATS, KEPT_FORMATS, check_fits, write_photo

P = ParamSpec("P")
T = TypeVar("T")
IMAGES_AHEAD = 2  # small images in work or waiting for it, of each core
_stderr_lock = threading.Lock()  # held while C libraries are silenced, and while a line is printed


@dataclass(frozen=True)
class ReadImage:
    """An image that was read.

    Attributes:
        job: What it belongs to.
        image: A photograph or an animation.
        reading_ms: Milliseconds that reading took.
    """

    job: Job
    image: Photo | Animation
    reading_ms: float


@dataclass(frozen=True)
class PreparedImage:
    """An image that was read, and all that is decided about it.

    Attributes:
        job: What it belongs to.
        image: A photograph or an animation.
        format: What is written.
        size: Height and width of the result.
        plan: How the network runs.
        expectation: What it is expected to cost, in words; empty without a budget.
        reading_ms: Milliseconds that reading took.
    """

    job: Job
    image: Photo | Animation
    format: str
    size: tuple[int, int]
    plan: TileEngine
    expectation: str
    reading_ms: float


@dataclass(frozen=True)
class EnlargedImage:
    """An image that was enlarged and is to be written.

    Attributes:
        job: What it belongs to.
        image: A photograph or an animation.
        format: What is written.
        file: Where it is written; open.
        output: Closes the file, and puts it into its place if nothing has failed.
        depth: That was run.
        expectation: What it was expected to cost, in words; empty without a budget.
        reading_ms: Milliseconds that reading took.
        network_ms: Milliseconds that the network took, with all that is done to pixels.
    """

    job: Job
    image: Photo | Animation
    format: str
    file: BinaryIO
    output: ExitStack
    depth: int
    expectation: str
    reading_ms: float
    network_ms: float


class Runner:
    """Upscales images one after another, and small ones side by side.

    Args:
        networks: Which network an image gets.
        options: The parsed command line.
    """

    def __init__(self, networks: Networks, options: argparse.Namespace) -> None:
        self._networks = networks
        self._options = options
        self._workers = OneCoreWorkers(networks.num_side_by_side())
        self._costs = PhotoCosts() if options.max_ms is not None else None

    def run_single(self, job: Job) -> None:
        """Upscale one image, without threads.

        Args:
            job: Of the image.

        Raises:
            ValueError: The image cannot be used.
            OSError: It cannot be read or written.
        """
        prepared = self._prepare(self._read(job))
        self.say_notes(self._write(self._enlarge(prepared)))

    def run_all(self, jobs: Sequence[Job]) -> list[str]:
        """Upscale several images; one that fails does not stop the others.

        Args:
            jobs: Of the images.

        Returns:
            What failed, a line each.
        """
        self._find_costs(jobs)
        failures: list[str] = []
        unsettled: deque[tuple[Job, Future[list[str]]]] = deque()  # in the order of the images
        hide_bar = True if self._options.quiet else None  # None: not where it is no terminal
        reading = in_background(self._read, jobs[0])
        with (
            tqdm(total=len(jobs), desc="images", unit="image", disable=hide_bar) as bar,
            # At the end both wait for what has begun, whatever has happened: an image that is
            # enlarged already is written, and no file stays half written.
            ThreadPoolExecutor(1, "writer") as writer,
            self._workers,
        ):
            for index, job in enumerate(jobs):
                wait([reading])
                read = reading
                if index + 1 < len(jobs):
                    reading = in_background(self._read, jobs[index + 1])
                prepared = attempt(self._prepare_when_read, read)
                del read  # its photograph is not needed any more
                if self._can_share_cores(prepared):
                    writing = self._enlarge_beside_others(prepared)
                    max_unsettled = IMAGES_AHEAD * self._workers.num_workers
                else:
                    writing = self._enlarge_alone(prepared, unsettled, writer)
                    max_unsettled = 1
                del prepared
                unsettled.append((job, writing))
                while len(unsettled) > max_unsettled:
                    self._settle(*unsettled.popleft(), failures)
                    bar.update()
            while unsettled:
                self._settle(*unsettled.popleft(), failures)
                bar.update()
        return failures

    def _can_share_cores(self, prepared: Future[PreparedImage]) -> bool:
        """Whether an image runs beside others, on one core; one that has failed only says so."""
        if self._workers.num_workers <= 1:
            return False
        if prepared.exception() is not None:
            return True
        ready = prepared.result()
        if isinstance(ready.image, Animation):  # it has many frames
            return False
        return is_small(ready.plan, ready.image.size)

    def _enlarge_beside_others(self, prepared: Future[PreparedImage]) -> Future[list[str]]:
        """Enlarge a small image on one core, and write it there."""
        return self._workers.submit(self._enlarge_and_write, prepared)

    def _enlarge_alone(
        self,
        prepared: Future[PreparedImage],
        unsettled: Sequence[tuple[Job, Future[list[str]]]],
        writer: ThreadPoolExecutor,
    ) -> Future[list[str]]:
        """Enlarge an image on all cores now, and write it beside the next one."""
        _, before = unsettled[-1] if unsettled else (None, None)
        if len(unsettled) > 1:  # small images, which would take cores away
            wait([writing for _, writing in unsettled])
        enlarged = attempt(self._enlarge_when_prepared, prepared)
        # The thread waits until the image before is written, so that a file that is open always has
        # an owner who closes it, whatever happens here.
        return writer.submit(self._write_after, before, enlarged)

    def _settle(self, job: Job, writing: Future[list[str]], failures: list[str]) -> None:
        """Wait until an image is written or has failed, and say what there is to say."""
        try:
            notes = writing.result()
        except (OSError, ValueError) as error:
            if self._options.debug:
                traceback.print_exception(error)
            message = message_of(error)
            if job.name not in message:
                message = f"{job.name}: {message}"
            failures.append(message)
            say(f"elasticnet: {message}")
        else:
            self.say_notes(notes)

    def say_notes(self, notes: Sequence[str]) -> None:
        """Print lines, unless the user wants only errors.

        Args:
            notes: The lines.
        """
        if self._options.quiet:
            return
        for note in notes:
            say(note)

    # --- reading

    def _read(self, job: Job) -> ReadImage:
        """Read one image."""
        start = time.perf_counter()
        if job.source is None:
            data = io.BytesIO(sys.stdin.buffer.read())
            image = self._decoded(data, job.name)
        elif job.source.exists():
            image = self._read_file(job)
        else:  # a broken link, or gone since
            raise FileNotFoundError(why_absent(job.source))
        return ReadImage(job=job, image=image, reading_ms=_ms_since(start))

    def _read_file(self, job: Job) -> Photo | Animation:
        assert job.source is not None
        with open(job.source, "rb") as file:
            if file.seekable():
                return self._decoded(file, job.name)
            data = io.BytesIO(file.read())  # of a pipe
        return self._decoded(data, job.name)

    def _decoded(self, file: BinaryIO, name: str) -> Photo | Animation:
        max_pixels: int | None = self._options.max_pixels
        with _silenced_c_libraries():
            if is_animated(file):
                return read_animation(file, name, max_pixels=max_pixels)
            return read_photo(file, name=name, max_pixels=max_pixels)

    # --- the network

    def _prepare_when_read(self, reading: Future[ReadImage]) -> PreparedImage:
        """Prepare an image that was read; raises what reading has raised."""
        return self._prepare(reading.result())

    def _prepare(self, read: ReadImage) -> PreparedImage:
        """Decide how one image is enlarged; raises where that cannot be."""
        job, image = read.job, read.image
        format = _format_of(job, image)
        described = image.described if isinstance(image, Animation) else image
        with _named_errors(job):
            network = self._networks.for_image(image.size, described.format)
            self.say_notes(self._networks.take_notes())
            size = self._networks.size_of_result(network, image.size)
            if isinstance(image, Animation):
                check_animation_fits(image.num_frames, format, size)
            else:
                check_fits(image, format, size)  # before a budget measures anything
            plan, expectation = self._choose_depth(network, image, format, size)
        return PreparedImage(
            job=job,
            image=image,
            format=format,
            size=size,
            plan=plan,
            expectation=expectation,
            reading_ms=read.reading_ms,
        )

    def _enlarge_when_prepared(self, preparing: Future[PreparedImage]) -> EnlargedImage:
        """Enlarge an image that is prepared; raises what preparing has raised."""
        return self._enlarge(preparing.result())

    def _enlarge_and_write(self, preparing: Future[PreparedImage]) -> list[str]:
        """Enlarge and write an image that is prepared; raises what preparing has raised."""
        return self._write(self._enlarge(preparing.result(), show_tiles=False))

    def _enlarge(self, prepared: PreparedImage, *, show_tiles: bool = True) -> EnlargedImage:
        """Enlarge one image; its output is open from here on."""
        job = prepared.job
        with _named_errors(job), ExitStack() as output:
            # Opened before the network runs: a folder that cannot be written stops the work early.
            file = output.enter_context(_output(job, overwrite=self._options.force))
            start = time.perf_counter()
            with _tile_bar(job, is_hidden=self._options.quiet or not show_tiles) as progress:
                large = _enlarged(prepared, progress)
            return EnlargedImage(
                job=job,
                image=large,
                format=prepared.format,
                file=file,
                output=output.pop_all(),  # whoever writes closes it
                depth=prepared.plan.depth,
                expectation=prepared.expectation,
                reading_ms=prepared.reading_ms,
                network_ms=_ms_since(start),
            )

    def _choose_depth(
        self, network: Network, image: Photo | Animation, format: str, size: tuple[int, int]
    ) -> tuple[TileEngine, str]:
        """The plan for an image, and what it is expected to cost; no words without a budget."""
        if network.chooser is None:
            return network.plan, ""
        other_ms, instability = self._expected_beside_network(image, format, size)
        choice = network.chooser(image.size, other_ms)
        why_unsure = choice.instability or instability
        return choice.plan, _expectation(choice.cost, choice.source, why_unsure)

    def _find_costs(self, jobs: Sequence[Job]) -> None:
        """Measure what is not known yet before threads run, which would make it slower."""
        if self._costs is None:
            return
        self._costs.converting(0)
        for extension in {job.source.suffix.lower() for job in jobs if job.source is not None}:
            self._costs.reading(FORMATS.get(extension, ""), 0)
        for format in {job.format for job in jobs if job.format is not None}:
            self._costs.writing(format, self._writing_options(format), 0)

    def _expected_beside_network(
        self, image: Photo | Animation, format: str, size: tuple[int, int]
    ) -> tuple[float, str]:
        """What reading, converting and writing are expected to take, and why that may change."""
        if self._costs is None:
            return 0.0, ""
        photo = image.photo(0) if isinstance(image, Animation) else image
        bytes_of_a_pixel = photo.num_channels * photo.pixels.dtype.itemsize
        num_read = photo.size[0] * photo.size[1] * bytes_of_a_pixel
        num_written = size[0] * size[1] * bytes_of_a_pixel
        reading = self._costs.reading(photo.format, num_read)
        converting = self._costs.converting(num_written)
        writing = self._costs.writing(format, self._writing_options(format), num_written)
        return reading + converting + writing, self._costs.instability

    # --- writing

    def _writing_options(self, format: str) -> dict[str, Any]:
        """The options that matter for a format."""
        options = self._options
        if format == "PNG":
            level = FAST_LEVEL if options.png_level is None else options.png_level
            return {"png_level": level}
        if format == "JPEG":
            return {"quality": options.quality}
        if format == "WEBP":
            return {"quality": options.quality, "lossless": options.lossless}
        return {}

    def _write_after(
        self, before: Future[list[str]] | None, enlarged: Future[EnlargedImage]
    ) -> list[str]:
        """Write an image when the one before is written."""
        if before is not None:
            with suppress(CancelledError):
                before.exception()  # waits
        return self._write(enlarged.result())

    def _write(self, enlarged: EnlargedImage) -> list[str]:
        """Write one image into its place; returns what there is to say about it."""
        job, image = enlarged.job, enlarged.image
        options = self._writing_options(enlarged.format)
        start = time.perf_counter()
        with _named_errors(job), enlarged.output:
            if isinstance(image, Animation):
                lost = write_animation(image, enlarged.file, enlarged.format, **options)
            else:
                folder = job.target.parent if job.target else None
                lost = write_photo(image, enlarged.file, enlarged.format, folder=folder, **options)
        return self._notes_of(enlarged, lost, writing_ms=_ms_since(start))

    def _notes_of(
        self, enlarged: EnlargedImage, lost: Sequence[str], writing_ms: float
    ) -> list[str]:
        """What was lost, and the line that says what was made and how long it took."""
        job, image = enlarged.job, enlarged.image
        height, width = image.size
        num_frames = 1
        frames = ""
        made = image
        if isinstance(image, Animation):
            num_frames = image.num_frames
            frames = f", {num_frames} frames"
            made = image.described
        assert isinstance(made, Photo)
        total_ms = enlarged.reading_ms + enlarged.network_ms + writing_ms
        max_ms = self._options.max_ms
        over = ""
        if max_ms is not None and total_ms / num_frames > max_ms:
            over = f"; over --max-ms {max_ms:g}"
        target = job.target or "standard output"
        line = (
            f"{target}: {width}x{height}{frames}, depth {enlarged.depth}; "
            f"{enlarged.reading_ms:.0f} ms reading, {enlarged.network_ms:.0f} network, "
            f"{writing_ms:.0f} writing{over}{enlarged.expectation}"
        )
        return [*(f"{job.name}: {note}" for note in (*made.notes, *lost)), line]


def say(message: str) -> None:
    """Print one line on standard error, above the progress bars.

    Args:
        message: The line.
    """
    with _stderr_lock:
        tqdm.write(printable(message), file=sys.stderr)


def say_failures(failures: Sequence[str], num_jobs: int) -> None:
    """Say at the end how many images failed, and name the first of them again.

    Args:
        failures: A line each.
        num_jobs: How many images there were.
    """
    say(f"elasticnet: {len(failures)} of {num_jobs} images could not be upscaled:")
    for message in failures[:MAX_LISTED]:
        say(f"  {message}")
    if len(failures) > MAX_LISTED:
        say(f"  and {len(failures) - MAX_LISTED} more, named above")


# --- threads


def in_background(call: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> Future[T]:
    """Call a function in a thread of its own, which does not keep the program from ending.

    Args:
        call: The function.
        *arguments: Of the function.
        **keywords: Of the function.

    Returns:
        What the function returns or raises.
    """
    future: Future[T] = Future()

    def run() -> None:
        _run_into(future, lambda: call(*arguments, **keywords))

    threading.Thread(target=run, daemon=True).start()
    return future


def attempt(call: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> Future[T]:
    """Call a function now, and keep what goes wrong with an image for later.

    Args:
        call: The function.
        *arguments: Of the function.
        **keywords: Of the function.

    Returns:
        What the function returns, or the OSError or ValueError that it raises.
    """
    future: Future[T] = Future()
    try:
        future.set_result(call(*arguments, **keywords))
    except (OSError, ValueError) as error:
        future.set_exception(error)
    return future


def _run_into(future: Future[T], call: Callable[[], T]) -> None:
    try:
        future.set_result(call())
    except BaseException as error:  # whoever asks for the result gets it
        future.set_exception(error)


# --- the network, input and output


def _enlarged(prepared: PreparedImage, progress: Callable[[int, int], None]) -> Photo | Animation:
    """The image enlarged; `progress` is told how far it is."""
    target = prepared.job.target
    folder = target.parent if target else None
    if isinstance(prepared.image, Animation):
        return upscale_animation(
            prepared.image, prepared.plan, size=prepared.size, progress=progress, folder=folder
        )
    return upscale_photo(
        prepared.image, prepared.plan, size=prepared.size, progress=progress, folder=folder
    )


@contextmanager
def _named_errors(job: Job) -> Generator[None, None, None]:
    """Name the image in what goes wrong with it."""
    try:
        yield
    except ValueError as error:
        raise ImageError(f"{job.name}: {error}") from error
    except MemoryError as error:
        raise OSError(f"{job.name}: {error or 'out of memory'}") from error


def _format_of(job: Job, image: Photo | Animation) -> str:
    """What is written; a pipe gets the format of the input, if that can be written."""
    if job.format is not None:
        return job.format
    photo = image.described if isinstance(image, Animation) else image
    return photo.format if photo.format in KEPT_FORMATS else "PNG"


def _expectation(cost: str, source: str, instability: str) -> str:
    """What is said behind a line of what was expected."""
    unsure = f"; another run may choose another depth: {instability}" if instability else ""
    return f" (about {cost} expected, {source}{unsure})"


def _ms_since(start: float) -> float:
    return 1e3 * (time.perf_counter() - start)


@contextmanager
def _silenced_c_libraries() -> Generator[None, None, None]:
    """Drop what C libraries print: libtiff comments on damaged files before the error is raised."""
    with _stderr_lock:
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
def _output(job: Job, overwrite: bool) -> Generator[BinaryIO, None, None]:
    """A seekable file that becomes the target, or goes to standard output, when all went well."""
    if job.target is not None:
        with replacing(job.target, overwrite=overwrite) as file:
            yield file
        return
    with tempfile.TemporaryFile() as file:
        yield file
        file.seek(0)
        shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()


@contextmanager
def _tile_bar(job: Job, is_hidden: bool) -> Generator[Callable[[int, int], None], None, None]:
    """A bar over the tiles of one image, and the function that moves it."""
    name = job.source.name if job.source else job.name
    with tqdm(desc=name, unit="tile", leave=False, disable=is_hidden or None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.n = done
            bar.refresh()

        yield progress
