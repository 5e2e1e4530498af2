"""Go a part of the way from one network's weights to those that were trained from it.

    python recipes/interpolate.py write START TUNED --share 0.5 --out FILE
                                                             the network half of the way
    python recipes/interpolate.py score START TUNED --shares 0 0.25 0.5 0.75 1 --data SET
                                                             the gain of several on a data set; with
                                                             --jpeg-quality 30 90 also after JPEG

With --head-share 1 the shared head is that of TUNED, whatever the share of all other weights.

START and TUNED are files, or names of packaged nets such as asrn-x4. Training on compressed
photographs from the weights for clean ones loses on clean ones. Between the two networks lie others
that have most of the gain for a part of the loss, at no further training: see "Deep Network
Interpolation for Continuous Imagery Effect Transition" (Wang et al., CVPR 2019) and "Robust
fine-tuning of zero-shot models" (Wortsman et al., CVPR 2022). It works for weights that were
trained from START at a moderate learning rate. Between networks that were trained apart, it need
not: scores on the way tell.
"""

from __future__ import annotations

import elasticnet.before_torch  # sets what must be set before torch is imported

# isort: split
import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import elasticnet
from elasticnet import ElasticWrapper
from elasticnet._files import write_json
from elasticnet.checkpoint import read_header
from elasticnet.sr.benchmark import benchmark, load_sets, scale_of, with_compressed
from elasticnet.training.program import run_program

NOTE = "interpolated"  # in the notes of a file: where it lies
ROW_ENTRIES = ("data", "network", "depth", "psnr")

NetState = Mapping[str, Tensor]


def interpolated(
    start: ElasticWrapper, tuned: ElasticWrapper, share: float, head_share: float | None = None
) -> ElasticWrapper:
    """Return the network a part of the way from one to another.

    Args:
        start: One network.
        tuned: The other one, of the same layout. It gets the weights, and is returned.
        share: How much of the way: 0 is `start`, 1 is `tuned`.
        head_share: The same for the shared head; None: as `share`.

    Raises:
        ValueError: A share is not from 0 to 1, names or shapes differ, or there is batch
            normalization, whose statistics do not lie on the way.
    """
    of_head = share if head_share is None else head_share
    for name, number in (("share", share), ("head share", of_head)):
        if not 0 <= number <= 1:
            raise ValueError(f"{name} {number}: expected a number from 0 (START) to 1 (TUNED)")
    for module in tuned.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"{type(module).__name__}: its running statistics belong to the weights that they "
                "were measured with, and have to be measured anew for those on the way"
            )
    before, after = start.state_dict(), tuned.state_dict()
    check_same_layout(before, after)
    state: dict[str, Tensor] = {}
    for name, tensor in after.items():
        if tensor.is_floating_point():
            part = of_head if name.startswith("head.") else share
            # in float64, so that a share of 0 or 1 gives the bits of its end
            way = before[name].double() * (1 - part) + tensor.double() * part
            state[name] = way.to(tensor.dtype)
        else:
            state[name] = tensor
    tuned.load_state_dict(state)
    return tuned


def check_same_layout(before: NetState, after: NetState) -> None:
    """Raise if two networks' tensors differ in names or shapes; the first difference is named."""
    for name in [*after, *before]:
        shapes = [tuple(each[name].shape) if name in each else None for each in (before, after)]
        if shapes[0] != shapes[1]:
            found = " and ".join("nothing" if shape is None else str(shape) for shape in shapes)
            raise ValueError(
                f"tensor {name!r}: {found}: expected two networks of the same layout, of which one "
                "was trained from the other"
            )


def loaded_pair(start: str, tuned: str) -> tuple[ElasticWrapper, ElasticWrapper]:
    """Load both networks; raise unless the files describe the same one.

    Weights of the same shapes may belong to another function: a skip, for example, has none.

    Args:
        start: A file or a packaged net.
        tuned: The same.

    Raises:
        ValueError: Their descriptions differ; the message names the first difference.
    """
    descriptions: list[dict[str, Any]] = []
    for source in (start, tuned):
        header = read_header(source)
        about = {"architecture": header["architecture"], "taps": header["taps"]}
        descriptions.append({**about, **(header["arguments"] or {})})
    of_start, of_tuned = descriptions
    for name in [*of_tuned, *of_start]:
        if of_start.get(name) != of_tuned.get(name):
            raise ValueError(
                f"{name}: {of_start.get(name)!r} in {start} and {of_tuned.get(name)!r} in {tuned}: "
                "expected two networks of the same layout, of which one was trained from the other"
            )
    return elasticnet.load(start), elasticnet.load(tuned)


def scores_on_the_way(
    start: str,
    tuned: str,
    shares: Sequence[float],
    head_share: float | None,
    folders: Sequence[Path],
    qualities: Sequence[int],
    depths: Sequence[int] | None,
) -> dict[str, Any]:
    """Return what networks on the way score at every depth, beside bicubic interpolation.

    Args:
        start: A file or a packaged net.
        tuned: The same.
        shares: How much of the way.
        head_share: The same for the shared head; None: as each share.
        folders: Data sets.
        qualities: Of JPEG, at which LR images are scored beside those that are not compressed.
        depths: Which ones; None for all.
    """
    nets: list[tuple[str, ElasticWrapper]] = []
    for share in shares:
        net = interpolated(*loaded_pair(start, tuned), share, head_share)
        nets.append((way_name(share, head_share), net.eval()))
    sets = with_compressed(load_sets(folders, [scale_of(nets[0][1])]), qualities)
    result = benchmark(nets, sets, depths=depths, costs=False, progress=True)
    rows = [{name: getattr(row, name) for name in ROW_ENTRIES} for row in result.rows]
    return {"start": Path(start).name, "tuned": Path(tuned).name, "rows": rows}


def way_name(share: float, head_share: float | None) -> str:
    """Return how tables name the network at a share of the way."""
    return f"{share:g}" if head_share is None else f"{share:g}, head {head_share:g}"


def table(scores: dict[str, Any]) -> str:
    """Return gains over bicubic interpolation as lines of text: a share and a set in each."""
    bicubic = {row["data"]: row["psnr"] for row in scores["rows"] if row["depth"] is None}
    gains: dict[tuple[str, str], list[str]] = {}
    for row in scores["rows"]:
        if row["depth"] is not None:
            cells = gains.setdefault((row["data"], row["network"]), [])
            cells.append(f"depth {row['depth']} {row['psnr'] - bicubic[row['data']]:+.2f}")
    return "\n".join(f"{data}, share {share}: {', '.join(c)}" for (data, share), c in gains.items())


def write(options: argparse.Namespace) -> None:
    """Write the network a part of the way; the notes of the file say where it lies."""
    pair = loaded_pair(options.start, options.tuned)
    net = interpolated(*pair, options.share, options.head_share)
    note: dict[str, Any] = {
        "start": Path(options.start).name,
        "tuned": Path(options.tuned).name,
        "share": options.share,
        # of a training its step and its scores, which are not those of what is written here
        "tuned_notes": dict(read_header(options.tuned)["notes"]),
    }
    if options.head_share is not None:
        note["head_share"] = options.head_share
    elasticnet.save(net, options.out, notes={NOTE: note})
    print(f"written: {options.out}")


def score(options: argparse.Namespace) -> None:
    """Print what several networks on the way gain, and write their scores to a file."""
    scores = scores_on_the_way(
        options.start,
        options.tuned,
        options.shares,
        options.head_share,
        options.data,
        options.jpeg_quality,
        options.depths,
    )
    print(table(scores))
    if options.json is not None:
        write_json(options.json, scores)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="write|score")
    writing = commands.add_parser("write", help="write the network a part of the way")
    writing.set_defaults(run=write)
    scoring = commands.add_parser("score", help="score several networks on the way")
    scoring.set_defaults(run=score)
    for command in (writing, scoring):
        command.add_argument("start", metavar="START", help="file or packaged net trained on")
        command.add_argument("tuned", metavar="TUNED", help="file or packaged net that came of it")
        command.add_argument(
            "--head-share",
            type=float,
            metavar="S",
            help="how much of the way the shared head goes; default: as much as all other weights",
        )
    writing.add_argument(
        "--share", type=float, required=True, help="how much of the way: 0 is START, 1 is TUNED"
    )
    writing.add_argument("--out", type=Path, required=True, metavar="FILE", help="what to write")
    scoring.add_argument("--shares", type=float, nargs="+", required=True, metavar="S")
    scoring.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="SET", help="folders of images"
    )
    scoring.add_argument(
        "--jpeg-quality",
        type=int,
        nargs="+",
        default=[],
        metavar="Q",
        help="score LR images also after JPEG of these qualities, 1 to 100",
    )
    scoring.add_argument("--depths", type=int, nargs="+", metavar="N", help="default: all")
    scoring.add_argument("--json", type=Path, metavar="FILE", help="also write all scores to it")
    return parser.parse_args(arguments)


def main(options: argparse.Namespace) -> None:
    """Write one network, or score several."""
    options.run(options)


if __name__ == "__main__":
    run_program(main, parse)
