"""LR images that lie beside HR images are used, or refused; never passed over without a word."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_images import noise, put, put_pairs
from PIL import Image

from elasticnet.sr.data import find_pairs, load_pairs
from elasticnet.sr.data.folder_layouts import find_files, find_layout
from elasticnet.sr.data.lr_folders import looks_like_hr, looks_like_lr
from elasticnet.sr.data.splits import training_pairs


def lr_names(root: Path, scale: int = 4, **options: str) -> list[str | None]:
    """The LR file of each pair, relative to the data set."""
    pairs = find_pairs(root, scale, **options)
    return [pair.lr and pair.lr.relative_to(root).as_posix() for pair in pairs]


# --- found by their names


@pytest.mark.parametrize(
    ("hr", "lr", "ending"),
    [
        ("HR", "LR", ""),
        ("hr", "lr", ""),
        ("Hr", "Lr", "x4"),
        ("HR", "LR_x4", "x4"),
        ("HR", "LR_X4", "_x4"),
        ("HR", "LR/X4", "x4"),
        ("HR", "LR/4", ""),
        ("HR", "LR_bicubic/X4", "x4"),
        ("HR", "lr_bicubic/x4", ""),
        ("gt", "lq", ""),
        ("GT", "LQ", ""),
        ("gt", "lq_x4", ""),
        ("hq", "lq", ""),
        ("GTmod12", "LRbicx4", ""),
        ("GTmod4", "LRbicx4", ""),
        ("hr_images", "lr_images", ""),
        ("trainH", "trainL", ""),
        ("H", "L", ""),
        ("train_HR", "train_LR", ""),
        ("Flickr2K_HR", "Flickr2K_LR_bicubic/X4", "x4"),
        ("DIV2K_train_HR_sub", "DIV2K_train_LR_bicubic/X4_sub", ""),
        ("DIV2K_train_HR", "DIV2K_train_LR_bicubic/X4", "x4"),
        (".", "lq", ""),
        ("HR", "lowres_x4", ""),
        ("highres", "low-res", ""),
        ("high_resolution", "low_resolution", ""),
        ("groundtruth", "LR", ""),
        ("HR", "X4", ""),
        ("HR", "x4", ""),
        ("HR", "LR4x", ""),
        ("HR", "4xLR", ""),
        ("HR", "LR_4x", ""),
        ("HR_4x", "LR_4x", ""),
        ("HR", "LRbic4x", ""),
    ],
)
def test_lr_images_under_usual_names_are_read(
    tmp_path: Path, hr: str, lr: str, ending: str
) -> None:
    root = tmp_path / "set"
    put_pairs(root, hr, lr, ending)
    expected = [f"{lr}/0001{ending}.png", f"{lr}/0002{ending}.png"]
    assert lr_names(root) == expected
    pairs = load_pairs(root, 4, progress=False)
    assert pairs.lr_source == f"from files ({lr})"
    np.testing.assert_array_equal(pairs.lr(0), noise(16, 16, seed=11))
    np.testing.assert_array_equal(pairs.hr(0), noise(64, 64, seed=1))


@pytest.mark.parametrize("name", ["HR", "hr", "GT", "GTmod12", "trainH", "DIV2K_train_HR_sub"])
def test_names_of_hr_folders(name: str) -> None:
    assert looks_like_hr(name)
    assert not looks_like_lr(name)


@pytest.mark.parametrize(
    "name", ["photos", "Set5", "three", "original", "light", "lamp", "gtk", "slow_reset"]
)
def test_names_of_other_folders(name: str) -> None:
    assert not looks_like_hr(name)
    assert not looks_like_lr(name)


@pytest.mark.parametrize(
    ("degradation", "folder"), [("BD", "LRBD"), ("DN", "LR_DN"), ("DN", "LRDN")]
)
def test_lr_files_of_the_asked_degradation_are_read(
    tmp_path: Path, degradation: str, folder: str
) -> None:
    put_pairs(tmp_path / "set", "HR", f"{folder}/X4")
    put_pairs(tmp_path / "set", "HR", "LRBI/X4")
    root = tmp_path / "set"
    assert lr_names(root, degradation=degradation)[0] == f"{folder}/X4/0001.png"
    assert lr_names(root)[0] == "LRBI/X4/0001.png"


@pytest.mark.parametrize("ending", ["", "_hazy"])
def test_hazy_images_beside_clear_ones_are_read_where_haze_is_asked_for(
    tmp_path: Path, ending: str
) -> None:
    for name in ("01", "02"):
        put(tmp_path / f"GT/{name}_GT.png", 12, 16)
        put(tmp_path / f"hazy/{name}{ending}.png", 12, 16)
    assert lr_names(tmp_path, 1, degradation="HAZE")[0] == f"hazy/01{ending}.png"
    assert lr_names(tmp_path, 1) == [None, None]
    with pytest.raises(ValueError, match="hazy holds LR images by its name"):
        find_pairs(tmp_path / "hazy", 1)


def test_with_a_sigma_of_its_own_lr_is_made(tmp_path: Path) -> None:
    put_pairs(tmp_path / "set", "HR", "LR_DN")
    from_files = load_pairs(tmp_path / "set", 4, degradation="DN", progress=False)
    made = load_pairs(tmp_path / "set", 4, degradation="DN", noise_sigma=9, progress=False)
    assert from_files.lr_source == "from files (LR_DN)"
    assert made.lr_source == "made (DN)"
    assert (made.lr(0) != from_files.lr(0)).any()


def test_lr_files_that_a_given_sigma_leaves_out_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put_pairs(tmp_path, "HR", "LR_DN")
    load_pairs(tmp_path, 4, degradation="DN", noise_sigma=9, progress=False)
    expected = "LR from files (LR_DN): not used, as noise_sigma 9 was given; LR images are made"
    assert expected in caplog.messages


@pytest.mark.parametrize("degradation", ["BD", "DN"])
def test_unlabelled_lr_images_are_named_where_others_are_made(
    tmp_path: Path, degradation: str
) -> None:
    put_pairs(tmp_path, "HR", "LR_x4")
    found = find_files(tmp_path, 4, degradation=degradation)
    assert found.lr_source == f"made ({degradation})"
    (note,) = found.notes
    assert note.startswith(f"{tmp_path / 'LR_x4'}: not used, as nothing says that")
    assert f"were made by {degradation}; to use them, give them by --data-lr" in note


def test_lr_images_of_a_list_are_named_where_others_are_made(tmp_path: Path) -> None:
    put(tmp_path / "gt/a.png")
    put(tmp_path / "lq/a.png")
    (tmp_path / "meta_info.txt").write_text("gt/a.png, lq/a.png\n")
    (note,) = find_files(tmp_path, 4, degradation="BD").notes
    assert note.startswith(f"the LR files that belong to the HR files of {tmp_path}: not used")


@pytest.mark.parametrize("folder", ["LR_bicubic/X4", "LR_x2", "LR_DN"])
def test_nothing_is_said_of_lr_images_whose_names_say_that_they_are_others(
    tmp_path: Path, folder: str
) -> None:
    put_pairs(tmp_path, "HR", folder)
    assert find_files(tmp_path, 4, degradation="BD").notes == []


@pytest.mark.parametrize("folder", ["LR2x", "2xLR", "LR_x2", "LRx2", "lr2"])
def test_folders_of_another_scale_are_passed_over(tmp_path: Path, folder: str) -> None:
    put_pairs(tmp_path, "HR", folder)
    assert lr_names(tmp_path) == [None, None]


def test_lr_files_of_another_scale_are_passed_over(tmp_path: Path) -> None:
    for folder, ending in (("LR_x4", ""), ("LR_bicubic/X8", "")):
        put_pairs(tmp_path / folder.replace("/", "-"), "HR", folder, ending)
    put_pairs(tmp_path / "unnamed", "HR", "LR")  # the sizes say that they are of scale 4
    put_pairs(tmp_path / "files", "HR", "LR", "x4")
    for root in tmp_path.iterdir():
        assert lr_names(root, scale=2) == [None, None]
        assert find_files(root, 2).lr_source == "made (BI)"


@pytest.mark.parametrize("name", ["0001", "0002"])
def test_one_lr_image_of_another_scale_is_left_out_by_its_name(tmp_path: Path, name: str) -> None:
    """Whether it is the first one or not: the others are not made anew for it."""
    put_pairs(tmp_path, "HR", "LR")
    put(tmp_path / f"LR/{name}.png", 32, 32)
    with pytest.warns(UserWarning, match="left out 1 of 2 images"):
        pairs = load_pairs(tmp_path, 4, progress=False)
    assert pairs.lr_source == "from files (LR)"
    assert pairs.skipped == [(name, "LR of 32x32 pixels does not fit HR of 64x64 at scale 4")]


def test_realsr(tmp_path: Path) -> None:
    for number in ("001", "002"):
        put(tmp_path / f"Canon_{number}_HR.png", 64, 64)
        put(tmp_path / f"Canon_{number}_LR4.png", 16, 16)
    assert find_layout(tmp_path) == "realsr"
    assert lr_names(tmp_path) == ["Canon_001_LR4.png", "Canon_002_LR4.png"]
    assert lr_names(tmp_path, scale=2) == [None, None]
    (tmp_path / "Canon_002_LR4.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 LR images are missing .*: those of Canon_002"):
        find_pairs(tmp_path, 4)


def test_realsr_with_a_folder_for_each_scale(tmp_path: Path) -> None:
    put(tmp_path / "4/Canon_001_HR.png", 64, 64)
    put(tmp_path / "4/Canon_001_LR4.png", 16, 16)
    assert find_layout(tmp_path) == "realsr"
    assert lr_names(tmp_path) == ["4/Canon_001_LR4.png"]
    with pytest.raises(ValueError, match=r"looked in .*/2, there is no such folder"):
        find_pairs(tmp_path, 2)


def test_the_list_of_basicsr_chooses_the_images(tmp_path: Path) -> None:
    put_pairs(tmp_path, "gt", "lq", "x4", count=3)
    meta = tmp_path / "meta_info.txt"
    meta.write_text("0001.png (64,64,3) 1\n0003.png (64,64,3) 1\n")
    assert lr_names(tmp_path) == ["lq/0001x4.png", "lq/0003x4.png"]
    meta.write_text("0001.png (64,64,3) 1\n0007.png (64,64,3) 1\n")
    with pytest.raises(ValueError, match=r"1 of 2 images of the list .* are missing: 0007\.png"):
        find_pairs(tmp_path, 4)


def test_the_list_of_real_esrgan_pairs_the_images(tmp_path: Path) -> None:
    put_pairs(tmp_path, "high", "other")
    (tmp_path / "meta_info.txt").write_text("high/0001.png, other/0002.png\n")
    assert find_layout(tmp_path) == "listed"
    assert lr_names(tmp_path) == ["other/0002.png"]
    (tmp_path / "other/0002.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 1 LR images are missing"):
        find_pairs(tmp_path, 4)


def test_a_number_is_not_another_number_with_the_scale_behind_it(tmp_path: Path) -> None:
    for name in ("1", "14", "1x", "a_4", "a"):
        put(tmp_path / f"HR/{name}.png", 64, 64)
        put(tmp_path / f"LR/{name}.png", 16, 16)
    assert lr_names(tmp_path) == [f"LR/{name}.png" for name in ("1", "14", "1x", "a", "a_4")]


def test_upper_and_lower_case_are_told_apart_where_both_are_there(tmp_path: Path) -> None:
    for name in ("A", "a"):
        put(tmp_path / f"HR/{name}.png", 64, 64)
        put(tmp_path / f"LR/{name}x4.png", 16, 16)
    assert lr_names(tmp_path) == ["LR/Ax4.png", "LR/ax4.png"]


def test_an_lr_file_of_two_hr_images_is_refused(tmp_path: Path) -> None:
    for title in ("ARMS", "Belmondo"):
        put(tmp_path / f"images/{title}/000.png", 64, 64)
    put(tmp_path / "LR/000.png", 16, 16)
    with pytest.raises(ValueError, match=r"LR/000\.png belongs to two HR images .*ARMS/000 and"):
        find_pairs(tmp_path, 4)


@pytest.mark.parametrize(
    ("images", "folder"),
    [
        (["HR/a.png", "LR/a.png", "LR/a.bmp"], "LR"),
        (["a_HR.png", "a_HR.bmp", "a_LR4.png"], "."),
        (["a_HR.png", "a_LR4.png", "a_LR4.bmp"], "."),
        (["image_SRF_4/a_SRF_4_HR.png", "image_SRF_4/a_SRF_4_HR.bmp"], "image_SRF_4"),
        (
            [f"image_SRF_4/a_SRF_4_{name}" for name in ("HR.png", "LR.png", "LR.bmp")],
            "image_SRF_4",
        ),
    ],
)
def test_two_files_that_are_one_image_by_their_names_are_refused(
    tmp_path: Path, images: list[str], folder: str
) -> None:
    for image in images:
        side = 64 if "HR" in image else 16
        put(tmp_path / image, side, side)
    expected = rf"{tmp_path / folder} holds .*\.bmp and .*\.png, which are one image"
    with pytest.raises(ValueError, match=expected):
        find_pairs(tmp_path, 4)


# --- given by the user


def test_a_folder_of_lr_images_that_is_given(tmp_path: Path) -> None:
    put_pairs(tmp_path, "photos", "small", "_x4")
    found = find_files(tmp_path / "photos", 4, lr_root=tmp_path / "small")
    assert [pair.lr for pair in found.pairs] == sorted((tmp_path / "small").iterdir())
    assert found.lr_source == "from files (../small)"
    with pytest.raises(ValueError, match=r"the LR images in .*small are not of scale 2"):
        find_pairs(tmp_path / "photos", 2, lr_root=tmp_path / "small")
    with pytest.raises(FileNotFoundError, match=r"LR images .*nowhere does not exist"):
        find_pairs(tmp_path / "photos", 4, lr_root=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"--data-lr .*small: give the images"):
        training_pairs(None, None, 4, lr_root=tmp_path / "small")


def test_given_lr_images_are_read_whatever_the_degradation_is(tmp_path: Path) -> None:
    put_pairs(tmp_path, "clean", "noisy")  # as for the task of denoising, which has a sigma
    noisy = load_pairs(
        tmp_path / "clean",
        4,
        degradation="DN",
        noise_sigma=25,
        lr_root=tmp_path / "noisy",
        progress=False,
    )
    assert noisy.lr_source == "from files (../noisy)"
    np.testing.assert_array_equal(noisy.lr(0), noise(16, 16, seed=11))


def test_a_folder_of_hr_images_that_is_read_alone_is_noted(tmp_path: Path) -> None:
    put_pairs(tmp_path, "HR", "LR")
    (note,) = find_files(tmp_path / "HR", 4).notes
    assert "LR images beside it are not used: LR; to use them, give the folder above" in note
    assert find_files(tmp_path / "HR", 4, lr_root=tmp_path / "LR").notes == []


@pytest.mark.parametrize(
    ("hr", "lr"),
    [
        ("HR/a_HR.png", "LR/a_LR.png"),
        ("HR/a_HR_x4.png", "LR_bicubic/X4/a_LRBI_x4.png"),
        ("train_HR/a_x1.png", "train_LR/a_x4.png"),
        ("HR/a.png", "X4/a.png"),
        ("HR/a.png", "LR/a.jpg"),
        ("HR/a.PNG", "lr/A_lr4.bmp"),
    ],
)
def test_names_of_lr_files(tmp_path: Path, hr: str, lr: str) -> None:
    put(tmp_path / hr, 64, 64)
    put(tmp_path / lr, 16, 16)
    assert lr_names(tmp_path) == [lr]


def test_hidden_folders_are_passed_over(tmp_path: Path) -> None:
    put(tmp_path / "HR/a.png", 64, 64)
    (tmp_path / ".LR").mkdir()
    assert lr_names(tmp_path) == [None]


@pytest.fixture
def tracks(tmp_path: Path) -> Path:
    """DIV2K's tracks, one training image."""
    root = tmp_path / "DIV2K"
    put(root / "DIV2K_train_HR/0001.png", 64, 64)
    for folder in ("bicubic/X4/0001x4", "unknown/X4/0001x4", "mild/0001x4m", "difficult/0001x4d"):
        put(root / f"DIV2K_train_LR_{folder}.png", 16, 16)
    for number in range(1, 5):
        put(root / f"DIV2K_train_LR_wild/0001x4w{number}.png", 16, 16)
    return root


def test_tracks(tracks: Path) -> None:
    folder = "DIV2K_train_LR_"
    assert lr_names(tracks) == lr_names(tracks, track="bicubic")
    assert lr_names(tracks) == [f"{folder}bicubic/X4/0001x4.png"]
    assert lr_names(tracks, track="unknown") == [f"{folder}unknown/X4/0001x4.png"]
    assert lr_names(tracks, track="mild") == [f"{folder}mild/0001x4m.png"]
    assert lr_names(tracks, track="difficult") == [f"{folder}difficult/0001x4d.png"]
    wild = [f"{folder}wild/0001x4w{number}.png" for number in range(1, 5)]
    assert lr_names(tracks, track="wild") == wild
    names = [f"0001x4w{number}" for number in range(1, 5)]
    assert load_pairs(tracks, 4, track="wild", progress=False).names == names


def test_tracks_that_are_not_there(tracks: Path) -> None:
    with pytest.raises(ValueError, match=r"track 'mild': no LR images of it at scale 2 .*LR_wild"):
        find_pairs(tracks, 2, track="mild")
    with pytest.raises(ValueError, match=r"track 'x8' is of scale 8, and scale 4 was asked for"):
        find_pairs(tracks, 4, track="x8")
    with pytest.raises(ValueError, match=r"degradation 'DN' beside track 'mild'"):
        find_pairs(tracks, 4, degradation="DN", track="mild")
    with pytest.raises(ValueError, match=r"track 'tame': expected one of bicubic, unknown"):
        find_pairs(tracks, 4, track="tame")


def test_lr_images_of_one_hr_image_are_held_out_together(tracks: Path) -> None:
    for number in (2, 3):
        put(tracks / f"DIV2K_train_HR/000{number}.png", 64, 64)
        for variant in range(1, 5):
            put(tracks / f"DIV2K_train_LR_wild/000{number}x4w{variant}.png", 16, 16)
    training, valid = training_pairs([tracks], None, 4, num_valid=1, progress=False, track="wild")
    assert valid.names == [f"0001x4w{number}" for number in range(1, 5)]
    assert len(training) == 8


# --- refused


@pytest.mark.parametrize("name", ["LR_jpeg40", "lq_real", "DIV2K_LR_new", "LRblurry"])
def test_lr_images_that_would_not_be_used_are_refused(tmp_path: Path, name: str) -> None:
    put_pairs(tmp_path, "HR", name)
    with pytest.raises(ValueError, match=rf"{name} in .* looks like LR images, and would not be"):
        find_pairs(tmp_path, 4)
    given = find_files(tmp_path / "HR", 4, lr_root=tmp_path / name)
    assert given.lr_source == f"from files (../{name})"


def test_two_folders_of_lr_images_are_refused(tmp_path: Path) -> None:
    put_pairs(tmp_path, "HR", "LR")
    put_pairs(tmp_path, "HR", "LR_x4")
    with pytest.raises(ValueError, match=r"several folders of LR images .*: LR, LR_x4; give"):
        find_pairs(tmp_path, 4)


@pytest.mark.parametrize(
    ("hr", "lr"),
    [
        ("1.png", "1x4.png"),
        ("1.png", "1_x2.png"),
        ("0001.png", "0001x4m.png"),
        ("1.png", "1_LR.png"),
        ("1_HR.png", "1_x4.png"),
        ("1_GT.png", "1_lq.png"),
        ("a_x1.png", "a_x4.png"),
    ],
)
def test_hr_and_lr_images_in_one_folder_are_not_all_taken_for_hr(
    tmp_path: Path, hr: str, lr: str
) -> None:
    put(tmp_path / "set" / hr, 64, 64)
    put(tmp_path / "set" / lr, 16, 16)
    with pytest.raises(ValueError, match=rf"holds {hr} and {lr}, HR and LR images by their names"):
        find_pairs(tmp_path / "set", 4)


def test_names_that_end_like_those_of_lr_images_may_stand_alone(tmp_path: Path) -> None:
    put(tmp_path / "set/renault-x4.png", 64, 64)
    put(tmp_path / "set/x2.png", 64, 64)
    assert len(find_pairs(tmp_path / "set", 4)) == 2


def test_lr_images_without_an_hr_image_are_counted(tmp_path: Path) -> None:
    put_pairs(tmp_path, "HR", "LR", "x4")
    put(tmp_path / "LR/0001x2.png", 32, 32)
    assert find_files(tmp_path, 4).notes == []
    put(tmp_path / "LR/0003x4.png", 16, 16)
    (note,) = find_files(tmp_path, 4).notes
    assert note == f"1 LR images in {tmp_path}/LR have no HR image: 0003x4.png"


def test_images_beside_the_folder_of_hr_images_are_counted(tmp_path: Path) -> None:
    put(tmp_path / "HR/1.png", 64, 64)
    put(tmp_path / "2.png", 64, 64)
    (note,) = find_files(tmp_path, 4).notes
    assert note.startswith(f"1 images that lie in {tmp_path} itself are not used")


def test_a_list_that_is_no_text_is_named(tmp_path: Path) -> None:
    put(tmp_path / "1.png", 64, 64)
    (tmp_path / "meta_info.txt").write_bytes(b"\xff\xfe1")
    with pytest.raises(ValueError, match=r"meta_info\.txt is no list of images in UTF-8"):
        find_pairs(tmp_path, 4)


def test_two_folders_of_hr_images_are_refused(tmp_path: Path) -> None:
    for folder in ("train_HR", "test_HR"):
        put(tmp_path / folder / "a.png")
    with pytest.raises(ValueError, match=r"several folders of HR images .*: test_HR, train_HR"):
        find_pairs(tmp_path, 4)


@pytest.mark.parametrize(
    "folder",
    ["lq", "LR", "LR_x4", "LRbicx4", "DIV2K_train_LR_mild", "DIV2K_train_LR_bicubic/X4", "trainL"],
)
def test_lr_images_alone_are_not_taken_for_hr(tmp_path: Path, folder: str) -> None:
    put(tmp_path / folder / "a.png")
    with pytest.raises(ValueError, match=rf"{folder} holds LR images by its name"):
        find_pairs(tmp_path / folder, 2)


def test_files_with_the_names_of_lr_images_are_not_taken_for_hr(tmp_path: Path) -> None:
    for name in ("0001x4m.png", "0002x4m.png"):
        put(tmp_path / name)
    with pytest.raises(ValueError, match=r"holds LR images by its name, or by the names of"):
        find_pairs(tmp_path, 2)


@pytest.mark.parametrize(("hr", "lr"), [("HR", "LR"), ("gt", "lq"), ("HR", "LR_bicubic/X4")])
def test_missing_lr_images_are_counted(tmp_path: Path, hr: str, lr: str) -> None:
    put_pairs(tmp_path, hr, lr, count=8)
    for number in range(2, 9):
        (tmp_path / lr / f"000{number}.png").unlink()
    message = r"7 of 8 LR images are missing in .*: those of 0002, 0003, 0004, 0005, 0006, \.\.\."
    with pytest.raises(ValueError, match=message):
        find_pairs(tmp_path, 4)


def test_a_link_to_lr_images_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "HR/a.png")
    (tmp_path / "LR").symlink_to(tmp_path / "unmounted")
    with pytest.raises(ValueError, match=r"LR is a link that leads nowhere, to LR images"):
        find_pairs(tmp_path, 4)


# --- links that lead nowhere


@pytest.mark.parametrize("folder", [".", "HR", "DIV2K_train_HR", "images/TITLE"])
def test_links_that_lead_nowhere_are_named(tmp_path: Path, folder: str) -> None:
    root = tmp_path / "set"
    put(root / folder / "good.png", 40, 40)
    (root / folder / "gone.png").symlink_to(tmp_path / "elsewhere.png")
    with pytest.warns(UserWarning, match=r"(?s)left out 1 of 2 .*gone: .*a link to .*elsewhere"):
        pairs = load_pairs(root, 2, progress=False)
    assert len(pairs) == 1
    Image.fromarray(noise(40, 40)).save(tmp_path / "elsewhere.png")
    assert len(load_pairs(root, 2, progress=False)) == 2


def test_a_link_of_an_lr_image_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    put_pairs(tmp_path, "HR", "LR")
    (tmp_path / "LR/0001.png").unlink()
    (tmp_path / "LR/0001.png").symlink_to(tmp_path / "elsewhere.png")
    with pytest.warns(UserWarning, match=r"left out 1 of 2 .*\n  0001: .*LR/0001\.png is a link"):
        load_pairs(tmp_path, 4, progress=False)
