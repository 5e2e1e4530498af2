"""The dtype of a network: what is fastest on this machine and loses next to nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elasticnet import load, save
from elasticnet.card import DepthCard, measure, store_card
from elasticnet.checkpoint import read_header
from elasticnet.checkpoint.packaged import packaged_files
from elasticnet.sr import Upscaler, asrn
from elasticnet.sr.inference import dtype_choice, dtype_loss
from elasticnet.sr.inference.dtype_choice import (
    choose_dtype,
    compute_dtype_of,
    fastest_of,
    measured_cards,
)
from elasticnet.sr.inference.dtype_loss import LOSS, known_losses
from elasticnet.sr.inference.tiling import upscale_array
from elasticnet.sr.inference.upscale_plan import plan_upscale

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save(asrn(2, num_blocks=2, channels=8, skip="bicubic").eval(), path)
    return path


def card_in(dtype: str, ms: float, loss: float | None = None) -> DepthCard:
    """Of `file`'s network: `ms` at depth 1, twice as much at depth 2."""
    net = asrn(2, num_blocks=2, channels=8, skip="bicubic").eval()
    quality = None if loss is None else {1: {LOSS.name: 0.0}, 2: {LOSS.name: loss}}
    card = measure(
        net,
        torch.rand(1, 3, 8, 8),
        repeats=1,
        memory=False,
        quality=quality,
        compute_dtype=compute_dtype_of(dtype),
    )
    rows = [replace(row, latency_ms=ms * row.depth) for row in card.rows]
    return replace(card, rows=tuple(rows))


def test_the_fastest_is_chosen_and_float32_where_it_is_as_fast() -> None:
    cards = {"float32": card_in("float32", 10.0), "bfloat16": card_in("bfloat16", 4.0)}
    assert fastest_of(cards, depth=2) == ("bfloat16", "float32 20 ms, bfloat16 8 ms")
    slow = {**cards, "bfloat16": card_in("bfloat16", 100.0)}
    assert fastest_of(slow, depth=1).dtype == "float32"
    equal = {**cards, "bfloat16": card_in("bfloat16", 9.9)}
    assert fastest_of(equal, depth=1).dtype == "float32"


@pytest.mark.parametrize(("loss", "chosen"), [(0.009, "bfloat16"), (0.011, "float32")])
def test_what_loses_more_than_a_hundredth_is_not_chosen(
    file: Path, loss: float, chosen: str
) -> None:
    store_card(file, card_in("float32", 10.0))
    store_card(file, card_in("bfloat16", 4.0, loss))
    plan = plan_upscale(load(file))
    choice = choose_dtype(plan, file)
    assert choice.dtype == chosen
    expected = f"bfloat16 loses {loss:.4f} dB" if chosen == "bfloat16" else "bfloat16 loses 0.011"
    assert expected in choice.reason
    shallow = choose_dtype(plan_upscale(load(file), depth=1), file)
    assert shallow.dtype == "bfloat16", "each depth has a loss of its own"


def test_what_is_lost_has_to_be_known(file: Path) -> None:
    choice = choose_dtype(plan_upscale(load(file)), file)
    expected = "what bfloat16 loses is not known, what float16 loses is not known"
    assert choice == ("float32", expected)
    assert choose_dtype(plan_upscale(load(file)), None).reason.endswith("of files alone")


def test_times_are_measured_once_and_kept(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def measured(plan: Any, dtypes: Any) -> dict[str, DepthCard]:
        calls.append(dtypes)
        return {dtype: card_in(dtype, 10.0 / len(dtype)) for dtype in dtypes}

    monkeypatch.setattr(dtype_choice, "measured_cards", measured)
    losses = {"bfloat16": {"Set5": {"1": 0.0, "2": 0.0}, "B100": {"1": 0.002, "2": 0.0}}}
    known = {dtype_loss.digest_of_weights(file): losses}
    monkeypatch.setattr(dtype_loss, "_packaged_losses", lambda: known)
    assert known_losses(file, "bfloat16") == {1: 0.002, 2: 0.0}
    plan = plan_upscale(load(file))
    first = choose_dtype(plan, file)
    assert choose_dtype(plan, file)._replace(reason=first.reason) == first
    assert calls == [["float32", "bfloat16"]]
    assert first.dtype == "bfloat16"
    assert "measured now and kept" in first.reason
    assert "kept of this machine" in choose_dtype(plan, file).reason


def test_cards_of_dtypes_that_take_turns() -> None:
    plan = plan_upscale(asrn(2, num_blocks=2, channels=8).eval())
    cards = measured_cards(plan, ["float32", "bfloat16"])
    assert [card.machine.dtype for card in cards.values()] == ["float32", "bfloat16"]
    assert all([row.depth for row in card.rows] == [1, 2] for card in cards.values())


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="dtype 'half': expected float32, bfloat16, float16 or au"):
        Upscaler(asrn(2, 1, 8).eval(), dtype="half")


# --- what is computed


def test_only_convolutions_are_narrow_and_the_skip_stays_exact(file: Path) -> None:
    exact = Upscaler(file)(IMAGE / np.float32(255))
    upscaler = Upscaler(file, dtype="bfloat16")
    narrow = upscaler(IMAGE / np.float32(255))
    assert next(upscaler.net.parameters()).dtype == torch.float32
    assert 0 < np.abs(narrow - exact).max() < 0.01
    in_bfloat16 = torch.tensor(narrow).bfloat16().float().numpy()
    assert (narrow != in_bfloat16).mean() > 0.9, "the sum with the skip is a float32"


def test_float32_is_what_it_was(file: Path) -> None:
    expected = upscale_array(IMAGE, plan_upscale(load(file)))
    np.testing.assert_array_equal(Upscaler(file, dtype="float32")(IMAGE), expected)
    np.testing.assert_array_equal(Upscaler(file)(IMAGE), expected)


def test_auto_says_why(file: Path) -> None:
    upscaler = Upscaler(file, dtype="auto")
    assert upscaler.dtype_reason.startswith("what bfloat16 loses is not known")
    assert upscaler.plan().compute_dtype is None


# --- the packaged weights


def test_losses_are_those_of_the_packaged_weights() -> None:
    known = json.loads(dtype_loss.LOSSES_FILE.read_text())
    for name, path in packaged_files().items():
        digest = dtype_loss.digest_of_weights(path)
        assert digest in known, f"{name} is new: run tests/benchmarks/measure_dtype_loss.py"
        assert sorted(known_losses(path, "bfloat16")) == list(read_header(path)["taps"])
