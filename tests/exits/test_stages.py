"""Exits as ONNX files: their driver, without PyTorch, gives what the runner gives."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from token_nets import MeanHead, Residual, inputs, token_net
from torch import Tensor, nn

from elasticnet import ElasticWrapper
from elasticnet.exits import POLICIES, ExitRule, ExitRunner, confidence, patience, write_stages
from elasticnet.export import ExportError

pytest.importorskip("onnxruntime")

from elasticnet.exits import driver  # behind importorskip, because it needs onnxruntime

TOLERANCE = 1e-5

# Run by a Python in which neither PyTorch nor this package can be imported.
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
sys.modules["elasticnet"] = None
sys.path.insert(0, sys.argv[1])
import numpy as np
from run_exits import StagedExits
staged = StagedExits(sys.argv[1])
x = np.load(sys.argv[2])
together = staged(x)
alone = [staged(x[row : row + 1]) for row in range(len(x))]
np.savez(
    sys.argv[3],
    logits=together.logits,
    depths=together.depths,
    scores=together.scores,
    depths_alone=np.concatenate([each.depths for each in alone]),
    logits_alone=np.concatenate([each.logits for each in alone]),
)
"""


def rule_that_parts(net: ElasticWrapper, x: Tensor, **options: Any) -> ExitRule:
    """A rule by which about a third of the inputs leaves at the first tap, and some at the next."""
    thresholds: dict[int, float] = {}
    temperatures = {depth: 0.5 + 0.3 * depth for depth in net.taps}
    for depth in net.taps[:-1]:
        no_exit = ExitRule(thresholds={}, temperatures=temperatures, **options)
        scores = no_exit.scores([no_exit.scaled(net(x, depth=depth), depth)]).sort().values
        # Between two scores, so that the last bits decide nothing.
        middle = 2 * len(scores) // 3
        thresholds[depth] = (scores[middle - 1] + scores[middle]).item() / 2
    return ExitRule(thresholds=thresholds, temperatures=temperatures, **options)


def assert_same_exits(net: ElasticWrapper, rule: ExitRule, folder: Path, x: Tensor) -> set[int]:
    """Compare driver and runner, in a batch and alone; return the depths where inputs left."""
    staged = driver.StagedExits(folder)
    expected = ExitRunner(net, rule)(x)
    found = staged(x.numpy())
    assert found.depths.tolist() == expected.depths.tolist()
    np.testing.assert_allclose(found.logits, expected.logits.numpy(), atol=TOLERANCE)
    np.testing.assert_allclose(found.scores, expected.scores.numpy(), atol=TOLERANCE)
    for row in range(len(x)):
        alone = staged(x[row : row + 1].numpy())
        assert alone.depths.tolist() == [expected.depths[row].item()]
        np.testing.assert_allclose(alone.logits[0], expected.logits[row].numpy(), atol=TOLERANCE)
    return set(expected.depths.tolist())


def test_the_driver_leaves_where_the_runner_leaves(tmp_path: Path) -> None:
    net, x = token_net(4), inputs(24)
    rule = rule_that_parts(net, x, policy=POLICIES["margin"])
    written = write_stages(net, rule, tmp_path / "exits", x[:2])
    assert [stage.depth for stage in written.stages] == [1, 2, 3, 4]
    assert written.difference <= TOLERANCE
    assert len(assert_same_exits(net, rule, written.folder, x)) >= 3


@pytest.mark.parametrize("over_tokens", ["least", "mean", "last"])
def test_scores_of_tokens_are_summed_up_as_by_the_runner(over_tokens: Any, tmp_path: Path) -> None:
    net, x = token_net(2, by_token=True), inputs(24)
    rule = rule_that_parts(net, x, over_tokens=over_tokens)
    write_stages(net, rule, tmp_path / "exits", x[:2])
    assert assert_same_exits(net, rule, tmp_path / "exits", x) == {1, 2}


def test_patience_looks_at_taps_where_nobody_leaves(tmp_path: Path) -> None:
    net, x = token_net(5, seed=3), inputs(30, seed=4)
    rule = ExitRule(thresholds={1: math.inf, 2: 2.0, 3: 3.0, 4: 2.0}, policy=patience)
    write_stages(net, rule, tmp_path / "exits", x[:2])
    assert {2, 4} <= assert_same_exits(net, rule, tmp_path / "exits", x)


def test_a_process_without_torch_gives_the_same(tmp_path: Path) -> None:
    net, x = token_net(3), inputs(12)
    rule = rule_that_parts(net, x)
    folder = tmp_path / "exits"
    write_stages(net, rule, folder, x[:2])
    np.save(tmp_path / "x.npy", x.numpy())

    command = [sys.executable, "-c", WITHOUT_TORCH, folder, tmp_path / "x.npy", tmp_path / "y.npz"]
    subprocess.run(command, check=True, cwd=tmp_path)
    found = np.load(tmp_path / "y.npz")

    expected = ExitRunner(net, rule)(x)
    assert len(set(expected.depths.tolist())) >= 2
    for depths in (found["depths"], found["depths_alone"]):
        assert depths.tolist() == expected.depths.tolist()
    for logits in (found["logits"], found["logits_alone"]):
        np.testing.assert_allclose(logits, expected.logits.numpy(), atol=TOLERANCE)


def test_the_driver_is_a_command(tmp_path: Path) -> None:
    net, x = token_net(2), inputs(3)
    folder = tmp_path / "exits"
    write_stages(net, ExitRule(thresholds={}), folder, x[:2])
    np.save(tmp_path / "x.npy", x.numpy())
    command = [sys.executable, folder / "run_exits.py", tmp_path / "x.npy"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    classes = net(x).argmax(-1).tolist()
    assert [line.split(", score")[0] for line in said.splitlines()] == [
        f"class {label}, depth 2" for label in classes
    ]


# --- what passes between stages


def masked_block(block: nn.Module, x: Tensor, context: Any, index: int) -> tuple[Tensor, Any]:
    """Add what each input was given, and a table that all share."""
    return block(x + context["bias"][:, None, None] + context["table"]), context


def test_keywords_pass_from_stage_to_stage(tmp_path: Path) -> None:
    # As many inputs as tokens: by its length alone the table looks like a row for each input.
    torch.manual_seed(0)
    blocks = [Residual(6) for _ in range(3)]
    net = ElasticWrapper(blocks, MeanHead(6, by_token=False), call_block=masked_block).eval()
    x, bias, table = inputs(4), torch.arange(4.0), torch.randn(1, 4, 6)
    keywords = {"bias": bias, "table": table}
    scores = confidence([net(x, depth=1, **keywords)])
    rule = ExitRule(thresholds={1: scores.median().item() + 1e-6})
    write_stages(net, rule, tmp_path / "exits", x, keywords)

    expected = ExitRunner(net, rule)(x, **keywords)
    assert 0 < int((expected.depths == 1).sum()) < 4
    staged = driver.StagedExits(tmp_path / "exits")
    found = staged(x.numpy(), bias=bias.numpy(), table=table.numpy())
    assert found.depths.tolist() == expected.depths.tolist()
    np.testing.assert_allclose(found.logits, expected.logits.numpy(), atol=TOLERANCE)

    with pytest.raises(ValueError, match=r"reads input, bias, table: bias, table is missing"):
        staged(x.numpy())


class SkipHead(nn.Module):
    """Classifies pooled features beside the pooled input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(7, 3)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.linear(torch.cat([x.mean((2, 3)), skip.mean((2, 3))], dim=1))


def test_a_net_of_images_whose_head_takes_the_input_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    blocks = [
        nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()) for _ in range(3)
    ]
    stem = nn.Conv2d(1, 6, 3, padding=1)
    net = ElasticWrapper(blocks, SkipHead(), stem, taps=[1, 3], head_skip="input").eval()
    x = torch.randn(16, 1, 5, 5)
    rule = rule_that_parts(net, x)
    write_stages(net, rule, tmp_path / "exits", x[:2])
    assert assert_same_exits(net, rule, tmp_path / "exits", x) == {1, 3}


def test_numbers_of_words_stay_whole_and_weights_in_half_precision_become_float32(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    blocks = [Residual(6) for _ in range(2)]
    head = MeanHead(6, by_token=False)
    net = ElasticWrapper(blocks, head, stem=nn.Embedding(20, 6)).eval()
    words = torch.randint(20, (12, 4))
    rule = rule_that_parts(net, words)
    half = ElasticWrapper(net.blocks, head, stem=net.stem).to(torch.bfloat16).eval()
    in_float32 = copy.deepcopy(half).float()
    write_stages(half, rule, tmp_path / "exits", words[:2])
    assert_same_exits(in_float32, rule, tmp_path / "exits", words)


def test_a_stage_holds_the_weights_of_its_own_blocks_alone(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    torch.manual_seed(0)
    blocks = [Residual(width=64) for _ in range(4)]
    net = ElasticWrapper(blocks, MeanHead(64, by_token=False)).eval()
    x = torch.randn(2, 4, 64)
    written = write_stages(net, ExitRule(thresholds={1: 0.9}), tmp_path / "exits", x)
    counts: list[int] = []
    for stage in written.stages:
        model: Any = onnx.load(stage.path)
        counts.append(sum(math.prod(each.dims) for each in model.graph.initializer))
        assert stage.size == stage.path.stat().st_size
    of_block = 64 * 64 + 64
    assert of_block <= counts[0] < 1.2 * of_block
    assert 3 * of_block <= counts[1] < 3.2 * of_block


def test_no_stage_runs_for_an_input_that_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = token_net(3), inputs(12)
    rule = rule_that_parts(net, x)
    write_stages(net, rule, tmp_path / "exits", x[:2])
    staged = driver.StagedExits(tmp_path / "exits")

    ran: list[tuple[int, int]] = []  # depth, inputs
    run = driver.Stage.run

    def recording(self: driver.Stage, arrays: Any) -> Any:
        returned = run(self, arrays)
        ran.append((self.depth, len(returned["logits"])))
        return returned

    monkeypatch.setattr(driver.Stage, "run", recording)
    depths = staged(x.numpy()).depths
    inside_at = [(depth, int((depths >= depth).sum())) for depth in (1, 2, 3)]
    assert ran == inside_at
    assert inside_at[0][1] > inside_at[1][1] > 0


@given(st.integers(0, 999), st.sampled_from(sorted(POLICIES)), st.integers(1, 5))
def test_policies_in_numpy_are_those_in_torch(seed: int, name: str, num_classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scale = 10 ** (seed % 4)  # up to logits whose probabilities are 0
    logits = [scale * torch.randn(5, 2, num_classes, generator=generator) for _ in range(3)]
    expected = POLICIES[name](logits)
    found = driver.POLICIES[name]([each.numpy() for each in logits])
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


# --- a policy of one's own, and what is refused


def spread_of_logits(logits_so_far: Any) -> Any:
    """A policy for tensors and arrays."""
    return logits_so_far[-1].max() - logits_so_far[-1][..., 0]


def test_a_policy_of_ones_own_is_given_again(tmp_path: Path) -> None:
    net, x = token_net(2), inputs(6)
    rule = ExitRule(thresholds={1: 1.0}, policy=spread_of_logits)
    write_stages(net, rule, tmp_path / "exits", x[:2])
    assert json.loads((tmp_path / "exits" / "exits.json").read_text())["policy"] is None
    with pytest.raises(ValueError, match=r"exits.json names no policy"):
        driver.StagedExits(tmp_path / "exits")
    found = driver.StagedExits(tmp_path / "exits", policy=spread_of_logits)(x.numpy())
    assert found.depths.tolist() == ExitRunner(net, rule)(x).depths.tolist()


def test_files_that_differ_are_not_written(tmp_path: Path) -> None:
    net, x = token_net(2), inputs(2)
    with pytest.raises(ExportError, match=r"exits differs .* and -1 is allowed; nothing"):
        write_stages(net, ExitRule(thresholds={}), tmp_path / "exits", x, tolerance=-1)
    assert list(tmp_path.iterdir()) == []


class LooksAtValues(nn.Module):
    """A block that torch.export cannot trace."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum().item() > 0 else -x


def test_a_net_that_cannot_be_traced_leaves_nothing(tmp_path: Path) -> None:
    net = ElasticWrapper([LooksAtValues()], MeanHead(6, by_token=False)).eval()
    with pytest.raises(ExportError, match=r"stage up to depth 1: torch.export cannot trace"):
        write_stages(net, ExitRule(thresholds={}), tmp_path / "exits", inputs(2))
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused_before_any_work(tmp_path: Path) -> None:
    net, x, rule = token_net(2), inputs(2), ExitRule(thresholds={})
    with pytest.raises(FileExistsError, match=tmp_path.name):
        write_stages(net, rule, tmp_path, x)
    folder = tmp_path / "exits"
    with pytest.raises(ValueError, match=r"example of shape \(1, 4, 6\): expected at least two"):
        write_stages(net, rule, folder, x[:1])
    with pytest.raises(ValueError, match=r"keyword argument scale is a float: expected a tensor"):
        write_stages(net, rule, folder, x, {"scale": 2.0})
    with pytest.raises(ValueError, match=r"keyword argument logits: the files have this name"):
        write_stages(net, rule, folder, x, {"logits": x})
    with pytest.raises(ValueError, match=r"training mode"):
        write_stages(net.train(), rule, folder, x)
    assert not folder.exists()


def test_an_empty_batch_is_refused(tmp_path: Path) -> None:
    net, x = token_net(1), inputs(2)
    write_stages(net, ExitRule(thresholds={}), tmp_path / "exits", x)
    with pytest.raises(ValueError, match=r"x of shape \(0, 4, 6\) has no input"):
        driver.StagedExits(tmp_path / "exits")(x[:0].numpy())
