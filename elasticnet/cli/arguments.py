"""Values on the command line that several subcommands check in the same way."""

from __future__ import annotations

import argparse

import torch

MOST_THREADS = 1024  # of what no machine has, far below where PyTorch falls over


def check_device(name: str) -> None:
    """Raise ValueError where nothing can be computed on a device."""
    try:
        torch.zeros(1, device=name).item()
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name}: {reason}; --device cpu always works") from error


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number above 0")
    return int(text)


def threads(text: str) -> int:
    if count(text) > MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text}: expected at most {MOST_THREADS} threads")
    return int(text)
