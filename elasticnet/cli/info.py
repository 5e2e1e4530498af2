"""`elasticnet info`: what a checkpoint holds."""

from __future__ import annotations

import argparse

from elasticnet.checkpoint import load, read_header


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("info", help="show what a checkpoint holds: architecture, depths, parameters, notes")
    parser.add_argument("file", help="a .safetensors file that elasticnet.save or a recipe wrote")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    header = read_header(options.file)
    arguments = ", ".join(f"{name}={value!r}" for name, value in header["arguments"].items())
    print(f"{header['architecture'] or 'custom network'}({arguments})")
    print(f"depths: {', '.join(map(str, header['taps']))}")
    if header["architecture"]:
        for depth in header["taps"]:
            parameters = sum(parameter.numel() for parameter in load(options.file, depth).parameters())
            print(f"  depth {depth}: {parameters:,} parameters")
    for name, value in header["notes"].items():
        print(f"{name}: {value}")
    return 0
