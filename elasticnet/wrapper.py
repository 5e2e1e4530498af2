"""ElasticWrapper: the block loop that turns a sequential-block network into an elastic one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from elasticnet._compare import largest_difference, same_bits
from elasticnet._copies import detached_copy
from elasticnet.taps import resolve_depth, resolve_depths, resolve_taps

HEAD_SKIPS = (None, "stem", "input")

CallBlock = Callable[[nn.Module, Any, Any, int], tuple[Any, Any]]


class Taps(NamedTuple):
    """The predictions and features of one pass over all blocks.

    Attributes:
        depths: The depths of the predictions, shallowest first.
        predictions: The head's output at each of `depths`.
        features: The features at every tap of the net, shallowest first, also at taps that are not
            in `depths`. They are what the blocks returned, before any adapter.
    """

    depths: tuple[int, ...]
    predictions: tuple[Any, ...]
    features: tuple[Tensor, ...]


class TapReport(NamedTuple):
    """What `ElasticWrapper.check` saw at one tap.

    Attributes:
        depth: The tap's depth.
        shape: The shape of its features.
        output_shape: The shape of the head's output. None if the head rejects the tap, or if its
            output is not a tensor.
        finite: Whether all features are finite.
        problem: Why the head rejects the tap, or how many features are not finite. None: the tap
            is usable.
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
        arguments: The builder's keyword arguments. A truncated or grown network keeps the
            arguments of the network that it was made from.
    """

    architecture: str
    arguments: dict[str, Any]


class ElasticWrapper(nn.Module):
    """A stem, blocks and one shared head, with a prediction at every tap: run it at any depth.

    Depths count blocks and start at 1; -1 is the deepest. A tap is a depth that carries a
    prediction. In eval mode three ways give the same prediction at depth d, bit for bit:
    `net(x, depth=d)`, `net.forward_taps(x)` and `net.truncate(d)(x)`.

    The context is what a block passes on beside its features. It starts as what the stem returns
    beside its features, or else as the dict of all keyword arguments of `net(x, **keywords)`.
    `call_block` takes and returns it. The stem itself gets those keyword arguments that its
    forward names.

    State dict keys: `stem.*`, `blocks.{index from 0}.*`, `head.*`, `adapters.{depth}.*`.

    Args:
        body_blocks: The blocks. Each maps features to features, or to a tuple whose first entry is
            the features.
        shared_head: Maps features to a prediction; one module for all taps. If it has a method
            `prepare`, each pass calls `prepare()` once and uses the function that it returns as
            the head of every tap.
        stem: The module before the first block. It may return `(features, context)` if
            `call_block` is given. None: the first block takes the input.
        taps: The depths that carry a prediction; the deepest must be among them. None: every depth.
        adapters: `{depth: module}`: the module maps the features of the tap at that depth to what
            the head takes.
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
        origin: How a registered builder made this network. None: no registered builder made it.

    Raises:
        TypeError: A part is not a module, or `call_block` is a module.
        ValueError: `body_blocks` is empty, or a tap, an adapter's depth or `head_skip` is invalid.

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
        self._stem_takes_any_keyword = _takes_any_keyword(stem)
        self._stem_keywords = _named_keywords(stem)
        self._blocks_return_tuples = False  # set when a block runs, read by to_sequential

    def extra_repr(self) -> str:
        """Return the text that `repr` shows before the modules."""
        return f"taps={self.taps}"

    def forward(self, x: Any, depth: int | None = None, **keywords: Any) -> Any:
        """Return the prediction at one depth; deeper blocks do not run.

        Args:
            x: The input of the stem, or of the first block if there is no stem.
            depth: A tap of the net. None: the deepest tap, or inside `with net.at_depth(d)` the
                tap at depth d.
            **keywords: For the stem and `call_block`.

        Returns:
            The head's output at that depth.

        Raises:
            ValueError: The depth carries no tap.
            TypeError: Neither the stem nor `call_block` takes a keyword argument.
            RuntimeError: The head rejects the features; the message names the depth.
        """
        last_depth = self.default_depth if depth is None else resolve_depth(depth, self.taps)
        features, context = self._run_stem(x, keywords)
        skip = self._skip_of(x, features)
        head = self._head_for_one_pass()
        # Not self.blocks[:last_depth], because a slice makes a new ModuleList in every call.
        for block_depth, block in enumerate(self.blocks, start=1):
            features, context = self._run_block(block, features, context, block_depth)
            if block_depth == last_depth:
                break
        return self._predict(head, features, skip, last_depth)

    def forward_taps(self, x: Any, depths: Sequence[int] | None = None, **keywords: Any) -> Taps:
        """Run all blocks once and predict at several depths.

        Args:
            x: The input of the stem, or of the first block if there is no stem.
            depths: Taps of the net. None: all of them.
            **keywords: For the stem and `call_block`.

        Returns:
            The predictions at `depths` and the features of all taps.

        Raises:
            ValueError: A depth carries no tap or is named twice, or `depths` is empty.
            TypeError: Neither the stem nor `call_block` takes a keyword argument.
            RuntimeError: The head rejects the features; the message names the depth.
        """
        predicted_depths = resolve_depths(depths, self.taps)
        features, context = self._run_stem(x, keywords)
        skip = self._skip_of(x, features)
        head = self._head_for_one_pass()
        predictions: list[Any] = []
        tap_features: list[Any] = []
        for depth, block in enumerate(self.blocks, start=1):
            features, context = self._run_block(block, features, context, depth)
            if depth in self.taps:
                tap_features.append(features)
            if depth in predicted_depths:
                # Inside the loop, because the next block may change the features in place.
                predictions.append(self._predict(head, features, skip, depth))
        return Taps(predicted_depths, tuple(predictions), tuple(tap_features))

    @contextmanager
    def at_depth(self, depth: int) -> Generator[ElasticWrapper, None, None]:
        """Make a depth this net's default inside a `with` block.

        When the `with` block ends, also by an exception, the previous default returns. Threads
        that share the net share its default too; they should pass `depth=` to each call instead.

        Args:
            depth: A tap of the net.

        Yields:
            The net itself.

        Raises:
            ValueError: The depth carries no tap.
        """
        previous = self.default_depth
        self.default_depth = resolve_depth(depth, self.taps)
        try:
            yield self
        finally:
            self.default_depth = previous

    def truncate(self, depth: int) -> ElasticWrapper:
        """Return an independent network that holds only what a depth uses.

        Args:
            depth: A tap of the net.

        Returns:
            A copy of stem, head, and the blocks and adapters up to `depth`, under the same keys.
            Its taps are this net's taps up to `depth`.

        Raises:
            ValueError: The depth carries no tap.
        """
        depth = resolve_depth(depth, self.taps)
        taps = [tap for tap in self.taps if tap <= depth]
        shared = self._rebuilt(self.blocks[:depth], taps, self._adapters_by_depth())
        return detached_copy(shared)

    def with_taps(self, taps: Iterable[int] | None) -> ElasticWrapper:
        """Return a network of the same modules with predictions at other depths.

        The modules are shared, not copied: training one of the two nets trains both.

        Args:
            taps: The depths that carry a prediction; the deepest block must be among them. None:
                every depth.

        Returns:
            The new net. It keeps this net's adapters at the taps that both nets have.

        Raises:
            ValueError: A tap is outside the net or named twice, or the deepest is missing.
        """
        resolved = resolve_taps(taps, num_blocks=len(self.blocks))
        return self._rebuilt(self.blocks, resolved, self._adapters_by_depth())

    def to_sequential(self) -> nn.Sequential:
        """Return an ordinary `nn.Sequential` with the same function at full depth.

        Returns:
            An independent copy of `stem` (if the net has one), `blocks`, `adapter` (if the deepest
            tap has one) and `head`. The state dict keys stay the same, except that
            `adapters.{depth}.*` becomes `adapter.*`.

        Raises:
            ValueError: The net is not a plain sequence: it has `head_skip` or `call_block`, or its
                blocks returned tuples when they ran. `elasticnet.export` can make a plain module
                of such a net.
        """
        obstacles = {
            "head_skip": self.head_skip is not None,
            "call_block": self.call_block is not None,
            "blocks that return tuples": self._blocks_return_tuples,
        }
        for name, present in obstacles.items():
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
        return detached_copy(sequence)

    def grow(
        self,
        blocks: Iterable[nn.Module],
        example: Any,
        init: Callable[[nn.Module], Any] | None = None,
        **keywords: Any,
    ) -> ElasticWrapper:
        """Return a deeper network that is exactly the same function until it is trained further.

        Every new block is copied and made the identity. A run on `example`, in eval mode, then
        proves that each block is the identity.

        Args:
            blocks: The new blocks, in order. They are copied; the originals do not change.
            example: An input of the network.
            init: A function that makes a block the identity, in place. None: the block's own
                `init_identity()`.
            **keywords: For the stem and `call_block` in the run on `example`.

        Returns:
            An independent network with a tap at every new depth. If the deepest tap has an
            adapter, each new tap gets a copy of that adapter.

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
        old_depth = len(self.blocks)
        new_taps = range(old_depth + 1, old_depth + len(new_blocks) + 1)
        adapters = self._adapters_by_depth()
        if old_depth in adapters:
            for depth in new_taps:
                adapters[depth] = detached_copy(adapters[old_depth])
        shared = self._rebuilt(
            blocks=[*self.blocks, *new_blocks], taps=[*self.taps, *new_taps], adapters=adapters
        )
        grown = detached_copy(shared)
        with evaluating(grown), torch.no_grad():
            grown._prove_identity(old_depth=old_depth, example=example, keywords=keywords)
        return grown

    def check(self, example: Any, strict: bool = False, **keywords: Any) -> list[TapReport]:
        """Run the net once on an example and report what comes out at every tap.

        The run is in eval mode and without gradients. Afterwards every module has its own mode
        again.

        Args:
            example: An input of the network.
            strict: Whether to raise the first problem instead of reporting it.
            **keywords: For the stem and `call_block`.

        Returns:
            A report for each tap, shallowest first. A report's `problem` says why the head rejects
            the tap and which adapter would help, or how many features are not finite.

        Raises:
            ValueError: With `strict`, the first problem.
        """
        reports: list[TapReport] = []
        with evaluating(self), torch.no_grad():
            features, context = self._run_stem(example, keywords)
            skip = self._skip_of(example, features)
            head = self._head_for_one_pass()
            for depth, block in enumerate(self.blocks, start=1):
                features, context = self._run_block(block, features, context, depth)
                if depth in self.taps:
                    reports.append(self._report(head, features, skip, depth))
        # The deepest block always has a tap, so the last report is the deepest.
        deepest_shape = reports[-1].shape
        explained = [_with_deepest_shape(report, deepest_shape) for report in reports]
        for report in explained:
            if strict and report.problem is not None:
                raise ValueError(report.problem)
        return explained

    # --- the parts of a pass

    def _run_stem(self, x: Any, keywords: dict[str, Any]) -> tuple[Any, Any]:
        """Return the features and the context for the first block.

        The stem gets the keyword arguments that its forward names. The context is the one that the
        stem returns, or else the dict of all keyword arguments. A keyword argument that reaches
        neither the stem nor `call_block` is a TypeError.
        """
        stem = self.stem
        accepted = keywords if self._stem_takes_any_keyword else self._stem_keywords
        # A comprehension, because torch 2.6 cannot compile set arithmetic on the keys of a dict.
        for_stem = {name: value for name, value in keywords.items() if name in accepted}
        output = x if stem is None else stem(x, **for_stem)
        # Without a stem, a tuple is an ordinary input of the first block.
        stem_returns_context = stem is not None and _is_tuple(output)
        if not stem_returns_context:
            if self.call_block is None:
                _check_all_used(keywords, used=for_stem)
            return output, keywords

        if self.call_block is None:
            raise ValueError(
                "the stem returned (x, context): pass call_block to use the context in the blocks"
            )
        # The stem's own context takes the place of the keyword arguments.
        _check_all_used(keywords, used=for_stem)
        features, context = output
        return features, context

    def _skip_of(self, x: Any, stem_output: Any) -> Any:
        """Return what the head takes beside the features of a tap; None if it takes no skip."""
        if self.head_skip == "stem":
            return stem_output
        if self.head_skip == "input":
            return x
        return None

    def _run_block(
        self, block: nn.Module, features: Any, context: Any, depth: int
    ) -> tuple[Any, Any]:
        """Return the features at a depth, which `block` computes, and the next block's context."""
        recompute = self.checkpoint_blocks and self.training and torch.is_grad_enabled()
        if self.call_block is not None:
            call_block = _recomputed(self.call_block) if recompute else self.call_block
            index = depth - 1  # call_block counts blocks from 0
            return call_block(block, features, context, index)

        run = _recomputed(block) if recompute else block
        output = run(features)
        if _is_tuple(output):
            self._blocks_return_tuples = True  # read by to_sequential
            output = output[0]
        return output, context

    def _head_for_one_pass(self) -> Callable[..., Any]:
        """Return the head, or the function that its `prepare` makes for all taps of one pass."""
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
        except torch.OutOfMemoryError:  # a RuntimeError too, but not one that an adapter mends
            raise
        except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(features, Tensor):
                found = f"have shape {tuple(features.shape)}"
            else:
                found = f"are a {type(features).__name__}"
            raise RuntimeError(
                f"the head rejects the tap at depth {depth}, whose features {found}: "
                f"{error}. If channels or resolution differ there, adapters={{{depth}: module}} "
                "maps these features to what the head takes"
            ) from error

    # --- truncate, with_taps, grow and check

    def _adapters_by_depth(self) -> dict[int, nn.Module]:
        return {int(depth): adapter for depth, adapter in self.adapters.items()}

    def _rebuilt(
        self, blocks: Iterable[nn.Module], taps: Sequence[int], adapters: Mapping[int, nn.Module]
    ) -> ElasticWrapper:
        """Return a net with this one's settings, made of the given modules without copying them."""
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
        """Return a copy of a block, made the identity, with this net's device, dtype and mode."""
        identity = detached_copy(block)
        if init is None:
            init_identity = getattr(identity, "init_identity", None)
            if init_identity is None:
                raise ValueError(
                    f"grow: {name} has no init_identity(); pass init=, a function that makes a "
                    "block the identity (for a residual block: zero its last layer)"
                )
            init_identity()
        else:
            init(identity)
        identity.train(self.training)
        parameter = next(self.parameters(), None)
        if parameter is None:
            return identity
        return identity.to(parameter)  # its device and dtype

    def _prove_identity(self, old_depth: int, example: Any, keywords: dict[str, Any]) -> None:
        """Raise unless the blocks deeper than `old_depth` change neither features nor output."""
        old_blocks = self.blocks[:old_depth]
        new_blocks = self.blocks[old_depth:]
        features, context = self._run_stem(example, keywords)
        skip = self._skip_of(example, features)
        head = self._head_for_one_pass()
        for depth, block in enumerate(old_blocks, start=1):
            features, context = self._run_block(block, features, context, depth)

        # Copies, because the head, or a new block, may change what it takes in place.
        expected = self._predict(head, features.clone(), skip, old_depth)
        for index, block in enumerate(new_blocks):
            before = features.clone()
            depth = old_depth + index + 1
            features, context = self._run_block(block, features, context, depth)
            problem = _not_identity(before, features)
            if problem is not None:
                name = _new_block_name(index, block)
                raise ValueError(f"grow: {name} is not the identity: {problem}")

        new_prediction = self._predict(head, features, skip, depth=len(self.blocks))
        if not same_bits(expected, new_prediction):
            raise ValueError(
                "grow: the adapters of the new taps change the prediction: "
                "make them equal to the deepest tap's"
            )

    def _report(
        self, head: Callable[..., Any], features: Tensor, skip: Any, depth: int
    ) -> TapReport:
        """Return the report of one tap, which `check` completes with the deepest tap's shape."""
        output: Any = None
        rejection: str | None = None
        try:
            output = self._predict(head, features, skip, depth)
        except RuntimeError as error:
            rejection = str(error)
        not_finite = int((~torch.isfinite(features)).sum())
        # Features that are not finite explain everything else, a rejection by the head too.
        problem = rejection
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

    When the `with` block ends, also by an exception, each module gets its own mode back.

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
    """Raise unless each adapter belongs to a tap."""
    for depth in adapters:
        if type(depth) is not int or depth not in taps:  # True and 1.0 are equal to 1
            listed = ", ".join(map(str, taps))
            raise ValueError(f"adapter at depth {depth!r}: this net has taps at depths {listed}")


def _parameters_behind_input(stem: nn.Module | None) -> list[inspect.Parameter]:
    """Return the parameters of the stem's forward without the first, which takes the input."""
    if stem is None:
        return []
    return list(inspect.signature(stem.forward).parameters.values())[1:]


def _takes_any_keyword(stem: nn.Module | None) -> bool:
    """Return whether the stem's forward ends in `**keywords`."""
    parameters = _parameters_behind_input(stem)
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def _named_keywords(stem: nn.Module | None) -> frozenset[str]:
    """Return the names of the keyword arguments that the stem's forward lists."""
    keyword_kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = _parameters_behind_input(stem)
    return frozenset(parameter.name for parameter in parameters if parameter.kind in keyword_kinds)


def _check_all_used(keywords: Iterable[str], used: Container[str]) -> None:
    """Raise unless every keyword argument is used; an unused one may be misspelt."""
    for name in keywords:
        if name not in used:
            raise TypeError(
                f"unexpected keyword argument {name!r}: neither the stem nor call_block gets it"
            )


def _is_tuple(output: Any) -> TypeGuard[tuple[Any, ...]]:
    """Return isinstance(output, tuple); the type checker then takes the entries as Any."""
    return isinstance(output, tuple)


def _new_block_name(index: int, block: nn.Module) -> str:
    return f"new block {index} ({type(block).__name__})"


def _recomputed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that keeps no activations: the backward pass computes them again."""

    def run(*inputs: Any) -> Any:
        return checkpoint(function, *inputs, use_reentrant=False)

    return run


def _not_identity(before: Tensor, after: Tensor) -> str | None:
    """Return why a block that turns `before` into `after` is not the identity; None if it is."""
    if before.shape != after.shape:
        return f"it turns shape {tuple(before.shape)} into {tuple(after.shape)}"
    if before.isnan().any():
        return "its input has NaN on this example, so that this run cannot prove that it is"
    if same_bits(before, after):
        return None
    difference = largest_difference(before, after)
    return (
        f"on the example its output differs from its input by up to {difference:.3g}. A block that "
        "normalises its own sum (post-norm) or ends in an activation cannot be the identity; for "
        "any other residual block, make `init` zero the last layer of its residual path"
    )


def _with_deepest_shape(report: TapReport, deepest_shape: tuple[int, ...]) -> TapReport:
    """Add the deepest tap's shape to the problem of a tap that the head rejects for its shape."""
    # The only problem that a tap of finite features can have is that the head rejects it.
    rejected = report.finite and report.problem is not None
    if not rejected or report.shape == deepest_shape:
        return report
    problem = f"{report.problem} (the deepest tap has shape {deepest_shape})"
    return report._replace(problem=problem)
