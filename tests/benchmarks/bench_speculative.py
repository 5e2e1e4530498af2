"""How much faster a language model writes when its first layers draft: speculative decoding.

    python tests/benchmarks/bench_speculative.py RUN [--drafts 2 4 8] [--json FILE]

RUN is the run folder of recipes/elastic_gpt.py, with a folder depth_N for every depth. The deepest
model writes alone, with the model of each shallower depth as its assistant, and with its own first
layers (`assistant_early_exit`). All ways write the most probable bytes behind the same text, and
take turns. The table shows times of a byte and bytes per pass of the deepest model: 1 without
drafts. The clock counts the time of the processor, which other programs do not lengthen much;
--wall counts the time that passes.
"""

from __future__ import annotations

import re
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from harness import machine_name, make_parser, median_ratio, medians_ms, time_in_turn, write_report
from torch import Tensor

PROMPT = b"def read(path):\n    with open(path) as file:\n        return "


class Way(NamedTuple):
    """A way to write.

    Attributes:
        kind: "alone", "assistant" or "early exit".
        depth: The depth that writes alone, or that drafts.
        draft: How many bytes it drafts at most before the deepest model checks them; 0 alone.
    """

    kind: str
    depth: int
    draft: int


def load_models(run: Path) -> dict[int, Any]:
    """Return the models of a run folder by depth, the deepest last."""
    models: dict[int, Any] = {}
    for folder in run.glob("depth_*"):
        match = re.fullmatch(r"depth_(\d+)", folder.name)
        if match:
            model = transformers.AutoModelForCausalLM.from_pretrained(folder)
            models[int(match[1])] = model.eval()
    if len(models) < 2:
        raise SystemExit(f"error: {run} has no two folders depth_N: give a run of elastic_gpt.py")
    return dict(sorted(models.items()))


def ways_of(models: dict[int, Any], drafts: list[int]) -> list[Way]:
    """Return all ways to write that are compared."""
    ways = [Way("alone", depth, draft=0) for depth in models]
    for depth in list(models)[:-1]:
        for draft in drafts:
            ways.append(Way("assistant", depth, draft))
            ways.append(Way("early exit", depth, draft))
    return ways


def write(models: dict[int, Any], way: Way, num_bytes: int) -> Tensor:
    """Return the prompt and the most probable bytes behind it, (1, n)."""
    writer = models[way.depth] if way.kind == "alone" else models[max(models)]
    arguments: dict[str, Any] = {}
    if way.kind == "assistant":
        arguments["assistant_model"] = models[way.depth]
    if way.kind == "early exit":
        arguments["assistant_early_exit"] = way.depth
    for model in models.values():  # the model that drafts says how many bytes it drafts
        model.generation_config.num_assistant_tokens = max(1, way.draft)
        model.generation_config.num_assistant_tokens_schedule = "constant"
    ids = torch.tensor([list(PROMPT)])
    return writer.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=num_bytes,
        do_sample=False,
        **arguments,
    )


def bytes_per_pass(models: dict[int, Any], way: Way, num_bytes: int) -> tuple[float, Tensor]:
    """Return how many bytes a pass of all layers gives, and what was written."""
    writer = models[way.depth] if way.kind == "alone" else models[max(models)]
    passes: list[int] = []

    def count(*_: Any) -> None:
        passes.append(1)

    # a draft by the first layers does not call the last one
    hook = writer.model.layers[-1].register_forward_hook(count)
    try:
        written = write(models, way, num_bytes)
    finally:
        hook.remove()
    return num_bytes / len(passes), written


def main() -> None:
    """Measure, print the table, write JSON if asked."""
    parser = make_parser(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--drafts", type=int, nargs="+", default=[2, 4, 8], metavar="BYTES")
    parser.add_argument("--num-bytes", type=int, default=128, help="to write")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--wall", action="store_true", help="measure the time that passes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()  # it warns of its own calls when it drafts
    transformers.logging.disable_progress_bar()

    models = load_models(options.run)
    deepest = Way("alone", max(models), draft=0)
    ways = ways_of(models, options.drafts)
    passes = {way: bytes_per_pass(models, way, options.num_bytes) for way in ways}
    cases = {way: partial(write, models, way, options.num_bytes) for way in ways}
    clock = time.perf_counter if options.wall else time.process_time
    seconds = time_in_turn(cases, options.repeats, clock=clock)

    machine = machine_name()
    print(f"{machine}; {options.num_bytes} bytes, {options.repeats} rounds\n")
    print("| way | depth | draft | ms a byte | times as fast | bytes a pass | same text |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
    rows: list[dict[str, Any]] = []
    for way, milliseconds in medians_ms(seconds).items():
        per_pass, written = passes[way]
        row = {
            **way._asdict(),
            "ms_per_byte": milliseconds / options.num_bytes,
            "speedup": median_ratio(seconds[deepest], seconds[way]),
            "bytes_per_pass": per_pass,
            "same_text": torch.equal(written, passes[deepest][1]),
        }
        rows.append(row)
        print(
            f"| {way.kind} | {way.depth} | {way.draft or ''} | {row['ms_per_byte']:.2f} | "
            f"{row['speedup']:.2f} | {per_pass:.2f} | {'yes' if row['same_text'] else 'no'} |"
        )
    write_report(options, machine, rows=rows)


if __name__ == "__main__":
    main()
