"""`elasticnet convert`: EDSR and RCAN of others into our files, and ours into others'."""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elasticnet.cli.arguments import add_debug

if TYPE_CHECKING:
    from torch import Tensor

    from elasticnet import ElasticWrapper
    from elasticnet.cli.arguments import Commands

ELASTICNET = "elasticnet"
AUTHORS = "authors"
SPANDREL = "spandrel"
KINDS = (ELASTICNET, AUTHORS, SPANDREL)
# How the default name ends; that of our own files has nothing behind the name of FILE.
ENDINGS = {ELASTICNET: ".safetensors", AUTHORS: "_authors.pth", SPANDREL: "_spandrel.safetensors"}
PICKLE_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")  # how files of torch.save are called
SAFETENSORS_SUFFIX = ".safetensors"

DESCRIPTION = (
    "Read EDSR or RCAN with the keys of its authors or of BasicSR, and write a file for "
    "elasticnet.load and the other commands; or write ours for other programs. Architecture and "
    "sizes are told from the tensors; nothing in a .pth file is executed."
)


def add_parser(commands: Commands) -> None:
    """Add the subcommand to the command line.

    Args:
        commands: What `ArgumentParser.add_subparsers` returned.
    """
    parser = commands.add_parser(
        "convert",
        help="EDSR and RCAN of others into our files, and ours into others'",
        description=DESCRIPTION,
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        help="a .pth, .pt or .safetensors file of EDSR or RCAN; or a checkpoint of ours: a path, "
        "the name of a packaged net such as asrn-x4, an http(s) URL, or hf://...",
    )
    parser.add_argument(
        "--to",
        choices=KINDS,
        default=ELASTICNET,
        help="elasticnet (default): a checkpoint; authors: EDSR or RCAN with its authors' keys, as "
        "their code loads it; spandrel: for chaiNNer and ComfyUI, by elasticnet.sr.spandrel",
    )
    parser.add_argument(
        "-o",
        "--out",
        metavar="OUT",
        help="default: beside FILE, with a name made of its own; --to authors writes "
        ".safetensors instead of .pth where OUT ends so",
    )
    parser.add_argument(
        "--depth", type=int, metavar="N", help="the first N blocks of FILE; default: all"
    )
    parser.add_argument(
        "--res-scale",
        type=float,
        metavar="X",
        help="of EDSR's blocks, which no tensor tells; default: 0.1 for 32 blocks of 256 channels, "
        "otherwise 1",
    )
    parser.add_argument("--force", action="store_true", help="overwrite a file that exists")
    add_debug(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Convert one file.

    Args:
        options: The parsed command line.

    Returns:
        The exit status, 0.

    Raises:
        ValueError: The file is not one of these networks, or the options do not fit it.
        FileExistsError: OUT exists, and --force was not given.
        OSError: A file cannot be read or written.
    """
    is_of_others = _is_of_others(options.file)
    _check_options(options, is_of_others)
    out = _target(options)
    net = _read(options, is_of_others)
    if options.to == ELASTICNET:
        _write_checkpoint(net, out, options.file)
    elif options.to == AUTHORS:
        _write_authors(net, out)
    else:
        notes = {} if is_of_others else _notes_of(options.file)
        _write_spandrel(net, out, {**notes, "converted_from": Path(options.file).name})
    print(f"{out}: {_described(net)}, {os.path.getsize(out) / 1e6:.1f} MB")
    return 0


def _is_of_others(file: str) -> bool:
    """Whether a file is one of others; ours are safetensors files with a description in them."""
    path = Path(file)
    if path.suffix.lower() in PICKLE_SUFFIXES and "://" not in file:
        return True
    if path.suffix.lower() != SAFETENSORS_SUFFIX or "://" in file:
        return False
    if not path.is_file():
        raise FileNotFoundError(f"{file}: there is no such file")
    from elasticnet.checkpoint.header import KEY
    from elasticnet.checkpoint.safetensors_file import read_table

    return KEY not in read_table(file).metadata


def _check_options(options: argparse.Namespace, is_of_others: bool) -> None:
    """Refuse options that have no meaning for this file."""
    if options.to == ELASTICNET and not is_of_others:
        raise ValueError(
            f"{options.file}: no file of others; --to {AUTHORS} or --to {SPANDREL} writes a "
            "checkpoint of ours for other programs, and elasticnet export cuts it to a depth"
        )
    if options.res_scale is not None and not is_of_others:
        raise ValueError(
            f"--res-scale {options.res_scale}: {options.file} says itself what its blocks do; "
            "leave it out"
        )


def _target(options: argparse.Namespace) -> Path:
    """Where the result goes; an existing file is refused before anything is read."""
    if options.out is not None:
        out = Path(options.out)
    else:
        path = _named_after(options.file)
        out = path.with_name(path.stem + ENDINGS[options.to])
        if out == path:
            out = path.with_name(f"{path.stem}_elastic{SAFETENSORS_SUFFIX}")
    if options.to != AUTHORS and out.suffix != SAFETENSORS_SUFFIX:
        raise ValueError(f"-o {out}: --to {options.to} writes a file that ends in .safetensors")
    if out.exists() and not options.force:
        raise FileExistsError(f"{out} exists: give another name by -o, or --force")
    return out


def _named_after(file: str) -> Path:
    """What the result is called after: beside a file, and in the current folder for all else."""
    if "://" in file:
        return Path(file.rstrip("/").rpartition("/")[2])
    if Path(file).exists():
        return Path(file)
    return Path(file.replace(":", "_"))  # a packaged net, such as asrn-x4:published


def _read(options: argparse.Namespace, is_of_others: bool) -> ElasticWrapper:
    if not is_of_others:
        from elasticnet.checkpoint import load

        return load(options.file, options.depth)
    from elasticnet.sr.models.convert import load_official

    arguments = {} if options.res_scale is None else {"res_scale": options.res_scale}
    try:
        net = load_official(options.file, **arguments)
    except TypeError:
        raise ValueError(
            f"--res-scale {options.res_scale}: {options.file} is RCAN, whose blocks have none"
        ) from None
    return net if options.depth is None else net.truncate(options.depth)


def _write_checkpoint(net: ElasticWrapper, out: Path, file: str) -> None:
    from elasticnet.checkpoint import save

    save(net, out, {"converted_from": Path(file).name})


def _write_authors(net: ElasticWrapper, out: Path) -> None:
    """Write the state dict of the authors' network, bare, as their code loads it."""
    import safetensors.torch
    import torch

    from elasticnet._files import write_atomic
    from elasticnet.sr.models.convert import official_state_dict

    state = official_state_dict(net)
    if out.suffix == SAFETENSORS_SUFFIX:
        write_atomic(out, safetensors.torch.save(_own_memory(state)))
        return
    content = io.BytesIO()
    torch.save(_own_memory(state), content)
    write_atomic(out, content.getvalue())


def _own_memory(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without what surrounds them in memory, which would be written, too."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}


def _notes_of(file: str) -> dict[str, Any]:
    """The notes of a checkpoint of ours."""
    from elasticnet.checkpoint import read_header

    return read_header(file)["notes"]


def _write_spandrel(net: ElasticWrapper, out: Path, notes: Mapping[str, Any]) -> None:
    import safetensors.torch

    from elasticnet._files import write_atomic
    from elasticnet.sr.models.carried import carried_checkpoint

    write_atomic(out, safetensors.torch.save(carried_checkpoint(net, notes)))


def _described(net: ElasticWrapper) -> str:
    """The network as a call of its builder."""
    from elasticnet.registry import recorded

    architecture, arguments = recorded(net)
    listed = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return f"{architecture}({listed})"
