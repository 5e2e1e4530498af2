"""One training step: gradients of a batch, clipping, update and moving average; no loop."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from elasticnet._modules.unwrapping import unwrapped
from elasticnet.losses import LossTerms
from elasticnet.training.gradient_buckets import GradientBuckets
from elasticnet.training.gradient_shares import distillation_share
from elasticnet.training.processes import Processes
from elasticnet.training.tap_gradients import TapGradients

logger = logging.getLogger(__name__)

AUTOCAST_DTYPES = {
    "float64": None,
    "float32": None,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""The precisions of a step, each with the dtype of autocast; None where autocast is off."""

Batch = Callable[[int, int], tuple[Any, Any]]
"""A step's batch as a function: `batch(part, num_parts)` returns that part as (input, target).

Parts are counted from 0 and are of equal size. A batch that cannot be cut into so many parts raises
a ValueError or an IndexError.
"""


class TrainingStep:
    """One step of a training, called with a batch and the number of the step.

    The batch may be shared by several processes and computed in several parts. If the loss is a
    mean over the batch, both change the gradients by rounding alone. Every process must start from
    the same weights.

    Args:
        objective: An `ElasticObjective`, or any function
            `objective(x, target, step=step) -> LossTerms`; it may be compiled.
        net: The network whose parameters `optimizer` holds, and whose weights are averaged.
        optimizer: It holds parameters of the network alone. Its gradients are cleared before every
            step.
        processes: Those that share the batch. Default: this one, on the network's device.
        precision: `"float32"` or `"float64"`, as the weights are; or, by autocast, `"bfloat16"`,
            or `"float16"` with a gradient scaler.
        ema: Decay of an exponential moving average of the weights, from 0 (none) to below 1, such
            as 0.999; timm's `ModelEmaV3` with its warm-up.
        clip_norm: Largest norm of all gradients together. Default: not limited.
        clip_value: Largest absolute value of each gradient, after `clip_norm`. Default: not
            limited.
        parts: In how many parts this process computes its share of the batch, one after the other
            (gradient accumulation). More parts take less memory.
        tap_gradients: Joins the gradients of the taps in another way than by their sum. The
            objective then is an `ElasticObjective` with `by_term=True`, and not compiled. Each part
            of a batch, and each process, joins its own gradients, so that here both change the
            gradients by more than rounding. Default: the sum.
        auto_batch: When the GPU's memory runs out, double `parts`, log a warning, and do the step
            again.

    Attributes:
        copied_buffers: The names of the net's buffers that the moving average takes as they are,
            as the average of infinite values would be NaN.

    Raises:
        ValueError: An argument is out of its range, or the optimiser holds a parameter that is not
            the network's.

    Example:
        >>> training_step = TrainingStep(objective, net, optimizer, ema=0.999, parts=2)
        >>> def batch(part, num_parts):
        ...     return x.chunk(num_parts)[part], target.chunk(num_parts)[part]
        >>> terms = training_step(batch, step=0, learning_rate=1e-3)
    """

    def __init__(
        self,
        objective: Callable[..., LossTerms],
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        processes: Processes | None = None,
        precision: str = "float32",
        ema: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        parts: int = 1,
        tap_gradients: TapGradients | None = None,
        auto_batch: bool = False,
    ) -> None:
        if precision not in AUTOCAST_DTYPES:
            expected = ", ".join(AUTOCAST_DTYPES)
            raise ValueError(f"precision {precision!r}: expected one of {expected}")
        if not 0 <= ema < 1:
            raise ValueError(f"ema {ema}: expected a decay from 0 (none) to below 1, such as 0.999")
        for name, limit in (("clip_norm", clip_norm), ("clip_value", clip_value)):
            if limit is not None and not limit > 0:
                raise ValueError(f"{name} {limit}: expected a number above 0, or None")
        if parts < 1:
            raise ValueError(f"parts {parts}: expected at least 1")
        _check_parameters_of_net(optimizer, net)
        self.objective = objective
        self.net = net
        self.optimizer = optimizer
        self.processes = processes or Processes(device=next(net.parameters()).device)
        self.precision = precision
        self.ema = ema
        self.clip_norm = clip_norm
        self.clip_value = clip_value
        self.parts = parts
        self.tap_gradients = tap_gradients
        self.auto_batch = auto_batch
        self.scaler = torch.amp.GradScaler(
            self.processes.device.type, enabled=precision == "float16"
        )
        self._buckets = self._make_buckets()
        self._ema: Any = None
        self.copied_buffers: list[str] = []
        if ema > 0:
            # imported here because only this option needs timm
            from timm.utils.model_ema import ModelEmaV3

            self._ema = ModelEmaV3(net, decay=ema, use_warmup=True)
            # Masks, for example. The average of two infinite values is NaN: these are copied.
            for name, buffer in net.named_buffers():
                if _wide(buffer).isinf().any():
                    self.copied_buffers.append(name)

    @property
    def averaged_net(self) -> Any:
        """The network to evaluate and to ship: the moving average, or else the network itself."""
        return self.net if self._ema is None else self._ema.module

    def __call__(self, batch: Batch, step: int, learning_rate: float | None = None) -> LossTerms:
        """Do one step.

        Args:
            batch: The whole batch of the step, as a function that cuts parts from it.
            step: The number of the step, from 0.
            learning_rate: Set for all parameters before the update. Default: the optimiser's own.

        Returns:
            The losses of this process's share of the batch, detached.

        Raises:
            RuntimeError: The GPU's memory does not suffice, and the batch may not or cannot be
                split further.
        """
        terms = self.compute_gradients(batch, step)
        if self._buckets is None:
            self.processes.average_gradients(self.net.parameters())
        # Without float16 the scaler does nothing but call the optimiser.
        self.scaler.unscale_(self.optimizer)
        self.clip_gradients()
        if learning_rate is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
        self.scaler.step(self.optimizer)  # skips the update if a float16 gradient overflowed
        self.scaler.update()
        if self._ema is not None:
            self._ema.update(self.net, step + 1)
            for name in self.copied_buffers:
                self._ema.module.get_buffer(name).copy_(self.net.get_buffer(name))
        return terms

    def distillation_share(self, batch: Batch, step: int, module: nn.Module) -> float:
        """Return the share of the distillation in the gradient of a module, such as `net.blocks`.

        See `elasticnet.training.gradient_shares.distillation_share`: the training goes on to the
        same bits. It is measured on the first part of this process's share of the batch.

        Args:
            batch: The whole batch of the step, as for the step itself.
            step: The number of the step, from 0.
            module: A part of the network.

        Returns:
            The share; 0 if there is no distillation.
        """
        x, target = batch(self.processes.rank * self.parts, self.processes.count * self.parts)
        objective = unwrapped(self.objective)  # a graph can be asked for one backward pass alone
        with self.autocast():
            return distillation_share(objective, x, target, step, module)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed training needs beside the random generators, for `Run.save`.

        Raises:
            FloatingPointError: The last update left weights that are NaN or infinite, or a buffer
                that is NaN. Those must never be saved. A buffer may be infinite, as masks are.
        """
        for name, parameter in self.net.named_parameters():
            if not _wide(parameter).isfinite().all():
                raise FloatingPointError(
                    f"the weights became NaN or infinite (first: {name}), and were not saved: "
                    "an earlier state is good. Try a smaller learning rate, or clipped gradients"
                )
        for name, buffer in self.net.named_buffers():
            if _wide(buffer).isnan().any():
                raise FloatingPointError(
                    f"the buffer {name} became NaN, and the weights were not saved: an earlier "
                    "state is good. Try a smaller learning rate, or look for NaN in the inputs"
                )
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self._ema is None else self._ema.module.state_dict(),
            "scaler": self.scaler.state_dict(),
            "parts": self.parts * self.processes.count,  # of the whole batch
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        A moving average that is new starts from the loaded weights. With `auto_batch` the batch is
        split at least as far as it was then.

        Args:
            state: What `state_dict` returned, perhaps with another number of processes.
        """
        self.net.load_state_dict(state["net"])
        # PyTorch's optimisers go on in the very tensors that they are given.
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        if self._ema is not None:
            self._ema.module.load_state_dict(state["ema"] or state["net"])
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        if self.auto_batch:
            parts_of_one_process = math.ceil(state["parts"] / self.processes.count)
            self.parts = max(self.parts, parts_of_one_process)

    def compute_gradients(self, batch: Batch, step: int) -> LossTerms:
        """Leave the gradients of this process's share in the parameters; a part of the step.

        Args:
            batch: As for the step itself.
            step: The number of the step, from 0.

        Returns:
            The losses of this process's share of the batch, detached.

        Raises:
            RuntimeError: The GPU's memory does not suffice, and the batch may not or cannot be
                split further.
        """
        while True:
            try:
                return self._gradients_of_parts(batch, step)
            except torch.OutOfMemoryError as error:
                if not self.auto_batch:
                    raise RuntimeError(
                        f"out of GPU memory at step {step}; take a smaller batch or input, or let "
                        "the batch be split by itself with --auto-batch "
                        f"({str(error).splitlines()[0]})"
                    ) from error
            # Here the error is gone, and with it the tensors that had filled the memory.
            self._split_further(batch)

    def _gradients_of_parts(self, batch: Batch, step: int) -> LossTerms:
        """Compute the gradients once, with as many parts as there are now."""
        self.optimizer.zero_grad(set_to_none=True)
        first_part = self.processes.rank * self.parts
        num_parts = self.processes.count * self.parts  # of the whole batch
        last_part = first_part + self.parts - 1
        rows: list[Tensor] = []
        depths: tuple[int, ...] = ()
        for part in range(first_part, last_part + 1):
            x, target = batch(part, num_parts)
            with self.autocast():
                terms = self.objective(x, target, step=step)
            # The loss of the share is the mean over its parts, as they are of equal size.
            if self.tap_gradients is None:
                with self._averaging(is_last_part=part == last_part):
                    self.scaler.scale(terms.total / self.parts).backward()
            else:
                self._join_gradients(self.tap_gradients, terms, step)
            if part == first_part and self.parts > 1:
                self._copy_gradients()
            rows.append(_as_row(terms))
            depths = tuple(terms.per_depth)  # the same ones in every part
        mean = torch.stack(rows).mean(dim=0)  # (parts, 4 + depths) -> (4 + depths,)
        return _as_terms(mean, depths)

    def _make_buckets(self) -> GradientBuckets | None:
        """Return what averages gradients while the backward pass runs; None: it is done behind it.

        Joined gradients of taps are there only behind it. With `auto_batch` a process whose memory
        ran out does its backward pass again, and must not have sent anything before.
        """
        if self.processes.count == 1 or self.tap_gradients is not None or self.auto_batch:
            return None
        return GradientBuckets(self.net.parameters(), self.processes.count)

    def _averaging(self, is_last_part: bool) -> AbstractContextManager[None]:
        """Return the context of the backward pass of a part; that of the last part averages."""
        if self._buckets is None or not is_last_part:
            return nullcontext()
        return self._buckets.averaging()

    def _join_gradients(self, tap_gradients: TapGradients, terms: LossTerms, step: int) -> None:
        """Add the gradients of one part to the parameters, those of the taps joined."""
        if terms.by_tap is None:
            raise ValueError(
                "tap_gradients needs the loss of each tap: ElasticObjective(..., by_term=True)"
            )
        objective: Any = self.objective
        by_tap: dict[int, Tensor] = {}
        for depth, loss in terms.by_tap.items():
            by_tap[depth] = self.scaler.scale(loss / self.parts)
        tap_gradients.backward(
            by_tap,
            distillation=self.scaler.scale(terms.distillation / self.parts),
            weights=objective.tap_weights_at(step),
            step=step,
        )

    def autocast(self) -> torch.autocast:
        """Return the context in which losses are computed, of the step's precision."""
        dtype = AUTOCAST_DTYPES[self.precision]
        return torch.autocast(self.processes.device.type, dtype, enabled=dtype is not None)

    def _copy_gradients(self) -> None:
        """Move the first part's gradients out of the memory of a CUDA graph.

        A compiled objective may run as such a graph, which writes every part's gradients into the
        same memory. The gradients of the other parts are added to the copies in place.
        """
        for parameter in self.net.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()

    def clip_gradients(self) -> None:
        """Limit the gradients that are in the parameters, as `clip_norm` and `clip_value` say."""
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.clip_norm)
        if self.clip_value is not None:
            nn.utils.clip_grad_value_(self.net.parameters(), self.clip_value)

    def _split_further(self, batch: Batch) -> None:
        """Double the number of parts, if the batch can be cut into so many."""
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        parts = 2 * self.parts
        num_parts = parts * self.processes.count
        own_last_part = (self.processes.rank + 1) * parts - 1
        try:
            batch(own_last_part, num_parts)
        except (ValueError, IndexError) as error:
            raise RuntimeError(
                f"out of GPU memory, and the batch cannot be split into {num_parts} parts "
                f"({error}); take a smaller input or network, or a batch size that can be halved "
                "more often"
            ) from error
        self.parts = parts
        logger.warning(
            "out of GPU memory in process %d: from now on it computes its share of a batch in "
            "%d parts, to the same gradients",
            self.processes.rank,
            parts,
        )


def _check_parameters_of_net(optimizer: torch.optim.Optimizer, net: nn.Module) -> None:
    """Raise if the optimiser holds a parameter that is not the net's, such as a learned weight.

    It would be neither averaged over the processes, nor clipped, nor saved.
    """
    of_net = {id(parameter) for parameter in net.parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in of_net:
                raise ValueError(
                    f"the optimizer holds a parameter of shape {tuple(parameter.shape)} that is "
                    "not one of the network's: TrainingStep trains the network alone. Learned "
                    "weights of the losses, and projections, need a loop of your own"
                )


def _wide(tensor: Tensor) -> Tensor:
    """Return a tensor in a type that can be asked for NaN, which float8 cannot."""
    is_float8 = tensor.is_floating_point() and tensor.element_size() == 1
    return tensor.float() if is_float8 else tensor


def _as_row(terms: LossTerms) -> Tensor:
    """Copy all losses into one tensor, since a CUDA graph writes the next ones in their place."""
    values = (terms.total, terms.routine, terms.deep_supervision, terms.distillation)
    return torch.stack([*values, *terms.per_depth.values()]).detach()  # (4 + depths,)


def _as_terms(row: Tensor, depths: Iterable[int]) -> LossTerms:
    """Return the losses of `_as_row` by their names."""
    total, routine, supervision, distillation, *losses = row.unbind()
    per_depth = dict(zip(depths, losses, strict=True))
    return LossTerms(total, routine, supervision, distillation, per_depth)
