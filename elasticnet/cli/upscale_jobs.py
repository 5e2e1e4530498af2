"""Which files `elasticnet upscale` reads and writes, checked before any of them is touched."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from elasticnet._files import check_target, make_writable_folder
from elasticnet.sr.photo.writing import FORMATS, format_of

# what is looked for in folders
READ_EXTENSIONS = (*FORMATS, ".jfif", ".jpe", ".mpo", ".apng", ".gif", ".bmp", ".dib")
PIPE = "-"


class Job(NamedTuple):
    """One image to enlarge.

    Attributes:
        source: The file; None is standard input.
        target: The file; None is standard output.
        format: What is written; None where that of the input decides, as it can on standard output
            only.
    """

    source: Path | None
    target: Path | None
    format: str | None

    @property
    def name(self) -> str:
        """What messages call the input."""
        return "standard input" if self.source is None else str(self.source)


def plan_jobs(
    inputs: Sequence[str], out: str, extension: str | None = None, *, force: bool = False
) -> list[Job]:
    """Return a job for each image that is named; no file is read and no folder made.

    Several images, a folder or a glob are written into a folder under their own names. One image
    becomes a file.

    Args:
        inputs: Files, folders (their images, not those of subfolders), globs, or "-" alone.
        out: The file, the folder, or "-" for standard output.
        extension: Takes the place of the images' own in a folder, and says what is written on
            standard output; such as "png". Default: the images' own, and "png" for formats that
            are read only.
        force: Whether outputs that exist may be overwritten.

    Raises:
        ValueError: An input is missing, two images would become one file, an input would be
            overwritten, or the output does not fit.
        FileExistsError: An output exists and `force` is false.
        OSError: The folder of the output is missing, or cannot be written to.
    """
    _refuse_empty_names(inputs, out)
    sources, go_into_a_folder = _find_sources(inputs)
    if go_into_a_folder:
        jobs = _jobs_into_folder(sources, out, extension)
    elif out == PIPE:
        format = FORMATS[f".{extension}"] if extension else None
        jobs = [Job(source=sources[0], target=None, format=format)]
    else:
        jobs = [_job_into_file(sources[0], Path(out), extension)]
    _check_targets(jobs, force)
    return jobs


def _refuse_empty_names(inputs: Sequence[str], out: str) -> None:
    """An empty name, as of a shell variable that is not set, would be the present folder."""
    if out == "":
        raise ValueError("-o: the name is empty; name a file or a folder")
    if "" in inputs:
        raise ValueError("INPUT: the name is empty; name a file or a folder")


def _check_targets(jobs: Sequence[Job], force: bool) -> None:
    """Refuse to overwrite an input, and without `force` any file."""
    inputs = {_identity(job.source) for job in jobs if job.source is not None}
    targets = [job.target for job in jobs if job.target is not None]
    for target in targets:
        if target.exists() and _identity(target) in inputs:
            raise ValueError(
                f"{target} is an input too, and would be overwritten: choose another -o"
            )
    existing = [target for target in targets if os.path.lexists(target)]
    if existing and not force:
        others = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise FileExistsError(
            f"{existing[0]} exists{others}: use --force to overwrite, or choose another -o"
        )


def _find_sources(inputs: Sequence[str]) -> tuple[list[Path | None], bool]:
    """The images, None for standard input; and whether they go into a folder."""
    if PIPE in inputs:
        if len(inputs) > 1:
            raise ValueError(
                f"- beside {len(inputs) - 1} more: standard input is upscaled on its own"
            )
        return [None], False
    found: dict[str, Path] = {}  # by real path, because globs and folders may name a file twice
    go_into_a_folder = len(inputs) > 1
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            images = _images_in(path)
            go_into_a_folder = True
        elif not os.path.lexists(path) and glob.has_magic(name):
            images = _images_matching(name)
            go_into_a_folder = True
        elif path.exists():
            images = [path]
        else:
            raise ValueError(f"{name}: no such file or folder")
        for image in images:
            found[os.path.realpath(image)] = image
    return list(found.values()), go_into_a_folder


def _images_in(folder: Path) -> list[Path]:
    """The images of a folder by their extension, hidden files left out, in order."""
    images = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in READ_EXTENSIONS
        and not path.name.startswith(".")
        and path.is_file()
    ]
    if not images:
        raise ValueError(f"{folder}: a folder without images ({', '.join(READ_EXTENSIONS)})")
    return sorted(images)


def _images_matching(pattern: str) -> list[Path]:
    """The files that a glob names, whatever their extension, in order."""
    images = [Path(match) for match in glob.glob(pattern, recursive=True) if os.path.isfile(match)]
    if not images:
        raise ValueError(f"{pattern}: no file matches")
    return sorted(images)


def _jobs_into_folder(sources: Sequence[Path | None], out: str, extension: str | None) -> list[Job]:
    folder = Path(out)
    if out == PIPE:
        raise ValueError("-o -: standard output takes one image; name a folder for several")
    looks_like_a_file = folder.suffix.lower() in READ_EXTENSIONS
    if not folder.is_dir() and (folder.exists() or looks_like_a_file):
        raise ValueError(f"-o {out}: one file for several images; name a folder")
    job_of: dict[Path, Job] = {}  # by target
    for source in sources:
        assert source is not None  # standard input is upscaled on its own
        target = folder / (source.stem + _suffix_for(source, extension))
        if target in job_of:
            raise ValueError(
                f"{job_of[target].source} and {source} would both become {target}: "
                "upscale them separately"
            )
        job_of[target] = Job(source=source, target=target, format=format_of(target))
    return list(job_of.values())


def _suffix_for(source: Path, extension: str | None) -> str:
    """The ending of an output's name in a folder."""
    if extension:
        return f".{extension}"
    if source.suffix.lower() in FORMATS:
        return source.suffix
    return ".png"


def _job_into_file(source: Path | None, target: Path, extension: str | None) -> Job:
    if target.is_dir():
        name = f"{source.stem}.png" if source else "image.png"
        raise ValueError(
            f"-o {target}: a folder as the output of one image; name the file, "
            f"such as {target / name}"
        )
    format = format_of(target)
    if extension and FORMATS[f".{extension}"] != format:
        raise ValueError(f"--format {extension}: the output is {target}; leave one of the two out")
    check_target(target, overwrite=True)  # what exists is refused by name, with all jobs, later
    return Job(source=source, target=target, format=format)


def _identity(path: Path) -> tuple[int, int]:
    """What two names of one file have in common, links included."""
    found = path.stat()
    return found.st_dev, found.st_ino


def make_folder(jobs: Sequence[Job], out: str) -> None:
    """Make the folder that jobs write into, if they write into one.

    Args:
        jobs: What `plan_jobs` returned.
        out: As given there.

    Raises:
        OSError: The folder cannot be made, or not be written to.
    """
    folder = Path(out)
    if all(job.target is not None and job.target.parent == folder for job in jobs):
        make_writable_folder(folder)
