"""Real processes on a run's folder: killed and resumed trainings, the lock, a disk that is full."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import warm_python
from elasticnet.training.run_folder import Run
from elasticnet.training.state import pack_state, random_state, set_random_state

ROOT = Path(__file__).parents[2]
# This file is a script, too.
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
}
STEPS = 150

# --- the program that is killed: this file run as a script


def train(folder: Path, steps: int = STEPS) -> None:
    """A small real training that depends on every generator, on the optimiser and a schedule."""
    # a kill must not leave a broken checkpoint
    warnings.filterwarnings("error", message=".* is corrupt")
    generator = torch.Generator()
    if (folder / "options.json").exists():
        run = Run.resume(folder)
    else:
        run = Run.create(folder, {"steps": steps})
    with run:
        for seed in (random.seed, np.random.seed, torch.manual_seed, generator.manual_seed):
            seed(7)
        net = nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2)
        )
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 20, 0.9)
        data = torch.linspace(-1, 1, 60).reshape(10, 6)
        done = 0
        latest = run.load_latest()
        if latest is not None:
            done, state = latest
            net.load_state_dict(state["net"])
            optimizer.load_state_dict(state["optimizer"])
            scheduler.load_state_dict(state["scheduler"])
            set_random_state(state["random"], {"sampler": generator})
        for step in range(done + 1, steps + 1):
            batch = data[torch.randperm(10, generator=generator)[:4]] * random.uniform(0.9, 1.1)
            batch = batch + torch.from_numpy(np.random.rand(4, 6).astype(np.float32))  # noqa: NPY002
            loss = net(batch).square().mean() + (net(batch) - batch[:, :2]).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            run.log({"step": step, "loss": loss})
            if step % 10 == 0:
                run.log({"step": step, "event": "validation", "draw": random.random()})
            if step % 7 == 0 or step == steps:
                state = {
                    "net": net.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scheduler": scheduler.state_dict(),
                    "random": random_state({"sampler": generator}),
                }
                run.save(step, state)


def train_with_kills(folder: Path, kills: int, seed: int) -> None:
    """Train in child processes that are killed, let the last one finish; then train without a kill.

    A quarter are killed while they start, the others as soon as they have come a few steps further
    than any before (on a machine of any speed), and up to 8 ms later: in a step, in a save, between
    the two.
    """
    draw = random.Random(seed)
    # Forked children have torch already, and with the first optimiser its slow lazy imports.
    context = multiprocessing.get_context("fork")
    torch.optim.Adam([torch.zeros(1)])
    log = folder / "log.jsonl"
    for index in range(kills):
        child = context.Process(target=train, args=(folder,))
        goal = lines_in(log) + draw.randint(1, STEPS // (2 * kills)) if index % 4 else 0
        child.start()
        while lines_in(log) < goal and child.is_alive():
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.008))
        child.kill()
        child.join()
        print(
            "killed" if child.exitcode == -signal.SIGKILL else child.exitcode,
            lines_in(log),
            flush=True,
        )
    for name in (folder, folder.with_name("whole")):
        child = context.Process(target=train, args=(name,))
        child.start()
        child.join()
        print("exit", child.exitcode, flush=True)


def lines_in(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0


def hold(folder: Path) -> None:
    """Hold the lock of a run, with a forked child that lives on as a data loader's worker may."""
    with Run.create(folder, {}):
        child = os.fork()
        if child:
            print(child, flush=True)
        time.sleep(120)


def log_for_ever(run: Run) -> None:
    while True:
        run.log({"step": 2, "text": "x" * 100})


def fill_disk(folder: Path) -> None:
    """Save and log in a folder on a full file system; print what happened as JSON."""
    messages = []
    with Run.create(folder, {}) as run:
        run.log({"step": 1})
        run.save(1, torch.zeros(1000))
        with pytest.raises(OSError, match="could not write") as error:
            run.save(2, torch.zeros(10**6))
        messages.append([error.value.errno, str(error.value)])
        with contextlib.suppress(OSError), open(folder / "filler", "wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass
        with pytest.raises(OSError, match="could not write") as error:
            log_for_ever(run)
        messages.append([error.value.errno, str(error.value)])
        log = (folder / "log.jsonl").read_text()
        (folder / "filler").unlink()
        run.log({"step": 3})
        run.save(3, torch.ones(1000))
    with Run.resume(folder) as run:
        found = run.load_latest()
    assert found is not None
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    print(json.dumps({"messages": messages, "names": names, "log": log, "step": found[0]}))


def script(*arguments: object) -> warm_python.Popen:
    command = [sys.executable, __file__, *map(str, arguments)]
    return warm_python.Popen(command, env=ENVIRONMENT, stdout=warm_python.PIPE, text=True)


def check_kills(tmp_path: Path, kills: int, seed: int = 0) -> None:
    whole = tmp_path / "whole"
    killed = tmp_path / "killed"
    output, _ = script("train_with_kills", killed, kills, seed).communicate(timeout=250)
    *killings, end, whole_end = (line.split() for line in output.splitlines())
    assert [word for word, _ in killings] == ["killed"] * kills, output
    assert end == whole_end == ["exit", "0"]
    # spread over the training
    assert len({length for _, length in killings} - {"0"}) >= kills // 2, output
    with Run.resume(whole) as run, Run.resume(killed) as other:
        expected = run.load_latest()
        found = other.load_latest()
    assert expected is not None
    assert found is not None
    assert found[0] == expected[0] == STEPS
    # Equal bytes: the same weights, moments, schedule and generators to the last bit.
    assert pack_state(*found) == pack_state(*expected)
    log = (killed / "log.jsonl").read_text()
    assert log == (whole / "log.jsonl").read_text()
    records = [json.loads(line) for line in log.splitlines()]
    assert [record["step"] for record in records if "loss" in record] == list(range(1, STEPS + 1))
    assert [record["step"] for record in records if "event" in record] == list(
        range(10, STEPS + 1, 10)
    )
    assert not list(killed.rglob("*.tmp"))


def test_a_killed_and_resumed_training_ends_the_same(tmp_path: Path) -> None:
    check_kills(tmp_path, 5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills(tmp_path: Path) -> None:
    for seed in range(3):
        check_kills(tmp_path / str(seed), 20, seed)


def test_one_process_holds_a_run_until_it_dies(tmp_path: Path) -> None:
    holder = script("hold", tmp_path / "run")
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        for attempt in (
            lambda: Run.resume(tmp_path / "run"),
            lambda: Run.create(tmp_path / "run", {}),
        ):
            with pytest.raises(
                RuntimeError,
                match=rf"run is in use by process {holder.pid} on .*: end it or choose",
            ):
                attempt()
        holder.kill()
        holder.wait()
        os.kill(child, 0)  # its forked child lives on and holds nothing
        with Run.resume(tmp_path / "run") as run:
            assert (tmp_path / "run/lock").read_text().startswith(f"{os.getpid()} on ")
            with pytest.raises(RuntimeError, match=f"in use by process {os.getpid()}"):
                Run.resume(tmp_path / "run")
            run.load_latest()
            run.save(1, [])
        Run.resume(tmp_path / "run").close()
    finally:
        os.kill(child, signal.SIGKILL)
        holder.stdout.close()


def test_a_full_disk(tmp_path: Path) -> None:
    """A real one: a small tmpfs, mounted in a mount namespace of its own."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    mount = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    steps = f'mount -t tmpfs -o size=512k none "{mounted}" && exec "$@"'
    if (
        subprocess.run([*mount, steps, "sh", "true"], capture_output=True, check=False).returncode
        != 0
    ):
        pytest.skip(
            "this system lets no ordinary user mount a tmpfs; "
            "test_a_failed_save_leaves_the_one_before remains"
        )
    command = [*mount, steps, "sh", sys.executable, __file__, "fill_disk", str(mounted / "run")]
    result = json.loads(
        subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.PIPE, check=True).stdout
    )
    (save_errno, save_message), (log_errno, log_message) = result["messages"]
    assert (save_errno, log_errno) == (28, 28)
    assert (
        "step_00000002.safetensors (No space left on device); nothing was changed" in save_message
    )
    assert "log.jsonl (No space left on device)" in log_message
    assert all(json.loads(line) for line in result["log"].splitlines())
    assert result["log"].endswith("}\n")
    assert result["names"] == ["step_00000001.safetensors", "step_00000003.safetensors"]
    assert result["step"] == 3


if __name__ == "__main__":
    {"train_with_kills": train_with_kills, "hold": hold, "fill_disk": fill_disk}[sys.argv[1]](
        Path(sys.argv[2]), *map(int, sys.argv[3:])
    )
