"""A benchmark that was stopped goes on, and gives what an undisturbed one gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from elasticnet.card import DepthCost
from elasticnet.sr import asrn
from elasticnet.sr.benchmark import (
    Benchmark,
    KeptScores,
    benchmark,
    bicubic,
    contestants,
    predict_depths,
)
from elasticnet.sr.benchmark.contestants import (
    Item,
    Scoring,
    bicubic_contestant,
    contestant_of,
    score_item,
)
from elasticnet.sr.benchmark.kept_scores import FILE_NAME, digest_of_net
from elasticnet.sr.benchmark.report import write_tables
from elasticnet.sr.data import PairSet, pairs_from_arrays
from full_disk import file_size_limit

NUM_IMAGES = 4


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 40, 3), np.uint8)


def pairs(scale: int = 2, **changed: np.ndarray) -> PairSet:
    """Four noisy images, some of which may be replaced."""
    images = {f"img{index}": noise(index) for index in range(NUM_IMAGES)}
    return pairs_from_arrays({**images, **changed}, scale)


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return asrn(2, 2, 8, init="default")


class Counter:
    """Lists who makes images anew, and interrupts after so many of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> None:
        self.made: list[str] = []
        self.stop_after = stop_after

        def count(label: str) -> None:
            if len(self.made) == self.stop_after:
                raise KeyboardInterrupt
            self.made.append(label)

        def counted_bicubic(*arguments):
            count("bicubic")
            return bicubic(*arguments)

        def counted_prediction(net, *arguments):
            count("net")
            return predict_depths(net, *arguments)

        monkeypatch.setattr(contestants, "bicubic", counted_bicubic)
        monkeypatch.setattr(contestants, "predict_depths", counted_prediction)


def run(folder: Path | None, **options) -> Benchmark:
    """Score the net on the four images; with a folder, scores are kept there."""
    given = {"nets": [("net", net())], "sets": [("set", pairs())], "costs": False, **options}
    if folder is None:
        return benchmark(**given)
    with KeptScores(folder) as kept:
        return benchmark(**given, kept=kept)


def test_a_stopped_benchmark_goes_on_and_gives_the_same_bits(tmp_path, monkeypatch, caplog):
    undisturbed = run(None)
    counter = Counter(monkeypatch, stop_after=5)  # two images by both, and one by bicubic
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    counter.stop_after = None
    counter.made.clear()

    resumed = run(tmp_path)

    assert len(counter.made) == 2 * NUM_IMAGES - 5
    assert resumed == undisturbed
    write_tables(tmp_path, resumed, "t")
    (tmp_path / "other").mkdir()
    write_tables(tmp_path / "other", undisturbed, "t")
    for name in ("table.md", "table.json", "table.csv", "images.csv"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    assert f"2 of 4 images were scored by an earlier run into {tmp_path}" in caplog.text


def test_a_finished_benchmark_is_not_scored_again(tmp_path, monkeypatch):
    first = run(tmp_path)
    counter = Counter(monkeypatch)
    assert run(tmp_path) == first
    assert counter.made == []


@pytest.mark.parametrize("cut", [2, 200, 600])
def test_a_line_that_is_cut_off_is_scored_anew(tmp_path, monkeypatch, cut):
    undisturbed = run(tmp_path)
    file = tmp_path / FILE_NAME
    file.write_bytes(file.read_bytes()[:-cut])
    counter = Counter(monkeypatch)
    assert run(tmp_path) == undisturbed
    assert counter.made == ["net"]
    counter.made.clear()
    assert run(tmp_path) == undisturbed  # what was added behind the cut is whole
    assert counter.made == []


@pytest.mark.parametrize("line", [b"", b"{}", b"[1]", b'{"kind": "score", "place": 3}', b"\xff"])
def test_damaged_lines_are_passed_over(tmp_path, monkeypatch, line):
    undisturbed = run(tmp_path)
    file = tmp_path / FILE_NAME
    file.write_bytes(line + b"\n" + file.read_bytes())
    counter = Counter(monkeypatch)
    assert run(tmp_path) == undisturbed
    assert counter.made == []


def test_other_weights_are_scored_anew_and_said(tmp_path, monkeypatch, caplog):
    run(tmp_path)
    counter = Counter(monkeypatch)
    changed = run(tmp_path, nets=[("net", net(seed=1))])
    assert counter.made == ["net"] * NUM_IMAGES  # and bicubic is not
    assert changed == run(None, nets=[("net", net(seed=1))])
    expected = "scored anew: net, 4 images (set x2 img0, set x2 img1, set x2 img2, ...)"
    assert f"{expected}: other weights" in caplog.text


def test_a_switched_block_of_the_same_weights_is_scored_anew(tmp_path, monkeypatch):
    run(tmp_path)
    switched: Any = net()
    switched.blocks[0].shuffle = False
    counter = Counter(monkeypatch)

    changed = run(tmp_path, nets=[("net", switched)])

    assert counter.made == ["net"] * NUM_IMAGES
    assert changed == run(None, nets=[("net", switched)])


def test_scores_of_earlier_weights_are_found_again_also_under_other_names(tmp_path, monkeypatch):
    first = run(tmp_path)
    run(tmp_path, nets=[("net", net(seed=1))])
    counter = Counter(monkeypatch)
    again = run(tmp_path, nets=[("renamed", net())], sets=[("other", pairs())])
    assert counter.made == []
    assert [row.psnr for row in again.rows] == [row.psnr for row in first.rows]
    assert [row.network for row in again.rows] == ["bicubic", "renamed", "renamed"]


def test_a_full_disk_is_named_and_the_folder_is_free_again(tmp_path):
    message = r"could not write .*scores\.jsonl \(File too large\)"
    with file_size_limit(1000), pytest.raises(OSError, match=message):
        run(tmp_path)
    with KeptScores(tmp_path):
        pass


def test_an_image_with_other_pixels_is_scored_anew_and_said(tmp_path, monkeypatch, caplog):
    run(tmp_path)
    counter = Counter(monkeypatch)
    sets = [("set", pairs(img2=noise(99)))]
    changed = run(tmp_path, sets=sets)
    assert counter.made == ["bicubic", "net"]
    assert changed == run(None, sets=sets)
    assert "scored anew: net, 1 images (set x2 img2): other pixels" in caplog.text


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"protocol": "rgb"}, "protocol was matlab-y"),
        ({"self_ensemble": True}, "self_ensemble was False"),
        ({"border": "replicate"}, "border was symmetric"),
    ],
)
def test_other_settings_are_scored_anew_and_said(tmp_path, caplog, options, reason):
    run(tmp_path)
    assert run(tmp_path, **options) == run(None, **options)
    images = "4 images (set x2 img0, set x2 img1, set x2 img2, ...)"
    assert f"scored anew: bicubic, {images}: {reason}" in caplog.text


def test_more_images_networks_and_depths_are_added(tmp_path, monkeypatch):
    run(tmp_path, depths=(1,))
    counter = Counter(monkeypatch)
    options = {
        "nets": [("net", net()), ("second", net(seed=1))],
        "sets": [("set", pairs(img4=noise(4)))],
        "depths": (1,),
    }
    more = run(tmp_path, **options)
    assert sorted(counter.made) == ["bicubic", *["net"] * (1 + 5)]  # all five by the second
    assert more == run(None, **options)


def test_saved_images_that_are_missing_or_of_another_run_are_made_again(tmp_path, monkeypatch):
    images, out = tmp_path / "images", tmp_path / "out"
    run(out, images_dir=images)
    before = {path: path.read_bytes() for path in images.rglob("*.png")}
    missing = images / "set" / "img1_x2_d2.png"
    missing.unlink()
    foreign = images / "set" / "img3_x2_bicubic.png"
    Image.fromarray(noise(7)).save(foreign)
    (images / "set" / "img0_x2_d1.png").write_bytes(before[images / "set/img0_x2_d1.png"][:100])

    counter = Counter(monkeypatch)
    run(out, images_dir=images)

    assert counter.made == ["net", "net", "bicubic"]
    assert {path: path.read_bytes() for path in images.rglob("*.png")} == before


@pytest.mark.parametrize(("spread", "times_measured"), [(1.0, 1), (30.0, 2)])
def test_costs_are_measured_once_unless_they_varied_much(
    tmp_path, monkeypatch, spread, times_measured
):
    measured: list[nn.Module] = []

    def measure_once_more(net, example):
        measured.append(net)
        return [DepthCost(depth=1, parameters=0, macs=5, ms=100.0, ms_spread=spread)]

    monkeypatch.setattr("elasticnet.sr.benchmark.costs.depth_costs", measure_once_more)
    enlarger = {"nets": [("up", nn.Upsample(scale_factor=2))], "costs": True}
    first = run(tmp_path, **enlarger)
    assert run(tmp_path, **enlarger) == first
    assert len(measured) == times_measured
    assert first.rows[1].ms_spread == spread


def test_tables_are_written_as_it_goes():
    seen: list[Benchmark] = []
    whole = pairs_from_arrays({f"img{index}": noise(index) for index in range(30)}, 2)
    result = benchmark([], [("set", whole)], on_progress=seen.append)
    scored = [len(each.images) for each in seen]
    assert scored == [*range(1, 21), 22, 24, 26, 28]  # a twentieth more, and not the last
    assert [each.remaining for each in seen] == [30 - number for number in scored]
    assert result.remaining == 0


def test_an_unfinished_table_says_so(tmp_path):
    seen: list[Benchmark] = []
    run(None, on_progress=seen.append)
    write_tables(tmp_path, seen[0], "t")
    assert "; NOT FINISHED, images still to be scored: 3\n" in (tmp_path / "table.md").read_text()
    assert '"remaining": 3' in (tmp_path / "table.json").read_text()


def test_two_benchmarks_into_one_folder_are_refused(tmp_path):
    with (
        KeptScores(tmp_path),
        pytest.raises(BlockingIOError, match=f"{tmp_path}: another benchmark writes into"),
    ):
        KeptScores(tmp_path)
    with KeptScores(tmp_path):
        pass


def test_what_is_next_is_shown():
    shown: list[str] = []
    scoring = Scoring(
        protocol="matlab-y",
        self_ensemble=False,
        border="symmetric",
        device="cpu",
        images_dir=None,
        kept=None,
        settings={},
    )
    both = [bicubic_contestant(2), contestant_of("net", net(), None, with_digest=False)]
    item = Item(data="set", pairs=pairs(), position=0, contestants=both, pixels="")
    score_item(item, scoring, shown.append)
    assert shown == ["img0: bicubic", "img0: net", "img0: net depth 1", "img0: net depth 2"]


def test_the_digest_of_a_net_is_of_its_weights_and_of_what_it_does():
    assert digest_of_net(net()) == digest_of_net(net())
    others = [net(1), net().bfloat16(), asrn(2, 2, 8, init="default", fold=False)]
    others += [nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2, mode="bilinear")]
    digests = {digest_of_net(each) for each in [net(), *others]}
    assert len(digests) == 1 + len(others)


def test_scores_under_the_old_name_of_a_protocol_are_not_scored_again(tmp_path, monkeypatch):
    first = run(tmp_path, protocol="rounded-y")
    file = tmp_path / FILE_NAME
    file.write_text(file.read_text().replace('"rounded-y"', '"imdn"'))
    counter = Counter(monkeypatch)
    assert run(tmp_path, protocol="rounded-y") == first
    assert counter.made == []
