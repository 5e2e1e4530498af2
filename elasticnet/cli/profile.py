"""`elasticnet profile`: measure a checkpoint's depth card on this machine and store it there."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

from elasticnet.before_torch import import_torch
from elasticnet.cli.arguments import (
    DTYPES,
    add_cache,
    add_debug,
    add_device,
    positive_count,
    report_skipped,
    resolve_device,
    thread_count,
)

if TYPE_CHECKING:
    import torch

    from elasticnet.card import DepthCard
    from elasticnet.cli.arguments import Commands
    from elasticnet.wrapper import ElasticWrapper

FLOAT32 = "float32"
AUTO = "auto"
LOSS_NAME = "dtype_loss"  # of the metric `LOSS`, whose module is not imported for --help
DEFAULT_SIZE = (640, 360)  # width and height in pixels


class Quality(NamedTuple):
    """What the depths are worth on a data set.

    Attributes:
        by_depth: For each depth, its mean scores, and what the dtype loses, by their names.
        data: What they are means over, in words.
        skipped: (image, reason) of each image that was left out.
    """

    by_depth: Mapping[int, Mapping[str, float]]
    data: str
    skipped: list[tuple[str, str]]


def add_parser(commands: Commands) -> None:
    """Add the subcommand to the command line.

    Args:
        commands: What `ArgumentParser.add_subparsers` returned.
    """
    parser = commands.add_parser(
        "profile", help="measure what each depth of a checkpoint costs on this machine"
    )
    parser.description = (
        "Measure, per depth and on this machine: parameters, MACs, latency, peak memory, "
        "throughput, and PSNR and SSIM where data is given. The depth card goes into FILE, in "
        "place of an earlier one of the same machine, and as Markdown, JSON and a figure beside "
        "it. That of a packaged net goes into the user's cache folder, where `elasticnet upscale "
        "--max-ms` finds it. The exit status is 1 when an image could not be used."
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        help="a checkpoint of a registered architecture: a path, the name of a packaged net such "
        "as asrn-x4, or with --no-store also an http(s) URL or hf://...",
    )
    _add_input(parser)
    _add_measuring(parser)
    _add_output(parser)
    add_debug(parser)
    parser.set_defaults(run=run)


def _add_input(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what the network runs on")
    group.add_argument(
        "--size",
        type=_size,
        metavar="WxH",
        help="of the input image, in pixels; default: 640x360. A network whose architecture does "
        "not say that it takes images is measured on the architecture's own example",
    )
    group.add_argument(
        "--data",
        metavar="DIR",
        help="a data set in any known layout, on which PSNR and SSIM are measured",
    )
    add_cache(group)
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default=FLOAT32,
        help="in which convolutions and matrix products are computed, by autocast; auto: a card "
        "for each, and which of them `upscale --dtype auto` takes; default: float32",
    )
    add_device(group)
    group.add_argument(
        "--threads",
        type=thread_count,
        metavar="N",
        help="of the CPU; default: as many as PyTorch takes",
    )


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how it is measured")
    group.add_argument(
        "--repeats",
        type=positive_count,
        default=40,
        metavar="N",
        help="passes timed at each depth; default: 40",
    )
    group.add_argument(
        "--seconds",
        type=_seconds,
        default=60.0,
        metavar="T",
        help="begin no new round of passes after T seconds; default: 60",
    )
    group.add_argument(
        "--no-memory",
        action="store_true",
        help="leave peak memory out (on a CPU it takes a process of its own)",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "--no-store",
        action="store_true",
        help="leave FILE as it is; the card is only printed, and written into --out",
    )
    group.add_argument(
        "--out",
        metavar="DIR",
        help="where FILE's .card.md, .card.json and .card.png go; default: beside FILE",
    )
    group.add_argument(
        "--json",
        action="store_true",
        help="print the card as one JSON object, for programs; what else is said goes to standard "
        "error",
    )


def run(options: argparse.Namespace) -> int:
    """Measure, print the card, and write and store it where that was asked for.

    Args:
        options: The parsed command line.

    Returns:
        The exit status: 1 where images were left out, otherwise 0.

    Raises:
        ValueError: Options that do not fit each other or the network.
        OSError: A file that cannot be read or written.
    """
    if not options.json:
        return _profile(options, sys.stdout)
    output = sys.stdout
    with redirect_stdout(sys.stderr):
        return _profile(options, output)


def _profile(options: argparse.Namespace, output: TextIO) -> int:
    """Do what `run` says; the cards are printed into `output`."""
    import_torch()
    from elasticnet.card.timing import limited_threads
    from elasticnet.checkpoint import load

    _check_architecture(options)
    if not options.no_store:
        _check_storable(options.file)
    folder = _report_folder(options)
    device = resolve_device(options.device)
    net = load(options.file, device=device)
    net.float()
    example = _example(options, net).to(device)
    cards: dict[str, DepthCard] = {}
    skipped: list[tuple[str, str]] = []
    with limited_threads(options.threads):
        for dtype, quality in _qualities(options, net, device).items():
            cards[dtype] = _measured(options, net, example, dtype, quality)
            if quality is not None:
                skipped = quality.skipped

    _print(cards, output, as_json=options.json)
    for dtype, card in cards.items():
        if folder is not None:
            _write(card, folder, options.file, dtype if len(cards) > 1 else FLOAT32)
        if not options.no_store:
            print(_store(options.file, card))
    if options.dtype == AUTO:
        print(_choice_line(cards))
    return report_skipped(skipped)


def _measured(
    options: argparse.Namespace,
    net: ElasticWrapper,
    example: torch.Tensor,
    dtype: str,
    quality: Quality | None,
) -> DepthCard:
    """The card of a network in one dtype."""
    from elasticnet.card import measure
    from elasticnet.sr.card_metrics import METRICS, images_per_pass
    from elasticnet.sr.inference.dtype_choice import compute_dtype_of
    from elasticnet.sr.inference.dtype_loss import LOSS

    card = measure(
        net,
        example,
        repeats=options.repeats,
        seconds=options.seconds,
        memory=not options.no_memory,
        quality=None if quality is None else quality.by_depth,
        metrics=(*METRICS, LOSS),
        data=None if quality is None else quality.data,
        per_pass=images_per_pass(example.shape) if _takes_images(net) else None,
        compute_dtype=compute_dtype_of(dtype),
        progress=True,
    )
    # what a dtype loses need not fall with depth
    warnings = [line for line in card.warnings if not line.startswith(LOSS.name)]
    return replace(card, warnings=tuple(warnings))


def _choice_line(cards: Mapping[str, DepthCard]) -> str:
    """Which dtype "auto" chooses at the deepest depth, and why."""
    from elasticnet.sr.inference.dtype_choice import fastest_of
    from elasticnet.sr.inference.dtype_loss import LOSS, MAX_LOSS

    allowed: dict[str, DepthCard] = {}
    for dtype, card in cards.items():
        if card.rows[-1].quality.get(LOSS.name, 0.0) <= MAX_LOSS:
            allowed[dtype] = card
    choice = fastest_of(allowed, cards[FLOAT32].rows[-1].depth)
    refused = [f"{dtype} loses more than {MAX_LOSS} dB" for dtype in cards if dtype not in allowed]
    return f"--dtype auto is {choice.dtype}: {', '.join([choice.reason, *refused])}"


def _check_architecture(options: argparse.Namespace) -> None:
    """Refuse a file that holds a network which only its author's own code can build."""
    from elasticnet.checkpoint import read_header

    if read_header(options.file)["architecture"] is None:
        raise ValueError(
            f"{options.file}: holds a network of no registered architecture: measure it in Python "
            "with elasticnet.card.measure(net, example), and store_card(file, card)"
        )


def _check_storable(file: str) -> None:
    """Refuse a file that the card cannot be stored in, and that has no place for it elsewhere."""
    if _is_remote(file):
        raise ValueError(
            f"{file}: a card can only be stored in a local file: download it, or pass --no-store"
        )
    if not _is_packaged(file):
        _check_writable(Path(file).parent)


def _is_packaged(file: str) -> bool:
    """Whether a file belongs to an installed package: it is left as it is."""
    from elasticnet.checkpoint.packaged import packaged_files, source_of

    resolved = Path(source_of(file)).resolve()
    return any(resolved == each.resolve() for each in packaged_files().values())


def _store(file: str, card: DepthCard) -> str:
    """Store a card in its file, or for the user where the file is the package's; says where."""
    from elasticnet.card import store_card
    from elasticnet.card.user_cards import card_file, keep_card
    from elasticnet.checkpoint import read_header

    if not _is_packaged(file):
        store_card(file, card)
        return f"stored in {file}"
    header = read_header(file)
    architecture = header["architecture"]
    assert architecture is not None  # the package's files have one
    kept = card_file(architecture, header["arguments"], header["taps"])
    keep_card(kept, card)
    return f"kept for this user in {kept}"


def _report_folder(options: argparse.Namespace) -> Path | None:
    """The folder of the report, made if need be; None where no report is written."""
    from elasticnet._files import make_writable_folder

    if options.out:
        return make_writable_folder(options.out)  # now, and not when everything is measured
    if options.no_store or _is_packaged(options.file):
        return None
    return Path(options.file).parent


def _check_writable(folder: Path) -> None:
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder}: cannot be written to: pass --no-store and another --out")


def _takes_images(net: ElasticWrapper) -> bool:
    """Whether the architecture says that it takes images, or has no other example to offer."""
    from elasticnet.registry import architecture_of

    architecture = architecture_of(net)
    if architecture is None or architecture.example is None:
        return True
    return "channels" in architecture.extras  # what a network of images says of itself


def _example(options: argparse.Namespace, net: ElasticWrapper) -> torch.Tensor:
    """The input that every depth is measured on: an image, or the architecture's own example."""
    import torch

    from elasticnet.registry import architecture_of, recorded
    from elasticnet.sr.inference.channels_last import channels_last

    if _takes_images(net):
        width, height = options.size or DEFAULT_SIZE
        return channels_last(torch.rand(1, 3, height, width))  # as images are upscaled
    if options.size is not None:
        width, height = options.size
        raise ValueError(
            f"--size {width}x{height}: the network's architecture does not say that it takes "
            "images (no 'channels' in its extras): leave it out, and the architecture's own "
            "example is measured"
        )
    architecture = architecture_of(net)
    assert architecture is not None
    assert architecture.example is not None
    _, arguments = recorded(net)
    return architecture.example(arguments)


def _qualities(
    options: argparse.Namespace, net: ElasticWrapper, device: str
) -> dict[str, Quality | None]:
    """What is known of the depths in each dtype that is to be measured; None for nothing."""
    from elasticnet.sr.inference.dtype_loss import DTYPES, known_losses

    dtypes = DTYPES if options.dtype == AUTO else (options.dtype,)
    if options.data:
        return _scored(options, net, device, dtypes)
    qualities: dict[str, Quality | None] = {}
    for dtype in dtypes:
        losses = known_losses(options.file, dtype)
        is_known = sorted(losses) == list(net.taps)
        if dtype != FLOAT32 and is_known:
            by_depth = {depth: {LOSS_NAME: loss} for depth, loss in losses.items()}
            qualities[dtype] = Quality(by_depth, "Set5 and B100, the larger loss", [])
        elif dtype == options.dtype or dtype == FLOAT32:
            qualities[dtype] = None
        else:
            print(
                f"{dtype} is left out: what it loses is not known; --data DIR measures it",
                file=sys.stderr,
            )
    return qualities


def _scored(
    options: argparse.Namespace, net: ElasticWrapper, device: str, dtypes: Sequence[str]
) -> dict[str, Quality | None]:
    """Score every depth on a data set in each dtype, and in float32 to compare them with."""
    from elasticnet.sr.benchmark import evaluate, load_sets, lr_lines, scale_of
    from elasticnet.sr.card_metrics import as_quality
    from elasticnet.sr.inference.dtype_choice import compute_dtype_of

    scale = scale_of(net)
    sets = load_sets([options.data], [scale], cache_dir=options.cache_dir, cache=options.cache)
    for line in lr_lines(sets):
        print(line)
    [(name, pairs)] = sets
    data = f"{name} x{scale}, {len(pairs)} images, protocol matlab-y"
    exact = evaluate(net, pairs, device=device, progress=True)
    qualities: dict[str, Quality | None] = {}
    for dtype in dtypes:
        if dtype == FLOAT32:
            qualities[dtype] = Quality(as_quality(exact), data, list(pairs.skipped))
            continue
        compute_dtype = compute_dtype_of(dtype)
        scores = evaluate(net, pairs, device=device, compute_dtype=compute_dtype, progress=True)
        by_depth = as_quality(scores)
        for depth, of_depth in by_depth.items():
            of_depth[LOSS_NAME] = exact[depth].psnr - scores[depth].psnr
        qualities[dtype] = Quality(by_depth, data, list(pairs.skipped))
    return qualities


def _print(cards: Mapping[str, DepthCard], output: TextIO, *, as_json: bool) -> None:
    """Print the cards as tables; as JSON one card, or several by dtype."""
    from elasticnet._files import strict_json
    from elasticnet._tables import aligned
    from elasticnet.card.report import caption, markdown_table

    if as_json:
        values = {dtype: card.to_json() for dtype, card in cards.items()}
        value = values if len(values) > 1 else next(iter(values.values()))
        print(json.dumps(strict_json(value, place="the card"), indent=2), file=output)
        return
    for number, card in enumerate(cards.values()):
        if number > 0:
            print(file=output)
        print(f"{caption(card)}\n\n{aligned(markdown_table(card))}", file=output)
        for warning in card.warnings:
            print(f"warning: {warning}", file=output)


def _write(card: DepthCard, folder: Path, file: str, dtype: str) -> None:
    """Write the report, under a name with the dtype where it is not float32."""
    from elasticnet.card.report import write_report

    stem = Path(file).name.removesuffix(".safetensors")
    if dtype != FLOAT32:
        stem = f"{stem}.{dtype}"
    written = write_report(card, folder, stem)
    print(f"written: {', '.join(str(path) for path in written)}")


def _is_remote(file: str) -> bool:
    return "://" in file


def _size(text: str) -> tuple[int, int]:
    """Width and height of an argument such as 640x360."""
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected WIDTHxHEIGHT in pixels, such as 640x360"
        )
    return int(match[1]), int(match[2])


def _seconds(text: str) -> float:
    """The number above 0 of an argument; "nan" is refused."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of seconds above 0")
    return seconds
