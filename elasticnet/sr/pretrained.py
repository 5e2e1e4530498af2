"""The trained weights that come with the package."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"


def weights_file(scale: int, folder: Path = WEIGHTS) -> Path:
    """Return the packaged checkpoint of ASRN that enlarges each side `scale` times; `elasticnet.load` reads it.

    Raises ValueError, with the scales that are packaged, for any other.
    """
    path = folder / f"asrn_x{scale}.safetensors"
    if not path.is_file():
        scales = sorted(found.stem.removeprefix("asrn_x") for found in folder.glob("asrn_x*.safetensors"))
        packaged = f"weights are packaged for {', '.join(scales)}" if scales else "no weights are packaged yet"
        raise ValueError(f"scale {scale}: {packaged}; name a checkpoint of your own with --weights")
    return path
