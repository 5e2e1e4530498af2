from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import elasticnet
import warm_python
from elasticnet import ElasticWrapper, registry
from elasticnet.card import DepthCard, card_of
from elasticnet.card.user_cards import kept_card
from elasticnet.checkpoint import read_header
from elasticnet.cli import main
from elasticnet.registry import Architecture
from elasticnet.sr import asrn
from elasticnet.sr.benchmark import evaluate, load_sets
from elasticnet.sr.models.pretrained import weights_file
from tiny_nets import conv_net

QUICK = ["--repeats", "3", "--size", "16x8", "--device", "cpu"]


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "net.safetensors"
    elasticnet.save(asrn(2, num_blocks=2, channels=8), path, {"step": 7})
    return path


@pytest.fixture
def photos(tmp_path) -> Path:
    root = tmp_path / "photos"
    root.mkdir()
    for index in range(2):
        image = np.random.default_rng(index).integers(0, 256, (36, 40, 3), np.uint8)
        Image.fromarray(image).save(root / f"image{index}.png")
    return root


def test_the_whole_command(file, photos):
    """The real command, in a process: card in the file, files beside it, the table printed."""
    before = elasticnet.load(file).state_dict()
    command = [
        sys.executable,
        "-m",
        "elasticnet.cli",
        "profile",
        str(file),
        *QUICK,
        "--data",
        str(photos),
        "--no-cache",
    ]
    done = warm_python.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "the bar is for terminals"
    assert "Traceback" not in done.stderr

    header = read_header(file)
    assert header["notes"] == {"step": 7}
    ((key, stored),) = header["cards"].items()
    card = DepthCard.from_json(stored)
    assert (card.machine.key, card.machine.dtype) == (key, "float32")
    assert (card.input_shape, card.repeats, card.data) == (
        (1, 3, 8, 16),
        3,
        "photos x2, 2 images, protocol matlab-y",
    )
    ((_, pairs),) = load_sets([photos], [2])
    scores = evaluate(elasticnet.load(file), pairs)
    for row in card.rows:
        assert tuple(row.quality.values()) == pytest.approx(tuple(scores[row.depth]))
        assert row.memory_mb is not None
        assert row.memory_mb > 4 * row.parameters / 10**6
    net = elasticnet.load(file)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())

    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 2
    titles = [title.strip() for title in lines[0].split("|")[6:-1]]
    assert titles == ["peak MB", "images/s", "input MPix/s", "PSNR (dB)", "SSIM"]
    assert [line.split("|")[1].strip() for line in lines] == ["depth", "----:", "1", "2"]
    assert f"stored in {file}" in done.stdout
    assert "warning: p95 is of only 3 passes" in done.stdout
    made = sorted(path.name for path in file.parent.iterdir() if path.is_file())
    assert made == ["net.card.json", "net.card.md", "net.card.png", "net.safetensors"]
    assert DepthCard.from_json(json.loads((file.parent / "net.card.json").read_text())) == card
    assert [os.environ.get("OMP_NUM_THREADS"), str(card.machine.threads)].count("1") in (0, 2)


def test_each_dtype_and_number_of_threads_has_its_card(file, tmp_path, capsys):
    for extra in (
        ["--dtype", "bfloat16"],
        ["--threads", "1"],
        ["--threads", "2"],
        ["--threads", "2"],
    ):
        out = ["--no-memory", "--out", str(tmp_path / "out")]
        assert main(["profile", str(file), *QUICK, *out, *extra]) == 0
    cards = read_header(file)["cards"]
    assert len(cards) == 3
    assert sum("bfloat16" in key for key in cards) == 1
    assert card_of(file, threads=2).machine.threads == 2
    assert card_of(file, dtype=torch.bfloat16).rows[0].memory_mb is None
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".json", ".md", ".png"]
    assert "peak MB" not in capsys.readouterr().out


def test_auto_measures_each_dtype_and_what_it_loses(file, photos, capsys):
    data = ["--data", str(photos), "--no-cache"]
    command = ["profile", str(file), *QUICK, "--no-memory", *data, "--dtype", "auto"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert printed.count("below float32 (dB)") == 2, "of bfloat16 and float16"
    assert re.search(r"--dtype auto is (float32|bfloat16|float16): float32 \d+ ms", printed)
    for dtype in ("bfloat16", "float16"):
        card = card_of(file, dtype=getattr(torch, dtype))
        assert all(abs(row.quality["dtype_loss"]) < 1 for row in card.rows)
        assert f"net.{dtype}.card.md" in printed
        assert not any("dtype_loss" in line for line in card.warnings)
    assert "dtype_loss" not in card_of(file).rows[0].quality
    assert main(["profile", str(file), *QUICK, "--no-memory", "--json", "--dtype", "auto"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["float32", "bfloat16", "float16"]


def test_auto_leaves_out_what_nothing_is_known_of(file, capsys):
    assert main(["profile", str(file), *QUICK, "--no-memory", "--dtype", "auto"]) == 0
    said = capsys.readouterr()
    assert "bfloat16 is left out: what it loses is not known; --data DIR measures it" in said.err
    assert list(read_header(file)["cards"]) == [card_of(file).machine.key]


def test_without_storing_the_file_stays_as_it_is(file, tmp_path, capsys):
    content = file.read_bytes()
    assert main(["profile", str(file), *QUICK, "--no-memory", "--no-store"]) == 0
    assert "| depth |" in capsys.readouterr().out
    assert file.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_an_image_that_cannot_be_used_is_named(file, photos, capsys):
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(photos / "tiny.png")
    assert (
        main(["profile", str(file), *QUICK, "--no-memory", "--no-store", "--data", str(photos)])
        == 1
    )
    assert "elasticnet: images left out: 1\n  tiny: " in capsys.readouterr().err


def test_a_custom_net_is_sent_to_python(tmp_path, capsys):
    elasticnet.save(conv_net(2), tmp_path / "own.safetensors")
    assert main(["profile", str(tmp_path / "own.safetensors"), *QUICK]) == 2
    said = capsys.readouterr().err
    assert "own.safetensors: holds a network of no registered architecture" in said
    assert "elasticnet.card.measure(net, example)" in said
    assert said.count("\n") == 1


def classifier(num_blocks: int = 2, taps: Any = None) -> ElasticWrapper:
    """Somebody's own network, which takes rows of eight numbers."""
    blocks = [nn.Linear(8, 8) for _ in range(num_blocks)]
    return ElasticWrapper(blocks, nn.Linear(8, 3), taps=taps, layout="b n c")


@pytest.fixture
def own_file(tmp_path: Path) -> Iterator[Path]:
    """A file of a registered architecture with an example of its own, a batch of five."""
    own = Architecture(build=classifier, example=lambda arguments: torch.ones(5, 4, 8))
    registry.register("own-classifier", own)
    path = tmp_path / "own.safetensors"
    elasticnet.save(registry.build("own-classifier"), path)
    yield path
    registry.unregister("own-classifier")


def test_a_network_that_takes_no_images_is_measured_on_its_own_example(own_file, capsys):
    quick = ["--repeats", "2", "--no-memory", "--device", "cpu"]
    assert main(["profile", str(own_file), *quick]) == 0
    said = capsys.readouterr().out
    card = card_of(own_file)
    assert card.input_shape == (5, 4, 8)
    assert "samples/s" in said
    assert "input MPix/s" not in said


def test_an_image_size_for_a_network_without_images_is_refused(own_file, capsys):
    assert main(["profile", str(own_file), "--size", "16x8", "--device", "cpu"]) == 2
    said = "--size 16x8: the network's architecture does not say that it takes images"
    assert said in capsys.readouterr().err


def test_bad_input_is_refused_before_anything_is_measured(file, tmp_path, capsys):
    cases = [
        (["--data", str(tmp_path / "nowhere")], "nowhere"),
        (["--device", "cuda:99"], "--device cuda:99: "),
        (["--out", str(file)], "net.safetensors"),
    ]
    for extra, message in cases:
        assert main(["profile", str(file), "--no-memory", *QUICK, *extra]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    assert main(["profile", str(tmp_path / "no.safetensors"), *QUICK]) == 2
    assert "no.safetensors" in capsys.readouterr().err
    assert read_header(file)["cards"] == {}


@pytest.mark.parametrize("by_name", [True, False])
def test_the_card_of_a_packaged_net_is_kept_for_the_user(capsys, tmp_path, monkeypatch, by_name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    packaged = weights_file(4)
    before = packaged.read_bytes(), sorted(packaged.parent.iterdir())
    file = "asrn-x4" if by_name else str(packaged)
    assert main(["profile", file, *QUICK, "--no-memory"]) == 0
    [kept] = (tmp_path / "cache" / "elasticnet" / "cards").iterdir()
    assert f"kept for this user in {kept}\n" in capsys.readouterr().out
    card = kept_card(kept)
    assert card is not None
    assert [row.depth for row in card.rows] == [1, 2, 3, 4, 5]
    assert (packaged.read_bytes(), sorted(packaged.parent.iterdir())) == before
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_refused(file, capsys):
    file.parent.chmod(0o500)
    try:
        assert main(["profile", str(file), *QUICK]) == 2
    finally:
        file.parent.chmod(0o700)
    assert "cannot be written to: pass --no-store and another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--size", "640", "'640': expected WIDTHxHEIGHT in pixels, such as 640x360"),
        ("--size", "0x5", "'0x5': expected WIDTHxHEIGHT"),
        ("--repeats", "0", "'0': expected a whole number above 0"),
        ("--threads", "two", "'two': expected a whole number above 0"),
        ("--seconds", "-1", "'-1': expected a number of seconds above 0"),
        ("--seconds", "nan", "'nan': expected a number of seconds above 0"),
        ("--dtype", "float8", "invalid choice: 'float8'"),
    ],
)
def test_wrong_options_are_named(file, capsys, option, value, message):
    with pytest.raises(SystemExit) as stopped:
        main(["profile", str(file), f"{option}={value}"])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_json_is_the_card_alone_and_the_rest_goes_to_standard_error(file, photos, capsys):
    assert main(["profile", str(file), *QUICK, "--no-memory", "--data", str(photos), "--json"]) == 0
    captured = capsys.readouterr()
    printed = DepthCard.from_json(json.loads(captured.out))
    ((_, stored),) = read_header(file)["cards"].items()
    assert printed == DepthCard.from_json(stored)
    assert f"stored in {file}" in captured.err
    assert "photos x2, LR: made (BI)" in captured.err
