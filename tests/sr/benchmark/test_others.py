"""Images of other methods: found under the names that people give them, scored as networks are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elasticnet.cli import main
from elasticnet.sr import asrn
from elasticnet.sr.benchmark import (
    FULL,
    KeptScores,
    benchmark,
    bicubic,
    find_others,
    load_sets,
)
from elasticnet.sr.benchmark.report import markdown_table, write_figures
from elasticnet.sr.benchmark.scores import score_image
from elasticnet.sr.data.pair_set import PairSet

Sets = list[tuple[str, PairSet]]


@pytest.fixture
def sets(tmp_path: Path) -> Sets:
    """A flat data set "photos" of two images, at x2."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, width in (("baby", 48), ("bird_1", 40)):
        pixels = np.random.default_rng(width).integers(0, 256, (40, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return load_sets([folder], [2], progress=False, cache=False)


def save_made(folder: Path, sets: Sets, *names: str, noise: int = 1) -> list[np.ndarray]:
    """Save what a method could have made of the images, under these names; return it."""
    ((_, pairs),) = sets
    folder.mkdir(parents=True, exist_ok=True)
    made: list[np.ndarray] = []
    for index, name in enumerate(names):
        pixels = bicubic(pairs.lr(index), 2)
        pixels = np.clip(pixels.astype(int) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)
        made.append(pixels)
    return made


@pytest.mark.parametrize(
    ("inside", "names"),
    [
        (".", ("baby.png", "bird_1.png")),
        ("photos", ("baby_x2.png", "bird_1_x2.png")),
        ("x2", ("babyx2.png", "bird_1x2.png")),
        ("X2/photos", ("baby_RCAN_x2.png", "bird_1_rcan_x2.png")),
        ("photos/x2", ("baby_SRF_2_RCAN.bmp", "bird_1_SRF_2_SR.bmp")),
    ],
)
def test_images_are_found_under_the_names_that_people_give_them(
    sets: Sets, tmp_path: Path, inside: str, names: tuple[str, str]
) -> None:
    save_made(tmp_path / "RCAN" / inside, sets, *names)
    found = find_others("RCAN", tmp_path / "RCAN", sets)
    assert {key: made.path.name for key, made in found.images.items()} == {
        ("photos", 2, "baby"): names[0],
        ("photos", 2, "bird_1"): names[1],
    }
    assert found.scales() == [2]
    assert found.has("photos", 2)
    assert not found.has("photos", 3)


def test_the_folder_that_says_most_of_a_set_comes_first(sets: Sets, tmp_path: Path) -> None:
    save_made(tmp_path / "RCAN", sets, "baby.png", "bird_1.png")
    save_made(tmp_path / "RCAN" / "photos" / "x2", sets, "baby.png", "bird_1.png")
    found = find_others("RCAN", tmp_path / "RCAN", sets)
    assert {made.path.parent.name for made in found.images.values()} == {"x2"}


def test_the_name_of_another_image_does_not_fit(sets: Sets, tmp_path: Path) -> None:
    save_made(tmp_path / "RCAN", sets, "baby.png", "bird_12.png")
    with pytest.raises(ValueError, match=r"lacks 1 of the 2 images of photos x2 \(bird_1\)"):
        find_others("RCAN", tmp_path / "RCAN", sets)


def test_a_set_without_images_is_left_out_and_named(
    sets: Sets, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_made(tmp_path / "RCAN" / "photos", sets, "baby.png", "bird_1.png")
    ((_, pairs),) = sets
    found = find_others("RCAN", tmp_path / "RCAN", [("B100", pairs), *sets])
    assert found.has("photos", 2)
    assert not found.has("B100", 2)
    assert "has no image of B100 x2: not scored there" in caplog.text


def test_a_folder_without_any_image_of_the_sets_is_refused(sets: Sets, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match=r"no image of photos x2: expected files such as baby_x2\.png there or in"
    ):
        find_others("RCAN", tmp_path / "empty", sets)
    with pytest.raises(NotADirectoryError, match=r"RCAN: .*nothing is not a folder of images"):
        find_others("RCAN", tmp_path / "nothing", sets)


def test_two_files_that_could_be_one_image_are_refused(sets: Sets, tmp_path: Path) -> None:
    save_made(tmp_path / "RCAN", sets, "baby.png", "bird_1.png")
    save_made(tmp_path / "RCAN", sets, "baby_x2.png")
    with pytest.raises(
        ValueError, match=r"baby\.png and baby_x2\.png could both be baby of photos"
    ):
        find_others("RCAN", tmp_path / "RCAN", sets)


def test_an_image_of_another_size_is_refused_with_both_sizes(sets: Sets, tmp_path: Path) -> None:
    save_made(tmp_path / "RCAN", sets, "baby.png", "bird_1.png")
    Image.new("RGB", (44, 40)).save(tmp_path / "RCAN" / "bird_1.png")
    with pytest.raises(ValueError, match="has 44x40 pixels: bird_1 of photos x2 has 40x40"):
        find_others("RCAN", tmp_path / "RCAN", sets)


def test_images_of_others_are_scored_as_those_of_networks(sets: Sets, tmp_path: Path) -> None:
    made = save_made(tmp_path / "RCAN", sets, "baby.png", "bird_1.png")
    found = find_others("RCAN", tmp_path / "RCAN", sets)
    net = asrn(2, num_blocks=2, channels=8)

    result = benchmark([("net", net)], sets, others=[found], costs=False)

    rows = {(row.network, row.depth): row for row in result.rows}
    assert list(rows) == [("bicubic", None), ("RCAN", FULL), ("net", 1), ("net", 2)]
    ((_, pairs),) = sets
    scores = [score_image(image, pairs.hr(index), 2) for index, image in enumerate(made)]
    assert rows["RCAN", FULL].psnr == np.mean([each.psnr for each in scores])
    assert rows["RCAN", FULL].ssim == np.mean([each.ssim for each in scores])
    assert rows["RCAN", FULL].parameters is None
    assert "| RCAN | full |" in markdown_table(result)
    write_figures(tmp_path, result, [("net", net)], sets, others=[found])
    assert (tmp_path / "photos_x2_crops.png").stat().st_size > 0


def test_a_method_has_an_empty_cell_for_a_set_that_it_lacks(sets: Sets, tmp_path: Path) -> None:
    save_made(tmp_path / "RCAN" / "photos", sets, "baby.png", "bird_1.png")
    ((_, pairs),) = sets
    both = [("B100", pairs), *sets]
    found = find_others("RCAN", tmp_path / "RCAN", both)
    result = benchmark([], both, others=[found], costs=False)
    assert [(row.data, row.network) for row in result.rows] == [
        ("B100", "bicubic"),
        ("photos", "bicubic"),
        ("photos", "RCAN"),
    ]
    (line,) = [line for line in markdown_table(result).splitlines() if line.startswith("| full")]
    assert line.startswith("| full |  |  |  | ")


def test_two_contestants_of_one_name_are_refused(sets: Sets, tmp_path: Path) -> None:
    save_made(tmp_path / "RCAN", sets, "baby.png", "bird_1.png")
    found = find_others("net", tmp_path / "RCAN", sets)
    with pytest.raises(ValueError, match="network or method 'net' stands twice at scale 2"):
        benchmark([("net", asrn(2, num_blocks=1, channels=8))], sets, others=[found], costs=False)


def test_what_was_scored_is_kept_until_the_image_changes(
    sets: Sets, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def psnr_of_a_run() -> float:
        found = find_others("RCAN", tmp_path / "RCAN", sets)
        with KeptScores(tmp_path / "out") as kept:
            result = benchmark([], sets, others=[found], costs=False, kept=kept)
        return result.rows[-1].psnr

    save_made(tmp_path / "RCAN", sets, "baby.png", "bird_1.png")
    first = psnr_of_a_run()
    assert psnr_of_a_run() == first
    assert "2 of 2 images were scored by an earlier run" in caplog.text
    save_made(tmp_path / "RCAN", sets, "baby.png", noise=9)
    assert psnr_of_a_run() != first
    assert "scored anew: RCAN, 1 images (photos x2 baby): another image" in caplog.text


def test_the_command_scores_images_of_others_beside_bicubic(
    sets: Sets, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_made(tmp_path / "results", sets, "baby_RCAN.png", "bird_1_RCAN.png")
    options = ["--data", str(tmp_path / "photos"), "--scale", "2", "--no-cache"]
    given = f"RCAN={tmp_path / 'results'}"

    assert main(["benchmark", *options, "--others", given]) == 0

    said = capsys.readouterr().out
    assert "RCAN, BI; photos (2 images)" in said
    assert "|    full |" in said


def test_the_command_names_what_it_expects_of_others(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["benchmark", "--data", ".", "--others", "results/RCAN"])
    said = " ".join(capsys.readouterr().err.split())
    assert "'results/RCAN': expected a name and a folder, such as RCAN=results/RCAN" in said


def test_published_images_of_rcan_have_its_published_score(data_dir: Path) -> None:
    published = data_dir / "golden" / "rcan_set5_x2" / "SR"
    sets = load_sets([data_dir / "benchmark" / "Set5"], [2], progress=False, cache=False)
    result = benchmark([], sets, others=[find_others("RCAN", published, sets)], costs=False)
    row = result.rows[-1]
    assert (round(row.psnr, 2), round(row.ssim, 4)) == (38.27, 0.9614)
