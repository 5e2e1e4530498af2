"""Groups of options that trainings on images have: the data, and how LR images are made of HR ones.

What they stand beside, and how they are used, is in `elasticnet.training.options`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from elasticnet.sr.data.lr_folders import TRACKS
from elasticnet.sr.jpeg import PHOTO_JPEG, RandomJpeg
from elasticnet.training.options import NOT_STORED, PATHS, AtLeast, OptionGroup, flag, old_runs

JPEG_SETTINGS = ("lowest_quality", "highest_quality", "uncompressed_share")
"""Options of `--degradation photo`, which are attributes of `RandomJpeg` by the same names."""


def refuse_track_as_degradation(degradation: str) -> None:
    """Raise if the value of --degradation is one of DIV2K's tracks, whose option is another one.

    Args:
        degradation: The value, which need not be valid otherwise.

    Raises:
        ValueError: It is a track; the message says how to write it.
    """
    if degradation in TRACKS:
        raise ValueError(
            f"--degradation {degradation}: one of DIV2K's tracks: write --track {degradation}"
        )


def with_several_folders(stored: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a stored run with --data as a list: it was one folder once.

    Args:
        stored: The options of a run, by name.
    """
    data = stored.get("data")
    if isinstance(data, str):
        return {**stored, "data": [data]}
    return stored


@dataclass(frozen=True, kw_only=True)
class DataOptions(OptionGroup):
    """The images, of which patches are cut."""

    data: list[str] | None = field(default=None, metadata=PATHS)
    """Training images, one or more folders: DIV2K, another known layout or flat with HR images.
    Default: scikit-image's photographs.
    """
    data_lr: Path | None = None
    """The LR images of --data, one folder then, under the same names. Default: those that lie
    beside the HR images under a known name; otherwise they are made.
    """
    track: Literal["bicubic", "unknown", "mild", "difficult", "wild", "x8"] | None = None
    """Which of DIV2K's LR images are read, of --data and of --valid; they have to be there."""
    cache_dir: Path | None = None
    """Where decoded images are kept, so that the next start is quick. Default: beside the data set,
    or in ~/.cache/elasticnet where that cannot be written.
    """
    cache: bool = True
    """Keep decoded images. Without, they are decoded at every start, by every process."""
    changed_images: bool = field(default=False, metadata=NOT_STORED)
    """With --resume: go on although the images are not those that the run was started with."""
    num_valid: Annotated[int, AtLeast(0)] = 10
    """How many training images are held out where no other validation images are given or there.
    """
    held_out: Path | None = None
    """Text file with the names of training images, one a line, that are held out and validated on.
    """
    published_split: bool = field(default=True, metadata=old_runs(False))
    """Validate on DIV2K's own validation images where --data has them. Without, --num-valid of the
    800 training images are held out, as in runs of older versions.
    """
    licences: Literal["all", "permissive"] = "all"
    """permissive: do not train on photographs that are copyleft by the LICENSES.md of their folder.
    """
    patch_size: Annotated[int, AtLeast(1)] = 48
    """Side of an LR patch in pixels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data is not None and not self.data:
            raise ValueError("--data: expected at least one folder")
        if self.cache_dir is not None and not self.cache:
            raise ValueError(f"--cache-dir {self.cache_dir} with --no-cache: give one of the two")


@dataclass(frozen=True, kw_only=True)
class DegradationOptions(OptionGroup):
    """How LR images are made, where the data set has none."""

    degradation: Literal["BI", "BD", "DN", "HAZE", "photo"] = "BI"
    """Bicubic (BI), blur and downscale (BD), bicubic and noise (DN), bicubic and haze (HAZE), or
    bicubic and JPEG (photo): of random quality or none, drawn anew for each patch.
    """
    blur_sigma: float | None = None
    """Of the Gaussian blur of BD, in HR pixels. Default: 1.6."""
    noise_sigma: float | None = None
    """Of the Gaussian noise of DN, on the 0..255 scale. Default: 30."""
    uncompressed_share: float | None = None
    """Of photo: how many of all patches are not compressed, 0 to 1. The more, the less is lost on
    clean images. Default: 0.2.
    """
    lowest_quality: int | None = None
    """Of photo: the lowest quality of JPEG, Pillow's 1 to 100. Default: 30."""
    highest_quality: int | None = None
    """Of photo: the highest quality of JPEG. Default: 95."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.degradation != "photo":
            for name, value in self._given_jpeg_settings().items():
                raise ValueError(
                    f"{flag(name)} {value}: --degradation {self.degradation} compresses no "
                    "patch; it goes with --degradation photo"
                )
        try:
            self.patch_jpeg()
        except ValueError as error:
            message = str(error)
            for name in JPEG_SETTINGS:
                message = message.replace(name, flag(name))
            raise ValueError(message) from error

    def patch_jpeg(self) -> RandomJpeg | None:
        """Return which compressions LR patches get; None: they are not compressed."""
        if self.degradation != "photo":
            return None
        return replace(PHOTO_JPEG, **self._given_jpeg_settings())

    def _given_jpeg_settings(self) -> dict[str, Any]:
        settings = {name: getattr(self, name) for name in JPEG_SETTINGS}
        return {name: value for name, value in settings.items() if value is not None}
