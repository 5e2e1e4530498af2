"""Keep the measurements of a finished run: docs/results/NAME.json, from which recipes/results.py
makes the pages.

python recipes/record.py NAME RUN                            options, final table and validations on
the way python recipes/record.py NAME RUN --data Set5 Set14 B100     and every depth of its best
network on these sets
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import elasticnet
from elasticnet import ElasticWrapper
from elasticnet._files import write_json
from elasticnet.sr.benchmark import benchmark, load_sets, scale_of

RESULTS = Path(__file__).parents[1] / "docs" / "results"
KEPT_OF_LOG = ("step", "seconds", "learning_rate", "total", "psnr")


def record_of(
    run: Path, folders: Sequence[Path] = (), machine: str | None = None
) -> dict[str, Any]:
    """What is kept of a run: options (of paths the last name), final table, and the validations on
    the way.

    folders: data sets on which every depth is scored, too: of the best network, where the table is
    of the last one. machine: in words, what trained it; by default what the log says. Raises
    ValueError where it says nothing.
    """
    options = json.loads((run / "options.json").read_text())
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    scores = [
        {name: line[name] for name in KEPT_OF_LOG if name in line}
        for line in lines
        if "psnr" in line
    ]
    table = json.loads((run / "table.json").read_text())
    table.pop("options", None)
    record = {"options": options, "table": table, "scores": scores}
    if folders:
        named = (line["machine"] for line in lines if "machine" in line)
        machine = machine or ", then ".join(key for key, _ in groupby(named))
        if not machine:
            raise ValueError(
                f"{run / 'log.jsonl'} names no machine: say with --machine what trained it"
            )
        record |= {"machine": machine, "sets": scored(run, options, folders)}
    return without_folders(record)


def scored(run: Path, options: dict[str, Any], folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Every depth of a run's best network on data sets, beside bicubic; of one with a single exit,
    cut short, too.
    """
    net = elasticnet.load(run / "best.safetensors")
    adapters = {int(depth): adapter for depth, adapter in net.adapters.items()}
    # with all taps
    net = ElasticWrapper(net.blocks, net.head, net.stem, None, adapters, net.head_skip).eval()
    degradation: dict[str, Any] = {
        name: options.get(name) for name in ("degradation", "blur_sigma", "noise_sigma")
    }
    sets = load_sets(folders, [scale_of(net)], **degradation)
    rows = benchmark([("net", net)], sets, costs=False, progress=True).rows
    return [
        {name: row._asdict()[name] for name in ("data", "depth", "parameters", "psnr", "ssim")}
        for row in rows
    ]


def without_folders(value: Any) -> Any:
    """The value with every path in it that leads out of the working folder cut to its last name."""
    if isinstance(value, dict):
        return {key: without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_folders(entry) for entry in value]
    outside = isinstance(value, str) and (
        Path(value).is_absolute() or Path(value).parts[:1] == ("..",)
    )
    return Path(value).name if outside else value


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the JSON file")
    parser.add_argument("run", type=Path, help="folder of a finished run of a recipe")
    parser.add_argument(
        "--data", nargs="+", type=Path, default=[], metavar="SET", help="data sets to score it on"
    )
    parser.add_argument("--machine", help="what trained it; default: what its log says")
    options = parser.parse_args(arguments)
    write_json(
        RESULTS / f"{options.name}.json", record_of(options.run, options.data, options.machine)
    )


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
