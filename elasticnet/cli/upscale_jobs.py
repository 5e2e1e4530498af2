"""Which files `elasticnet upscale` reads and writes, checked before any of them is touched."""

from __future__ import annotations

import errno
import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from elasticnet.sr.photo.write import FORMATS, format_of

# looked for in folders
READ_EXTENSIONS = (*FORMATS, ".jfif", ".jpe", ".mpo", ".apng", ".gif", ".bmp", ".dib")
PIPE = "-"


class Job(NamedTuple):
    """One image to enlarge; source None is standard input, target None standard output.

    format: None where that of the input decides, as it can on standard output only.
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
    """Return a job for each image that `inputs` names: files, folders (their images, not those of
    subfolders), globs.

    Several images, a folder or a glob are written into the folder `out` under their own names;
    `extension` (such as "png") takes the place of theirs, and ".png" that of formats which are read
    only. One image becomes the file `out`. Makes no folder. Raises ValueError, or the OSError that
    fits, when an input is missing, two images would become one file, an input would be overwritten,
    or an output exists and `force` is false.
    """
    if "" in (out, *inputs):
        raise ValueError(
            f"{'-o' if out == '' else 'INPUT'}: the name is empty; name a file or a folder"
        )
    sources, many = _sources(inputs)
    if many:
        jobs = _into_folder(sources, out, extension)
    elif out == PIPE:
        jobs = [Job(sources[0], None, FORMATS[f".{extension}"] if extension else None)]
    else:
        jobs = [_into_file(sources[0], Path(out), extension)]
    targets = [job.target for job in jobs if job.target is not None]
    originals = {_identity(source) for source in sources if source is not None}
    for target in targets:
        if target.exists() and _identity(target) in originals:
            raise ValueError(
                f"{target} is an input too, and would be overwritten: choose another -o"
            )
    existing = [target for target in targets if os.path.lexists(target)]
    if existing and not force:
        others = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise FileExistsError(
            f"{existing[0]} exists{others}: use --force to overwrite, or choose another -o"
        )
    return jobs


def _sources(inputs: Sequence[str]) -> tuple[list[Path | None], bool]:
    """The images, None for standard input; and whether they go into a folder."""
    if PIPE in inputs:
        if len(inputs) > 1:
            raise ValueError(
                f"- beside {len(inputs) - 1} more: standard input is upscaled on its own"
            )
        return [None], False
    found: dict[str, Path] = {}  # by real path, because globs and folders may name a file twice
    many = len(inputs) > 1
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            files = [
                file
                for file in path.iterdir()
                if file.suffix.lower() in READ_EXTENSIONS and file.is_file()
            ]
            images = sorted(file for file in files if not file.name.startswith("."))
            problem = f"{name}: a folder without images ({', '.join(READ_EXTENSIONS)})"
            many = True
        elif not os.path.lexists(path) and glob.has_magic(name):
            images = sorted(
                Path(match) for match in glob.glob(name, recursive=True) if os.path.isfile(match)
            )
            problem = f"{name}: no file matches"
            many = True
        else:
            images = [path] if path.exists() else []
            problem = f"{name}: no such file or folder"
        if not images:
            raise ValueError(problem)
        found |= {os.path.realpath(image): image for image in images}
    return list(found.values()), many


def _into_folder(sources: Sequence[Path | None], out: str, extension: str | None) -> list[Job]:
    folder = Path(out)
    if out == PIPE:
        raise ValueError("-o -: standard output takes one image; name a folder for several")
    if not folder.is_dir() and (folder.exists() or folder.suffix.lower() in READ_EXTENSIONS):
        raise ValueError(f"-o {out}: one file for several images; name a folder")
    jobs: dict[Path, Job] = {}
    for source in sources:
        assert source is not None
        suffix = (
            f".{extension}"
            if extension
            else source.suffix
            if source.suffix.lower() in FORMATS
            else ".png"
        )
        target = folder / (source.stem + suffix)
        if target in jobs:
            raise ValueError(
                f"{jobs[target].source} and {source} would both become {target}: upscale them separately"
            )
        jobs[target] = Job(source, target, format_of(target))
    return list(jobs.values())


def _into_file(source: Path | None, target: Path, extension: str | None) -> Job:
    if target.is_dir():
        name = f"{source.stem}.png" if source else "image.png"
        raise ValueError(
            f"-o {target}: a folder as the output of one image; name the file, such as {target / name}"
        )
    format = format_of(target)
    if extension and FORMATS[f".{extension}"] != format:
        raise ValueError(f"--format {extension}: the output is {target}; leave one of the two out")
    if not target.parent.is_dir():
        raise ValueError(f"-o {target}: there is no folder {target.parent}; make it first")
    return Job(source, target, format)


def _identity(path: Path) -> tuple[int, int]:
    """What two names of one file have in common, links included."""
    found = path.stat()
    return found.st_dev, found.st_ino


def make_folder(jobs: Sequence[Job], out: str) -> None:
    """Make the folder `out`, where that is what the jobs write into."""
    folder = Path(out)
    if any(job.target is None or job.target.parent != folder for job in jobs):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            error.errno, f"-o {folder}: cannot make this folder ({error.strerror})"
        ) from error
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, f"-o {folder}: this folder cannot be written to")
