"""Tables agree with one another and with what was measured; figures are written beside them."""

from __future__ import annotations

import csv
import json
import math
import re

import numpy as np
import pytest
from PIL import Image
from torch import nn

from elasticnet import ElasticWrapper
from elasticnet._tables import aligned
from elasticnet.sr import asrn
from elasticnet.sr.benchmark import (
    Benchmark,
    ImageScore,
    Row,
    benchmark,
    bicubic,
    evaluate_bicubic,
    with_compressed,
)
from elasticnet.sr.benchmark.evaluation import EXACT_REASON
from elasticnet.sr.benchmark.figures import crop_comparison
from elasticnet.sr.benchmark.report import (
    caption,
    markdown_table,
    markdown_tables,
    write_figures,
    write_report,
    write_tables,
)
from elasticnet.sr.data import PairSet, pairs_from_arrays

RNG = np.random.default_rng(0)


def noisy_pairs(scale: int) -> PairSet:
    images = {
        f"img{index}": RNG.integers(0, 256, (36 + 12 * index, 48, 3), np.uint8)
        for index in range(2)
    }
    return pairs_from_arrays(images, scale)


@pytest.fixture(scope="module")
def wide():
    """Two nets at scale 2 and one at scale 3 on two data sets."""
    nets = [("shallow", asrn(2, 1, 8)), ("deep", asrn(2, 2, 8)), ("deep", asrn(3, 2, 8))]
    sets = [(name, noisy_pairs(scale)) for name in ("A", "B") for scale in (2, 3)]
    return nets, sets, benchmark(nets, sets, costs=False)


def cells(table: str) -> list[list[str]]:
    """Return the header and the lines of a Markdown table."""
    header, _, *lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in table.strip().splitlines()
    ]
    return [header, *lines]


def test_csv_and_json_agree(wide, tmp_path):
    _, _, result = wide
    write_tables(tmp_path, result, "two nets")
    made = sorted(path.name for path in tmp_path.iterdir())
    assert made == ["images.csv", "table.csv", "table.json", "table.md"]
    stored = json.loads((tmp_path / "table.json").read_text())
    assert stored["title"] == "two nets"
    assert stored["settings"]["protocol"] == "matlab-y"
    for name, key in (("table.csv", "rows"), ("images.csv", "images")):
        with open(tmp_path / name, newline="") as file:
            lines = list(csv.DictReader(file))
        assert len(lines) == len(getattr(result, key))
        for line, entry in zip(lines, stored[key], strict=True):
            as_text = {field: str(value) for field, value in entry.items() if value is not None}
            assert {field: value for field, value in line.items() if value} == as_text


def test_rows_are_means_of_the_images(wide):
    _, _, result = wide
    for row in result.rows:
        same = [score for score in result.images if score[:4] == row[:4]]
        assert len(same) == 2
        assert row.psnr == pytest.approx(np.mean([score.psnr for score in same]), abs=1e-12)
        assert row.ssim == pytest.approx(np.mean([score.ssim for score in same]), abs=1e-12)


def test_the_markdown_table_has_a_column_for_everything_that_differs(wide, tmp_path):
    _, _, result = wide
    write_tables(tmp_path, result, "two nets")
    text = (tmp_path / "table.md").read_text()
    assert text.startswith("two nets; A (2 images), B (2 images); protocol matlab-y\n\n|")
    markdown = text.partition("\n\n")[2]
    assert markdown == markdown_table(result)
    header, *lines = cells(markdown)
    assert cells(aligned(markdown)) == [header, *lines]
    rest = ["SSIM-Y", "gain over bicubic (dB)"]
    assert header[:4] == ["scale", "network", "depth", "parameters"]
    assert header[4:] == ["A PSNR-Y (dB)", *rest, "B PSNR-Y (dB)", *rest]
    assert [line[:3] for line in lines] == [
        ["x2", "bicubic", "bicubic"],
        ["x2", "shallow", "1"],
        ["x2", "deep", "1"],
        ["x2", "deep", "2"],
        ["x3", "bicubic", "bicubic"],
        ["x3", "deep", "1"],
        ["x3", "deep", "2"],
    ]


def test_the_cells_of_the_markdown_table_are_the_rows(wide):
    _, _, result = wide
    rows = {(row.data, row.scale, row.network, row.depth): row for row in result.rows}
    for scale, network, depth, parameters, *scores in cells(markdown_table(result))[1:]:
        for data, shown in (("A", scores[:3]), ("B", scores[3:])):
            bicubic_row = rows[data, int(scale[1:]), "bicubic", None]
            if depth == "bicubic":
                row, gain = bicubic_row, ""
                assert parameters == ""
            else:
                row = rows[data, int(scale[1:]), network, int(depth)]
                gain = f"{row.psnr - bicubic_row.psnr:+.2f}"
                assert parameters == f"{row.parameters:,}"
            assert shown == [f"{row.psnr:.2f}", f"{row.ssim:.4f}", gain]


def test_one_net_on_one_set_makes_the_plain_table():
    rows = [
        Row("Set5", 2, "bicubic", None, 33.678, 0.93037, None, None, None),
        Row("Set5", 2, "net", 1, 35.5, 0.9501, 70_787, 16_309_324_800, 199.6),
        Row("Set5", 2, "net", 2, 33.05, 0.9, 109_955, 25_333_632_000, 310.2),
    ]
    score = ImageScore("Set5", 2, "bicubic", None, "baby", 33.678, 0.93037)
    settings = {
        "protocol": "matlab-y",
        "self_ensemble": True,
        "output_size": [1280, 720],
        "device": "cpu",
    }
    result = Benchmark(rows, [score], [], settings)
    assert markdown_table(result).splitlines() == [
        "| depth | parameters | GMACs | ms | PSNR-Y (dB) | SSIM-Y | gain over bicubic (dB) |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| bicubic |  |  |  | 33.68 | 0.9304 |  |",
        "| 1 | 70,787 | 16.31 | 200 | 35.50 | 0.9501 | +1.82 |",
        "| 2 | 109,955 | 25.33 | 310 | 33.05 | 0.9000 | -0.63 |",
    ]
    assert caption(result, "net") == (
        "net; Set5 (1 image); protocol matlab-y; x8 self-ensemble; "
        "MACs and ms of one pass to 1280x720 on cpu"
    )
    nothing_scored = Benchmark(rows[:1], [], [], settings)
    assert caption(nothing_scored, "net").startswith("net; no image scored; protocol matlab-y")


def test_figures_for_each_set_and_scale(wide, tmp_path):
    nets, sets, result = wide
    write_figures(tmp_path, result, nets, sets[1:3])
    names = {
        f"{stem}_{kind}.png"
        for stem in ("A_x3", "B_x2")
        for kind in ("curve", "parameters", "crops")
    }
    assert {path.name for path in tmp_path.iterdir()} == names
    widths = {path.name: Image.open(path).width for path in tmp_path.iterdir()}
    # HR, bicubic, 1 + 2 depths; against 2 depths
    assert widths["B_x2_crops.png"] > widths["A_x3_crops.png"]


def test_an_ordinary_network_is_a_line_across_the_curve(tmp_path):
    pairs = noisy_pairs(2)
    plain = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2))
    nets = [("elastic", asrn(2, 2, 8)), ("plain", plain)]
    result = benchmark(nets, [("A", pairs)], costs=False)
    write_figures(tmp_path, result, nets, [("A", pairs)])
    kinds = ("crops", "curve", "parameters")
    made = sorted(path.name for path in tmp_path.iterdir())
    assert made == [f"A_x2_{kind}.png" for kind in kinds]
    assert cells(markdown_table(result))[-1][:2] == ["plain", "full"]


def test_infinite_values_are_no_points_of_a_curve(tmp_path):
    net = ElasticWrapper([nn.Identity()], nn.Upsample(scale_factor=2))
    pairs = pairs_from_arrays({"even": np.full((30, 32, 3), 50, np.uint8)}, 2)
    result = benchmark([("net", net)], [("same", pairs)], costs=False)
    assert [row.psnr for row in result.rows] == [math.inf, math.inf]
    write_tables(tmp_path, result, "t")
    write_figures(tmp_path, result, [("net", net)], [("same", pairs)])
    assert json.loads((tmp_path / "table.json").read_text())["rows"][0]["psnr"] == "Infinity"
    assert list(tmp_path.glob("*.png")) == []
    assert cells(markdown_table(result))[2][-3:] == ["exact", "1.0000", ""]
    assert [(each.image, each.reason) for each in result.skipped] == [("even", EXACT_REASON)]


def test_an_image_that_is_reproduced_exactly_spoils_no_table_and_no_figure(tmp_path):
    images = {
        "black": np.zeros((30, 32, 3), np.uint8),
        "noise": RNG.integers(0, 256, (40, 60, 3), np.uint8),
    }
    both = pairs_from_arrays(images, 2)
    alone = pairs_from_arrays({"noise": images["noise"]}, 2)
    net = asrn(2, 2, 8)
    text = write_report(tmp_path, net, both, "t")
    without = benchmark([("t", net)], [("validation", alone)], costs=False)
    stored = json.loads((tmp_path / "table.json").read_text())
    assert [row["psnr"] for row in stored["rows"]] == [row.psnr for row in without.rows[1:]]
    assert stored["images"] == ["noise"]
    assert f"left out: black: {EXACT_REASON}" in text
    assert "inf" not in text.lower().replace("infinite", "")
    assert "nan" not in text.lower()
    assert {path.name for path in tmp_path.glob("*.png")} >= {"curve.png", "parameters.png"}


def test_the_crops_are_of_the_image_that_is_hardest_for_bicubic(tmp_path):
    images = {
        "plain": np.full((40, 30, 3), 9, np.uint8),
        "noise": RNG.integers(0, 256, (40, 60, 3), np.uint8),
    }
    pairs = pairs_from_arrays({**images, "soft": images["noise"] // 2}, 2)
    write_figures(tmp_path, benchmark([], [("set", pairs)]), [], [("set", pairs)])
    # without nets there is nothing else
    assert [path.name for path in tmp_path.iterdir()] == ["set_x2_crops.png"]
    wanted = {"bicubic": bicubic(pairs.lr(1), 2)}
    crop_comparison(tmp_path / "wanted.png", images["noise"], wanted, title="noise, set x2")
    drawn, expected = (
        np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("set_x2_crops", "wanted")
    )
    assert np.array_equal(drawn, expected)


def test_the_report_of_a_training(tmp_path):
    net, pairs = asrn(2, 2, 8), noisy_pairs(2)
    table = write_report(tmp_path, net, pairs, "ASRN x2, 3 steps")
    assert table.startswith(
        "ASRN x2, 3 steps; validation (2 images); protocol matlab-y; "
        "MACs and ms of one pass to 1280"
    )
    assert re.search(r"\n\| 1 \| [\d,]+ \| [\d.]+ \| \d+ ± \d+ \| ", table)
    names = {"table.md", "table.json", "curve.png", "parameters.png", "crops.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    stored = json.loads((tmp_path / "table.json").read_text())
    assert stored["images"] == pairs.names
    assert [row["depth"] for row in stored["rows"]] == [1, 2]
    assert stored["bicubic"]["psnr"] == evaluate_bicubic(pairs).psnr
    assert (tmp_path / "table.md").read_text() == table


def test_each_quality_of_jpeg_has_a_table_of_its_own(tmp_path):
    sets = with_compressed([("A", noisy_pairs(2))], [30, 90])
    assert [name for name, _ in sets] == ["A", "A-q30", "A-q90"]

    result = benchmark([("net", asrn(2, 1, 8))], sets, costs=False)
    text = markdown_tables(result)

    assert result.settings["jpeg_quality"] == {"A-q30": 30, "A-q90": 90}
    assert "; A (2 images); " in caption(result, "title")
    assert "also after JPEG of quality 30, 90 (4:2:0, Pillow" in caption(result, "title")
    headings = [line for line in text.splitlines() if line.endswith(":")]
    assert [each for each in headings if not each.startswith("|")] == [
        "not compressed:",
        "JPEG quality 30:",
        "JPEG quality 90:",
    ]
    _, low_quality = text.split("JPEG quality 30:\n\n")
    titles, baseline, net = cells(low_quality.split("\n\n")[0])
    psnr = titles.index("PSNR-Y (dB)")
    gain = titles.index("gain over bicubic (dB)")
    of_low_quality = evaluate_bicubic(dict(sets)["A-q30"])
    assert baseline[psnr] == f"{of_low_quality.psnr:.2f}"
    assert float(net[gain]) == pytest.approx(float(net[psnr]) - of_low_quality.psnr, abs=0.011)
    write_tables(tmp_path, result, "title")
    assert text in (tmp_path / "table.md").read_text()


def test_qualities_that_are_wrong_or_twice_there_are_named():
    sets = [("A", noisy_pairs(2))]
    with pytest.raises(ValueError, match="JPEG quality 0: expected a number from 1 to 100"):
        with_compressed(sets, [0])
    with pytest.raises(ValueError, match="JPEG quality 30: given more than once"):
        with_compressed(sets, [30, 30])
