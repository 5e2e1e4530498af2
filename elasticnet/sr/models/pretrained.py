"""The trained weights that come with the package; torch is imported when they are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from elasticnet.wrapper import ElasticWrapper

WEIGHTS = Path(__file__).parents[1] / "weights"
DEFAULT_NAME = "default"
# What the files of each kind end with, before .safetensors: the better network, and the paper's.
NAMES = {DEFAULT_NAME: "", "published": "_published"}


def weights_file(scale: int, folder: Path | None = None, name: str = DEFAULT_NAME) -> Path:
    """Return the packaged checkpoint of ASRN for a scale; `elasticnet.load` reads it.

    Args:
        scale: How many times as long each side becomes.
        folder: Where the checkpoints are; default: in the package.
        name: "default", the better network, or "published", the paper's architecture.

    Raises:
        ValueError: There is none; the message says for which scales there are some.
    """
    if name not in NAMES:
        raise ValueError(f"pretrained weights {name!r}: expected one of {', '.join(NAMES)}")
    folder = folder or WEIGHTS
    path = folder / f"asrn_x{scale}{NAMES[name]}.safetensors"
    if not path.is_file():
        which = "" if name == DEFAULT_NAME else f" ({name})"
        raise ValueError(
            f"scale {scale}{which}: {packaged(folder, name)}; take a checkpoint of your own "
            "(--weights FILE, elasticnet.load(FILE))"
        )
    return path


def packaged(folder: Path = WEIGHTS, name: str = DEFAULT_NAME) -> str:
    """Return a phrase for messages that says for which scales there are weights.

    Args:
        folder: Where the checkpoints are; default: in the package.
        name: As in `weights_file`.
    """
    scales: list[str] = []
    for file in sorted(folder.glob(f"asrn_x?{NAMES[name]}.safetensors")):
        scales.append(file.stem.removeprefix("asrn_x")[:1])
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
