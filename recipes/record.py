"""Keep the measurements of a finished run as docs/results/NAME.json, and read what they say, for recipes/results.py.

python recipes/record.py NAME RUN                            options, final table and validations on the way
python recipes/record.py NAME RUN --data Set5 Set14 B100     and every depth of its best network on these sets
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import runpy
import shlex
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import elasticnet
from elasticnet import ElasticWrapper
from elasticnet.profiling import this_machine
from elasticnet.runs import write_json
from elasticnet.sr.benchmark import benchmark, load_sets, scale_of

RESULTS = Path(__file__).parents[1] / "docs" / "results"
Records = dict[str, dict[str, Any]]  # by name
WITHOUT_EFFECT = ("out", "keep", "tensorboard", "save_every", "log_every")  # on what is trained
KEPT_OF_LOG = ("step", "seconds", "learning_rate", "total", "psnr")


def record_of(run: Path, folders: Sequence[Path] = ()) -> dict[str, Any]:
    """What is kept of a run: options (of paths the last name), final table, and the validations on the way.

    folders: data sets on which every depth is scored, too; the machine is then taken to be this one.
    """
    options = json.loads((run / "options.json").read_text())
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    scores = [{name: line[name] for name in KEPT_OF_LOG if name in line} for line in lines if "psnr" in line]
    table = json.loads((run / "table.json").read_text())
    table.pop("options", None)
    record = {"options": options, "table": table, "scores": scores}
    if folders:
        record |= {"machine": this_machine().key, "sets": scored(run, options, folders)}
    return without_folders(record)


def scored(run: Path, options: dict[str, Any], folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Every depth of a run's best network on data sets, beside bicubic; of one with a single exit, cut short, too."""
    net = elasticnet.load(run / "best.safetensors")
    net = ElasticWrapper(net.blocks, net.head, net.stem, head_skip=net.head_skip).eval()  # with all taps
    degradation: dict[str, Any] = {name: options.get(name) for name in ("degradation", "blur_sigma", "noise_sigma")}
    sets = load_sets(folders, [scale_of(net)], **degradation)
    rows = benchmark([("net", net)], sets, costs=False, progress=True).rows
    return [{name: row._asdict()[name] for name in ("data", "depth", "parameters", "psnr", "ssim")} for row in rows]


def without_folders(value: Any) -> Any:
    """The value with every absolute path in it cut to its last name."""
    if isinstance(value, dict):
        return {key: without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_folders(entry) for entry in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def psnr(record: dict[str, Any]) -> list[float]:
    """PSNR of every depth in the final table of a run."""
    return [row["psnr"] for row in record["table"]["rows"]]


def budget(record: dict[str, Any]) -> str:
    options = record["options"]
    return f"{options['steps']:,} steps, batch {options['batch_size']}, patches of {options['patch_size']}"


def score(record: dict[str, Any], data: str, depth: int | None, what: str = "psnr") -> float:
    """PSNR or SSIM of a depth (None: bicubic) on one of the sets that it was scored on."""
    return next(row[what] for row in record["sets"] if (row["data"], row["depth"]) == (data, depth))


def depths_of(record: dict[str, Any]) -> list[int]:
    return sorted({row["depth"] for row in record["sets"]} - {None})


@cache
def presets() -> dict[str, dict[str, Any]]:
    recipe = runpy.run_path(str(Path(__file__).with_name("asrn_div2k.py")))
    return {name: dataclasses.asdict(options) for name, options in recipe["PRESETS"].items()}


def changed(options: dict[str, Any], *without: str) -> str:
    """What a run's options change of its preset, as a command line has it."""
    default = presets()[options["preset"]]
    without += ("psd_weight",) if options.get("variant", "full") != "full" else ()  # it is not used there
    words = [f"--preset {options['preset']}"] if "preset" not in without else []
    for name, value in options.items():
        if value != default[name] and name not in (*WITHOUT_EFFECT, *without):
            words.append(f"--{name.replace('_', '-')} {shlex.quote(str(value))}")
    return " ".join(words)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the JSON file")
    parser.add_argument("run", type=Path, help="folder of a finished run of a recipe")
    parser.add_argument("--data", nargs="+", type=Path, default=[], metavar="SET", help="data sets to score it on")
    options = parser.parse_args(arguments)
    write_json(RESULTS / f"{options.name}.json", record_of(options.run, options.data))


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
