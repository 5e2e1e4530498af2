"""What every test shares: the hypothesis profile, seeds, few threads, the folder of real data
sets.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
import torch.distributed as dist


class TorchRandom:
    """torch's global generator as hypothesis wants it: the same numbers each time an example is
    run.
    """

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


TORCH_RANDOM = TorchRandom()  # hypothesis keeps only a weak reference
hypothesis.register_random(TORCH_RANDOM)
hypothesis.settings.register_profile(
    "elasticnet",
    deadline=None,  # the first call of a torch operator is slow
    max_examples=40,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("elasticnet")

if "OMP_NUM_THREADS" not in os.environ:
    # The tests' networks are too small for more threads to pay: on two cores with other work
    # beside, threads that wait for each other made the suite twelve times slower. The processes
    # that tests start inherit the setting.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)  # which has read the variable before


def _outlive(number: int, frame: Any) -> None:
    """Go on after a hangup, as nohup wants it. Children do not inherit this, unlike SIG_IGN."""


# Under nohup, or in the background of a shell, the suite begins with signals ignored. The processes
# that the tests start would inherit that, and could not be told to stop.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, _outlive)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Until all tests are imported: looking for garbage in between took a quarter of that time.
gc.disable()


def pytest_collection_finish() -> None:
    """Let the garbage collector look less often, and never at what is imported by now.

    Torch, sympy and transformers are millions of objects, and looking through them again and again
    took a sixth of the suite's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    gc.enable()


def pytest_sessionfinish() -> None:
    """Let what is imported be freed, in whatever order its libraries want."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Start every test from the same state of torch's generator, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def data_dir() -> Path:
    """The folder of real data sets that ELASTICNET_DATA names; the test is skipped without it."""
    named = os.environ.get("ELASTICNET_DATA")
    if not named:
        pytest.skip(
            "ELASTICNET_DATA is not set: "
            "it names the folder that holds benchmark/, golden/ and train/"
        )
    if not Path(named).is_dir():
        pytest.fail(
            f"ELASTICNET_DATA={named} is not a folder: "
            "correct it, or unset it to skip the tests on real data"
        )
    return Path(named)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """Run the test as the only process of a group."""
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this build of torch has no gloo")
    store = f"file://{tmp_path / 'store'}"
    dist.init_process_group("gloo", store, timedelta(seconds=60), world_size=1, rank=0)
    yield
    dist.destroy_process_group()
