"""Trains in several ways on two processes; what torchrun starts for test_two_processes.py.

    torchrun --nproc-per-node 2 two_processes.py FOLDER WAY...

Each way trains on the plain loop's batches, half of the rows on each process, in float64. Process 0
writes the weights, or what the way returns beside them, to FOLDER/WAY.pt.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, Subset

import elasticnet
from elasticnet import ElasticObjective
from plain_loop import (
    BATCH_SIZE,
    NUM_BATCHES,
    Block,
    batches,
    dataset,
    make_learned_objective,
    make_net,
    make_objective,
    make_objective_by_step,
    make_optimizer,
    predictions_of,
    rows_by_name,
    train,
    trainer_arguments,
)
from split_nets import CASES, objective_of, train_case

NUM_PROCESSES = 2
ROWS = BATCH_SIZE // NUM_PROCESSES
Weights = dict[str, Any]


def own_rows() -> slice:
    """Return this process's rows of each batch."""
    first = ROWS * dist.get_rank()
    return slice(first, first + ROWS)


# --- DistributedDataParallel


def ddp_around_the_objective(folder: Path) -> Weights:
    net = make_net(torch.float64)
    objective = DistributedDataParallel(make_objective(net))
    train(objective, make_optimizer(net.parameters()), dtype=torch.float64, rows=own_rows())
    return net.state_dict()


def ddp_around_the_net(folder: Path) -> Weights:
    net = make_net(torch.float64)
    objective = make_objective(DistributedDataParallel(net))
    train(objective, make_optimizer(net.parameters()), dtype=torch.float64, rows=own_rows())
    return net.state_dict()


def ddp_by_step(folder: Path) -> Weights:
    net = make_net(torch.float64)
    objective = DistributedDataParallel(make_objective_by_step(net))
    train(objective, make_optimizer(net.parameters()), dtype=torch.float64, rows=own_rows())
    return net.state_dict()


def compiled_ddp_around_the_net(folder: Path) -> Weights:
    net = make_net(torch.float64)
    compiled: Any = torch.compile(DistributedDataParallel(net), backend="aot_eager")
    objective = make_objective(compiled)
    train(objective, make_optimizer(net.parameters()), dtype=torch.float64, rows=own_rows())
    return net.state_dict()


# --- FSDP2


def shard(*modules: nn.Module, policy: Any = None) -> None:
    """Shard modules over the processes; each module after the modules inside it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # Without a mesh, torch takes the accelerator of this machine if it has one.
    mesh = init_device_mesh("cpu", (NUM_PROCESSES,))
    for module in modules:
        if policy is None:
            fully_shard(module, mesh=mesh)
        else:
            fully_shard(module, mesh=mesh, mp_policy=policy)


def whole_weights(net: nn.Module) -> Weights:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True)
    return get_model_state_dict(net, options=options)


def fsdp2_with_the_net_as_root(folder: Path) -> Weights:
    net = make_net(torch.float64)
    shard(*net.blocks, net)
    objective = make_objective(net)
    train(objective, make_optimizer(net.parameters()), dtype=torch.float64, rows=own_rows())
    # Of a sharded net, all processes call save, with different paths.
    elasticnet.save(net, folder / f"process_{dist.get_rank()}.safetensors")
    return whole_weights(net)


def fsdp2_by_step(folder: Path) -> Weights:
    net = make_net(torch.float64)
    objective: ElasticObjective = make_objective_by_step(net)
    shard(*net.blocks, objective)
    train(objective, make_optimizer(net.parameters()), dtype=torch.float64, rows=own_rows())
    state = whole_weights(objective)
    if dist.get_rank() == 0:
        assert state["step_counter.steps"] == NUM_BATCHES
    return whole_weights(net)


def fsdp2_with_learned_weights(folder: Path) -> Weights:
    """Return the weights of the objective, and predictions of the net alone."""
    net = make_net(torch.float64)
    objective = make_learned_objective(net)
    shard(*net.blocks, net, objective)
    train(objective, make_optimizer(objective.parameters()), dtype=torch.float64, rows=own_rows())
    return {"weights": whole_weights(objective), "predictions": predictions_of(net)}


def fsdp2_state_from_process_0(folder: Path) -> Weights:
    """Return the count of each process after process 0 alone had a state to load."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    begun = make_objective_by_step(make_net())
    for x, target in batches():
        begun(x, target)
    state = begun.state_dict() if dist.get_rank() == 0 else {}

    net = make_net()
    objective = make_objective_by_step(net)
    shard(*net.blocks, objective)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(objective, state, options=options)

    counts = [torch.zeros((), dtype=torch.int64) for _ in range(NUM_PROCESSES)]
    dist.all_gather(counts, objective.step_counter.steps)
    return {"counts": torch.stack(counts)}


def fsdp2_in_bfloat16(folder: Path) -> Weights:
    """Return the dtypes of a pass, and the loss before and after the training."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    in_bfloat16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    root_policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32
    )
    net = make_net()
    shard(*net.blocks, policy=in_bfloat16)
    shard(net, policy=root_policy)
    features: list[Any] = []
    net.blocks[1].register_forward_hook(lambda block, inputs, output: features.append(output))
    objective = make_objective(net)
    x, target = dataset().tensors
    before = objective(x, target).total
    train(objective, make_optimizer(net.parameters()), rows=own_rows())
    after = objective(x, target).total
    return {
        "features": features[0].dtype,
        "prediction": net(x, taps=net.taps).predictions[0].dtype,
        "weights": net.get_parameter("blocks.1.linear.weight").dtype,
        "before": before.item(),
        "after": after.item(),
    }


def zero_last_layer(block: Any) -> None:
    nn.init.zeros_(block.linear.weight)
    nn.init.zeros_(block.linear.bias)


def fsdp2_and_copies(folder: Path) -> Weights:
    """Return what the calls that copy a sharded net say."""
    net = make_net()
    shard(*net.blocks)
    calls = {
        "truncate": lambda: net.truncate(2),
        "to_sequential": net.to_sequential,
        "grow": lambda: net.grow([Block(8)], torch.zeros(1, 6, 5), init=zero_last_layer),
        "find_unused": lambda: make_objective(net).find_unused(*batches()[0]),
    }
    said: dict[str, str] = {}
    for name, call in calls.items():
        try:
            call()
        except ValueError as error:
            said[name] = str(error)
    return said


def fsdp2_files(folder: Path) -> Weights:
    """Write files of an unsharded and a sharded net, and fill another sharded net from one."""
    rank = dist.get_rank()
    whole = folder / f"whole_{rank}.safetensors"
    elasticnet.save(make_net(), whole)

    sharded = make_net()
    shard(*sharded.blocks, sharded)
    elasticnet.save(sharded, folder / f"sharded_{rank}.safetensors")

    other = make_net()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    shard(*other.blocks, other)
    elasticnet.load_into(other, whole)
    elasticnet.save(other, folder / f"filled_{rank}.safetensors")
    return whole_weights(other)


def fsdp2_with_the_objective_as_root(folder: Path) -> Weights:
    net = make_net(torch.float64)
    objective: ElasticObjective = make_objective(net)
    shard(*net.blocks, objective)
    train(objective, make_optimizer(net.parameters()), dtype=torch.float64, rows=own_rows())
    return whole_weights(net)


# --- split models


def ddp_of_split_models(folder: Path) -> Weights:
    """Return the weights of each split model, by its name."""
    weights: Weights = {}
    for name, make_case in CASES.items():
        case = make_case()
        train_case(case, DistributedDataParallel(objective_of(case)), rows=own_rows())
        weights[name] = dict(case.net.state_dict())
    return weights


def fsdp2_of_split_models(folder: Path) -> Weights:
    """Return the weights of each split model, by its name."""
    weights: Weights = {}
    for name, make_case in CASES.items():
        case = make_case()
        shard(*case.net.blocks, case.net)
        train_case(case, objective_of(case), rows=own_rows())
        weights[name] = dict(whole_weights(case.net))
    return weights


# --- other people's trainers


def accelerate(folder: Path) -> Weights:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    net = make_net(torch.float64)
    prepared, optimizer = accelerator.prepare(net, make_optimizer(net.parameters()))
    objective = make_objective(prepared)
    train(objective, optimizer, backward=accelerator.backward, dtype=torch.float64, rows=own_rows())
    return net.state_dict()


def lightning(folder: Path) -> Weights:
    # by its name, because type checkers have no Lightning where the extra is not installed
    lightning_package: Any = importlib.import_module("lightning")

    class ElasticModule(lightning_package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.objective = make_objective(make_net(torch.float64))

        def training_step(self, batch: Any, batch_index: int) -> torch.Tensor:
            return self.objective(*batch).total

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return make_optimizer(self.parameters())

    module = ElasticModule()
    trainer = lightning_trainer("ddp", max_epochs=1)
    trainer.fit(module, every_second_row(dataset(torch.float64)))
    return module.objective.net.state_dict()


def lightning_trainer(strategy: Any, max_epochs: int) -> Any:
    """Return a Trainer of Lightning that leaves the order of the rows alone."""
    lightning_package: Any = importlib.import_module("lightning")
    return lightning_package.Trainer(
        accelerator="cpu",
        devices=NUM_PROCESSES,
        strategy=strategy,
        max_epochs=max_epochs,
        use_distributed_sampler=False,  # Lightning's own one shuffles
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def every_second_row(rows: Any) -> DataLoader[Any]:
    """Return a loader of this process's rows, in order."""
    sampler: DistributedSampler[Any] = DistributedSampler(rows, shuffle=False)
    return DataLoader(rows, batch_size=ROWS, sampler=sampler)


def trainer(folder: Path) -> Weights:
    from transformers import Trainer

    net = make_net(torch.float64)
    args = two_process_arguments(folder / "trainer")
    rows = rows_by_name(torch.float64)
    Trainer(model=make_objective(net), args=args, train_dataset=rows).train()
    return net.state_dict()


def two_process_arguments(folder: Path, **options: Any) -> Any:
    """Return the Trainer's settings for half of the rows on each process."""
    return trainer_arguments(
        folder,
        per_device_train_batch_size=ROWS,
        ddp_backend="gloo",
        ddp_find_unused_parameters=False,
        **options,
    )


# --- FSDP2 by the plugins of other people's trainers


def let_accelerate_shard_on_the_cpu() -> None:
    """Make accelerate take its FSDP plugin, which it does on accelerators alone."""
    from accelerate import PartialState
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    AcceleratorState._reset_state()
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def weights_of_net(objective_state: Weights) -> Weights:
    """Return the weights of the net in the state of an objective."""
    names = [name for name in objective_state if name.startswith("net.")]
    return {name.removeprefix("net."): objective_state[name] for name in names}


def accelerate_fsdp2(folder: Path) -> Weights:
    """Save after half of the batches, and go on from there after two more steps."""
    from accelerate import Accelerator
    from accelerate.utils import FullyShardedDataParallelPlugin

    let_accelerate_shard_on_the_cpu()
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["Block", "ElasticWrapper"],
        state_dict_type="FULL_STATE_DICT",
    )
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    unprepared = make_objective_by_step(make_net(torch.float64))
    objective, optimizer = accelerator.prepare(unprepared, make_optimizer(unprepared.parameters()))

    def train_on(part: slice) -> None:
        for x, target in batches(torch.float64)[part]:
            optimizer.zero_grad()
            accelerator.backward(objective(x[own_rows()], target[own_rows()]).total)
            optimizer.step()

    train_on(slice(0, 2))
    accelerator.save_state(str(folder / "accelerate"))
    train_on(slice(0, 2))
    accelerator.load_state(str(folder / "accelerate"))
    train_on(slice(2, 4))
    predictions = predictions_of(objective.net)
    weights = weights_of_net(accelerator.get_state_dict(objective))
    return {"weights": weights, "predictions": predictions}


def trainer_fsdp2(folder: Path) -> Weights:
    """Train twice: to the end, and from the middle of the first training to the end."""
    train_with_sharding_trainer(folder / "begun", save_strategy="steps", save_steps=2)
    resumed = train_with_sharding_trainer(
        folder / "resumed", resume_from=folder / "begun" / "checkpoint-2"
    )
    predictions = predictions_of(resumed.model_wrapped.net)
    weights = weights_of_net(resumed.accelerator.get_state_dict(resumed.model_wrapped))
    return {"weights": weights, "predictions": predictions}


def train_with_sharding_trainer(
    folder: Path, resume_from: Path | None = None, **options: Any
) -> Any:
    """Return a Trainer of transformers after it has trained a net in shards."""
    from transformers import Trainer

    let_accelerate_shard_on_the_cpu()
    args = two_process_arguments(
        folder,
        fsdp=True,
        fsdp_config={
            "version": 2,
            "transformer_layer_cls_to_wrap": ["Block", "ElasticWrapper"],
            "state_dict_type": "FULL_STATE_DICT",
        },
        **options,
    )
    assert args.device.type == "cpu"  # sets up the processes, before accelerate is told again
    let_accelerate_shard_on_the_cpu()
    trainer = Trainer(
        model=make_objective_by_step(make_net(torch.float64)),
        args=args,
        train_dataset=rows_by_name(torch.float64),
    )
    trainer.train(resume_from_checkpoint=resume_from and str(resume_from))
    return trainer


def lightning_model_parallel(folder: Path) -> Weights:
    """Train on half of the rows, and go on from the checkpoint with the other half."""
    lightning_package: Any = importlib.import_module("lightning")
    from torch.distributed.fsdp import fully_shard

    class ShardedModule(lightning_package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.objective = make_objective_by_step(make_net(torch.float64))

        def configure_model(self) -> None:
            mesh = self.device_mesh["data_parallel"]
            net: Any = self.objective.net
            for module in (*net.blocks, net, self.objective):
                fully_shard(module, mesh=mesh)

        def training_step(self, batch: Any, batch_index: int) -> torch.Tensor:
            return self.objective(*batch).total

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return make_optimizer(self.parameters())

    rows = dataset(torch.float64)
    num_rows = len(rows) // 2
    module = ShardedModule()
    begun = lightning_trainer(sharding_strategy(lightning_package), max_epochs=1)
    begun.fit(module, every_second_row(Subset(rows, range(num_rows))))
    begun.save_checkpoint(folder / "begun.ckpt")

    resumed = ShardedModule()
    trainer = lightning_trainer(sharding_strategy(lightning_package), max_epochs=2)
    second_half = every_second_row(Subset(rows, range(num_rows, 2 * num_rows)))
    trainer.fit(resumed, second_half, ckpt_path=folder / "begun.ckpt")
    net = resumed.objective.net
    return {"weights": whole_weights(net), "predictions": predictions_of(net)}


def sharding_strategy(lightning_package: Any) -> Any:
    """Return Lightning's strategy for FSDP2, whose checkpoints are single files."""
    return lightning_package.pytorch.strategies.ModelParallelStrategy(
        data_parallel_size=NUM_PROCESSES, tensor_parallel_size=1, save_distributed_checkpoint=False
    )


WAYS: dict[str, Callable[[Path], Weights]] = {
    way.__name__: way
    for way in (
        ddp_around_the_objective,
        ddp_around_the_net,
        ddp_by_step,
        ddp_of_split_models,
        compiled_ddp_around_the_net,
        fsdp2_with_the_net_as_root,
        fsdp2_with_the_objective_as_root,
        fsdp2_and_copies,
        fsdp2_files,
        fsdp2_by_step,
        fsdp2_state_from_process_0,
        fsdp2_with_learned_weights,
        fsdp2_in_bfloat16,
        fsdp2_of_split_models,
        accelerate,
        lightning,
        trainer,
        accelerate_fsdp2,
        trainer_fsdp2,
        lightning_model_parallel,
    )
}


def main(folder: Path, names: list[str]) -> None:
    """Train in each way, and write what process 0 got."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for name in names:
        weights = WAYS[name](folder)
        if dist.get_rank() == 0:
            torch.save(dict(weights), folder / f"{name}.pt")
    dist.barrier()  # one process must not leave while the other still talks to it
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
