"""The hub through its own library, with a server on this machine and a folder as its cache."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from contract import same
from elasticnet import ElasticWrapper
from elasticnet.checkpoint import load, read_header, save
from elasticnet.checkpoint.header import Description
from elasticnet.checkpoint.hub import push_to_hub
from elasticnet.checkpoint.hub_card import Scores, config_json, scores_in
from elasticnet.checkpoint.safetensors_file import read_table
from elasticnet.checkpoint.sources import read_range
from elasticnet.cli import main
from elasticnet.sr import asrn
from loopback import Loopback, serving
from tiny_nets import conv_net

huggingface_hub = pytest.importorskip("huggingface_hub", reason="the extra `hub` is not installed")
REPO = "owner/net"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    """An empty hub, an empty cache, and a user without a token."""
    from huggingface_hub import constants

    with serving() as state:
        monkeypatch.setattr(constants, "ENDPOINT", state.url)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            f"{state.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
            monkeypatch.delenv(name, raising=False)
        yield state


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, ElasticWrapper]:
    path, net = tmp_path / "net.safetensors", asrn(2, num_blocks=3, channels=8).eval()
    save(net, path, {"step": 5})
    return path, net


def cached(tmp_path: Path, commit: str, content: bytes, branch: str | None = "main") -> Path:
    """Put a file into the cache as the hub's library lays it out."""
    folder = tmp_path / "cache" / "models--owner--net"
    path = folder / "snapshots" / commit / "model.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    if branch:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / branch).write_text(commit)
    return path


def gets(hub: Loopback) -> list[str]:
    return [request.path for request in hub.log if request.method == "GET"]


# --- load


def test_a_depth_is_read_by_ranges_and_the_token_stays_on_the_hub(
    hub: Loopback,
    saved: tuple[Path, ElasticWrapper],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    path, net = saved
    commit = hub.commit(REPO, {"model.safetensors": path.read_bytes()})
    hub.private.add(REPO)
    monkeypatch.setenv("HF_TOKEN", "secret")
    small = load(f"hf://{REPO}", depth=1)
    same(small.state_dict(), dict(net.truncate(1).state_dict()), "state")
    table = read_table(path)
    needed = sum(value.numel() * 4 for value in small.state_dict().values())
    assert [end - start for start, end in hub.ranges()] == [8, table.data_start - 8, needed]
    head, *storage = hub.log
    assert (head.method, head.path, head.token) == (
        "HEAD",
        f"/{REPO}/resolve/main/model.safetensors",
        "Bearer secret",
    )
    assert {request.path for request in storage} == {
        f"/storage/{REPO}/{commit}/model.safetensors?signature=key"
    }
    assert {request.token for request in storage} == {None}
    assert not (tmp_path / "cache").exists(), "a part of a file is not a file of the cache"


def test_revisions_and_names_of_files(hub: Loopback, saved: tuple[Path, ElasticWrapper]) -> None:
    path, net = saved
    first = hub.commit(REPO, {"x2.safetensors": path.read_bytes()})
    save(net.truncate(2), path)
    hub.commit(REPO, {"x2.safetensors": path.read_bytes()})
    hub.commit(REPO, {"folder/a b.safetensors": path.read_bytes()}, branch="refs%2Fpr%2F1")
    assert load(f"hf://{REPO}/x2.safetensors").taps == (1, 2)
    assert load(f"hf://{REPO}@{first}/x2.safetensors").taps == (1, 2, 3)
    assert load(f"hf://{REPO}@main/x2.safetensors", depth=1).taps == (1,)
    hub.files["x"] = b""
    assert read_header(f"hf://{REPO}@{first}/x2.safetensors")["notes"] == {"step": 5}
    assert read_range(f"hf://{REPO}/x2.safetensors", 0, 8) == path.read_bytes()[:8]


def test_what_is_in_the_cache_is_not_fetched(
    hub: Loopback, saved: tuple[Path, ElasticWrapper], tmp_path: Path
) -> None:
    path, net = saved
    commit = hub.commit(REPO, {"model.safetensors": path.read_bytes()})
    local = cached(tmp_path, commit, path.read_bytes())
    same(load(f"hf://{REPO}").state_dict(), dict(net.state_dict()), "state")
    assert [request.method for request in hub.log] == ["HEAD"], "whether it is still the newest"
    load(f"hf://{REPO}@{commit}")
    assert len(hub.log) == 1, "a commit does not change"
    save(net.truncate(1), path)
    hub.commit(REPO, {"model.safetensors": path.read_bytes()})
    assert load(f"hf://{REPO}").taps == (1,), "the newest counts"
    assert load(f"hf://{REPO}@{commit}").taps == (1, 2, 3)
    assert local.exists()


def test_without_a_connection_the_cache_serves(
    hub: Loopback,
    saved: tuple[Path, ElasticWrapper],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    path, net = saved
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        "http://127.0.0.1:1/{repo_id}/resolve/{revision}/{filename}",
    )
    message = (
        rf"^hf://{REPO}: the hub cannot be reached \(.+\), and the file is not in the local cache$"
    )
    with pytest.raises(OSError, match=message):
        load(f"hf://{REPO}")
    cached(tmp_path, "a" * 40, path.read_bytes())
    same(load(f"hf://{REPO}", 2).state_dict(), dict(net.truncate(2).state_dict()), "state")
    with pytest.raises(OSError, match=rf"^hf://{REPO}@v1: the hub cannot be reached"):
        load(f"hf://{REPO}@v1")
    assert hub.log == []


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("hf://owner/none", "Repository Not Found"),
        (f"hf://{REPO}@v9", "Revision Not Found"),
        (f"hf://{REPO}/none.safetensors", "Entry Not Found"),
    ],
)
def test_what_the_hub_does_not_have(
    hub: Loopback, source: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.commit(REPO, {})
    with pytest.raises(
        FileNotFoundError,
        match=rf"^{re.escape(source)}: not on the hub, or not for this user \(.*({reason})",
    ):
        load(source)
    assert main(["info", source]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_wrong_name_is_refused_before_anything_is_asked(hub: Loopback) -> None:
    with pytest.raises(ValueError, match="hf://net: expected hf://owner/name"):
        load("hf://net")
    with pytest.raises(ValueError, match="Repo id must"):
        load("hf://-owner/..net")
    assert hub.log == []


# --- push


def test_a_net_goes_to_the_hub_and_comes_back(
    hub: Loopback, saved: tuple[Path, ElasticWrapper], tmp_path: Path
) -> None:
    path, net = saved
    source = push_to_hub(net, REPO, private=True, token="secret")
    commit = hub.branches[REPO, "main"]
    assert source == f"hf://{REPO}@{commit}/model.safetensors"
    assert REPO in hub.private
    sent = hub.repositories[REPO][commit]
    assert sorted(sent) == ["README.md", "config.json", "model.safetensors"]
    save(net, path)
    assert sent["model.safetensors"] == path.read_bytes()
    card = sent["README.md"].decode()
    assert "library_name: elasticnet" in card
    assert f'elasticnet.load("hf://{REPO}", depth=2)' in card
    assert json.loads(sent["config.json"]) == {
        "library_name": "elasticnet",
        "architecture": "asrn",
        "arguments": read_header(path)["arguments"],
        "depths": [1, 2, 3],
        "file": "model.safetensors",
    }
    hub.private.clear()
    same(load(source, 2).state_dict(), dict(net.truncate(2).state_dict()), "state")


def test_a_file_goes_as_it_is_and_a_readme_stays(
    hub: Loopback, saved: tuple[Path, ElasticWrapper]
) -> None:
    path, _ = saved
    hub.commit(REPO, {"README.md": b"mine"})
    source = push_to_hub(path, REPO, file="x2.safetensors", revision="next", message="better")
    commit = hub.branches[REPO, "next"]
    assert source == f"hf://{REPO}@{commit}/x2.safetensors"
    assert hub.repositories[REPO][commit] == {
        "README.md": b"mine",
        "config.json": config_json(read_header(path), "x2.safetensors").encode(),
        "x2.safetensors": path.read_bytes(),
    }
    assert read_header(source)["notes"] == {"step": 5}
    assert "x2.safetensors" not in hub.repositories[REPO][hub.branches[REPO, "main"]]


def test_the_card_of_a_custom_net_names_build(hub: Loopback) -> None:
    torch.manual_seed(0)
    source = push_to_hub(conv_net(2), REPO, file="own.safetensors")
    card = hub.repositories[REPO][hub.branches[REPO, "main"]]["README.md"].decode()
    assert f'elasticnet.load("hf://{REPO}/own.safetensors", depth=2, build=make_my_net)' in card
    assert load(source, build=lambda: conv_net(2)).taps == (1, 2)


def test_the_card_tells_the_hub_licence_task_scores_and_picture(
    hub: Loopback, saved: tuple[Path, ElasticWrapper], tmp_path: Path
) -> None:
    """The hub's own library reads the metadata back."""
    path, net = saved
    picture = tmp_path / "crops.png"
    picture.write_bytes(b"a picture")
    psnr = {1: 30.5, 2: 31.25, 3: 31.5}
    card = {
        "data": "Set5 x2, 5 images",
        "rows": [{"depth": depth, "quality": {"ssim": 0.9 + depth / 100}} for depth in (1, 2, 3)],
    }
    save(net, path, {"psnr": psnr, "step": 5}, {"a machine": card})

    push_to_hub(path, REPO, license="apache-2.0", picture=picture)

    sent = hub.repositories[REPO][hub.branches[REPO, "main"]]
    assert sent["crops.png"] == b"a picture"
    text = sent["README.md"].decode()
    data = huggingface_hub.ModelCard(text).data
    assert (data.license, data.pipeline_tag) == ("apache-2.0", "image-to-image")
    assert data.to_dict()["library_name"] == "elasticnet"
    found = {
        (result.dataset_name, result.metric_name): result.metric_value
        for result in data.eval_results
    }
    assert found == {
        **{("held out in training", f"psnr at depth {depth}"): psnr[depth] for depth in psnr},
        **{("Set5 x2, 5 images", f"ssim at depth {d}"): 0.9 + d / 100 for d in (1, 2, 3)},
    }
    assert "![net](crops.png)" in text
    count = sum(parameter.numel() for parameter in net.truncate(2).parameters())
    assert f"| 2 | {count:,} | {count * 4 / 1e6:.2f} | 31.25 | 0.92 |" in text
    assert "- scale: 2" in text


def test_scores_that_are_given_stand_in_the_place_of_those_of_the_file(
    hub: Loopback, saved: tuple[Path, ElasticWrapper]
) -> None:
    path, net = saved
    save(net, path, {"psnr": {1: 30.5, 2: 31.25, 3: 31.5}})
    given = [Scores("B100", {"psnr": {3: 27.5}})]
    push_to_hub(path, REPO, pipeline_tag="other-task", scores=given)
    text = hub.repositories[REPO][hub.branches[REPO, "main"]]["README.md"].decode()
    (result,) = huggingface_hub.ModelCard(text).data.eval_results
    assert (result.dataset_name, result.metric_value) == ("B100", 27.5)
    assert result.task_type == "other-task"


def test_the_card_passes_over_what_it_cannot_read() -> None:
    description: Description = {
        "format": 1,
        "architecture": None,
        "arguments": {},
        "taps": [1, 2],
        "sha256": {},
        "notes": {"psnr": {"1": 30.0}, "flag": {"1": True, "2": False}, "name": {"1": "a"}},
        "cards": {"m": {"data": None, "rows": []}, "n": {"rows": 5}, "o": {}},
    }
    assert scores_in(description) == []


def test_config_json_describes_the_file_with_the_default_name(
    hub: Loopback, saved: tuple[Path, ElasticWrapper]
) -> None:
    path, net = saved
    push_to_hub(path, REPO)
    push_to_hub(net.truncate(1), REPO, file="small.safetensors")
    sent = hub.repositories[REPO][hub.branches[REPO, "main"]]
    assert json.loads(sent["config.json"])["depths"] == [1, 2, 3]
    push_to_hub(net.truncate(2), REPO)
    sent = hub.repositories[REPO][hub.branches[REPO, "main"]]
    assert json.loads(sent["config.json"])["depths"] == [1, 2]


def test_a_picture_that_is_not_there_is_refused_before_anything_is_sent(
    hub: Loopback, saved: tuple[Path, ElasticWrapper]
) -> None:
    with pytest.raises(FileNotFoundError, match=r"picture absent\.png: no such file"):
        push_to_hub(saved[0], REPO, picture="absent.png")
    assert hub.log == []


def test_what_is_no_checkpoint_is_not_sent(hub: Loopback, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"other\.safetensors: not a whole safetensors file"):
        push_to_hub(path, REPO)
    with pytest.raises(
        ValueError, match=r"file 'net\.bin': expected a name that ends in \.safetensors"
    ):
        push_to_hub(conv_net(1), REPO, file="net.bin")
    assert hub.log == []


# --- the whole way, and without the extra


def test_the_command_reads_the_hub_that_the_environment_names(
    hub: Loopback, saved: tuple[Path, ElasticWrapper], tmp_path: Path
) -> None:
    hub.commit(REPO, {"model.safetensors": saved[0].read_bytes()})
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    run = subprocess.run(
        [sys.executable, "-m", "elasticnet.cli", "info", f"hf://{REPO}"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "|     3 |     20,379 |" in run.stdout
    assert "step  5" in run.stdout
    assert sum(end - start for start, end in hub.ranges()) <= 2 * read_table(saved[0]).data_start


def test_without_the_extra_the_error_names_it_and_files_load_as_before(
    saved: tuple[Path, ElasticWrapper],
) -> None:
    """In a process of its own, in which huggingface_hub cannot be imported.

    Nor is anything heavy imported beyond what torch itself imports: sympy comes with hundreds of
    modules where torch.eye runs on the meta device (and in torch 2.6 with torch.utils.checkpoint).
    """
    code = f"""
import sys
import torch.utils.checkpoint
with_torch = set(sys.modules)
sys.modules["huggingface_hub"] = None
import elasticnet, elasticnet.cli
from elasticnet.checkpoint.hub import push_to_hub
for call in (
    lambda: elasticnet.load("hf://{REPO}"),
    lambda: push_to_hub({str(saved[0])!r}, "{REPO}"),
):
    try:
        call()
    except ModuleNotFoundError as error:
        print(error)
print(elasticnet.cli.main(["info", "hf://{REPO}"]))
assert elasticnet.load({str(saved[0])!r}).taps == (1, 2, 3)
added = set(sys.modules) - with_torch
print([name for name in ("sympy", "matplotlib", "onnx", "timm") if name in added])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    message = 'the hub needs huggingface_hub: pip install "elastic-depth[hub]"'
    assert run.stdout.splitlines() == [message, message, "2", "[]"]
    assert run.stderr == f"elasticnet: {message}\n"
