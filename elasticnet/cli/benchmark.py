"""`elasticnet benchmark`: PSNR and SSIM per depth on data sets, beside bicubic interpolation."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elasticnet.before_torch import import_torch
from elasticnet.cli.arguments import (
    add_cache,
    add_debug,
    add_device,
    add_dtype,
    report_skipped,
    resolve_device,
)

if TYPE_CHECKING:
    import torch

    from elasticnet.cli.arguments import Commands
    from elasticnet.sr.benchmark import Benchmark, OtherMethod
    from elasticnet.sr.data.pair_set import PairSet
    from elasticnet.wrapper import ElasticWrapper

CHECKPOINT_SUFFIX = ".safetensors"
BASELINE_SCALES = (2, 3, 4)  # of bicubic interpolation, where no network decides
# The library's own tuples stand in modules that import torch or numpy; a test compares these.
DEGRADATIONS = ("BI", "BD", "DN", "HAZE", "photo")
PROTOCOLS = ("matlab-y", "rounded-y", "rgb")
AUTO = "auto"  # of --dtype
OLD_PROTOCOLS = {"imdn": "rounded-y"}
TRACKS = ("bicubic", "unknown", "mild", "difficult", "wild", "x8")
BORDERS = ("symmetric", "replicate")
NOISES = ("numpy", "matlab")


def add_parser(commands: Commands) -> None:
    """Add the subcommand to the command line.

    Args:
        commands: What `ArgumentParser.add_subparsers` returned.
    """
    parser = commands.add_parser(
        "benchmark", help="PSNR and SSIM per depth on data sets, beside bicubic"
    )
    parser.description = (
        "Score networks that enlarge images, on data sets and at every depth, beside bicubic "
        "interpolation; without a network, bicubic alone. The exit status is 1 when an image could "
        "not be used."
    )
    _add_networks(parser)
    _add_data(parser)
    _add_scoring(parser)
    _add_output(parser)
    add_debug(parser)
    parser.set_defaults(run=run)


def _add_networks(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("networks")
    group.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="checkpoints: paths, names of packaged nets such as asrn-x4, http(s) URLs or "
        "hf://...; each is scored at its own scale",
    )
    group.add_argument(
        "--model",
        metavar="NAME",
        help="instead of checkpoints: a registered architecture, such as asrn, at its untrained "
        "start, with --scale",
    )
    group.add_argument(
        "--depths",
        nargs="+",
        type=int,
        metavar="N",
        help="the first N blocks; default: every depth that carries a prediction",
    )
    group.add_argument(
        "--others",
        nargs="+",
        type=_other,
        default=[],
        metavar="NAME=DIR",
        help="images that other methods have made of the data sets: they are scored in the same "
        "way and shown beside the networks; in DIR, DIR/SET, DIR/xS or DIR/SET/xS, named as the "
        "true images, also with the scale and the method's name after it",
    )
    add_dtype(group)
    add_device(group)


def _other(text: str) -> tuple[str, str]:
    """One value of --others: a method's name and the folder of its images."""
    name, equals, folder = text.partition("=")
    if not name or not equals or not folder:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected a name and a folder, such as RCAN=results/RCAN"
        )
    return name, folder


def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data",
        nargs="+",
        required=True,
        metavar="DIR",
        help="data sets in any known layout; a flat folder of images is enough",
    )
    group.add_argument(
        "--scales",
        "--scale",
        nargs="+",
        type=int,
        metavar="S",
        help="how many times as long each side becomes; default: what the checkpoints do, or "
        "2 3 4 without any",
    )
    group.add_argument(
        "--degradation",
        type=_degradation,
        choices=DEGRADATIONS,
        default="BI",
        help="how low-resolution images are made where the data set has none: bicubic (BI, "
        "default), blurred (BD), noisy (DN), hazy (HAZE), or JPEG of random quality (photo)",
    )
    group.add_argument(
        "--track",
        choices=TRACKS,
        help="which of DIV2K's low-resolution images are read; they have to be there",
    )
    group.add_argument(
        "--data-lr",
        metavar="DIR",
        help="the low-resolution images of the one data set of --data, under the same names",
    )
    group.add_argument(
        "--blur-sigma", type=float, metavar="PIXELS", help="of the blur of BD; default: 1.6"
    )
    group.add_argument(
        "--noise-sigma",
        type=float,
        metavar="LEVELS",
        help="of the noise of DN, on the 0..255 scale; default: 30",
    )
    group.add_argument(
        "--noise",
        choices=NOISES,
        help="where the noise of DN comes from: numpy (default), or matlab, on which published "
        "numbers stand",
    )
    group.add_argument(
        "--jpeg-quality",
        nargs="+",
        type=_jpeg_quality,
        default=[],
        metavar="Q",
        help="score low-resolution images after JPEG compression, too: a table for each quality, "
        "1 (worst) to 100, beside that of the images as they are; 4:2:0, by Pillow",
    )
    add_cache(group)


def _degradation(text: str) -> str:
    """The value of --degradation; whoever means one of DIV2K's tracks is told how to say so."""
    if text in TRACKS:
        raise argparse.ArgumentTypeError(f"{text!r} is one of DIV2K's tracks: write --track {text}")
    return text


def _add_scoring(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("scoring")
    group.add_argument(
        "--protocol",
        type=_protocol,
        choices=PROTOCOLS,
        default="matlab-y",
        help="which channels are compared, and how much of the border is left out: the luma "
        "(matlab-y, default), the luma rounded to integers (rounded-y), or all channels (rgb)",
    )
    group.add_argument(
        "--self-ensemble",
        action="store_true",
        help="mean over the eight symmetries of the input; eight times slower",
    )
    group.add_argument(
        "--border",
        choices=BORDERS,
        default="symmetric",
        help="what bicubic resizing sees outside an image; default: %(default)s",
    )
    group.add_argument("--no-cost", action="store_true", help="do not measure MACs and time")


def _jpeg_quality(text: str) -> int:
    """One value of --jpeg-quality."""
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1 to 100")
    return int(text)


def _protocol(text: str) -> str:
    """The value of --protocol; an earlier name stands for today's."""
    return OLD_PROTOCOLS.get(text, text)


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--save-images", metavar="DIR", help="save every scored image as PNG")
    group.add_argument(
        "--out",
        metavar="DIR",
        help="write tables (Markdown, CSV, JSON), as it goes, and figures; files of an earlier run "
        "are replaced. A run that was stopped goes on there: what it has scored is not scored "
        "again unless something has changed",
    )
    group.add_argument(
        "--rescore",
        action="store_true",
        help="score everything again, whatever an earlier run has left in --out",
    )


def run(options: argparse.Namespace) -> int:
    """Score, print the table, and write what was asked for.

    Args:
        options: The parsed command line.

    Returns:
        The exit status: 1 where images were left out, otherwise 0.

    Raises:
        ValueError: Options that do not fit each other, the networks or the data.
        OSError: A file that cannot be read or written.
    """
    import_torch()
    from elasticnet.sr.benchmark import find_others
    from elasticnet.sr.benchmark.report import caption, markdown_tables, warnings_of, write_tables

    _sort_files_from_data(options)
    device = resolve_device(options.device)
    nets = _named_nets(options, device)
    _make_folders(options)  # now, and not when everything is scored
    sets = _load_sets(options, nets)
    # Other methods have enlarged the images as they are, not the compressed ones.
    as_they_are = [(name, pairs) for name, pairs in sets if pairs.lr_jpeg is None]
    others = [find_others(name, folder, as_they_are) for name, folder in options.others]
    result = _score(options, nets, others, sets, device)

    title = _title(options, nets)
    if options.out:
        # before anything is printed: whoever reads the output may have closed the pipe
        write_tables(options.out, result, title)
    print(f"\n{caption(result, title)}\n\n{markdown_tables(result, padded=True)}")
    for warning in warnings_of(result):
        print(f"warning: {warning}")
    if options.out:
        _draw_figures(options.out, result, nets, others, sets, device)
    skipped = [(f"{each.data} x{each.scale} {each.image}", each.reason) for each in result.skipped]
    return report_skipped(skipped)


def _sort_files_from_data(options: argparse.Namespace) -> None:
    """Take checkpoints that stand behind --data for what they are: --data takes all that follows.

    `benchmark --data DIR FILE` then is the same as `benchmark FILE --data DIR`.
    """
    folders: list[str] = []
    for each in options.data:
        if _names_a_checkpoint(each):
            options.files.append(each)
        else:
            folders.append(each)
    if not folders:
        listed = " ".join(options.data)
        raise ValueError(
            f"--data {listed}: a checkpoint and no folder of images; write "
            f"elasticnet benchmark {listed} --data DIR"
        )
    options.data = folders


def _names_a_checkpoint(text: str) -> bool:
    """Whether a word behind --data is a file of weights, a URL or a packaged net's name."""
    from elasticnet.checkpoint.packaged import find_packaged

    if os.path.lexists(text):
        return text.endswith(CHECKPOINT_SUFFIX) and not Path(text).is_dir()
    return text.endswith(CHECKPOINT_SUFFIX) or "://" in text or find_packaged(text) is not None


def _load_sets(
    options: argparse.Namespace, nets: Sequence[tuple[str, ElasticWrapper]]
) -> list[tuple[str, PairSet]]:
    """Load the data sets, and say where their LR images come from."""
    from elasticnet.sr.benchmark import load_sets, lr_lines, with_compressed

    sets = load_sets(
        options.data,
        _scales(options, nets),
        degradation=options.degradation,
        protocol=options.protocol,
        border=options.border,
        blur_sigma=options.blur_sigma,
        noise_sigma=options.noise_sigma,
        noise=options.noise or NOISES[0],
        cache_dir=options.cache_dir,
        cache=options.cache,
        track=options.track,
        lr_root=options.data_lr,
    )
    for line in lr_lines(sets):
        print(line)
    return with_compressed(sets, options.jpeg_quality)


def _score(
    options: argparse.Namespace,
    nets: Sequence[tuple[str, ElasticWrapper]],
    others: Sequence[OtherMethod],
    sets: Sequence[tuple[str, PairSet]],
    device: str,
) -> Benchmark:
    """Score everything; with --out, go on from an earlier run, and write tables on the way."""
    from elasticnet.sr.benchmark import KeptScores, benchmark
    from elasticnet.sr.benchmark.report import write_tables

    title = _title(options, nets)

    def write_what_there_is(so_far: Benchmark) -> None:
        so_far.settings.update(_data_settings(options, sets))
        write_tables(options.out, so_far, title)

    with ExitStack() as stack:
        kept = None
        if options.out:
            stack.enter_context(_says_how_to_go_on(options.out))
            kept = stack.enter_context(KeptScores(options.out, forget=options.rescore))
        result = benchmark(
            nets,
            sets,
            others=others,
            depths=options.depths,
            protocol=options.protocol,
            self_ensemble=options.self_ensemble,
            compute_dtype=_compute_dtype(options, nets),
            border=options.border,
            device=device,
            costs=not options.no_cost,
            images_dir=options.save_images,
            progress=True,
            kept=kept,
            on_progress=write_what_there_is if options.out else None,
        )
    result.settings.update(_data_settings(options, sets))
    return result


def _compute_dtype(
    options: argparse.Namespace, nets: Sequence[tuple[str, ElasticWrapper]]
) -> torch.dtype | None:
    """What --dtype says; "auto" chooses one for all networks, which takes all of them to agree."""
    from elasticnet.sr.inference.dtype_choice import choose_dtype, compute_dtype_of
    from elasticnet.sr.inference.upscale_plan import plan_upscale

    if options.dtype is None:
        return None
    for _, net in nets:
        net.float()
    if options.dtype != AUTO:
        return compute_dtype_of(options.dtype)
    files: list[str | None] = list(options.files) or [None] * len(nets)
    chosen: set[str] = set()
    for (label, net), file in zip(nets, files, strict=True):
        choice = choose_dtype(plan_upscale(net), file)
        print(f"{label}: dtype {choice.dtype} ({choice.reason})")
        chosen.add(choice.dtype)
    if len(chosen) != 1:
        return None
    return compute_dtype_of(chosen.pop())


@contextmanager
def _says_how_to_go_on(folder: str) -> Generator[None, None, None]:
    """After Ctrl-C or a signal, say that what was scored is not lost."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        print(
            f"elasticnet: stopped; what was scored is in {folder}, and the same command goes on",
            file=sys.stderr,
        )
        raise


def _data_settings(
    options: argparse.Namespace, sets: Sequence[tuple[str, PairSet]]
) -> dict[str, Any]:
    """What the tables' settings say of the data."""
    settings: dict[str, Any] = {}
    if options.track is None and options.data_lr is None:
        settings["degradation"] = options.degradation
    settings["lr"] = {f"{name} x{pairs.scale}": pairs.lr_source for name, pairs in sets}
    for name in ("blur_sigma", "noise_sigma", "noise", "track", "data_lr"):
        value = getattr(options, name)
        if value is not None:
            settings[name] = value
    if options.others:
        settings["others"] = dict(options.others)
    return settings


def _draw_figures(
    folder: str,
    result: Benchmark,
    nets: Sequence[tuple[str, ElasticWrapper]],
    others: Sequence[OtherMethod],
    sets: Sequence[tuple[str, PairSet]],
    device: str,
) -> None:
    from elasticnet.sr.benchmark.report import write_figures

    if importlib.util.find_spec("matplotlib"):
        write_figures(folder, result, nets, sets, device, others)
    else:
        hint = 'no figures without matplotlib: pip install "elastic-depth[figures]"'
        print(hint, file=sys.stderr)


def _named_nets(options: argparse.Namespace, device: str) -> list[tuple[str, ElasticWrapper]]:
    """The networks that the options name, on the device, each with its label in the tables."""
    if options.model is not None:
        return _untrained_nets(options, device)
    from elasticnet.checkpoint import load
    from elasticnet.sr.benchmark import distinct_names

    labels = distinct_names(options.files)
    nets: list[tuple[str, ElasticWrapper]] = []
    for label, file in zip(labels, options.files, strict=True):
        nets.append((label, load(file, device=device)))
    return nets


def _untrained_nets(options: argparse.Namespace, device: str) -> list[tuple[str, ElasticWrapper]]:
    """One network of `--model` for each scale, or one in all where it has no choice of scale."""
    import torch

    from elasticnet.registry import build, find, names

    name = options.model
    if name not in names():
        raise ValueError(
            f"--model {name}: expected one of {', '.join(names())}, or one that the module behind "
            "--import registers"
        )
    if options.files:
        raise ValueError(
            f"--model {name} beside {options.files[0]}: "
            "give either checkpoints, or --model with --scale"
        )
    scale_argument = find(name).extras.get("scale_argument")
    if scale_argument is not None and not options.scales:
        raise ValueError(f"--model {name}: give either checkpoints, or --model with --scale")
    torch.manual_seed(0)
    label = f"{name} (untrained)"
    if scale_argument is None:
        return [(label, build(name).to(device))]
    return [(label, build(name, **{scale_argument: each}).to(device)) for each in options.scales]


def _scales(
    options: argparse.Namespace, nets: Sequence[tuple[str, ElasticWrapper]]
) -> Sequence[int]:
    """The scales at which the data sets are loaded."""
    from elasticnet.sr.benchmark import scale_of

    if options.scales:
        return options.scales
    if nets:
        return sorted({scale_of(net) for _, net in nets})
    return BASELINE_SCALES


def _title(options: argparse.Namespace, nets: Sequence[tuple[str, ElasticWrapper]]) -> str:
    named = [*nets, *options.others]
    labels = list(dict.fromkeys(label for label, _ in named))  # each once, in order
    scored = ", ".join(labels) or "bicubic"
    return f"{scored}, {_lr_kind(options)}"


def _lr_kind(options: argparse.Namespace) -> str:
    """What the low-resolution images are, in a word or two."""
    if options.track is not None:
        return f"track {options.track}"
    if options.data_lr is not None:
        return f"LR of {Path(options.data_lr).name}"
    return options.degradation


def _make_folders(options: argparse.Namespace) -> None:
    from elasticnet._files import make_writable_folder

    for folder in (options.out, options.save_images):
        if folder:
            make_writable_folder(folder)
