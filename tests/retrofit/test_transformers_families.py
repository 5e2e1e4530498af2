"""The walk over the transformers families: each line of the guide's table is what a split gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from transformers_families import PAGE, RESULTS, WORKS, Built, Row, build, outcome, page, rows_of

TEXT = PAGE.read_text(encoding="utf-8")
ROWS = rows_of(TEXT)
SHARDS = 8
SAMPLE = (  # of every kind
    "bert",
    "clip_vision_model",
    "deberta-v2",
    "gpt2",
    "llama",
    "resnet",
    "t5",
    "wav2vec2",
    "whisper",
    "xlnet",
)
same_transformers = pytest.mark.skipif(
    f"{transformers.__version__}: a tiny" not in TEXT.replace("\n", " "),
    reason=f"the page was written for another transformers than {transformers.__version__}",
)


def check_row(row: Row) -> None:
    """The line is right; a net is the model at full depth, can be cut, and learns."""
    built = build(row.family)
    found, parts = outcome(row.family, built)
    assert found == row
    if parts is None:
        return
    net: Any = parts.wrap().eval()
    inputs = {} if "without" in row.note else built.inputs
    for keywords in ({}, inputs):
        check_net(net, built, keywords)
    check_training(net, built.example)


def check_net(net: Any, built: Built, keywords: dict[str, Tensor]) -> None:
    """The net's predictions are the model's output, and those of the nets cut from it."""
    with torch.no_grad():
        taps = net(built.example, taps=net.taps, **keywords)
        expected = own_output(net, built, keywords)
        assert torch.equal(taps.predictions[-1], expected)
        for depth, prediction in zip(taps.depths, taps.predictions, strict=True):
            assert prediction.shape == expected.shape
            assert torch.equal(net.truncate(depth)(built.example, **keywords), prediction)


def own_output(net: Any, built: Built, keywords: dict[str, Tensor]) -> Tensor:
    """What the model itself returns, without a cache, which changes the last bits."""
    if "use_cache" in type(built.model).forward.__code__.co_varnames:
        return net.head.chosen(built.model(built.example, use_cache=False, **keywords))
    return net.head.chosen(built.model(built.example, **keywords))


def check_training(net: Any, example: Tensor) -> None:
    """Every layer gets a gradient from its own tap."""
    net.train()
    for module in net.modules():
        if getattr(module, "layerdrop", 0.0):
            module.layerdrop = 0.0
    for depth, block in enumerate(net.blocks, start=1):
        net.zero_grad()
        net(example, depth=depth).float().square().sum().backward()
        assert any(parameter.grad is not None for parameter in block.parameters())


@same_transformers
@pytest.mark.parametrize("family", SAMPLE)
def test_a_sample_of_the_table(family: str) -> None:
    check_row(next(row for row in ROWS if row.family == family))


@same_transformers
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("shard", range(SHARDS))
def test_the_whole_table(shard: int) -> None:
    wrong: list[str] = []
    for row in ROWS[shard::SHARDS]:
        try:
            check_row(row)
        except AssertionError as error:
            wrong.append(f"{row.family}: {error}")
    assert wrong == []


@same_transformers
def test_the_page_is_what_the_script_writes() -> None:
    assert page(ROWS) == TEXT


def test_at_least_a_hundred_families_work() -> None:
    results = [row.result for row in ROWS]
    assert set(results) == {*RESULTS}
    assert results.count(WORKS) >= 100
    assert all(row.note for row in ROWS)
    assert len({row.family for row in ROWS}) == len(ROWS)
