"""Lightning: a LightningModule that holds the objective, and Fabric, train as the plain loop."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Subset

import elasticnet
from elasticnet import ElasticWrapper
from plain_loop import (
    BATCH_SIZE,
    assert_equal,
    batches,
    dataset,
    make_net,
    make_objective,
    make_objective_by_step,
    make_optimizer,
    train,
    trained_by_step,
    trained_in_bfloat16,
    trained_plainly,
)

lightning = pytest.importorskip("lightning", reason="lightning is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Leave out what Lightning says about this machine."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


class ElasticModule(lightning.LightningModule):
    def __init__(self, by_step: bool = False) -> None:
        super().__init__()
        net = make_net()
        self.objective = make_objective_by_step(net) if by_step else make_objective(net)

    def training_step(self, batch: Any, batch_index: int) -> torch.Tensor:
        return self.objective(*batch).total

    def validation_step(self, batch: Any, batch_index: int) -> None:
        self.log("loss", self.objective(*batch).total)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self.parameters())


def make_trainer(**options: Any) -> Any:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        **options,
    }
    return lightning.Trainer(**settings)


def test_a_lightning_module_trains_as_the_plain_loop() -> None:
    module = ElasticModule()
    make_trainer(devices=1).fit(module, DataLoader(dataset(), batch_size=BATCH_SIZE))
    assert_equal(module.objective.net.state_dict(), trained_plainly())


def test_steps_are_counted_without_being_passed_and_validation_does_not_count() -> None:
    module = ElasticModule(by_step=True)
    trainer = make_trainer(devices=1, val_check_interval=1)
    rows = DataLoader(dataset(), batch_size=BATCH_SIZE)
    trainer.fit(module, rows, rows)
    assert_equal(module.objective.net.state_dict(), trained_by_step())


def test_a_training_that_is_resumed_goes_on_at_its_step(tmp_path: Path) -> None:
    half = len(dataset()) // 2
    first_half = DataLoader(Subset(dataset(), range(half)), batch_size=BATCH_SIZE)
    second_half = DataLoader(Subset(dataset(), range(half, 2 * half)), batch_size=BATCH_SIZE)
    begun = make_trainer(max_epochs=1, devices=1)
    begun.fit(ElasticModule(by_step=True), first_half)
    begun.save_checkpoint(tmp_path / "begun.ckpt")

    module = ElasticModule(by_step=True)
    make_trainer(max_epochs=2, devices=1).fit(
        module, second_half, ckpt_path=tmp_path / "begun.ckpt"
    )
    assert_equal(module.objective.net.state_dict(), trained_by_step())


def test_bfloat16_reaches_every_pass_of_the_training() -> None:
    module = ElasticModule()
    trainer = make_trainer(devices=1, precision="bf16-mixed")
    trainer.fit(module, DataLoader(dataset(), batch_size=BATCH_SIZE))
    # Lightning switches autocast's cache off.
    assert_equal(module.objective.net.state_dict(), trained_in_bfloat16(cache_enabled=False))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_net_that_fabric_set_up_trains_as_in_the_plain_loop(precision: str) -> None:
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision=precision)
    net = make_net()
    prepared, optimizer = fabric.setup(net, make_optimizer(net.parameters()))
    train(make_objective(prepared), optimizer, backward=fabric.backward)
    expected = trained_plainly() if precision == "32-true" else trained_in_bfloat16()
    assert_equal(net.state_dict(), expected)


def test_an_objective_that_fabric_set_up_trains_as_in_the_plain_loop() -> None:
    """Not in bfloat16: Fabric would round the target, too, because it rounds every input."""
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    net = make_net()
    objective, optimizer = fabric.setup(make_objective(net), make_optimizer(net.parameters()))
    train(objective, optimizer, backward=fabric.backward)
    assert_equal(net.state_dict(), trained_plainly())


def test_a_net_that_fabric_set_up_is_saved_as_the_plain_one(tmp_path: Path) -> None:
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    net = make_net()
    prepared = fabric.setup_module(net)
    elasticnet.save(prepared, tmp_path / "net.safetensors")
    loaded: ElasticWrapper = elasticnet.load(tmp_path / "net.safetensors", depth=2, build=make_net)
    x, _ = batches()[0]
    assert_equal({"y": loaded(x)}, {"y": net(x, depth=2)})
