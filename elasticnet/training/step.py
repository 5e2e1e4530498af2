"""One training step of a network and its objective, with all that makes it fast, exact and hard to
kill; no loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from elasticnet.losses import LossTerms
from elasticnet.training.processes import Processes

PRECISIONS = {
    "float64": None,
    "float32": None,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# (part, parts) -> that part of the step's batch, as (input, target); all parts are of equal size,
# and a batch that cannot be cut into so many is a ValueError
Batch = Callable[[int, int], tuple[Any, Any]]


class TrainingStep:
    """Gradients of one batch, over all processes and in parts that fit into memory; clipping,
    update and EMA.

    Where the loss is a mean over the batch, processes and parts change the gradients by rounding
    alone. Every process must start from the same weights.

    objective: the ElasticObjective, or any module or function (x, target, step=step) -> LossTerms;
    may be compiled. net: whose parameters `optimizer` holds, and whose weights the EMA averages.
    precision: "float32" or "float64" (as the weights are), "bfloat16" or "float16" by autocast, the
    last with a
        gradient scaler. ema: decay of the exponential moving average of the weights (timm's
    ModelEmaV3), 0 for none. clip_norm, clip_value: largest norm of all gradients together, largest
    absolute value of each; after averaging and
        unscaling. parts: split this process's share of the batch into as many parts, one after the
    other (gradient accumulation). auto_batch: on running out of GPU memory, double `parts`, say so,
    and do the step again.
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
        auto_batch: bool = False,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
        if not 0 <= ema < 1:
            raise ValueError(f"ema {ema}: expected a decay from 0 (none) to below 1, such as 0.999")
        for name, value in (("clip_norm", clip_norm), ("clip_value", clip_value)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} {value}: expected a number above 0, or None")
        if parts < 1:
            raise ValueError(f"parts {parts}: expected at least 1")
        self.objective, self.net, self.optimizer = objective, net, optimizer
        self.processes = processes or Processes(device=next(net.parameters()).device)
        self.precision, self.clip_norm, self.clip_value = precision, clip_norm, clip_value
        self.parts, self.auto_batch = parts, auto_batch
        self.scaler = torch.amp.GradScaler(
            self.processes.device.type, enabled=precision == "float16"
        )
        self.ema = None
        if ema:
            from timm.utils.model_ema import ModelEmaV3

            self.ema = ModelEmaV3(net, decay=ema, use_warmup=True)

    @property
    def averaged_net(self) -> Any:
        """The network to evaluate and to ship: the EMA's copy, or the network itself where there is
        none.
        """
        return self.net if self.ema is None else self.ema.module

    def __call__(self, batch: Batch, step: int, learning_rate: float | None = None) -> LossTerms:
        """Do step number `step`, from 0, on `batch(part, parts)`; return the terms of this
        process's share.

        Raises RuntimeError when the GPU's memory does not suffice and the batch may or can not be
        split further.
        """
        if learning_rate is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
        terms = self._gradients(batch, step)
        while terms is None:
            self._split_further(batch)
            terms = self._gradients(batch, step)
        self.processes.average_gradients(self.net.parameters())
        self.scaler.unscale_(self.optimizer)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.clip_norm)
        if self.clip_value is not None:
            nn.utils.clip_grad_value_(self.net.parameters(), self.clip_value)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.net, step + 1)
        return terms

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs beside the random generators, for `Run.save`.

        Raises FloatingPointError when the last update left weights that are NaN or infinite: never
        save those.
        """
        net = self.net.state_dict()
        if bad := [name for name, tensor in net.items() if not tensor.isfinite().all()]:
            raise FloatingPointError(
                f"the weights became NaN or infinite (first: {bad[0]}), and were not saved: an earlier state is good. "
                "Try a smaller learning rate, or clipped gradients"
            )
        ema = None if self.ema is None else self.ema.module.state_dict()
        state = {
            "net": net,
            "optimizer": self.optimizer.state_dict(),
            "ema": ema,
            "scaler": self.scaler.state_dict(),
        }
        return {**state, "parts": self.parts * self.processes.count}  # of the whole batch

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned. An EMA that is new starts from the loaded
        weights.
        """
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"] or state["net"])
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        if self.auto_batch:
            self.parts = max(self.parts, -(-state["parts"] // self.processes.count))

    def _gradients(self, batch: Batch, step: int) -> LossTerms | None:
        """Leave the gradients of all parts in the parameters; None when the GPU's memory ran
        out.
        """
        self.optimizer.zero_grad(set_to_none=True)
        device, dtype = self.processes.device, PRECISIONS[self.precision]
        first, parts = self.processes.rank * self.parts, self.processes.count * self.parts
        collected = []
        try:
            for part in range(first, first + self.parts):
                x, target = batch(part, parts)
                with torch.autocast(device.type, dtype, enabled=dtype is not None):
                    terms = self.objective(x, target, step=step)
                self.scaler.scale(terms.total / self.parts).backward()
                if self.parts > 1:
                    terms = self._own_memory(terms, part == first)
                collected.append(terms)
        except torch.OutOfMemoryError as error:
            if not self.auto_batch:
                raise RuntimeError(
                    f"out of GPU memory at step {step}; take a smaller batch or patch, or split the batch by itself "
                    f"with --auto-batch ({str(error).splitlines()[0]})"
                ) from error
            return None  # and only then, with the error and the tensors it holds gone, try again
        return collected[0] if self.parts == 1 else _mean(collected)

    def _own_memory(self, terms: LossTerms, first: bool) -> LossTerms:
        """Copy one part's losses and first gradients from where a CUDA graph writes the next
        part's.
        """
        if first:  # the other parts' are added to them in place
            for parameter in self.net.parameters():
                parameter.grad = None if parameter.grad is None else parameter.grad.clone()
        return _terms(
            torch.stack([*terms[:4], *terms.per_depth.values()]).detach(), terms.per_depth
        )

    def _split_further(self, batch: Batch) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        rank, count, parts = self.processes.rank, self.processes.count, 2 * self.parts
        try:
            batch((rank + 1) * parts - 1, count * parts)
        except (ValueError, IndexError) as error:
            raise RuntimeError(
                f"out of GPU memory, and the batch cannot be split into {count * parts} parts ({error}); take a "
                "smaller patch or network, or a batch size that can be halved more often"
            ) from error
        self.parts = parts
        tqdm.write(
            f"out of GPU memory in process {rank}: from now on it computes its share of a batch in {parts} parts, to "
            "the same gradients"
        )


def _mean(collected: list[LossTerms]) -> LossTerms:
    rows = [torch.stack([*terms[:4], *terms.per_depth.values()]) for terms in collected]
    return _terms(torch.stack(rows).mean(0), collected[0].per_depth)


def _terms(values: Tensor, depths: Iterable[int]) -> LossTerms:
    total, routine, supervision, distillation, *losses = values.unbind()
    return LossTerms(
        total, routine, supervision, distillation, dict(zip(depths, losses, strict=True))
    )
