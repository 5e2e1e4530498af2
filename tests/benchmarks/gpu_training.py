"""What the scripts that gpu.sh runs share: options, photographs, and trainings of the recipe."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from harness import machine_name, make_parser, write_report
from torch import Tensor

from elasticnet import ElasticWrapper, LossTerms
from elasticnet.sr.data import PairSet, load_pairs, pairs_from_arrays
from elasticnet.sr.data.patches import PatchSampler
from elasticnet.training.options import with_values
from elasticnet.training.processes import Processes

RECIPES = Path(__file__).parents[2] / "recipes"
SCALE = 4
NUM_MADE_IMAGES = 8
MADE_SIDE = 400  # of an HR image, in pixels


class Sizes(NamedTuple):
    """How large a training is."""

    num_blocks: int
    channels: int
    patch_size: int
    batch_size: int


FULL = Sizes(num_blocks=5, channels=96, patch_size=48, batch_size=16)
QUICK = Sizes(num_blocks=2, channels=16, patch_size=16, batch_size=2)


class Features(NamedTuple):
    """What a training has switched on; nothing: float32, contiguous, kernel by kernel."""

    channels_last: bool = False
    bfloat16: bool = False
    compiled: bool = False
    graph: bool = False


def make_gpu_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that all scripts for a GPU have."""
    parser = make_parser(description)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--quick", action="store_true", help="as small as a dry run on a CPU needs")
    return parser


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where photographs come from."""
    parser.add_argument("--data", type=Path, help="a folder of photographs; default: made noise")
    parser.add_argument("--cache-dir", type=Path, help="where decoded photographs are kept")


def write_checked(options: argparse.Namespace, ok: bool, **numbers: Any) -> None:
    """Write the report with the result of its checks; end the program with 1 if one failed."""
    write_report(options, machine_name(options.device), ok=ok, **numbers)
    if not ok:
        sys.exit(1)


def some_pairs(options: argparse.Namespace) -> PairSet:
    """Return the photographs, or images of coarse noise where there are none."""
    if options.data is not None:
        return load_pairs(
            options.data,
            SCALE,
            cache_dir=options.cache_dir,
            min_size=FULL.patch_size,
            progress=False,
        )
    generator = np.random.default_rng(0)
    images: dict[str, np.ndarray] = {}
    for number in range(NUM_MADE_IMAGES):
        coarse = generator.integers(0, 256, (MADE_SIDE // 8, MADE_SIDE // 8, 3), dtype=np.uint8)
        images[f"noise{number}"] = coarse.repeat(8, axis=0).repeat(8, axis=1)
    return pairs_from_arrays(images, SCALE)


class LossList:
    """Stands in for the log of a training, and keeps the whole loss of every step."""

    def __init__(self) -> None:
        self._totals: list[Tensor] = []

    def add(self, terms: LossTerms) -> None:
        """Take the losses of a step."""
        self._totals.append(terms.total.detach().clone().reshape(1))

    def add_rows(self, depths: tuple[int, ...], rows: Tensor) -> None:
        """Take the losses of several steps."""
        self._totals.append(rows[:, 0])

    def totals(self) -> list[float]:
        """Return the losses of all steps so far."""
        return torch.cat(self._totals).tolist() if self._totals else []


class Training(NamedTuple):
    """A training of the recipe, its preset best.

    Attributes:
        net: The network.
        steps: The recipe's `Steps`: `steps.do(step)` does one.
        losses: What they gave.
    """

    net: ElasticWrapper
    steps: Any
    losses: LossList

    def read_losses(self) -> list[float]:
        """Return the losses of all steps so far; it waits for the device."""
        self.steps.log_losses()
        return self.losses.totals()


def load_recipe() -> ModuleType:
    """Return asrn_div2k.py, which no package holds."""
    if str(RECIPES) not in sys.path:
        sys.path.append(str(RECIPES))
    return importlib.import_module("asrn_div2k")


def make_training(
    pairs: PairSet, sizes: Sizes, device: torch.device, features: Features, max_unread: int
) -> Training:
    """Return a training from the recipe's own parts; all of them start from the same weights."""
    recipe = load_recipe()
    changes: Mapping[str, Any] = {
        **recipe.PRESETS["best"],
        **sizes._asdict(),
        "scale": SCALE,
        "device": str(device),
        "precision": "bfloat16" if features.bfloat16 else "float32",
        "compile": features.compiled,
        "cuda_graph": "on" if features.graph else "off",
        "log_every": max_unread,
        "tensorboard": False,
    }
    options = with_values(recipe.Options(), changes)
    processes = Processes(device=device)
    torch.manual_seed(0)
    net = recipe.build(options, processes)
    if not features.channels_last:
        net.to(memory_format=torch.contiguous_format)
    recipe.set_order_of_pixels(options, net, device)
    objective = recipe.make_objective(options, net)
    training_step = recipe.make_training_step(options, net, objective, processes, features.graph)
    layout = torch.channels_last if features.channels_last else torch.contiguous_format
    sampler = PatchSampler(
        pairs,
        patch_size=sizes.patch_size,
        batch_size=sizes.batch_size,
        augment=options.images.augment,
        device=device,
        memory_format=layout,
    )
    samplers = recipe.Samplers(early=sampler, late=sampler, late_from=0)
    losses = LossList()
    steps = recipe.Steps(options, training_step, samplers, net, losses, features.graph)
    return Training(net=net, steps=steps, losses=losses)


def forget_peak(device: torch.device) -> None:
    """Begin to measure peak memory anew on a GPU, without what earlier work has left."""
    if device.type != "cuda":
        return
    # First the memory that is kept for later tensors: it would count as the new peak's beginning.
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)


def peak_megabytes(device: torch.device) -> float | None:
    """Return the most memory that torch has held on a GPU, in MB; None on a CPU."""
    if device.type != "cuda":
        return None
    return round(torch.cuda.max_memory_reserved(device) / 1e6, 1)
