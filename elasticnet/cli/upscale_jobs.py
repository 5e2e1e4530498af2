"""Which files `elasticnet upscale` reads and writes, checked before any of them is touched."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from elasticnet._files import check_target, make_writable_folder
from elasticnet.sr.photo.reading import OTHER_EXTENSIONS, READ_EXTENSIONS
from elasticnet.sr.photo.writing import FORMATS, KEPT_FORMATS, format_of

PIPE = "-"
MAX_NAME = 255  # bytes of a file's name, on all common file systems
_SEPARATORS = ("/", os.sep)  # a name that ends in one is a folder's
MAX_LISTED = 5  # names that a message lists


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


class JobPlan(NamedTuple):
    """What a command line asks for.

    Attributes:
        jobs: What is to be done.
        num_images: How many images were named, those whose output exists already included.
        notes: What was left out, a line each.
    """

    jobs: list[Job]
    num_images: int
    notes: list[str]


class _Image(NamedTuple):
    """An image that is named.

    Attributes:
        path: Its file; None is standard input.
        folder: Where it lies below the folder that was given; "." for all others.
    """

    path: Path | None
    folder: Path


class _Sources(NamedTuple):
    """The images that are named.

    Attributes:
        images: In order, each once.
        go_into_a_folder: Whether several images may have been meant.
        notes: What was left out of folders and globs, a line each.
    """

    images: list[_Image]
    go_into_a_folder: bool
    notes: list[str]


def plan_jobs(
    inputs: Sequence[str],
    out: str | None,
    extension: str | None = None,
    *,
    suffix: str = "",
    recursive: bool = False,
    shard: tuple[int, int] | None = None,
    force: bool = False,
    skip_existing: bool = False,
) -> JobPlan:
    """Return a job for each image that is named; no file is read and no folder made.

    Several images, a folder or a glob are written into a folder under their own names. One image
    becomes a file, or goes into a folder if `out` is one or ends in a slash. Without `out` each
    result lies beside its image.

    Args:
        inputs: Files, folders (their images), globs, or "-" alone.
        out: The file, the folder, "-" for standard output, or None for the images' own folders.
        extension: Takes the place of the images' own in a folder, and says what is written on
            standard output; such as "png". Default: the images' own, and "png" for formats that
            are read only, and for GIF.
        suffix: What the names of results in a folder, and beside their images, have behind them.
            Images of a folder or a glob that end in it already are left out where results lie
            beside their images: they are results.
        recursive: Whether folders in a folder are gone through, too; `out` then has the same ones.
        shard: The number of a part, from 1, and how many parts there are: only its images are
            taken. Which part an image belongs to depends on the name of its result in `out` alone,
            so that a run whose images are named in another way, or that goes on, divides them
            equally.
        force: Whether outputs that exist may be overwritten.
        skip_existing: Whether images whose output exists are left out.

    Raises:
        ValueError: An input is missing, two images would become one file, an input would be
            overwritten, or the output does not fit.
        FileExistsError: An output exists, and neither `force` nor `skip_existing` is true.
        OSError: The folder of the output is missing, or cannot be written to.
    """
    _refuse_empty_names(inputs, out)
    _check_suffix(suffix, out)
    sources = _find_sources(inputs, recursive, out)
    if out is None:
        sources = _without_results(sources, suffix)
    jobs = _jobs_for(sources, out, extension, suffix)
    notes = list(sources.notes)
    num_images = len(sources.images)
    if shard is not None:
        jobs = _part_of(jobs, out, shard)
        number, num_parts = shard
        notes.append(f"part {number}/{num_parts}: {len(jobs)} of {num_images} images")
        num_images = max(2, num_images)  # one image of a part is one of several
    existing = _check_targets(jobs)
    if existing and skip_existing:
        notes.append(f"{len(existing)} of {len(jobs)} outputs exist and were left as they are")
        taken = set(existing)
        jobs = [job for job in jobs if job.target not in taken]
    elif existing and not force:
        others = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise FileExistsError(
            f"{existing[0]} exists{others}: use --force to overwrite, --skip-existing to go on "
            "with the others, or choose another -o"
        )
    return JobPlan(jobs=jobs, num_images=num_images, notes=notes)


def _jobs_for(sources: _Sources, out: str | None, extension: str | None, suffix: str) -> list[Job]:
    """A job for each image, whether its output exists or not."""
    if out is None:
        return _jobs_into_folders(sources.images, None, extension, suffix)
    first = sources.images[0].path
    names_a_folder = out != PIPE and (out.endswith(_SEPARATORS) or Path(out).is_dir())
    if sources.go_into_a_folder or (names_a_folder and first is not None):
        _check_folder(out)
        return _jobs_into_folders(sources.images, Path(out), extension, suffix)
    if suffix:
        raise ValueError(
            f"--suffix {suffix}: -o {out} is the whole name of the result; leave one of them out"
        )
    if out == PIPE:
        format = FORMATS[f".{extension}"] if extension else None
        return [Job(source=first, target=None, format=format)]
    return [_job_into_file(first, out, extension)]


def _refuse_empty_names(inputs: Sequence[str], out: str | None) -> None:
    """An empty name, as of a shell variable that is not set, would be the present folder."""
    if out == "":
        raise ValueError("-o: the name is empty; name a file or a folder")
    if "" in inputs:
        raise ValueError("INPUT: the name is empty; name a file or a folder")


def _part_of(jobs: Sequence[Job], out: str | None, shard: tuple[int, int]) -> list[Job]:
    """The jobs of one part of several; each job belongs to one of them."""
    number, num_parts = shard
    kept: list[Job] = []
    for job in jobs:
        if job.target is None:
            raise ValueError(f"--shard {number}/{num_parts}: -o - has one image; leave one out")
        name = job.target.name if out is None else os.path.relpath(job.target, out)
        digest = hashlib.sha256(os.fsencode(name)).digest()
        if int.from_bytes(digest[:8], "big") % num_parts == number - 1:
            kept.append(job)
    return kept


def _check_suffix(suffix: str, out: str | None) -> None:
    """Refuse a suffix that would be a folder, or that would let results replace their images."""
    if any(separator in suffix for separator in _SEPARATORS):
        separators = " or ".join(sorted(set(_SEPARATORS)))
        raise ValueError(f"--suffix {suffix}: a part of a name, without {separators}")
    if out is None and suffix == "":
        raise ValueError("--suffix '': results beside their images need one, or give -o OUT")


def _without_results(sources: _Sources, suffix: str) -> _Sources:
    """The images that are not results of an earlier run beside them."""
    if not sources.go_into_a_folder:  # the only image was named by the user
        return sources
    images: list[_Image] = []
    results: list[str] = []
    for image in sources.images:
        if image.path is not None and image.path.stem.endswith(suffix):
            results.append(image.path.name)
        else:
            images.append(image)
    if not results:
        return sources
    if not images:
        raise ValueError(f"every image ends in {suffix} already: choose another --suffix, or -o")
    notes = [*sources.notes, f"{_count_and_names(results)} left out, as results ({suffix})"]
    return sources._replace(images=images, notes=notes)


def _check_targets(jobs: Sequence[Job]) -> list[Path]:
    """Refuse to overwrite an input, and what is no file; returns the outputs that exist."""
    inputs = {_identity(job.source) for job in jobs if job.source and job.source.exists()}
    existing: list[Path] = []
    for job in jobs:
        target = job.target
        if target is None:
            continue
        _check_name(target)
        if target.exists():
            if _identity(target) in inputs:
                raise ValueError(
                    f"{target} is an input too, and would be overwritten: choose another -o"
                )
            if not target.is_file():
                raise ValueError(
                    f"{target}: no file that can be replaced; use -o - and redirect it"
                )
        if os.path.lexists(target):
            existing.append(target)
    return existing


def _check_name(target: Path) -> None:
    num_bytes = len(os.fsencode(target.name))
    if num_bytes > MAX_NAME:
        raise ValueError(
            f"{target}: a name of {num_bytes} bytes, and file systems take {MAX_NAME}; "
            "rename the input, or choose another --format or -o"
        )


def _find_sources(inputs: Sequence[str], recursive: bool, out: str | None) -> _Sources:
    """The images that the command line names, each once."""
    here = Path()
    if PIPE in inputs:
        if len(inputs) > 1:
            raise ValueError(
                f"- beside {len(inputs) - 1} more: standard input is upscaled on its own"
            )
        if out is None:
            raise ValueError("-: standard input has no name to put a result beside; give -o OUT")
        return _Sources(images=[_Image(None, here)], go_into_a_folder=False, notes=[])
    # By the real folder and the name, because globs and folders may name a file twice.
    found: dict[str, _Image] = {}
    notes: list[str] = []
    go_into_a_folder = len(inputs) > 1
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            images = _images_below(path, notes, recursive, out)
            go_into_a_folder = True
        elif not os.path.lexists(path) and glob.has_magic(name):
            images = [_Image(match, here) for match in _images_matching(name, notes)]
            go_into_a_folder = True
        elif path.exists():
            images = [_Image(path, here)]
        else:
            raise ValueError(why_absent(path))
        for image in images:
            assert image.path is not None
            # A link to an image has a name of its own, and so an output.
            folder = os.path.realpath(image.path.parent)
            found[os.path.join(folder, image.path.name)] = image
    return _Sources(list(found.values()), go_into_a_folder, notes)


def _images_below(folder: Path, notes: list[str], recursive: bool, out: str | None) -> list[_Image]:
    """The images of a folder, and with `recursive` those of all folders in it.

    Hidden folders, links to folders, and the folder of the results are left out.
    """
    if not recursive:
        return [_Image(path, Path()) for path in _images_in(folder, notes)]
    results = os.path.realpath(out) if out is not None else None
    images: list[_Image] = []
    for root, names, _ in os.walk(folder):
        names[:] = sorted(
            name
            for name in names
            if not name.startswith(".") and os.path.realpath(os.path.join(root, name)) != results
        )
        place = Path(root)
        for path in _images_in(place, notes, may_be_empty=True, says_folders=False):
            images.append(_Image(path, place.relative_to(folder)))
    if not images:
        raise ValueError(f"{folder}: no folder in it has images ({', '.join(READ_EXTENSIONS)})")
    return images


def why_absent(path: Path) -> str:
    """Return what to say of a file that is not there: links are named with where they lead.

    Args:
        path: The name that was looked for.
    """
    if path.is_symlink():
        return f"{path}: a broken link to {os.readlink(path)}"
    return f"{path}: no such file or folder"


def _is_file_or_broken_link(path: Path) -> bool:
    """Broken links count as files: they fail by name when they are read."""
    is_broken_link = path.is_symlink() and not path.exists()
    return path.is_file() or is_broken_link


def _images_in(
    folder: Path, notes: list[str], *, may_be_empty: bool = False, says_folders: bool = True
) -> list[Path]:
    """The images of a folder by their extension, hidden files left out, in order.

    Images of formats that are not read are among them: they fail by name.
    """
    images: list[Path] = []
    others: list[str] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        is_image = path.suffix.lower() in (*READ_EXTENSIONS, *OTHER_EXTENSIONS)
        if is_image and _is_file_or_broken_link(path):
            images.append(path)
        elif not path.is_dir():
            others.append(path.name)
        elif says_folders:
            others.append(f"{path.name}/")
    if not images and not may_be_empty:
        raise ValueError(f"{folder}: a folder without images ({', '.join(READ_EXTENSIONS)})")
    if others:
        notes.append(f"{folder}: {_count_and_names(others)} left out, as no images")
    return images


def _images_matching(pattern: str, notes: list[str]) -> list[Path]:
    """The files that a glob names, whatever their extension, in order."""
    images: list[Path] = []
    others: list[str] = []
    for match in sorted(glob.glob(pattern, recursive=True)):
        if _is_file_or_broken_link(Path(match)):
            images.append(Path(match))
        else:
            others.append(match)
    if not images:
        raise ValueError(f"{pattern}: no file matches")
    if others:
        notes.append(f"{pattern}: {_count_and_names(others)} left out, as no files")
    return images


def _count_and_names(names: Sequence[str]) -> str:
    """How many there are, and the first names."""
    listed = ", ".join(names[:MAX_LISTED])
    more = ", ..." if len(names) > MAX_LISTED else ""
    verb = "was" if len(names) == 1 else "were"
    return f"{len(names)} ({listed}{more}) {verb}"


def _check_folder(out: str) -> None:
    """Refuse a name for the folder of the results that is a file's, or standard output."""
    folder = Path(out)
    if out == PIPE:
        raise ValueError("-o -: standard output takes one image; name a folder for several")
    has_extension = folder.suffix.lower() in READ_EXTENSIONS
    looks_like_a_file = has_extension and not out.endswith(_SEPARATORS)
    if not folder.is_dir() and (folder.exists() or looks_like_a_file):
        raise ValueError(f"-o {out}: one file for several images; name a folder")


def _jobs_into_folders(
    images: Sequence[_Image], out: Path | None, extension: str | None, suffix: str
) -> list[Job]:
    """Jobs whose results lie in a folder, or beside their images where `out` is None."""
    job_of: dict[Path, Job] = {}  # by target
    for image in images:
        source = image.path
        assert source is not None  # standard input is upscaled on its own
        folder = source.parent if out is None else out / image.folder
        target = folder / _name_in_folder(source, extension, suffix)
        if target in job_of:
            raise ValueError(
                f"{job_of[target].source} and {source} would both become {target}: "
                "upscale them separately"
            )
        job_of[target] = Job(source=source, target=target, format=format_of(target))
    return list(job_of.values())


def _name_in_folder(source: Path, extension: str | None, suffix: str) -> str:
    """The name of an output in a folder.

    What is not read is not written either, and must not be taken for a second image of that name:
    its name keeps the old extension.
    """
    old_extension = source.suffix.lower()
    stem = source.name if old_extension in OTHER_EXTENSIONS else source.stem
    stem += suffix
    if extension:
        return f"{stem}.{extension}"
    if FORMATS.get(old_extension) in KEPT_FORMATS:
        return stem + source.suffix
    return f"{stem}.png"


def _job_into_file(source: Path | None, out: str, extension: str | None) -> Job:
    target = Path(out)
    if target.is_dir() or out.endswith(_SEPARATORS):  # of standard input, which has no name
        raise ValueError(
            f"-o {out}: a folder as the output of one image; name the file, "
            f"such as {target / 'image.png'}"
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


def make_folders(jobs: Sequence[Job], out: str | None) -> None:
    """Make the folders that jobs write into, if they write into some.

    Args:
        jobs: What `plan_jobs` returned.
        out: As given there.

    Raises:
        OSError: A folder cannot be made, or not be written to.
    """
    parents = {job.target.parent for job in jobs if job.target is not None}
    folder = None if out is None else Path(out)
    for parent in sorted(parents):
        is_folder_of_results = folder is not None and (parent == folder or folder in parent.parents)
        if is_folder_of_results or out is None:
            make_writable_folder(parent)
