"""ElasticWrapper: the block loop that turns a sequential-block network into one that runs at any
depth.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from elasticnet.taps import resolve_depth, resolve_depths, resolve_taps

HEAD_SKIPS = (None, "stem", "input")


class Taps(NamedTuple):
    """What one pass over all blocks gives: predictions at `depths`, and the features of every tap
    of the net.

    depths: where the predictions are. predictions: one a depth, the head's output. features: one
    for each of the net's taps (not only for `depths`), as the blocks returned them, before any
    adapter; shallowest first.
    """

    depths: tuple[int, ...]
    predictions: tuple[Any, ...]
    features: tuple[Tensor, ...]


class TapReport(NamedTuple):
    """What `ElasticWrapper.check` saw at one tap; `problem` is None where the head takes it."""

    depth: int
    shape: tuple[int, ...]
    output_shape: tuple[int, ...] | None
    finite: bool
    problem: str | None


class ElasticWrapper(nn.Module):
    """A stem, blocks and one shared head, with a prediction at every tap: run it at any depth.

    body_blocks: any iterable of modules, each x -> x (or a tuple whose first entry is the tensor).
    shared_head: features -> prediction; one module for all taps. If it offers `prepare() ->
    callable`, that is called
        once a pass and what it returns serves every tap of the pass. stem: what runs before the
    first block; may return `(x, context)` for `call_block`. taps: the depths that carry a
    prediction; None means all. adapters: `{depth: module}` maps a tap to what the head takes.
    head_skip: "stem" calls head(features, stem_output), "input" calls head(features, x). layout,
    prefix_tokens: what the axes of the features mean, for attention maps (see `attention`).
    call_block: `call_block(block, x, context, index) -> (x, context)` replaces the plain call;
    index counts from 0. checkpoint_blocks: recompute each block in the backward pass instead of
    keeping its activations (training only).

    Keyword arguments of `net(x, **kwargs)` go to the stem as far as its forward names them; the
    context is what the stem returns beside x, or else these keyword arguments as a dict.

    Depths count blocks and start at 1; -1 is the deepest. State dict keys: `stem.*`, `blocks.{index
    from 0}.*`, `head.*`, `adapters.{depth}.*`. `origin` is (architecture, arguments) where a
    built-in builder made the net. In eval mode `net(x, depth=d)`, prediction d of
    `net.forward_taps(x)` and `net.truncate(d)(x)` are equal bit for bit.
    """

    def __init__(
        self,
        body_blocks: Iterable[nn.Module],
        shared_head: nn.Module,
        stem: nn.Module | None = None,
        taps: Iterable[int] | None = None,
        adapters: Mapping[int, nn.Module] | None = None,
        head_skip: str | None = None,
        layout: str = "b c h w",
        prefix_tokens: int = 0,
        call_block: Callable[[nn.Module, Any, Any, int], tuple[Any, Any]] | None = None,
        checkpoint_blocks: bool = False,
    ) -> None:
        super().__init__()
        blocks = list(body_blocks)
        if not blocks:
            raise ValueError("body_blocks is empty: an elastic network needs at least one block")
        parts = {f"body_blocks[{index}]": block for index, block in enumerate(blocks)}
        parts |= {"shared_head": shared_head, "stem": nn.Identity() if stem is None else stem}
        for name, part in parts.items():
            if not isinstance(part, nn.Module):
                raise TypeError(f"{name} is a {type(part).__name__}: expected a torch.nn.Module")
        if head_skip not in HEAD_SKIPS:
            raise ValueError(f"head_skip {head_skip!r}: expected None, 'stem' or 'input'")
        if isinstance(call_block, nn.Module):
            raise TypeError(
                "call_block is a module: expected a function; keep parameters in the stem or the blocks"
            )
        self.taps = resolve_taps(taps, len(blocks))
        for depth in adapters or {}:
            if type(depth) is not int or depth not in self.taps:
                listed = ", ".join(map(str, self.taps))
                raise ValueError(
                    f"adapter at depth {depth!r}: this net has taps at depths {listed}"
                )
        if stem is not None:
            self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.head = shared_head
        self.adapters = nn.ModuleDict(
            {str(depth): module for depth, module in sorted((adapters or {}).items())}
        )
        self.head_skip = head_skip
        self.layout = layout
        self.prefix_tokens = prefix_tokens
        self.call_block = call_block
        self.checkpoint_blocks = checkpoint_blocks
        self.default_depth = self.taps[-1]
        self.origin: tuple[str, dict[str, Any]] | None = None
        self._stem_keywords = _keywords(stem)
        self._tuple_blocks = False

    def extra_repr(self) -> str:
        return f"taps={self.taps}"

    def forward(self, x: Any, depth: int | None = None, **context: Any) -> Any:
        """Return the prediction at `depth` (default: the deepest, or that of `at_depth`); blocks
        behind it do not run.
        """
        depth = self.default_depth if depth is None else resolve_depth(depth, self.taps)
        start, run_context, skip = self._enter(x, context)
        features = start
        for features in self._run_blocks(start, run_context, depth):  # noqa: B007 (the last one counts)
            pass
        return self._predict(self._head(), depth, features, skip)

    def forward_taps(self, x: Any, depths: Sequence[int] | None = None, **context: Any) -> Taps:
        """Run all blocks once; return the predictions at `depths` (None: every tap) and the
        features of all taps.
        """
        depths = resolve_depths(depths, self.taps)
        start, run_context, skip = self._enter(x, context)
        head = self._head()
        predictions, kept = [], []
        for depth, features in enumerate(
            self._run_blocks(start, run_context, self.taps[-1]), start=1
        ):
            if depth in self.taps:
                kept.append(features)
                if depth in depths:
                    predictions.append(self._predict(head, depth, features, skip))
        return Taps(depths, tuple(predictions), tuple(kept))

    @contextmanager
    def at_depth(self, depth: int) -> Iterator[ElasticWrapper]:
        """Make `depth` this net's default inside a `with` block; put back on the way out, also
        after an exception.

        It changes the net's state: threads that share a net pass `depth=` instead.
        """
        before = self.default_depth
        self.default_depth = resolve_depth(depth, self.taps)
        try:
            yield self
        finally:
            self.default_depth = before

    def truncate(self, depth: int) -> ElasticWrapper:
        """Return an independent network (copied weights) of what `depth` uses; elastic below it,
        with the same keys.
        """
        depth = resolve_depth(depth, self.taps)
        taps = self.taps[: self.taps.index(depth) + 1]
        adapters = {tap: self.adapters[str(tap)] for tap in taps if str(tap) in self.adapters}
        return copy.deepcopy(self._rebuilt(self.blocks[:depth], taps, adapters))

    def to_sequential(self) -> nn.Sequential:
        """Return an independent `nn.Sequential(stem, blocks, head)` with the same function and keys
        at full depth.

        Raises ValueError for a net that is not a plain sequence: with head_skip, with call_block,
        or with blocks that were seen to return tuples. `elasticnet.export` makes a plain module of
        those.
        """
        reasons = {
            "head_skip": self.head_skip is not None,
            "call_block": self.call_block is not None,
            "blocks that return tuples": self._tuple_blocks,
        }
        for name, present in reasons.items():
            if present:
                raise ValueError(
                    f"a net with {name} is not a plain sequence: elasticnet.export makes a plain module of it"
                )
        parts = {"stem": getattr(self, "stem", None), "blocks": nn.Sequential(*self.blocks)}
        parts["adapter"] = (
            self.adapters[str(self.taps[-1])] if str(self.taps[-1]) in self.adapters else None
        )
        parts["head"] = self.head
        sequence = nn.Sequential()
        for name, part in parts.items():
            if part is not None:
                sequence.add_module(name, part)
        # every other module keeps its own mode
        sequence.training = parts["blocks"].training = self.training
        return copy.deepcopy(sequence)

    def grow(
        self,
        blocks: Iterable[nn.Module],
        example: Any,
        init: Callable[[nn.Module], Any] | None = None,
        **context: Any,
    ) -> ElasticWrapper:
        """Return an independent, deeper network that is exactly the same function until it is
        trained further.

        Every new block is copied and made the identity by `init(block)`, or by its own
        `init_identity()`; this is proved on `example` (an input of the network) in eval mode:
        ValueError names the block that is not an identity. Every new depth gets a tap; where the
        deepest tap has an adapter, the new taps get copies of it.
        """
        new_blocks = [copy.deepcopy(block) for block in blocks]
        if not new_blocks:
            raise ValueError("grow: no blocks given")
        for index, block in enumerate(new_blocks):
            make_identity = partial(init, block) if init else getattr(block, "init_identity", None)
            if make_identity is None:
                raise ValueError(
                    f"grow: new block {index} ({type(block).__name__}) has no init_identity(); pass init=, a function "
                    "that makes a block the identity (for a residual block: zero its last layer)"
                )
            make_identity()
            block.train(self.training)
            for reference in self.parameters():
                block.to(reference)  # the net's device and dtype
                break
        deepest = self.taps[-1]
        new_taps = range(deepest + 1, deepest + len(new_blocks) + 1)
        adapters = {int(depth): module for depth, module in self.adapters.items()}
        if deepest in adapters:
            adapters |= {depth: copy.deepcopy(adapters[deepest]) for depth in new_taps}
        grown = copy.deepcopy(
            self._rebuilt([*self.blocks, *new_blocks], (*self.taps, *new_taps), adapters)
        )
        with evaluating(grown), torch.no_grad():
            start, run_context, skip = grown._enter(example, context)
            head = grown._head()
            features = expected = outcome = None
            for depth, after in enumerate(
                grown._run_blocks(start, run_context, grown.taps[-1]), start=1
            ):
                if depth > deepest and not _equal(features, after):
                    index = depth - deepest - 1
                    raise ValueError(
                        f"grow: new block {index} ({type(new_blocks[index]).__name__}) is not the identity: "
                        f"{_difference(features, after)}. A block that normalises its own sum (post-norm) or ends in "
                        "an activation cannot be one; otherwise make `init` zero the last layer of its residual path"
                    )
                # or a block that works in place would be compared with itself
                features = after.clone()
                if depth in (deepest, grown.taps[-1]):
                    expected, outcome = outcome, grown._predict(head, depth, features, skip)
            if not _equal(expected, outcome):
                raise ValueError(
                    "grow: the adapters of the new taps change the prediction: make them equal to the deepest tap's"
                )
        return grown

    def check(self, example: Any, strict: bool = False, **context: Any) -> list[TapReport]:
        """Run the net once on `example`, in eval mode without gradients, and report every tap
        (modes are put back).

        Each TapReport holds the features' shape, the head's output shape, whether the features are
        finite, and `problem`: why the head rejects this tap and which adapter it needs, or that its
        features are not finite. `strict` raises the first.
        """
        with evaluating(self), torch.no_grad():
            start, run_context, skip = self._enter(example, context)
            head = self._head()
            features = list(self._run_blocks(start, run_context, self.taps[-1]))
            wanted = tuple(features[-1].shape)
            report = []
            for depth, features in [(depth, features[depth - 1]) for depth in self.taps]:
                finite, problem, output = bool(torch.isfinite(features).all()), None, None
                try:
                    output = self._predict(head, depth, features, skip)
                except RuntimeError as error:
                    problem = str(error)
                    if tuple(features.shape) != wanted:
                        problem += f" (the deepest tap has shape {wanted})"
                if not finite:
                    count = int((~torch.isfinite(features)).sum())
                    problem = f"depth {depth}: {count} of {features.numel()} features are not finite (NaN or infinity)"
                shape = tuple(output.shape) if isinstance(output, Tensor) else None
                report.append(TapReport(depth, tuple(features.shape), shape, finite, problem))
        problems = [tap.problem for tap in report if tap.problem]
        if strict and problems:
            raise ValueError(problems[0])
        return report

    def _rebuilt(
        self, blocks: Iterable[nn.Module], taps: Sequence[int], adapters: Mapping[int, nn.Module]
    ) -> ElasticWrapper:
        """A wrapper with this one's settings around the very modules given; the caller copies."""
        net = ElasticWrapper(
            blocks,
            self.head,
            getattr(self, "stem", None),
            taps,
            adapters,
            self.head_skip,
            self.layout,
            self.prefix_tokens,
            self.call_block,
            self.checkpoint_blocks,
        )
        net.training = net.blocks.training = net.adapters.training = self.training
        net._tuple_blocks = self._tuple_blocks
        net.origin = self.origin
        return net

    def _enter(self, x: Any, keywords: dict[str, Any]) -> tuple[Any, Any, Any]:
        """Run the stem; return the features, the context for call_block, and what the head's skip
        takes.
        """
        # Plain comprehensions: torch.compile of torch 2.6 does not trace set arithmetic on the keys
        # of a dict.
        accepted = keywords if self._stem_keywords is None else self._stem_keywords
        stem_takes = {name: value for name, value in keywords.items() if name in accepted}
        unknown = [name for name in keywords if name not in stem_takes]
        features, context = x, keywords
        stem = getattr(self, "stem", None)
        if stem is not None:
            features = stem(x, **stem_takes)
            if isinstance(features, tuple):
                if self.call_block is None:
                    raise ValueError(
                        "the stem returned (x, context): pass call_block to use the context in the blocks"
                    )
                features, context = features
        if unknown and (self.call_block is None or context is not keywords):
            raise TypeError(
                f"unexpected keyword argument {unknown[0]!r}: neither the stem nor call_block gets it"
            )
        return features, context, features if self.head_skip == "stem" else x

    def _run_blocks(self, features: Any, context: Any, depth: int) -> Iterator[Any]:
        """Run the first `depth` blocks and yield each one's features."""
        recompute = self.checkpoint_blocks and self.training and torch.is_grad_enabled()
        for index, block in enumerate(self.blocks):  # indexing a ModuleList is slow
            if index == depth:
                return
            if self.call_block is not None:
                call, inputs = partial(self.call_block, block), (features, context, index)
                result = (
                    checkpoint(call, *inputs, use_reentrant=False) if recompute else call(*inputs)
                )
                features, context = result  # pyright: ignore[reportGeneralTypeIssues]
            else:
                features = (
                    checkpoint(block, features, use_reentrant=False)
                    if recompute
                    else block(features)
                )
                if isinstance(features, tuple):
                    self._tuple_blocks, features = True, features[0]
            yield features

    def _head(self) -> Callable[..., Any]:
        return self.head.prepare() if hasattr(self.head, "prepare") else self.head  # pyright: ignore

    def _predict(self, head: Callable[..., Any], depth: int, features: Any, skip: Any) -> Any:
        try:
            name = str(depth)
            adapted = self.adapters[name](features) if name in self.adapters else features
            return head(adapted) if self.head_skip is None else head(adapted, skip)
        except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            shape = (
                tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            )
            raise RuntimeError(
                f"the head rejects the tap at depth {depth}, whose features have shape {shape}: {error}. "
                f"If channels or resolution differ there, adapters={{{depth}: module}} maps it to what the head takes"
            ) from error


def _keywords(stem: nn.Module | None) -> frozenset[str] | None:
    """The keyword arguments that the stem's forward names; None where it takes any."""
    if stem is None:
        return frozenset()
    parameters = list(inspect.signature(stem.forward).parameters.values())
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return frozenset(
        p.name for p in parameters[1:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    )


@contextmanager
def evaluating(net: nn.Module) -> Iterator[nn.Module]:
    """Put every module of `net` into eval mode inside a `with` block, and each back into its own
    mode on the way out.
    """
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield net
    finally:
        for module, training in modes:
            module.training = training


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and torch.equal(first, second)
    if isinstance(first, (tuple, list)):
        return len(first) == len(second) and all(
            _equal(a, b) for a, b in zip(first, second, strict=True)
        )
    return first == second


def _difference(before: Any, after: Any) -> str:
    if before.shape != after.shape:
        return f"it turns shape {tuple(before.shape)} into {tuple(after.shape)}"
    return f"on the example its output differs from its input by up to {(after - before).abs().max():.3g}"
