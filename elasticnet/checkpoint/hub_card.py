"""What a repository on the hub says of a checkpoint: README.md, the model card, and config.json.

Everything is taken from the file's header. What a kind of network is for, its architecture says by
two of its `extras`: "pipeline_tag", the hub's name of the task, and "file_metadata", a function of
the arguments that returns what the network takes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from elasticnet._tables import table
from elasticnet.checkpoint.header import DepthSize, Description
from elasticnet.checkpoint.sources import DEFAULT_FILE
from elasticnet.registry import Architecture, find, names

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

NOTED_DATA = "held out in training"  # what scores in a file's notes are called on the card

CARD = """---
{metadata}---

# {title}
{picture}
An elastic network: one file, runnable at depth {depths}.
Loading a depth reads only its part of the file.

```python
import elasticnet

net = elasticnet.load("hf://{repo}{file_suffix}", depth={depth}{build_argument})
```

## Depths

{table}
## Network

{network}
"""


class Scores(NamedTuple):
    """What the depths are worth on a data set.

    Attributes:
        data: The data set's name.
        by_metric: By the metric's name, then by depth.
    """

    data: str
    by_metric: Mapping[str, Mapping[int, float]]


class CardOptions(NamedTuple):
    """What no file says of itself.

    Attributes:
        license: The hub's name of the licence, such as "apache-2.0"; None for none.
        pipeline_tag: The hub's name of the task; None for what the architecture says.
        picture: The name of a picture in the repository, shown at the top; None for none.
        scores: What was measured; None for what the file holds.
    """

    license: str | None = None
    pipeline_tag: str | None = None
    picture: str | None = None
    scores: tuple[Scores, ...] | None = None


def model_card(
    description: Description,
    sizes: Mapping[int, DepthSize],
    repo: str,
    file: str,
    options: CardOptions | None = None,
) -> str:
    """Return a README.md with the metadata that the hub reads, and code that loads the file.

    Args:
        description: The file's header.
        sizes: What each depth takes, as `read_sizes` returns it.
        repo: "owner/name".
        file: The file's name in the repository.
        options: What the file does not say; default: nothing.

    Returns:
        Markdown. Its model-index holds the scores of every depth.
    """
    options = options or CardOptions()
    architecture = _architecture(description)
    title = repo.partition("/")[2]  # the name without the owner
    scores = scores_in(description) if options.scores is None else list(options.scores)
    taps = description["taps"]
    return CARD.format(
        metadata=_metadata(architecture, title, scores, options),
        title=title,
        picture=f"\n![{title}]({options.picture})\n" if options.picture else "",
        depths=", ".join(str(tap) for tap in taps),
        repo=repo,
        file_suffix="" if file == DEFAULT_FILE else f"/{file}",
        depth=taps[min(1, len(taps) - 1)],  # not the shallowest, if there is another one
        build_argument="" if description["architecture"] else ", build=make_my_net",
        table=_table(sizes, scores, has_architecture=architecture is not None),
        network=_network(description, architecture),
    )


def config_json(description: Description, file: str) -> str:
    """Return a config.json: how the network is built, for people and for programs of the hub.

    `elasticnet.load` does not read it: the file itself says the same, with a checksum.

    Args:
        description: The file's header.
        file: The file's name in the repository.
    """
    config = {
        "library_name": "elasticnet",
        "architecture": description["architecture"],
        "arguments": description["arguments"],
        "depths": description["taps"],
        "file": file,
    }
    return json.dumps(config, indent=2) + "\n"


def scores_in(description: Description) -> list[Scores]:
    """Return the scores that a file holds: those of its depth cards, and those of its notes.

    Args:
        description: The file's header.

    Returns:
        For each data set, and each metric that has a number for every depth. Of two cards that
        were measured on one data set, the later one counts.
    """
    found: dict[str, Scores] = {}
    noted = _noted_scores(description)
    if noted:
        found[NOTED_DATA] = Scores(NOTED_DATA, noted)
    for card in description["cards"].values():
        scores = _scores_of_card(card)
        if scores is not None:
            found[scores.data] = scores
    return list(found.values())


def _noted_scores(description: Description) -> dict[str, Mapping[int, float]]:
    """The notes that hold a number for each depth, such as the scores of a training."""
    depths = {str(depth) for depth in description["taps"]}
    found: dict[str, Mapping[int, float]] = {}
    for name, value in description["notes"].items():
        if not isinstance(value, Mapping):
            continue
        by_depth = cast(Mapping[str, Any], value)
        has_all_depths = set(by_depth) == depths
        if has_all_depths and all(_is_number(each) for each in by_depth.values()):
            found[name] = {int(depth): float(number) for depth, number in by_depth.items()}
    return found


def _scores_of_card(card: Any) -> Scores | None:
    """What a depth card was measured to be worth; None where it has no data set, or is of another
    format.
    """
    try:
        data = card["data"]
        by_metric: dict[str, dict[int, float]] = {}
        for row in card["rows"]:
            for metric, value in row["quality"].items():
                by_metric.setdefault(str(metric), {})[int(row["depth"])] = float(value)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    if not isinstance(data, str) or not by_metric:
        return None
    return Scores(data, by_metric)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _architecture(description: Description) -> Architecture | None:
    """The registered architecture of a file; None for a network that a user's own code builds."""
    name = description["architecture"]
    if name is None or name not in names():
        return None
    return find(name)


def _metadata(
    architecture: Architecture | None, title: str, scores: list[Scores], options: CardOptions
) -> str:
    """The YAML at the top of the card, as the hub's own library writes it."""
    from huggingface_hub import ModelCardData

    pipeline_tag = options.pipeline_tag
    if pipeline_tag is None and architecture is not None:
        pipeline_tag = architecture.extras.get("pipeline_tag")
    data = ModelCardData(
        library_name="elasticnet",
        license=options.license,
        pipeline_tag=pipeline_tag,
        tags=["elasticnet"],
        model_name=title,
        eval_results=_results(scores, pipeline_tag) or None,
    )
    return data.to_yaml() + "\n"


def _results(scores: list[Scores], pipeline_tag: str | None) -> list[EvalResult]:
    """The entries of the model-index: one for each data set, metric and depth."""
    from huggingface_hub import EvalResult

    results: list[EvalResult] = []
    for each in scores:
        for metric, by_depth in each.by_metric.items():
            for depth, value in sorted(by_depth.items()):
                result = EvalResult(
                    task_type=pipeline_tag or "other",
                    dataset_type=re.sub(r"\W+", "-", each.data.lower()).strip("-"),
                    dataset_name=each.data,
                    metric_type=metric,
                    metric_value=value,
                    metric_name=f"{metric} at depth {depth}",
                )
                results.append(result)
    return results


def _table(sizes: Mapping[int, DepthSize], scores: list[Scores], *, has_architecture: bool) -> str:
    """A line for each depth: how large it is, and what it is worth."""
    # Of a custom network the header does not tell parameters from buffers.
    header = ["depth", "parameters" if has_architecture else "values", "MB"]
    columns: list[Mapping[int, float]] = []
    for each in scores:
        for metric, by_depth in each.by_metric.items():
            header.append(f"{metric}, {each.data}")
            columns.append(by_depth)
    rows: list[list[str]] = [header]
    for depth, size in sizes.items():
        row = [str(depth), f"{size.num_values:,}", f"{size.num_bytes / 1e6:.2f}"]
        for by_depth in columns:
            row.append(f"{by_depth[depth]:.4g}" if depth in by_depth else "")
        rows.append(row)
    return table(rows)


def _network(description: Description, architecture: Architecture | None) -> str:
    """How the network is built, and what it takes."""
    if description["architecture"] is None:
        return "Of no registered architecture: `build=` gives the function that builds it.\n"
    arguments = description["arguments"]
    listed = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    lines = [f"`{description['architecture']}({listed})`"]
    if architecture is not None and "file_metadata" in architecture.extras:
        lines.append("")
        for name, value in architecture.extras["file_metadata"](arguments).items():
            lines.append(f"- {name}: {value}")
    return "\n".join(lines)
