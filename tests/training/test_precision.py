"""Which precision `auto` means, and that a slow one is warned of with the ratio."""

from __future__ import annotations

import logging

import pytest
import torch

from elasticnet.training import precision as precision_module
from elasticnet.training.precision import has_bfloat16_units, resolve_precision, slowdown
from elasticnet.training.processes import Processes

CPU = torch.device("cpu")


def set_units(monkeypatch: pytest.MonkeyPatch, *, avx512_bf16: bool, amx: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)


@pytest.mark.parametrize(
    ("avx512_bf16", "amx", "resolved"),
    [(True, False, "bfloat16"), (False, True, "bfloat16"), (False, False, "float32")],
)
def test_auto_is_bfloat16_where_the_processor_has_units_for_it(
    monkeypatch: pytest.MonkeyPatch, avx512_bf16: bool, amx: bool, resolved: str
) -> None:
    set_units(monkeypatch, avx512_bf16=avx512_bf16, amx=amx)
    assert resolve_precision("auto", Processes()) == resolved


def test_a_torch_that_does_not_know_the_flags_has_no_units(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert not has_bfloat16_units(CPU)
    assert not has_bfloat16_units(torch.device("mps"))


def test_one_process_without_units_makes_it_float32_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_units(monkeypatch, avx512_bf16=True, amx=False)
    monkeypatch.setattr(Processes, "any", lambda self, flag: True)  # another process has none
    assert resolve_precision("auto", Processes()) == "float32"


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_precision_without_units_is_kept_and_warned_of_with_the_ratio(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, precision: str
) -> None:
    set_units(monkeypatch, avx512_bf16=False, amx=False)
    monkeypatch.setattr(precision_module, "slowdown", lambda dtype, device: 9.64)
    with caplog.at_level(logging.WARNING, logger="elasticnet"):
        assert resolve_precision(precision, Processes()) == precision
    assert f"--precision {precision}: " in caplog.text
    assert "9.6 times as long as in float32" in caplog.text


@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
def test_what_the_processor_computes_in_is_not_probed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, precision: str
) -> None:
    set_units(monkeypatch, avx512_bf16=True, amx=False)
    monkeypatch.setattr(precision_module, "slowdown", None)
    assert resolve_precision(precision, Processes()) == precision
    assert caplog.text == ""


def test_what_is_not_slower_is_not_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    set_units(monkeypatch, avx512_bf16=False, amx=False)
    monkeypatch.setattr(precision_module, "slowdown", lambda dtype, device: 0.9)
    assert resolve_precision("bfloat16", Processes()) == "bfloat16"
    assert caplog.text == ""


def test_the_probe_measures_both_types() -> None:
    assert slowdown(torch.bfloat16, CPU) > 0
