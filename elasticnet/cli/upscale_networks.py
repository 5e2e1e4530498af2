"""Which network `elasticnet upscale` runs for an image, and how deep."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

from elasticnet.checkpoint import load
from elasticnet.checkpoint.packaged import source_of
from elasticnet.cli.arguments import resolve_device
from elasticnet.sr.inference.depth_choice import DepthChooser
from elasticnet.sr.inference.upscale_plan import UpscalePlan, plan_upscale
from elasticnet.sr.models.pretrained import DEFAULT_NAME, packaged, packaged_list, weights_file
from elasticnet.sr.photo.output_size import TOLERANCE, OutputSize

MIN_TILE = 16  # LR pixels; smaller tiles are nearly all margin and take hours


class Network(NamedTuple):
    """A network that is loaded.

    Attributes:
        plan: For the whole network, or for `--depth` blocks of it.
        weights: Its file.
        chooser: Of a depth for each image; None without a budget.
    """

    plan: UpscalePlan
    weights: str | Path
    chooser: DepthChooser | None


class Networks:
    """The networks for the images of one command, each loaded when it is first needed.

    Args:
        options: The parsed command line.
        output_size: What the size of the results is to be; None for what the network makes.
    """

    def __init__(self, options: argparse.Namespace, output_size: OutputSize | None) -> None:
        self._options = options
        self._output_size = output_size
        self._device = resolve_device(options.device)
        self._by_scale: dict[int | None, Network] = {}
        self.notes: list[str] = []  # what there is to say about networks that were loaded

    def take_notes(self) -> list[str]:
        """Return what there is to say since this was last asked."""
        notes = list(self.notes)
        self.notes.clear()
        return notes

    def load_first(self) -> Network | None:
        """Return the network that every image gets; None where it depends on the image.

        Raises:
            ValueError: There is none, or the options do not fit it.
            OSError: Its file cannot be read.
        """
        if self._options.weights is not None:
            return self._given()
        if self._output_size is None:
            raise ValueError(
                f"no --scale: give it ({packaged()}), --to WxH, or the --weights of a network"
            )
        if self._output_size.times is None:
            return None
        return self._packaged(self._output_size.times)

    def for_image(self, size: tuple[int, int]) -> Network:
        """Return the network for an image: the next one that makes it large enough.

        Args:
            size: Height and width of the image.

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
            return self._packaged(times)
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

    def _given(self) -> Network:
        """The network of --weights."""
        if None not in self._by_scale:
            network = self._load(source_of(self._options.weights))
            scale = network.plan.scale
            times = None if self._output_size is None else self._output_size.times
            if times is not None and times > scale + TOLERANCE:
                raise ValueError(
                    f"--scale {times:g}: {self._options.weights} enlarges {scale} times; leave "
                    "--scale out, or give less"
                )
            self._by_scale[None] = network
        return self._by_scale[None]

    def _packaged(self, times: float) -> Network:
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
        if scale not in self._by_scale:
            file = weights_file(scale)
            self._by_scale[scale] = self._load(file)
            self.notes.append(f"network: asrn-x{scale} ({file})")
        return self._by_scale[scale]

    def _load(self, weights: str | Path) -> Network:
        options = self._options
        net = load(weights, options.depth, device=self._device)
        tile = options.tile
        if isinstance(tile, int) and tile < MIN_TILE:
            tile = MIN_TILE
            self.notes.append(
                f"elasticnet: --tile {options.tile}: tiles of {MIN_TILE}, the smallest, are used"
            )
        plan = plan_upscale(net, tile=tile, self_ensemble=options.self_ensemble)
        chooser = None
        if options.max_ms is not None or options.max_memory is not None:
            chooser = DepthChooser(
                plan, weights, max_ms=options.max_ms, max_memory=options.max_memory
            )
        return Network(plan=plan, weights=weights, chooser=chooser)
