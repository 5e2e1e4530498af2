"""Enlarge a folder of millions of photographs with Ray, on one machine or on a cluster.

    python recipes/upscale_ray.py photos/ --out large/ --scale 4 --workers 2
    python recipes/upscale_ray.py photos/ --out large/ --recursive --max-ms 300
    python recipes/upscale_ray.py photos/ --out large/ --address auto --workers 64   on a cluster

Ray Data gives the names of the photographs to workers, each of which holds one network. A worker
reads a file once, enlarges it, and writes the result under its own name in OUT as a whole or not at
all. Where a worker dies, Ray starts another one and gives it the same names again: results that
exist are left as they are. So does a second run: it does what is missing. Photographs that cannot
be read or written are listed in OUT/failures.jsonl, the others go on; the exit status is then 1.

It needs Ray: pip install "elastic-depth[ray]". Without Ray, `elasticnet upscale --shard 3/16`
divides a folder by the names, so that 16 machines need not know of each other.
"""

from __future__ import annotations

import elasticnet.before_torch  # sets what must be set before torch is imported # noqa: F401

# isort: split
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from tqdm import tqdm

from elasticnet._files import (
    check_target,
    make_writable_folder,
    message_of,
    replacing,
    write_atomic,
)
from elasticnet.cli.upscale_jobs import Job, make_folders, plan_jobs
from elasticnet.sr import Upscaler
from elasticnet.sr.photo import ImageError, read_photo
from elasticnet.sr.photo.upscale import upscale_photo
from elasticnet.sr.photo.writing import write_photo
from elasticnet.training.program import run_program

try:
    import ray  # pyright: ignore[reportMissingImports] - an extra
    import ray.data  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError:
    raise SystemExit('error: this recipe needs Ray: pip install "elastic-depth[ray]"') from None

# A cluster that this program starts for itself listens on this machine alone.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
logging.getLogger("ray.data").setLevel(logging.WARNING)

FAILURES = "failures.jsonl"
STATUSES = ("written", "there", "failed")


@dataclass(frozen=True)
class Options:
    """How a folder is enlarged."""

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Photographs, folders of photographs, globs."""
    out: Path
    """The folder of the results; they keep their names."""
    recursive: bool = False
    """Go through folders in folders, too; OUT then has the same ones."""
    format: Literal["png", "jpg", "webp", "tif"] | None = None
    """What is written. None: each photograph's own format."""
    quality: int | None = None
    """Of JPEG and WebP, 1 to 100. None: 95."""
    scale: int = 4
    """How many times as long each side becomes, by the packaged net, where no weights are given."""
    weights: str | None = None
    """A file of `elasticnet.save`, or a packaged net such as asrn-x4:published."""
    depth: int | None = None
    """The depth that runs. None: the net's own, or what --max-ms chooses."""
    max_ms: float | None = None
    """Milliseconds that a photograph may take in a worker: it chooses the depth."""
    workers: int = 2
    """Processes that enlarge. Each holds one network."""
    threads: int = 1
    """Threads of each worker. On small photographs, more workers are faster than more threads."""
    batch: int = 4
    """Photographs that a worker is given at once: so many begin anew if it dies."""
    address: str | None = None
    """A Ray cluster, such as auto. None: Ray is started on this machine for this run."""


class Outcome(NamedTuple):
    """What became of one photograph.

    Attributes:
        source: Its file.
        status: "written", "there" (the result existed already) or "failed".
        reason: Why it failed, or an empty text.
        milliseconds: How long reading, network and writing took together.
    """

    source: str
    status: str
    reason: str
    milliseconds: float


class PhotoWorker:
    """One network, which enlarges the photographs that Ray gives it.

    Args:
        options: As on the command line.
    """

    def __init__(self, options: Options) -> None:
        torch.set_num_threads(options.threads)
        self.options = options
        self.upscaler = Upscaler(
            options.weights,
            options.depth,
            scale=options.scale if options.weights is None else None,
            max_ms=options.max_ms,
        )

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, Any]:
        """Return what became of each photograph of a batch, a column for each field of `Outcome`.

        Args:
            batch: The columns "source", "target" and "format", each of texts.
        """
        columns = (batch["source"], batch["target"], batch["format"])
        outcomes = [self.enlarge(*map(str, job)) for job in zip(*columns, strict=True)]
        return {
            field: np.array([getattr(outcome, field) for outcome in outcomes])
            for field in Outcome._fields
        }

    def enlarge(self, source: str, target: str, format: str) -> Outcome:
        """Enlarge one file, unless its result exists.

        Args:
            source: The photograph.
            target: The result.
            format: What is written, such as "PNG".
        """
        start = time.perf_counter()
        if os.path.exists(target):  # by a worker that died before it could say so
            return Outcome(source, "there", reason="", milliseconds=0.0)
        try:
            photo = read_photo(source)
            large = upscale_photo(photo, self.upscaler, folder=self.options.out)
            with replacing(target) as file:
                write_photo(
                    large, file, format, quality=self.options.quality, folder=self.options.out
                )
        except (ImageError, OSError, ValueError, MemoryError) as error:
            return Outcome(source, "failed", message_of(error), milliseconds=0.0)
        milliseconds = (time.perf_counter() - start) * 1e3
        return Outcome(source, "written", reason="", milliseconds=milliseconds)


def parse(arguments: Sequence[str]) -> Options:
    """Read a command line; ends the process after --help or an error."""
    return tyro.cli(Options, args=arguments, description=__doc__)


def main(options: Options) -> None:
    """Enlarge all photographs whose results are missing."""
    make_writable_folder(options.out)
    plan = plan_jobs(
        options.inputs,
        f"{options.out}{os.sep}",
        options.format,
        recursive=options.recursive,
        skip_existing=True,
    )
    for note in plan.notes:
        print(note)
    report = options.out / FAILURES
    check_target(report, overwrite=True)
    if not plan.jobs:
        print("nothing is left to do")
        report.unlink(missing_ok=True)
        return
    make_folders(plan.jobs, str(options.out))

    start = time.perf_counter()
    counts: dict[str, int] = dict.fromkeys(STATUSES, 0)
    failures: list[str] = []
    progress = tqdm(outcomes(plan.jobs, options), total=len(plan.jobs), unit="photo", disable=None)
    for outcome in progress:
        counts[outcome.status] += 1
        if outcome.status == "failed":
            failures.append(json.dumps({"source": outcome.source, "reason": outcome.reason}))
            tqdm.write(f"failed: {outcome.reason}")
            write_atomic(report, "\n".join(failures) + "\n")
    seconds = time.perf_counter() - start

    print(
        f"{counts['written']:,} written, {counts['there']:,} were there, "
        f"{counts['failed']:,} failed; {counts['written'] / seconds:.2f} photographs a second"
    )
    if not failures:
        report.unlink(missing_ok=True)  # of an earlier run
        return
    raise SystemExit(f"{len(failures):,} photographs failed: {report} says why")


def outcomes(jobs: Sequence[Job], options: Options) -> Iterator[Outcome]:
    """Yield what becomes of each photograph, in the order in which workers finish.

    Args:
        jobs: What is to be done; each has a source and a target.
        options: As on the command line.
    """
    on_this_machine = options.address is None
    ray.init(
        address=options.address,
        # one more than the workers use, for what Ray itself runs beside them
        num_cpus=options.workers * options.threads + 1 if on_this_machine else None,
        include_dashboard=False,
        logging_level="warning",
        runtime_env={"env_vars": {"OMP_NUM_THREADS": str(options.threads)}},
    )
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False  # `main` shows one
        rows = [
            {"source": str(job.source), "target": str(job.target), "format": str(job.format)}
            for job in jobs
        ]
        # Where a worker dies, Ray Data starts another one and gives it the batch.
        finished = ray.data.from_items(rows).map_batches(
            PhotoWorker,
            fn_constructor_args=(options,),
            batch_size=options.batch,
            num_cpus=options.threads,
            compute=ray.data.ActorPoolStrategy(size=options.workers),
        )
        for row in finished.iter_rows():
            yield Outcome(**row)
    finally:
        ray.shutdown()


if __name__ == "__main__":
    run_program(main, parse)
