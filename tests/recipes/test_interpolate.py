"""Networks between two others: on the straight line, and scored as what they are."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import elasticnet
from elasticnet import ElasticWrapper
from elasticnet.checkpoint import read_header
from elasticnet.sr import asrn
from elasticnet.sr.benchmark import evaluate
from elasticnet.sr.data import load_pairs
from loading import load_recipe
from small_photos import small_photos


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_recipe("interpolate")


def small_asrn(seed: int, num_blocks: int = 2) -> ElasticWrapper:
    torch.manual_seed(seed)
    return asrn(2, num_blocks, 8, skip="bicubic")


@given(
    share=st.floats(0, 1),
    head_share=st.none() | st.floats(0, 1),
    num_blocks=st.integers(1, 3),
)
def test_every_weight_lies_on_the_line(
    recipe: ModuleType, share: float, head_share: float | None, num_blocks: int
) -> None:
    start, tuned = small_asrn(0, num_blocks), small_asrn(1, num_blocks)
    ends = [
        {name: tensor.detach().clone() for name, tensor in net.named_parameters()}
        for net in (start, tuned)
    ]
    net = recipe.interpolated(start, tuned, share, head_share)
    of_head = {id(weight) for weight in net.head.parameters()}
    for name, weight in net.named_parameters():
        part = head_share if head_share is not None and id(weight) in of_head else share
        before, after = ends[0][name].numpy(), ends[1][name].numpy()
        expected = before.astype("float64") + part * (after.astype("float64") - before)
        torch.testing.assert_close(weight.detach().double(), torch.from_numpy(expected))
        if part == 0:
            assert torch.equal(weight, ends[0][name])
        if part == 1:
            assert torch.equal(weight, ends[1][name])


def test_networks_of_other_layouts_are_refused(recipe: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"tensor 'blocks.2.*': \(.*\) and nothing: expected two"):
        recipe.interpolated(small_asrn(0, 3), small_asrn(1, 2), 0.5)
    wider = asrn(2, 2, 16, skip="bicubic")
    with pytest.raises(ValueError, match=r"tensor 'stem.*': \(8, .*\) and \(16, .*\): expected"):
        recipe.interpolated(small_asrn(0), wider, 0.5)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_outside_of_the_way_is_refused(recipe: ModuleType, share: float) -> None:
    with pytest.raises(ValueError, match=f"share {share}: expected a number from 0"):
        recipe.interpolated(small_asrn(0), small_asrn(1), share)
    with pytest.raises(ValueError, match=f"head share {share}: expected a number from 0"):
        recipe.interpolated(small_asrn(0), small_asrn(1), 0.5, head_share=share)


def test_a_share_of_its_own_for_the_head_is_noted(
    recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start, tuned, net = (tmp_path / f"{name}.safetensors" for name in ("start", "tuned", "net"))
    folder = small_photos(tmp_path / "photos", num_photos=1, height=32, width=40)
    elasticnet.save(small_asrn(0), start)
    elasticnet.save(small_asrn(1), tuned)
    pair = [str(start), str(tuned), "--head-share", "1"]
    recipe.main(recipe.parse(["write", *pair, "--share", "0.5", "--out", str(net)]))
    scores_file = tmp_path / "shares.json"
    words = ["--shares", "0.5", "--data", str(folder), "--json", str(scores_file)]
    recipe.main(recipe.parse(["score", *pair, *words]))

    assert read_header(net)["notes"]["interpolated"]["head_share"] == 1
    assert "photos, share 0.5, head 1: depth 1 " in capsys.readouterr().out
    scores = json.loads(scores_file.read_text())
    assert {row["network"] for row in scores["rows"]} == {"bicubic", "0.5, head 1"}
    expected = evaluate(elasticnet.load(net), load_pairs(folder, 2, progress=False))
    found = {row["depth"]: row["psnr"] for row in scores["rows"] if row["depth"] is not None}
    assert found == pytest.approx({depth: score.psnr for depth, score in expected.items()})


def test_statistics_of_other_weights_are_refused(recipe: ModuleType) -> None:
    def normalized() -> ElasticWrapper:
        block = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        return ElasticWrapper([block], nn.Identity())

    with pytest.raises(ValueError, match="BatchNorm2d: its running statistics"):
        recipe.interpolated(normalized(), normalized(), 0.5)


def test_a_file_says_where_it_lies_and_scores_as_it_was_found(
    recipe: ModuleType, tmp_path: Path
) -> None:
    scores_file = tmp_path / "shares.json"
    folder = small_photos(tmp_path / "photos", num_photos=2, height=32, width=40)
    start, tuned, half = (tmp_path / f"{name}.safetensors" for name in ("start", "tuned", "half"))
    elasticnet.save(small_asrn(0), start)
    elasticnet.save(small_asrn(1), tuned, notes={"step": 7})
    recipe.main(
        recipe.parse(["write", str(start), str(tuned), "--share", "0.5", "--out", str(half)])
    )
    words = ["--shares", "0", "0.5", "--data", str(folder), "--jpeg-quality", "30"]
    recipe.main(recipe.parse(["score", str(start), str(tuned), *words, "--json", str(scores_file)]))

    assert read_header(half)["notes"]["interpolated"] == {
        "start": "start.safetensors",
        "tuned": "tuned.safetensors",
        "share": 0.5,
        "tuned_notes": {"step": 7},
    }
    rows = json.loads(scores_file.read_text())["rows"]
    assert {row["data"] for row in rows} == {"photos", "photos-q30"}
    pairs = load_pairs(folder, 2, progress=False)
    for file, share in ((start, "0"), (half, "0.5")):
        scores = {
            depth: score.psnr for depth, score in evaluate(elasticnet.load(file), pairs).items()
        }
        found = {
            row["depth"]: row["psnr"]
            for row in rows
            if row["data"] == "photos" and row["network"] == share
        }
        assert found == pytest.approx(scores)


def test_networks_of_equal_shapes_and_another_function_are_refused(
    recipe: ModuleType, tmp_path: Path
) -> None:
    start, tuned = tmp_path / "start.safetensors", tmp_path / "tuned.safetensors"
    elasticnet.save(small_asrn(0), start)
    elasticnet.save(asrn(2, 2, 8), tuned)  # the skip has no weights
    with pytest.raises(ValueError, match=r"skip: 'bicubic' in .* and None in .*: expected two net"):
        recipe.loaded_pair(str(start), str(tuned))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "write|score"),
        (["write", "a", "b", "--share", "0.5"], "--out"),
        (["score", "a", "b", "--shares", "1"], "--data"),
        (["write", "a", "b", "--share", "1", "--out", "c", "--data", "d"], "unrecognized"),
    ],
)
def test_half_of_a_command_is_refused(
    recipe: ModuleType, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        recipe.parse(words)
    assert message in capsys.readouterr().err
