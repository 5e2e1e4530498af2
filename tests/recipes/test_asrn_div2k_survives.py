"""The recipe as real processes: killed, shared by two, resumed by another number, its data gone,
its folder in use.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import warm_python
from elasticnet.training.run_folder import Run
from elasticnet.training.state import pack_state
from loading import load_recipe
from small_photos import small_photos

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "asrn_div2k.py"
TINY = [
    "--num-blocks",
    "3",
    "--channels",
    "8",
    "--patch-size",
    "8",
    "--batch-size",
    "4",
    "--num-valid",
    "1",
]
TINY += [
    "--preset",
    "demo",
    "--precision",
    "float32",
    "--ema",
    "0.99",
    "--clip-norm",
    "0.1",
    "--sampled-taps",
    "1",
    "--no-tensorboard",
]
TINY += ["--no-figures", "--no-costs"]  # most of the time of a run as small as this
STEPS = 240
KILLED = [
    "--steps",
    str(STEPS),
    "--eval-every",
    "40",
    "--save-every",
    "8",
    "--log-every",
    "3",
    "--keep",
    "2",
]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A flat folder of small HR images."""
    return small_photos(tmp_path / "photos", num_photos=5, height=64, width=80)


def log_of(folder: Path) -> list[dict[str, Any]]:
    """The log without the one thing that differs from run to run, its seconds."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def state_of(folder: Path) -> dict[str, Any]:
    with Run.resume(folder, writer=False) as run:
        latest = run.load_latest()
    assert latest is not None
    state = latest[1]
    del state["log"]["seconds"]
    return state


def start(
    *command: object, variables: Mapping[str, str] | None = None, **options: Any
) -> warm_python.Popen:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),  # also for this file
        "GLOO_SOCKET_IFNAME": "lo",
        **(variables or {}),
    }
    command = (sys.executable, *command)
    streams: dict[str, Any] = {
        "stdout": warm_python.PIPE,
        "stderr": warm_python.STDOUT,
        "text": True,
        **options,
    }
    return warm_python.Popen([str(part) for part in command], env=environment, **streams)


def start_two(*command: object) -> list[warm_python.Popen]:
    """Start a command as two processes, with the variables that torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        _, port = free.getsockname()
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        start(*command, variables={**shared, "RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    ]


def finish(process: warm_python.Popen) -> str:
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    return said


def lines_in(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0


# --- killed, again and again; this part runs as a script that forks, so that everything is imported
# once


def train_with_kills(photos: Path, out: Path, kills: int, seed: int) -> None:
    """Train in child processes, each killed at a random moment and the next one resuming, then once
    without a kill.
    """
    recipe, draw = load_recipe("asrn_div2k"), random.Random(seed)
    torch.set_num_threads(1)
    import timm.utils.model_ema  # noqa: F401  (imported where it is used: once here is enough)

    def child(folder: Path) -> None:
        arguments = [*TINY, *KILLED, "--data", str(photos)]
        where = (
            ["--resume", str(folder)]
            if (folder / "options.json").exists()
            else ["--out", str(folder)]
        )
        with contextlib.redirect_stdout(None), contextlib.redirect_stderr(open(os.devnull, "w")):
            options = recipe.parse([*arguments, *where])
            recipe.main(options)

    context = multiprocessing.get_context("fork")
    log = out / "log.jsonl"
    for index in range(kills):
        process = context.Process(target=child, args=(out,))
        # A quarter is killed while it starts, the others once they have come further than any
        # before.
        goal = lines_in(log) + draw.randint(1, STEPS // (6 * kills)) if index % 4 else 0
        process.start()
        while lines_in(log) < goal and process.is_alive():
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        process.join()
        print(
            "killed" if process.exitcode == -signal.SIGKILL else process.exitcode,
            lines_in(log),
            flush=True,
        )
    for folder in (out, out.with_name("whole")):
        process = context.Process(target=child, args=(folder,))
        process.start()
        process.join()
        print("exit", process.exitcode, flush=True)


def check_kills(photos: Path, tmp_path: Path, kills: int, seed: int) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    output = finish(start(__file__, photos, killed, kills, seed, stderr=None))
    *killings, end, whole_end = (line.split() for line in output.splitlines())
    assert [word for word, _ in killings] == ["killed"] * kills, output
    assert end == whole_end == ["exit", "0"], output
    # spread over the training
    assert len({length for _, length in killings} - {"0"}) >= kills // 2, output
    for name in ("last.safetensors", "best.safetensors"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    # Equal bytes: weights, moving average, moments, scaler, generators, scores, the best so far.
    assert pack_state(STEPS, state_of(killed)) == pack_state(STEPS, state_of(whole))
    assert log_of(killed) == log_of(whole)
    steps = [line["step"] for line in log_of(killed)]
    assert steps == sorted({*range(3, STEPS + 1, 3), *range(8, STEPS + 1, 8)})
    assert not list(killed.rglob("*.tmp"))


def test_a_killed_and_resumed_training_ends_bitwise_equal(photos: Path, tmp_path: Path) -> None:
    check_kills(photos, tmp_path, kills=4, seed=0)


@pytest.mark.slow
def test_twenty_kills_end_bitwise_equal(photos: Path, tmp_path: Path) -> None:
    check_kills(photos, tmp_path, kills=20, seed=1)


# --- several processes

SHARED = [
    *TINY,
    "--precision",
    "float64",
    "--eval-every",
    "10",
    "--save-every",
    "10",
    "--log-every",
    "5",
]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", RECIPE]


def weights_of(folder: Path) -> dict[str, Any]:
    return state_of(folder)["training"]


def assert_close(first: Any, second: Any, tolerance: float = 1e-9) -> None:
    if isinstance(first, torch.Tensor):
        torch.testing.assert_close(first, second, rtol=0, atol=tolerance)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_close(first[key], second[key], tolerance)
    elif isinstance(first, float):
        assert first == pytest.approx(second, abs=tolerance)


def test_two_processes_train_as_one_and_resume_as_one_and_as_two(
    photos: Path, tmp_path: Path
) -> None:
    def ends(steps: int) -> list[object]:
        return [*SHARED, "--data", photos, "--steps", steps]

    alone = [start(RECIPE, *ends(steps), "--out", tmp_path / f"alone{steps}") for steps in (20, 30)]
    said = finish(start(*TORCHRUN, *ends(20), "--out", tmp_path / "shared"))
    assert said.count("training on") == 1
    for process in alone:
        finish(process)
    shutil.copytree(tmp_path / "shared", tmp_path / "by one")
    resumed = start(RECIPE, *ends(30), "--resume", tmp_path / "by one")
    for process in [*start_two(RECIPE, *ends(30), "--resume", tmp_path / "shared"), resumed]:
        finish(process)

    for folder, expected in (("shared", "alone30"), ("by one", "alone30")):
        assert_close(weights_of(tmp_path / folder), weights_of(tmp_path / expected))
        lines, others = log_of(tmp_path / folder), log_of(tmp_path / expected)
        assert (
            [line["step"] for line in lines]
            == [line["step"] for line in others]
            == [5, 10, 15, 20, 25, 30]
        )
        for line, other in zip(lines, others, strict=True):
            assert_close(line, other)
    assert len(state_of(tmp_path / "shared")["random"]) == 2


# --- what goes wrong around it


def wait_for_lines(process: warm_python.Popen, log: Path, more_than: int = 0) -> None:
    while process.poll() is None and lines_in(log) <= more_than:
        time.sleep(0.01)


def test_the_data_folder_may_go_away_in_mid_run(photos: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(photos, copied)
    arguments = [*TINY, "--steps", 60, "--eval-every", 30, "--log-every", 5]
    process = start(RECIPE, *arguments, "--data", copied, "--out", tmp_path / "cut")
    wait_for_lines(process, tmp_path / "cut" / "log.jsonl")
    for cached in tmp_path.glob("copied.elasticnet-cache/**/*.bin"):
        os.truncate(cached, 0)  # whatever is still mapped dies of it
    shutil.rmtree(copied)
    shutil.rmtree(tmp_path / "copied.elasticnet-cache")
    finish(start(RECIPE, *arguments, "--data", photos, "--out", tmp_path / "whole"))
    finish(process)
    assert (tmp_path / "cut/last.safetensors").read_bytes() == (
        tmp_path / "whole/last.safetensors"
    ).read_bytes()


def test_a_run_in_use_is_refused_until_its_process_is_dead(photos: Path, tmp_path: Path) -> None:
    arguments = [*TINY, "--steps", 100_000, "--log-every", 1, "--data", photos]
    first = start(RECIPE, *arguments, "--out", tmp_path / "run")
    wait_for_lines(first, tmp_path / "run" / "log.jsonl")
    second = start(RECIPE, *arguments, "--resume", tmp_path / "run")
    said, _ = second.communicate(timeout=100)
    assert second.returncode == 1
    assert f"error: {tmp_path / 'run'} is in use by process {first.pid}" in said
    first.kill()
    first.communicate()
    written = lines_in(tmp_path / "run" / "log.jsonl")
    third = start(RECIPE, *arguments, "--resume", tmp_path / "run", "--save-every", 2)
    wait_for_lines(third, tmp_path / "run" / "log.jsonl", written)
    third.send_signal(signal.SIGTERM)
    said, _ = third.communicate(timeout=100)
    assert third.returncode == 128 + signal.SIGTERM
    assert "stopped and saved" in said


if __name__ == "__main__":
    train_with_kills(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
