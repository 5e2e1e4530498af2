"""The trained weights that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elasticnet.wrapper import ElasticWrapper

WEIGHTS = Path(__file__).parents[1] / "weights"
# of the architecture: the end of the file's name
NAMES = {"default": "", "published": "_published"}


def weights_file(scale: int, folder: Path | None = None, name: str = "default") -> Path:
    """Return the packaged checkpoint of ASRN that enlarges each side `scale` times;
    `elasticnet.load` reads it.

    name: "default", the better network, or "published", the paper's architecture. Raises
    ValueError, with what is packaged, for any other.
    """
    if name not in NAMES:
        raise ValueError(f"pretrained weights {name!r}: expected one of {', '.join(NAMES)}")
    folder = folder or WEIGHTS
    path = folder / f"asrn_x{scale}{NAMES[name]}.safetensors"
    if not path.is_file():
        kind = "" if name == "default" else f" ({name})"
        raise ValueError(
            f"scale {scale}{kind}: {packaged(folder, name)}; take a checkpoint of your own (--weights FILE, "
            "elasticnet.load(FILE))"
        )
    return path


def packaged(folder: Path = WEIGHTS, name: str = "default") -> str:
    """Say for which scales there are weights, for messages."""
    found = sorted(folder.glob(f"asrn_x?{NAMES[name]}.safetensors"))
    scales = ", ".join(file.stem.removeprefix("asrn_x")[:1] for file in found)
    return f"weights are packaged for {scales}" if scales else "no weights are packaged"


def pretrained_asrn(
    scale: int, pretrained: bool | str, depth: int | None = None, **architecture: Any
) -> ElasticWrapper:
    """Load a packaged ASRN in eval mode; see `asrn`. Raises ValueError for arguments that the file
    decides.
    """
    from elasticnet.checkpoint import load

    if architecture:
        named = ", ".join(f"{name}={value!r}" for name, value in architecture.items())
        raise ValueError(
            f"asrn(pretrained={pretrained!r}, {named}): leave out what the file decides on"
        )
    return load(
        weights_file(scale, name=pretrained if isinstance(pretrained, str) else "default"), depth
    ).eval()
