"""Keep the measurements of a finished run in docs/results/, from which results.py makes the pages.

python recipes/record.py NAME RUN                            docs/results/NAME.json: options,
                                                             final table, validations on the way
python recipes/record.py NAME RUN --data Set5 Set14 B100     and every depth of its best network
                                                             on these sets
python recipes/record.py NAME RUN --scores FILE...           and the scores in table.json of one
                                                             `elasticnet benchmark` of that network
                                                             or of several
python recipes/record.py NAME RUN --weights FILE ...         and that FILE ships, which lies between
                                                             the start and the best network of the
                                                             run (interpolate.py); it is scored
python recipes/record.py NAME RUN --after OTHER ...          and the run went on from the end of
                                                             that of which OTHER.json is the record
python recipes/record.py NAME --scores FILE...               to the record there is, those scores
python recipes/record.py NAME --weights FILE --data Urban100 to the record there is, what this file
                                                             of its weights scores on further sets
python recipes/record.py --presets                           docs/results/presets.json: what the
                                                             presets of asrn_div2k.py mean
"""

from __future__ import annotations

import elasticnet.before_torch  # sets what must be set before torch is imported

# isort: split
import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import elasticnet
from elasticnet._files import write_json
from elasticnet.checkpoint import read_header
from elasticnet.sr.benchmark import benchmark, load_sets, scale_of
from elasticnet.sr.data.licences import RECORD_FILE, licence_counts

RECIPES = Path(__file__).parent
RESULTS = RECIPES.parent / "docs" / "results"
LOG_ENTRIES = ("step", "seconds", "learning_rate", "total", "psd_share")  # beside the scores
RUN_FILES = ("options.json", "log.jsonl")  # of every run
LOSSES_BY_DEPTH = "per_depth"  # as the log calls them
ROW_ENTRIES = ("data", "depth", "parameters", "psnr", "ssim")
INTERPOLATED = "interpolated"  # in the notes of what interpolate.py writes, and in a record
AFTER = "after"  # in a record: the name of that of the run whose end this one began with
DEGRADATION = ("degradation", "blur_sigma", "noise_sigma")


def record_of(
    run: Path,
    folders: Sequence[Path] = (),
    machine: str | None = None,
    scores: Sequence[Path] = (),
    weights: Path | None = None,
) -> dict[str, Any]:
    """Return what is kept of a run: options, final table, and the validations on the way.

    If the terms of its training photographs are known, it holds how many are by which licence. Of
    paths that lead elsewhere the last name is kept.

    Args:
        run: The run folder.
        folders: Data sets on which every depth is scored, too: of the best network, where the table
            is of the last one.
        machine: What trained it, in words; by default what the log says.
        scores: What `elasticnet benchmark` wrote of the best network, table.json of each call, in
            the place of `folders`.
        weights: What recipes/interpolate.py made of the best network; by default that itself.

    Raises:
        ValueError: A file of the run is missing or holds no JSON, the log does not say what trained
            it, or the weights do not say where they lie.
    """
    for name in RUN_FILES:
        if not (run / name).is_file():
            raise ValueError(f"{run} has no {name}: expected the folder of a finished run")
    options = options_of(run)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    table = table_of(run, options, lines)
    record = {"options": options, **table, "scores": validations(lines)}
    shares = shares_beside_scores(lines)
    if shares:
        record["psd_shares"] = shares
    if weights is None:
        weights = run / "best.safetensors"
    else:
        record[INTERPOLATED] = way_of(weights)
    photographs = run / RECORD_FILE
    if photographs.is_file():
        record["photographs"] = licence_counts(json.loads(photographs.read_text(encoding="utf-8")))
    has_sets = bool(folders or scores)
    machine = machine or machine_of_log(run, lines, is_needed=has_sets)
    if machine:
        record["machine"] = machine
    if has_sets:
        record["sets"] = rows_of_tables(scores) if scores else scored(weights, options, folders)
    return without_folders(record)


def options_of(run: Path) -> dict[str, Any]:
    """Return the options of a run; one folder of photographs is a word, as in older records."""
    options = read_json(run / "options.json")
    if isinstance(options.get("data"), list) and len(options["data"]) == 1:
        (options["data"],) = options["data"]
    return options


def table_of(
    run: Path, options: dict[str, Any], lines: Sequence[dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return the final table of a run as the record's entry.

    There is none if the run was stopped behind its last validation, while the table was made.
    """
    file = run / "table.json"
    if not file.is_file():
        if not lines or not scores_of(lines[-1]) or lines[-1]["step"] < options["steps"]:
            raise ValueError(f"{run} has no table.json: expected the folder of a finished run")
        return {}
    table = read_json(file)
    table.pop("options", None)
    return {"table": table}


def way_of(weights: Path) -> dict[str, Any]:
    """Return what recipes/interpolate.py noted in a file: between which networks it lies."""
    way = read_header(weights)["notes"].get(INTERPOLATED)
    if way is None:
        raise ValueError(
            f"--weights {weights} with RUN: expected what recipes/interpolate.py made of its best "
            "network; the best network itself needs no --weights"
        )
    return way


def read_json(file: Path) -> Any:
    """Return the content of a JSON file; an error names the file."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: expected JSON: {error}") from error


def validations(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what is kept of the log's lines that have scores."""
    kept: list[dict[str, Any]] = []
    for line in lines:
        scores = scores_of(line)
        if scores:
            numbers = {name: line[name] for name in LOG_ENTRIES if name in line}
            kept.append({**numbers, **scores})
    return kept


def scores_of(line: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the scores of a line of the log by the name that the run gives them.

    A recipe names its score itself, such as psnr or bits_per_byte. It is a number for each depth,
    which only the losses have beside it.
    """
    scores: dict[str, dict[str, float]] = {}
    for name, entry in line.items():
        if isinstance(entry, dict) and name != LOSSES_BY_DEPTH:
            scores[name] = entry
    return scores


def shares_beside_scores(lines: Iterable[dict[str, Any]]) -> list[float]:
    """Return the shares of the gradient on lines without scores, which are not kept themselves."""
    return [line["psd_share"] for line in lines if "psd_share" in line and not scores_of(line)]


def machines_of(lines: Iterable[dict[str, Any]]) -> str:
    """Return the machines that the log names in their order, once for each stay; empty for none."""
    named = [line["machine"] for line in lines if "machine" in line]
    stays = [machine for machine, _ in groupby(named)]
    return ", then ".join(stays)


def machine_of_log(run: Path, lines: Iterable[dict[str, Any]], is_needed: bool) -> str:
    """Return the machines that the log of a run names; if there are none, "" or an error."""
    machine = machines_of(lines)
    if is_needed and not machine:
        raise ValueError(
            f"{run / 'log.jsonl'} names no machine: say with --machine what trained it"
        )
    return machine


def scored(weights: Path, options: dict[str, Any], folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the scores of every depth of a network on data sets, beside bicubic.

    A network with a single tap is cut short, too.
    """
    net = elasticnet.load(weights).with_taps(None).eval()
    degradation: dict[str, Any] = {name: options.get(name) for name in DEGRADATION}
    sets = load_sets(folders, [scale_of(net)], **degradation)
    result = benchmark([("net", net)], sets, costs=False, progress=True)
    for each in result.skipped:  # the means are over fewer images than the data set has
        print(f"image left out: {each.data} {each.image}: {each.reason}", file=sys.stderr)
    return [{name: getattr(row, name) for name in ROW_ENTRIES} for row in result.rows]


def rows_of_tables(files: Iterable[Path]) -> list[dict[str, Any]]:
    """Return what is kept of the rows of benchmarks' tables; a set counts as in the last of them.

    Args:
        files: table.json of each.

    Raises:
        ValueError: A benchmark is not finished: its means are over a part of the images.
    """
    rows: list[dict[str, Any]] = []
    for file in files:
        content = read_json(file)
        remaining = content.get("remaining", 0)
        if remaining > 0:
            raise ValueError(
                f"{file}: {remaining} images are not scored yet; wait for the benchmark, or start "
                "it again with the same --out, and it goes on"
            )
        found = [{name: row[name] for name in ROW_ENTRIES} for row in content["rows"]]
        rows = with_sets(rows, found)
    return rows


def with_sets(rows: list[dict[str, Any]], more: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return both together; of a data set that both have, the second ones."""
    new_sets = {row["data"] for row in more}
    return [row for row in rows if row["data"] not in new_sets] + more


def with_more_sets(
    record: dict[str, Any], rows: list[dict[str, Any]], source: str
) -> dict[str, Any]:
    """Return a record with the scores of its network on further data sets.

    Scores that it has of the same sets are replaced.

    Args:
        record: With scores of data sets.
        rows: Of the record's best network.
        source: Where they come from, for the error.

    Raises:
        ValueError: They are of another network.
    """
    recorded = parameters_by_depth(record["sets"])
    found = parameters_by_depth(rows)
    if found != recorded:
        raise ValueError(
            f"{source}: parameters by depth {found}, and {recorded} in the record: expected the "
            "record's own weights"
        )
    return {**record, "sets": with_sets(record["sets"], rows)}


def parameters_by_depth(rows: Iterable[dict[str, Any]]) -> dict[int | None, int]:
    """Return the parameters of each depth that was scored."""
    return {row["depth"]: row["parameters"] for row in rows}


def without_folders(value: Any) -> Any:
    """Return the value with every path in it that leads elsewhere cut to its last name."""
    if isinstance(value, dict):
        return {key: without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_folders(entry) for entry in value]
    if isinstance(value, str) and leads_elsewhere(Path(value)):
        return Path(value).name
    return value


def leads_elsewhere(path: Path) -> bool:
    """Return whether a path leads out of the working folder."""
    return path.is_absolute() or path.parts[:1] == ("..",)


def presets_of_asrn() -> dict[str, Any]:
    """Return the options of every preset of asrn_div2k.py on a CPU, where there is no data set."""
    presets: dict[str, Any] = {}
    for preset in ("demo", "paper", "best"):
        command = [sys.executable, str((RECIPES / "asrn_div2k.py").resolve()), "--print-options"]
        command += ["--preset", preset, "--device", "cpu", "--precision", "float32"]
        with tempfile.TemporaryDirectory() as without_data:
            said = subprocess.run(command, cwd=without_data, stdout=subprocess.PIPE, check=True)
        presets[preset] = json.loads(said.stdout)
    return presets


def main(arguments: Sequence[str] | None = None) -> None:
    """Write one record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", help="of the JSON file")
    parser.add_argument("run", nargs="?", type=Path, help="folder of a finished run of a recipe")
    parser.add_argument(
        "--data", nargs="+", type=Path, default=[], metavar="SET", help="data sets to score it on"
    )
    parser.add_argument(
        "--scores",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="table.json of benchmarks of its best network",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="score this file; with RUN: what interpolate.py made of it",
    )
    parser.add_argument(
        "--after", metavar="NAME", help="record of the run whose end this one began with"
    )
    parser.add_argument("--machine", help="what trained it; default: what its log says")
    parser.add_argument(
        "--presets", action="store_true", help="write what the presets mean, and nothing else"
    )
    options = parser.parse_args(arguments)
    if options.presets:
        write_json(RESULTS / "presets.json", presets_of_asrn())
        return
    if options.data and options.scores:
        parser.error("--data and --scores: expected one of the two")
    if options.run is None:
        if options.after is not None:
            parser.error("--after: expected RUN, too, the run that went on")
        add_sets(parser, options)
        return
    if options.after is not None and options.after == options.name:
        parser.error(f"--after {options.after}: expected another record than the one to write")
    record = record_of(options.run, options.data, options.machine, options.scores, options.weights)
    if options.after is not None:
        record[AFTER] = name_of_record(options.after)
    write_json(RESULTS / f"{options.name}.json", record)


def name_of_record(name: str) -> str:
    """Return the name of a record that there is; raise for another."""
    if not (RESULTS / f"{name}.json").is_file():
        raise ValueError(
            f"--after {name}: there is no {RESULTS / name}.json; record that run first"
        )
    return name


def add_sets(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Add scores to the record of a name; end the program where it cannot be done."""
    weights: Path | None = options.weights
    if options.name is None or (weights is None and not options.scores):
        parser.error("expected NAME and RUN, NAME and --weights or --scores, or --presets")
    if weights is not None and options.scores:
        parser.error("--weights and --scores without RUN: expected one of the two")
    file = RESULTS / f"{options.name}.json"
    if not file.is_file():
        parser.error(f"scores are added to a record, and there is no {file}: NAME RUN makes one")
    record = read_json(file)
    if weights is None:
        rows = rows_of_tables(options.scores)
        source = ", ".join(str(path) for path in options.scores)
    elif options.data:
        rows = scored(weights, record["options"], options.data)
        source = str(weights)
    else:
        parser.error(f"--weights {weights}: name the sets to score it on by --data")
    write_json(file, with_more_sets(record, rows, source))


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
