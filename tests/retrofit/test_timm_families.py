"""The walk over every timm family: each line of the guide's table is what a split gives here."""

from __future__ import annotations

import re

import pytest
import timm
import torch

from timm_families import (
    ADAPTERS,
    PAGE,
    RESULTS,
    WORKS,
    Row,
    build,
    members,
    outcome,
    page,
    rows_of,
    smallest,
)

TEXT = PAGE.read_text(encoding="utf-8")
ROWS = rows_of(TEXT)
SHARDS = 16
SAMPLE = (  # small ones of every kind
    "byobnet: resnet",
    "cait: cait",
    "coat: coat",
    "convmixer: convmixer",
    "convnext: convnext",
    "deit: deit",
    "efficientnet: mobilenetv",
    "eva: vit",
    "hgnet: hgnetv",
    "levit: levit",
    "mlp_mixer: gmlp",
    "mobilenetv3: lcnet",
    "pit: pit",
    "pvt_v2: pvt",
    "regnet: regnetx",
    "resnet: resnet",
    "starnet: starnet",
    "swiftformer: swiftformer",
    "vision_transformer: vit",
    "xcit: xcit",
)
same_timm = pytest.mark.skipif(
    f"timm {timm.__version__}:" not in TEXT,
    reason=f"the page was written for another timm than {timm.__version__}",
)


def check_row(row: Row) -> None:
    """The line is right; where the model is split, the net is the model at every tap's shape."""
    built = build(row.model)
    found, parts = outcome(row.family, row.model, built)
    assert found == row
    if parts is None:
        return
    model, example = built.model, built.example
    net = parts.wrap().eval()
    with torch.no_grad():
        taps = net.forward_taps(example)
        expected = model(example)
        assert torch.equal(net(example), expected)
        assert torch.equal(taps.predictions[-1], expected)
        assert torch.equal(net(example[:1]), model(example[:1]))
    assert len(taps.depths) == int(row.taps) > 1
    assert {prediction.shape for prediction in taps.predictions} == {expected.shape}
    own = {id(parameter) for parameter in model.parameters()}
    for name, parameter in net.named_parameters():
        assert id(parameter) in own or name.startswith("adapters."), name


@same_timm
@pytest.mark.parametrize("family", SAMPLE)
def test_a_sample_of_the_table(family: str) -> None:
    check_row(next(row for row in ROWS if row.family == family))


@same_timm
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("shard", range(SHARDS))
def test_the_whole_table(shard: int) -> None:
    wrong = []
    for row in ROWS[shard::SHARDS]:
        try:
            check_row(row)
        except AssertionError as error:
            wrong.append(f"{row.model}: {error}")
    assert wrong == []


@same_timm
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_each_row_has_the_smallest_model_of_its_family() -> None:
    for row, names in zip(ROWS, members().values(), strict=True):
        assert row.model == smallest(names), row.family


@same_timm
def test_every_family_has_a_row_and_the_page_is_what_the_script_writes() -> None:
    assert [row.family for row in ROWS] == list(members())
    assert page(ROWS) == TEXT


def test_at_least_forty_families_work() -> None:
    results = [row.result for row in ROWS]
    assert set(results) == {*RESULTS}
    assert results.count(WORKS) >= 40
    modules = {row.family.split(":")[0] for row in ROWS if row.result == WORKS}
    assert len(modules) >= 40
    assert all(row.note for row in ROWS)
    for row in ROWS:
        names_stages = re.fullmatch(r"stages=\d", row.note) is not None
        assert names_stages == (row.result == ADAPTERS), row


def test_each_depth_has_its_cost_and_all_stages_begin_earlier() -> None:
    for row in ROWS:
        if not row.taps:
            continue
        cost = numbers(row.cost)
        assert len(cost) == int(row.taps), row
        assert cost[-1] == 100, row
        if row.all_stages:
            taps, spread, added = re.split(r"[:;]", row.all_stages)
            assert len(numbers(spread)) == int(taps), row
            assert numbers(spread)[0] <= cost[0], row
            assert int(added) >= 0, row


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split()]
