"""The page of results: every number comes from docs/results/, and the page is up to date with
it.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from elasticnet.sr import asrn
from elasticnet.training.options import as_json
from loading import load_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture
def results(tmp_path, monkeypatch) -> ModuleType:
    """The recipe, working on a copy of docs/."""
    module = load_recipe("results")
    for folder in ("studies", "guides"):
        (tmp_path / "docs" / folder).mkdir(parents=True)
    for page in module.PAGES:
        shutil.copy(ROOT / "docs" / page, tmp_path / "docs" / page)
    shutil.copytree(ROOT / "docs" / "results", tmp_path / "docs" / "results")
    monkeypatch.setattr(module, "DOCS", tmp_path / "docs")
    return module


def run(results: ModuleType, *words: str) -> None:
    """Run the recipe with a command line."""
    results.main(results.parse(words))


def test_the_page_is_up_to_date(results):
    run(results, "--check")


def test_a_changed_measurement_is_noticed_and_written(results, tmp_path, capsys):
    file = tmp_path / "docs" / "results" / "denoise.json"
    record = json.loads(file.read_text())
    record["table"]["rows"][-1]["psnr"] = 47.114
    file.write_text(json.dumps(record))
    with pytest.raises(SystemExit) as ended:
        run(results, "--check")
    assert ended.value.code == 1
    assert "out of date" in capsys.readouterr().err
    run(results)
    page = (tmp_path / "docs" / "studies" / "other_tasks.md").read_text()
    assert "| 47.11 |" in page
    shown: list[str] = []
    for name in ("results.md", *(name for name in results.PAGES if name.startswith("studies"))):
        shown += re.findall(r"\((?:\.\./)?images/(.*?)\)", (tmp_path / "docs" / name).read_text())
    assert sorted(path.name for path in (tmp_path / "docs" / "images").iterdir()) == sorted(shown)
    run(results, "--check")


def test_a_missing_record_is_named(results, tmp_path):
    (tmp_path / "docs" / "results" / "denoise.json").unlink()
    with pytest.raises(ValueError, match="docs/results/ has nothing named 'denoise'"):
        run(results, "--check")


@pytest.mark.parametrize("names", [("denoise", "deblur"), ("denoise", "deblur", "dehaze")])
def test_each_task_that_was_run_has_its_gain_over_the_input(results, names):
    records = {}
    for name in names:
        records[name] = a_record(noise_sigma=25.0, blur_sigma=1.6, valid="Set5")
        rows = [{"psnr": 21.5}, {"psnr": 22.0}]
        records[name]["table"] = {"input": {"psnr": 20.0}, "rows": rows}
    lines = results.tasks(records).splitlines()
    labels = ["denoise, sigma 25", "deblur, sigma 1.6", "dehaze"][: len(names)]
    for label in labels:
        assert f"| {label}: PSNR (dB) | 20.00 | 21.50 | 22.00 |" in lines
        assert f"| {label}: gain (dB) |  | +1.50 | +2.00 |" in lines
    assert sum("gain" in line for line in lines) == len(names)


def test_published_counts_stand_beside_ours_and_a_damaged_one_is_called_so(results):
    rows = [
        printed("ASRN", 3, {}, table=1, blocks=5, parameters=248_000),
        printed("ASRN", 3, {}, table=5, blocks=4, parameters=None),
        printed("ASRN", 4, {}, table=6, blocks=25, parameters=1_000_000),
    ]
    said = [
        {
            "topic": f"upsample parameters {module}",
            "section": "3.1.1. A title (a paragraph)",
            "quote": f"S = 2 as an example, module {module} has {count}K parameters (227K).",
        }
        for module, count in (("A", 334), ("B", 24))
    ]
    page = results.counts({"published": {"scores": rows, "sentences": said}})
    for line in (
        "| x3, 5 blocks | 248K | Table 1 | 247,939 |",
        "| x3, 4 blocks | damaged | Table 5 | 208,771 |",
        "| x2, shared head | 24K | Section 3.1.1 | 24,387 |",
        "| x2, module A | 334K | Section 3.1.1 | 334,755 |",
        "| x4, 25 blocks | 1.0M | Table 6 | 1,027,267 |",
    ):
        assert line in page
    assert "3 blocks" not in page


def test_a_lost_marker_is_an_error_that_names_its_section(results, tmp_path):
    page = tmp_path / "docs" / "studies" / "growth.md"
    page.write_text(page.read_text().replace("<!-- end: growth -->", ""))
    with pytest.raises(ValueError, match="markers of section 'growth'"):
        run(results)


def presets() -> dict[str, dict[str, Any]]:
    """The kept values of the recipe's presets."""
    return json.loads((ROOT / "docs" / "results" / "presets.json").read_text())


def parsed(*arguments: str) -> dict[str, Any]:
    """The recipe's options as options.json holds them, on a CPU, where there is no data set."""
    recipe = load_recipe("asrn_div2k")
    return as_json(recipe.parse([*arguments, "--device", "cpu", "--precision", "float32"]))


@pytest.mark.parametrize("preset", ["demo", "paper", "best"])
def test_the_kept_presets_are_the_recipes(preset, tmp_path, monkeypatch):
    """If a preset was changed: python recipes/record.py --presets."""
    monkeypatch.chdir(tmp_path)
    machine = {"tensorboard": None}  # by default, whether it is installed
    assert presets()[preset] | machine == parsed("--preset", preset) | machine


def test_a_command_names_what_differs_from_its_preset(results):
    options = parsed(
        "--preset",
        "paper",
        "--scale",
        "4",
        "--loss",
        "l1",
        "--psd-weight",
        "8e-5",
        "--data",
        "train",
        "--keep",
        "2",
    )
    command = results.changed(options, presets())
    given = {"--data train", "--scale 4", "--loss l1", "--psd-weight 8e-05"}
    assert command.startswith("--preset paper --")
    words = command.split()[2:]
    assert {f"{flag} {value}" for flag, value in zip(words[::2], words[1::2], strict=True)} == given
    usual = {**options, "scale": 2, "keep": 3}
    assert results.changed(options, presets(), usual) == "--scale 4"
    without_psd = {**options, "variant": "ss"}
    assert results.changed(without_psd, presets(), options) == "--variant ss"


def test_nothing_kept_names_a_path_of_a_machine():
    for path in (ROOT / "docs" / "results").rglob("*.json*"):
        assert not re.search(r'"(/|\.\./|[A-Z]:\\)', path.read_text()), path


def a_record(seed: int = 0, **options: object) -> dict:
    """A run's record with scores 30.00, 30.10, ... by set, a hundredth more for each depth, and
    0.20 for each seed.
    """
    sets = [
        {
            "data": data,
            "depth": depth,
            "parameters": 1000 * (depth or 0),
            "psnr": 30 + index / 10,
            "ssim": 0.5,
        }
        for index, data in enumerate(("Set5", "Set14", "B100"))
        for depth in (None, 1, 2, 3, 4, 5)
    ]
    for row in sets:
        row["psnr"] += (row["depth"] or 0) / 100 + seed * (row["depth"] is not None) / 5
    given = parsed("--preset", "best", "--data", "train", "--scale", "4")
    scores = [
        {"step": 4, "seconds": 3600.0, "psnr": {"1": 27.2, "5": 27.4}},
        {"step": 5, "seconds": 7200.0, "psnr": {"1": 27.1, "5": 27.45}},
    ]
    costs = [
        {"depth": depth, "parameters": 1000 * depth, "macs": 5e8 * depth} for depth in range(1, 6)
    ]
    record = {
        "options": {**given, **options, "seed": seed},
        "sets": sets,
        "scores": scores,
        "machine": "a computer",
    }
    return {**record, "table": {"rows": costs}}


def printed(
    method: str,
    scale: int,
    psnrs: dict[str, float],
    *,
    table: int = 1,
    blocks: int | None = None,
    degradation: str = "BI",
    parameters: int | None = 57000,
) -> dict[str, Any]:
    """A row of published.json."""
    return {
        "table": table,
        "degradation": degradation,
        "scale": scale,
        "method": method,
        "blocks": blocks,
        "parameters": parameters,
        "scores": {data: {"psnr": psnr, "ssim": 0.5} for data, psnr in psnrs.items()},
    }


def printed_bicubic(scale: int, *psnrs: float, degradation: str = "BI") -> dict[str, Any]:
    """A row of published.json for bicubic interpolation on the three sets."""
    by_data: dict[str, float] = dict(zip(("Set5", "Set14", "B100"), psnrs, strict=True))
    table = 1 if degradation == "BI" else 2
    return printed("Bicubic", scale, by_data, table=table, degradation=degradation)


def reprinted(**of_x4: float) -> dict[str, Any]:
    """A small reprinted.json: one network, with scores at x4."""
    method = {"source": "Its authors", "parameters": 58000, "x4": of_x4}
    return {"source": "other papers", "methods": {"SRNET": method}}


def test_gains_are_over_the_bicubic_of_each_side(results):
    rows = [printed_bicubic(scale, 28.5, 26.1, 26) for scale in (2, 3, 4)]
    rows.append(printed("ASRN", 4, {"Set5": 31.5, "Set14": 28.0}, table=5, blocks=5))
    rows.append(printed("SRNET", 4, {"Set5": 30.5, "B100": 26.9}))
    records = {scale: a_record() for scale in ("x2", "x3", "x4")}
    records |= {"published": {"scores": rows}, "reprinted": reprinted(Set5=30.6)}
    page = results.over_bicubic(records)
    of_x4 = page.partition("| x4, gain over bicubic (dB) |")[2].splitlines()
    assert of_x4[0] == " Set5 | Set14 | B100 |"
    assert of_x4[2] == "| depth 1 | +0.01 | +0.01 | +0.01 |"
    assert of_x4[6] == "| depth 5 | +0.05 (+3.00) | +0.05 (+1.90) | +0.05 |"
    assert of_x4[7] == "| SRNET, Table 1 | (+2.00) |  | (+0.90) |"
    assert of_x4[8] == "| SRNET, reprinted | (+2.10) |  |  |"
    assert page.count("SRNET") == 2


def test_each_depth_stands_beside_the_papers_and_is_bold_where_it_is_ahead(results):
    rows = [printed_bicubic(scale, 29.5, 30.5, 30.5) for scale in (2, 3, 4)]
    depth_5 = {"Set5": 30.04, "Set14": 30.15, "B100": 30.26, "Urban100": 25.5}
    rows.append(printed("ASRN", 4, depth_5, table=5, blocks=5))
    records = {scale: a_record() for scale in ("x2", "x3", "x4")}
    records["published"] = {"scores": rows}

    page = results.overview(records)

    assert "| x4, bicubic |  | 30.00 (29.50) | 30.10 (30.50) | 30.20 (30.50) | – | – |" in page
    assert "| x4, 1 block | 87,235 | 30.01 | 30.11 | 30.21 | – | – |" in page
    ahead_level_behind = "**30.05** (30.04) | 30.15 (30.15) | 30.25 (30.26)"
    assert f"| x4, 5 blocks | 243,907 | {ahead_level_behind} | – (25.50) | – |" in page


def test_what_is_ahead_and_what_is_behind_is_counted(results):
    depth_5 = {"Set5": 30.04, "Set14": 30.15, "B100": 30.26, "Urban100": 25.5}
    rows = [
        printed("ASRN", 4, depth_5, table=5, blocks=5),
        printed("ASRN", 2, {"Set5": 31.0}, blocks=5),
    ]
    records = {scale: a_record() for scale in ("x2", "x3", "x4")}
    records["published"] = {"scores": rows}

    page = results.standing(records)

    assert "| x4, depth 5 | +0.01 | +0.00 | -0.01 |  |  |" in page
    assert "| x2, depth 5 | -0.95 |  |  |  |  |" in page
    assert "depth 4" not in page
    assert "At x4, of 3 values ours is ahead in 1, level in 1 and behind in 1." in page


def test_the_papers_rows_are_shown_as_printed_with_their_notes(results):
    noted = printed("ASRN", 3, {"Set5": 33.06}, table=5, blocks=1)
    noted["note"] = "read with care"
    rows = [
        noted,
        printed("ASRN (SS)", 3, {"Set5": 30.28}, table=4, blocks=1),
        printed("ASRN (DSL)", 3, {"Set5": 33.0}, table=5, blocks=1),  # Table 4 has it, too
        printed("SRCNN", 3, {"Set5": 25.01}, table=2, degradation="DN"),
    ]
    places = [{"number": 1, "text": "One."}, {"number": 2, "text": "Two."}]
    ablation = [
        {
            "case": 4,
            "fusion_layer": True,
            "residual_like_connection": None,
            "channel_shuffle": None,
            "residual_learning": False,
            "mab_number": 5,
            "channel_number": 64,
            "psnr": 26.33,
        }
    ]
    published = {"scores": rows, "read_with_care": places, "ablation": ablation}
    records = {"published": {**published, "not_said": ["patch size", "seed"]}}

    by_depth = results.printed_depths(records)
    assert "| x3, ASRN 1B | 33.06 / 0.5000 |  |  |  |  |" in by_depth
    assert "| x3, ASRN (SS) 1B | 30.28 / 0.5000 |" in by_depth
    assert "DSL" not in by_depth
    assert by_depth.endswith("- x3, ASRN 1B: read with care")
    assert "| DN x3, SRCNN | 25.01 / 0.5000 |" in results.printed_degradations(records)
    assert "| 4 | residual learning | 5 | 64 | 26.33 |" in results.printed_ablation(records)
    assert results.read_with_care(records) == "1. One.\n2. Two."
    assert results.not_said(records) == "- patch size\n- seed"


def test_every_seed_at_x3_has_its_row_and_urban100_the_runs_that_were_scored_on_it(results):
    records = {f"x3-{kind}": a_record() for kind in ("ss", "dsl", "full", "best")}
    records["x3-ss-seed1"] = a_record(seed=1)
    on_urban = [
        {"data": "Urban100", "depth": depth, "parameters": 1, "psnr": 26.0, "ssim": 0.5}
        for depth in range(1, 6)
    ]
    records["x3-ss-seed1"]["sets"] += on_urban
    lines = results.comparison_x3({**records, "published": {"scores": []}}).splitlines()
    assert lines.count("| SS, cut short, seed 0 | 30.01 | 30.02 | 30.03 | 30.04 | 30.05 |") == 1
    assert lines.count("| SS, cut short, seed 1 | 30.21 | 30.22 | 30.23 | 30.24 | 30.25 |") == 1
    [title] = [index for index, line in enumerate(lines) if line.startswith("| Urban100 x3 |")]
    of_urban100 = lines[title + 2 :]
    assert of_urban100[0] == "| SS, cut short, seed 1 | 26.00 | 26.00 | 26.00 | 26.00 | 26.00 |"
    assert not any("seed" in line for line in of_urban100[1:])


def test_a_case_without_a_part_stands_beside_the_papers_and_those_that_wait_are_named(results):
    printed_cases = {1: 26.85, 5: 27.19, 6: 27.45, 7: 27.92}
    ablation = [{"case": case, "psnr": psnr} for case, psnr in printed_cases.items()]
    records = {
        "published": {"ablation": ablation},
        "parts-64-no-fusion": a_record(channels=64, fusion=False),
        "parts-96": a_record(channels=96),
        "parts-96-no-links": a_record(channels=96, residual_links=False),
    }
    for index, name in enumerate(list(records)[1:]):
        at_depth = {"data": "Urban100", "depth": 5, "parameters": 5000, "psnr": 26.5 + index}
        records[name]["sets"].append({**at_depth, "ssim": 0.5})
    *lines, _, made = results.block_parts(records).splitlines()
    assert lines[2:] == [
        "| 1 | fusion layer | 5 | 64 | 5,000 | 30.25 | 26.50 | (26.85) |",
        "|  | residual-like connection | 5 | 96 | 5,000 | 30.25 | 28.50 |  |",
        "| 6 |  | 5 | 96 | 5,000 | 30.25 | 27.50 | (27.45) |",
    ]
    assert made.endswith("Cases not trained yet: 2, 3, 4, 5, 7.")


def complexity_record() -> dict[str, Any]:
    """A small complexity.json: two networks, and MACs that name scale, blocks, size and head."""
    explaining = [
        {
            "scale": scale,
            "blocks": blocks,
            "lr_side": lr_side,
            "fold": fold,
            "macs": (100 * scale + blocks + (0.5 if fold else 0)) * 1e9 * (lr_side / 64),
        }
        for scale in (2, 3, 4)
        for blocks in (5, 25)
        for lr_side in (64, 640)
        for fold in (False, True)
    ]
    costs = {"parameters": 243_907, "macs": 16.06e9, "ms": 1234.5}
    rows = [{"network": name, **costs} for name in ("ASRN, 5 blocks", "SRCNN")]
    settings = {"scale": 4, "output_side": 1024, "repeats": 3}
    return {"machine": "a computer", "settings": settings, "rows": rows, "explaining": explaining}


def table_7(method: str, parameters: int, flops: float, seconds: float) -> dict[str, Any]:
    return {"method": method, "parameters": parameters, "flops": flops, "seconds": seconds}


def test_costs_stand_beside_table_7_under_the_names_of_both(results):
    printed_costs = [
        table_7("ASRN (Ours)", 244_000, 2.1e9, 0.013),
        table_7("ASRN (25B, Ours)", 1_000_000, 8.3e9, 0.025),
    ]
    records = {
        "complexity": complexity_record(),
        "published": {"complexity": printed_costs},
    }

    page = results.complexity(records)

    measured = "243,907 | 16.06 | 1,234"
    assert f"| ASRN, 5 blocks | {measured} | 244K | 2.1G | 13 |" in page
    assert f"| SRCNN | {measured} |  |  |  |" in page
    assert "| ASRN (25B, Ours) |  |  |  | 1.0M | 8.3G | 25 |" in page
    assert "Ours: x4, an output of 1024x1024" in page
    assert page.endswith("median of 3; a computer.")

    by_size = results.flops(records)
    assert "| x3, 25 blocks | 3250.0 | 3255.0 | 650.00 | 651.00 | 8.3G |" in by_size
    assert "| x2, 5 blocks | 2050.0 | 2055.0 | 410.00 | 411.00 | 2.1G |" in by_size


def test_a_training_step_stands_beside_published_counts(results):
    step = {"parameters": 1_810_627, "ms": 12345.0, "bytes": 2.5e9}
    rows = [
        {"blocks": 45, "checkpoint_blocks": False, **step},
        {"blocks": 45, "checkpoint_blocks": True, **step},
    ]
    settings = {"scale": 4, "batch_size": 16, "patch_size": 48, "repeats": 3}
    records = {
        "training-steps": {"machine": "a computer", "settings": settings, "rows": rows},
        "published": {"scores": [printed("ASRN", 4, {}, table=6, blocks=45, parameters=1_800_000)]},
    }
    page = results.training_steps(records)
    assert "| 45 blocks | 1,810,627 | 1.8M | kept | 2,500 | 12.3 |" in page
    assert "| 45 blocks | 1,810,627 | 1.8M | computed again |" in page
    assert "One step of batch 16, patches of 48" in page


def test_the_figures_of_sizes_have_the_papers_others_and_ours(results):
    rows = [
        printed("ASRN", 4, {"Urban100": 25.42}, table=5, blocks=5, parameters=244_000),
        printed("ASRN (DSL)", 4, {"Urban100": 25.3}, table=5, blocks=5, parameters=244_000),
        printed("ASRN", 4, {"Urban100": 25.02}, table=5, blocks=2, parameters=None),
        printed("ASRN", 4, {"Urban100": 26.29}, table=6, blocks=45, parameters=1_800_000),
        printed("CRN", 4, {"Urban100": 26.44}, table=6, parameters=9_500_000),
        printed("CRN", 3, {"Urban100": 28.62}, table=6, parameters=9_500_000),
        printed("CNF", 4, {"Set5": 31.5}, parameters=337_000),
    ]
    x4 = a_record(num_blocks=1)
    x4["sets"] = [
        {"data": "Urban100", "depth": depth, "parameters": 9, "psnr": 25.0} for depth in (None, 1)
    ]
    dots = results.sized_dots({"published": {"scores": rows}, "x4": x4}, data="Urban100")
    assert dots == {
        "the paper's, by blocks": {"5B": (244_000, 25.42), "45B": (1_800_000, 26.29)},
        "other networks": {"CRN": (9_500_000, 26.44)},
        "ours, by blocks": {"1": (87_235, 25.0)},
    }
    assert results.is_small(812_000)
    assert results.is_large(1_000_000)
    assert "| x4, CRN, 9.5M |" in results.printed_large({"published": {"scores": rows}})


def test_the_networks_in_the_package_stand_beside_the_published_ones(results, monkeypatch):
    monkeypatch.setattr(results, "SHIPPED", {"x4": "asrn_x4", "x4-published": "asrn_x4_published"})
    published = {
        "source": "A paper",
        "scores": [
            printed_bicubic(4, 28.5, 26.1, 26),
            printed("ASRN", 4, {"Set5": 31.5}, table=5, blocks=5),
            printed("SRNET", 4, {"Set5": 30.5, "Set14": 27.5, "B100": 26.9}),
            printed("unsized", 4, {"Urban100": 24.5}, parameters=None),
            printed("x2 only", 2, {"Set5": 37.0}),
        ],
    }
    with_urban = a_record(skip="none", init="there/asrn_x2.safetensors")
    with_urban["sets"] += [
        {**row, "data": "Urban100"} for row in with_urban["sets"] if row["data"] == "Set5"
    ]
    records = {"x4": a_record(), "x4-published": with_urban}
    records |= {"published": published, "reprinted": reprinted(Set5=30.6)}
    page = results.shipped(records)
    empty = "– | – |"
    assert (
        "| bicubic |  |  | 30.00 / 0.5000 (28.50) | 30.10 / 0.5000 (26.10) | "
        f"30.20 / 0.5000 (26.00) | {empty}" in page
    )
    assert (
        "| 5 | 243,907 | 14.12 | 30.05 / 0.5000 (31.50) | 30.15 / 0.5000 | 30.25 / 0.5000 | "
        f"{empty}" in page
    )
    assert (
        f"| 4 | 204,739 | 11.86 | 30.04 / 0.5000 | 30.14 / 0.5000 | 30.24 / 0.5000 | {empty}"
        in page
    )
    assert "30.24 / 0.5000 | 30.04 / 0.5000 | – |" in page.partition("`asrn_x4_published`")[2]
    assert page.count("| SRNET, Table 1 | 57K |  | (30.50) | (27.50) | (26.90) |  |  |") == 1
    assert page.count("| SRNET, reprinted | 58K |  | (30.60) |  |  |  |  |") == 1
    assert page.count("| unsized, Table 1 |  |  |  |  |  | (24.50) |  |") == 1
    assert "x2 only" not in page
    assert re.findall("patches of 48(.*); GMACs", page) == ["", ", started from asrn_x2"]
    assert page.endswith("Tables 1 and 5 of A paper. Reprinted: other papers (SRNET: Its authors).")
    set14 = "On Set14 published bicubic interpolation has 26.10 dB and ours 30.10, as a file"
    assert page.count(set14) == 2
    card, other = results.cards({**records, "presets": presets()}).split("\n\n## ")
    assert other.startswith("`asrn_x4_published.safetensors`")
    assert "| network | ASRN x4, 5 blocks of 96 |" in other
    assert card.startswith("## `asrn_x4.safetensors`")
    for line in (
        "| network | ASRN x4, 5 blocks of 96, skip bicubic |",
        "| budget | 60,000 steps, batch 16, patches of 48; 2.0 hours |",
        "| command | `python recipes/asrn_div2k.py --preset best --data train --scale 4` |",
        "| hardware | a computer |",
        "| kept | step 4, whose mean",
    ):
        assert line in card
    assert "30.01 30.02 30.03 30.04 30.05;" in card
    assert "| photographs |" not in card, "their terms are not known"


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_convolution_of_a_tap_costs_nothing_where_a_depth_is_used_alone(results, scale):
    costs = results.costs_alone(a_record(scale=scale, tap_fusion=True))
    net = asrn(scale, tap_fusion=True).truncate(2)
    head: Any = net.head
    merged = head.after(net.adapters["2"])  # what an exported file has
    parts: list[Any] = [net.stem, net.blocks, merged]
    assert sum(results.parameters_of(part) for part in parts) == costs[2].parameters
    without = a_record(scale=scale, tap_fusion=False)
    assert results.costs_alone(without) == costs


def with_sets(record: dict, psnr: dict[str, float]) -> dict:
    """The record with further data sets: bicubic has 20 dB, each depth a tenth more than before."""
    for data, start in psnr.items():
        for depth in (None, 1, 2, 3, 4, 5):
            score = 20.0 if depth is None else start + depth / 10
            record["sets"].append({"data": data, "depth": depth, "psnr": score, "ssim": 0.5})
    return record


def test_networks_for_compressed_images_stand_beside_the_others_by_quality(results):
    qualities = {f"B100-q{quality}": 19.8 + quality / 100 for quality in (30, 50, 75, 90)}
    records = {}
    for scale in ("x2", "x4"):
        records[scale] = with_sets(a_record(), qualities)
        records[f"{scale}-photo"] = with_sets(a_record(), dict.fromkeys(qualities, 21.0))
    page = results.compressed(records)
    assert "| B100, JPEG quality | `asrn-x2`, depth 1 |" in page
    assert "| 30 | +0.20 | +0.40 | +0.60 | +1.10 | +1.30 | +1.50 |" in page
    assert "| not compressed | +0.01 | +0.03 | +0.05 | +0.01 | +0.03 | +0.05 |" in page


def test_what_networks_for_compressed_images_lose_stands_by_set_and_depth(results):
    records = {}
    for scale, start in (("x2", 21.0), ("x4", 22.0)):
        records[scale] = with_sets(a_record(), {"Urban100": start})
        records[f"{scale}-photo"] = with_sets(a_record(seed=1), {"Urban100": start - 0.25})
    page = results.behind(records)
    same = " | +0.200" * 5
    assert f"| `asrn-x4:photo` less `asrn-x4` | B100{same} |" in page
    less = " | -0.250" * 5
    for scale in ("x2", "x4"):
        assert f"| `asrn-{scale}:photo` less `asrn-{scale}` | Urban100{less} |" in page


def test_networks_between_two_others_stand_in_the_order_of_their_shares(results):
    rows = []
    for data, start in {"photos": 20.0, "photos-q30": 18.0}.items():
        rows.append({"data": data, "network": "bicubic", "depth": None, "psnr": start})
        for share in ("0", "0.5"):
            for depth in (1, 2, 3, 4, 5):
                psnr = start + depth / 10 + float(share)
                rows.append({"data": data, "network": share, "depth": depth, "psnr": psnr})
    table = results.between({"photo-shares-x4": {"rows": rows}})
    header = "not compressed, depth 1 | not compressed, depth 3 | not compressed, depth 5"
    assert f"| x4, share | {header} | quality 30, depth 1 |" in table
    assert "| 0.5 | +0.60 | +0.80 | +1.00 | +0.60 | +0.80 | +1.00 |" in table


def test_a_card_says_between_which_networks_the_weights_lie(results):
    record = a_record() | {"machine": "a computer"}
    way = {"start": "asrn-x4", "tuned": "best.safetensors", "share": 0.6}
    rows = dict(results.card_rows("x4", record | {"interpolated": way}, presets()))
    assert "60% of the way" in rows["kept"]
    assert rows["kept"].endswith("to it from `asrn-x4`")
    assert "of the way" not in dict(results.card_rows("x4", record, presets()))["kept"]
    of_two = record | {"interpolated": way | {"head_share": 1.0}}
    kept = dict(results.card_rows("x4", of_two, presets()))["kept"]
    assert kept.endswith("to it from `asrn-x4`, the shared head 100%")


def test_a_card_names_the_step_that_was_kept_which_is_not_the_beginning(results):
    record = a_record() | {"machine": "a computer"}
    best = ", whose mean over depths on the held-out photographs was the best"
    assert dict(results.card_rows("x4", record, presets()))["kept"] == f"step 4{best}"
    beginning = {"step": 0, "seconds": 9.0, "psnr": {"1": 40.0, "5": 40.0}}
    record["scores"] = [beginning, *record["scores"]]
    assert dict(results.card_rows("x4", record, presets()))["kept"] == f"step 4{best}"
    record["scores"] = [beginning, record["scores"][-1]]
    assert dict(results.card_rows("x4", record, presets()))["kept"] == "step 5"


def test_a_card_names_the_runs_that_its_run_went_on_from(results):
    record = a_record(init="somewhere/last.safetensors") | {"machine": "a computer"}
    records = {
        "first": record,
        "second": record | {"after": "first"},
        "third": record | {"after": "second"},
    }
    before = results.runs_before(records, "third")
    rows = results.card_rows("third", records["third"], presets(), before)
    named = [cell for word, cell in rows if word == "went on from"]
    steps = results.budget(record)
    assert named == [f"[{name}.json](results/{name}.json): {steps}" for name in ("first", "second")]
    assert "--init runs/second/last.safetensors" in dict(rows)["command"]
    assert results.runs_before(records, "first") == {}
    assert results.beginning(records["third"]) == ", started from the end of second"


def test_networks_stand_beside_those_that_they_replaced(results):
    held_out = ("structures_valid", "train_valid10")
    records = {}
    for scale in ("x2", "x3", "x4"):
        records[scale] = with_sets(a_record(), dict.fromkeys(held_out, 25.0))
        records[f"{scale}-train"] = with_sets(
            a_record(), dict(zip(held_out, (24.5, 25.004), strict=True))
        )
    lines = results.replaced(records).splitlines()
    assert "| x4, 20 of `train_free` | 25.10 (+0.50) | 25.20 (+0.50) |" in lines[-2]
    assert "| x4, 10 of `train` | 25.10 (+0.00) |" in lines[-1]


def test_a_card_says_by_which_terms_the_photographs_may_be_used(results):
    record = a_record()
    record |= {"machine": "a computer", "photographs": {"photographs": 3, "copyleft": 1}}
    record["photographs"] |= {
        "unknown": 0,
        "licences": {
            "CC0-1.0": {"copyleft": False, "photographs": 2},
            "CC-BY-SA-4.0": {"copyleft": True, "photographs": 1},
        },
    }
    rows = results.card_rows("x4", record, presets())
    said = "terms of 3 training images: CC0-1.0 2, CC-BY-SA-4.0 1; copyleft: 1"
    assert ["photographs", said] in rows


def test_a_choice_is_named_by_what_it_changes_also_beside_records_from_before_that_option(results):
    records = {f"choice-{number}": a_record() for number in (1, 2)} | {
        "choice-10-affine": a_record(tap_affine=True)
    }
    del records["choice-1"]["options"]["tap_affine"]
    header, _, *rows = results.choices({**records, "presets": presets()}).splitlines()
    assert header.startswith("| options | depth 1 |")
    assert [row.split(" | ")[0] for row in rows[:3]] == [
        *["| the usual options (below)"] * 2,
        "| `--tap-affine`",
    ]


def test_degradations_stand_beside_bicubic_of_the_same_input(results):
    records = {
        "bd-x3": a_record(degradation="BD", steps=1500),
        "dn-x3": a_record(degradation="DN", steps=1500),
        "published": {
            "scores": [
                printed_bicubic(3, 28.78, 26.38, 26.33, degradation="BD"),
                printed_bicubic(3, 24.01, 22.87, 22.92, degradation="DN"),
                *(
                    printed("ASRN", 3, {"Set5": psnr}, table=2, blocks=5, degradation=kind)
                    for kind, psnr in (("BD", 33.92), ("DN", 28.16))
                ),
            ]
        },
    }
    for row in records["dn-x3"]["sets"]:
        row["psnr"] -= 4 * (row["depth"] is None)
    page = results.degradations(records)
    assert "| BD: PSNR (dB) | 30.00 | 30.01 | 30.02 | 30.03 | 30.04 | 30.05 |" in page
    assert "| DN: PSNR (dB) | 26.00 | 30.01 |" in page
    assert "| DN: gain (dB) |  | +4.01 | +4.02 | +4.03 | +4.04 | +4.05 |" in page
    assert page.endswith(
        "1,500 steps, batch 16, patches of 48 each. Published PSNR of bicubic interpolation: "
        "BD 28.78, DN 24.01; of the paper's ASRN, trained in full: BD 33.92, DN 28.16 "
        "([Table 2](paper.md#blur-and-noise-table-2))."
    )


def test_baselines_stand_beside_published_ones(results):
    row = {
        "benchmark": {"psnr": 24.0648, "ssim": 0.5386},
        "as_published": {"psnr": 24.006, "ssim": 0.53689},
    }
    records = {
        "bicubic": {
            "baselines": [
                {"mode": "DN x3", "data": "Set5", **row},
                {"mode": "x2", "data": "Set5", **row},
            ]
        },
        "published": {
            "scores": [
                printed_bicubic(3, 24.01, 22.87, 22.92, degradation="DN"),
                printed_bicubic(2, 33.66, 30.24, 29.56),
            ]
        },
    }
    page = results.baselines(records)
    assert "| DN x3, Set5 | 24.01 / 0.5000 | 24.065 / 0.5386 | 24.006 / 0.5369 |" in page
    assert "| BI x2, Set5 | 33.66 / 0.5000 |" in page


def test_ways_of_making_noise_have_a_column_for_each_set(results):
    def tried(way: str, data: str, psnr: float, deviation: float | None) -> dict[str, Any]:
        return {"way": way, "data": data, "psnr": psnr, "ssim": 0.5, "psnr_deviation": deviation}

    rows = [
        *(tried("NumPy", data, 24.0, 0.0291) for data in ("Set5", "Set14", "B100")),
        *(tried("MATLAB", data, 24.01, None) for data in ("Set5", "Set14", "B100")),
    ]
    published = {"scores": [printed_bicubic(3, 24.01, 22.87, 22.92, degradation="DN")]}
    page = results.noise({"bicubic": {"seeds": 3, "tried": rows}, "published": published})
    cell = "24.000 / 0.5000 (± 0.029)"
    assert f"| NumPy | {cell} | {cell} | {cell} |" in page
    assert "| MATLAB | 24.010 / 0.5000 | 24.010 / 0.5000 | 24.010 / 0.5000 |" in page
    assert "deviation of 3 seeds" in page


def test_regret_is_elastic_minus_alone_by_the_means_of_the_seeds(results):
    records = {
        f"x4-alone-{depth}": a_record(num_blocks=depth, variant="ss") for depth in range(1, 5)
    }
    records |= {
        "x4-ss": a_record(variant="ss"),
        "x4-full": a_record(),
        "x4-dsl-seed1": a_record(1, variant="dsl"),
    }
    records |= {"x4-normalised": a_record(steps=9), "x4-skipless": a_record(skip="none")}
    records |= {"x4-rising": a_record(tap_weights="rising", tap_affine=True)}
    records |= {
        "x4-rising-dsl": a_record(
            1, variant="dsl", tap_weights="rising", rising_from=0.5, tap_affine=True
        )
    }
    records |= {"x4-dsl-nine-seed1": a_record(1, variant="dsl", tap_weights=0.9)}
    records = {"x4-full-seed1": a_record(1), "x4-ss-seed1": a_record(1, variant="ss"), **records}
    for row in records["x4-full"]["sets"]:
        row["psnr"] -= 0.5 * (row["data"] == "B100")
    rows = [
        printed("ASRN (SS)", 4, {"Set5": 28.22}, table=4, blocks=1),
        printed("ASRN", 4, {"Set5": 30.79}, table=5, blocks=1),
    ]
    records["published"] = {"scores": rows}
    page = results.comparison(records)
    assert "| the paper's SS, cut short | (28.22) |  |" in page
    assert "| the paper's DSL + PSD | (30.79) |  |" in page
    assert "| SS, a network for each depth | 30.01 | 30.02 | 30.03 | 30.04 | 30.15 |" in page
    assert "| SS, cut short, seed 1 | 30.21 |" in page
    assert "| DSL + PSD, seed 0 | 30.01 |" in page
    assert "| DSL + PSD, seed 1 | 30.21 |" in page.partition("| DSL + PSD, seed 0 |")[2]
    assert "| DSL + PSD: regret | +0.10 | +0.10 | +0.10 | +0.10 | +0.00 |" in page
    assert (
        "| DSL + PSD: regret | -0.15 | -0.15 | -0.15 | -0.15 | -0.25 |"
        in page.partition("| B100")[2]
    )
    assert "| DSL: regret | +0.20 | +0.20 | +0.20 | +0.20 | +0.10 |" in page
    assert "| DSL + PSD, equal weights: regret |" in page
    assert "| DSL + PSD, rising, affine: regret | +0.00 |" in page
    assert "| DSL, rising from 1/2, affine: regret | +0.20 |" in page
    assert "| DSL, 9/10 on the deepest: regret | +0.20 |" in page
    assert page.count("| DSL, seed 1 |") == 3  # once a set: a longer name is another kind's
    assert "| DSL + PSD, no bicubic skip: regret |" in page
    assert "cut short: regret" not in page
    assert (
        "60,000 steps, batch 16, patches of 48 or 9 steps, batch 16, patches of 48 "
        "for each network." in page
    )
