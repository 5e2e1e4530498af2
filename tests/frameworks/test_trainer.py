"""transformers' Trainer: its model is the objective, and it trains as the plain loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from elasticnet import ElasticObjective
from plain_loop import (
    BATCH_SIZE,
    NUM_BATCHES,
    assert_equal,
    make_net,
    make_objective,
    make_objective_by_step,
    rows_by_name,
    trained_by_sgd,
    trained_by_step,
    trained_in_bfloat16,
    trained_plainly,
    trainer_arguments,
)
from split_nets import gpt2, objective_of

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate")


def train(
    objective: ElasticObjective,
    folder: Path,
    resume_from: Path | None = None,
    trainer_class: Any = None,
    rows: Any = None,
    **options: Any,
) -> Any:
    """Return the Trainer after a training with the plain loop's settings."""
    trainer = (trainer_class or transformers.Trainer)(
        model=objective,
        args=trainer_arguments(folder, **options),
        train_dataset=rows or rows_by_name(),
    )
    trainer.train(resume_from_checkpoint=resume_from and str(resume_from))
    return trainer


def test_a_training_equals_the_plain_loop(tmp_path: Path) -> None:
    net = make_net()
    train(make_objective(net), tmp_path)
    assert_equal(net.state_dict(), trained_plainly(weight_decay=0.0))


@pytest.mark.slow
def test_bfloat16_reaches_every_pass_of_the_training(tmp_path: Path) -> None:
    net = make_net()
    train(make_objective(net), tmp_path, bf16=True)
    assert_equal(net.state_dict(), trained_in_bfloat16(weight_decay=0.0))


@pytest.mark.slow
def test_an_objective_that_the_trainer_compiles_is_one_graph(tmp_path: Path) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    net = make_net()
    train(make_objective(net), tmp_path, torch_compile=True, torch_compile_backend="aot_eager")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch.testing.assert_close(net.state_dict(), trained_plainly(weight_decay=0.0))


@pytest.mark.slow
def test_gradient_accumulation_trains_as_one_larger_batch(tmp_path: Path) -> None:
    net = make_net()
    half = BATCH_SIZE // 2
    train(
        make_objective(net),
        tmp_path,
        per_device_train_batch_size=half,
        gradient_accumulation_steps=2,
        optim="sgd",
    )
    torch.testing.assert_close(net.state_dict(), trained_by_sgd())


@pytest.mark.slow
def test_a_loss_made_in_compute_loss_is_divided_for_accumulation_too(tmp_path: Path) -> None:
    """Where rows have labels, the Trainer leaves the division to models that take any keyword."""

    class NetTrainer(transformers.Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
            return make_objective(model)(inputs["x"], inputs["labels"]).total

    net = make_net()
    half = BATCH_SIZE // 2
    train(
        net,  # pyright: ignore[reportArgumentType]
        tmp_path,
        trainer_class=NetTrainer,
        per_device_train_batch_size=half,
        gradient_accumulation_steps=2,
        remove_unused_columns=False,
        rows=[{"x": row["x"], "labels": row["target"]} for row in rows_by_name()],
        optim="sgd",
    )
    torch.testing.assert_close(net.state_dict(), trained_by_sgd())


@pytest.mark.slow
def test_a_training_is_resumed_from_the_trainers_checkpoint(tmp_path: Path) -> None:
    net = make_net()
    train(make_objective(net), tmp_path, save_strategy="steps", save_steps=2)
    resumed = make_net()
    train(make_objective(resumed), tmp_path / "resumed", resume_from=tmp_path / "checkpoint-2")
    assert_equal(resumed.state_dict(), net.state_dict())


@pytest.mark.slow
def test_steps_are_counted_and_resumed_without_being_passed(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "per_device_train_batch_size": BATCH_SIZE // 2,
        "gradient_accumulation_steps": 2,
    }
    net = make_net()
    objective = make_objective_by_step(net, accumulation=2)
    train(objective, tmp_path, save_strategy="steps", save_steps=2, **options)
    torch.testing.assert_close(net.state_dict(), trained_by_step(weight_decay=0.0))
    assert objective.step_counter.steps == NUM_BATCHES

    resumed = make_net()
    other = make_objective_by_step(resumed, accumulation=2)
    train(other, tmp_path / "resumed", resume_from=tmp_path / "checkpoint-2", **options)
    assert_equal(resumed.state_dict(), net.state_dict())


@pytest.mark.slow
def test_evaluate_returns_the_loss(tmp_path: Path) -> None:
    objective = make_objective(make_net())
    trainer = train(objective, tmp_path, label_names=["target"], per_device_eval_batch_size=16)
    found = trainer.evaluate(rows_by_name())["eval_loss"]

    rows = rows_by_name()
    x = torch.stack([row["x"] for row in rows])
    target = torch.stack([row["target"] for row in rows])
    with torch.no_grad():
        expected = objective(x, target).total.item()
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_a_net_with_tied_weights_is_saved_as_copies(tmp_path: Path) -> None:
    """The Trainer's own save refuses tensors that share memory, except for transformers' models."""
    import safetensors.torch

    class TiedTrainer(transformers.Trainer):
        def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            copies = {name: each.clone() for name, each in self.model.state_dict().items()}
            safetensors.torch.save_file(copies, folder / "model.safetensors")

    case = gpt2()
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, save_steps=1, report_to=[], use_cpu=True
    )
    rows = [{"x": row, "target": row} for row in case.x]
    TiedTrainer(model=objective_of(case), args=args, train_dataset=rows).train()

    resumed = gpt2()
    trainer = TiedTrainer(model=objective_of(resumed), args=args, train_dataset=rows)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert_equal(resumed.net.state_dict(), case.net.state_dict())
