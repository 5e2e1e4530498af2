"""The library's own architectures as the registry knows them; nothing here imports torch.

`Architecture.extras` of a network that maps images to images holds:

- `scale_argument`: the name of the builder's argument that says how many times as long each side of
  the output is; without it the scale is measured by running the network once;
- `value_range`: the smallest and the largest value of an image, (0.0, 1.0);
- `channels`: what the channels are, "RGB"; `layout`: the order of the axes, "NCHW";
- `output_range` and `file_metadata`: what `elasticnet.export` reads;
- `pipeline_tag`: what the hub calls the task, for the model card.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from elasticnet import registry
from elasticnet.registry import Architecture

if TYPE_CHECKING:
    from torch import Tensor

    from elasticnet.wrapper import ElasticWrapper


def image_file_metadata(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an exported file says about the images that it takes.

    Args:
        arguments: Those of the network's builder.
    """
    return {
        "scale": arguments["scale"],
        "value_range": [0, 1],
        "channels": "RGB",
        "layout": "NCHW",
    }


IMAGE_EXTRAS = MappingProxyType(
    {
        "scale_argument": "scale",
        "value_range": (0.0, 1.0),
        "output_range": (0.0, 1.0),
        "channels": "RGB",
        "layout": "NCHW",
        "file_metadata": image_file_metadata,
        "pipeline_tag": "image-to-image",
    }
)
EXAMPLE_SHAPE = (1, 3, 24, 20)  # not square, so that no export can confuse height and width
TINY_EXAMPLE_SHAPE = (1, 3, 5, 4)


def image_example(arguments: Mapping[str, Any]) -> Tensor:
    """Return an RGB image (1, 3, 24, 20) in 0..1, the same each time.

    Args:
        arguments: Those of the network's builder; all of them take this size.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.rand(EXAMPLE_SHAPE, generator=generator)


def tiny_image_example(arguments: Mapping[str, Any]) -> Tensor:
    """Return an RGB image (1, 3, 5, 4) in 0..1, the same each time.

    Args:
        arguments: Those of the network's builder; all of them take this size.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.rand(TINY_EXAMPLE_SHAPE, generator=generator)


def _packaged_asrn() -> dict[str, Path]:
    """The trained weights in the package, such as "x4" of `asrn-x4`."""
    from elasticnet.sr.models.pretrained import packaged_files

    return packaged_files()


def _build_asrn(**arguments: Any) -> ElasticWrapper:
    from elasticnet.sr.models.asrn import asrn

    return asrn(**arguments)


def _build_edsr(**arguments: Any) -> ElasticWrapper:
    from elasticnet.sr.models.edsr import edsr

    return edsr(**arguments)


def _build_rcan(**arguments: Any) -> ElasticWrapper:
    from elasticnet.sr.models.rcan import rcan

    return rcan(**arguments)


ASRN = Architecture(
    build=_build_asrn,
    example=image_example,
    tiny_example=tiny_image_example,
    packaged_files=_packaged_asrn,
    extras=IMAGE_EXTRAS,
)
EDSR = Architecture(
    build=_build_edsr,
    example=image_example,
    tiny_example=tiny_image_example,
    extras=IMAGE_EXTRAS,
)
RCAN = Architecture(
    build=_build_rcan,
    count_arguments=("group_size",),
    example=image_example,
    tiny_example=tiny_image_example,
    extras=IMAGE_EXTRAS,
)


def register_all() -> None:
    """Register the three networks, for a source tree that is not installed."""
    registry.register_all({"asrn": ASRN, "edsr": EDSR, "rcan": RCAN})
