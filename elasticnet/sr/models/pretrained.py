"""The trained weights that come with the package; torch is imported when they are loaded.

A file is called `asrn_x4.safetensors`, or `asrn_x4_published.safetensors` for the variant
"published". It is found by its name alone, so a further variant needs no line of code.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from elasticnet.wrapper import ElasticWrapper

WEIGHTS = Path(__file__).parents[1] / "weights"
DEFAULT_NAME = "default"
PHOTO_NAME = "photo"  # of weights that were trained on compressed photographs
COMPRESSED_FORMATS = ("JPEG", "MPO")  # MPO: several JPEG images in one file, as telephones write
FILE_NAME = re.compile(r"asrn_x(?P<scale>\d+)(_(?P<variant>\w+))?\.safetensors")


class PackagedFile(NamedTuple):
    """One packaged checkpoint of ASRN.

    Attributes:
        scale: How many times as long each side becomes.
        variant: "default", the better network; "published", the paper's architecture.
        path: The file.
    """

    scale: int
    variant: str
    path: Path

    @property
    def name(self) -> str:
        """What it is called behind "asrn-": "x4", or "x4:published"."""
        if self.variant == DEFAULT_NAME:
            return f"x{self.scale}"
        return f"x{self.scale}:{self.variant}"


def packaged_list(folder: Path | None = None) -> list[PackagedFile]:
    """Return the packaged checkpoints, by scale, the default one of each scale first.

    Args:
        folder: Where the checkpoints are; default: in the package.
    """
    found: list[PackagedFile] = []
    for path in (folder or WEIGHTS).glob("*.safetensors"):
        match = FILE_NAME.fullmatch(path.name)
        if match is not None:
            variant = match["variant"] or DEFAULT_NAME
            found.append(PackagedFile(scale=int(match["scale"]), variant=variant, path=path))
    return sorted(found, key=lambda each: (each.scale, each.variant != DEFAULT_NAME, each.variant))


def packaged_files() -> dict[str, Path]:
    """Return the packaged checkpoints by name, as `Architecture.packaged_files` wants them."""
    return {each.name: each.path for each in packaged_list()}


def weights_file(scale: int, folder: Path | None = None, name: str = DEFAULT_NAME) -> Path:
    """Return the packaged checkpoint of ASRN for a scale; `elasticnet.load` reads it.

    Args:
        scale: How many times as long each side becomes.
        folder: Where the checkpoints are; default: in the package.
        name: "default", the better network, or "published", the paper's architecture.

    Raises:
        ValueError: There is none; the message says for which scales there are some.
    """
    files = packaged_list(folder)
    variants = [DEFAULT_NAME, *dict.fromkeys(each.variant for each in files)]
    if files and name not in variants:
        listed = ", ".join(dict.fromkeys(variants))
        raise ValueError(f"pretrained weights {name!r}: expected one of {listed}")
    for each in files:
        if each.scale == scale and each.variant == name:
            return each.path
    which = "" if name == DEFAULT_NAME else f" ({name})"
    raise ValueError(
        f"scale {scale}{which}: {packaged(folder, name)}; take a checkpoint of your own "
        "(--weights FILE, elasticnet.load(FILE))"
    )


def variant_for(image_format: str | None, scale: int, folder: Path | None = None) -> str:
    """Return which packaged weights suit an image: "photo" for JPEG, where there are such weights.

    Those were trained on compressed photographs, and take block edges for what they are. Whoever
    follows this rule says so, and lets the user choose other weights.

    Args:
        image_format: As Pillow calls the format of the image's file; None where there is no file.
        scale: How many times as long each side becomes.
        folder: Where the checkpoints are; default: in the package.

    Returns:
        A name for `weights_file`: "photo" or "default".
    """
    if image_format not in COMPRESSED_FORMATS:
        return DEFAULT_NAME
    for each in packaged_list(folder):
        if each.scale == scale and each.variant == PHOTO_NAME:
            return PHOTO_NAME
    return DEFAULT_NAME


def packaged(folder: Path | None = None, name: str = DEFAULT_NAME) -> str:
    """Return a phrase for messages that says for which scales there are weights.

    Args:
        folder: Where the checkpoints are; default: in the package.
        name: As in `weights_file`.
    """
    scales = [str(each.scale) for each in packaged_list(folder) if each.variant == name]
    if not scales:
        return "no weights are packaged"
    return f"weights are packaged for {', '.join(scales)}"


def load_pretrained(
    scale: int, *, name: str = DEFAULT_NAME, depth: int | None = None
) -> ElasticWrapper:
    """Return a packaged ASRN in eval mode.

    Args:
        scale: How many times as long each side becomes.
        name: As in `weights_file`.
        depth: How many blocks are loaded; default: all.

    Raises:
        ValueError: There are no such weights, or no tap at this depth.
    """
    from elasticnet.checkpoint import load

    return load(weights_file(scale, name=name), depth).eval()
