"""The plain loop that the tests compare with every other trainer: its network, data and result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from elasticnet import ElasticObjective, ElasticWrapper

BATCH_SIZE = 4
NUM_BATCHES = 4
LEARNING_RATE = 1e-2


class Block(nn.Module):
    """A residual block on tokens, whose linear layer is called `linear`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.linear = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.norm(x)).relu()


def make_net(dtype: torch.dtype = torch.float32) -> ElasticWrapper:
    """Return a net of three blocks on tokens, with the same weights each time."""
    torch.manual_seed(0)
    blocks = [Block(8) for _ in range(3)]
    net = ElasticWrapper(blocks, shared_head=nn.Linear(8, 4), stem=nn.Linear(5, 8), layout="b n c")
    return net.to(dtype)


def make_objective(net: nn.Module) -> ElasticObjective:
    return ElasticObjective(net, nn.MSELoss(), psd_weight=0.1)


def make_objective_by_step(net: nn.Module, accumulation: int = 1) -> ElasticObjective:
    """Return an objective that depends on the step: sampled taps, and a weight that grows."""
    return ElasticObjective(
        net,
        nn.MSELoss(),
        psd_weight=lambda step: 0.1 * step,
        sampled_taps=1,
        accumulation=accumulation,
    )


def make_learned_objective(net: nn.Module) -> ElasticObjective:
    """Return an objective that learns the weights of its losses."""
    dtype = next(net.parameters()).dtype
    return ElasticObjective(
        net,
        nn.MSELoss(),
        psd_weight=nn.Parameter(torch.tensor([0.1], dtype=dtype)),
        tap_weights=nn.Parameter(torch.tensor([1.0, 0.5, 0.7], dtype=dtype)),
        sampled_taps=1,
    )


@torch.no_grad()
def predictions_of(net: Any) -> dict[int, Tensor]:
    """Return the prediction at each depth on the first batch, in float64."""
    x, _ = batches(torch.float64)[0]
    return {depth: net(x, depth=depth) for depth in (1, 2, 3)}


def make_optimizer(parameters: Any, weight_decay: float = 0.01) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=weight_decay)


def dataset(dtype: torch.dtype = torch.float32) -> TensorDataset:
    """Return inputs (16, 6, 5) and targets (16, 6, 4)."""
    generator = torch.Generator().manual_seed(3)
    num_rows = BATCH_SIZE * NUM_BATCHES
    inputs = torch.randn(num_rows, 6, 5, dtype=dtype, generator=generator)
    targets = torch.randn(num_rows, 6, 4, dtype=dtype, generator=generator)
    return TensorDataset(inputs, targets)


def batches(dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    """Return the data set's batches in order."""
    inputs, targets = dataset(dtype).tensors
    return list(zip(inputs.split(BATCH_SIZE), targets.split(BATCH_SIZE), strict=True))


def rows_by_name(dtype: torch.dtype = torch.float32) -> list[dict[str, Tensor]]:
    """Return the rows of the data set, each as the arguments of the objective."""
    return [{"x": x, "target": target} for x, target in dataset(dtype)]


def train(
    call: Callable[..., Any],
    optimizer: Any,
    backward: Callable[[Tensor], Any] = Tensor.backward,
    dtype: torch.dtype = torch.float32,
    rows: slice = slice(None),
) -> None:
    """Train on these rows of each batch: `call(x, target)` returns the terms of the loss."""
    for x, target in batches(dtype):
        optimizer.zero_grad()
        terms = call(x[rows], target[rows])
        backward(terms.total)
        optimizer.step()


def trainer_arguments(folder: Path, **options: Any) -> Any:
    """Return the settings of transformers' Trainer that make it train as the plain loop."""
    from transformers import TrainingArguments

    settings: dict[str, Any] = {
        "per_device_train_batch_size": BATCH_SIZE,
        "max_steps": NUM_BATCHES,
        "optim": "adamw_torch",
        "learning_rate": LEARNING_RATE,
        "weight_decay": 0.0,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        **options,
    }
    return TrainingArguments(output_dir=str(folder), **settings)


def trained_plainly(
    dtype: torch.dtype = torch.float32, weight_decay: float = 0.01
) -> dict[str, Tensor]:
    """Return the weights after the plain loop on one process."""
    net = make_net(dtype)
    train(make_objective(net), make_optimizer(net.parameters(), weight_decay), dtype=dtype)
    return net.state_dict()


def trained_by_sgd(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return the weights after the plain loop with SGD, which sees by how much a loss is divided.

    AdamW divides gradients by their own size.
    """
    net = make_net(dtype)
    train(make_objective(net), torch.optim.SGD(net.parameters(), lr=LEARNING_RATE), dtype=dtype)
    return net.state_dict()


def trained_by_step(
    dtype: torch.dtype = torch.float32, weight_decay: float = 0.01
) -> dict[str, Tensor]:
    """Return the weights after the plain loop that passes the step to the objective."""
    net = make_net(dtype)
    objective = make_objective_by_step(net)
    optimizer = make_optimizer(net.parameters(), weight_decay)
    for step, (x, target) in enumerate(batches(dtype)):
        optimizer.zero_grad()
        objective(x, target, step=step).total.backward()
        optimizer.step()
    return net.state_dict()


def trained_in_bfloat16(
    cache_enabled: bool = True, weight_decay: float = 0.01
) -> dict[str, Tensor]:
    """Return the weights after the plain loop under autocast.

    Autocast keeps the bfloat16 copy of a weight unless `cache_enabled` is False. Then each use of
    the shared head has a copy of its own, and the gradients are added in float32.
    """
    net = make_net()
    objective = make_objective(net)

    def call(x: Tensor, target: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cache_enabled):
            return objective(x, target)

    train(call, make_optimizer(net.parameters(), weight_decay))
    return net.state_dict()


def assert_equal(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """Assert that weights are the same bits."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
