"""Processes: two of them on gloo decide and train as one does, and alone nothing starts."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn

from elasticnet import ElasticObjective
from elasticnet.loss_weights import normalised
from elasticnet.training.log import TrainingLog, show_messages
from elasticnet.training.loss_meter import LossMeter
from elasticnet.training.processes import Processes, join_processes
from elasticnet.training.run_folder import Run
from elasticnet.training.step import TrainingStep
from ranks import start_ranks
from step_cases import LOSS, assert_close, cutter, images, limit_memory, make_net

NUM_RANKS = 2
NUM_STEPS = 5
SIZE = 8  # of a batch, over both processes
# For each scenario the options of both processes; "limit" is how many images fit into the memory of
# each.
SCENARIOS: dict[str, dict[str, Any]] = {
    "alike": {"parts": (1, 1)},
    "other parts": {"parts": (1, 2), "clip_norm": 0.05, "ema": 0.9},
    "sampled taps": {"parts": (4, 2), "loss": {"sampled_taps": 1, "seed": 3}},
    "one runs out of memory": {
        "parts": (1, 1),
        "auto_batch": True,
        "limit": (4, 1),
        "clip_value": 0.01,
    },
}
ENVIRONMENT = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "ACCELERATE_MIXED_PRECISION",
)
ENGINES = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM")


def train(scenario: dict[str, Any], processes: Processes) -> dict[str, Any]:
    options = {name: value for name, value in scenario.items() if name not in ("loss", "limit")}
    options["parts"] = scenario["parts"][processes.rank] if processes.count > 1 else 1
    net = make_net((1, 3, 4))
    if processes.count > 1 and "limit" in scenario:
        limit_memory(net, "head", scenario["limit"][processes.rank])
    loss = {"psd_weight": 0.1, "tap_weights": normalised(net.taps), **scenario.get("loss", {})}
    objective = ElasticObjective(net, nn.MSELoss(), **loss)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    step_ = TrainingStep(objective, net, optimizer, processes=processes, **options)
    meter = LossMeter(processes.average)
    for step in range(NUM_STEPS):
        meter.add(step_(cutter(*images(step, SIZE)), step))
    result = {
        "net": net.state_dict(),
        "averaged": step_.averaged_net.state_dict(),
        "means": meter.means(),
    }
    return {**result, "parts": step_.parts, "split": step_.state_dict()["parts"]}


def own_gradients(rank: int) -> list[nn.Parameter]:
    """Parameters of two dtypes, one of them channels-last, one a number, one without a gradient."""
    generator = torch.Generator().manual_seed(rank)
    shapes: list[tuple[int, ...]] = [(4, 3, 3, 3), (), (5,), (2, 2)]
    dtypes = [torch.float32, torch.float64, torch.float32, torch.float32]
    parameters = [
        nn.Parameter(torch.zeros(shape, dtype=dtype))
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
    for parameter in parameters[:3]:
        parameter.grad = torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator)
    parameters[0].grad = parameters[0].grad.contiguous(memory_format=torch.channels_last)  # pyright: ignore
    return parameters


def collect(processes: Processes) -> dict[str, Any]:
    """What every function gives in this process."""
    result: dict[str, Any] = {"processes": processes, "first": processes.first}
    values = torch.tensor([1.0, 5.0], dtype=torch.float64) * (processes.rank + 1)
    result["average"] = processes.average(values)
    result["given"] = values
    parameters = own_gradients(processes.rank)
    processes.average_gradients(parameters)
    result["gradients"] = [parameter.grad for parameter in parameters]
    result["any"] = [processes.any(bool(flags >> processes.rank & 1)) for flags in range(4)]
    result["gather"] = processes.gather(
        {"rank": processes.rank, "text": "x" * (processes.rank + 1)}
    )
    with contextlib.redirect_stdout(io.StringIO()) as said:
        show_messages()
        processes.say(f"said by {processes.rank}")
    return {**result, "said": said.getvalue()}


def overflow_in_one(processes: Processes) -> list[tuple[float, bool]]:
    """Do float16 steps whose targets are huge in the second process alone.

    Returns, for each step, the scaler's scale and whether the weights changed.
    """
    net = make_net().float()
    objective = ElasticObjective(net, nn.MSELoss(), **LOSS)
    step_ = TrainingStep(
        objective, net, torch.optim.Adam(net.parameters()), processes=processes, precision="float16"
    )
    seen = []
    for step in range(8):
        before = net.head.linear.weight.clone()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
        x, y = (tensor.float() for tensor in images(step, SIZE))
        y[SIZE // 2 :] *= 100
        step_(cutter(x, y), step)
        seen.append((step_.scaler.get_scale(), not torch.equal(before, net.head.linear.weight)))  # pyright: ignore
    return seen


class Terminal(io.StringIO):
    """A stream that takes itself for a terminal, since progress is drawn on nothing else."""

    def isatty(self) -> bool:
        return True


def log_of_two(processes: Processes, folder: Path) -> dict[str, Any]:
    """What this process draws, and its error when one loss is NaN in the second process."""
    net = make_net()
    objective = ElasticObjective(net, nn.MSELoss(), **LOSS)
    run = (
        Run.create(folder, {}, writer=processes.first)
        if processes.first
        else Run(folder, {}, keep=1, writer=False)
    )
    with (
        run,
        contextlib.redirect_stderr(Terminal()) as drawn,
        TrainingLog(run, 9, processes) as log,
    ):
        for step in range(5):
            x, y = images(step + 10 * processes.rank)
            log.add(objective(x, y * float("nan") if step == 4 and processes.rank else y))
            if step == 1:
                log.write(2)
        try:
            log.write(5)
            error = ""
        except FloatingPointError as raised:
            error = str(raised)
    return {"drawn": drawn.getvalue(), "error": error}


def run_rank(rank: int, folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    if loopback:  # gloo would otherwise look up this machine's name
        os.environ["GLOO_SOCKET_IFNAME"] = loopback[0]
    values = (str(rank), str(NUM_RANKS), str(rank), "127.0.0.1", str(port), "no")
    os.environ.update(zip(ENVIRONMENT, values, strict=True))
    with contextlib.suppress(KeyError), join_processes("cpu") as processes:
        result = collect(processes)
        result |= {name: train(scenario, processes) for name, scenario in SCENARIOS.items()}
        result["overflow"] = overflow_in_one(processes)
        result["log"] = log_of_two(processes, folder / "run")
        torch.save(result, folder / f"{rank}.pt")
        raise KeyError("the group is left after an exception, too")
    assert not dist.is_initialized()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank gave; one start of two processes serves all tests."""
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this build of torch has no gloo")
    folder = tmp_path_factory.mktemp("distributed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start_ranks(run_rank, (folder, port), NUM_RANKS)
    both = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(NUM_RANKS)]
    lines = [json.loads(line) for line in (folder / "run/log.jsonl").read_text().splitlines()]
    return [{**result, "lines": lines} for result in both]


def test_who_they_are(results: list[dict[str, Any]]) -> None:
    assert [result["processes"] for result in results] == [
        Processes(rank, 2, torch.device("cpu")) for rank in (0, 1)
    ]
    assert [result["first"] for result in results] == [True, False]


def test_means_decisions_and_objects(results: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(results):
        assert torch.equal(result["average"], torch.tensor([1.5, 7.5], dtype=torch.float64))
        assert torch.equal(result["given"], torch.tensor([1.0, 5.0]) * (rank + 1)), (
            "the tensor given is not changed"
        )
        assert result["any"] == [False, True, True, True]
        assert result["gather"] == [{"rank": 0, "text": "x"}, {"rank": 1, "text": "xx"}]
    assert [result["said"] for result in results] == ["said by 0\n", ""]


def test_gradients_are_averaged_in_their_own_dtype_and_layout(
    results: list[dict[str, Any]],
) -> None:
    inputs = [[parameter.grad for parameter in own_gradients(rank)] for rank in range(NUM_RANKS)]
    for result in results:
        for actual, first, second in zip(result["gradients"], *inputs, strict=True):
            if first is None or second is None:
                assert actual is None
                continue
            torch.testing.assert_close(actual, (first + second) / 2, rtol=0, atol=0)
            assert actual.stride() == first.stride()


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_train_like_one(results: list[dict[str, Any]], name: str) -> None:
    expected = train(SCENARIOS[name], Processes())
    for result in results:
        for part in ("net", "averaged"):
            assert_close(dict(result[name][part]), dict(expected[part]))
        assert result[name]["means"]["per_depth"] == pytest.approx(
            expected["means"]["per_depth"], rel=1e-12
        )
        assert result[name]["means"]["total"] == pytest.approx(
            expected["means"]["total"], rel=1e-12
        )
    first, second = (result[name]["net"] for result in results)
    assert all(torch.equal(first[key], second[key]) for key in first), "or they would part for good"


def test_only_the_process_that_ran_out_of_memory_splits_its_share(
    results: list[dict[str, Any]],
) -> None:
    assert [result["one runs out of memory"]["parts"] for result in results] == [1, 4]
    assert [result["one runs out of memory"]["split"] for result in results] == [2, 8]


def test_an_overflow_in_one_process_skips_the_step_in_both(results: list[dict[str, Any]]) -> None:
    first, second = (result["overflow"] for result in results)
    assert first == second
    assert [changed for _, changed in first] == sorted(changed for _, changed in first)
    assert {changed for _, changed in first} == {False, True}


def test_the_first_process_writes_the_means_of_both(results: list[dict[str, Any]]) -> None:
    """The second one draws nothing; when its loss is NaN, both fail at the same step."""
    objective = ElasticObjective(make_net(), nn.MSELoss(), **LOSS)
    totals = [
        objective(*images(step + 10 * rank)).total.item() for step in (0, 1) for rank in (0, 1)
    ]
    for result in results:
        assert [line["step"] for line in result["lines"]] == [2]
        assert result["lines"][0]["total"] == pytest.approx(sum(totals) / 4, rel=1e-12)
        assert "the loss became NaN or infinite at step 5;" in result["log"]["error"]
    assert "loss" in results[0]["log"]["drawn"]
    assert results[1]["log"]["drawn"] == ""


# --- alone


@pytest.fixture
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*ENVIRONMENT, *ENGINES):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize("count", [None, "1"])
def test_alone_nothing_is_started(count: str | None, no_launcher: pytest.MonkeyPatch) -> None:
    if count is not None:
        no_launcher.setenv("WORLD_SIZE", count)
    with join_processes("cpu") as processes:
        assert not dist.is_initialized()
        assert processes == Processes(0, 1, torch.device("cpu"))
        values: Tensor = torch.tensor([1, 2])
        assert processes.average(values) is values
        assert (processes.any(True), processes.any(False), processes.gather("here")) == (
            True,
            False,
            ["here"],
        )
        parameters = own_gradients(0)
        processes.average_gradients(parameters)
        for parameter, before in zip(parameters, own_gradients(0), strict=True):
            assert (parameter.grad is None) is (before.grad is None)
            assert before.grad is None or torch.equal(before.grad, parameter.grad)  # pyright: ignore


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("value", ["true", "True", "1"])
def test_accelerate_s_other_engines_are_refused(
    no_launcher: pytest.MonkeyPatch, name: str, value: str
) -> None:
    no_launcher.setenv(name, value)
    with (
        pytest.raises(ValueError, match=f"{name} is set: .*launch it without"),
        join_processes("cpu"),
    ):
        pass
    no_launcher.setenv(name, "false")
    with join_processes("cpu"):
        pass


def test_accelerate_s_mixed_precision_is_refused(no_launcher: pytest.MonkeyPatch) -> None:
    no_launcher.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with (
        pytest.raises(ValueError, match=r"--mixed_precision bf16: pass `no` .* --precision"),
        join_processes("cpu"),
    ):
        pass


def test_half_an_environment_names_what_is_missing(no_launcher: pytest.MonkeyPatch) -> None:
    no_launcher.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="RANK expected"), join_processes("cpu"):
        pass
    assert not dist.is_initialized()


def test_more_processes_than_gpus_are_refused(no_launcher: pytest.MonkeyPatch) -> None:
    gpus = torch.cuda.device_count()
    for name, value in (("WORLD_SIZE", gpus + 2), ("RANK", gpus), ("LOCAL_RANK", gpus)):
        no_launcher.setenv(name, str(value))
    message = f"LOCAL_RANK {gpus}: this host has {gpus} GPUs; start at most one process for each"
    with pytest.raises(ValueError, match=message), join_processes("cuda"):
        pass
