"""What the runtimes are tried on: files of several networks, their inputs, and what is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from elasticnet import ElasticWrapper
from elasticnet.export import export
from elasticnet.sr import asrn, edsr, rcan

FIXED_SIZE = (120, 160)
# the last one is smaller than the 5x5 kernel of the skip
OPEN_SIZES = (FIXED_SIZE, (37, 23), (3, 7))
MAX_DIFFERENCE = {"float32": 1e-3, "float16": 2 / 255}


class Network(NamedTuple):
    """A network and the depth that is tried.

    Attributes:
        name: In file names.
        title: On the page.
        build: Builds it.
        depth: How many blocks.
    """

    name: str
    title: str
    build: Callable[[], ElasticWrapper]
    depth: int


class Form(NamedTuple):
    """How a file is written.

    Attributes:
        size: "open" or "fixed".
        dtype: "float32" or "float16".
    """

    size: str
    dtype: str

    @property
    def title(self) -> str:
        """How the page calls it."""
        return f"{self.size}, {self.dtype}"


FORMS = tuple(Form(size, dtype) for size in ("open", "fixed") for dtype in ("float32", "float16"))


def seeded(build: Callable[..., ElasticWrapper], scale: int, **arguments: Any) -> ElasticWrapper:
    """Return a network with random weights that are the same every time."""
    torch.manual_seed(0)
    return build(scale, **arguments)


NETWORKS = (
    Network("asrn_x2", "ASRN ×2, depth 5", lambda: asrn(2, pretrained=True), depth=5),
    Network("asrn_x3", "ASRN ×3, depth 2", lambda: asrn(3, pretrained=True), depth=2),
    Network("asrn_x4", "ASRN ×4, depth 1", lambda: asrn(4, pretrained=True), depth=1),
    Network("edsr_x4", "EDSR ×4", lambda: seeded(edsr, 4, num_blocks=2, channels=16), depth=2),
    Network(
        "rcan_x2",
        "RCAN ×2",
        lambda: seeded(rcan, 2, num_blocks=2, group_size=2, channels=16, reduction=4),
        depth=2,
    ),
)


def sizes_of(form: Form) -> Sequence[tuple[int, int]]:
    """Return the sizes of the images that a file of this form is tried on."""
    return OPEN_SIZES if form.size == "open" else (FIXED_SIZE,)


def image_of(size: tuple[int, int]) -> Tensor:
    """Return a random image (1, 3, h, w), the same every time."""
    generator = torch.Generator().manual_seed(size[0])
    return torch.rand(1, 3, *size, generator=generator)


def file_of(network: Network, form: Form, suffix: str, folder: Path) -> Path:
    """Return the exported file of a network in a folder, which is made if it is not there.

    Args:
        network: What is exported.
        form: How; a program (.pt2) is always float32 inside.
        suffix: ".onnx" or ".pt2".
        folder: Where the file is, or will be.
    """
    path = folder / f"{network.name}_{form.size}_{form.dtype}{suffix}"
    if not path.exists():
        options: dict[str, Any] = {"dtype": form.dtype} if suffix == ".onnx" else {}
        if form.size == "fixed":
            options["size"] = FIXED_SIZE
        export(network.build(), path, depth=network.depth, **options)
    return path


@torch.no_grad()
def expected_of(network: Network, form: Form) -> list[np.ndarray]:
    """Return what PyTorch computes for the images of a form, in the order of their sizes."""
    net = network.build().eval()
    return [net(image_of(size), depth=network.depth).numpy() for size in sizes_of(form)]
