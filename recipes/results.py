"""Write the tables and figures of docs/results.md from the measurements in docs/results/.

    python recipes/results.py                      rewrite what stands between the markers in docs/results.md
    python recipes/results.py --check              write nothing; exit status 1 when something is out of date
    python recipes/results.py --add NAME RUN       take a finished run's options, table and scores as NAME.json

Numbers are never typed: every table is made of the JSON files that --add takes from run folders; a test runs --check.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from elasticnet.runs import write_atomic, write_json

DOCS = Path(__file__).parents[1] / "docs"
Records = dict[str, dict[str, Any]]


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table: the first column to the left, numbers to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def decibels(scores: Iterable[float]) -> list[str]:
    return [f"{score:.2f}" for score in scores]


def gains(scores: Iterable[float], base: float) -> list[str]:
    return [f"{score - base:+.2f}" for score in scores]


def psnr(record: dict[str, Any]) -> list[float]:
    """PSNR of every depth in the final table of a run."""
    return [row["psnr"] for row in record["table"]["rows"]]


def budget(record: dict[str, Any]) -> str:
    options = record["options"]
    return f"{options['steps']:,} steps, batch {options['batch_size']}, patches of {options['patch_size']}"


def tasks(records: Records) -> str:
    depths = [row["depth"] for row in records["denoise"]["table"]["rows"]]
    lines = []
    for name, setting in (("denoise", "noise_sigma"), ("deblur", "blur_sigma")):
        record = records[name]
        base = record["table"]["input"]["psnr"]
        label = f"{name}, sigma {record['options'][setting]:g}"
        lines.append([f"{label}: PSNR (dB)", f"{base:.2f}", *decibels(psnr(record))])
        lines.append([f"{label}: gain (dB)", "", *gains(psnr(record), base)])
    made = f"{budget(records['denoise'])} each; scored on {records['denoise']['options']['valid']}."
    return f"{table(['', 'input', *(f'depth {depth}' for depth in depths)], lines)}\n\n{made}"


def growth(records: Records) -> str:
    shallow, grown, longer = records["growth-3"], records["growth-5"], records["growth-3-longer"]
    depths = [row["depth"] for row in grown["table"]["rows"]]
    start = list(grown["scores"][0]["psnr"].values())
    assert grown["scores"][0]["step"] == 0, "growth-5 was not started from a file"

    def line(label: str, scores: Sequence[float]) -> list[str]:
        return [label, *decibels(scores), *[""] * (len(depths) - len(scores))]

    steps, more = shallow["options"]["steps"], grown["options"]["steps"]
    rows = [
        line(f"3 blocks, {steps:,} steps", psnr(shallow)),
        line("grown to 5, before training", start),
        line(f"grown to 5, {more:,} steps more", psnr(grown)),
        line(f"3 blocks, {more:,} steps more", psnr(longer)),
    ]
    made = f"PSNR-Y in dB on {grown['options']['valid']} x{grown['options']['scale']}; {budget(grown)} each time."
    return f"{table(['network', *(f'depth {depth}' for depth in depths)], rows)}\n\n{made}"


CUT, ELASTIC = "ordinary, cut short", "elastic"
STEPS = {"train": "ordinary", "srcnn": "SRCNN", "tune": "elastic"}


def curves(record: dict[str, Any]) -> tuple[dict[str, dict[int, float]], dict[str, float]]:
    """PSNR by depth of the cut and the elastic network of recipes/sr_retrofit.py; its baselines."""
    found: dict[str, dict[int | None, float]] = {}
    for row in record["table"]["rows"]:
        found.setdefault(row["network"], {})[row["depth"]] = row["psnr"]
    lines = {"bicubic": found["bicubic"][None], "SRCNN": found["SRCNN"][1]}
    by_depth = {name: {depth: psnr for depth, psnr in found[name].items() if depth} for name in (ELASTIC, CUT)}
    return by_depth, lines


def retrofit(records: Records) -> str:
    parts = []
    for model in ("edsr", "rcan"):
        record = records[f"retrofit-{model}"]
        by_depth, lines = curves(record)
        rows = [
            [f"{CUT} (dB)", *decibels(by_depth[CUT].values())],
            [f"{ELASTIC} (dB)", *decibels(by_depth[ELASTIC].values())],
            [f"{ELASTIC}, over SRCNN (dB)", *gains(by_depth[ELASTIC].values(), lines["SRCNN"])],
        ]
        options, sizes = record["options"], record["table"]["network"][1]
        steps = ", ".join(f"{options[f'{kind}_steps']:,} {what}" for kind, what in STEPS.items())
        parts.append(
            f"{table([model.upper(), *(f'depth {depth}' for depth in by_depth[CUT])], rows)}\n\n"
            f"{', '.join(f'{name} {psnr:.2f}' for name, psnr in lines.items())}; {options['valid'][0]} "
            f"x{sizes['scale']}; {sizes['channels']} channels; steps: {steps}.\n\n"
            f"![{model.upper()}, cut and elastic](images/retrofit_{model}.png)"
        )
    return "\n\n".join(parts)


SECTIONS: dict[str, Callable[[Records], str]] = {"retrofit": retrofit, "tasks": tasks, "growth": growth}


def draw(records: Records) -> None:
    from elasticnet.sr.figures import elastic_curve

    for model in ("edsr", "rcan"):
        record = records[f"retrofit-{model}"]
        title = f"{model.upper()}, {record['options']['valid'][0]} x{record['table']['network'][1]['scale']}"
        file = DOCS / "images" / f"retrofit_{model}.png"
        file.parent.mkdir(exist_ok=True)
        elastic_curve(file, *curves(record), title, "PSNR-Y (dB)")


def written(page: str, records: Records) -> str:
    """The page with every section between its two markers made anew."""
    for name, make in SECTIONS.items():
        begin, end = f"<!-- made by recipes/results.py: {name} -->", f"<!-- end: {name} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if len(pattern.findall(page)) != 1:
            raise ValueError(f"docs/results.md: expected the two markers of section {name!r} once")
        text = f"{begin}\n{make(records)}\n{end}"
        page = pattern.sub(lambda _, text=text: text, page)
    return page


def record_of(run: Path) -> dict[str, Any]:
    """What is kept of a run: options (of paths the last name), final table, and the validations on the way."""
    options = json.loads((run / "options.json").read_text())
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    scores = [
        {"step": line["step"], "seconds": line["seconds"], "psnr": line["psnr"]} for line in lines if "psnr" in line
    ]
    table = json.loads((run / "table.json").read_text())
    table.pop("options", None)
    return without_folders({"options": options, "table": table, "scores": scores})


def without_folders(value: Any) -> Any:
    """The value with every absolute path in it cut to its last name."""
    if isinstance(value, dict):
        return {key: without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_folders(entry) for entry in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit status 1 when docs/results.md is out of date")
    parser.add_argument("--add", nargs=2, metavar=("NAME", "RUN"), help="take a run's measurements as NAME.json")
    options = parser.parse_args(arguments)
    if options.add:
        name, run = options.add
        write_json(DOCS / "results" / f"{name}.json", record_of(Path(run)))
        return 0
    records = {path.stem: json.loads(path.read_text()) for path in sorted((DOCS / "results").glob("*.json"))}
    page = (DOCS / "results.md").read_text()
    made = written(page, records)
    if options.check:
        if made != page:
            print("docs/results.md is out of date: run python recipes/results.py", file=sys.stderr)
        return int(made != page)
    write_atomic(DOCS / "results.md", made)
    draw(records)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
