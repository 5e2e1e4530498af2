"""Options and values that several subcommands declare and check in the same way.

Nothing here imports torch while the command line is parsed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # what `ArgumentParser.add_subparsers` returns; argparse has no public name for it
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # pyright: ignore[reportPrivateUsage]
    Options = argparse.ArgumentParser | argparse._ArgumentGroup  # pyright: ignore[reportPrivateUsage]

MAX_THREADS = 1024  # no machine has more, and PyTorch fails far above
AUTO_DEVICE = "auto"
DTYPES = ("float32", "bfloat16", "float16", "auto")


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Add `--debug` to a subcommand, so that it may stand before or behind the subcommand's name.

    Args:
        parser: The subcommand's parser.
    """
    parser.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,  # the value from before the subcommand's name stays
        help="show the traceback of an error",
    )


def add_device(parser: Options) -> None:
    """Add `--device`; `run` passes its value to `resolve_device`.

    Args:
        parser: The subcommand's parser, or a group of its options.
    """
    parser.add_argument(
        "--device",
        default=AUTO_DEVICE,
        help="cpu, cuda, cuda:1, ...; default: auto, the first GPU that PyTorch can use or the CPU",
    )


def add_dtype(parser: Options) -> None:
    """Add `--dtype` of networks that enlarge images.

    Args:
        parser: The subcommand's parser, or a group of its options.
    """
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="in which convolutions are computed: float32, bfloat16, float16, or auto, what is "
        "fastest on this machine and loses at most 0.01 dB: the first time it is measured, which "
        "takes some seconds, and kept; default: that of the weights, float32 for packaged nets",
    )


def add_cache(parser: Options) -> None:
    """Add `--cache-dir` and `--no-cache`: where the decoded images of a data set are kept.

    Args:
        parser: The subcommand's parser, or a group of its options.
    """
    places = parser.add_mutually_exclusive_group()
    places.add_argument(
        "--cache-dir",
        metavar="DIR",
        help="where decoded images are kept, so that the next start is quick; default: beside the "
        "data set, or in ~/.cache/elasticnet where that cannot be written",
    )
    places.add_argument(
        "--no-cache",
        dest="cache",
        action="store_false",
        help="keep no decoded images; they are decoded at every start",
    )


def resolve_device(name: str) -> str:
    """Return the device to compute on, after one value was computed there.

    Args:
        name: What follows `--device`. "auto" is "cuda" where PyTorch can use it, otherwise "cpu".

    Returns:
        A name that torch takes.

    Raises:
        ValueError: Nothing can be computed on this device; the message gives torch's reason.
    """
    import torch

    if name == AUTO_DEVICE:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except (AssertionError, RuntimeError) as error:  # torch without CUDA raises AssertionError
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name}: {reason}; --device cpu always works") from error
    return name


def report_skipped(skipped: Sequence[tuple[str, str]]) -> int:
    """Name the first images that were left out, and count all, on standard error.

    Args:
        skipped: (image, reason) of each.

    Returns:
        The exit status: 1 where images were left out, otherwise 0.
    """
    if not skipped:
        return 0
    from elasticnet.sr.data.pair_set import listing

    print(f"elasticnet: images left out: {len(skipped)}{listing(skipped)}", file=sys.stderr)
    return 1


def positive_count(text: str) -> int:
    """Return the whole number above 0 that an argument holds; for argparse's `type`.

    Args:
        text: The argument.

    Raises:
        ArgumentTypeError: It is something else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number above 0")
    return int(text)


def thread_count(text: str) -> int:
    """Return a number of threads, 1 to `MAX_THREADS`; for argparse's `type`.

    Args:
        text: The argument.

    Raises:
        ArgumentTypeError: It is something else.
    """
    number = positive_count(text)
    if number > MAX_THREADS:
        raise argparse.ArgumentTypeError(f"{text}: expected at most {MAX_THREADS} threads")
    return number
