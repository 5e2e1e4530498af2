"""ElasticWrapper: the block loop that turns a sequential-block network into an elastic one."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Container, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from elasticnet._compare import largest_difference, same_bits
from elasticnet.taps import resolve_depth, resolve_depths, resolve_taps

HEAD_SKIPS = (None, "stem", "input")

CallBlock = Callable[[nn.Module, Any, Any, int], tuple[Any, Any]]


class Taps(NamedTuple):
    """What one pass over all blocks gives.

    Attributes:
        depths: The depths of the predictions, shallowest first.
        predictions: The head's output at each of `depths`.
        features: The features at every tap of the net, not only at `depths`, shallowest first: as
            the blocks returned them, before any adapter.
    """

    depths: tuple[int, ...]
    predictions: tuple[Any, ...]
    features: tuple[Tensor, ...]


class TapReport(NamedTuple):
    """What `ElasticWrapper.check` saw at one tap.

    Attributes:
        depth: The tap's depth.
        shape: The shape of its features.
        output_shape: The shape of the head's output; None if there is none, or if it is no tensor.
        finite: Whether all features are finite.
        problem: Why the head rejects the tap, or that its features are not finite; None if all is
            well.
    """

    depth: int
    shape: tuple[int, ...]
    output_shape: tuple[int, ...] | None
    finite: bool
    problem: str | None


class Origin(NamedTuple):
    """How a network was built.

    Attributes:
        architecture: The name under which its builder is registered, see `elasticnet.registry`.
        arguments: The builder's keyword arguments. A network that was cut or grown keeps those of
            the network that it was made of.
    """

    architecture: str
    arguments: dict[str, Any]


class ElasticWrapper(nn.Module):
    """A stem, blocks and one shared head, with a prediction at every tap: run it at any depth.

    Depths count blocks and start at 1; -1 is the deepest. A tap is a depth that carries a
    prediction. In eval mode `net(x, depth=d)`, prediction d of `net.forward_taps(x)` and
    `net.truncate(d)(x)` are equal bit for bit.

    Keyword arguments of `net(x, **keywords)` go to the stem if its forward names them. The context,
    which `call_block` hands from block to block, is what the stem returns beside its features, or
    else these keyword arguments as a dict.

    State dict keys: `stem.*`, `blocks.{index from 0}.*`, `head.*`, `adapters.{depth}.*`.

    Args:
        body_blocks: The blocks, each x -> x, or a tuple whose first entry is the features.
        shared_head: Features -> prediction; one module for all taps. If it has a method `prepare`,
            this is called once a pass, and what it returns serves every tap of the pass.
        stem: What runs before the first block; may return `(features, context)`, which needs
            `call_block`. None: the first block takes the input.
        taps: The depths that carry a prediction; the deepest must be among them. None: every depth.
        adapters: `{depth: module}` maps the features of that tap to what the head takes.
        head_skip: "stem" calls `head(features, stem_output)`, "input" calls `head(features, x)`,
            None calls `head(features)`.
        layout: What the axes of the features mean, for attention maps; see
            `elasticnet.distillation`.
        prefix_tokens: How many leading positions attention maps leave out (class and register
            tokens); needs a layout with one position axis.
        call_block: `call_block(block, features, context, index) -> (features, context)` replaces
            the plain call of a block; `index` counts from 0.
        checkpoint_blocks: Whether training recomputes each block in the backward pass instead of
            keeping its activations.

    Attributes:
        taps: The depths that carry a prediction, sorted, the deepest last.
        origin: How a registered builder made this network; None for a network of one's own.

    Raises:
        TypeError: A part is not a module, or `call_block` is one.
        ValueError: There is no block, a tap or an adapter's depth is wrong, or `head_skip` is.

    Example:
        `net = ElasticWrapper([Block() for _ in range(5)], head, stem)`
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
        call_block: CallBlock | None = None,
        checkpoint_blocks: bool = False,
    ) -> None:
        super().__init__()
        blocks = list(body_blocks)
        adapters = dict(adapters or {})
        _check_modules(blocks, shared_head, stem)
        if head_skip not in HEAD_SKIPS:
            raise ValueError(f"head_skip {head_skip!r}: expected None, 'stem' or 'input'")
        if isinstance(call_block, nn.Module):
            raise TypeError(
                "call_block is a module: expected a function; "
                "keep parameters in the stem or the blocks"
            )
        self.taps = resolve_taps(taps, num_blocks=len(blocks))
        _check_adapter_depths(adapters, self.taps)

        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.head = shared_head
        self.adapters = nn.ModuleDict({str(depth): adapters[depth] for depth in sorted(adapters)})
        self.head_skip = head_skip
        self.layout = layout
        self.prefix_tokens = prefix_tokens
        self.call_block = call_block
        self.checkpoint_blocks = checkpoint_blocks
        self.default_depth = self.taps[-1]
        self.origin: Origin | None = None
        self._stem_keywords = _accepted_keywords(stem)
        self._blocks_return_tuples = False  # not known before a block ran

    def extra_repr(self) -> str:
        """Return what `repr` shows in front of the modules."""
        return f"taps={self.taps}"

    def forward(self, x: Any, depth: int | None = None, **keywords: Any) -> Any:
        """Return the prediction at one depth; blocks behind it do not run.

        Args:
            x: The input of the stem, or of the first block if there is no stem.
            depth: A tap of the net. None: the deepest, or the one of `at_depth`.
            **keywords: For the stem and `call_block`.

        Returns:
            What the head returns.

        Raises:
            ValueError: The depth carries no tap.
            TypeError: Neither the stem nor `call_block` takes a keyword argument.
            RuntimeError: The head rejects the features; the message names the depth.
        """
        depth = self.default_depth if depth is None else resolve_depth(depth, self.taps)
        features, context = self._run_stem(x, keywords)
        skip = features if self.head_skip == "stem" else x
        for index, block in enumerate(self.blocks):  # no slice: that would make a new ModuleList
            if index == depth:
                break
            features, context = self._run_block(block, features, context, index)
        return self._predict(self._head_for_one_pass(), features, skip, depth)

    def forward_taps(self, x: Any, depths: Sequence[int] | None = None, **keywords: Any) -> Taps:
        """Run all blocks once, with a prediction at several depths.

        Args:
            x: The input of the stem, or of the first block if there is no stem.
            depths: Taps of the net. None: all of them.
            **keywords: For the stem and `call_block`.

        Returns:
            The predictions at `depths` and the features of all taps.

        Raises:
            ValueError: A depth carries no tap or is named twice, or none is given.
            TypeError: Neither the stem nor `call_block` takes a keyword argument.
            RuntimeError: The head rejects the features; the message names the depth.
        """
        depths = resolve_depths(depths, self.taps)
        features, context = self._run_stem(x, keywords)
        skip = features if self.head_skip == "stem" else x
        head = self._head_for_one_pass()
        predictions: list[Any] = []
        tap_features: list[Any] = []
        for depth, block in enumerate(self.blocks, start=1):
            features, context = self._run_block(block, features, context, index=depth - 1)
            if depth in self.taps:
                tap_features.append(features)
            if depth in depths:
                # Now and not after the loop, because the next block may work in place.
                predictions.append(self._predict(head, features, skip, depth))
        return Taps(depths, tuple(predictions), tuple(tap_features))

    @contextmanager
    def at_depth(self, depth: int) -> Generator[ElasticWrapper, None, None]:
        """Make a depth this net's default inside a `with` block.

        It is put back on the way out, also after an exception. It is a state of the net: threads
        that share a net pass `depth=` to the call instead.

        Args:
            depth: A tap of the net.

        Yields:
            The net itself.

        Raises:
            ValueError: The depth carries no tap.
        """
        before = self.default_depth
        self.default_depth = resolve_depth(depth, self.taps)
        try:
            yield self
        finally:
            self.default_depth = before

    def truncate(self, depth: int) -> ElasticWrapper:
        """Return an independent network that holds only what a depth uses.

        Args:
            depth: A tap of the net.

        Returns:
            A copy of stem, head, and the blocks and adapters up to `depth`, under the same keys.
            It is elastic below `depth`.

        Raises:
            ValueError: The depth carries no tap.
        """
        depth = resolve_depth(depth, self.taps)
        taps = [tap for tap in self.taps if tap <= depth]
        return copy.deepcopy(self._rebuilt(self.blocks[:depth], taps, self._adapters_by_depth()))

    def with_taps(self, taps: Iterable[int] | None) -> ElasticWrapper:
        """Return a network of the same modules with predictions at other depths.

        The modules are shared, not copied: who trains one of the two nets trains both.

        Args:
            taps: The depths that carry a prediction; the deepest block must be among them. None:
                every depth.

        Returns:
            The new net, with the adapters of those taps that it has in common with this one.

        Raises:
            ValueError: A tap is outside the net or named twice, or the deepest is missing.
        """
        resolved = resolve_taps(taps, num_blocks=len(self.blocks))
        return self._rebuilt(self.blocks, resolved, self._adapters_by_depth())

    def to_sequential(self) -> nn.Sequential:
        """Return an ordinary `nn.Sequential` with the same function at full depth.

        Returns:
            An independent copy of the parts `stem`, `blocks`, `adapter` (of the deepest tap) and
            `head`, as far as the net has them; the keys stay, but for the adapter's.

        Raises:
            ValueError: The net is not a plain sequence: it has `head_skip` or `call_block`, or its
                blocks were seen to return tuples. `elasticnet.export` makes a plain module of it.
        """
        reasons = {
            "head_skip": self.head_skip is not None,
            "call_block": self.call_block is not None,
            "blocks that return tuples": self._blocks_return_tuples,
        }
        for name, present in reasons.items():
            if present:
                raise ValueError(
                    f"a net with {name} is not a plain sequence: "
                    "elasticnet.export makes a plain module of it"
                )
        blocks = nn.Sequential(*self.blocks)
        sequence = nn.Sequential()
        if self.stem is not None:
            sequence.add_module("stem", self.stem)
        sequence.add_module("blocks", blocks)
        deepest = str(self.taps[-1])
        if deepest in self.adapters:
            sequence.add_module("adapter", self.adapters[deepest])
        sequence.add_module("head", self.head)
        # Only the two containers are new; every other module keeps its own mode.
        sequence.training = self.training
        blocks.training = self.training
        return copy.deepcopy(sequence)

    def grow(
        self,
        blocks: Iterable[nn.Module],
        example: Any,
        init: Callable[[nn.Module], Any] | None = None,
        **keywords: Any,
    ) -> ElasticWrapper:
        """Return a deeper network that is exactly the same function until it is trained further.

        Every new block is copied and made the identity. That all of them are is then proved on
        `example`, in eval mode.

        Args:
            blocks: The new blocks, in order. They stay as they are.
            example: An input of the network.
            init: Makes a block the identity, in place. None: the block's own `init_identity()`.
            **keywords: For the stem and `call_block`, with `example`.

        Returns:
            An independent network with a tap at every new depth. If the deepest tap has an
            adapter, each new tap gets a copy of it.

        Raises:
            ValueError: No blocks are given, or a block is not the identity; the message names the
                block and the difference.
        """
        new_blocks = [
            self._identity_block(block, init, name=_new_block_name(index, block))
            for index, block in enumerate(blocks)
        ]
        if not new_blocks:
            raise ValueError("grow: no blocks given")
        deepest = len(self.blocks)
        new_taps = range(deepest + 1, deepest + len(new_blocks) + 1)
        adapters = self._adapters_by_depth()
        if deepest in adapters:
            for depth in new_taps:
                adapters[depth] = copy.deepcopy(adapters[deepest])
        grown = copy.deepcopy(
            self._rebuilt([*self.blocks, *new_blocks], [*self.taps, *new_taps], adapters)
        )
        with evaluating(grown), torch.no_grad():
            grown._prove_identity(first_new=deepest, example=example, keywords=keywords)
        return grown

    def check(self, example: Any, strict: bool = False, **keywords: Any) -> list[TapReport]:
        """Run the net once on an example and report what comes out at every tap.

        It runs in eval mode without gradients; every module's mode is put back.

        Args:
            example: An input of the network.
            strict: Whether the first problem is raised.
            **keywords: For the stem and `call_block`.

        Returns:
            A report for each tap, shallowest first. A report's `problem` says why the head rejects
            the tap and which adapter it needs, or that its features are not finite.

        Raises:
            ValueError: With `strict`, the first problem.
        """
        reports: list[TapReport] = []
        with evaluating(self), torch.no_grad():
            features, context = self._run_stem(example, keywords)
            skip = features if self.head_skip == "stem" else example
            head = self._head_for_one_pass()
            for depth, block in enumerate(self.blocks, start=1):
                features, context = self._run_block(block, features, context, index=depth - 1)
                if depth in self.taps:
                    reports.append(self._report(head, features, skip, depth))
        reports = [_with_deepest_shape(report, deepest=reports[-1]) for report in reports]
        for report in reports:
            if strict and report.problem is not None:
                raise ValueError(report.problem)
        return reports

    # --- the parts of a pass

    def _run_stem(self, x: Any, keywords: dict[str, Any]) -> tuple[Any, Any]:
        """Return the features and the context for the first block."""
        stem = self.stem
        if stem is None:
            if self.call_block is None:
                _refuse_keywords(keywords, taken=())
            return x, keywords
        # A comprehension, because torch 2.6 cannot compile set arithmetic on the keys of a dict.
        accepted = keywords if self._stem_keywords is None else self._stem_keywords
        for_stem = {name: value for name, value in keywords.items() if name in accepted}
        output = stem(x, **for_stem)
        if not _is_tuple(output):
            if self.call_block is None:
                _refuse_keywords(keywords, taken=for_stem)
            return output, keywords
        if self.call_block is None:
            raise ValueError(
                "the stem returned (x, context): pass call_block to use the context in the blocks"
            )
        # The blocks get the stem's context in place of the keyword arguments.
        _refuse_keywords(keywords, taken=for_stem)
        features, context = output
        return features, context

    def _run_block(
        self, block: nn.Module, features: Any, context: Any, index: int
    ) -> tuple[Any, Any]:
        """Return the features behind a block and the context for the next one."""
        recompute = self.checkpoint_blocks and self.training and torch.is_grad_enabled()
        if self.call_block is not None:
            if recompute:
                return _recomputed(self.call_block, block, features, context, index)
            return self.call_block(block, features, context, index)
        output = _recomputed(block, features) if recompute else block(features)
        if isinstance(output, tuple):
            self._blocks_return_tuples = True
            output = cast(tuple[Any, ...], output)[0]
        return output, context

    def _head_for_one_pass(self) -> Callable[..., Any]:
        """Return the head, or what its `prepare` makes for all taps of one pass."""
        prepare = getattr(self.head, "prepare", None)
        return self.head if prepare is None else prepare()

    def _predict(self, head: Callable[..., Any], features: Any, skip: Any, depth: int) -> Any:
        """Return the head's output at a tap, through the tap's adapter if it has one."""
        name = str(depth)
        try:
            adapted = self.adapters[name](features) if name in self.adapters else features
            if self.head_skip is None:
                return head(adapted)
            return head(adapted, skip)
        except torch.OutOfMemoryError:  # a RuntimeError, but no fault of the tap
            raise
        except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
            shape = type(features).__name__
            if isinstance(features, Tensor):
                shape = tuple(features.shape)
            raise RuntimeError(
                f"the head rejects the tap at depth {depth}, whose features have shape {shape}: "
                f"{error}. If channels or resolution differ there, adapters={{{depth}: module}} "
                "maps it to what the head takes"
            ) from error

    # --- truncate, with_taps, grow and check

    def _adapters_by_depth(self) -> dict[int, nn.Module]:
        return {int(depth): adapter for depth, adapter in self.adapters.items()}

    def _rebuilt(
        self, blocks: Iterable[nn.Module], taps: Sequence[int], adapters: Mapping[int, nn.Module]
    ) -> ElasticWrapper:
        """Return a net with this one's settings around the very modules given, without copies."""
        net = ElasticWrapper(
            body_blocks=blocks,
            shared_head=self.head,
            stem=self.stem,
            taps=taps,
            adapters={depth: adapters[depth] for depth in taps if depth in adapters},
            head_skip=self.head_skip,
            layout=self.layout,
            prefix_tokens=self.prefix_tokens,
            call_block=self.call_block,
            checkpoint_blocks=self.checkpoint_blocks,
        )
        # The net and its two containers are new; every other module keeps its own mode.
        net.training = self.training
        net.blocks.training = self.training
        net.adapters.training = self.training
        net._blocks_return_tuples = self._blocks_return_tuples
        net.origin = self.origin
        return net

    def _identity_block(
        self, block: nn.Module, init: Callable[[nn.Module], Any] | None, name: str
    ) -> nn.Module:
        """Return a copy of a new block: the identity, with this net's device, dtype and mode."""
        block = copy.deepcopy(block)
        if init is None:
            init_identity = getattr(block, "init_identity", None)
            if init_identity is None:
                raise ValueError(
                    f"grow: {name} has no init_identity(); pass init=, a function that makes a "
                    "block the identity (for a residual block: zero its last layer)"
                )
            init_identity()
        else:
            init(block)
        block.train(self.training)
        like = next(self.parameters(), None)
        return block if like is None else block.to(like)

    def _prove_identity(self, first_new: int, example: Any, keywords: dict[str, Any]) -> None:
        """Raise unless the blocks from index `first_new` on change neither features nor output."""
        features, context = self._run_stem(example, keywords)
        skip = features if self.head_skip == "stem" else example
        head = self._head_for_one_pass()
        expected: Any = None
        for index, block in enumerate(self.blocks):
            # A copy, or a block that works in place would be compared with itself.
            before = features.clone()
            if index == first_new:
                expected = self._predict(head, before, skip, depth=first_new)
            features, context = self._run_block(block, features, context, index)
            if index >= first_new:
                problem = _not_identity(before, features)
                if problem is not None:
                    name = _new_block_name(index - first_new, block)
                    raise ValueError(f"grow: {name} is not the identity: {problem}")
        outcome = self._predict(head, features, skip, depth=len(self.blocks))
        if not same_bits(expected, outcome):
            raise ValueError(
                "grow: the adapters of the new taps change the prediction: "
                "make them equal to the deepest tap's"
            )

    def _report(
        self, head: Callable[..., Any], features: Tensor, skip: Any, depth: int
    ) -> TapReport:
        """Return what is to be said of one tap, before its shape is compared with the deepest."""
        output: Any = None
        problem = None
        try:
            output = self._predict(head, features, skip, depth)
        except RuntimeError as error:
            problem = str(error)
        not_finite = int((~torch.isfinite(features)).sum())
        if not_finite:
            problem = (
                f"depth {depth}: {not_finite} of {features.numel()} features are not finite "
                "(NaN or infinity)"
            )
        return TapReport(
            depth=depth,
            shape=tuple(features.shape),
            output_shape=tuple(output.shape) if isinstance(output, Tensor) else None,
            finite=not_finite == 0,
            problem=problem,
        )


@contextmanager
def evaluating(net: nn.Module) -> Generator[nn.Module, None, None]:
    """Put every module of a net into eval mode inside a `with` block.

    On the way out, also after an exception, each module gets its own mode back.

    Args:
        net: Any module.

    Yields:
        The net.
    """
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield net
    finally:
        for module, training in modes:
            module.training = training


def _check_modules(blocks: Sequence[nn.Module], head: nn.Module, stem: nn.Module | None) -> None:
    """Raise unless there are blocks and all parts are modules."""
    if not blocks:
        raise ValueError("body_blocks is empty: an elastic network needs at least one block")
    parts: dict[str, Any] = {f"body_blocks[{index}]": block for index, block in enumerate(blocks)}
    parts["shared_head"] = head
    if stem is not None:
        parts["stem"] = stem
    for name, part in parts.items():
        if not isinstance(part, nn.Module):
            raise TypeError(f"{name} is a {type(part).__name__}: expected a torch.nn.Module")


def _check_adapter_depths(adapters: Mapping[int, nn.Module], taps: Sequence[int]) -> None:
    for depth in adapters:
        if type(depth) is not int or depth not in taps:  # True and 1.0 are equal to 1
            listed = ", ".join(map(str, taps))
            raise ValueError(f"adapter at depth {depth!r}: this net has taps at depths {listed}")


def _accepted_keywords(stem: nn.Module | None) -> frozenset[str] | None:
    """The keyword arguments that the stem's forward names; None if it takes any."""
    if stem is None:
        return frozenset()
    _, *parameters = inspect.signature(stem.forward).parameters.values()  # without the input
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(parameter.name for parameter in parameters if parameter.kind in by_name)


def _refuse_keywords(keywords: Iterable[str], taken: Container[str]) -> None:
    """Raise for a keyword argument that is not taken: it may be misspelt."""
    for name in keywords:
        if name not in taken:
            raise TypeError(
                f"unexpected keyword argument {name!r}: neither the stem nor call_block gets it"
            )


def _is_tuple(output: Any) -> TypeGuard[tuple[Any, ...]]:
    return isinstance(output, tuple)


def _new_block_name(index: int, block: nn.Module) -> str:
    return f"new block {index} ({type(block).__name__})"


def _recomputed(function: Callable[..., Any], *inputs: Any) -> Any:
    """Call a function whose activations are computed again in the backward pass."""
    return checkpoint(function, *inputs, use_reentrant=False)


def _not_identity(before: Tensor, after: Tensor) -> str | None:
    """Why a block that turns `before` into `after` is not the identity; None if it is."""
    if before.shape != after.shape:
        return f"it turns shape {tuple(before.shape)} into {tuple(after.shape)}"
    if before.isnan().any():
        return "its input has NaN on this example, so that nothing can be said of it"
    if same_bits(before, after):
        return None
    difference = largest_difference(before, after)
    return (
        f"on the example its output differs from its input by up to {difference:.3g}. A block that "
        "normalises its own sum (post-norm) or ends in an activation cannot be one; otherwise make "
        "`init` zero the last layer of its residual path"
    )


def _with_deepest_shape(report: TapReport, deepest: TapReport) -> TapReport:
    """Name the shape that the head takes, where a tap of another shape is rejected."""
    rejected = report.finite and report.problem is not None
    if not rejected or report.shape == deepest.shape:
        return report
    problem = f"{report.problem} (the deepest tap has shape {deepest.shape})"
    return report._replace(problem=problem)
