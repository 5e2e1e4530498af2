"""Which network `elasticnet upscale` runs for an image, and how deep."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NamedTuple

from elasticnet.before_torch import import_torch
from elasticnet.checkpoint.packaged import source_of
from elasticnet.cli.arguments import resolve_device
from elasticnet.sr.inference.tile_engine import TileEngine
from elasticnet.sr.models.pretrained import (
    DEFAULT_NAME,
    packaged,
    packaged_list,
    variant_for,
    weights_file,
)
from elasticnet.sr.photo.output_size import TOLERANCE, OutputSize

if TYPE_CHECKING:
    from elasticnet.sr.inference.depth_choice import DepthChooser
    from elasticnet.sr.inference.upscale_plan import UpscalePlan

ONNX_ENGINE = "onnxruntime"
MIN_TILE = 16  # LR pixels; smaller tiles are nearly all margin and take hours


class Network(NamedTuple):
    """A network that is loaded.

    Attributes:
        plan: For the whole network, or for `--depth` blocks of it.
        chooser: Of a depth for each image; None without a budget.
        introduction: A line that says which packaged network it is; empty for that of --weights.
    """

    plan: TileEngine
    chooser: DepthChooser | None
    introduction: str


class Networks:
    """The networks for the images of one command, each loaded when it is first needed.

    Args:
        options: The parsed command line.
        output_size: What the size of the results is to be; None for what the network of --weights
            makes.
    """

    def __init__(self, options: argparse.Namespace, output_size: OutputSize | None) -> None:
        self._options = options
        self._output_size = output_size
        self._loaded: dict[str, Network] = {}  # by file
        self._notes: list[str] = []
        self._introduced: set[str] = set()

    def take_notes(self) -> list[str]:
        """Return what there is to say since this was last asked, such as which networks run."""
        notes = list(self._notes)
        self._notes.clear()
        return notes

    def num_side_by_side(self) -> int:
        """Return how many small images can run at once, on a core each; 1 where they cannot.

        ONNX Runtime has threads of its own, a graphics card is not divided, and what a budget is
        compared with was measured on all cores.
        """
        options = self._options
        has_budget = options.max_ms is not None or options.max_memory is not None
        if options.engine == ONNX_ENGINE or has_budget:
            return 1
        import_torch()
        if resolve_device(options.device) != "cpu":
            return 1
        import torch

        return torch.get_num_threads()

    def check(self) -> None:
        """Load the network that is known before an image is, so that what is wrong is said early.

        Raises:
            ValueError: There is none, or the options do not fit it.
            OSError: Its file cannot be read.
        """
        if self._options.weights is not None:
            self._given()
        elif self._output_size is not None and self._output_size.times is not None:
            self._packaged(self._output_size.times, image_format=None)

    def for_image(self, size: tuple[int, int], image_format: str | None = None) -> Network:
        """Return the network for an image: the next one that makes it large enough.

        Of the packaged ones a JPEG gets that for compressed photographs, where there is one.

        Args:
            size: Height and width of the image.
            image_format: As Pillow calls the format of its file; None where there is no file.

        Raises:
            ValueError: No network makes it large enough.
        """
        if self._output_size is None:
            return self._given()
        height, width = size
        out_height, out_width = self._output_size.of(size)
        times = max(out_height / height, out_width / width)
        if self._output_size.times is not None:
            times = self._output_size.times
        if self._options.weights is None:
            network = self._packaged(times, image_format)
            self._introduce(network)
            return network
        network = self._given()
        if times > network.plan.scale + TOLERANCE:
            raise ValueError(
                f"{self._output_size.in_words}: {self._options.weights} enlarges "
                f"{network.plan.scale} times, and {times:.3g} times are needed"
            )
        return network

    def size_of_result(self, network: Network, size: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of an image's result.

        Args:
            network: Of the image.
            size: Height and width of the image.
        """
        if self._output_size is None:
            return size[0] * network.plan.scale, size[1] * network.plan.scale
        return self._output_size.of(size)

    def _introduce(self, network: Network) -> None:
        """Note which packaged network runs, when it is first used."""
        if network.introduction not in self._introduced:
            self._introduced.add(network.introduction)
            self._notes.append(network.introduction)

    def _given(self) -> Network:
        """The network of --weights."""
        network = self._load(source_of(self._options.weights), introduction="")
        scale = network.plan.scale
        times = None if self._output_size is None else self._output_size.times
        if times is not None and times > scale + TOLERANCE:
            raise ValueError(
                f"--scale {times:g}: {self._options.weights} enlarges {scale} times; leave "
                "--scale out, or give less"
            )
        return network

    def _packaged(self, times: float, image_format: str | None) -> Network:
        """The packaged network of the next scale that is large enough."""
        scales = sorted({each.scale for each in packaged_list() if each.variant == DEFAULT_NAME})
        enough = [scale for scale in scales if scale >= times - TOLERANCE]
        if not enough:
            if times == int(times):
                weights_file(int(times))  # raises, and says which scales there are
            raise ValueError(
                f"{times:.4g} times as large: {packaged()}; upscale twice, or take a checkpoint of "
                "your own (--weights FILE)"
            )
        scale = enough[0]
        variant = variant_for(image_format, scale)
        file = weights_file(scale, name=variant)
        if variant == DEFAULT_NAME:
            introduction = f"network: asrn-x{scale} ({file})"
        else:
            introduction = (
                f"network for {image_format}: asrn-x{scale}:{variant} ({file}); "
                f"--weights asrn-x{scale} takes the other one"
            )
        return self._load(str(file), introduction)

    def _load(self, weights: str, introduction: str) -> Network:
        """The network of a file, loaded once."""
        if weights in self._loaded:
            return self._loaded[weights]
        if self._options.engine == ONNX_ENGINE:
            network = self._open_exported(weights, introduction)
        else:
            network = self._load_checkpoint(weights, introduction)
        self._loaded[weights] = network
        return network

    def _open_exported(self, file: str, introduction: str) -> Network:
        """The network of an exported file, in ONNX Runtime."""
        from elasticnet.sr.inference.onnx_plan import plan_onnx

        plan = plan_onnx(file, tile=self._tile(), tile_batch=self._options.tile_batch)
        depth = self._options.depth
        if depth not in (None, -1, plan.depth):
            raise ValueError(f"--depth {depth}: {file} holds depth {plan.depth} alone")
        if plan.reach is None and plan.tile == "auto":
            self._notes.append(
                f"{file}: does not say how far its network sees, so that images run whole; export "
                "it again for tiles"
            )
        return Network(plan=plan, chooser=None, introduction=introduction)

    def _load_checkpoint(self, weights: str, introduction: str) -> Network:
        """The network of a checkpoint, in PyTorch."""
        import_torch()
        from elasticnet.checkpoint import load
        from elasticnet.sr.inference.upscale_plan import plan_upscale

        options = self._options
        net = load(weights, options.depth, device=resolve_device(options.device))
        if options.dtype is not None:
            net.float()
        plan = plan_upscale(
            net,
            tile=self._tile(),
            tile_batch=options.tile_batch,
            self_ensemble=options.self_ensemble,
        )
        if options.dtype is not None:
            from elasticnet.sr.inference.dtype_choice import plan_in_dtype

            plan, reason = plan_in_dtype(plan, options.dtype, weights)
            self._note_dtype(plan, reason)
        chooser = None
        if options.max_ms is not None or options.max_memory is not None:
            from elasticnet.sr.inference.depth_choice import DepthChooser

            chooser = DepthChooser(
                plan, weights, max_ms=options.max_ms, max_memory=options.max_memory
            )
        return Network(plan=plan, chooser=chooser, introduction=introduction)

    def _note_dtype(self, plan: UpscalePlan, reason: str) -> None:
        """Note which dtype "auto" has chosen, and why."""
        if reason:
            dtype = str(plan.computes_in).removeprefix("torch.")
            self._notes.append(f"dtype: {dtype} at depth {plan.depth} ({reason})")

    def _tile(self) -> int | str | None:
        """The value of --tile, not below the smallest tile, which is noted."""
        tile: int | str | None = self._options.tile
        if not isinstance(tile, int) or tile >= MIN_TILE:
            return tile
        note = f"elasticnet: --tile {tile}: tiles of {MIN_TILE}, the smallest, are used"
        if note not in self._introduced:
            self._introduced.add(note)
            self._notes.append(note)
        return MIN_TILE
